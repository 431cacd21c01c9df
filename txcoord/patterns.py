"""Which `decide` rules which pattern."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from txcoord.decision import Decision, MoveTo
from txcoord.model import GlobalTransaction, OpStatus, Pattern, Status
from txcoord.msg.decide import decide as decide_msg
from txcoord.msg.request import decided_forward
from txcoord.saga.decide import decide as decide_saga
from txcoord.tcc.decide import decide as decide_tcc

DECIDE: Mapping[Pattern, Callable[[GlobalTransaction, int, Collection[int]], Decision]] = {
    Pattern.SAGA: decide_saga,
    Pattern.TCC: decide_tcc,
    Pattern.MSG: decide_msg,
}


def moved(tx: GlobalTransaction, move: MoveTo, now_us: int) -> GlobalTransaction:
    """Return the transaction after a change of status."""
    if tx.pattern is Pattern.MSG and move.status is Status.SUBMITTED:
        return decided_forward(tx, now_us=now_us)
    branches = tx.branches
    if move.given_up:
        branches = tuple(
            branch.replace(status=OpStatus.FAILED, due_us=0, finished_us=now_us)
            if position in move.given_up
            else branch
            for position, branch in enumerate(branches)
        )
    if move.reached:
        branches = tuple(
            branch.replace(reached=True) if position in move.reached else branch
            for position, branch in enumerate(branches)
        )
    return tx.replace(
        status=move.status,
        branches=branches,
        rollback_reason=move.reason or tx.rollback_reason,
        updated_us=tx.updated_at(now_us),
        finished_us=now_us if move.status.is_final else None,
        due_us=None,
    )
