"""The contract of a dispatcher: one call of one branch operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from txcoord.model import Outcome, Pattern
from txcoord.protocol import HTTP


class BranchRequest(Struct, frozen=True, kw_only=True):
    """One call to be made."""

    gid: str
    pattern: Pattern
    branch_id: str
    op: str
    """An `Op`; the request to resume a workflow has the workflow's name in its place."""
    url: str
    payload: bytes = b""
    headers: Mapping[str, str] = {}
    protocol: str = HTTP
    """Of the global transaction: `txcoord.protocol.HTTP` or another of these words."""
    timeout_s: float
    """From the first byte sent (or the wait for a connection) to the last byte received."""


class CallResult(Struct, frozen=True, kw_only=True):
    """What one call came to."""

    outcome: Outcome
    code: int = 0
    """As of `txcoord.model.Attempt`."""
    detail: str = ""
    """The start of the answer's body (bounded), or a sentence on what went wrong."""
    duration_us: int = 0
    called: bool = True
    """False: no call was made. The endpoint is held off (its breaker is open) or has too many calls already."""
    retry_after_s: float = 0.0
    """With `called` false: when the endpoint will be tried again."""


class Dispatcher(Protocol):
    """Makes calls. Never raises for anything a participant or a URL does: that is an outcome."""

    async def call(self, request: BranchRequest) -> CallResult:
        """Call one branch operation and understand its answer.

        Whatever is not understood is `Outcome.UNKNOWN` with a sentence that names the
        endpoint. Bounded in time by `request.timeout_s`, which covers waiting for one of
        the endpoint's slots. Cancelling the caller closes the connection.
        """

    async def close(self) -> None:
        """Close all connections. Calls under way end as unknown."""
