"""The rules of a two-phase message.

The initiator prepares the message, commits a local transaction of its own, and submits. As
long as the message is prepared it only watches the deadline. If the initiator has said
nothing by then, it is asked (the *check-back*): its local transaction was committed, and
the message is delivered; or it was not and never will be, and the message has failed; or it
is not known yet, and the question is repeated. Nothing else decides: without an address to
ask at, the message waits for its initiator, however long.

Submitted, the actions are called in their order, or all at once. An action was promised to
succeed in the end, so that an answer of failure is repeated like an error. A *best-effort*
message bounds each action, by attempts or by the time since its turn came: what is beyond it
is given up, the rest goes on, and the message ends as failed with a reason that names what
was given up.

The positions are those of the actions; if there is a check-back, it is the last one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from txcoord.decision import Call, Decision, Done, GiveUp, MoveTo, Wait
from txcoord.model import MICROSECONDS, NEVER_US, BranchOp, GlobalTransaction, Op, OpStatus, Status
from txcoord.request import REASON_LENGTH
from txcoord.saga.decide import failure_reason


def decide(msg: GlobalTransaction, now_us: int, in_flight: Collection[int] = ()) -> Decision:
    """Say what a message does next; arguments as of `txcoord.saga.decide.decide`."""
    match msg.status:
        case Status.PREPARED:
            return _check_back(msg, now_us, in_flight)
        case Status.SUBMITTED:
            return _deliver(msg, now_us, in_flight)
        case Status.SUCCEEDED | Status.FAILED:
            return Done()
        case Status.ABORTING:
            raise AssertionError(f"msg {msg.gid} is aborting: there is nothing to undo in a message")


def actions_of(msg: GlobalTransaction) -> Sequence[BranchOp]:
    return msg.branches[:-1] if check_back_of(msg) else msg.branches


def check_back_of(msg: GlobalTransaction) -> BranchOp | None:
    """The question to the initiator whether its local transaction was committed; None: there is no address."""
    last = msg.branches[-1] if msg.branches else None
    return last if last is not None and last.op is Op.MSG else None


def _check_back(msg: GlobalTransaction, now_us: int, in_flight: Collection[int]) -> Decision:
    assert msg.deadline_us is not None, f"msg {msg.gid} has no deadline: its initiator would never be asked"
    if now_us < msg.deadline_us:
        return Wait(msg.deadline_us)
    question = check_back_of(msg)
    if question is None:
        return Wait(NEVER_US)
    if question.status is OpStatus.SUCCEEDED:
        return MoveTo(Status.SUBMITTED)
    if question.status is OpStatus.FAILED:
        return MoveTo(Status.FAILED, reason=failure_reason(question))
    if in_flight:
        return Wait(None)
    return Call((len(msg.branches) - 1,)) if question.due_us <= now_us else Wait(question.due_us)


def _deliver(msg: GlobalTransaction, now_us: int, in_flight: Collection[int]) -> Decision:
    actions = actions_of(msg)
    still_open = [position for position, action in enumerate(actions) if action.status is OpStatus.PREPARED]
    if not still_open:
        given_up = [action for action in actions if action.status is OpStatus.FAILED]
        return MoveTo(Status.FAILED, reason=_reason(msg, given_up)) if given_up else MoveTo(Status.SUCCEEDED)
    turn = still_open if msg.options.concurrent else still_open[:1]
    # A call that is under way when the time is over may still succeed: it is waited for.
    waiting = [position for position in turn if position not in in_flight]
    give_up_us = {position: _give_up_us(msg, position) for position in waiting}
    late = tuple(position for position in waiting if give_up_us[position] <= now_us)
    if late:
        return GiveUp(late)
    due = tuple(position for position in waiting if actions[position].due_us <= now_us)
    if due:
        return Call(due)
    return Wait(min((min(actions[position].due_us, give_up_us[position]) for position in waiting), default=None))


def _give_up_us(msg: GlobalTransaction, position: int) -> int:
    """When the time of an action is over whose turn it is: counted from when its turn came."""
    options = msg.options
    if not options.give_up_after_us:
        return NEVER_US
    if options.concurrent or position == 0:
        return options.give_up_at_us
    before = msg.branches[position - 1].finished_us
    assert before is not None, f"msg {msg.gid}: the turn of position {position} came before another one's end"
    return before + options.give_up_after_us


def _reason(msg: GlobalTransaction, given_up: Sequence[BranchOp]) -> str:
    return f"gave up {', '.join(_why(msg, action) for action in given_up)}"[:REASON_LENGTH]


def _why(msg: GlobalTransaction, action: BranchOp) -> str:
    # What the participant answered stands in the attempts: a reason is logged, too.
    limit = msg.options.max_attempts
    if limit and action.in_vain >= limit:
        return f"branch {action.branch_id} (called {limit} times in vain)"
    return f"branch {action.branch_id} (not done within {msg.options.give_up_after_us / MICROSECONDS:g} seconds)"
