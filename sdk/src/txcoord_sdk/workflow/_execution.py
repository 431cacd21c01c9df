"""One execution of one workflow: what is recorded, what is done, and how it ends. The same for both clients.

The rules that make it safe to break off anywhere and start from the beginning again:

- An operation's result is recorded before the function gets it. What is recorded is not done again.
- What could not be recorded, or had no clear answer, stops the execution: nothing more is done, and no end is
  reported, even if the function has caught the exception. The next execution does it again.
- The function ends before anything is committed or rolled back, and so do all of its steps. Commits and rollbacks
  are recorded like steps. The end is reported last: as long as it is not, everything before can be repeated.
- What is recorded and what the function asks for must fit: else it would go on with another step's result.
- Results reach the function in the same order in every execution; see `_deliveries`.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from txcoord.model import Op, OpStatus, Outcome, Pattern, Status
from txcoord.outcome import clean
from txcoord.protocol import branch_id_of
from txcoord_sdk._calls import AnyReply, Call, Flow
from txcoord_sdk._checks import Fields
from txcoord_sdk._rules import MAX_REASON, Rules
from txcoord_sdk.branch import BranchFailed, BranchOngoing
from txcoord_sdk.errors import TxcoordSdkError
from txcoord_sdk.results import StoredResult, WorkflowAnswer
from txcoord_sdk.workflow._deliveries import Deliveries, NotAskedFor
from txcoord_sdk.workflow._works import NOTHING, Record, Unanswered, Work
from txcoord_sdk.workflow.errors import StepFailed, WorkflowChangedError, WorkflowInterruptedError

T = TypeVar("T")

Carry = Callable[[Flow[Any]], Awaitable[Any]]
"""Carries out a flow; the sync client's does so without ever suspending."""

_WORDS = {Op.COMMIT.value: "commit", Op.ROLLBACK.value: "rollback"}


class SettledElsewhere(WorkflowInterruptedError):
    """Another execution has gone further, or ended it: `found` is what it has come to."""

    found: WorkflowAnswer | None = None


class BranchState:
    """One branch: its action, and what is to follow it at the end."""

    def __init__(self, branch_id: str, *, name: str | None, rollback_if_failed: bool) -> None:
        self.id = branch_id
        self.name = name
        self.action: Work[Any] | None = None
        self.endings: dict[Op, Work[Any]] = {}
        self.rollback_if_failed = rollback_if_failed
        self.always_settled = False
        """Whether what its step may have left is rolled back even if the step was refused and the workflow succeeds."""
        self.is_begun = self.is_dropped = False
        self.asked_after: str = ""
        """The branch whose result the function had received last when it asked for this one's."""
        self.has_failed = False

    def name_of(self, work: Work[Any]) -> str:
        return self.name or work.name


class Execution:
    """A workflow's function on its way, from its opening to its end."""

    def __init__(
        self,
        rules: Rules,
        carry: Carry,
        gid: str,
        found: WorkflowAnswer,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        table: str | None,
        is_async: bool,
    ) -> None:
        self.gid = gid
        self.headers = headers
        self.timeout_s = timeout_s
        self.table = table
        self.is_async = is_async
        self._rules = rules
        self._carry = carry
        self._stored = {(result.branch_id, result.op): result for result in found.results}
        self._branches: dict[str, BranchState] = {}
        self._deliveries = self._deliveries_of(found)
        self._broken: BaseException | None = None
        self._has_returned = self._is_late = self._is_over = False
        self._steps: set[asyncio.Task[Any]] = set()
        self._lock = Lock()
        self._running = 0

    # -- branches and their operations ---------------------------------------------------

    def add_branch(self, branch_id: str, *, name: str | None, rollback_if_failed: bool) -> BranchState:
        self._check_within()
        branch = BranchState(branch_id, name=name, rollback_if_failed=rollback_if_failed)
        self._branches[branch_id] = branch
        return branch

    async def act(self, branch: BranchState, work: Work[T]) -> T:
        """Take a branch's step, or return what is recorded of it."""
        self._check_within()
        branch.is_begun = True
        branch.asked_after = self._deliveries.ask(branch.id)
        try:
            return await self._acted(branch, work)
        finally:
            self._deliveries.receive(branch.id)

    async def _acted(self, branch: BranchState, work: Work[T]) -> T:
        if not self.is_async:
            with self._lock:
                self._running += 1
            try:
                return await self._act(branch, work)
            finally:
                with self._lock:
                    self._running -= 1
        # In a task of its own: if the function stops waiting for it (its sibling has failed, say), its effect
        # must still be known before all is undone. And always one turn of the loop later, recorded or not, so
        # that siblings that are started together are asked for together in every execution.
        step = asyncio.create_task(self._act(branch, work))
        self._steps.add(step)
        step.add_done_callback(self._ended)
        return await asyncio.shield(step)

    def _ended(self, step: asyncio.Task[Any]) -> None:
        self._steps.discard(step)
        if not step.cancelled():
            step.exception()  # if nobody waits for it any more, that is no fault

    async def _act(self, branch: BranchState, work: Work[T]) -> T:
        self._check_going()
        if not await self._deliveries.may_begin(branch.id, branch.asked_after):
            branch.is_dropped = True
            raise self._late()
        self._check_going()
        try:
            record = await self._once(branch, Op.ACTION, work)
        except BranchFailed as refusal:
            branch.has_failed = True
            raise StepFailed(self.gid, branch.id, branch.name_of(work), str(refusal)) from refusal
        except BaseException as error:
            self._break(error)
            raise
        return self._read(branch, Op.ACTION, work, record.result)

    async def _once(self, branch: BranchState, op: Op, work: Work[Any]) -> Record:
        """Do an operation, unless it is recorded, and record what comes of it.

        Raises:
            BranchFailed: it was refused; that is recorded.
        """
        record = self._recorded(branch, op, work)
        if record is not None:
            if op is Op.ACTION:
                await self._delivered(branch)
            if self._stored[branch.id, op].status is OpStatus.FAILED:
                raise BranchFailed(record.reason)
            return record
        turn = _Turn(self, branch, op, work)
        try:
            record = turn.record_of(await work.do(turn))
        except BranchFailed as refusal:
            if op is not Op.ACTION:
                raise self._interrupted(
                    f"{op} of {branch.id} ({work.name}) was refused, which it cannot be: {refusal}"
                ) from refusal
            record = turn.record_of(NOTHING, clean(str(refusal), MAX_REASON))
            await self._report_step(branch, OpStatus.FAILED, record)
            raise
        except (BranchOngoing, Unanswered) as wait:
            outcome = wait.outcome if isinstance(wait, Unanswered) else Outcome.ONGOING
            reason = f"{op} of {branch.id} ({work.name}) had the outcome {outcome}: {wait}"
            raise self._interrupted(reason, outcome) from wait
        if op is Op.ACTION:
            await self._report_step(branch, OpStatus.SUCCEEDED, record)
        else:
            await self.report(branch.id, op, OpStatus.SUCCEEDED, record)
        return record

    async def _report_step(self, branch: BranchState, status: OpStatus, record: Record) -> None:
        record = self._deliveries.stamp(branch.id, record)
        await self.report(branch.id, Op.ACTION, status, record)
        self._deliveries.stored(record)
        await self._delivered(branch)

    async def _delivered(self, branch: BranchState) -> None:
        """Return when it is the turn of a step's result to reach the function."""
        try:
            await self._deliveries.turn(branch.id)
        except NotAskedFor as missing:
            raise self._changed(
                f"step {missing.branch_id} is recorded, and was not asked for where it was before", missing.branch_id
            ) from None

    def _recorded(self, branch: BranchState, op: Op, work: Work[Any]) -> Record | None:
        """Return what is recorded of an operation; None if nothing is."""
        stored = self._stored.get((branch.id, op))
        known = stored or (self._stored.get((branch.id, Op.BUSINESS)) if op is Op.ACTION else None)
        if known is None:
            return None
        record = self._read_record(known)
        asked = (work.kind, branch.name_of(work) if op is Op.ACTION else work.name)
        if (record.kind, record.name) != asked:
            raise self._changed(
                f"{op} of {branch.id} is recorded as {record.kind} {record.name!r}, and is now {asked[0]} {asked[1]!r}",
                branch.id,
            )
        return None if stored is None else record

    def _read(self, branch: BranchState, op: Op, work: Work[T], result: Raw) -> T:
        try:
            return work.read(branch.id, result)
        except ValueError as error:
            changed = self._changed(
                f"the result recorded of {branch.id} ({branch.name_of(work)}) cannot be read: {error}", branch.id
            )
            self._break(changed)
            raise changed from error

    def _read_record(self, stored: StoredResult) -> Record:
        try:
            return msgspec.json.decode(stored.data, type=Record)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._changed(
                f"{stored.op} of {stored.branch_id} was not recorded by this SDK: {error}", stored.branch_id
            ) from error

    def _deliveries_of(self, found: WorkflowAnswer) -> Deliveries:
        results = [result for result in found.results if result.op == Op.ACTION]
        others = [result for result in found.results if result.op == Op.BUSINESS]
        return Deliveries(
            [(result.branch_id, self._read_record(result)) for result in results],
            [(result.branch_id, self._read_record(result)) for result in others],
            is_async=self.is_async,
        )

    def recorded(self, branch_id: str, op: str) -> Record | None:
        stored = self._stored.get((branch_id, op))
        return None if stored is None else self._read_record(stored)

    async def ask(self, call: Call) -> AnyReply:
        reply: AnyReply = await self._carry(self._rules.ask_participant(call))
        return reply

    async def report(self, branch_id: str, op: str, status: OpStatus, record: Record) -> None:
        """Have an operation's result stored; when this returns, it is.

        Raises:
            SettledElsewhere: another execution has stored another result, or has ended it all.
        """
        data = msgspec.json.encode(record)

        def is_settled(found: WorkflowAnswer) -> bool:
            return _has_ended(found) or found.find(branch_id, op) is not None

        body = self._body(branch_id=branch_id, op=op, status=status, data=data)
        found = await self._carry(self._rules.report(self.gid, "/registerBranch", body, is_settled))
        if found is not None:
            stored = found.find(branch_id, op)
            if stored is None or (stored.status, stored.data) != (status, data):
                raise self._overtaken(found, f"{op} of {branch_id} has another result")
        with self._lock:
            self._stored[branch_id, op] = StoredResult(branch_id=branch_id, op=op, status=status, data=data)

    # -- from the function to the end ----------------------------------------------------

    async def run(self, function: Callable[[], Awaitable[bytes]]) -> bytes:
        """Run the function, then what follows it, and report the end.

        Returns:
            Its result, which is stored now.

        Raises:
            BranchFailed: it has failed, all is rolled back, and this is stored.
            SettledElsewhere: another execution was faster.
            Exception: nothing is decided: it is to be run again.
        """
        refusal: BranchFailed | None = None
        result = b""
        try:
            try:
                try:
                    result = await function()
                finally:
                    # What goes on beside it, such as the siblings of a step that was refused, takes no more steps.
                    self._has_returned = True
                    self._deliveries.close()
            except Exception as error:
                await self._finish_steps()
                refusal = _refusal_in(error)
                if refusal is None and self._broken is None:
                    raise
            else:
                self._check_awaited()
                await self._finish_steps()
                self._check_not_late()
        except BaseException:
            await self._drop_steps()
            raise
        self._is_over = True
        if self._broken is not None:
            raise self._broken
        await self._follow_up(Op.COMMIT if refusal is None else Op.ROLLBACK)
        if refusal is not None:
            await self._end(Status.FAILED, rollback_reason=clean(str(refusal) or "it was refused", MAX_REASON))
            raise refusal
        await self._end(Status.SUCCEEDED, result=b64encode(result).decode())
        return result

    async def _finish_steps(self) -> None:
        """Wait for steps that the function does not wait for any more: their effect is to be known."""
        while self._steps:
            await asyncio.wait(self._steps)
        if self._running:
            self._break(self._interrupted("a step is still under way in another thread: wait for it in the function"))

    def _check_awaited(self) -> None:
        """Notice a forgotten `await`, which would let a workflow succeed without one of its steps."""
        for branch in self._branches.values():
            if branch.action is not None and not branch.is_begun:
                step = f"step {branch.id} ({branch.name_of(branch.action)})"
                self._break(self._interrupted(f"{step} was not awaited: each has to be, within the function"))

    def _check_not_late(self) -> None:
        """Notice a sequence of steps that the function has left behind, which is the same."""
        if self._is_late:
            self._break(self._interrupted("a step was asked for after the function had returned: wait for it in there"))

    async def _drop_steps(self) -> None:
        self._is_over = True
        for step in self._steps:
            step.cancel()
        if self._steps:
            await asyncio.wait(self._steps)

    async def _follow_up(self, op: Op) -> None:
        """Commit or roll back: in each branch, the last one first, what was set for it."""
        self._check_fits(op)
        for branch in reversed(self._branches.values()):
            # A slower execution of the same may still prepare what was refused here.
            own = Op.ROLLBACK if branch.has_failed and branch.always_settled else op
            work = branch.endings.get(own)
            if branch.action is not None and (branch.is_dropped or not branch.is_begun):
                continue  # who was to take its step was cancelled before
            if work is not None and (not branch.has_failed or (own is Op.ROLLBACK and branch.rollback_if_failed)):
                await self._once(branch, own, work)

    def _check_fits(self, op: Op) -> None:
        other = Op.ROLLBACK if op is Op.COMMIT else Op.COMMIT
        for branch_id, stored_op in self._stored:
            if branch_id not in self._branches:
                raise self._changed(f"{stored_op} of {branch_id} is recorded, and was not asked for", branch_id)
            branch = self._branches[branch_id]
            if stored_op == other and not (branch.has_failed and branch.always_settled):
                raise self._changed(f"it has begun to {_WORDS[other]}, and is now to {_WORDS[op]}", branch_id)

    async def _end(self, status: Status, **how: str) -> None:
        extra = {"status": status.value, "result": "", "rollback_reason": "", **how}
        found = await self._carry(self._rules.report(self.gid, "/submit", self._body(req_extra=extra), _has_ended))
        if found is not None and found.transaction.status is not status:
            raise self._overtaken(found, f"it has ended as {found.transaction.status}")

    # -- what may be wrong ---------------------------------------------------------------

    def _break(self, error: BaseException) -> None:
        """Note why it cannot go on; the first reason counts."""
        self._broken = self._broken or error
        self._deliveries.release()

    def _check_within(self) -> None:
        if self._has_returned or self._is_over:
            raise self._late()

    def _check_going(self) -> None:
        if self._broken is not None:
            raise self._interrupted(f"it has stopped before: {_one_line(self._broken)}") from self._broken

    def _late(self) -> ValueError:
        self._is_late = self._is_late or self._has_returned
        return ValueError(f"workflow {self.gid} is over: its steps are taken within its function")

    def _interrupted(self, reason: str, outcome: Outcome = Outcome.UNKNOWN) -> WorkflowInterruptedError:
        return WorkflowInterruptedError(self.gid, Status.PREPARED, reason, outcome)

    def _changed(self, reason: str, branch_id: str) -> WorkflowChangedError:
        return WorkflowChangedError(self.gid, Status.PREPARED, reason, branch_id)

    def _overtaken(self, found: WorkflowAnswer, what: str) -> SettledElsewhere:
        status = found.transaction.status if found.transaction else None
        error = SettledElsewhere(self.gid, status, f"another execution is ahead of this one: {what}", Outcome.ONGOING)
        error.found = found
        return error

    def _body(self, **more: object) -> Fields:
        return {"gid": self.gid, "trans_type": Pattern.WORKFLOW, **more}


@dataclass(frozen=True, slots=True)
class _Turn:
    """One operation that is to be done; see `txcoord_sdk.workflow._works.Turn`."""

    execution: Execution
    branch: BranchState
    at: Op
    work: Work[Any]

    @property
    def gid(self) -> str:
        return self.execution.gid

    @property
    def branch_id(self) -> str:
        return self.branch.id

    @property
    def op(self) -> str:
        return self.at.value

    @property
    def is_async(self) -> bool:
        return self.execution.is_async

    @property
    def headers(self) -> Mapping[str, str]:
        return self.execution.headers

    @property
    def timeout_s(self) -> float:
        return self.execution.timeout_s

    @property
    def table(self) -> str | None:
        return self.execution.table

    async def ask(self, call: Call) -> AnyReply:
        return await self.execution.ask(call)

    def recorded(self, op: str) -> Record | None:
        return self.execution.recorded(self.branch.id, op)

    async def record(self, op: str, result: Raw) -> None:
        await self.execution.report(self.branch.id, op, OpStatus.SUCCEEDED, self.record_of(result))

    def record_of(self, result: Raw, reason: str = "") -> Record:
        name = self.branch.name_of(self.work) if self.at is Op.ACTION else self.work.name
        asked_after = self.branch.asked_after if self.at is Op.ACTION else None
        return Record(kind=self.work.kind, name=name, result=result, reason=reason, asked_after=asked_after)


class Numbers:
    """Ids of branches, given in the order of asking: 01, 02, …; within a lane 03.01, 03.02, …"""

    def __init__(self, lane: str = "") -> None:
        self._lane = lane
        # Counted by `next`, which threads cannot come between.
        self._count = count()

    def next(self) -> str:
        own = branch_id_of(next(self._count))
        return f"{self._lane}.{own}" if self._lane else own


def _has_ended(found: WorkflowAnswer) -> bool:
    return found.transaction is not None and found.transaction.status.is_final


def _refusal_in(error: BaseException) -> BranchFailed | None:
    """Return the refusal that an exception is, or that a group of nothing else holds."""
    if isinstance(error, BranchFailed):
        return error
    if isinstance(error, BaseExceptionGroup):
        inner = [_refusal_in(each) for each in error.exceptions]
        return inner[0] if all(inner) else None
    return None


def _one_line(error: BaseException) -> str:
    text = error.reason if isinstance(error, TxcoordSdkError) else f"{type(error).__name__}: {error}"
    return clean(text, MAX_REASON)
