"""When people are to be told that something makes no progress: the rule, and the contract of whoever tells them.

A call that ended without an answer we understand (or with "failure" where that is not possible) is repeated, and
mostly that is all. From the n-th such call of one operation in a row on, each is worth an alert; so is a
transaction that comes to need an operator. An alert is news, not a record: it may be lost, and never delays or
changes a transaction.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from txcoord.model import NEVER_US, Attempt, BranchOp, GlobalTransaction, Op, Outcome, Pattern
from txcoord.record import may_fail_in
from txcoord.request import without_credentials


class Alert(Struct, frozen=True, kw_only=True):
    """What is told; the names are DTM's."""

    gid: str
    status: str
    branch: str
    """The URL that was called, without credentials; empty where there is none."""
    error: str
    retry_count: int
    """How many calls in a row have failed."""


class Alerts(Protocol):
    """Tells people. Never raises, never waits."""

    def raised(self, alert: Alert) -> None: ...


class NoAlerts:
    """Tells nobody."""

    def raised(self, alert: Alert) -> None:
        """Forget it."""


def alert_of_call(tx: GlobalTransaction, before: BranchOp, attempt: Attempt, *, limit: int) -> Alert | None:
    """Say whether people are told of a call that has just ended.

    Args:
        before: the operation as it was when the call began.
        limit: how many calls in a row have to fail.
    """
    failures = before.failures + 1
    if failures < limit or not _is_in_vain(tx.pattern, before.op, attempt.outcome):
        return None
    return Alert(
        gid=tx.gid,
        status=tx.status.value,
        branch=without_credentials(before.url),
        error=_error_of(attempt),
        retry_count=failures,
    )


def alert_of_wait(tx: GlobalTransaction) -> Alert | None:
    """Say whether people are told that a transaction is put aside: where only they can go on with it.

    Not of a workflow without `query_prepared`: whoever runs it may well be at work.
    """
    what = what_needs_an_operator(tx)
    if what is None or tx.pattern is Pattern.WORKFLOW:
        return None
    refused = next((op for op in tx.branches if op.refusals), None)
    return Alert(
        gid=tx.gid,
        status=tx.status.value,
        branch=without_credentials(refused.url) if refused else "",
        error=f"needs an operator: {what}",
        retry_count=refused.failures if refused else 0,
    )


def what_needs_an_operator(tx: GlobalTransaction) -> str | None:
    """Say which operation was promised to succeed and refuses, or who is missing; None in the usual case."""
    if tx.due_us != NEVER_US:
        return None
    if tx.pattern is Pattern.MSG:
        return (
            f"{tx.gid} has no query_prepared, so that nobody can be asked whether it is to be delivered:"
            " submit it, or abort it"
        )
    if tx.pattern is Pattern.WORKFLOW:
        return f"{tx.gid} has no query_prepared, so that nobody can be asked to go on with it: run it again, or stop it"
    refused = [op for op in tx.branches if op.refusals]
    return "; ".join(
        f"{op.op} of branch {op.branch_id} answered failure {op.refusals} times: {op.attempts[-1].detail}"
        for op in refused
    )


def _is_in_vain(pattern: Pattern, op: Op, outcome: Outcome) -> bool:
    if op is Op.RESUME:
        # Its participant reports the end itself: no answer but "ongoing" fits a workflow that has not ended.
        return outcome is not Outcome.ONGOING
    return outcome is Outcome.UNKNOWN or (outcome is Outcome.FAILURE and op not in may_fail_in(pattern))


def _error_of(attempt: Attempt) -> str:
    return attempt.detail or f"it answered {attempt.outcome.value}"
