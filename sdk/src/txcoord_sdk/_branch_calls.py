"""Calls of participants that an initiator makes itself: how they are written, and what answers mean. No I/O.

Over HTTP they say in the query which branch operation they are, over gRPC in the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit, urlunsplit

from txcoord.model import Outcome
from txcoord.outcome import understand
from txcoord.protocol import (
    API_BASE,
    CONNECTION_HEADERS,
    COORDINATOR_PARAMETER,
    METADATA_PREFIX,
    PHASE2_PARAMETER,
    ResultWord,
)
from txcoord_sdk._checks import is_grpc_url
from txcoord_sdk._rules import AnyReply, Call, GrpcAnswer, GrpcCall, HttpAnswer, HttpCall, NoAnswer, text_of

_METADATA_VALUE = re.compile(r"[\x20-\x7e]*")
_RESERVED = ("grpc-", ":")


def branch_call(
    url: str,
    payload: bytes,
    *,
    gid: str,
    trans_type: str,
    branch_id: str,
    op: str,
    coordinator: str = "",
    phase2_url: str = "",
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
) -> Call:
    """Write the call of a branch operation, over HTTP or gRPC as its URL says.

    Args:
        coordinator: where branches within the branch are registered, as a coordinator client has it.
        phase2_url: of the action of an xa: what it is to register for commit and rollback.

    Raises:
        ValueError: a name or a value cannot be sent as metadata.
    """
    ours = {"branch_id": branch_id, "gid": gid, "op": op, "trans_type": trans_type}
    if coordinator:
        ours[COORDINATOR_PARAMETER] = _for_participants(coordinator, over_grpc=is_grpc_url(url))
    if phase2_url:
        ours[PHASE2_PARAMETER] = phase2_url
    if not is_grpc_url(url):
        target = _with_query(url, urlencode(sorted(ours.items())))
        return HttpCall(method="POST", url=target, body=payload, headers=headers or {}, timeout_s=timeout_s)
    target, _, method = url.partition("/")
    named = {f"{METADATA_PREFIX}{name}": value for name, value in ours.items()}
    return GrpcCall(
        target=target,
        method=f"/{method}",
        message=payload,
        metadata=_metadata(headers or {}, named),
        timeout_s=timeout_s,
        is_branch=True,
    )


def _for_participants(coordinator: str, *, over_grpc: bool) -> str:
    if coordinator.startswith("http"):
        return f"{coordinator}{API_BASE}"
    # Over gRPC DTM's clients pass host and port, and would not know the scheme.
    return coordinator.removeprefix("grpc://") if over_grpc else coordinator


def _with_query(url: str, ours: str) -> str:
    parts = urlsplit(url)
    # Ours last: of two with the same name, participants take the last.
    return urlunsplit(parts._replace(query=f"{parts.query}&{ours}" if parts.query else ours, fragment=""))


def _metadata(headers: Mapping[str, str], ours: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    given = {name.lower(): value for name, value in headers.items()}
    kept = {
        name: value
        for name, value in given.items()
        if name not in CONNECTION_HEADERS and name not in ours and not name.startswith(_RESERVED)
    }
    for name, value in [*kept.items(), *ours.items()]:
        if not _METADATA_VALUE.fullmatch(value) or name.endswith("-bin"):
            raise ValueError(f"{name}: {value!r} cannot be sent over gRPC, whose metadata is printable ASCII")
    return (*kept.items(), *ours.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a participant's answer means."""

    outcome: Outcome
    reason: str = ""
    """Why it is no success."""
    body: bytes = b""


def understood(reply: AnyReply) -> Answered:
    """Say what came of the call of a branch operation."""
    match reply:
        case NoAnswer():
            return Answered(outcome=Outcome.UNKNOWN, reason=f"no answer ({reply.detail})")
        case GrpcAnswer():
            return _of_grpc(reply)
        case HttpAnswer():
            outcome = understand(reply.status, reply.body)
            code = f"HTTP {reply.status}: " if outcome is Outcome.UNKNOWN else ""
            return Answered(outcome=outcome, reason=f"{code}{text_of(reply)}", body=reply.body)


def _of_grpc(answer: GrpcAnswer) -> Answered:
    said = answer.message or "no further word"
    match answer.code:
        case "OK":
            return Answered(outcome=Outcome.SUCCESS, body=answer.body)
        # Old clients of DTM say it in a word.
        case "ABORTED" if answer.message == ResultWord.ONGOING:
            return Answered(outcome=Outcome.ONGOING, reason=said)
        case "ABORTED":
            return Answered(outcome=Outcome.FAILURE, reason=said)
        case "FAILED_PRECONDITION":
            return Answered(outcome=Outcome.ONGOING, reason=said)
        case _:
            return Answered(outcome=Outcome.UNKNOWN, reason=f"gRPC {answer.code}: {said}")
