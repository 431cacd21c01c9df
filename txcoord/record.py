"""What one call changes in the record of its branch operation."""

from __future__ import annotations

from collections.abc import Container
from random import Random

from txcoord.model import MICROSECONDS, Attempt, BranchOp, Op, OpStatus, Outcome, Pattern
from txcoord.retry import RetryPolicy, error_delay_us, ongoing_delay_us

MAY_FAIL = frozenset({Op.ACTION, Op.TRY})
"""Ops that may answer "failure" for good. The others were promised to succeed in the end,
so a failure of theirs is an error like any other, and repeated."""

_MAY_FAIL_IN_MSG = frozenset({Op.MSG})
"""What a message does comes after the decision: only the question for it may be answered with failure."""

_NEARLY = 0.9
"""A call is timed by another clock than its record."""


def may_fail_in(pattern: Pattern) -> Container[Op]:
    """Which ops may fail for good in a transaction of this pattern."""
    return _MAY_FAIL_IN_MSG if pattern is Pattern.MSG else MAY_FAIL


def record_call(
    op: BranchOp,
    attempt: Attempt,
    *,
    now_us: int,
    policy: RetryPolicy,
    random: Random,
    attempts_kept: int,
    may_fail: Container[Op] = MAY_FAIL,
    max_attempts: int = 0,
) -> BranchOp:
    """Return the operation as it stands after `attempt`.

    Args:
        max_attempts: how many calls in vain it gets before it is given up, as failed; 0: no limit.
    """
    attempts = (*op.attempts, attempt)[-attempts_kept:]
    if op.held_off:
        op = op.replace(held_off="")
    if attempt.outcome is Outcome.SUCCESS:
        return op.replace(
            status=OpStatus.SUCCEEDED, failures=0, refusals=0, due_us=0, finished_us=now_us, attempts=attempts
        )
    if attempt.outcome is Outcome.FAILURE and op.op in may_fail:
        return op.replace(status=OpStatus.FAILED, failures=0, due_us=0, finished_us=now_us, attempts=attempts)
    if max_attempts:
        op = op.replace(in_vain=op.in_vain + 1)
        if op.in_vain >= max_attempts:
            return record_given_up(op.replace(attempts=attempts), now_us=now_us)
    if attempt.outcome is Outcome.ONGOING:
        return op.replace(failures=0, refusals=0, due_us=now_us + ongoing_delay_us(policy, random), attempts=attempts)
    failures = op.failures + 1
    refusals = op.refusals + 1 if attempt.outcome is Outcome.FAILURE else 0
    due_us = now_us + error_delay_us(policy, failures, random)
    return op.replace(failures=failures, refusals=refusals, due_us=due_us, attempts=attempts)


def record_resume(
    resume: BranchOp,
    attempt: Attempt,
    *,
    now_us: int,
    policy: RetryPolicy,
    random: Random,
    attempts_kept: int,
    timeout_s: float,
) -> BranchOp:
    """Return the request to go on with a workflow after `attempt`: it is never done, whatever was answered.

    The participant reports the end of a workflow before it answers. So an answer of success or failure that
    finds it unfinished says nothing that can be understood, and backs off like one.

    Args:
        timeout_s: how long the call was allowed to last. A participant that used it up may be at work still: to
            ask again before a whole interval is over would run the workflow twice at once.
    """
    attempts = (*resume.attempts, attempt)[-attempts_kept:]
    if resume.held_off:
        resume = resume.replace(held_off="")
    delay_us = ongoing_delay_us(policy, random)
    if attempt.outcome is Outcome.ONGOING:
        return resume.replace(failures=0, due_us=now_us + delay_us, attempts=attempts)
    failures = resume.failures + 1
    backoff_us = error_delay_us(policy, failures, random)
    is_at_work = not attempt.code and attempt.duration_us >= _NEARLY * timeout_s * MICROSECONDS
    return resume.replace(
        failures=failures, due_us=now_us + (max(backoff_us, delay_us) if is_at_work else backoff_us), attempts=attempts
    )


def record_success_without_call(op: BranchOp, *, now_us: int) -> BranchOp:
    """Return an operation that has no URL, done: there is nothing to call."""
    return op.replace(status=OpStatus.SUCCEEDED, finished_us=now_us)


def record_given_up(op: BranchOp, *, now_us: int) -> BranchOp:
    """Return an operation that is called no more, as failed; what it was called before stays on record."""
    return op.replace(status=OpStatus.FAILED, due_us=0, finished_us=now_us)


def record_held_off(op: BranchOp, *, until_us: int, why: str = "") -> BranchOp:
    """Return an operation whose endpoint is held off: put off, and no failure of its own."""
    return op.replace(due_us=until_us, held_off=why)
