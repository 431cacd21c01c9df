"""The engine: owns the live transactions of one process, and the process's lease.

Three tasks run beside the drive tasks: the journal's flusher; the *keeper*, which renews
the node's lease and parks what dead nodes left; and *recovery*, which takes over parked
transactions when they are due. A crash is thus no special case: what a dead process owned
becomes parked and due, and is taken over like anything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random, SystemRandom
from typing import cast

from txcoord import metrics
from txcoord.dispatch.base import Dispatcher
from txcoord.engine.advance import Advancer, NotOursError, note_status
from txcoord.engine.clock import Clock, SystemClock, sleep_until
from txcoord.engine.journal import ChangeRefusedError, Journal
from txcoord.engine.live import ChangeRequest, LiveTransaction
from txcoord.engine.settings import EngineSettings
from txcoord.errors import LeaseLostError, OverloadedError, StoreUnavailableError, TransactionNotFoundError
from txcoord.logs import get_logger
from txcoord.model import AT_ONCE, MICROSECONDS, GlobalTransaction, Status
from txcoord.request import SubmitResult
from txcoord.store.base import Applied, Change, Create, Owned, Store

log = get_logger()

_RELEASE_BATCH = 1000
_RETRY_S = 0.5
_MOST_MOVES = 8
"""How often to run after a transaction that changes hands before giving up."""

_NO_ANSWER = "it did not answer in time"
_INTERRUPTED = "the coordinator was interrupted"


class Engine:
    """Drives transactions durably. One per process."""

    def __init__(
        self,
        *,
        store: Store,
        dispatcher: Dispatcher,
        settings: EngineSettings,
        node_name: str,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._settings = settings
        self._node_name = node_name
        self._clock = clock or SystemClock()
        # Seeded by the system once: tokens and jitter need to differ, not to be secret.
        self._random = random or Random(SystemRandom().getrandbits(256))
        self._journal = Journal(self._apply, settings=settings, clock=self._clock, on_lease_lost=self._lose_lease)
        self._advancer = Advancer(
            journal=self._journal,
            dispatcher=dispatcher,
            settings=settings,
            clock=self._clock,
            random=Random(self._random.getrandbits(64)),
        )
        self._live: dict[str, LiveTransaction] = {}
        self._recovering = 0
        self._node_id = 0
        self._background: list[asyncio.Task[None]] = []
        self._look_for_due = asyncio.Event()
        self._next_due_us: int | None = None
        # Not for one at a time: a take-over costs two statements, however many it takes.
        self._enough_room = max(1, min(settings.take_over_batch, settings.max_recovering // 2, settings.max_live // 2))
        self._waits_for_room = False
        """Recovery found no room for what is due, and is to be woken when there is."""
        self._parking: dict[str, asyncio.Future[Applied]] = {}
        """Creations beyond `max_live` that are on their way."""
        self._must_reconcile = False
        self._taking_over = asyncio.Lock()
        """Held from a take-over in the store until its transactions are live here."""
        self._lease_is_lost = False
        self._wake_keeper = asyncio.Event()
        self._none_live = asyncio.Event()
        self._none_live.set()

    # -- life ------------------------------------------------------------------------

    @property
    def node_id(self) -> int:
        """This process's id among the nodes; another one after a lost lease."""
        return self._node_id

    @property
    def is_draining(self) -> bool:
        return self._advancer.is_draining

    @property
    def store_is_available(self) -> bool:
        return self._journal.store_is_available

    async def start(self) -> None:
        """Join the nodes of the (open) store and begin to recover what is due.

        Raises:
            StoreUnavailableError: the store cannot be reached.
        """
        self._node_id = await self._store.join(name=self._node_name, lease_s=self._settings.lease_s)
        self._background = [
            asyncio.create_task(_for_ever(self._journal.run), name="journal"),
            asyncio.create_task(_for_ever(self._keep_lease), name="keeper"),
            asyncio.create_task(_for_ever(self._recover), name="recovery"),
        ]

    def begin_drain(self) -> None:
        """Take no more work; end the calls under way, begin no others."""
        if self._advancer.is_draining:
            return
        self._advancer.is_draining = True
        log.info("draining", node=self._node_id, live=len(self._live))
        for live in self._live.values():
            live.wake.set()

    async def stop(self) -> None:
        """Drain for `drain_s` at most, give up all ownership, leave the nodes."""
        self.begin_drain()
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await self._none_live.wait()
                await self._journal.drained()
        except TimeoutError:
            log.warning("drain ended early", node=self._node_id, live=len(self._live))
        await self._cancel_all_live(OverloadedError("the coordinator is stopping: query the gid elsewhere"))
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        try:
            await self._store.leave(self._node_id, now_us=self._clock.now_us())
        except StoreUnavailableError as error:
            log.warning("could not leave: the lease will run out", node=self._node_id, error=str(error))

    # -- what the service asks for ---------------------------------------------------

    def find_live(self, gid: str) -> LiveTransaction | None:
        """The transaction as it stands in memory, if this process drives it."""
        return self._live.get(gid)

    @property
    def live_count(self) -> int:
        return len(self._live)

    async def create(self, tx: GlobalTransaction, *, wait: bool) -> SubmitResult | None:
        """Make a transaction durable and drive it.

        Returns:
            Without `wait` as soon as it is durable; with it when one pass of processing
            has ended (or `max_wait_s` has passed). None: the gid exists already.

        Raises:
            OverloadedError: the process is draining.
            StoreUnavailableError: the store did not take it within `accept_wait_s`.
                Whether it was accepted is not known.
        """
        if self._advancer.is_draining:
            raise OverloadedError("this coordinator is stopping: submit again, to another one or a little later")
        if not self._journal.store_is_available and len(self._live) >= self._settings.max_live:
            raise StoreUnavailableError(f"the store is away and the queue is full: {tx.gid} was not accepted")
        if tx.gid in self._parking:
            await self._created(self._parking[tx.gid], tx.gid)
            return None
        create = Create(tx=tx, token=self._random.getrandbits(62) + 1)
        if len(self._live) >= self._settings.max_live:
            return await self._create_parked(create, wait=wait)
        live = LiveTransaction(tx, epoch=1)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[SubmitResult | None] = loop.create_future()
        live.timer = loop.call_later(self._settings.accept_wait_s, _give_up_accepting, answer, tx.gid)
        live.creation = self._journal.write(create)
        self._begin(live, self._create_and_drive(live, live.creation, answer, wait=wait))
        try:
            return await answer
        finally:
            live.timer.cancel()

    async def wait_until_created(self, live: LiveTransaction) -> bool:
        """Wait until a live transaction is durable. False: it never will be, its gid was taken.

        Raises:
            StoreUnavailableError: not within `accept_wait_s`.
        """
        if live.creation is None:
            return True
        return await self._created(live.creation, live.tx.gid) is Applied.DONE

    async def _created(self, creation: asyncio.Future[Applied], gid: str) -> Applied:
        # Whoever waits may go away; the creation stays on its way.
        await asyncio.wait([creation], timeout=self._settings.accept_wait_s)
        if not creation.done():
            raise _not_accepted(gid, _NO_ANSWER)
        if creation.cancelled():
            raise _not_accepted(gid, _INTERRUPTED)
        try:
            return creation.result()
        except (LeaseLostError, ChangeRefusedError) as error:
            raise _not_accepted(gid, str(error)) from error

    async def join_pass(self, live: LiveTransaction) -> SubmitResult:
        """Wait until the present pass of a live transaction ends, or `max_wait_s` has passed."""
        waiter: asyncio.Future[SubmitResult] = asyncio.get_running_loop().create_future()
        live.waiters.append(waiter)
        timer = asyncio.get_running_loop().call_later(self._settings.max_wait_s, _end_wait, waiter, live)
        try:
            return await waiter
        finally:
            timer.cancel()

    async def change(
        self, gid: str, change: Callable[[GlobalTransaction, int], GlobalTransaction], *, wait: bool = False
    ) -> SubmitResult:
        """Change a transaction that is prepared, wherever it is; durable when this returns.

        `change` is pure and may be called more than once: it gets the transaction as it
        stands, whatever its status, and returns it as it is to be, or raises what the
        caller is told.

        Args:
            wait: return only when the pass of processing that follows has ended, or
                `max_wait_s` has passed.

        Raises:
            TransactionNotFoundError: no such gid.
            StoreUnavailableError: whether it was changed is not known.
            OverloadedError: the process is draining.
        """
        for _ in range(_MOST_MOVES):
            live = self._live.get(gid) or await self._claim(gid)
            if live is None:
                stored = await self._store.find(gid)
                if stored is None:
                    raise TransactionNotFoundError(gid)
                if stored.tx.status is Status.PREPARED:
                    continue  # it has just been parked, or taken
                tx = change(stored.tx, self._clock.now_us())
                assert tx is stored.tx, f"a change of {gid}, which is {tx.status}, found nobody to write it"
                return SubmitResult(waited=wait, status=tx.status, reason=f"{gid} was {tx.status} before")
            if not await self.wait_until_created(live) or self._live.get(gid) is not live:
                continue
            try:
                return await self._change_live(live, change, wait=wait)
            except NotOursError:
                continue
        raise StoreUnavailableError(f"{gid} moves between coordinators: try the same again")

    async def _change_live(
        self, live: LiveTransaction, change: Callable[[GlobalTransaction, int], GlobalTransaction], *, wait: bool
    ) -> SubmitResult:
        if live.tx.status is not Status.PREPARED:
            # Nothing to write, so nothing to wait for: a call may be under way for long.
            tx = change(live.tx, self._clock.now_us())
            assert tx is live.tx, f"a change of {tx.gid} although it is {tx.status}"
            if wait and not tx.status.is_final:
                return await self.join_pass(live)
            return SubmitResult(waited=False, status=tx.status)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[GlobalTransaction] = loop.create_future()
        pass_ended: asyncio.Future[SubmitResult] = loop.create_future()
        if wait:
            # Before the change: the pass that follows it may be over when we hear of the change.
            live.waiters.append(pass_ended)
        live.requests.append(ChangeRequest(change, answer))
        live.wake.set()
        timer = loop.call_later(self._settings.accept_wait_s, _give_up_changing, answer, live.tx.gid)
        try:
            tx = await answer
            if not wait:
                return SubmitResult(waited=False, status=tx.status)
            timer.cancel()
            timer = loop.call_later(self._settings.max_wait_s, _end_wait, pass_ended, live)
            return await pass_ended
        finally:
            timer.cancel()
            if not pass_ended.cancel() and not pass_ended.cancelled():
                pass_ended.exception()  # told to nobody: the change itself has failed, or its caller has gone

    async def _claim(self, gid: str) -> LiveTransaction | None:
        """Make a prepared transaction live here; None if it is not prepared (or not there)."""
        if self._advancer.is_draining:
            raise OverloadedError("this coordinator is stopping: try the same again, at another one or a little later")
        async with self._taking_over:
            # Whoever waited for the lock may have claimed it.
            if gid not in self._live:
                owned = await self._claim_in_store(gid)
                if owned is None:
                    return None
                live = LiveTransaction(_resumed(owned.tx), epoch=owned.epoch)
                self._begin(live, self._drive(live))
            return self._live[gid]

    async def _claim_in_store(self, gid: str) -> Owned | None:
        try:
            return await self._store.claim_prepared(self._node_id, gid)
        except LeaseLostError as error:
            self._lose_lease()
            raise StoreUnavailableError("this coordinator lost its lease: try the same again") from error
        except StoreUnavailableError:
            self._must_reconcile = True  # the answer may be lost while the claim stands
            raise

    async def stop_live(self, gid: str, reason: str) -> None:
        """Drop a transaction that an operator has ended in the store; call nothing more for it."""
        live = self._live.get(gid)
        if live is None or live.task is None:
            return
        live.stopped_by_operator(reason)
        await self._cancel([live])

    def look_for_due(self) -> None:
        """Tell recovery that something may have become due."""
        self._look_for_due.set()

    # -- driving ---------------------------------------------------------------------

    def _begin(self, live: LiveTransaction, drive: Awaitable[None]) -> None:
        self._live[live.tx.gid] = live
        self._none_live.clear()
        metrics.LIVE.set(len(self._live))
        live.task = asyncio.ensure_future(drive)

    async def _create_and_drive(
        self,
        live: LiveTransaction,
        creation: asyncio.Future[Applied],
        answer: asyncio.Future[SubmitResult | None],
        *,
        wait: bool,
    ) -> None:
        try:
            applied = await creation
        except BaseException as error:
            self._end(live)
            _set_exception(answer, _not_accepted(live.tx.gid, str(error) or _INTERRUPTED))
            if isinstance(error, LeaseLostError | ChangeRefusedError):
                return
            raise
        assert live.timer is not None
        live.timer.cancel()
        if applied is Applied.EXISTS:
            self._end(live)
            if not answer.done():
                answer.set_result(None)
            return
        note_status(live.tx, live.epoch)
        if not answer.done():
            if wait:
                # `answer` doubles as the first waiter: one future for the common case.
                waiter = cast("asyncio.Future[SubmitResult]", answer)
                live.waiters.append(waiter)
                live.timer = asyncio.get_running_loop().call_later(self._settings.max_wait_s, _end_wait, waiter, live)
            else:
                answer.set_result(SubmitResult(waited=False, status=live.tx.status))
        await self._drive(live)

    async def _create_parked(self, create: Create, *, wait: bool) -> SubmitResult | None:
        """Accept a transaction beyond `max_live`: stored, due at once, driven when there is room."""
        now_us = self._clock.now_us()
        parked = Create(tx=create.tx.replace(due_us=now_us), token=create.token, parked=True)
        creation = self._parking[create.tx.gid] = self._journal.write(parked)
        creation.add_done_callback(lambda done: self._end_parking(create.tx.gid, done))
        applied = await self._created(creation, create.tx.gid)
        if applied is Applied.EXISTS:
            return None
        self._parked_until(now_us)
        return SubmitResult(waited=wait, status=create.tx.status, reason="accepted; the coordinator is busy")

    def _end_parking(self, gid: str, creation: asyncio.Future[Applied]) -> None:
        del self._parking[gid]
        if not creation.cancelled():
            creation.exception()  # those that waited may all have gone

    async def _drive(self, live: LiveTransaction) -> None:
        gid = live.tx.gid
        error: BaseException | None = None
        due_us: int | None = None
        try:
            due_us = await self._advancer.advance(live)
        except LeaseLostError as lost:
            log.warning("lease lost", gid=gid, epoch=live.epoch, error=str(lost))
            metrics.LEASE_LOST.inc()
            error = StoreUnavailableError(f"{gid} is driven by another coordinator now: query it")
        except ChangeRefusedError as refused:
            self._must_reconcile = True
            error = refused
        except asyncio.CancelledError as cancelled:
            error = cancelled
            raise
        except BaseException as broken:
            # A broken invariant: say so loudly, write nothing. It is released, and tried
            # again, with the next reconciliation.
            log.exception("driving failed", gid=gid, epoch=live.epoch, status=live.tx.status)
            self._must_reconcile = True
            error = broken
        finally:
            self._journal.forget(gid)
            for call in live.calls:
                call.cancel()
            self._end(live)
            if error is not None:
                live.fail_waiters(StoreUnavailableError(f"driving {gid} was interrupted ({error}): query it"))
            if due_us is not None:
                self._parked_until(due_us)

    def _end(self, live: LiveTransaction) -> None:
        if self._live.get(live.tx.gid) is live:
            del self._live[live.tx.gid]
        for request in live.requests:
            request.fail(NotOursError(f"{live.tx.gid} has just left this process's memory"))
        if live.is_recovered:
            live.is_recovered = False
            self._recovering -= 1
        if self._waits_for_room and self._room() >= self._enough_room:
            self._look_for_due.set()
        metrics.LIVE.set(len(self._live))
        if not self._live:
            self._none_live.set()

    async def _cancel_all_live(self, error: Exception) -> None:
        lives = list(self._live.values())
        for live in lives:
            live.fail_waiters(error)
        await self._cancel(lives)

    async def _cancel(self, lives: Sequence[LiveTransaction]) -> None:
        tasks = [live.task for live in lives if live.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for live in lives:
            self._end(live)  # a task that was cancelled before its first step has not done it itself

    # -- the lease -------------------------------------------------------------------

    async def _apply(self, batch: Sequence[Change]) -> Sequence[Applied]:
        return await self._store.apply(self._node_id, batch)

    def _lose_lease(self) -> None:
        """Drop everything: from here on somebody else may own it. Then join again."""
        if self._lease_is_lost:
            return
        log.error("node lease lost", node=self._node_id, live=len(self._live))
        metrics.LEASE_LOST.inc()
        self._lease_is_lost = True
        self._wake_keeper.set()

    async def _keep_lease(self) -> None:
        interval_s = self._settings.lease_s / 3
        pause_s = interval_s
        while True:
            await self._attempt(self._release_dead)
            self._wake_keeper.clear()
            if not self._lease_is_lost:
                until_us = self._clock.now_us() + int(pause_s * MICROSECONDS)
                await sleep_until(self._clock, until_us, wake=self._wake_keeper)
            pause_s = interval_s
            if not self._lease_is_lost:
                is_renewed = await self._renew()
                if is_renewed is None:
                    pause_s = min(_RETRY_S, interval_s)  # it may be back just before the lease ends
                elif not is_renewed:
                    self._lose_lease()
            if self._lease_is_lost:
                await self._join_again()
                self._lease_is_lost = False
            if self._must_reconcile:
                await self._attempt(self._reconcile)

    async def _renew(self) -> bool | None:
        """Prolong the lease. None: not known; the store itself refuses our writes if it has ended."""
        try:
            return await self._store.renew(self._node_id, lease_s=self._settings.lease_s)
        except StoreUnavailableError:
            return None

    async def _join_again(self) -> None:
        lost_error = StoreUnavailableError("this coordinator lost its lease: query the gid, or submit it again")
        await self._cancel_all_live(lost_error)
        # What is queued was made under the old lease: written under the new one, it would
        # be ours with nobody here to drive it.
        self._journal.abandon(LeaseLostError("this coordinator lost its lease"))
        while True:
            try:
                self._node_id = await self._store.join(name=self._node_name, lease_s=self._settings.lease_s)
            except StoreUnavailableError:
                await asyncio.sleep(_RETRY_S)
            else:
                log.warning("joined again", node=self._node_id)
                return

    async def _release_dead(self) -> None:
        while True:
            released = await self._store.release_dead(now_us=self._clock.now_us(), limit=_RELEASE_BATCH)
            if released:
                log.warning("released transactions of dead nodes", count=released)
                self._look_for_due.set()
            if released < _RELEASE_BATCH:
                return

    async def _reconcile(self) -> None:
        """Release what the store says is ours but nobody here drives.

        That happens when the answer to a take-over was lost, or when driving failed on
        a broken invariant.
        """
        async with self._taking_over:
            self._must_reconcile = False
            try:
                owned = await self._store.owned(self._node_id)
                stray = [gid for gid, _ in owned if gid not in self._live]
                if stray:
                    released = await self._store.release(self._node_id, stray, now_us=self._clock.now_us())
                    log.warning("released transactions that nobody drove", count=released)
                    self._look_for_due.set()
            except StoreUnavailableError:
                self._must_reconcile = True
                raise
            if any(gid in self._live and self._live[gid].epoch != epoch for gid, epoch in owned):
                self._must_reconcile = True  # once the one of the earlier epoch has ended

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except StoreUnavailableError as error:
            log.warning("store unavailable", error=str(error))
        except LeaseLostError:
            self._lose_lease()

    # -- recovery --------------------------------------------------------------------

    def _parked_until(self, due_us: int) -> None:
        if self._note_due(due_us):
            self._look_for_due.set()

    def _note_due(self, due_us: int) -> bool:
        is_earliest = self._next_due_us is None or due_us < self._next_due_us
        if is_earliest:
            self._next_due_us = due_us
        return is_earliest

    async def _recover(self) -> None:
        """Take over parked transactions as they fall due: exactly for our own, within `poll_s` for others'."""
        while True:
            self._look_for_due.clear()
            try:
                await self._take_over_due()
            except StoreUnavailableError:
                # The answer may be lost while the take-over stands.
                self._must_reconcile = True
            except LeaseLostError:
                self._lose_lease()
            poll_us = self._clock.now_us() + int(self._settings.poll_s * MICROSECONDS)
            until_us = poll_us if self._next_due_us is None else min(self._next_due_us, poll_us)
            if self._waits_for_room:
                until_us = poll_us
            await sleep_until(self._clock, until_us, wake=self._look_for_due)

    async def _take_over_due(self) -> None:
        while True:
            room = self._room()
            self._waits_for_room = room <= 0
            if self._waits_for_room:
                return
            self._next_due_us = None
            async with self._taking_over:
                taken = await self._store.take_over_due(self._node_id, now_us=self._clock.now_us(), limit=room)
                for owned in taken:
                    self._resume(owned)
            if len(taken) < room:
                next_due_us = await self._store.next_due_us()
                if next_due_us is not None:
                    self._note_due(next_due_us)
                return

    def _room(self) -> int:
        """How many more may be taken over now."""
        if self._advancer.is_draining:
            return 0
        settings = self._settings
        return min(
            settings.take_over_batch,
            settings.max_recovering - self._recovering,
            settings.max_live - len(self._live),
        )

    def _resume(self, owned: Owned) -> None:
        gid = owned.tx.gid
        if gid in self._live:
            # Ours of an earlier epoch: it has lost it, and finds out with its next write.
            self._must_reconcile = True
            return
        self._recovering += 1
        metrics.TAKEOVERS.inc()
        live = LiveTransaction(_resumed(owned.tx), epoch=owned.epoch, is_recovered=True)
        self._begin(live, self._drive(live))


def _resumed(tx: GlobalTransaction) -> GlobalTransaction:
    """Return a transaction as it is when its wait has ended: by its due time, or by an operator's wish."""
    if tx.due_us == AT_ONCE:
        tx = tx.replace(branches=tuple(branch.replace(due_us=0, refusals=0) for branch in tx.branches))
    return tx.replace(due_us=None)


def _give_up_accepting(answer: asyncio.Future[SubmitResult | None], gid: str) -> None:
    _set_exception(answer, _not_accepted(gid, _NO_ANSWER))


def _not_accepted(gid: str, reason: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"the store is not available ({reason}); whether {gid} was accepted is not known:"
        " submit it again with the same gid, or query it"
    )


def _give_up_changing(answer: asyncio.Future[GlobalTransaction], gid: str) -> None:
    if not answer.done():
        answer.set_exception(
            StoreUnavailableError(
                f"the store did not answer in time; whether {gid} was changed is not known: try the same again"
            )
        )


def _end_wait(waiter: asyncio.Future[SubmitResult], live: LiveTransaction) -> None:
    if not waiter.done():
        waiter.set_result(
            SubmitResult(waited=True, status=live.tx.status, reason=f"{live.tx.gid} is still {live.tx.status}")
        )


def _set_exception(answer: asyncio.Future[SubmitResult | None], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


async def _for_ever(work: Callable[[], Awaitable[None]]) -> None:
    """Run a background loop; a bug in it must not end it unseen and for good."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("background work failed", work=work.__name__)
            await asyncio.sleep(_RETRY_S)
