"""Takes over parked transactions as they fall due, and finds those that nobody drives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from txcoord.engine.clock import Clock, sleep_until
from txcoord.engine.gate import Gate
from txcoord.engine.live import LiveTransaction
from txcoord.engine.ownership import Ownership
from txcoord.engine.settings import EngineSettings
from txcoord.errors import LeaseLostError, StoreUnavailableError
from txcoord.logs import get_logger
from txcoord.model import MICROSECONDS
from txcoord.store.base import Owned, Store

log = get_logger()

_LEFT_DUE_US = 50_000
"""Shortest pause when something due was left: somebody else holds its row for a moment."""

_RECONCILE_EVERY_S = 60.0

_CLAIMS_AT_ONCE = 16
"""More would only queue for the store's connections."""


class Recovery:
    """One per process. Exact for what this process parked, within `poll_s` for what others did."""

    def __init__(
        self,
        store: Store,
        ownership: Ownership,
        *,
        settings: EngineSettings,
        clock: Clock,
        live: Mapping[str, LiveTransaction],
        resume: Callable[[Owned], None],
    ) -> None:
        """
        Args:
            live: what this process drives.
            resume: drives a transaction that was taken over.
        """
        self._store = store
        self._ownership = ownership
        self._settings = settings
        self._clock = clock
        self._live = live
        self._resume = resume
        self._look = asyncio.Event()
        self._next_due_us: int | None = None
        # Not for one at a time: a take-over costs a few statements, however many it takes.
        self._enough_room = max(1, min(settings.take_over_batch, settings.max_recovering // 2, settings.max_live // 2))
        self._waits_for_room = False
        self._take_at_most = settings.take_over_batch
        """Halved when a take-over fails: it may have been too much for the time there is."""
        self._must_reconcile = asyncio.Event()
        self.recovering = 0
        """Transactions taken over that are live."""
        self.is_draining = False
        self.gate = Gate(width=_CLAIMS_AT_ONCE)
        """Passed from a take-over or a claim in the store until its transactions are live here. Claims pass
        together, since each is about another gid. Alone passes what compares or takes many: a reconciliation would
        release what has just been claimed, and a take-over could meet a claim of the same row."""

    @property
    def is_owed_room(self) -> bool:
        """Whether what is due waits because the process drives all it may. New work has to queue behind it."""
        return self._waits_for_room and self.recovering < self._settings.max_recovering and not self.is_draining

    def look(self) -> None:
        """Something may have become due."""
        self._look.set()

    def parked_until(self, due_us: int) -> None:
        """This process parked something."""
        if self._note_due(due_us):
            self._look.set()

    def room_was_made(self) -> None:
        """A live transaction has ended."""
        if self._waits_for_room and self._room() >= self._enough_room:
            self._look.set()

    def must_reconcile(self) -> None:
        """The store may say that we own what nobody here drives."""
        self._must_reconcile.set()

    def _note_due(self, due_us: int) -> bool:
        is_earliest = self._next_due_us is None or due_us < self._next_due_us
        if is_earliest:
            self._next_due_us = due_us
        return is_earliest

    # -- due transactions ----------------------------------------------------------------

    async def run(self) -> None:
        """Take over for ever."""
        while True:
            self._look.clear()
            try:
                await self._take_over_due()
            except StoreUnavailableError:
                # The answer may be lost while the take-over stands.
                self.must_reconcile()
            except LeaseLostError:
                pass  # the lease's keeper knows already
            now_us = self._clock.now_us()
            until_us = now_us + int(self._settings.poll_s * MICROSECONDS)
            if self._next_due_us is not None and not self._waits_for_room:
                next_us = self._next_due_us if self._next_due_us > now_us else now_us + _LEFT_DUE_US
                until_us = min(next_us, until_us)
            await sleep_until(self._clock, until_us, wake=self._look)

    async def _take_over_due(self) -> None:
        while True:
            room = self._room()
            self._waits_for_room = room <= 0
            if self._waits_for_room:
                return
            self._next_due_us = None
            async with self.gate.alone():
                taken = await self._take(room)
                for owned in taken:
                    self._resume(owned)
            if len(taken) < room:
                next_due_us = await self._store.next_due_us()
                if next_due_us is not None:
                    self._note_due(next_due_us)
                return

    async def _take(self, room: int) -> Sequence[Owned]:
        try:
            taken = await self._ownership.take_over_due(limit=room)
        except StoreUnavailableError:
            self._take_at_most = max(1, room // 2)
            raise
        # Slowly, so that the next failure is far.
        self._take_at_most = min(self._take_at_most + self._take_at_most // 16 + 1, self._settings.take_over_batch)
        return taken

    def _room(self) -> int:
        """How many more may be taken over now."""
        if self.is_draining:
            return 0
        settings = self._settings
        return min(
            self._take_at_most,
            settings.max_recovering - self.recovering,
            settings.max_live - len(self._live),
        )

    # -- reconciliation ------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Release, for ever, what the store says is ours but nobody here drives.

        That happens when the answer to a take-over was lost, or when driving failed on a
        broken invariant. Looked for when there is a reason, and now and then without one.
        """
        while True:
            await sleep_until(
                self._clock,
                self._clock.now_us() + int(_RECONCILE_EVERY_S * MICROSECONDS),
                wake=self._must_reconcile,
            )
            # Not at once: what could not be driven a moment ago would fail again and again.
            pause_us = int(self._settings.lease_s / 6 * MICROSECONDS)
            await sleep_until(self._clock, self._clock.now_us() + pause_us)
            self._must_reconcile.clear()
            try:
                is_clean = await self._release_strays()
            except StoreUnavailableError:
                is_clean = False
            if not is_clean:
                self._must_reconcile.set()

    async def _release_strays(self) -> bool:
        """Release once; False: something of an earlier epoch has to end first."""
        async with self.gate.alone():
            node_id = self._ownership.node_id
            owned = await self._store.owned(node_id)
            stray = [gid for gid, _ in owned if gid not in self._live]
            if stray:
                released = await self._store.release(node_id, stray, now_us=self._clock.now_us())
                log.warning("released transactions that nobody drove", count=released)
                self.look()
                if released < len(stray):
                    return False  # the rows of some are locked, or they have just gone to somebody else
            return all(self._live[gid].epoch == epoch for gid, epoch in owned if gid in self._live)
