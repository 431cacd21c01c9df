"""What holds of every saga, whatever happens to it.

Hypothesis invents a saga (its order, options, empty URLs) and then everything that the
world does to it: how each call ends and when, when the clock moves, when a coordinator
stops and another one goes on with what was stored last. `World` does to the saga what an
engine would, and looks at each decision as a stranger: it knows the rules as statements
about *all* the steps before and after a step (a transitive closure), about what was ever
called, and about what is stored; it does not know how `decide` comes to its decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sagas import NOON_US, attempt, make_saga, rows
from txcoord.decision import Call, Done, MoveTo, Wait
from txcoord.model import MICROSECONDS, GlobalTransaction, OpStatus, Options, Outcome, Status
from txcoord.patterns import moved
from txcoord.record import record_call, record_held_off, record_success_without_call
from txcoord.retry import RetryDefaults
from txcoord.saga.decide import decide

TURNS_OF_FATE = 40
"""So often the world may do what it likes; from then on calls succeed and coordinators live."""


@dataclass
class World:
    saga: GlobalTransaction
    ancestors: Mapping[int, frozenset[int]]
    """Step → all steps that have to have succeeded before it, near and far."""
    choose: Callable[[int], int]
    """Draw a number below the given one."""
    now_us: int = NOON_US
    in_flight: set[int] = field(default_factory=set)
    fate_left: int = TURNS_OF_FATE
    ever_called: set[int] = field(default_factory=set)
    took_effect: set[int] = field(default_factory=set)
    """Actions that have succeeded, known to a coordinator or not: called again, they do not fail."""
    sequential: bool = False
    random: Random = field(default_factory=lambda: Random(0))

    def __post_init__(self) -> None:
        self.stored = self.saga

    # -- the engine's part -------------------------------------------------------------

    def run(self) -> GlobalTransaction:
        for _ in range(2000):
            decision = decide(self.saga, self.now_us, frozenset(self.in_flight))
            match decision:
                case Call(ops, needs_record):
                    self.check_call(ops)
                    if needs_record:
                        self.stored = self.saga
                    for position in ops:
                        self.begin(position)
                    self.maybe_restart()
                case MoveTo() as move:
                    self.check_move(move)
                    self.maybe_restart()  # before it was stored: somebody decides it again
                    if decide(self.saga, self.now_us, frozenset(self.in_flight)) == move:
                        self.saga = self.stored = moved(self.saga, move, self.now_us)
                        self.maybe_restart()
                case Wait(until_us):
                    self.check_wait(until_us)
                    self.let_something_happen(until_us)
                case Done():
                    assert self.saga.status.is_final
                    return self.saga
        raise AssertionError(f"does not end: {rows(self.saga)} {self.saga.status}")

    def begin(self, position: int) -> None:
        op = self.saga.branches[position]
        if op.url:
            self.in_flight.add(position)
            self.ever_called.add(position)
        else:
            self.put(position, record_success_without_call(op, now_us=self.now_us))

    def let_something_happen(self, until_us: int | None) -> None:
        self.maybe_restart()
        may_wait = until_us is not None and until_us > self.now_us
        if self.in_flight and not (may_wait and self.fate(4) == 1):
            self.end_call(sorted(self.in_flight)[self.fate(len(self.in_flight))])
        elif may_wait:
            assert until_us is not None
            self.now_us = until_us + self.fate(3) * self.fate(20) * MICROSECONDS

    def end_call(self, position: int) -> None:
        self.now_us += self.fate(3) * MICROSECONDS
        self.in_flight.discard(position)
        op = self.saga.branches[position]
        kind = self.fate(6)
        if kind == 5:
            self.put(position, record_held_off(op, until_us=self.now_us + 7 * MICROSECONDS))
        else:
            outcome = [Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE, Outcome.ONGOING, Outcome.UNKNOWN][kind]
            if outcome is Outcome.FAILURE and position in self.took_effect:
                outcome = Outcome.SUCCESS
            if outcome is Outcome.SUCCESS or (outcome is not Outcome.FAILURE and self.fate(2)):
                self.took_effect.add(position)
            recorded = record_call(
                op,
                attempt(outcome),
                now_us=self.now_us,
                policy=RetryDefaults().policy(self.saga.options),
                random=self.random,
                attempts_kept=2,
            )
            self.put(position, recorded)
        if self.fate(2):
            self.stored = self.saga  # a posted result may be stored, or be lost with the process

    def maybe_restart(self) -> None:
        if self.fate(8) == 1:
            self.saga = self.stored
            self.took_effect |= {position for position in sorted(self.in_flight) if self.fate(2)}
            self.in_flight.clear()

    def put(self, position: int, op: object) -> None:
        branches = list(self.saga.branches)
        branches[position] = op  # type: ignore[call-overload]
        self.saga = self.saga.replace(branches=tuple(branches))

    def fate(self, below: int) -> int:
        """Draw a number; 0, which is always harmless, when fate has had its turns."""
        if self.fate_left <= 0 or below < 2:
            return 0
        self.fate_left -= 1
        return self.choose(below)

    # -- the rules, as statements ------------------------------------------------------

    def has_succeeded(self, position: int) -> bool:
        return self.saga.branches[position].status is OpStatus.SUCCEEDED

    def check_call(self, ops: tuple[int, ...]) -> None:
        assert ops, "a call of nothing"
        assert len(set(ops)) == len(ops)
        assert not self.in_flight & set(ops), "called while its call is under way"
        assert not self.sequential or len(ops) + len(self.in_flight) == 1, "sequential: one call at a time"
        for position in ops:
            op = self.saga.branches[position]
            assert op.status is OpStatus.PREPARED, "called after its result was known"
            assert op.due_us <= self.now_us, "called before it is due"
            if position % 2:
                self.check_action(position // 2)
            else:
                self.check_compensation(position // 2)

    def check_action(self, step: int) -> None:
        saga = self.saga
        assert saga.status is Status.SUBMITTED, "an action after the turn"
        assert all(self.has_succeeded(2 * earlier + 1) for earlier in self.ancestors[step]), "before its predecessors"
        assert all(op.status is not OpStatus.FAILED for op in saga.branches), "an action after a failure"
        assert saga.deadline_us is None or self.now_us < saga.deadline_us, "an action after the deadline"
        limit = saga.options.retry_limit
        assert not limit or saga.branches[2 * step + 1].failures <= limit, "an action beyond its retry limit"

    def check_compensation(self, step: int) -> None:
        assert self.stored.status is Status.ABORTING, "a compensation before the turn was stored"
        assert not any(position % 2 for position in self.in_flight), "a compensation while an action is under way"
        assert self.saga.branches[2 * step + 1].reached, "compensation of a step that was not reached"
        for later, before in self.ancestors.items():
            if step in before and self.saga.branches[2 * later + 1].reached:
                assert self.has_succeeded(2 * later), "compensated before a step that was built on it"

    def check_move(self, move: MoveTo) -> None:
        was = self.saga.status
        actions = range(1, len(self.saga.branches), 2)
        match move.status:
            case Status.SUCCEEDED:
                assert was is Status.SUBMITTED
                assert all(map(self.has_succeeded, actions))
            case Status.ABORTING:
                assert was is Status.SUBMITTED
                assert move.reason, "turned round without a reason"
                assert len(move.reason) <= 1024
                assert not all(map(self.has_succeeded, actions)), "turned round though all was done"
                assert all(position % 2 for position in move.reached)
                for position in actions:
                    if self.saga.branches[position].status is not OpStatus.PREPARED or position in self.in_flight:
                        assert position in move.reached, "an action that may have had an effect is not reached"
            case _:
                assert (was, move.status) == (Status.ABORTING, Status.FAILED)
                assert not move.reason, "why it turned round stands"

    def check_wait(self, until_us: int | None) -> None:
        if until_us is None:
            assert self.in_flight, "waits for nothing"
        else:
            assert until_us > self.now_us, "waits for the past"
            deadline_us = self.saga.deadline_us
            if self.saga.status is Status.SUBMITTED and deadline_us is not None:
                assert until_us <= deadline_us, "would miss the deadline"

    def check_end(self) -> None:
        saga = self.saga
        compensated = {op.branch_id for op in saga.branches[::2] if op.status is OpStatus.SUCCEEDED}
        if saga.status is Status.SUCCEEDED:
            assert not compensated
            assert not any(position % 2 == 0 for position in self.ever_called)
            return
        reached = {op.branch_id for op in saga.branches[1::2] if op.reached}
        called = {saga.branches[position].branch_id for position in self.ever_called if position % 2}
        assert compensated == reached
        assert called <= reached, "an action was called, perhaps before a crash, and was not compensated"
        for position in self.ever_called:
            assert position % 2 or saga.branches[position].branch_id in reached


@st.composite
def sagas(draw: st.DrawFn) -> tuple[GlobalTransaction, Mapping[int, frozenset[int]]]:
    steps = draw(st.integers(1, 6))
    concurrent = draw(st.booleans())
    orders: dict[int, tuple[int, ...]] = {}
    if draw(st.booleans()):
        # Any acyclic order: edges go from earlier to later places of a permutation. A
        # sequential saga has its own sequence beside, so that only its edges fit.
        places = draw(st.permutations(range(steps))) if concurrent else list(range(steps))
        for place, step in enumerate(places):
            before = draw(st.sets(st.sampled_from(places[:place]), max_size=3)) if place else set()
            if before:
                orders[step] = tuple(sorted(before))
    options = Options(
        retry_limit=draw(st.sampled_from([0, 0, 1, 3])),
        retry_interval_s=draw(st.sampled_from([0, 2])),
        timeout_to_fail_s=draw(st.sampled_from([0, 0, 5, 60])),
    )
    saga = make_saga(
        "PP" * steps,
        concurrent=concurrent,
        orders=orders,
        options=options,
        deadline_us=NOON_US + options.timeout_to_fail_s * MICROSECONDS if options.timeout_to_fail_s else None,
        without_url=sorted(draw(st.sets(st.integers(0, 2 * steps - 1), max_size=2))),
    )
    return saga, _ancestors(steps, orders, concurrent=concurrent)


def _ancestors(steps: int, orders: Mapping[int, tuple[int, ...]], *, concurrent: bool) -> Mapping[int, frozenset[int]]:
    before = [[earlier in orders.get(step, ()) for earlier in range(steps)] for step in range(steps)]
    if not concurrent:
        before = [[earlier < step for earlier in range(steps)] for step in range(steps)]
    for middle in range(steps):  # Warshall's closure
        for step in range(steps):
            for earlier in range(steps):
                before[step][earlier] |= before[step][middle] and before[middle][earlier]
    return {step: frozenset(earlier for earlier in range(steps) if before[step][earlier]) for step in range(steps)}


@settings(max_examples=600, deadline=None)
@given(sagas(), st.data())
def test_every_saga_ends_and_keeps_the_rules_on_its_way(
    drawn: tuple[GlobalTransaction, Mapping[int, frozenset[int]]], data: st.DataObject
) -> None:
    saga, ancestors = drawn
    world = World(
        saga,
        ancestors,
        lambda below: data.draw(st.integers(0, below - 1)),
        sequential=not saga.options.concurrent,
    )

    world.run()

    world.check_end()


@settings(max_examples=300, deadline=None)
@given(sagas())
def test_without_any_failure_every_saga_succeeds_with_each_action_called_once(
    drawn: tuple[GlobalTransaction, Mapping[int, frozenset[int]]],
) -> None:
    saga, ancestors = drawn
    world = World(saga, ancestors, lambda _: 0, fate_left=0)

    ended = world.run()

    assert rows(ended) == "PS" * (len(saga.branches) // 2)
    assert all(len(op.attempts) == (1 if op.url else 0) for op in ended.branches[1::2])
