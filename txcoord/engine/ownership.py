"""This process as a node: its lease, and what dead nodes left behind.

Two loops. One only renews the lease, so that nothing else can make it run out: a long
clean-up, a slow query, a fault in either. When the lease is lost all the same, everything
this process drives is dropped before it joins again, under another id.

The other parks what belongs to dead nodes, due at once. From there recovery takes it over
like anything else that is due: a crash is not a special case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from txcoord import metrics
from txcoord.engine.clock import Clock, sleep_until
from txcoord.engine.settings import EngineSettings
from txcoord.errors import LeaseLostError, StoreUnavailableError
from txcoord.logs import get_logger
from txcoord.model import MICROSECONDS
from txcoord.store.base import Applied, Change, Owned, Store

T = TypeVar("T")

log = get_logger()

RETRY_S = 0.5
_RELEASE_BATCH = 1000


class Ownership:
    """The node's id and lease, and the store's methods that need them."""

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        settings: EngineSettings,
        clock: Clock,
        drop_everything: Callable[[], Awaitable[None]],
        on_released: Callable[[], None],
    ) -> None:
        """
        Args:
            drop_everything: ends all that is driven under the lost lease.
            on_released: told when transactions of dead nodes have become due.
        """
        self._store = store
        self._name = name
        self._settings = settings
        self._clock = clock
        self._drop_everything = drop_everything
        self._on_released = on_released
        self.node_id = 0
        self.is_lost = False
        """From a lost lease until the process has joined again."""
        self._wake = asyncio.Event()

    async def join(self) -> None:
        """Become a node.

        Raises:
            StoreUnavailableError: the store cannot be reached.
        """
        self.node_id = await self._store.join(name=self._name, lease_s=self._settings.lease_s)

    async def leave(self) -> None:
        """Give up the lease, and what is still owned."""
        try:
            await self._store.leave(self.node_id, now_us=self._clock.now_us())
        except StoreUnavailableError as error:
            log.warning("could not leave: the lease will run out", node=self.node_id, error=str(error))

    # -- under the lease -----------------------------------------------------------------

    async def apply(self, batch: Sequence[Change], *, patiently: bool = True) -> Sequence[Applied]:
        """Write a batch of the journal under the present lease; see `Store.apply`."""
        node_id = self.node_id
        applying = self._store.apply(node_id, batch, patiently=patiently)
        return await self._under_lease(node_id, applying, what="the batch")

    async def take_over_due(self, *, limit: int) -> Sequence[Owned]:
        """See `Store.take_over_due`."""
        node_id = self.node_id
        taking = self._store.take_over_due(node_id, now_us=self._clock.now_us(), limit=limit)
        return await self._under_lease(node_id, taking, what="it")

    async def claim_prepared(self, gid: str) -> Owned | None:
        """See `Store.claim_prepared`."""
        node_id = self.node_id
        return await self._under_lease(node_id, self._store.claim_prepared(node_id, gid), what=gid)

    async def _under_lease(self, node_id: int, work: Awaitable[T], *, what: str) -> T:
        try:
            return await work
        except LeaseLostError as error:
            if node_id != self.node_id:
                # Begun under an earlier lease. The present one is not lost with it.
                raise StoreUnavailableError(f"this coordinator has just joined again: try {what} again") from error
            self.lose()
            raise

    def lose(self) -> None:
        """Note that the lease has ended. The loop drops everything and joins again."""
        if not self.is_lost:
            log.error("node lease lost", node=self.node_id)
            metrics.LEASE_LOST.inc()
            self.is_lost = True
            self._wake.set()

    # -- the loops ---------------------------------------------------------------------

    async def keep_lease(self) -> None:
        """Renew the lease for ever; join again when it is lost."""
        interval_s = self._settings.lease_s / 3
        pause_s = interval_s
        while True:
            self._wake.clear()
            if not self.is_lost:
                until_us = self._clock.now_us() + int(pause_s * MICROSECONDS)
                await sleep_until(self._clock, until_us, wake=self._wake)
            pause_s = interval_s
            if not self.is_lost:
                is_renewed = await self._renew(within_s=interval_s)
                if is_renewed is None:
                    pause_s = min(RETRY_S, interval_s)  # it may be back just before the lease ends
                elif not is_renewed:
                    self.lose()
            if self.is_lost:
                await self._drop_everything()
                await self._join_again()
                self.is_lost = False

    async def _renew(self, *, within_s: float) -> bool | None:
        """Prolong the lease. None: not known; the store itself refuses our writes if it has ended."""
        try:
            async with asyncio.timeout(within_s):
                return await self._store.renew(self.node_id, lease_s=self._settings.lease_s)
        except (StoreUnavailableError, TimeoutError):
            return None

    async def _join_again(self) -> None:
        while True:
            try:
                await self.join()
            except StoreUnavailableError:
                await asyncio.sleep(RETRY_S)
            else:
                log.warning("joined again", node=self.node_id)
                return

    async def release_dead(self) -> None:
        """Park what dead nodes owned, for ever, in batches."""
        interval_us = int(self._settings.lease_s / 3 * MICROSECONDS)
        while True:
            try:
                released = await self._store.release_dead(now_us=self._clock.now_us(), limit=_RELEASE_BATCH)
            except StoreUnavailableError as error:
                log.warning("store unavailable", error=str(error))
                released = 0
            if released:
                log.warning("released transactions of dead nodes", count=released)
                self._on_released()
            if released < _RELEASE_BATCH:
                await sleep_until(self._clock, self._clock.now_us() + interval_us)
