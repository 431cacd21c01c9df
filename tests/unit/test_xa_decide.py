"""The rules of XA: those of two phases (see `test_tcc_decide`), in the order of registration."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sagas import NOON_US
from tests.tccs import TIMEOUT_S, make_tcc
from tests.xas import make_xa
from txcoord.decision import Call, Decision, Done, MoveTo, Wait
from txcoord.model import MICROSECONDS, NEVER_US, GlobalTransaction, OpStatus, Status
from txcoord.patterns import DECIDE
from txcoord.tcc.decide import decide as decide_tcc
from txcoord.two_phase.decide import MOST_REFUSALS
from txcoord.xa.decide import decide

LATER_US = NOON_US + MICROSECONDS
DEADLINE_US = NOON_US + TIMEOUT_S * MICROSECONDS

R1, C1, R2, C2, R3, C3 = range(6)
"""Rollbacks and commits by their positions."""


def going_back(letters: str = "PPPPPP", **more: object) -> GlobalTransaction:
    return make_xa(letters, status=Status.ABORTING, rollback_reason="no stock", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("xa", "in_flight", "expected"),
    [
        pytest.param(make_xa(""), (), MoveTo(Status.SUCCEEDED), id="no branches: done at once"),
        pytest.param(make_xa("PPPPPP"), (), Call((C1,)), id="the one registered first first"),
        pytest.param(make_xa("PPPPPP"), (C1,), Wait(None), id="one at a time"),
        pytest.param(make_xa("PSPPPP"), (), Call((C2,)), id="then the next"),
        pytest.param(make_xa("PSPSPP"), (), Call((C3,)), id="then the last"),
        pytest.param(make_xa("PSPSPS"), (), MoveTo(Status.SUCCEEDED), id="all committed"),
        pytest.param(make_xa(due_us={C1: LATER_US}), (), Wait(LATER_US), id="none overtakes one that waits"),
        pytest.param(make_xa(refusals={C1: MOST_REFUSALS}), (), Wait(NEVER_US), id="nor one that needs an operator"),
        pytest.param(make_xa(deadline_us=NOON_US - 1), (), Call((C1,)), id="no deadline once submitted"),
        pytest.param(going_back(), (), Call((R1,)), id="rollbacks in that order too"),
        pytest.param(going_back("SPPPPP"), (), Call((R2,)), id="the next rollback"),
        pytest.param(going_back("SPSPSP"), (), MoveTo(Status.FAILED), id="all rolled back"),
        pytest.param(make_xa(status=Status.PREPARED), (), Wait(DEADLINE_US), id="prepared: the deadline"),
        pytest.param(make_xa(status=Status.SUCCEEDED), (), Done(), id="succeeded"),
        pytest.param(make_xa(status=Status.FAILED), (), Done(), id="failed"),
    ],
)
def test_what_comes_next(xa: GlobalTransaction, in_flight: tuple[int, ...], expected: Decision) -> None:
    assert decide(xa, NOON_US, in_flight) == expected
    assert DECIDE[xa.pattern] is decide


def test_past_its_deadline_it_rolls_back() -> None:
    xa = make_xa(status=Status.PREPARED)

    assert decide(xa, DEADLINE_US - 1) == Wait(DEADLINE_US)
    assert decide(xa, DEADLINE_US) == MoveTo(Status.ABORTING, reason=f"Timeout after {TIMEOUT_S} seconds")


_halves = st.lists(st.tuples(st.sampled_from("PS"), st.sampled_from("PS")), max_size=6)
_numbers = st.dictionaries(st.integers(0, 11), st.integers(NOON_US - 2, NOON_US + 2), max_size=6)


@given(_halves, st.sampled_from([*Status]), _numbers, st.integers(-1, 1))
def test_it_is_a_tcc_registered_the_other_way_round(
    halves: list[tuple[str, str]], status: Status, due_us: Mapping[int, int], ahead_us: int
) -> None:
    count = len(halves)
    mirrored = {2 * (count - 1 - position // 2) + position % 2: at_us for position, at_us in due_us.items()}
    xa = make_xa("".join(first + second for first, second in halves), status=status, due_us=due_us)
    tcc = make_tcc("".join(first + second for first, second in reversed(halves)), status=status, due_us=mirrored)

    decided, other = decide(xa, NOON_US + ahead_us), decide_tcc(tcc, NOON_US + ahead_us)

    if isinstance(decided, Call):
        [position] = decided.ops
        assert other == Call((2 * (count - 1 - position // 2) + position % 2,))
        before = xa.branches[position % 2 : position : 2]
        assert all(op.status is OpStatus.SUCCEEDED for op in before), "before one that was registered earlier"
    else:
        assert decided == other
