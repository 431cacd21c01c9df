"""How waits end, and the time limits of many calls, on one coarse timer.

A timer of the event loop for each call costs more than all the bookkeeping here: a call
puts its future into the set of its time slot, and takes it out again. The loop has one
timer, for the earliest slot. A limit is kept up to one slot late, never early.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from enum import Enum

_SLOTS_PER_S = 64
_PRUNE_FROM = 1024


class End(Enum):
    """How a wait ended: for an answer, a connection or a place."""

    DONE = "done"
    LOST = "lost"
    """The connection ended or the answer was malformed: `connection.Connection.flaw`."""
    TIMED_OUT = "timed out"
    HELD = "held"
    """The endpoint's breaker opened."""
    CLOSED = "closed"
    """The dispatcher was closed."""


class Deadlines:
    """Ends futures that are still pending at their time, with `End.TIMED_OUT`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._slots: dict[int, set[asyncio.Future[End]]] = {}
        self._order: list[int] = []
        self._prune_at = _PRUNE_FROM
        self._timer: asyncio.TimerHandle | None = None

    def add(self, future: asyncio.Future[End], at: float) -> set[asyncio.Future[End]]:
        """Limit a future. Whoever added it discards it from the returned set when it is done."""
        key = int(at * _SLOTS_PER_S) + 1
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= self._prune_at:
                self._prune()
            slot = self._slots[key] = set()
            heapq.heappush(self._order, key)
            if self._order[0] == key:
                self._arm()
        slot.add(future)
        return slot

    def __len__(self) -> int:
        """Slots held, empty ones with them."""
        return len(self._slots)

    def _prune(self) -> None:
        # Where limits are long, slots gather whose futures were done long ago.
        self._slots = {key: slot for key, slot in self._slots.items() if slot}
        self._order = sorted(self._slots)
        self._prune_at = max(_PRUNE_FROM, 2 * len(self._slots))

    def close(self) -> None:
        """Stop the timer; nothing expires any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.clear()
        self._order.clear()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wait_s = self._order[0] / _SLOTS_PER_S - self._clock()
        self._timer = self._loop.call_later(max(wait_s, 0.001), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock() * _SLOTS_PER_S
        while self._order and self._order[0] <= now:
            for future in self._slots.pop(heapq.heappop(self._order)):
                if not future.done():
                    future.set_result(End.TIMED_OUT)
        if self._order:
            self._arm()
