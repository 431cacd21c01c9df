"""The engine: the live transactions of one process, each with a task that drives it.

Beside these run the journal's flusher, the loops of `Ownership` (the process's lease, and
what dead nodes left) and those of `Recovery` (parked transactions that are due).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from random import Random, SystemRandom
from typing import cast

from txcoord import metrics
from txcoord.alert import Alerts, NoAlerts
from txcoord.dispatch.base import Dispatcher
from txcoord.engine.advance import Advancer, NotOursError, note_status
from txcoord.engine.clock import Clock, SystemClock
from txcoord.engine.journal import ChangeRefusedError, Journal
from txcoord.engine.live import ChangeRequest, LiveTransaction
from txcoord.engine.ownership import RETRY_S, Ownership
from txcoord.engine.recovery import Recovery
from txcoord.engine.settings import EngineSettings
from txcoord.errors import (
    LeaseLostError,
    OverloadedError,
    StoreUnavailableError,
    TransactionNotFoundError,
    TransactionsLockedError,
)
from txcoord.logs import get_logger
from txcoord.model import AT_ONCE, MICROSECONDS, GlobalTransaction, Status
from txcoord.patterns import claimed
from txcoord.request import SubmitResult
from txcoord.store.base import Applied, Create, Owned, Store

log = get_logger()

_MOVES_AT_ONCE = 2
"""How often to run after a transaction that changes hands, or is locked, before pausing."""
_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.5

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
        alerts: Alerts | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock or SystemClock()
        # Seeded by the system once: tokens and jitter need to differ, not to be secret.
        self._random = random or Random(SystemRandom().getrandbits(256))
        self._live: dict[str, LiveTransaction] = {}
        self._none_live = asyncio.Event()
        self._none_live.set()
        self._parking: dict[str, asyncio.Future[Applied]] = {}
        """Creations beyond `max_live` that are on their way."""
        self._claims: dict[str, asyncio.Task[LiveTransaction | None]] = {}
        """Prepared transactions that are being claimed."""
        self._background: list[asyncio.Task[None]] = []
        self._ownership = Ownership(
            store,
            name=node_name,
            settings=settings,
            clock=self._clock,
            drop_everything=self._drop_everything,
            on_released=lambda: self._recovery.look(),
        )
        self._recovery = Recovery(
            store,
            self._ownership,
            settings=settings,
            clock=self._clock,
            live=self._live,
            resume=self._resume,
        )
        self._journal = Journal(
            self._ownership.apply,
            settings=settings,
            clock=self._clock,
            on_lease_lost=self._ownership.lose,
            on_superseded=self._note_superseded,
        )
        self._advancer = Advancer(
            journal=self._journal,
            dispatcher=dispatcher,
            alerts=alerts or NoAlerts(),
            settings=settings,
            clock=self._clock,
            random=Random(self._random.getrandbits(64)),
        )

    # -- life ------------------------------------------------------------------------

    @property
    def node_id(self) -> int:
        """This process's id among the nodes; another one after a lost lease."""
        return self._ownership.node_id

    @property
    def has_lease(self) -> bool:
        """False from a lost lease until the process has joined again: it can take no work then."""
        return not self._ownership.is_lost

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
        await self._ownership.join()
        loops = {
            "journal": self._journal.run,
            "lease": self._ownership.keep_lease,
            "release of the dead": self._ownership.release_dead,
            "recovery": self._recovery.run,
            "reconciliation": self._recovery.reconcile,
        }
        self._background = [asyncio.create_task(_for_ever(loop), name=name) for name, loop in loops.items()]

    def begin_drain(self) -> None:
        """Take no more work; end the calls under way, begin no others."""
        if self._advancer.is_draining:
            return
        self._advancer.is_draining = self._recovery.is_draining = True
        log.info("draining", node=self.node_id, live=len(self._live))
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
            log.warning("drain ended early", node=self.node_id, live=len(self._live))
        claims = list(self._claims.values())
        for claim in claims:
            claim.cancel()  # whatever it took, leaving gives up
        await asyncio.gather(*claims, return_exceptions=True)
        await self._cancel_all_live(OverloadedError("the coordinator is stopping: query the gid elsewhere"))
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._ownership.leave()

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
        is_full = len(self._live) >= self._settings.max_live
        if is_full and not self._journal.store_is_available:
            raise StoreUnavailableError(f"the store is away and the queue is full: {tx.gid} was not accepted")
        if tx.gid in self._parking:
            await self._created(self._parking[tx.gid], tx.gid)
            return None
        if other := self._live.get(tx.gid):
            # Created here while the caller found that there was none.
            await self.wait_until_created(other)
            return None
        create = Create(tx=tx, token=self._random.getrandbits(62) + 1)
        # What waits in the store for room comes first: new ones queue behind it.
        if is_full or self._recovery.is_owed_room:
            return await self._create_parked(create, wait=wait)
        live = LiveTransaction(tx, epoch=1)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[SubmitResult | None] = loop.create_future()
        live.timer = loop.call_later(self._settings.accept_wait_s, _give_up_accepting, answer, tx.gid)
        live.creation = self._journal.write(create)
        live.creation.add_done_callback(_heard)
        self._begin(live, self._create_and_drive(live, live.creation, answer, wait=wait), answer=answer)
        try:
            return await answer
        finally:
            live.timer.cancel()

    async def wait_until_created(self, live: LiveTransaction) -> bool:
        """Wait until a live transaction is durable. False: it never will be, its gid was taken.

        Raises:
            StoreUnavailableError: not within `accept_wait_s`.
        """
        if live.creation is None or live.is_durable:
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
        if self._live.get(live.tx.gid) is not live:
            # It has just ended, or been parked: nobody is left to tell us.
            return SubmitResult(waited=True, status=live.tx.status, reason=f"{live.tx.gid} is {live.tx.status}")
        waiter: asyncio.Future[SubmitResult] = asyncio.get_running_loop().create_future()
        live.waiters[waiter] = None
        timer = asyncio.get_running_loop().call_later(self._settings.max_wait_s, _end_wait, waiter, live)
        try:
            return await waiter
        finally:
            timer.cancel()
            live.waiters.pop(waiter, None)

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
        give_up_us = self._clock.now_us() + int(self._settings.accept_wait_s * MICROSECONDS)
        in_the_way = StoreUnavailableError(f"{gid} moves between coordinators: try the same again")
        for move in count():
            if move and self._clock.now_us() > give_up_us:
                break
            if move > _MOVES_AT_ONCE:
                # It goes from one to the other. Without a pause none would hold it long enough to write.
                await asyncio.sleep(self._random.uniform(0, min(_FIRST_PAUSE_S * 2**move, _LONGEST_PAUSE_S)))
            try:
                live = self._live.get(gid) or await self._claim(gid)
            except TransactionsLockedError as locked:
                in_the_way = locked
                continue
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
        raise in_the_way

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
            live.waiters[pass_ended] = None
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
            live.waiters.pop(pass_ended, None)
            if not pass_ended.cancel() and not pass_ended.cancelled():
                pass_ended.exception()  # told to nobody: the change itself has failed, or its caller has gone

    async def _claim(self, gid: str) -> LiveTransaction | None:
        """Make a prepared transaction live here; None if it is not prepared (or not there)."""
        if self._advancer.is_draining:
            raise OverloadedError(f"this coordinator is stopping: try {gid} again, at another one or a little later")
        # All that ask for one gid at once share a claim, which goes on if they go away: taken, it has to be driven.
        claim = self._claims.get(gid)
        if claim is None:
            # Beyond `max_live` new ones are refused first: what was prepared may hold something that others wait for.
            if len(self._live) + len(self._claims) >= 2 * max(self._settings.max_live, 1):
                raise OverloadedError(f"this coordinator drives all it may: try {gid} again a little later")
            claim = self._claims[gid] = asyncio.create_task(self._take_claimed(gid))
            claim.add_done_callback(lambda done: self._end_claim(gid, done))
        await asyncio.wait([claim], timeout=self._settings.accept_wait_s)
        if not claim.done() or claim.cancelled():
            raise StoreUnavailableError(f"the store did not answer in time: try the same for {gid} again")
        return claim.result()

    async def _take_claimed(self, gid: str) -> LiveTransaction | None:
        async with self._recovery.gate.together():
            # While it waited its turn, it may have been taken over as due.
            if gid not in self._live:
                owned = await self._claim_in_store(gid)
                if owned is None:
                    return None
                while other := self._live.get(gid):
                    # A prepare of the same gid came meanwhile. It is about to hear that there is one.
                    assert other.creation is not None, f"{gid} was claimed while it was driven here"
                    await asyncio.wait([other.creation])
                    await asyncio.sleep(0)
                tx = claimed(
                    _resumed(owned.tx), now_us=self._clock.now_us(), interval_s=self._settings.retry_interval_s
                )
                live = LiveTransaction(tx, epoch=owned.epoch)
                self._begin(live, self._drive(live))
            return self._live[gid]

    def _end_claim(self, gid: str, claim: asyncio.Task[LiveTransaction | None]) -> None:
        del self._claims[gid]
        if not claim.cancelled():
            claim.exception()  # those that waited for it may all have gone

    async def _claim_in_store(self, gid: str) -> Owned | None:
        try:
            return await self._ownership.claim_prepared(gid)
        except LeaseLostError as error:
            raise StoreUnavailableError(f"this coordinator lost its lease: try {gid} again") from error
        except TransactionsLockedError:
            raise  # nothing was taken
        except StoreUnavailableError:
            self._recovery.must_reconcile()  # the answer may be lost while the claim stands
            raise

    async def stop_live(self, gid: str, reason: str, *, below_epoch: int) -> None:
        """Drop a transaction that an operator has ended in the store, unless it is held under a later epoch.

        Nothing more is called for it here.
        """
        live = self._live.get(gid)
        if live is not None and live.epoch < below_epoch:
            live.stopped_by_operator(reason)
            await self._cancel([live])

    def look_for_due(self) -> None:
        """Tell recovery that something may have become due."""
        self._recovery.look()

    # -- driving ---------------------------------------------------------------------

    def _begin(
        self,
        live: LiveTransaction,
        drive: Awaitable[None],
        *,
        answer: asyncio.Future[SubmitResult | None] | None = None,
    ) -> None:
        self._live[live.tx.gid] = live
        self._none_live.clear()
        metrics.LIVE.set(len(self._live))
        live.task = asyncio.ensure_future(drive)
        live.answer_of_creator = answer

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
            if live.successor is not None:
                self._recovery.must_reconcile()
            _set_exception(answer, _not_accepted(live.tx.gid, str(error) or _INTERRUPTED))
            if isinstance(error, LeaseLostError | ChangeRefusedError):
                return
            raise
        assert live.timer is not None
        live.timer.cancel()
        if applied is Applied.EXISTS:
            self._end(live)
            if live.successor is not None:
                self._resume(live.successor)
            if not answer.done():
                answer.set_result(None)
            return
        note_status(live.tx, live.epoch)
        if not answer.done():
            if wait:
                # `answer` doubles as the first waiter: one future for the common case.
                waiter = cast("asyncio.Future[SubmitResult]", answer)
                live.waiters[waiter] = None
                live.timer = asyncio.get_running_loop().call_later(self._settings.max_wait_s, _end_wait, waiter, live)
            else:
                answer.set_result(SubmitResult(waited=False, status=live.tx.status))
        await self._drive(live)

    async def _create_parked(self, create: Create, *, wait: bool) -> SubmitResult | None:
        """Accept a transaction beyond `max_live`: stored, due at once, driven when there is room."""
        now_us = self._clock.now_us()
        if len(self._parking) >= max(self._settings.max_live, 1):
            raise OverloadedError(f"more is being accepted than the store takes: {create.tx.gid} was not accepted")
        parked = Create(tx=create.tx.replace(due_us=now_us), token=create.token, parked=True)
        creation = self._parking[create.tx.gid] = self._journal.write(parked)
        creation.add_done_callback(lambda done: self._end_parking(create.tx.gid, done))
        applied = await self._created(creation, create.tx.gid)
        if applied is Applied.EXISTS:
            return None
        self._recovery.parked_until(now_us)
        return SubmitResult(waited=wait, status=create.tx.status, reason="accepted; the coordinator is busy")

    def _end_parking(self, gid: str, creation: asyncio.Future[Applied]) -> None:
        del self._parking[gid]
        _heard(creation)

    async def _drive(self, live: LiveTransaction) -> None:
        gid = live.tx.gid
        error: BaseException | None = None
        due_us: int | None = None
        try:
            due_us = await self._advancer.advance(live)
        except LeaseLostError as lost:
            if live.tx.status is Status.PREPARED:
                # Its initiator's next request went to another coordinator, as balanced requests do.
                log.info("claimed by another", gid=gid, epoch=live.epoch)
                metrics.CLAIMED_BY_OTHERS.inc()
            else:
                log.warning("lease lost", gid=gid, epoch=live.epoch, error=str(lost))
                metrics.LEASE_LOST.inc()
            error = StoreUnavailableError(f"{gid} is driven by another coordinator now: query it")
        except ChangeRefusedError as refused:
            self._recovery.must_reconcile()
            error = refused
        except asyncio.CancelledError as cancelled:
            error = cancelled
            raise
        except BaseException as broken:
            # A broken invariant: say so loudly, write nothing. It is released, and tried
            # again, with the next reconciliation.
            log.exception("driving failed", gid=gid, epoch=live.epoch, status=live.tx.status)
            self._recovery.must_reconcile()
            error = broken
        finally:
            self._journal.forget(gid)
            for call in live.calls:
                call.cancel()
            self._end(live)
            if error is not None:
                live.fail_waiters(StoreUnavailableError(f"driving {gid} was interrupted ({error}): query it"))
            if due_us is not None:
                self._recovery.parked_until(due_us)

    def _end(self, live: LiveTransaction) -> None:
        if self._live.get(live.tx.gid) is live:
            del self._live[live.tx.gid]
        for request in live.requests:
            request.fail(NotOursError(f"{live.tx.gid} has just left this process's memory"))
        if live.is_recovered:
            live.is_recovered = False
            self._recovery.recovering -= 1
        self._recovery.room_was_made()
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
            # A task that was cancelled before its first step has not done this itself.
            self._end(live)
            if live.answer_of_creator is not None:
                _set_exception(live.answer_of_creator, _not_accepted(live.tx.gid, _INTERRUPTED))
            if live.creation is not None:
                live.creation.cancel()

    async def _drop_everything(self) -> None:
        """End all that is driven under a lost lease: from here on somebody else may own it."""
        await self._cancel_all_live(
            StoreUnavailableError("this coordinator lost its lease: query the gid, or submit it again")
        )
        # What is queued was made under the old lease: written under the new one, it would
        # be ours with nobody here to drive it.
        self._journal.abandon(LeaseLostError("this coordinator lost its lease"))

    def _note_superseded(self, gid: str, epoch: int) -> None:
        """A posted result was refused: somebody else has the transaction. Call nothing more for it."""
        live = self._live.get(gid)
        if live is not None and live.epoch == epoch:
            live.call_error = LeaseLostError(f"{gid} was taken over: epoch {epoch} has passed")
            live.wake.set()

    def _resume(self, owned: Owned) -> None:
        gid = owned.tx.gid
        other = self._live.get(gid)
        if other is not None:
            if other.creation is not None and not other.creation.done():
                # A prepare of the same gid came meanwhile. It is about to hear that there is one.
                other.successor = owned
            else:
                # Ours of an earlier epoch: it has lost it, and finds out with its next write.
                self._recovery.must_reconcile()
            return
        self._recovery.recovering += 1
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


def _heard(creation: asyncio.Future[Applied]) -> None:
    # Those that waited for it may all have gone; asyncio would report an exception nobody saw.
    if not creation.cancelled():
        creation.exception()


async def _for_ever(work: Callable[[], Awaitable[None]]) -> None:
    """Run a background loop; a bug in it must not end it unseen and for good."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("background work failed", work=work.__name__)
            await asyncio.sleep(RETRY_S)
