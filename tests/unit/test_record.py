from __future__ import annotations

from random import Random

import pytest

from tests.sagas import NOON_US, attempt
from txcoord.model import MICROSECONDS, BranchOp, Op, OpStatus, Outcome
from txcoord.record import record_call, record_held_off, record_success_without_call
from txcoord.retry import RetryPolicy

POLICY = RetryPolicy(ongoing_s=10.0, first_error_s=1.0, cap_s=300.0)
PREPARED, SUCCEEDED, FAILED = OpStatus.PREPARED, OpStatus.SUCCEEDED, OpStatus.FAILED


class NoJitter(Random):
    def random(self) -> float:
        return 0.0


def make_op(op: Op = Op.ACTION, *, failures: int = 0, due_us: int = 0, held_off: str = "") -> BranchOp:
    return BranchOp(branch_id="01", op=op, url="http://p/x", failures=failures, due_us=due_us, held_off=held_off)


def after(op: BranchOp, outcome: Outcome) -> BranchOp:
    return record_call(op, attempt(outcome), now_us=NOON_US, policy=POLICY, random=NoJitter(), attempts_kept=3)


def in_s(seconds: int) -> int:
    return NOON_US + seconds * MICROSECONDS


@pytest.mark.parametrize(
    ("op", "failures", "outcome", "status", "failures_after", "due_us"),
    [
        pytest.param(Op.ACTION, 3, Outcome.SUCCESS, SUCCEEDED, 0, 0, id="success"),
        pytest.param(Op.ACTION, 3, Outcome.FAILURE, FAILED, 0, 0, id="an action may fail"),
        pytest.param(Op.TRY, 0, Outcome.FAILURE, FAILED, 0, 0, id="a try may fail"),
        pytest.param(Op.COMPENSATE, 0, Outcome.FAILURE, PREPARED, 1, in_s(1), id="a compensation may not"),
        pytest.param(Op.CONFIRM, 0, Outcome.FAILURE, PREPARED, 1, in_s(1), id="a confirm may not"),
        pytest.param(Op.CANCEL, 0, Outcome.FAILURE, PREPARED, 1, in_s(1), id="a cancel may not"),
        pytest.param(Op.ACTION, 0, Outcome.UNKNOWN, PREPARED, 1, in_s(1), id="first error"),
        pytest.param(Op.ACTION, 2, Outcome.UNKNOWN, PREPARED, 3, in_s(4), id="third error in a row"),
        pytest.param(Op.ACTION, 2, Outcome.ONGOING, PREPARED, 0, in_s(10), id="ongoing: an answer, no error"),
        pytest.param(Op.COMPENSATE, 2, Outcome.ONGOING, PREPARED, 0, in_s(10), id="ongoing compensation"),
    ],
)
def test_what_a_call_changes(
    op: Op, failures: int, outcome: Outcome, status: OpStatus, failures_after: int, due_us: int
) -> None:
    changed = after(make_op(op, failures=failures, due_us=NOON_US - 1), outcome)

    assert (changed.status, changed.failures, changed.due_us) == (status, failures_after, due_us)
    assert changed.finished_us == (None if status is PREPARED else NOON_US)
    assert changed.attempts == (attempt(outcome),)


def test_only_the_latest_attempts_are_kept() -> None:
    op = make_op()
    for outcome in (Outcome.UNKNOWN, Outcome.ONGOING, Outcome.UNKNOWN, Outcome.FAILURE):
        op = after(op, outcome)

    assert [kept.outcome for kept in op.attempts] == [Outcome.ONGOING, Outcome.UNKNOWN, Outcome.FAILURE]


def test_an_operation_without_url_is_done_without_a_call() -> None:
    done = record_success_without_call(make_op(), now_us=NOON_US)

    assert (done.status, done.finished_us, done.attempts) == (SUCCEEDED, NOON_US, ())


def test_an_operation_held_off_is_put_off_and_has_not_failed() -> None:
    held = record_held_off(make_op(failures=2), until_us=in_s(5), why="http://h: not called")

    assert held == make_op(failures=2, due_us=in_s(5), held_off="http://h: not called")
    assert not after(held, Outcome.UNKNOWN).held_off
    assert not after(held, Outcome.SUCCESS).held_off
