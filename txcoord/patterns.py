"""Which rules hold for which pattern: `decide`, and what a request does to a transaction that is prepared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from txcoord.decision import Decision, MoveTo
from txcoord.errors import InvalidRequestError, StatusConflictError
from txcoord.model import GlobalTransaction, Pattern, Status
from txcoord.msg.decide import decide as decide_msg
from txcoord.msg.request import aborted as aborted_msg
from txcoord.msg.request import decided_forward
from txcoord.request import BranchRegistration, Limits
from txcoord.saga.decide import decide as decide_saga
from txcoord.tcc.decide import decide as decide_tcc
from txcoord.tcc.request import registered as registered_tcc
from txcoord.two_phase.request import aborted as aborted_two_phase
from txcoord.workflow.decide import decide as decide_workflow
from txcoord.workflow.request import alive
from txcoord.workflow.request import registered as registered_workflow
from txcoord.xa.decide import decide as decide_xa
from txcoord.xa.request import registered as registered_xa

DECIDE: Mapping[Pattern, Callable[[GlobalTransaction, int, Collection[int]], Decision]] = {
    Pattern.SAGA: decide_saga,
    Pattern.TCC: decide_tcc,
    Pattern.XA: decide_xa,
    Pattern.MSG: decide_msg,
    Pattern.WORKFLOW: decide_workflow,
}


def registered(
    tx: GlobalTransaction, branch: BranchRegistration, limits: Limits, *, now_us: int, interval_s: float
) -> GlobalTransaction:
    """Return it with one more branch, or the same if it has that branch; raises what the caller is told.

    Args:
        interval_s: the server's retry interval.
    """
    match tx.pattern:
        case Pattern.TCC:
            return registered_tcc(tx, branch, limits, now_us=now_us)
        case Pattern.XA:
            return registered_xa(tx, branch, limits, now_us=now_us)
        case Pattern.WORKFLOW:
            return registered_workflow(tx, branch, limits, now_us=now_us, interval_s=interval_s)
        case Pattern.SAGA | Pattern.MSG:
            raise InvalidRequestError(f"a {tx.pattern} has no branches to register: send it whole to submit")


def claimed(tx: GlobalTransaction, *, now_us: int, interval_s: float) -> GlobalTransaction:
    """Return a prepared transaction as it is when a request has brought it to another coordinator.

    Whoever asks for something about a workflow runs it, perhaps called by the coordinator that had it: to ask to
    go on with it at once would run it twice.
    """
    return alive(tx, now_us=now_us, interval_s=interval_s) if tx.pattern is Pattern.WORKFLOW else tx


def aborted(tx: GlobalTransaction, reason: str, *, now_us: int) -> GlobalTransaction:
    """Return it decided back, or the same if it is; raises `StatusConflictError` if it cannot be aborted.

    A saga turns round by itself, and only its participant ends a workflow.
    """
    match tx.pattern:
        case Pattern.TCC | Pattern.XA:
            return aborted_two_phase(tx, reason, now_us=now_us)
        case Pattern.MSG:
            return aborted_msg(tx, reason, now_us=now_us)
        case Pattern.SAGA | Pattern.WORKFLOW:
            raise StatusConflictError(tx.gid, status=tx.status, wanted="abort", pattern=tx.pattern)


def moved(tx: GlobalTransaction, move: MoveTo, now_us: int) -> GlobalTransaction:
    """Return the transaction after a change of status."""
    if tx.pattern is Pattern.MSG and move.status is Status.SUBMITTED:
        return decided_forward(tx, now_us=now_us)
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
