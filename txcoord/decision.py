"""All that a pattern's `decide` can ask for."""

from __future__ import annotations

from msgspec import Struct

from txcoord.model import Status


class Call(Struct, frozen=True):
    """Call these branch operations now (positions in `GlobalTransaction.branches`)."""

    ops: tuple[int, ...]
    needs_record: bool = False
    """The results known so far have to be durable before the calls begin."""


class GiveUp(Struct, frozen=True):
    """Call these operations no more: each has failed, and the others go on."""

    ops: tuple[int, ...]


class MoveTo(Struct, frozen=True):
    """Change the status. Durable before anything is done because of it."""

    status: Status
    reason: str = ""
    reached: frozenset[int] = frozenset()
    """Operations to be marked `reached` with it."""


class Wait(Struct, frozen=True):
    """Nothing to do before `until_us`; None: before a call that is under way ends."""

    until_us: int | None


class Done(Struct, frozen=True):
    """The transaction is final."""


Decision = Call | GiveUp | MoveTo | Wait | Done
