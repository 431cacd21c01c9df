"""The use cases: what every adapter (HTTP, JSON-RPC, gRPC) calls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from random import Random, SystemRandom
from types import MappingProxyType

import msgspec

from txcoord.engine.clock import Clock, SystemClock
from txcoord.engine.engine import Engine
from txcoord.errors import (
    InvalidRequestError,
    OverloadedError,
    SchemaError,
    StatusConflictError,
    StoreUnavailableError,
    TransactionNotFoundError,
)
from txcoord.gid import make_gid
from txcoord.logs import get_logger
from txcoord.model import MICROSECONDS, GlobalTransaction, Pattern, Status
from txcoord.msg.request import Topics, build_msg
from txcoord.msg.request import submitted as submitted_msg
from txcoord.msg.topics import topics_of
from txcoord.patterns import aborted, registered
from txcoord.request import REASON_LENGTH, BranchRegistration, Limits, SubmitResult, TransRequest, check_gid
from txcoord.saga.request import build_saga
from txcoord.store.base import ListQuery, Page, Store, Stored
from txcoord.topic_service import TopicService
from txcoord.two_phase.request import build_two_phase, submitted
from txcoord.unfinished import UnfinishedCount
from txcoord.workflow.request import build_workflow, ended

log = get_logger()

_NO_TOPICS: Topics = MappingProxyType({})

FORCE_STOPPED = "stopped by an operator (forceStop); nothing was compensated"


class Service:
    """Checks a request against the rules, makes it durable, hands it to the engine."""

    def __init__(
        self,
        *,
        engine: Engine,
        store: Store,
        limits: Limits,
        far_due_s: float = 105.0,
        default_timeout_s: float = 35.0,
        retry_interval_s: float = 10.0,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        """
        Args:
            far_due_s: from how far ahead `reset_cron_time` takes transactions, unless it
                is told (DTM: three times its default timeout of 35 s).
            default_timeout_s: how long a transaction may stay prepared, unless it says so.
            retry_interval_s: how long to wait for a sign of life of a workflow, unless it says so.
        """
        self._engine = engine
        self._store = store
        self._limits = limits
        self._far_due_s = far_due_s
        self._default_timeout_s = default_timeout_s
        self._retry_interval_s = retry_interval_s
        self._clock = clock or SystemClock()
        self._random = random or SystemRandom()
        self.unfinished = UnfinishedCount(store)
        self.topics = TopicService(store=store, limits=limits, clock=self._clock, random=self._random)

    def new_gid(self) -> str:
        """Make a gid: 22 characters, unique, ordered by time (which keeps indexes compact)."""
        return make_gid(self._clock.now_us(), self._random)

    async def submit(self, request: TransRequest) -> SubmitResult:
        """Accept a transaction and start driving it.

        Submitting again what is submitted already changes nothing: no second pass, no
        other steps.

        Raises:
            InvalidRequestError, RequestTooLargeError: nothing was stored.
            StatusConflictError: it turned round or ended before (`wanted="submit"`).
            StoreUnavailableError: whether it was accepted is not known; the same submit
                again is safe.
            OverloadedError: not accepted; submit again later.
        """
        match _pattern(request.trans_type):
            case Pattern.SAGA:
                return await self._submit_saga(request)
            case Pattern.TCC | Pattern.XA:
                return await self._submit_two_phase(request)
            case Pattern.MSG:
                return await self._submit_msg(request)
            case Pattern.WORKFLOW:
                return await self._end_workflow(request)

    async def _submit_saga(self, request: TransRequest) -> SubmitResult:
        saga = build_saga(request, self._limits, now_us=self._clock.now_us())
        live = self._engine.find_live(saga.gid)
        if live is None:
            result = await self._engine.create(saga, wait=request.wait_result)
            if result is not None:
                return result
        elif await self._engine.wait_until_created(live):
            _check_resubmitted(live.tx, request)
            if request.wait_result:
                return await self._engine.join_pass(live)
            return SubmitResult(waited=False, status=live.tx.status)
        return await self._submit_stored(request)

    async def _submit_two_phase(self, request: TransRequest) -> SubmitResult:
        gid = check_gid(request.gid)

        def forward(tx: GlobalTransaction, now_us: int) -> GlobalTransaction:
            _check_pattern(tx, request.trans_type)
            return submitted(tx, now_us=now_us)

        try:
            return await self._engine.change(gid, forward, wait=request.wait_result)
        except TransactionNotFoundError:
            # DTM's clients may submit what they never prepared: a transaction without branches.
            unprepared = self._build(request, Status.SUBMITTED)
            result = await self._engine.create(unprepared, wait=request.wait_result)
            return result or await self._engine.change(gid, forward, wait=request.wait_result)

    async def _submit_msg(self, request: TransRequest) -> SubmitResult:
        try:
            unprepared = self._build(request, Status.SUBMITTED, await self.topics.resolve(_topics_named(request)))
        except (InvalidRequestError, SchemaError):
            # A message that was prepared has its receivers, whatever has become of the topics since, and whatever
            # the submit says of them or leaves out.
            with suppress(TransactionNotFoundError):
                wish = self._build(msgspec.structs.replace(request, steps=(), payloads=()), Status.SUBMITTED)
                return await self._forward_msg(wish)
            raise
        # Creating costs less than looking whether it was prepared, and says so.
        if self._engine.find_live(unprepared.gid) is None:
            result = await self._engine.create(unprepared, wait=request.wait_result)
            if result is not None:
                return result
        return await self._forward_msg(unprepared)

    async def _forward_msg(self, wish: GlobalTransaction) -> SubmitResult:
        def forward(tx: GlobalTransaction, now_us: int) -> GlobalTransaction:
            _check_pattern(tx, Pattern.MSG)
            return submitted_msg(tx, wish, now_us=now_us)

        return await self._engine.change(wish.gid, forward, wait=wish.options.wait_result)

    async def _end_workflow(self, request: TransRequest) -> SubmitResult:
        def end(tx: GlobalTransaction, now_us: int) -> GlobalTransaction:
            _check_pattern(tx, request.trans_type)
            return ended(tx, request, self._limits, now_us=now_us)

        return await self._engine.change(check_gid(request.gid), end)

    def _build(self, request: TransRequest, status: Status, topics: Topics = _NO_TOPICS) -> GlobalTransaction:
        now_us = self._clock.now_us()
        match _pattern(request.trans_type):
            case Pattern.MSG:
                return build_msg(
                    request,
                    self._limits,
                    now_us=now_us,
                    status=status,
                    default_timeout_s=self._default_timeout_s,
                    topics=topics,
                )
            case (Pattern.TCC | Pattern.XA) as pattern:
                return build_two_phase(
                    request,
                    self._limits,
                    pattern=pattern,
                    now_us=now_us,
                    status=status,
                    default_timeout_s=self._default_timeout_s,
                )
            case Pattern.WORKFLOW:
                return build_workflow(request, self._limits, now_us=now_us, interval_s=self._retry_interval_s)
            case Pattern.SAGA:
                check_gid(request.gid)
                raise InvalidRequestError("a saga is not prepared: send it whole to submit")

    async def _submit_stored(self, request: TransRequest) -> SubmitResult:
        stored = await self._store.find(request.gid)
        if stored is None:
            raise StoreUnavailableError(f"{request.gid} was taken and is gone: submit it again")
        _check_resubmitted(stored.tx, request)
        return SubmitResult(
            waited=request.wait_result,
            status=stored.tx.status,
            reason=f"{request.gid} was submitted before and is still {stored.tx.status}: query it",
        )

    async def prepare(self, request: TransRequest) -> None:
        """Create a transaction to be submitted later. Prepared again it is the same.

        Raises:
            InvalidRequestError: a saga is not prepared: it is submitted whole.
            StatusConflictError: it is not prepared any more (`wanted="prepare"`).
            StoreUnavailableError: whether it was accepted is not known; the same again is
                safe.
        """
        tx = await self._open(request)
        if tx.status is not Status.PREPARED:
            raise StatusConflictError(tx.gid, status=tx.status, wanted="prepare", pattern=tx.pattern)

    async def prepare_workflow(self, request: TransRequest) -> GlobalTransaction:
        """Open a workflow, or look how far it got: return it with the steps that are stored.

        Raises:
            InvalidRequestError, RequestTooLargeError: nothing was stored.
            StoreUnavailableError: whether it was accepted is not known; the same again is
                safe.
        """
        if _pattern(request.trans_type) is not Pattern.WORKFLOW:
            raise InvalidRequestError(f"trans_type {request.trans_type!r} is not a workflow: use prepare")
        return await self._open(request)

    async def _open(self, request: TransRequest) -> GlobalTransaction:
        """Create a transaction to be submitted later, or return the one that has its gid already."""
        try:
            tx = self._build(request, Status.PREPARED, await self.topics.resolve(_topics_named(request)))
        except (InvalidRequestError, SchemaError):
            # Prepared before, it is the same, whatever has become of its topics since.
            before = await self.query(check_gid(request.gid)) if request.trans_type == Pattern.MSG else None
            if before is None:
                raise
            _check_pattern(before.tx, request.trans_type)
            return before.tx
        live = self._engine.find_live(tx.gid)
        if live is not None:
            await self._engine.wait_until_created(live)
        elif await self._engine.create(tx, wait=False) is not None:
            return tx
        stored = await self.query(tx.gid)
        if stored is None:
            raise StoreUnavailableError(f"{tx.gid} was taken and is gone: prepare it again")
        _check_pattern(stored.tx, request.trans_type)
        return stored.tx

    async def register_branch(self, branch: BranchRegistration) -> None:
        """Add a branch to a prepared transaction. The same registration again changes nothing.

        Raises:
            InvalidRequestError, RequestTooLargeError: nothing was stored.
            StatusConflictError: it is not prepared any more (`wanted="register"`).
            TransactionNotFoundError: no such gid.
            StoreUnavailableError: whether it was registered is not known; the same again is
                safe.
        """
        pattern = _pattern(branch.trans_type)

        def join(tx: GlobalTransaction, now_us: int) -> GlobalTransaction:
            _check_pattern(tx, pattern)
            return registered(tx, branch, self._limits, now_us=now_us, interval_s=self._retry_interval_s)

        await self._engine.change(check_gid(branch.gid), join)

    async def abort(self, request: TransRequest) -> SubmitResult:
        """Cancel a prepared transaction; the pattern is the stored one, whatever the request says.

        Raises:
            TransactionNotFoundError: no such gid.
            StatusConflictError: it cannot be aborted (`wanted="abort"`); a saga never can:
                it turns round by itself, or is stopped by force.
        """
        reason = request.rollback_reason[:REASON_LENGTH]

        return await self._engine.change(
            check_gid(request.gid), lambda tx, now_us: aborted(tx, reason, now_us=now_us), wait=request.wait_result
        )

    async def force_stop(self, gid: str) -> None:
        """End an unfinished transaction as failed, now, with nothing compensated.

        No further call is begun for it here; another coordinator that drives it loses it
        with its next write.

        Raises:
            TransactionNotFoundError: no such gid.
            StatusConflictError: it has ended already (`wanted="force stop"`).
        """
        now_us = self._clock.now_us()
        before = await self._store.force_stop(check_gid(gid), now_us=now_us, reason=FORCE_STOPPED)
        if before is None:
            raise TransactionNotFoundError(gid)
        # A forced stop raises the epoch: what is live here under a lower one has been stopped,
        # be it by this call or by an earlier one whose answer was lost.
        await self._engine.stop_live(
            gid, FORCE_STOPPED, below_epoch=before.epoch if before.tx.status.is_final else before.epoch + 1
        )
        if before.tx.status.is_final:
            raise StatusConflictError(gid, status=before.tx.status, wanted="force stop", pattern=before.tx.pattern)
        log.warning("force stop", gid=gid, was=before.tx.status, epoch=before.epoch)

    async def reset_next_cron_time(self, gid: str) -> None:
        """Make one transaction due now, whatever delay it was in.

        Raises:
            TransactionNotFoundError: no such gid.
        """
        if await self._store.make_due(check_gid(gid), now_us=self._clock.now_us()) is None:
            raise TransactionNotFoundError(gid)
        self._engine.look_for_due()

    async def reset_cron_time(self, *, timeout_s: int | None, limit: int) -> int:
        """Make transactions due now that would be due later than `timeout_s` from now.

        Returns:
            How many; there may be more if it is `limit`.
        """
        now_us = self._clock.now_us()
        ahead_s = self._far_due_s if timeout_s is None else timeout_s
        count = await self._store.make_far_due(
            after_us=now_us + int(ahead_s * MICROSECONDS), now_us=now_us, limit=limit
        )
        self._engine.look_for_due()
        return count

    async def query(self, gid: str) -> Stored | None:
        """One transaction with its branches; a live one as it stands in memory, attempts included."""
        stored = await self._store.find(gid)
        live = self._engine.find_live(gid)
        if stored is None or live is None or live.epoch != stored.epoch or not live.is_durable:
            return stored
        return Stored(id=stored.id, tx=live.tx, owner=stored.owner, epoch=stored.epoch)

    async def list_transactions(self, query: ListQuery) -> Page[Stored]:
        """Transactions that match, newest first, without payloads; see the store."""
        return await self._store.list_transactions(query)

    async def check_ready(self) -> None:
        """Return if new work is welcome.

        Raises:
            OverloadedError: the coordinator is draining.
            StoreUnavailableError: the store does not answer.
        """
        if self._engine.is_draining:
            raise OverloadedError("draining: this coordinator is stopping")
        if not self._engine.has_lease:
            raise StoreUnavailableError("this coordinator lost its lease and is joining again")
        await self._store.ping()


def _pattern(trans_type: str) -> Pattern:
    try:
        return Pattern(trans_type)
    except ValueError:
        raise InvalidRequestError(
            f"trans_type {trans_type[:40]!r} is not known: use one of {', '.join(Pattern)}"
        ) from None


def _topics_named(request: TransRequest) -> Sequence[str]:
    return topics_of(request.steps) if request.trans_type == Pattern.MSG else ()


def _check_pattern(tx: GlobalTransaction, trans_type: str) -> None:
    if tx.pattern != trans_type:
        raise InvalidRequestError(f"{tx.gid} is a {tx.pattern}, not a {trans_type}")


def _check_resubmitted(tx: GlobalTransaction, request: TransRequest) -> None:
    _check_pattern(tx, request.trans_type)
    if tx.status is not Status.SUBMITTED:
        raise StatusConflictError(tx.gid, status=tx.status, wanted="submit", pattern=tx.pattern)
