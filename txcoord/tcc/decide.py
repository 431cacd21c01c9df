"""The rules of a TCC transaction.

The initiator calls the tries itself, and registers each branch before its try: the
coordinator never sees a try. As long as the transaction is prepared it only watches the
deadline. Submitted, it calls the confirms; aborting, the cancels; one after another, the
branch that was registered last first, as DTM does.

A confirm or a cancel was promised to succeed in the end, so it is repeated until it does.
A participant that answers "failure" again and again breaks that promise, and only a
person can mend it: after `MOST_REFUSALS` such answers in a row the transaction *needs an
operator*. It is not called again until one makes it due.

Position `2 * n` of the branches is the cancel of the n-th registration, `2 * n + 1` its
confirm (the order in which DTM lists them).
"""

from __future__ import annotations

from collections.abc import Collection

from txcoord.decision import Call, Decision, Done, MoveTo, Wait
from txcoord.model import MICROSECONDS, NEVER_US, GlobalTransaction, OpStatus, Status

MOST_REFUSALS = 10


def decide(tcc: GlobalTransaction, now_us: int, in_flight: Collection[int] = ()) -> Decision:
    """Say what a TCC transaction does next; arguments as of `txcoord.saga.decide.decide`."""
    match tcc.status:
        case Status.PREPARED:
            return _watch_deadline(tcc, now_us)
        case Status.SUBMITTED:
            return _call_last_open(tcc, now_us, in_flight, offset=1, then=Status.SUCCEEDED)
        case Status.ABORTING:
            return _call_last_open(tcc, now_us, in_flight, offset=0, then=Status.FAILED)
        case Status.SUCCEEDED | Status.FAILED:
            return Done()


def _watch_deadline(tcc: GlobalTransaction, now_us: int) -> Decision:
    assert tcc.deadline_us is not None, f"tcc {tcc.gid} has no deadline: what its tries reserved could stay so for ever"
    if now_us < tcc.deadline_us:
        return Wait(tcc.deadline_us)
    allowed_s = (tcc.deadline_us - tcc.created_us) // MICROSECONDS
    return MoveTo(Status.ABORTING, reason=f"Timeout after {allowed_s} seconds")


def _call_last_open(
    tcc: GlobalTransaction, now_us: int, in_flight: Collection[int], *, offset: int, then: Status
) -> Decision:
    if in_flight:
        return Wait(None)
    for position in range(len(tcc.branches) - 2 + offset, -1, -2):
        op = tcc.branches[position]
        if op.status is OpStatus.SUCCEEDED:
            continue
        if op.refusals >= MOST_REFUSALS:
            return Wait(NEVER_US)
        return Call((position,)) if op.due_us <= now_us else Wait(op.due_us)
    return MoveTo(then, reason=tcc.rollback_reason)
