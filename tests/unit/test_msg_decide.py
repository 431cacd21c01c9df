"""The rules of a message: each alone in a table, and all together whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.msgs import QUERY_PREPARED, TIMEOUT_S, make_msg
from tests.sagas import NOON_US, attempt, rows
from txcoord.decision import Call, Decision, Done, GiveUp, MoveTo, Wait
from txcoord.model import MICROSECONDS, NEVER_US, GlobalTransaction, Op, OpStatus, Options, Outcome, Status
from txcoord.msg.decide import decide
from txcoord.patterns import DECIDE, moved
from txcoord.record import may_fail_in, record_call, record_given_up, record_held_off, record_success_without_call
from txcoord.retry import RetryDefaults

LATER_US = NOON_US + MICROSECONDS
DEADLINE_US = NOON_US + TIMEOUT_S * MICROSECONDS
CONCURRENT = Options(concurrent=True)
BOUNDED = Options(give_up_after_us=5 * MICROSECONDS, give_up_at_us=NOON_US + 5 * MICROSECONDS)
CONCURRENT_BOUNDED = replace(BOUNDED, concurrent=True)
GIVE_UP_US = BOUNDED.give_up_at_us
TWICE = Options(max_attempts=2)


def prepared(letters: str = "PP", **more: object) -> GlobalTransaction:
    return make_msg(letters, status=Status.PREPARED, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("msg", "in_flight", "expected"),
    [
        pytest.param(make_msg(""), (), MoveTo(Status.SUCCEEDED), id="no actions: done at once"),
        pytest.param(make_msg("PPP"), (), Call((0,)), id="the first one first"),
        pytest.param(make_msg("PPP"), (0,), Wait(None), id="one at a time"),
        pytest.param(make_msg("SPP"), (), Call((1,)), id="then the next"),
        pytest.param(make_msg("SSS"), (), MoveTo(Status.SUCCEEDED), id="all done"),
        pytest.param(make_msg("SSS", check_back=""), (), MoveTo(Status.SUCCEEDED), id="all done, without a check-back"),
        pytest.param(make_msg("SS", check_back="F"), (), MoveTo(Status.SUCCEEDED), id="whatever was answered before"),
        pytest.param(make_msg("P", without_url=[0]), (), Call((0,)), id="without a URL in its turn too"),
        pytest.param(make_msg("PP", due_us={0: LATER_US}), (), Wait(LATER_US), id="not before it is due"),
        pytest.param(make_msg("PP", due_us={0: NOON_US}), (), Call((0,)), id="at the instant it is due"),
        pytest.param(make_msg("PP", due_us={1: LATER_US}), (), Call((0,)), id="another one's delay is nothing to it"),
        pytest.param(make_msg("PSP", options=CONCURRENT), (), Call((0, 2)), id="concurrent: all at once"),
        pytest.param(make_msg("PPP", options=CONCURRENT), (0, 2), Call((1,)), id="concurrent: beside others"),
        pytest.param(make_msg("PP", options=CONCURRENT), (0, 1), Wait(None), id="concurrent: all under way"),
        pytest.param(
            make_msg("PP", options=CONCURRENT, due_us={0: LATER_US}), (1,), Wait(LATER_US), id="concurrent: not due"
        ),
        pytest.param(make_msg("FP", options=TWICE), (), Call((1,)), id="the others go on"),
        pytest.param(
            make_msg("FS", options=TWICE, in_vain={0: 2}),
            (),
            MoveTo(Status.FAILED, reason="gave up branch 01 (called 2 times in vain)"),
            id="its attempts are used up",
        ),
        pytest.param(make_msg("PP", options=BOUNDED), (), Call((0,)), id="before its time is over"),
        pytest.param(make_msg("PP", options=BOUNDED), (0,), Wait(None), id="what is under way is waited for"),
        pytest.param(
            make_msg("PP", options=BOUNDED, due_us={0: GIVE_UP_US + 1}), (), Wait(GIVE_UP_US), id="not later than that"
        ),
    ],
)
def test_submitted(msg: GlobalTransaction, in_flight: tuple[int, ...], expected: Decision) -> None:
    assert decide(msg, NOON_US, in_flight) == expected


def test_what_is_not_done_in_time_is_given_up_and_the_next_has_its_own_time() -> None:
    msg = make_msg("SPP", options=BOUNDED)

    assert decide(msg, GIVE_UP_US - 1) == Call((1,))
    assert decide(msg, GIVE_UP_US, {1}) == Wait(None), "its answer may still be a success"
    assert decide(msg, GIVE_UP_US) == GiveUp((1,))

    given_up_us = GIVE_UP_US + MICROSECONDS
    msg = given_up(msg, 1, given_up_us)
    assert decide(msg, given_up_us + 5 * MICROSECONDS - 1) == Call((2,))
    assert decide(msg, given_up_us + 5 * MICROSECONDS) == GiveUp((2,))

    msg = given_up(msg, 2, given_up_us + 5 * MICROSECONDS)
    late = "branch 02 (not done within 5 seconds), branch 03 (not done within 5 seconds)"
    assert decide(msg, given_up_us + 5 * MICROSECONDS) == MoveTo(Status.FAILED, reason=f"gave up {late}")


def test_concurrent_actions_are_given_up_each_when_nothing_of_it_is_under_way() -> None:
    msg = make_msg("PPP", options=CONCURRENT_BOUNDED)

    assert decide(msg, GIVE_UP_US - 1, {0}) == Call((1, 2))
    assert decide(msg, GIVE_UP_US, {0}) == GiveUp((1, 2))
    assert decide(msg, GIVE_UP_US, {0, 1, 2}) == Wait(None)


def given_up(msg: GlobalTransaction, position: int, now_us: int) -> GlobalTransaction:
    branches = list(msg.branches)
    branches[position] = record_given_up(branches[position], now_us=now_us)
    return msg.replace(branches=tuple(branches))


@pytest.mark.parametrize("timeout_s", [1, TIMEOUT_S])
def test_prepared_waits_for_its_deadline_to_the_microsecond(timeout_s: int) -> None:
    deadline_us = NOON_US + timeout_s * MICROSECONDS
    msg = prepared().replace(deadline_us=deadline_us)

    assert decide(msg, NOON_US) == decide(msg, deadline_us - 1) == Wait(deadline_us)
    assert decide(msg, deadline_us) == Call((2,))


@pytest.mark.parametrize(
    ("msg", "in_flight", "expected"),
    [
        pytest.param(prepared(), (), Call((2,)), id="its initiator is asked"),
        pytest.param(prepared(), (2,), Wait(None), id="once at a time"),
        pytest.param(prepared(due_us={2: DEADLINE_US + 9}), (), Wait(DEADLINE_US + 9), id="after a while again"),
        pytest.param(prepared(check_back="S"), (), MoveTo(Status.SUBMITTED), id="it was committed"),
        pytest.param(
            prepared(check_back="F"),
            (),
            MoveTo(Status.FAILED, reason=f"url:{QUERY_PREPARED} return failed:  FAILURE"),
            id="it was not",
        ),
        pytest.param(prepared(check_back=""), (), Wait(NEVER_US), id="nobody to ask: never by itself"),
        pytest.param(prepared("", check_back=""), (), Wait(NEVER_US), id="not without actions either"),
    ],
)
def test_after_the_deadline(msg: GlobalTransaction, in_flight: tuple[int, ...], expected: Decision) -> None:
    assert decide(msg, DEADLINE_US, in_flight) == expected


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_a_final_one_is_done(status: Status) -> None:
    assert decide(make_msg(status=status), DEADLINE_US) == Done()


def test_delay_and_deadline_count_from_the_check_backs_answer() -> None:
    options = Options(delay_us=7, give_up_after_us=100)
    msg = prepared("PP", check_back="S", options=options)

    forward = moved(msg, MoveTo(Status.SUBMITTED), DEADLINE_US)

    assert [op.due_us for op in forward.branches] == [DEADLINE_US + 7, DEADLINE_US + 7, 0]
    assert forward.options.give_up_at_us == DEADLINE_US + 107
    assert decide(forward, DEADLINE_US) == Wait(DEADLINE_US + 7)


# -- whatever happens ----------------------------------------------------------------------


@dataclass
class World:
    """Does to a message what an engine, its initiator and its participants would, and knows the rules on its own."""

    data: st.DataObject
    msg: GlobalTransaction
    now_us: int = NOON_US
    in_flight: set[int] = field(default_factory=set)
    fate_left: int = 40
    """So often the world may do what it likes; from then on calls succeed and coordinators live."""
    random: Random = field(default_factory=lambda: Random(0))

    def __post_init__(self) -> None:
        self.stored = self.msg

    def fate(self, below: int) -> int:
        if self.fate_left <= 0:
            return 0
        self.fate_left -= 1
        return self.data.draw(st.integers(0, below - 1))

    def run(self) -> GlobalTransaction:
        for _ in range(2000):
            decision = decide(self.msg, self.now_us, self.in_flight)
            match decision:
                case Call(positions):
                    for position in positions:
                        self.begin(position)
                case GiveUp(positions):
                    for position in positions:
                        self.give_up(position)
                case MoveTo() as move:
                    self.check_move(move)
                    self.msg = self.stored = moved(self.msg, move, self.now_us)
                case Wait(until_us):
                    if until_us == NEVER_US:
                        assert self.msg.status is Status.PREPARED
                        return self.msg
                    self.wait(until_us)
                case Done():
                    return self.msg
            if self.fate(10) == 1:
                self.msg = self.stored  # a restart
                self.in_flight.clear()
        raise AssertionError(f"does not end: {rows(self.msg)} {self.msg.status}")

    def begin(self, position: int) -> None:
        op = self.msg.branches[position]
        assert position not in self.in_flight
        assert op.status is OpStatus.PREPARED, "called although it has ended"
        assert op.due_us <= self.now_us, "called before it is due"
        if self.msg.status is Status.PREPARED:
            assert op.op is Op.MSG
            assert self.now_us >= DEADLINE_US
        else:
            assert op.op is Op.ACTION
            assert self.now_us < self.time_is_over_us(position)
            if not self.msg.options.concurrent:
                assert not self.in_flight
                assert all(before.status is not OpStatus.PREPARED for before in self.msg.branches[:position])
        if op.url:
            self.in_flight.add(position)
        else:
            self.put(position, record_success_without_call(op, now_us=self.now_us))

    def time_is_over_us(self, position: int) -> int:
        options = self.msg.options
        if not options.give_up_after_us:
            return NEVER_US
        begins_us = options.give_up_at_us - options.give_up_after_us
        if not options.concurrent:
            begins_us = max([begins_us, *(op.finished_us or 0 for op in self.msg.branches[:position])])
        return begins_us + options.give_up_after_us

    def give_up(self, position: int) -> None:
        assert position not in self.in_flight, "its answer may still be a success"
        assert self.msg.branches[position].status is OpStatus.PREPARED
        assert self.now_us >= self.time_is_over_us(position)
        self.put(position, record_given_up(self.msg.branches[position], now_us=self.now_us))

    def wait(self, until_us: int | None) -> None:
        if self.in_flight and (until_us is None or self.fate(3)):
            self.end_call(self.data.draw(st.sampled_from(sorted(self.in_flight))))
        else:
            assert until_us is not None
            assert until_us > self.now_us, "waits for the past"
            self.now_us = until_us + self.fate(3)

    def end_call(self, position: int) -> None:
        self.in_flight.discard(position)
        op = self.msg.branches[position]
        kinds = [Outcome.SUCCESS, Outcome.FAILURE, Outcome.ONGOING, Outcome.UNKNOWN]
        kind = self.fate(5)
        if kind == 4:
            self.put(position, record_held_off(op, until_us=self.now_us + MICROSECONDS))
            return
        recorded = record_call(
            op,
            attempt(kinds[kind]),
            now_us=self.now_us,
            policy=RetryDefaults().policy(self.msg.options),
            random=self.random,
            attempts_kept=2,
            may_fail=may_fail_in(self.msg.pattern),
            max_attempts=self.msg.options.max_attempts if op.op is Op.ACTION else 0,
        )
        if op.op is Op.ACTION and recorded.status is OpStatus.FAILED:
            assert recorded.in_vain == self.msg.options.max_attempts > 0, "a message's action has no way to fail"
        self.put(position, recorded)

    def put(self, position: int, op: object) -> None:
        branches = list(self.msg.branches)
        branches[position] = op  # type: ignore[call-overload]
        self.msg = self.msg.replace(branches=tuple(branches))
        if self.fate(2):
            self.stored = self.msg

    def check_move(self, move: MoveTo) -> None:
        actions = [op for op in self.msg.branches if op.op is Op.ACTION]
        question = [op for op in self.msg.branches if op.op is Op.MSG]
        match self.msg.status, move.status:
            case Status.PREPARED, Status.SUBMITTED:
                assert question[0].status is OpStatus.SUCCEEDED
            case Status.PREPARED, Status.FAILED:
                assert question[0].status is OpStatus.FAILED
                assert all(op.status is OpStatus.PREPARED for op in actions)
            case Status.SUBMITTED, Status.SUCCEEDED:
                assert all(op.status is OpStatus.SUCCEEDED for op in actions)
            case Status.SUBMITTED, Status.FAILED:
                assert not self.in_flight
                assert OpStatus.PREPARED not in {op.status for op in actions}
                assert OpStatus.FAILED in {op.status for op in actions}
                assert move.reason
            case was, becomes:
                raise AssertionError(f"from {was} to {becomes}")


OPTIONS = st.builds(
    Options,
    concurrent=st.booleans(),
    max_attempts=st.sampled_from([0, 1, 3]),
    delay_us=st.sampled_from([0, 10 * MICROSECONDS]),
    give_up_after_us=st.sampled_from([0, 60 * MICROSECONDS]),
)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(0, 4), st.sampled_from(["", "P"]), OPTIONS, st.sets(st.integers(0, 3), max_size=2))
def test_every_message_ends_delivered_given_up_or_refused(
    data: st.DataObject, count: int, check_back: str, options: Options, without_url: set[int]
) -> None:
    msg = prepared("P" * count, check_back=check_back, options=options, without_url=sorted(without_url))

    ended = World(data, msg).run()

    statuses = {op.status for op in ended.branches if op.op is Op.ACTION}
    if not check_back:
        assert ended.status is Status.PREPARED
        assert statuses <= {OpStatus.PREPARED}
    elif ended.status is Status.SUCCEEDED:
        assert statuses <= {OpStatus.SUCCEEDED}
    else:
        assert ended.status is Status.FAILED
        if ended.branches[-1].status is OpStatus.FAILED:
            assert statuses <= {OpStatus.PREPARED}, "nothing was called"
        else:
            assert OpStatus.FAILED in statuses
            assert OpStatus.PREPARED not in statuses
    assert DECIDE[ended.pattern] is decide


# -- the record of its calls ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "outcome", "status"),
    [
        (Op.ACTION, Outcome.FAILURE, OpStatus.PREPARED),
        (Op.MSG, Outcome.FAILURE, OpStatus.FAILED),
        (Op.MSG, Outcome.SUCCESS, OpStatus.SUCCEEDED),
        (Op.MSG, Outcome.ONGOING, OpStatus.PREPARED),
        (Op.MSG, Outcome.UNKNOWN, OpStatus.PREPARED),
    ],
)
def test_only_the_check_back_may_fail(op: Op, outcome: Outcome, status: OpStatus) -> None:
    msg = make_msg("P")
    record = record_call(
        msg.branches[op is Op.MSG],
        attempt(outcome),
        now_us=NOON_US,
        policy=RetryDefaults().policy(Options()),
        random=Random(0),
        attempts_kept=2,
        may_fail=may_fail_in(msg.pattern),
    )
    assert record.status is status
    assert (record.due_us > NOON_US) is (status is OpStatus.PREPARED)


@pytest.mark.parametrize("outcome", [Outcome.FAILURE, Outcome.ONGOING, Outcome.UNKNOWN])
def test_every_call_in_vain_counts_where_there_is_a_limit(outcome: Outcome) -> None:
    msg = make_msg("P")
    record = msg.branches[0]
    statuses = []
    for _ in range(3):
        record = record_call(
            record,
            attempt(outcome),
            now_us=NOON_US,
            policy=RetryDefaults().policy(Options()),
            random=Random(0),
            attempts_kept=1,
            may_fail=may_fail_in(msg.pattern),
            max_attempts=3,
        )
        statuses.append(record.status)

    assert statuses == [OpStatus.PREPARED, OpStatus.PREPARED, OpStatus.FAILED]
    assert (record.in_vain, record.due_us, record.finished_us) == (3, 0, NOON_US)
