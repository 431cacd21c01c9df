"""What can go wrong at a barrier besides what the database and the caller's own work raise."""

from __future__ import annotations

from txcoord.errors import TxcoordError


class BarrierError(TxcoordError):
    """The barrier cannot keep its promise here; nothing was done, and the sentence says what to change."""


class NoTransactionError(BarrierError):
    """The connection commits every statement by itself, so barrier and work would not commit together."""


class DuplicatedError(TxcoordError):
    """The local transaction of a message must not commit: it has before, or a check-back said that it never will."""

    def __init__(self, gid: str) -> None:
        super().__init__(
            f"the local transaction of {gid} must not commit: it has committed before, or was reported as not committed"
        )
        self.gid = gid
