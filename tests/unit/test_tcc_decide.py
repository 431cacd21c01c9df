"""The rules of TCC, case by case, and what holds whatever happens. Branches as in `tests.tccs`: cancel, confirm, ..."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sagas import NOON_US, attempt, rows
from tests.tccs import TIMEOUT_S, make_tcc
from txcoord.decision import Call, Decision, Done, MoveTo, Wait
from txcoord.model import MICROSECONDS, NEVER_US, GlobalTransaction, Op, OpStatus, Options, Outcome, Status
from txcoord.patterns import DECIDE, moved
from txcoord.record import record_call, record_held_off, record_success_without_call
from txcoord.retry import RetryDefaults
from txcoord.tcc.decide import decide
from txcoord.two_phase.decide import MOST_REFUSALS

LATER_US = NOON_US + MICROSECONDS
DEADLINE_US = NOON_US + TIMEOUT_S * MICROSECONDS

X1, C1, X2, C2, X3, C3 = range(6)
"""Cancels and confirms by their positions."""


def going_back(letters: str = "PPPP", **more: object) -> GlobalTransaction:
    return make_tcc(letters, status=Status.ABORTING, rollback_reason="no stock", **more)  # type: ignore[arg-type]


def prepared(letters: str = "PPPP", **more: object) -> GlobalTransaction:
    return make_tcc(letters, status=Status.PREPARED, **more)  # type: ignore[arg-type]


CONFIRMED = MoveTo(Status.SUCCEEDED)
CANCELLED = MoveTo(Status.FAILED)


@pytest.mark.parametrize(
    ("tcc", "in_flight", "expected"),
    [
        pytest.param(make_tcc(""), (), CONFIRMED, id="no branches: done at once"),
        pytest.param(make_tcc("PPPPPP"), (), Call((C3,)), id="the one registered last first"),
        pytest.param(make_tcc("PPPPPP"), (C3,), Wait(None), id="one at a time"),
        pytest.param(make_tcc("PPPPPS"), (), Call((C2,)), id="then the one before it"),
        pytest.param(make_tcc("PPPSPS"), (), Call((C1,)), id="then the first"),
        pytest.param(make_tcc("PSPSPS"), (), CONFIRMED, id="all confirmed"),
        pytest.param(make_tcc("PPPP", due_us={C2: LATER_US}), (), Wait(LATER_US), id="not before it is due"),
        pytest.param(make_tcc("PPPP", due_us={C2: NOON_US}), (), Call((C2,)), id="at the instant it is due"),
        pytest.param(
            make_tcc("PPPP", due_us={C1: LATER_US}), (), Call((C2,)), id="another one's delay is nothing to it"
        ),
        pytest.param(make_tcc("PPPP", due_us={X2: LATER_US}), (), Call((C2,)), id="nor its cancel's"),
        pytest.param(make_tcc("PPPP", deadline_us=NOON_US - 1), (), Call((C2,)), id="no deadline once submitted"),
        pytest.param(make_tcc("PPPP", without_url=[C2]), (), Call((C2,)), id="without a URL in its turn too"),
        pytest.param(make_tcc("PPPP", refusals={C2: MOST_REFUSALS - 1}), (), Call((C2,)), id="may be called once more"),
        pytest.param(make_tcc("PPPP", refusals={C2: MOST_REFUSALS}), (), Wait(NEVER_US), id="needs an operator"),
        pytest.param(
            make_tcc("PPPP", refusals={C2: MOST_REFUSALS}, due_us={C2: LATER_US}),
            (),
            Wait(NEVER_US),
            id="whatever its delay",
        ),
        pytest.param(make_tcc("PPPP", refusals={X2: MOST_REFUSALS}), (), Call((C2,)), id="not for what its cancel did"),
        pytest.param(
            make_tcc("PPPS", refusals={C2: MOST_REFUSALS}), (), Call((C1,)), id="not for one that succeeded in the end"
        ),
    ],
)
def test_submitted(tcc: GlobalTransaction, in_flight: tuple[int, ...], expected: Decision) -> None:
    assert decide(tcc, NOON_US, in_flight) == expected


@pytest.mark.parametrize(
    ("tcc", "in_flight", "expected"),
    [
        pytest.param(going_back(""), (), CANCELLED, id="no branches: done at once"),
        pytest.param(going_back("PPPPPP"), (), Call((X3,)), id="the one registered last first"),
        pytest.param(going_back("PPPPPP"), (X3,), Wait(None), id="one at a time"),
        pytest.param(going_back("PPPPSP"), (), Call((X2,)), id="then the one before it"),
        pytest.param(going_back("SPSPSP"), (), CANCELLED, id="all cancelled"),
        pytest.param(going_back(due_us={X2: LATER_US}), (), Wait(LATER_US), id="not before it is due"),
        pytest.param(going_back(deadline_us=NOON_US - 1), (), Call((X2,)), id="the deadline has done its work"),
        pytest.param(going_back(refusals={X2: MOST_REFUSALS}), (), Wait(NEVER_US), id="needs an operator"),
        pytest.param(going_back(refusals={C2: MOST_REFUSALS}), (), Call((X2,)), id="not for what its confirm did"),
    ],
)
def test_aborting(tcc: GlobalTransaction, in_flight: tuple[int, ...], expected: Decision) -> None:
    assert decide(tcc, NOON_US, in_flight) == expected


@pytest.mark.parametrize("letters", ["", "PP", "PPPP"])
@pytest.mark.parametrize("timeout_s", [1, TIMEOUT_S])
def test_prepared_waits_for_its_deadline_to_the_microsecond(letters: str, timeout_s: int) -> None:
    deadline_us = NOON_US + timeout_s * MICROSECONDS
    tcc = prepared(letters, deadline_us=deadline_us)

    timed_out = MoveTo(Status.ABORTING, reason=f"Timeout after {timeout_s} seconds")
    assert decide(tcc, NOON_US) == decide(tcc, deadline_us - 1) == Wait(deadline_us)
    assert decide(tcc, deadline_us) == decide(tcc, deadline_us + 10**12) == timed_out


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_a_final_one_is_done(status: Status) -> None:
    assert decide(make_tcc("PPPP", status=status), DEADLINE_US) == Done()


def test_the_reason_of_an_abort_stays() -> None:
    assert moved(going_back("SP"), CANCELLED, LATER_US).rollback_reason == "no stock"


# -- whatever happens ----------------------------------------------------------------------


@dataclass
class World:
    """Does to a transaction what an engine and its callers would, and knows the rules as statements of its own."""

    data: st.DataObject
    tcc: GlobalTransaction
    now_us: int = NOON_US
    in_flight: int | None = None
    fate_left: int = 40
    """So often the world may do what it likes; from then on calls succeed and coordinators live."""
    called: list[int] = field(default_factory=list)
    decided: Status | None = None
    random: Random = field(default_factory=lambda: Random(0))

    def __post_init__(self) -> None:
        self.stored = self.tcc

    def fate(self, below: int) -> int:
        if self.fate_left <= 0:
            return 0
        self.fate_left -= 1
        return self.data.draw(st.integers(0, below - 1))

    def run(self) -> GlobalTransaction:
        for _ in range(1000):
            decision = decide(self.tcc, self.now_us, () if self.in_flight is None else (self.in_flight,))
            match decision:
                case Call((position,)):
                    self.begin(position)
                case MoveTo() as move:
                    self.check_move(move)
                    self.tcc = self.stored = moved(self.tcc, move, self.now_us)
                case Wait(until_us):
                    self.wait(until_us)
                case Done():
                    return self.tcc
                case _:
                    raise AssertionError(f"more than one call at once: {decision}")
            if self.fate(10) == 1:
                self.tcc, self.in_flight = self.stored, None  # a restart
        raise AssertionError(f"does not end: {rows(self.tcc)} {self.tcc.status}")

    def begin(self, position: int) -> None:
        op = self.tcc.branches[position]
        assert self.in_flight is None, "one at a time"
        assert op.status is OpStatus.PREPARED, "called although it has succeeded"
        assert op.due_us <= self.now_us, "called before it is due"
        assert op.refusals < MOST_REFUSALS, "called although it needs an operator"
        assert self.stored.status is self.tcc.status, "called before the decision was stored"
        forward = self.tcc.status is Status.SUBMITTED
        assert op.op is (Op.CONFIRM if forward else Op.CANCEL)
        for later in range(position + 2, len(self.tcc.branches), 2):
            assert self.tcc.branches[later].status is OpStatus.SUCCEEDED, "before one that was registered later"
        self.called.append(position)
        if op.url:
            self.in_flight = position
        else:
            self.put(position, record_success_without_call(op, now_us=self.now_us))

    def wait(self, until_us: int | None) -> None:
        if self.in_flight is not None:
            assert until_us is None
            self.end_call(self.in_flight)
        elif self.tcc.status is Status.PREPARED:
            assert until_us == self.tcc.deadline_us, "would miss the deadline"
            self.now_us = until_us + self.fate(3)
        elif until_us == NEVER_US:
            # An operator makes it due: all its delays are forgotten.
            branches = tuple(op.replace(due_us=0, refusals=0) for op in self.tcc.branches)
            self.tcc = self.stored = self.tcc.replace(branches=branches)
        else:
            assert until_us is not None
            assert until_us > self.now_us, "waits for the past"
            self.now_us = until_us + self.fate(3) * MICROSECONDS

    def end_call(self, position: int) -> None:
        self.in_flight = None
        op = self.tcc.branches[position]
        kind = self.fate(7)
        if kind == 6:
            self.put(position, record_held_off(op, until_us=self.now_us + 7 * MICROSECONDS))
            return
        outcomes = [
            Outcome.SUCCESS,
            Outcome.FAILURE,
            Outcome.FAILURE,
            Outcome.FAILURE,
            Outcome.ONGOING,
            Outcome.UNKNOWN,
        ]
        recorded = record_call(
            op,
            attempt(outcomes[kind]),
            now_us=self.now_us,
            policy=RetryDefaults().policy(self.tcc.options),
            random=self.random,
            attempts_kept=2,
        )
        assert recorded.status is not OpStatus.FAILED, "a confirm or a cancel has no way to fail"
        self.put(position, recorded)
        if self.fate(2):
            self.stored = self.tcc

    def put(self, position: int, op: object) -> None:
        branches = list(self.tcc.branches)
        branches[position] = op  # type: ignore[call-overload]
        self.tcc = self.tcc.replace(branches=tuple(branches))

    def check_move(self, move: MoveTo) -> None:
        done = {
            op.op
            for op in self.tcc.branches
            if all(o.status is OpStatus.SUCCEEDED for o in self.tcc.branches if o.op is op.op)
        } | ({Op.CONFIRM, Op.CANCEL} if not self.tcc.branches else set())
        match self.tcc.status, move.status:
            case Status.PREPARED, Status.ABORTING:
                assert self.tcc.deadline_us is not None
                assert self.now_us >= self.tcc.deadline_us
                assert move.reason
            case Status.SUBMITTED, Status.SUCCEEDED:
                assert Op.CONFIRM in done
            case Status.ABORTING, Status.FAILED:
                assert Op.CANCEL in done
            case was, becomes:
                raise AssertionError(f"from {was} to {becomes}")


@settings(max_examples=400, deadline=None)
@given(
    st.data(),
    st.integers(0, 5),
    st.sampled_from([Status.PREPARED, Status.SUBMITTED, Status.ABORTING]),
    st.sets(st.integers(0, 9), max_size=3),
)
def test_every_tcc_ends_all_confirmed_or_all_cancelled(
    data: st.DataObject, count: int, status: Status, without_url: set[int]
) -> None:
    tcc = make_tcc("PP" * count, status=status, without_url=sorted(without_url), options=Options(retry_interval_s=2))
    world = World(data, tcc)

    ended = world.run()

    assert ended.status is (Status.SUCCEEDED if status is Status.SUBMITTED else Status.FAILED)
    assert rows(ended) == ("PS" if status is Status.SUBMITTED else "SP") * count
    assert {position % 2 for position in world.called} <= {int(status is Status.SUBMITTED)}
    assert DECIDE[ended.pattern] is decide


# -- the record of calls that may not fail -------------------------------------------------


@pytest.mark.parametrize("op", [Op.CONFIRM, Op.CANCEL])
def test_refusals_are_counted_in_a_row(op: Op) -> None:
    record = make_tcc("PP").branches[op is Op.CONFIRM]
    counted = []
    for outcome in (
        *[Outcome.FAILURE] * 3,
        Outcome.ONGOING,
        *[Outcome.FAILURE] * 2,
        Outcome.UNKNOWN,
        Outcome.FAILURE,
        Outcome.SUCCESS,
    ):
        record = record_call(
            record,
            attempt(outcome),
            now_us=NOON_US,
            policy=RetryDefaults().policy(Options()),
            random=Random(0),
            attempts_kept=2,
        )
        counted.append(record.refusals)

    assert counted == [1, 2, 3, 0, 1, 2, 0, 1, 0]
    assert record.status is OpStatus.SUCCEEDED
