"""The rules of a saga, case by case. Branches are written as in `tests.sagas`: compensation, action, ..."""

from __future__ import annotations

from random import Random

import pytest

from tests.sagas import NOON_US, attempt, make_saga, rows, url_of
from txcoord.decision import Call, Decision, Done, MoveTo, Wait
from txcoord.model import GlobalTransaction, Op, Options, Outcome, Status
from txcoord.patterns import DECIDE, moved
from txcoord.record import record_call
from txcoord.request import REASON_LENGTH
from txcoord.retry import RetryDefaults
from txcoord.saga.decide import action_of, compensation_of, decide, failure_reason

SECOND_US = 1_000_000
LATER_US = NOON_US + SECOND_US

C1, A1, C2, A2, C3, A3 = range(6)


def going_back(letters: str, *, reached: tuple[int, ...], **more: object) -> GlobalTransaction:
    return make_saga(letters, status=Status.ABORTING, reached=reached, rollback_reason="no stock", **more)  # type: ignore[arg-type]


def turn(*reached_steps: int, reason: str) -> MoveTo:
    return MoveTo(Status.ABORTING, reason=reason, reached=frozenset(action_of(step) for step in reached_steps))


FAILED_1 = "url:http://p0/action return failed:  FAILURE"
FAILED_2 = "url:http://p1/action return failed:  FAILURE"
TIMED_OUT = "Timeout after 2 seconds"
TWO_SECONDS = Options(timeout_to_fail_s=2)
OVER = {"deadline_us": NOON_US, "options": TWO_SECONDS}


@pytest.mark.parametrize(
    ("saga", "in_flight", "expected"),
    [
        pytest.param(make_saga(""), (), MoveTo(Status.SUCCEEDED), id="no steps: done at once"),
        pytest.param(make_saga("PPPP"), (), Call((A1,)), id="the first action first"),
        pytest.param(make_saga("PPPP"), (A1,), Wait(None), id="one at a time"),
        pytest.param(make_saga("PSPP"), (), Call((A2,)), id="the next once its predecessor succeeded"),
        pytest.param(make_saga("PSPS"), (), MoveTo(Status.SUCCEEDED), id="all succeeded"),
        pytest.param(make_saga("PPPP", due_us={A1: LATER_US}), (), Wait(LATER_US), id="not before it is due"),
        pytest.param(make_saga("PPPP", due_us={A1: NOON_US}), (), Call((A1,)), id="at the instant it is due"),
        pytest.param(make_saga("PPPP", concurrent=True), (), Call((A1, A2)), id="concurrent: all at once"),
        pytest.param(make_saga("PPPP", concurrent=True), (A2,), Call((A1,)), id="concurrent: not the one under way"),
        pytest.param(
            make_saga("PPPP", concurrent=True, due_us={A1: LATER_US}),
            (A2,),
            Wait(LATER_US),
            id="concurrent: one under way, the other not due",
        ),
        pytest.param(
            make_saga("PPPPPP", concurrent=True, due_us={A1: LATER_US, A3: LATER_US + 5}),
            (A2,),
            Wait(LATER_US),
            id="concurrent: waits for the earliest",
        ),
        pytest.param(
            make_saga("PPPPPP", concurrent=True, orders={2: (0, 1)}),
            (),
            Call((A1, A2), needs_record=True),
            id="orders: predecessors first",
        ),
        pytest.param(
            make_saga("PSPPPP", concurrent=True, orders={2: (0, 1)}), (A2,), Wait(None), id="orders: both needed"
        ),
        pytest.param(
            make_saga("PSPSPP", concurrent=True, orders={2: (0, 1)}),
            (),
            Call((A3,), needs_record=True),
            id="orders: both there",
        ),
        pytest.param(make_saga("PPPP", orders={1: (0,)}), (), Call((A1,)), id="orders that repeat the sequence"),
        pytest.param(make_saga("PPPP", deadline_us=LATER_US), (A1,), Wait(LATER_US), id="looks up at the deadline"),
        pytest.param(
            make_saga("PPPP", deadline_us=LATER_US, due_us={A1: LATER_US + 1}),
            (),
            Wait(LATER_US),
            id="the deadline before the retry",
        ),
        pytest.param(
            make_saga("PPPP", deadline_us=LATER_US, due_us={A1: LATER_US - 1}),
            (),
            Wait(LATER_US - 1),
            id="the retry before the deadline",
        ),
        pytest.param(
            make_saga("PPPP", deadline_us=NOON_US + 1),
            (),
            Call((A1,), needs_record=True),
            id="just before the deadline",
        ),
    ],
)
def test_forward(saga: GlobalTransaction, in_flight: tuple[int, ...], expected: Decision) -> None:
    assert decide(saga, NOON_US, in_flight) == expected


@pytest.mark.parametrize(
    ("saga", "in_flight", "expected"),
    [
        pytest.param(make_saga("PFPP"), (), turn(0, reason=FAILED_1), id="first action failed: nothing after it"),
        pytest.param(make_saga("PSPF"), (), turn(0, 1, reason=FAILED_2), id="the one that failed is reached too"),
        pytest.param(
            make_saga("PPPP", **OVER), (), turn(0, reason=TIMED_OUT), id="deadline: the next may have been under way"
        ),
        pytest.param(make_saga("PPPP", **OVER), (A1,), turn(0, reason=TIMED_OUT), id="deadline with a call under way"),
        pytest.param(make_saga("PSPP", **OVER), (), turn(0, 1, reason=TIMED_OUT), id="deadline after the first step"),
        pytest.param(make_saga("PSPS", **OVER), (), MoveTo(Status.SUCCEEDED), id="deadline too late: all succeeded"),
        pytest.param(
            make_saga("PPPPPP", concurrent=True, **OVER),
            (),
            turn(0, 1, 2, reason=TIMED_OUT),
            id="concurrent, deadline: every step",
        ),
        pytest.param(
            make_saga("PPPPPP", concurrent=True, orders={2: (0, 1)}, **OVER),
            (),
            turn(0, 1, reason=TIMED_OUT),
            id="concurrent with orders, deadline: not what could not run",
        ),
        pytest.param(
            make_saga("PFPP", concurrent=True), (A2,), turn(0, 1, reason=FAILED_1), id="concurrent: a sibling under way"
        ),
        pytest.param(
            make_saga("PFPP", concurrent=True, orders={1: (0,)}),
            (),
            turn(0, reason=FAILED_1),
            id="orders: not its successor",
        ),
        pytest.param(
            make_saga("PFPP", concurrent=True, **OVER),
            (),
            turn(0, 1, reason=FAILED_1),
            id="a failure tells more than the time",
        ),
        pytest.param(
            make_saga("PSPP", failures={A2: 2}, options=Options(retry_limit=1)),
            (),
            turn(0, 1, reason="RetryCount is greater than RetryLimit, RetryLimit: 1"),
            id="retry limit used up",
        ),
        pytest.param(
            make_saga("PSPP", failures={A2: 1}, options=Options(retry_limit=1)),
            (),
            Call((A2,), needs_record=True),
            id="retry limit: n failures leave one more call",
        ),
        pytest.param(make_saga("PPPP", failures={A1: 1000}), (), Call((A1,)), id="no retry limit: for ever"),
        pytest.param(
            make_saga("PPPP", concurrent=True, failures={A1: 1, A2: 1}, options=Options(retry_limit=1)),
            (),
            Call((A1, A2)),
            id="each action has a retry limit of its own",
        ),
    ],
)
def test_turning_round(saga: GlobalTransaction, in_flight: tuple[int, ...], expected: Decision) -> None:
    assert decide(saga, NOON_US, in_flight) == expected


@pytest.mark.parametrize(
    ("saga", "in_flight", "expected"),
    [
        pytest.param(going_back("PSPF", reached=(0, 1)), (), Call((C2,)), id="last step first"),
        pytest.param(going_back("PSPF", reached=(0, 1)), (C2,), Wait(None), id="one at a time"),
        pytest.param(going_back("PSSF", reached=(0, 1)), (), Call((C1,)), id="then the one before"),
        pytest.param(going_back("SSSF", reached=(0, 1)), (), MoveTo(Status.FAILED), id="all compensated"),
        pytest.param(going_back("PFPP", reached=(0,)), (), Call((C1,)), id="not what was never reached"),
        pytest.param(
            going_back("PPPP", reached=()),
            (),
            MoveTo(Status.FAILED),
            id="nothing reached: failed at once",
        ),
        pytest.param(
            going_back("PSPP", reached=(0, 1)), (A2,), Wait(None), id="not before the action under way has ended"
        ),
        pytest.param(
            going_back("PSPF", reached=(0, 1), due_us={C2: LATER_US}),
            (),
            Wait(LATER_US),
            id="a retry waits for its time",
        ),
        pytest.param(
            going_back("PSPF", reached=(0, 1), failures={C2: 99}, options=Options(retry_limit=1)),
            (),
            Call((C2,)),
            id="compensations have no retry limit",
        ),
        pytest.param(going_back("PSPF", reached=(0, 1), **OVER), (), Call((C2,)), id="compensations have no deadline"),
        pytest.param(
            going_back("PSPFPP", reached=(0, 1, 2), concurrent=True),
            (),
            Call((C1, C2, C3)),
            id="concurrent: all at once",
        ),
        pytest.param(
            going_back("PSPFPP", reached=(0, 1, 2), concurrent=True),
            (C1, A3),
            Wait(None),
            id="concurrent: any action under way holds all back",
        ),
        pytest.param(
            going_back("PSPSPF", reached=(0, 1, 2), concurrent=True, orders={2: (0,)}),
            (),
            Call((C2, C3)),
            id="orders reversed: dependents before predecessors",
        ),
        pytest.param(
            going_back("PSPSSF", reached=(0, 1, 2), concurrent=True, orders={2: (0,)}),
            (C2,),
            Call((C1,)),
            id="orders reversed: the dependent is compensated",
        ),
        pytest.param(
            going_back("PSPS", reached=(0,)),
            (),
            Call((C1,)),
            id="a success that came after the turn reaches no further",
        ),
    ],
)
def test_backward(saga: GlobalTransaction, in_flight: tuple[int, ...], expected: Decision) -> None:
    assert decide(saga, NOON_US, in_flight) == expected


@pytest.mark.parametrize(
    ("saga", "needs_record"),
    [
        pytest.param(make_saga("PSPP"), False, id="only the action itself can turn it"),
        pytest.param(make_saga("PSPP", deadline_us=LATER_US), True, id="the deadline can"),
        pytest.param(make_saga("PSPP", options=Options(retry_limit=1)), True, id="another action's retries can"),
        pytest.param(make_saga("PSPP", concurrent=True, orders={1: (0,)}), True, id="a sibling can"),
        pytest.param(
            make_saga("PSPP", concurrent=True, deadline_us=LATER_US), False, id="every step is reached anyway"
        ),
    ],
)
def test_successes_are_on_record_before_what_builds_on_them_where_a_loss_would_hide_it(
    saga: GlobalTransaction, needs_record: bool
) -> None:
    assert decide(saga, NOON_US) == Call((A2,), needs_record=needs_record)


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_a_final_saga_is_done(status: Status) -> None:
    assert decide(make_saga("PPPP", status=status), NOON_US) == Done()


def test_a_prepared_saga_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="g1 is prepared"):
        decide(make_saga("PPPP", status=Status.PREPARED), NOON_US)


def test_the_pattern_is_ruled_by_this_function() -> None:
    saga = make_saga("PPPP")

    assert DECIDE[saga.pattern] is decide


# -- whole ways through ------------------------------------------------------------------


def run(saga: GlobalTransaction, outcomes: dict[int, Outcome], *, now_us: int = NOON_US) -> GlobalTransaction:
    """Answer every call as told (success if not) until the saga is final; nothing else stays under way."""
    while True:
        match decide(saga, now_us):
            case Call(ops):
                branches = list(saga.branches)
                for position in ops:
                    branches[position] = record_call(
                        branches[position],
                        attempt(outcomes.get(position, Outcome.SUCCESS)),
                        now_us=now_us,
                        policy=RetryDefaults().policy(saga.options),
                        random=Random(0),
                        attempts_kept=5,
                    )
                saga = saga.replace(branches=tuple(branches))
            case MoveTo() as move:
                saga = moved(saga, move, now_us)
            case Wait(until_us):
                assert until_us is not None
                now_us = until_us
            case Done():
                return saga


@pytest.mark.parametrize(
    ("saga", "outcomes", "expected_rows", "expected_reason"),
    [
        pytest.param(make_saga(), {}, "PSPS", "", id="TestSagaNormal"),
        pytest.param(make_saga(concurrent=True), {}, "PSPS", "", id="TestSagaConNormal"),
        pytest.param(make_saga(), {A2: Outcome.FAILURE}, "SSSF", FAILED_2, id="TestSagaRollback"),
        pytest.param(
            make_saga(concurrent=True, orders={1: (0,)}),
            {A1: Outcome.FAILURE},
            "SFPP",
            FAILED_1,
            id="TestSagaConRollbackOrder",
        ),
        pytest.param(
            make_saga(concurrent=True, orders={1: (0,)}),
            {A2: Outcome.FAILURE},
            "SSSF",
            FAILED_2,
            id="TestSagaConRollbackOrder2",
        ),
        pytest.param(
            make_saga(options=Options(timeout_to_fail_s=1800), deadline_us=NOON_US + 1800 * SECOND_US),
            {A1: Outcome.ONGOING},
            "SPPP",
            "Timeout after 1800 seconds",
            id="TestSagaOptionsTimeout",
        ),
        pytest.param(
            make_saga(options=Options(retry_limit=1)),
            {A2: Outcome.UNKNOWN},
            "SSSP",
            "RetryCount is greater than RetryLimit, RetryLimit: 1",
            id="TestSagaGlobalTransWithRetryLimitNo",
        ),
        pytest.param(
            make_saga("PPPPPP"), {A2: Outcome.FAILURE}, "SSSFPP", FAILED_2, id="three steps, the second fails"
        ),
    ],
)
def test_rows_at_the_end_are_dtms(
    saga: GlobalTransaction, outcomes: dict[int, Outcome], expected_rows: str, expected_reason: str
) -> None:
    ended = run(saga, outcomes)

    assert (rows(ended), ended.rollback_reason) == (expected_rows, expected_reason)
    assert ended.status is (Status.FAILED if expected_reason else Status.SUCCEEDED)


# -- reasons -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param("no balance", "no balance FAILURE", id="DTM's own example"),
        pytest.param("", " FAILURE", id="no text"),
        pytest.param("no balance FAILURE", "no balance FAILURE", id="the word stands once"),
        pytest.param('{"dtm_result":"FAILURE"}', '{"dtm_result":"FAILURE"} FAILURE', id="the word within"),
    ],
)
def test_a_failure_is_put_into_words_as_dtm_does(answer: str, expected: str) -> None:
    action = make_saga("PF").branches[A1].replace(attempts=(attempt(Outcome.FAILURE, detail=answer),))

    assert failure_reason(action) == f"url:{url_of(0, Op.ACTION)} return failed: {expected}"


def test_only_the_answer_that_failed_is_quoted() -> None:
    action = make_saga("PF").branches[A1].replace(attempts=(attempt(Outcome.UNKNOWN, detail="down"),))

    assert failure_reason(action) == FAILED_1


def test_a_long_answer_is_cut_and_the_word_stays_at_the_end() -> None:
    action = make_saga("PF").branches[A1].replace(attempts=(attempt(Outcome.FAILURE, detail="x" * 5000),))

    reason = failure_reason(action)

    assert len(reason) == REASON_LENGTH
    assert reason.endswith("xxx FAILURE")


def test_a_long_url_leaves_the_word_at_the_end_too() -> None:
    action = (
        make_saga("PF")
        .branches[A1]
        .replace(url="http://h/" + "u" * 1015, attempts=(attempt(Outcome.FAILURE, detail="x" * 50),))
    )

    decision = decide(make_saga("PF").replace(branches=(make_saga("PF").branches[C1], action)), NOON_US)

    assert isinstance(decision, MoveTo)
    assert len(decision.reason) <= REASON_LENGTH
    assert decision.reason.endswith(" FAILURE")


# -- what a change of status changes ------------------------------------------------------


def test_a_turn_marks_what_was_reached_and_keeps_the_rest() -> None:
    saga = make_saga("PSPPPP").replace(due_us=NOON_US)

    back = moved(saga, turn(0, 1, reason="why"), LATER_US)

    assert [op.reached for op in back.branches] == [False, True, False, True, False, False]
    assert (back.status, back.rollback_reason, back.updated_us) == (Status.ABORTING, "why", LATER_US)
    assert (back.finished_us, back.due_us) == (None, None)
    assert rows(back) == "PSPPPP"


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_a_final_status_has_its_time(status: Status) -> None:
    ended = moved(make_saga("PSPS", rollback_reason="why"), MoveTo(status), LATER_US)

    assert (ended.status, ended.finished_us, ended.rollback_reason) == (status, LATER_US, "why")


def test_positions_are_those_of_dtms_rows() -> None:
    saga = make_saga("PPPPPP")

    for step in range(3):
        assert saga.branches[compensation_of(step)].op is Op.COMPENSATE
        assert saga.branches[action_of(step)].op is Op.ACTION
        assert saga.branches[action_of(step)].url == url_of(step, Op.ACTION)


def test_a_reason_which_is_logged_and_shown_holds_no_password() -> None:
    action = make_saga("PF").branches[A1].replace(url="http://user:s@cret@p0/action")

    assert failure_reason(action) == "url:http://p0/action return failed:  FAILURE"
