"""When a workflow's participant is asked to go on, and what becomes of the asking."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sagas import NOON_US
from tests.workflows import INTERVAL_S, make_workflow, step
from txcoord.decision import Call, Done, Wait
from txcoord.model import (
    MICROSECONDS,
    NEVER_US,
    Attempt,
    GlobalTransaction,
    OpStatus,
    Options,
    Outcome,
    Pattern,
    Status,
)
from txcoord.patterns import DECIDE, claimed, registered
from txcoord.record import record_held_off, record_resume
from txcoord.request import Limits
from txcoord.retry import RetryDefaults
from txcoord.workflow.decide import RESUME, decide

DUE_US = NOON_US + int(INTERVAL_S * MICROSECONDS)
TIMEOUT_S = 3.0


def report(workflow: GlobalTransaction, branch_id: str, now_us: int) -> GlobalTransaction:
    return registered(workflow, step(branch_id), Limits(), now_us=now_us, interval_s=INTERVAL_S)


def test_it_is_asked_to_go_on_when_nothing_came_for_the_interval() -> None:
    workflow = make_workflow()

    assert decide(workflow, NOON_US) == decide(workflow, DUE_US - 1) == Wait(DUE_US)
    assert decide(workflow, DUE_US) == decide(workflow, DUE_US + 10**12) == Call((RESUME,))
    assert DECIDE[workflow.pattern] is decide


def test_it_is_asked_once_at_a_time() -> None:
    assert decide(make_workflow(), DUE_US, (RESUME,)) == Wait(None)


def test_a_report_puts_it_off_and_forgets_what_was_in_vain() -> None:
    workflow = make_workflow()
    workflow = workflow.replace(branches=(workflow.branches[RESUME].replace(failures=5, due_us=NEVER_US),))

    workflow = report(workflow, "01", DUE_US)

    assert workflow.branches[RESUME].failures == 0
    assert decide(workflow, DUE_US) == Wait(DUE_US + int(INTERVAL_S * MICROSECONDS))


def test_its_own_interval_goes_before_the_servers() -> None:
    workflow = make_workflow(retry_interval=2)

    assert decide(workflow, NOON_US) == Wait(NOON_US + 2 * MICROSECONDS)
    assert decide(report(workflow, "01", DUE_US), DUE_US) == Wait(DUE_US + 2 * MICROSECONDS)


def test_a_timeout_is_nothing_to_it() -> None:
    workflow = make_workflow(timeout_to_fail=1)

    assert workflow.deadline_us is None
    assert decide(workflow, NOON_US + 2 * MICROSECONDS) == Wait(DUE_US)


def test_without_a_url_nobody_can_be_asked() -> None:
    assert decide(make_workflow(query_prepared=""), DUE_US + 10**12) == Wait(NEVER_US)


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_a_final_one_is_done(status: Status) -> None:
    assert decide(make_workflow().replace(status=status), DUE_US) == Done()
    assert decide(make_workflow().replace(status=status), DUE_US, (RESUME,)) == Done()


@pytest.mark.parametrize("status", [Status.SUBMITTED, Status.ABORTING])
def test_no_workflow_is_in_between(status: Status) -> None:
    with pytest.raises(AssertionError, match="which none can be"):
        decide(make_workflow().replace(status=status), DUE_US)


def test_a_claim_is_a_sign_of_life_of_a_workflow_and_of_nothing_else() -> None:
    workflow = make_workflow()
    tcc = workflow.replace(pattern=Pattern.TCC)

    taken = claimed(workflow, now_us=DUE_US, interval_s=INTERVAL_S)

    assert decide(taken, DUE_US) == Wait(DUE_US + int(INTERVAL_S * MICROSECONDS))
    assert taken.updated_us > workflow.updated_us
    assert claimed(tcc, now_us=DUE_US, interval_s=INTERVAL_S) is tcc


# -- the record of the asking --------------------------------------------------------------


def asked(
    workflow: GlobalTransaction, outcome: Outcome, *, code: int = 200, lasted_s: float = 0.001, now_us: int = DUE_US
) -> GlobalTransaction:
    """A workflow after one request to go on that left it unfinished."""
    attempt = Attempt(at_us=now_us, duration_us=int(lasted_s * MICROSECONDS), outcome=outcome, code=code)
    recorded = record_resume(
        workflow.branches[RESUME],
        attempt,
        now_us=now_us,
        policy=RetryDefaults(retry_interval_s=INTERVAL_S, error_backoff_s=1.0, backoff_cap_s=60.0).policy(Options()),
        random=Random(0),
        attempts_kept=3,
        timeout_s=TIMEOUT_S,
    )
    return workflow.replace(branches=(recorded, *workflow.branches[1:]))


def delay_s(workflow: GlobalTransaction, now_us: int = DUE_US) -> float:
    return (workflow.branches[RESUME].due_us - now_us) / MICROSECONDS


@pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.FAILURE, Outcome.UNKNOWN])
def test_an_answer_that_left_it_unfinished_backs_off(outcome: Outcome) -> None:
    workflow, delays = make_workflow(), []
    for _ in range(10):
        workflow = asked(workflow, outcome, code=200)
        delays.append(delay_s(workflow))

    assert workflow.branches[RESUME].status is OpStatus.PREPARED, "it is never done"
    for failures, waited_s in enumerate(delays):
        longest_s = min(2.0**failures, 60.0)
        assert 0.75 * longest_s <= waited_s <= longest_s
    assert len(workflow.branches[RESUME].attempts) == 3


def test_ongoing_is_asked_again_after_the_interval() -> None:
    workflow = asked(asked(make_workflow(), Outcome.UNKNOWN, code=500), Outcome.ONGOING, code=425)

    assert workflow.branches[RESUME].failures == 0
    assert 0.75 * INTERVAL_S <= delay_s(workflow) <= INTERVAL_S


def test_one_that_used_up_its_time_may_be_at_work_and_is_left_alone_for_an_interval() -> None:
    silent = asked(make_workflow(), Outcome.UNKNOWN, code=0, lasted_s=TIMEOUT_S - 0.01)
    refused = asked(make_workflow(), Outcome.UNKNOWN, code=0, lasted_s=0.001)

    assert 0.75 * INTERVAL_S <= delay_s(silent) <= INTERVAL_S
    assert delay_s(refused) <= 1.0, "nobody is there: it may be back soon"


_events = st.lists(st.sampled_from([*Outcome, "held off", "report", "a second"]), max_size=30)


@given(_events)
def test_an_unfinished_one_is_always_asked_again_within_the_longest_delay(events: list[str]) -> None:
    workflow, now_us = make_workflow(), NOON_US
    for number, event in enumerate(events):
        match event:
            case "report":
                workflow = report(workflow, f"{number:02d}", now_us)
            case "a second":
                now_us += MICROSECONDS
            case "held off":
                held = record_held_off(workflow.branches[RESUME], until_us=now_us + 7 * MICROSECONDS)
                workflow = workflow.replace(branches=(held, *workflow.branches[1:]))
            case outcome:
                workflow = asked(workflow, Outcome(outcome), now_us=now_us)
        match decide(workflow, now_us):
            case Wait(until_us):
                assert until_us is not None
                assert now_us < until_us <= now_us + 60 * MICROSECONDS
            case decision:
                assert decision == Call((RESUME,))
    results = [op for op in workflow.branches if op.op is not workflow.branches[RESUME].op]
    assert [op.payload for op in results] == [f"result of {op.branch_id}".encode() for op in results]
