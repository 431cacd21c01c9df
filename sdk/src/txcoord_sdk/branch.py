"""The branch operation that a request asks for, and the answers that the coordinator understands.

Nothing of a framework: `txcoord_sdk.fastapi`, `txcoord_sdk.starlette` and `txcoord_sdk.grpc` put this to use.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import quote, unquote

from txcoord.errors import InvalidRequestError
from txcoord.model import Outcome
from txcoord.protocol import (
    COORDINATOR_PARAMETER,
    METADATA_PREFIX,
    PHASE2_PARAMETER,
    QUERY_PARAMETERS,
    RESULT_KEY,
    STATUS_FAILURE,
    STATUS_ONGOING,
    ResultWord,
)
from txcoord_sdk._branch_errors import BranchFailed as BranchFailed
from txcoord_sdk._branch_errors import BranchOngoing as BranchOngoing
from txcoord_sdk.barrier import BranchBarrier
from txcoord_sdk.errors import BranchCallError

logger = logging.getLogger("txcoord_sdk.branch")

REDIS_KEY_PARAMETER = "redis_key"
"""Query parameter of a check-back: beside which key of Redis the mark of the local transaction is."""

_DROPPED = str.maketrans("", "", "\r\n;")


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchContext:
    """Which operation of which branch of which global transaction a request asks for."""

    trans_type: str
    gid: str
    branch_id: str
    op: str
    barrier: BranchBarrier
    """Made for this request: its calls are numbered from 01."""
    coordinator_url: str = field(default="", repr=False)
    """Where branches within this branch are registered, as the caller says; given to the try of a tcc
    and the action of an xa. Clients of the SDK leave out user and password; others may not."""
    phase2_url: str = ""
    """Of the action of an xa: what it registers, to be called for commit or rollback."""
    redis_key: str = ""
    """For a check-back: the first key of a local transaction in Redis, as `redis_do_and_submit` has the
    coordinator say; empty if its mark has DTM's name."""

    @classmethod
    def from_query(cls, query: Mapping[str, str], *, table: str | None = None) -> Self:
        """Read the context from the query parameters that the coordinator adds to each call.

        Line breaks and semicolons are left out of the values, as DTM does.

        Args:
            table: the barrier table, if it is not DTM's.

        Raises:
            InvalidRequestError: a parameter is missing or too long; the sentence names it.
        """
        return cls._read(query, table, where="query", prefix="")

    @classmethod
    def from_metadata(cls, metadata: Iterable[tuple[str, str | bytes]], *, table: str | None = None) -> Self:
        """Read the context from the metadata of a call over gRPC; otherwise as `from_query`."""
        query = query_in(metadata)
        if (url := query.get(COORDINATOR_PARAMETER, "")) and "://" not in url:
            # Host and port, as DTM's clients say it; a client of ours takes an address with its scheme.
            query[COORDINATOR_PARAMETER] = f"grpc://{url}"
        return cls._read(query, table, where="metadata", prefix=METADATA_PREFIX)

    @classmethod
    def _read(cls, query: Mapping[str, str], table: str | None, *, where: str, prefix: str) -> Self:
        values = {name: query.get(name, "").translate(_DROPPED) for name in QUERY_PARAMETERS}
        missing = [f"{prefix}{name}" for name, value in values.items() if not value]
        if missing:
            added = ", ".join(f"{prefix}{name}" for name in QUERY_PARAMETERS)
            raise InvalidRequestError(
                f"not the call of a branch: the {where} lacks {', '.join(missing)}; a coordinator adds {added}"
            )
        url = query.get(COORDINATOR_PARAMETER, "").translate(_DROPPED)
        key = query.get(REDIS_KEY_PARAMETER, "")
        phase2_url = query.get(PHASE2_PARAMETER, "").translate(_DROPPED)
        return cls(
            **values,
            barrier=BranchBarrier(**values, table=table),
            coordinator_url=url,
            phase2_url=phase2_url,
            redis_key=key,
        )


def query_in(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Return what a call over HTTP would have in its query."""
    return {
        key.removeprefix(METADATA_PREFIX): _decoded(value)
        for key, value in metadata
        if key.startswith(METADATA_PREFIX) and isinstance(value, str)
    }


def _decoded(value: str) -> str:
    # Metadata is printable ASCII: a coordinator percent-encodes what is not, and leaves the rest as it is.
    text = unquote(value, errors="replace")
    return text if quote(text, safe="") == value and not (text.isascii() and text.isprintable()) else value


@dataclass(frozen=True, slots=True)
class Answer:
    """HTTP status and JSON body of an answer to the coordinator."""

    status: int
    body: Mapping[str, object]


def success_body(value: object) -> Mapping[str, object]:
    """Say success, and keep what the endpoint returned: a dict's own keys, anything else as `result`.

    A dict that has a `dtm_result` of its own keeps it.
    """
    match value:
        case None:
            return {RESULT_KEY: ResultWord.SUCCESS}
        case Mapping():
            return {RESULT_KEY: ResultWord.SUCCESS, **value}
        case _:
            return {RESULT_KEY: ResultWord.SUCCESS, "result": value}


def answer_to(error: Exception, query: Mapping[str, str]) -> Answer:
    """Map what an endpoint raised. Anything else than an answer is logged, and the coordinator will call again."""
    match error:
        case BranchFailed():
            return Answer(STATUS_FAILURE, {RESULT_KEY: ResultWord.FAILURE, "message": str(error)})
        case BranchCallError(outcome=Outcome.FAILURE):
            # Of a branch within this one: what refuses there refuses here.
            return Answer(STATUS_FAILURE, {RESULT_KEY: ResultWord.FAILURE, "message": error.reason})
        case BranchOngoing():
            return Answer(STATUS_ONGOING, {RESULT_KEY: ResultWord.ONGOING, "message": str(error)})
        case _:
            named = {name: query.get(name, "").translate(_DROPPED) for name in QUERY_PARAMETERS}
            logger.error(
                "branch call failed: gid=%(gid)s trans_type=%(trans_type)s branch_id=%(branch_id)s op=%(op)s",
                named,
                exc_info=error,
            )
            # A constant: coordinators that search the text for FAILURE must not find it in
            # the words of an exception.
            return Answer(500, {"message": "the endpoint broke off; its log has the traceback"})
