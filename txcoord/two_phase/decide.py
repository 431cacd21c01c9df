"""The rules that TCC and XA share.

The initiator does the first phase itself, and each branch is registered before or within its part of
it: the coordinator never sees a try or an XA action. As long as the transaction is prepared it only
watches the deadline. Submitted, it completes the branches; aborting, it undoes them; one after another.

What completes or undoes a branch was promised to succeed in the end, so it is repeated until it does.
A participant that answers "failure" again and again breaks that promise, and only a person can
mend it: after `MOST_REFUSALS` such answers in a row the transaction *needs an operator*. It is not called
again until one makes it due.

Position `2 * n` of the branches is what undoes the n-th registration, `2 * n + 1` what completes it
(the order in which DTM lists them).
"""

from __future__ import annotations

from collections.abc import Collection

from txcoord.decision import Call, Decision, Done, MoveTo, Wait
from txcoord.model import MICROSECONDS, NEVER_US, GlobalTransaction, OpStatus, Status

MOST_REFUSALS = 10


def decide_two_phase(tx: GlobalTransaction, now_us: int, in_flight: Collection[int], *, last_first: bool) -> Decision:
    """Say what a transaction of registered branches does next.

    Args:
        now_us, in_flight: as of `txcoord.saga.decide.decide`.
        last_first: the branch that was registered last is the first to be completed or undone.
    """
    match tx.status:
        case Status.PREPARED:
            return _watch_deadline(tx, now_us)
        case Status.SUBMITTED:
            return _call_next(tx, now_us, in_flight, offset=1, last_first=last_first, then=Status.SUCCEEDED)
        case Status.ABORTING:
            return _call_next(tx, now_us, in_flight, offset=0, last_first=last_first, then=Status.FAILED)
        case Status.SUCCEEDED | Status.FAILED:
            return Done()


def _watch_deadline(tx: GlobalTransaction, now_us: int) -> Decision:
    assert tx.deadline_us is not None, (
        f"{tx.pattern} {tx.gid} has no deadline: what its branches hold could stay so for ever"
    )
    if now_us < tx.deadline_us:
        return Wait(tx.deadline_us)
    allowed_s = (tx.deadline_us - tx.created_us) // MICROSECONDS
    return MoveTo(Status.ABORTING, reason=f"Timeout after {allowed_s} seconds")


def _call_next(
    tx: GlobalTransaction, now_us: int, in_flight: Collection[int], *, offset: int, last_first: bool, then: Status
) -> Decision:
    if in_flight:
        return Wait(None)
    positions = range(offset, len(tx.branches), 2)
    for position in reversed(positions) if last_first else positions:
        op = tx.branches[position]
        if op.status is OpStatus.SUCCEEDED:
            continue
        if op.refusals >= MOST_REFUSALS:
            return Wait(NEVER_US)
        return Call((position,)) if op.due_us <= now_us else Wait(op.due_us)
    return MoveTo(then)
