"""One endpoint's limits, whatever is spoken to it: the places for its calls, the wait for one, its breaker.

Nothing here is shared between endpoints, so that one that does not answer holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from random import Random
from typing import Generic, TypeVar

from msgspec import Struct

from txcoord.dispatch.breaker import Breaker
from txcoord.dispatch.deadlines import Deadlines, End
from txcoord.dispatch.settings import DispatchSettings

_logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Reply = TypeVar("Reply")


class NoAnswer(Struct, frozen=True, kw_only=True):
    """Why no answer came."""

    detail: str
    called: bool = True
    """False: no call was made; the endpoint has too much to do, or is held off."""
    retry_after_s: float = 0.0
    counts: bool = True
    """Whether the breaker counts it."""


class Surroundings(Struct, frozen=True):
    """What all endpoints of one client share."""

    settings: DispatchSettings
    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    random: Random
    deadlines: Deadlines


class LimitedEndpoint(ABC, Generic[Job, Reply]):
    """Makes exchanges with one endpoint, within its limits. Those who know how to speak to it inherit from this."""

    def __init__(self, origin: str, surroundings: Surroundings) -> None:
        self.origin = origin
        self._settings = surroundings.settings
        self._loop = surroundings.loop
        self._clock = surroundings.clock
        self._random = surroundings.random
        self._deadlines = surroundings.deadlines
        self.breaker = Breaker(self._settings, surroundings.random)
        self._in_flight = 0
        self._waiters: OrderedDict[asyncio.Future[End], None] = OrderedDict()
        self.used_at = self._clock()
        self._is_closed = False

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def is_busy(self) -> bool:
        return self._in_flight > 0 or bool(self._waiters)

    async def exchange(self, job: Job, at: float, now: float) -> Reply | NoAnswer:
        """Do one job and bring its reply, until `at` at the latest.

        Raises nothing but the cancellation of its caller.
        """
        breaker = self.breaker
        probe = False
        if breaker.is_open:
            probe = breaker.admit_probe(now)
            if not probe:
                return self._held(now)
        try:
            if self._in_flight < self._settings.max_in_flight:
                self._in_flight += 1
            elif refusal := await self._wait_for_place(at):
                return refusal
            try:
                if breaker.is_open and not probe:
                    # It opened between the hand-over of the place and now.
                    return self._held(self._clock())
                result = await self._perform(job, at, now)
                # Before the place is handed on: nobody must go on to an endpoint now held off.
                if not isinstance(result, NoAnswer):
                    if breaker.failures:
                        self._note_success()
                    probe = False
                elif result.counts:
                    self._note_failure(probe, result.detail)
                    probe = False
                return result
            finally:
                self._leave_place()
        finally:
            if probe:
                breaker.withdrawn()

    @abstractmethod
    async def _perform(self, job: Job, at: float, now: float) -> Reply | NoAnswer:
        """Do one job: it has a place. `now` is when its caller came."""

    def tidy(self, now: float) -> None:
        """Give up what has been idle for too long."""

    @abstractmethod
    def end(self) -> None:
        """End everything at once; exchanges under way end with `NoAnswer`."""

    @abstractmethod
    async def gone(self) -> None:
        """After `end`: wait until the connections are gone."""

    # ---- places

    async def _wait_for_place(self, at: float) -> NoAnswer | None:
        """Wait for one of the places, first come first served; None: it is the caller's."""
        if len(self._waiters) >= self._settings.max_waiting:
            return self._not_called(f"{len(self._waiters)} calls wait for it already")
        waiter: asyncio.Future[End] = self._loop.create_future()
        self._waiters[waiter] = None
        slot = self._deadlines.add(waiter, at)
        try:
            end = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result() is End.DONE:
                self._leave_place()
            raise
        finally:
            slot.discard(waiter)
            self._waiters.pop(waiter, None)
        if end is End.DONE:
            return None
        if end is End.HELD:
            return self._held(self._clock())
        if end is End.TIMED_OUT:
            return self._not_called(
                f"all {self._settings.max_in_flight} places for calls were taken until its time was up"
            )
        return self._closed()

    def _leave_place(self) -> None:
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                # The place is handed on, so that no newcomer takes it in between.
                waiter.set_result(End.DONE)
                return
        self._in_flight -= 1

    def _dismiss_waiters(self, end: End) -> None:
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(end)

    # ---- the breaker

    def _note_success(self) -> None:
        if self.breaker.succeeded():
            _logger.warning("endpoint %s answers again", self.origin)

    def _note_failure(self, probe: bool, detail: str) -> None:
        now = self._clock()
        if self.breaker.failed(now, probe=probe):
            failures = self.breaker.failures
            _logger.warning(
                "endpoint %s is held off after %d calls without an answer: %s", self.origin, failures, detail
            )
            self._dismiss_waiters(End.HELD)

    # ---- refusals

    def _held(self, now: float) -> NoAnswer:
        failures, wait_s = self.breaker.failures, self.breaker.retry_after_s(now)
        return NoAnswer(
            detail=f"{self.origin}: not called, it is held off after {failures} calls in a row without an answer",
            called=False,
            retry_after_s=wait_s,
            counts=False,
        )

    def _not_called(self, why: str) -> NoAnswer:
        wait_s = self._settings.breaker_hold_s * self._random.uniform(0.5, 1.5)
        return NoAnswer(detail=f"{self.origin}: not called, {why}", called=False, retry_after_s=wait_s, counts=False)

    def _closed(self) -> NoAnswer:
        return NoAnswer(detail=f"{self.origin}: the coordinator is stopping", counts=False)
