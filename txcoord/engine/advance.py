"""Decide, act, record: the one loop that drives a transaction, first run and recovery alike."""

from __future__ import annotations

import asyncio
from random import Random
from typing import assert_never

from txcoord import metrics
from txcoord.alert import Alert, Alerts, alert_of_call, alert_of_wait, what_needs_an_operator
from txcoord.decision import Call, Done, GiveUp, MoveTo, Wait
from txcoord.dispatch.base import BranchRequest, CallResult, Dispatcher
from txcoord.engine.clock import Clock, sleep_until
from txcoord.engine.journal import ChangeRefusedError, Journal
from txcoord.engine.live import LiveTransaction
from txcoord.engine.settings import EngineSettings
from txcoord.errors import LeaseLostError, StoreUnavailableError, TxcoordError
from txcoord.logs import get_logger
from txcoord.model import MICROSECONDS, Attempt, BranchOp, GlobalTransaction, Op, OpStatus, Outcome, Pattern, Status
from txcoord.patterns import DECIDE, moved
from txcoord.record import (
    may_fail_in,
    record_call,
    record_given_up,
    record_held_off,
    record_resume,
    record_success_without_call,
)
from txcoord.retry import RetryDefaults, jittered_us
from txcoord.store.base import Applied, Save
from txcoord.workflow.request import name_of

log = get_logger()

_SHORTEST_HOLD_S = 0.1


class NotOursError(TxcoordError):
    """A change did not take effect because the transaction is elsewhere now; try there."""


class Advancer:
    """Drives transactions that this process owns. Holds no state of theirs."""

    def __init__(
        self,
        *,
        journal: Journal,
        dispatcher: Dispatcher,
        alerts: Alerts,
        settings: EngineSettings,
        clock: Clock,
        random: Random,
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._alerts = alerts
        self._settings = settings
        self._clock = clock
        self._random = random
        self._retry = RetryDefaults(
            retry_interval_s=settings.retry_interval_s,
            error_backoff_s=settings.error_backoff_s,
            backoff_cap_s=settings.backoff_cap_s,
        )
        self.is_draining = False
        """Set: begin no more calls; park what is left, due at once."""

    async def advance(self, live: LiveTransaction) -> int | None:
        """Drive a transaction until it is final or parked.

        Returns:
            When it is due, if it was parked; None if it is final.

        Raises:
            LeaseLostError: it belongs to somebody else now; nothing more was written.
        """
        decide = DECIDE[live.tx.pattern]
        while True:
            if live.call_error is not None:
                raise live.call_error
            if live.ended and not live.tx.status.is_final:
                self._record_ended(live)
            if live.requests:
                # Again until there are none: those that came meanwhile must not wait for a call.
                await self._carry_out(live)
                continue
            now_us = self._clock.now_us()
            decision = decide(live.tx, now_us, live.in_flight)
            match decision:
                case Call(ops, needs_record):
                    if self.is_draining:
                        if live.in_flight:
                            await self._wait(live, None)
                            continue
                        return await self._park(live, now_us)
                    if needs_record and live.has_unsaved_results:
                        await self._save(live, live.tx)
                        continue
                    await self._call(live, ops)
                case GiveUp(ops):
                    # Posted, like the result of a call: lost in a crash, it is decided again.
                    given_up = {op: record_given_up(live.tx.branches[op], now_us=now_us) for op in ops}
                    self._replace(live, given_up)
                    self._journal.post(Save(tx=live.tx, epoch=live.epoch))
                case MoveTo():
                    # Durable before anything is done because of it: a restart must find
                    # the decision, not take it again and perhaps differently; and nobody may
                    # be shown a status that a restart could take back.
                    await self._save(live, moved(live.tx, decision, now_us))
                    note_status(live.tx, live.epoch, reason=decision.reason)
                case Wait(until_us):
                    if live.in_flight:
                        await self._wait(live, until_us)
                        continue
                    assert until_us is not None, f"{live.tx.gid} waits for nothing"
                    if live.tx.status is Status.PREPARED and await self._linger(live, until_us):
                        continue
                    if self.is_draining or until_us - now_us > self._settings.short_wait_s * MICROSECONDS:
                        return await self._park(live, until_us)
                    # The due time is stored before the repeat, so that a restart keeps the backoff.
                    await self._save(live, live.tx)
                    live.end_pass(_what_it_waits_for(live.tx))
                    await self._wait(live, until_us)
                case Done():
                    live.end_pass()
                    await self._let_calls_end(live)
                    return None
                case unknown:
                    assert_never(unknown)

    async def _carry_out(self, live: LiveTransaction) -> None:
        """Make the changes that callers asked for, with one write for all of them."""
        before, now_us = live.tx, self._clock.now_us()
        tx, done = before, []
        requests, live.requests = live.requests, []
        try:
            for request in requests:
                try:
                    tx = request.change(tx, now_us)
                except TxcoordError as error:
                    request.fail(error)
                else:
                    done.append(request)
            if tx is not before:
                await self._save(live, tx, with_definition=tx.branches is not before.branches)
        except ChangeRefusedError as error:
            for request in requests:
                request.fail(StoreUnavailableError(f"{before.gid} was not changed: {error}"))
            raise
        except BaseException as error:
            # Cancelled, too: whoever asked for it must not wait for a task that is gone.
            for request in requests:
                request.fail(NotOursError(f"{before.gid} has left this process's memory: {error}"))
            raise
        if tx.status is not before.status:
            if tx.pattern is Pattern.MSG:
                # Only a check-back can be under way: it asks for what has just been said.
                live.drop_calls()
            note_status(tx, live.epoch)
        for request in done:
            if not request.answer.done():
                request.answer.set_result(tx)

    async def _linger(self, live: LiveTransaction, until_us: int) -> bool:
        """Keep a prepared transaction in memory for a moment: its branches and its submit are about to come.

        Returns:
            Whether there is something to look at; False: park it.
        """
        if self.is_draining:
            return False
        linger_until_us = self._clock.now_us() + int(self._settings.linger_s * MICROSECONDS)
        await self._wait(live, min(until_us, linger_until_us))
        return bool(live.requests) or self._clock.now_us() >= until_us

    async def _save(
        self, live: LiveTransaction, tx: GlobalTransaction, *, park: bool = False, with_definition: bool = False
    ) -> None:
        before = live.tx
        if tx.options is not before.options or tx.custom_data is not before.custom_data:
            with_definition = True
        save = Save(tx=tx, epoch=live.epoch, park=park, with_definition=with_definition)
        applied = await self._journal.write(save)
        if applied is not Applied.DONE:
            raise LeaseLostError(f"{tx.gid} was taken over: epoch {live.epoch} has passed")
        live.tx = tx
        live.has_unsaved_results = False

    async def _park(self, live: LiveTransaction, due_us: int) -> int:
        """Give it up until it is due. Who waits is told after that, so that whoever then
        makes it due at once finds it parked."""
        await self._save(
            live, live.tx.replace(due_us=due_us, updated_us=live.tx.updated_at(self._clock.now_us())), park=True
        )
        metrics.PARKED.inc()
        self._raise(alert_of_wait(live.tx))
        live.end_pass(_what_it_waits_for(live.tx))
        return due_us

    # -- calls -----------------------------------------------------------------------

    async def _call(self, live: LiveTransaction, ops: tuple[int, ...]) -> None:
        """Begin the calls of these operations; record those that need no call at once.

        A stop between a call and its record repeats the call later. That is the
        promise: at least once; the barrier does the rest.
        """
        tx = live.tx
        to_call = [position for position in ops if tx.branches[position].url]
        if len(to_call) < len(ops):
            now_us = self._clock.now_us()
            self._replace(
                live,
                {
                    position: record_success_without_call(tx.branches[position], now_us=now_us)
                    for position in ops
                    if not tx.branches[position].url
                },
            )
            tx = live.tx
        if not to_call:
            await asyncio.sleep(0)  # a long saga without URLs must not keep everybody else waiting
            return
        if len(to_call) == 1 and not live.in_flight and self._may_be_waited_for(tx):
            # The common case needs no task of its own: nothing else can happen meanwhile.
            [position] = to_call
            live.in_flight.add(position)
            live.ended[position] = (self._clock.now_us(), await self._dispatch(tx, tx.branches[position]))
            return
        for position in to_call:
            live.in_flight.add(position)
            task = asyncio.create_task(self._call_beside(live, position))
            live.calls.add(task)
            task.add_done_callback(live.calls.discard)

    async def _let_calls_end(self, live: LiveTransaction) -> None:
        """A workflow's participant reports the end within our call, and is left to finish it."""
        if live.calls:
            await asyncio.wait(live.calls)
        for position, (_, result) in live.take_ended().items():
            metrics.branch_called(live.tx.pattern, live.tx.branches[position].op, result.outcome)

    async def _call_beside(self, live: LiveTransaction, position: int) -> None:
        began_us = self._clock.now_us()
        try:
            live.ended[position] = (began_us, await self._dispatch(live.tx, live.tx.branches[position]))
        except Exception as error:  # noqa: BLE001 - no dispatcher raises: a bug, to be met by the drive loop
            live.call_error = error
        live.wake.set()

    def _may_be_waited_for(self, tx: GlobalTransaction) -> bool:
        """Say whether nothing can happen to it before its only call ends."""
        if tx.status is Status.PREPARED:
            return False  # its initiator may submit or abort it
        if tx.deadline_us is None or tx.status is not Status.SUBMITTED or tx.pattern is Pattern.MSG:
            return True
        return self._clock.now_us() + self._timeout_s(tx) * MICROSECONDS < tx.deadline_us

    def _timeout_s(self, tx: GlobalTransaction) -> float:
        return tx.options.request_timeout_s or self._settings.request_timeout_s

    async def _dispatch(self, tx: GlobalTransaction, op: BranchOp) -> CallResult:
        return await self._dispatcher.call(
            BranchRequest(
                gid=tx.gid,
                pattern=tx.pattern,
                branch_id=op.branch_id,
                op=op.op if op.op is not Op.RESUME else name_of(tx),
                url=op.url,
                payload=op.payload,
                headers=tx.options.branch_headers,
                protocol=tx.protocol,
                timeout_s=self._timeout_s(tx),
            )
        )

    async def _wait(self, live: LiveTransaction, until_us: int | None) -> None:
        """Wait until a call has ended, or the instant has come."""
        live.wake.clear()
        if live.ended or live.requests or live.call_error is not None:
            return
        if until_us is None:
            await live.wake.wait()
        else:
            await sleep_until(self._clock, until_us, wake=live.wake)

    # -- records ---------------------------------------------------------------------

    def _record_ended(self, live: LiveTransaction) -> None:
        """Record the results of calls that have ended. Posted, not waited for: what must not
        happen before they are durable (a change of status, a call that needs the record) waits itself."""
        now_us = self._clock.now_us()
        changed = {
            position: self._recorded(live, live.tx.branches[position], began_us, result, now_us)
            for position, (began_us, result) in live.take_ended().items()
        }
        self._replace(live, changed)
        self._journal.post(Save(tx=live.tx, epoch=live.epoch))

    def _recorded(
        self, live: LiveTransaction, op: BranchOp, began_us: int, result: CallResult, now_us: int
    ) -> BranchOp:
        tx = live.tx
        if not result.called:
            metrics.CALLS_NOT_MADE.inc()
            # A dispatcher that is closed or full may say "at once": that must not become a loop.
            delay_s = max(result.retry_after_s, _SHORTEST_HOLD_S)
            until_us = now_us + jittered_us(delay_s, self._random)
            return record_held_off(op, until_us=until_us, why=result.detail)
        metrics.branch_called(tx.pattern, op.op, result.outcome)
        attempt = Attempt(
            at_us=began_us,
            duration_us=now_us - began_us,
            outcome=result.outcome,
            code=result.code,
            detail=result.detail,
        )
        policy = self._retry.policy(tx.options)
        if op.op is Op.RESUME:
            recorded = record_resume(
                op,
                attempt,
                now_us=now_us,
                policy=policy,
                random=self._random,
                attempts_kept=self._settings.attempts_kept,
                timeout_s=self._timeout_s(tx),
            )
        else:
            recorded = record_call(
                op,
                attempt,
                now_us=now_us,
                policy=policy,
                random=self._random,
                attempts_kept=self._settings.attempts_kept,
                may_fail=may_fail_in(tx.pattern),
                max_attempts=tx.options.max_attempts if op.op is Op.ACTION else 0,
            )
        if not (op.op is Op.RESUME and live.requests):
            # (A workflow may have reported its end within this very call: that is looked at next.)
            self._raise(alert_of_call(tx, op, attempt, limit=self._settings.alert_retry_limit))
        if result.outcome is not Outcome.SUCCESS:
            # The answer itself may hold personal data: it is in the record, not in the log.
            log.warning(
                "call",
                gid=tx.gid,
                branch_id=op.branch_id,
                op=op.op,
                outcome=result.outcome,
                code=result.code,
                error=result.detail if not result.code else "",
                failures=recorded.failures,
                retry_in_s=round((recorded.due_us - now_us) / MICROSECONDS, 3) if recorded.due_us else None,
                epoch=live.epoch,
            )
        return recorded

    def _raise(self, alert: Alert | None) -> None:
        if alert is not None:
            self._alerts.raised(alert)

    def _replace(self, live: LiveTransaction, changed: dict[int, BranchOp]) -> None:
        branches = list(live.tx.branches)
        for position, op in changed.items():
            branches[position] = op
        live.has_unsaved_results = True
        live.tx = live.tx.replace(branches=tuple(branches), updated_us=live.tx.updated_at(self._clock.now_us()))


def note_status(tx: GlobalTransaction, epoch: int, *, reason: str = "") -> None:
    """Log and count a change of status, once it is durable.

    Args:
        reason: why a pattern's rules decided so. What an initiator or a participant says may hold personal data, and
            stands in the record alone.
    """
    reason = reason.partition(" return failed: ")[0]
    log.info("status", gid=tx.gid, pattern=tx.pattern, status=tx.status, epoch=epoch, reason=reason)
    if tx.status.is_final:
        metrics.transaction_ended(tx.pattern, tx.status, (tx.updated_us - tx.created_us) / MICROSECONDS)


def _what_it_waits_for(tx: GlobalTransaction) -> str:
    """Say why it turned round, or which operation has to be repeated and why: for a submit that waits."""
    if tx.rollback_reason:
        return tx.rollback_reason
    if what := what_needs_an_operator(tx):
        return f"{tx.gid} needs an operator: {what}"
    for op in tx.branches:
        if op.status is not OpStatus.PREPARED or not op.due_us or op.op is Op.MSG:
            continue
        what = f"{op.op} of branch {op.branch_id} of {tx.gid}"
        if op.held_off:
            return f"{what} is put off ({op.held_off})"
        if op.attempts:
            last = op.attempts[-1]
            return f"{what} is to be repeated: it answered {last.outcome} ({last.detail})"
    return f"{tx.gid} is {tx.status} and goes on by itself"
