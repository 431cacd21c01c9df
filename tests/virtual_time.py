"""An event loop whose clock jumps: an hour passes at once, and always in the same order.

When no task can go on, the loop's time jumps to the next timer, instead of the process
sleeping until then. So tests are exact to the microsecond, take no real time, and repeat
themselves; and where nothing could ever happen again, they say so instead of hanging.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from txcoord.engine.clock import Timer
from txcoord.model import MICROSECONDS

T = TypeVar("T")

EPOCH_US = 1_767_268_800 * MICROSECONDS
"""The wall-clock time at which each loop begins: 2026-01-01, 12:00 UTC."""


MOST_STEPS_AT_ONCE = 20_000


class NothingCanHappenError(RuntimeError):
    """All tasks wait, and no timer is set."""


class TimeStandsStillError(RuntimeError):
    """Tasks go on and on, and no time passes."""


class _JumpingSelector(selectors.DefaultSelector):
    """Looks for what is ready, and lets time jump where the real one would sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._steps_at_once = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise NothingCanHappenError("every task waits for another one, and no timer is set")
            self._let_pass(max(timeout, 0.0))
        return ready

    def _let_pass(self, seconds: float) -> None:
        self.now_s += seconds
        self._steps_at_once = 0 if seconds else self._steps_at_once + 1
        if self._steps_at_once > MOST_STEPS_AT_ONCE:
            self._steps_at_once = 0
            raise TimeStandsStillError(f"{MOST_STEPS_AT_ONCE} steps of the loop, and it is still {self.now_s} s")


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


class VirtualClock:
    """The running loop's time as wall-clock time: see `txcoord.engine.clock.Clock`."""

    def now_us(self) -> int:
        return EPOCH_US + round(asyncio.get_running_loop().time() * MICROSECONDS)

    def call_at(self, instant_us: int, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_at((instant_us - EPOCH_US) / MICROSECONDS, callback)


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a loop of its own, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
