"""The rules of a saga.

Forward, an action is called when all that come before it have succeeded (the step before
it in a sequential saga, the steps that `orders` names in any). The first failure, a used-up
retry limit or the deadline turns the saga round.

With the turn it is settled, and stored, which steps are *reached*: those whose action
succeeded or failed, and those whose action could have been called by then. "No result"
is not "never called": the call may have been under way when a coordinator stopped. If it
never was called, the participant's barrier makes the compensation empty. A late success
of an action that was under way at the turn adds no step.

A result may be lost with the process that knew it, and its action is called again. If the
saga turned round then, the steps behind that action would not count as reached, though
they may have been called. So where a saga can turn for another reason than the answer of
the one action that it waits for, an action is called only once the successes that allow
it are on record.

Backward, nothing is compensated before every action under way has ended or timed out, so
that a compensation never overtakes its action on our side. Then the reached steps are
compensated against the order of the actions. A compensation is repeated until it succeeds:
it has no way to fail.

Position `2 * step` of the branches is the step's compensation, `2 * step + 1` its action
(the order in which DTM lists them).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from txcoord.decision import Call, Decision, Done, MoveTo, Wait
from txcoord.model import BranchOp, GlobalTransaction, OpStatus, Outcome, Status
from txcoord.request import REASON_LENGTH, without_credentials
from txcoord.saga.graph import predecessors


def decide(saga: GlobalTransaction, now_us: int, in_flight: Collection[int] = ()) -> Decision:
    """Say what a saga does next.

    Args:
        now_us: the time.
        in_flight: positions of operations whose calls have not ended.
    """
    match saga.status:
        case Status.SUBMITTED:
            return _decide_forward(saga, now_us, in_flight)
        case Status.ABORTING:
            return _decide_backward(saga, now_us, in_flight)
        case Status.SUCCEEDED | Status.FAILED:
            return Done()
        case Status.PREPARED:
            raise AssertionError(f"saga {saga.gid} is prepared: a saga is submitted whole")


def compensation_of(step: int) -> int:
    return 2 * step


def action_of(step: int) -> int:
    return 2 * step + 1


def _decide_forward(saga: GlobalTransaction, now_us: int, in_flight: Collection[int]) -> Decision:
    actions = saga.branches[1::2]
    if all(action.status is OpStatus.SUCCEEDED for action in actions):
        return MoveTo(Status.SUCCEEDED)
    runnable = _runnable(saga, actions)
    reason = _reason_to_turn(saga, actions, now_us)
    if reason:
        return MoveTo(Status.ABORTING, reason=reason[:REASON_LENGTH], reached=_reached(actions, runnable))
    waiting = [action_of(step) for step in runnable if action_of(step) not in in_flight]
    return _call_or_wait(saga, waiting, now_us, deadline_us=saga.deadline_us, needs_record=_may_lose_reach(saga))


def _decide_backward(saga: GlobalTransaction, now_us: int, in_flight: Collection[int]) -> Decision:
    if any(position % 2 for position in in_flight):
        return Wait(None)
    outstanding = {
        step
        for step, action in enumerate(saga.branches[1::2])
        if action.reached and saga.branches[compensation_of(step)].status is not OpStatus.SUCCEEDED
    }
    if not outstanding:
        return MoveTo(Status.FAILED)
    before = predecessors(saga)
    held_back = {earlier for step in outstanding for earlier in before[step]}
    waiting = [
        compensation_of(step) for step in sorted(outstanding - held_back) if compensation_of(step) not in in_flight
    ]
    return _call_or_wait(saga, waiting, now_us, deadline_us=None, needs_record=False)


def _call_or_wait(
    saga: GlobalTransaction, waiting: Sequence[int], now_us: int, *, deadline_us: int | None, needs_record: bool
) -> Decision:
    due = tuple(position for position in waiting if saga.branches[position].due_us <= now_us)
    if due:
        return Call(due, needs_record=needs_record)
    return Wait(_earliest([*(saga.branches[position].due_us for position in waiting), deadline_us]))


def _earliest(instants: Iterable[int | None]) -> int | None:
    return min((instant for instant in instants if instant is not None), default=None)


def _may_lose_reach(saga: GlobalTransaction) -> bool:
    """Say whether the saga could turn round while an action whose success was lost is called again."""
    options = saga.options
    if options.concurrent:
        # Without orders every step counts as reached in any case.
        return bool(options.orders)
    return saga.deadline_us is not None or options.retry_limit > 0


def _runnable(saga: GlobalTransaction, actions: Sequence[BranchOp]) -> Sequence[int]:
    before = predecessors(saga)
    return [
        step
        for step, action in enumerate(actions)
        if action.status is OpStatus.PREPARED
        and all(actions[earlier].status is OpStatus.SUCCEEDED for earlier in before[step])
    ]


def _reached(actions: Sequence[BranchOp], runnable: Iterable[int]) -> frozenset[int]:
    ended = (step for step, action in enumerate(actions) if action.status is not OpStatus.PREPARED)
    return frozenset(action_of(step) for step in (*ended, *runnable))


def _reason_to_turn(saga: GlobalTransaction, actions: Sequence[BranchOp], now_us: int) -> str:
    for action in actions:
        if action.status is OpStatus.FAILED:
            return failure_reason(action)
    limit = saga.options.retry_limit
    if limit > 0 and any(action.failures > limit for action in actions):
        return f"RetryCount is greater than RetryLimit, RetryLimit: {limit}"
    if saga.deadline_us is not None and now_us >= saga.deadline_us:
        return f"Timeout after {saga.options.timeout_to_fail_s} seconds"
    return ""


def failure_reason(op: BranchOp) -> str:
    """Put a failure into words as DTM does; clients look for the word at its end."""
    answer = op.attempts[-1].detail if op.attempts and op.attempts[-1].outcome is Outcome.FAILURE else ""
    url, end = without_credentials(op.url), " FAILURE"
    return f"url:{url} return failed: {answer.removesuffix(end)}"[: REASON_LENGTH - len(end)] + end
