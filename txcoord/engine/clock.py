"""The time, handed in so that a test can set it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from txcoord.model import MICROSECONDS


class Timer(Protocol):
    """Something that can be called off."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Wall-clock time in microseconds UTC, and calls at a given instant."""

    def now_us(self) -> int: ...

    def call_at(self, instant_us: int, callback: Callable[[], object]) -> Timer:
        """Call `callback` once `now_us()` has reached `instant_us`."""
        ...


class SystemClock:
    """The machine's clock and the running event loop's timers."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def call_at(self, instant_us: int, callback: Callable[[], object]) -> Timer:
        # Rounded up to the loop's resolution of a millisecond: a timer that fires early
        # would find nothing due.
        delay_s = max(instant_us - self.now_us(), 0) / MICROSECONDS + 0.001
        return asyncio.get_running_loop().call_later(delay_s, callback)


async def sleep_until(clock: Clock, instant_us: int, *, wake: asyncio.Event | None = None) -> None:
    """Sleep until the instant, or until `wake` is set. `wake` is set afterwards in either case."""
    event = wake if wake is not None else asyncio.Event()
    timer = clock.call_at(instant_us, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
