from __future__ import annotations

import re

import pytest

from txcoord import metrics
from txcoord.model import Op, Outcome, Pattern, Status


def value(line_start: str) -> float:
    """The value of the one sample whose line starts like this."""
    [line] = [line for line in metrics.exposition().decode().splitlines() if line.startswith(line_start + " ")]
    return float(line.rsplit(" ", 1)[1])


def test_a_branch_call_is_counted_under_dtms_name_and_by_outcome() -> None:
    failed = 'dtm_branch_process_total{branchtype="action",model="saga",status="fail"}'
    ongoing = 'txcoord_branch_calls_total{outcome="ongoing"}'
    before = value(failed), value(ongoing)

    metrics.branch_called(Pattern.SAGA, Op.ACTION, Outcome.ONGOING)

    assert (value(failed), value(ongoing)) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(
    ("pattern", "op"),
    [
        (Pattern.SAGA, Op.ACTION),
        (Pattern.SAGA, Op.COMPENSATE),
        (Pattern.TCC, Op.CONFIRM),
        (Pattern.TCC, Op.CANCEL),
        (Pattern.XA, Op.COMMIT),
        (Pattern.XA, Op.ROLLBACK),
        (Pattern.MSG, Op.ACTION),
        (Pattern.MSG, Op.MSG),
        (Pattern.WORKFLOW, Op.RESUME),
    ],
)
def test_whatever_the_coordinator_calls_is_counted(pattern: Pattern, op: Op) -> None:
    for outcome in Outcome:
        metrics.branch_called(pattern, op, outcome)

    assert value(f'dtm_branch_process_total{{branchtype="{op}",model="{pattern}",status="ok"}}') >= 1


def test_an_ended_transaction_is_counted_with_its_duration() -> None:
    succeeded = 'dtm_transaction_process_total{model="saga",status="ok"}'
    seconds = 'dtm_transaction_handled_duration_sum{model="saga"}'
    before = value(succeeded), value(seconds)

    metrics.transaction_ended(Pattern.SAGA, Status.SUCCEEDED, 0.5)

    assert (value(succeeded), value(seconds)) == (before[0] + 1, before[1] + 0.5)


def test_an_answer_of_400_or_more_is_a_failure() -> None:
    api = metrics.ApiMetrics("test")
    api.answered(200, 0.01)
    api.answered(425, 0.01)

    assert value('dtm_server_process_total{api="test",status="ok",type="http"}') == 1
    assert value('dtm_server_process_total{api="test",status="fail",type="http"}') == 1


def test_the_names_that_dashboards_know_are_there() -> None:
    names = set(re.findall(r"^# TYPE (\S+)", metrics.exposition().decode(), re.MULTILINE))

    assert names >= {
        "dtm_server_info",
        "dtm_server_process_total",
        "dtm_server_response_duration",
        "dtm_transaction_process_total",
        "dtm_transaction_handled_duration",
        "dtm_branch_process_total",
        "txcoord_journal_batches_total",
        "txcoord_journal_changes_total",
        "txcoord_live_transactions",
        "txcoord_takeovers_total",
        "txcoord_lease_lost_total",
    }
