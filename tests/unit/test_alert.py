"""Which calls, and which waits, people are told of."""

from __future__ import annotations

import pytest

from tests.sagas import attempt, make_saga
from txcoord.alert import Alert, alert_of_call
from txcoord.model import BranchOp, GlobalTransaction, Op, Outcome, Pattern

SUCCESS, FAILURE, ONGOING, UNKNOWN = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ONGOING, Outcome.UNKNOWN


def told(
    op: Op,
    outcome: Outcome,
    *,
    pattern: Pattern = Pattern.SAGA,
    failures: int = 2,
    limit: int = 3,
    url: str = "http://p/x",
) -> Alert | None:
    saga: GlobalTransaction = make_saga(gid="g1").replace(pattern=pattern)
    before = BranchOp(branch_id="01", op=op, url=url, failures=failures)
    return alert_of_call(saga, before, attempt(outcome), limit=limit)


@pytest.mark.parametrize(
    ("pattern", "op", "outcomes"),
    [
        pytest.param(Pattern.SAGA, Op.ACTION, {UNKNOWN}, id="a saga's action may fail"),
        pytest.param(Pattern.SAGA, Op.COMPENSATE, {UNKNOWN, FAILURE}, id="a compensation may not"),
        pytest.param(Pattern.TCC, Op.CONFIRM, {UNKNOWN, FAILURE}, id="a confirm may not"),
        pytest.param(Pattern.XA, Op.ROLLBACK, {UNKNOWN, FAILURE}, id="a rollback may not"),
        pytest.param(Pattern.MSG, Op.ACTION, {UNKNOWN, FAILURE}, id="a message's action may not"),
        pytest.param(Pattern.MSG, Op.MSG, {UNKNOWN}, id="a check-back may say no"),
        pytest.param(Pattern.WORKFLOW, Op.RESUME, {UNKNOWN, FAILURE, SUCCESS}, id="a resume that ends nothing"),
    ],
)
def test_what_is_in_vain(pattern: Pattern, op: Op, outcomes: set[Outcome]) -> None:
    assert {outcome for outcome in Outcome if told(op, outcome, pattern=pattern)} == outcomes


@pytest.mark.parametrize(("failures", "limit", "count"), [(0, 3, None), (1, 3, None), (2, 3, 3), (9, 3, 10), (0, 1, 1)])
def test_from_the_nth_call_in_a_row_each_is_told(failures: int, limit: int, count: int | None) -> None:
    alert = told(Op.ACTION, UNKNOWN, failures=failures, limit=limit)

    assert (alert.retry_count if alert else None) == count


def test_what_is_told() -> None:
    assert told(Op.COMPENSATE, UNKNOWN) == Alert(
        gid="g1", status="submitted", branch="http://p/x", error="it answered unknown", retry_count=3
    )


def test_no_password_is_told() -> None:
    alert = told(Op.ACTION, UNKNOWN, url="http://user:secret@p/x?mail=a@b")

    assert alert is not None
    assert alert.branch == "http://p/x?mail=a@b"
