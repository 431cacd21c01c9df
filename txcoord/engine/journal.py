"""Group commit: the one way in which durable state changes while transactions are driven.

Changes gather while the batch before them commits, and for the few turns of the event loop
that still bring more; then all of them go to the store as one database transaction, with
one sync to disk. No timer is involved, so nobody waits for a time to pass: an idle journal
flushes a single change after three turns, a busy one shares the price of a commit among
all who came meanwhile.

A `Save` carries the whole changeable part of its transaction, so a later one of the same
transaction replaces an earlier one that has not left yet. Branch results on the way
forward are `post`ed: nobody waits for them, and nothing is done because of them, so they
ride along with the transaction's next change, or go on their own after `lazy_write_s`.
For a short saga that makes two writes: its creation and its end.

Order: changes of one transaction take effect in the order in which they were handed in,
because there is one flusher, and a batch is repeated until its outcome is known.

A row may be locked: by another coordinator that hangs in the middle of a database transaction,
or by somebody at the database's prompt. Its change is set aside, and what else comes for that
transaction waits behind it; the others go on. It is tried again, without waiting for the lock,
until it is through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from time import perf_counter
from typing import Protocol

from txcoord import metrics
from txcoord.engine.clock import Clock, Timer
from txcoord.engine.settings import EngineSettings
from txcoord.errors import LeaseLostError, StoreUnavailableError, TransactionsLockedError
from txcoord.logs import get_logger
from txcoord.model import MICROSECONDS
from txcoord.store.base import Applied, Change, Save

log = get_logger()

# The bounds of `_gather`, in turns of the event loop. What they save over gRPC stands in docs/performance.md.

# However much each turn brings, the batch leaves after this many: the change that came first waits no longer.
_MOST_TURNS = 16
# A request takes a turn or two from its arrival to its change, so a single turn without one does not mean that no
# more is coming. Where nothing comes, three turns are next to nothing beside a commit.
_MOST_IDLE_TURNS = 3
# This many changes share the price of a commit well enough: they leave with the turn that brought them.
_FAIR_BATCH = 12
_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 1.0
# How often changes that were set aside are tried again. To find a row locked costs two short statements.
_LOCKED_RETRY_S = 0.25


class ChangeRefusedError(Exception):
    """The store can be reached, but refuses this one change. A bug, or a limit of the database."""


class _Entry:
    """A change on its way, and whoever waits for it."""

    __slots__ = ("change", "is_abandoned", "waiter", "was_locked")

    def __init__(self, change: Change, waiter: asyncio.Future[Applied] | None) -> None:
        self.change = change
        self.waiter = waiter
        self.is_abandoned = False
        self.was_locked = False

    @property
    def is_awaited(self) -> bool:
        return self.waiter is not None and not self.waiter.done()


class Apply(Protocol):
    """Writes one batch under the node's present lease; see `Store.apply`."""

    def __call__(self, batch: Sequence[Change], *, patiently: bool = True) -> Awaitable[Sequence[Applied]]: ...


class Journal:
    """Gathers changes and writes them in batches. One per process."""

    def __init__(
        self,
        apply: Apply,
        *,
        settings: EngineSettings,
        clock: Clock,
        on_lease_lost: Callable[[], None],
        on_superseded: Callable[[str, int], None],
    ) -> None:
        """
        Args:
            on_lease_lost: called when the node's lease has ended, after all that wait
                have been told.
            on_superseded: called with gid and epoch of a posted change that found a later
                epoch: nobody waits for its result, and somebody has to know.
        """
        self._on_superseded = on_superseded
        self._apply = apply
        self._settings = settings
        self._clock = clock
        self._on_lease_lost = on_lease_lost
        self._urgent: dict[str, _Entry] = {}
        self._lazy: dict[str, _Entry] = {}
        self._lazy_timer: Timer | None = None
        self._locked: dict[str, _Entry] = {}
        """Set aside: others hold their rows. What else is handed in for these waits among the urgent."""
        self._locked_timer: Timer | None = None
        self._flushing: Sequence[_Entry] = ()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.store_is_available = True
        """False from a failed batch until one succeeds."""

    def write(self, change: Change) -> asyncio.Future[Applied]:
        """Hand in a change; the future ends when it is durable.

        The future raises `LeaseLostError` if the node lost its lease, and
        `ChangeRefusedError` if the store refuses this change. While the store is away
        it waits.
        """
        waiter: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        gid = change.tx.gid
        self._lazy.pop(gid, None)
        earlier = self._urgent.get(gid)
        assert earlier is None or not earlier.is_awaited, f"two waiting changes of {gid} at once"
        self._urgent[gid] = _Entry(change, waiter)
        self._wake.set()
        self._idle.clear()
        return waiter

    def post(self, save: Save) -> None:
        """Hand in a change that nobody waits for; it is durable soon, unless the process dies before."""
        gid = save.tx.gid
        earlier = self._urgent.get(gid)
        if earlier is not None:
            assert not earlier.is_awaited, f"a result of {gid} posted behind a waiting change"
            earlier.change = save
            return
        self._lazy[gid] = _Entry(save, None)
        self._idle.clear()
        if self._lazy_timer is None:
            due_us = self._clock.now_us() + int(self._settings.lazy_write_s * MICROSECONDS)
            self._lazy_timer = self._clock.call_at(due_us, self._flush_lazy)

    def forget(self, gid: str) -> None:
        """Drop a posted change of a transaction that is no longer ours."""
        self._lazy.pop(gid, None)

    def abandon(self, error: LeaseLostError) -> None:
        """Drop all that was handed in, and tell those that wait: it was made under a lease that has ended.

        A batch under way may still take effect, under the node it was begun for; it is
        not repeated under another.
        """
        entries = [*self._flushing, *self._locked.values(), *self._urgent.values(), *self._lazy.values()]
        self._locked, self._urgent, self._lazy = {}, {}, {}
        for entry in entries:
            entry.is_abandoned = True
            if entry.waiter is not None and not entry.waiter.done():
                entry.waiter.set_exception(LeaseLostError(str(error)))

    async def drained(self) -> None:
        """Wait until all that was handed in is durable."""
        self._flush_lazy()
        await self._idle.wait()

    async def run(self) -> None:
        """Flush until cancelled."""
        while True:
            while not self._is_ready():
                if not (self._urgent or self._lazy or self._locked):
                    self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            await self._gather()
            if not self._is_ready():
                continue  # abandoned meanwhile
            patiently = not self._locked or self._locked_timer is not None
            self._flushing = self._take_batch() if patiently else self._take_locked()
            try:
                await self._flush(self._flushing, patiently=patiently)
            except Exception as error:
                for entry in self._flushing:
                    _refuse(entry, error)
                raise
            finally:
                self._flushing = ()

    def _is_ready(self) -> bool:
        """Whether there is something to write now."""
        if not self._locked:
            return bool(self._urgent)
        return self._locked_timer is None or not self._urgent.keys() <= self._locked.keys()

    async def _gather(self) -> None:
        """Let what is about to be written join the batch, while turns of the loop bring more.

        A batch costs more than its changes. Requests over gRPC come a few in each turn, and without this the
        batches would be as small. A batch of a fair size leaves at once: to gather half of all that is under way
        would have one half wait for the other.
        """
        idle_turns = 0
        for _ in range(_MOST_TURNS):
            before = len(self._urgent)
            await asyncio.sleep(0)
            idle_turns = idle_turns + 1 if len(self._urgent) == before else 0
            if len(self._urgent) >= _FAIR_BATCH or idle_turns == _MOST_IDLE_TURNS:
                return

    def _flush_lazy(self) -> None:
        self._lazy_timer = None
        # A transaction with an urgent change has no lazy one: `write` replaces it.
        self._urgent.update(self._lazy)
        self._lazy.clear()
        self._wake.set()

    def _take_batch(self) -> Sequence[_Entry]:
        limit = self._settings.max_batch
        if len(self._urgent) <= limit and not self._locked:
            batch = list(self._urgent.values())
            self._urgent = {}
            return batch
        taken = [gid for gid in self._urgent if gid not in self._locked][:limit]
        return [self._urgent.pop(gid) for gid in taken]

    def _take_locked(self) -> Sequence[_Entry]:
        taken = list(self._locked)[: self._settings.max_batch]
        return [self._locked.pop(gid) for gid in taken]

    def _set_aside(self, batch: Sequence[_Entry], locked: Collection[str]) -> Sequence[_Entry]:
        """Set aside those whose rows are locked; return the others."""
        for entry in batch:
            gid = entry.change.tx.gid
            if gid in locked:
                if not entry.was_locked:
                    log.warning("change waits for a row that somebody else has locked", gid=gid)
                entry.was_locked = True
                self._locked[gid] = entry
        if self._locked and self._locked_timer is None:
            due_us = self._clock.now_us() + int(_LOCKED_RETRY_S * MICROSECONDS)
            self._locked_timer = self._clock.call_at(due_us, self._try_locked)
        return [entry for entry in batch if entry.change.tx.gid not in locked]

    def _try_locked(self) -> None:
        self._locked_timer = None
        self._wake.set()

    async def _flush(self, batch: Sequence[_Entry], *, patiently: bool = True) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            started = perf_counter()
            try:
                applied = await self._apply([entry.change for entry in batch], patiently=patiently)
            except TransactionsLockedError as error:
                self._note_available()
                metrics.JOURNAL_RETRIES.inc()
                batch = self._set_aside(_still_wanted(batch), error.gids)
                if not batch:
                    return
            except StoreUnavailableError as error:
                # Whether the batch took effect is unknown; the same batch again is harmless.
                if self.store_is_available:
                    log.warning("store unavailable", error=str(error), waiting=len(batch) + len(self._urgent))
                self.store_is_available = False
                metrics.JOURNAL_RETRIES.inc()
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
                batch = _still_wanted(batch)
                if not batch:
                    return
            except LeaseLostError as error:
                if _still_wanted(batch):
                    self.abandon(error)
                    self._on_lease_lost()
                return
            except Exception as error:  # noqa: BLE001 - whatever the driver refuses a change with
                await self._isolate(batch, error, patiently=patiently)
                return
            else:
                break
        self._note_available()
        metrics.journal_flushed(changes=len(batch), seconds=perf_counter() - started)
        for entry, result in zip(batch, applied, strict=True):
            if entry.is_awaited:
                assert entry.waiter is not None
                entry.waiter.set_result(result)
            elif result is Applied.LEASE_LOST and isinstance(entry.change, Save):
                self._on_superseded(entry.change.tx.gid, entry.change.epoch)

    def _note_available(self) -> None:
        if not self.store_is_available:
            log.warning("store available again")
            self.store_is_available = True

    async def _isolate(self, batch: Sequence[_Entry], error: Exception, *, patiently: bool) -> None:
        """Find the change that the store refuses, by halves; the others must not fail with it."""
        if len(batch) > 1:
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                wanted = _still_wanted(half)
                if wanted:
                    await self._flush(wanted, patiently=patiently)
            return
        [entry] = batch
        log.error("change refused by the store", gid=entry.change.tx.gid, error=repr(error))
        _refuse(entry, error)


def _refuse(entry: _Entry, error: Exception) -> None:
    if entry.waiter is not None and not entry.waiter.done():
        refused = ChangeRefusedError(f"the store refuses a change of {entry.change.tx.gid}: {error}")
        refused.__cause__ = error
        entry.waiter.set_exception(refused)


def _still_wanted(batch: Sequence[_Entry]) -> Sequence[_Entry]:
    return [entry for entry in batch if not entry.is_abandoned]
