"""Which `decide` rules which pattern."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from txcoord.decision import Decision, MoveTo
from txcoord.model import GlobalTransaction, Pattern
from txcoord.saga.decide import decide as decide_saga
from txcoord.tcc.decide import decide as decide_tcc

DECIDE: Mapping[Pattern, Callable[[GlobalTransaction, int, Collection[int]], Decision]] = {
    Pattern.SAGA: decide_saga,
    Pattern.TCC: decide_tcc,
}


def moved(tx: GlobalTransaction, move: MoveTo, now_us: int) -> GlobalTransaction:
    """Return the transaction after a change of status."""
    branches = tx.branches
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
