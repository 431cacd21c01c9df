"""The endpoints that one client calls: a bounded number of them, idle ones make room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Generic, TypeVar

from txcoord.dispatch.deadlines import Deadlines
from txcoord.dispatch.limited import LimitedEndpoint, NoAnswer, Surroundings
from txcoord.dispatch.settings import DispatchSettings

_TIDY_EVERY_S = 1.0

E = TypeVar("E", bound=LimitedEndpoint[Any, Any])


class Endpoints(Generic[E]):
    """Finds or makes endpoints by their origin. Belongs to the event loop of its first use.

    Args:
        watch: called with all endpoints about once a second, and when they have ended.
    """

    def __init__(
        self,
        settings: DispatchSettings,
        *,
        clock: Callable[[], float],
        random: Random,
        watch: Callable[[Iterable[E]], None] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._random = random
        self._watch = watch
        self._by_origin: dict[str, E] = {}
        self._surroundings: Surroundings | None = None
        self._tidy_timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.find = self._by_origin.get

    def make(self, origin: str, new: Callable[[Surroundings], E]) -> E | NoAnswer:
        """Make the endpoint that `find` has not found."""
        if self._is_closed:
            return NoAnswer(detail=f"{origin}: not called, the coordinator is stopping", called=False)
        if len(self._by_origin) >= self._settings.max_endpoints and not self._make_room():
            return NoAnswer(
                detail=f"{origin}: not called, {len(self._by_origin)} other endpoints are being called",
                called=False,
                retry_after_s=self._settings.breaker_hold_s,
            )
        if self._surroundings is None:
            self._surroundings = self._start()
        endpoint = self._by_origin[origin] = new(self._surroundings)
        if self._tidy_timer is None:
            self._tidy_timer = self._surroundings.loop.call_later(_TIDY_EVERY_S, self._tidy)
        return endpoint

    def _start(self) -> Surroundings:
        loop = asyncio.get_running_loop()
        return Surroundings(self._settings, loop, self._clock, self._random, Deadlines(loop, self._clock))

    def _make_room(self) -> bool:
        idle = [endpoint for endpoint in self._by_origin.values() if not endpoint.is_busy]
        if not idle:
            return False
        self._drop(min(idle, key=lambda endpoint: endpoint.used_at))
        return True

    def _drop(self, endpoint: E) -> None:
        del self._by_origin[endpoint.origin]
        endpoint.end()

    def _tidy(self) -> None:
        assert self._surroundings is not None
        now = self._clock()
        for endpoint in tuple(self._by_origin.values()):
            endpoint.tidy(now)
            if not endpoint.is_busy and endpoint.used_at + self._settings.endpoint_idle_s < now:
                self._drop(endpoint)
        if self._watch is not None:
            self._watch(self._by_origin.values())
        self._tidy_timer = None
        if self._by_origin:
            self._tidy_timer = self._surroundings.loop.call_later(_TIDY_EVERY_S, self._tidy)

    async def close(self) -> None:
        """End everything and wait until the connections are gone; exchanges under way end with `NoAnswer`."""
        self._is_closed = True
        endpoints = tuple(self._by_origin.values())
        self._by_origin.clear()
        for endpoint in endpoints:
            endpoint.end()
        for endpoint in endpoints:
            await endpoint.gone()
        if self._tidy_timer is not None:
            self._tidy_timer.cancel()
            self._tidy_timer = None
        if self._surroundings is not None:
            self._surroundings.deadlines.close()
        if self._watch is not None:
            self._watch(())
