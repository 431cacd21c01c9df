"""How many transactions are unfinished, for whoever watches.

Only the store knows it, and counting costs it some microseconds for each unfinished one, so that it is not asked each
time: what it said holds for a while, and for longer the longer it took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from txcoord.errors import TxcoordError
from txcoord.model import Status
from txcoord.store.base import Store

COUNTED_EVERY_S: Final = 10.0
PATIENCE_S: Final = 5.0
"""Longest wait for the store: who scrapes gives up after ten seconds, mostly, and wants all the rest."""

_SHARE: Final = 20
"""At most the 20th part of the time is spent with counting."""


class UnfinishedCount:
    """Counts in the store, seldom enough."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._one_at_a_time = asyncio.Lock()
        self._counts: Mapping[Status, int] | None = None
        self._good_until = 0.0

    async def by_status(self) -> Mapping[Status, int] | None:
        """How many there are in each status that is not final; None: the store does not say."""
        time = asyncio.get_running_loop().time
        async with self._one_at_a_time:
            began = time()
            if began >= self._good_until:
                self._counts = await self._ask()
                self._good_until = time() + max(COUNTED_EVERY_S, (time() - began) * _SHARE)
            return self._counts

    async def _ask(self) -> Mapping[Status, int] | None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                found = await self._store.count_by_status()
        except (TxcoordError, TimeoutError):
            return None
        return {status: found.get(status, 0) for status in Status if not status.is_final}
