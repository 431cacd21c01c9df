from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sagas import make_saga
from txcoord.saga.graph import edges, find_cycle, predecessors


@pytest.mark.parametrize(
    ("steps", "concurrent", "orders", "expected"),
    [
        pytest.param(0, False, {}, [], id="no steps"),
        pytest.param(3, False, {}, [(), (0,), (1,)], id="sequential: a chain"),
        pytest.param(3, True, {}, [(), (), ()], id="concurrent: no edges"),
        pytest.param(3, True, {2: (0, 1)}, [(), (), (0, 1)], id="concurrent: the edges of orders"),
        pytest.param(3, False, {2: (0,)}, [(), (0,), (0, 1)], id="sequential: the edges of orders as well"),
    ],
)
def test_which_step_waits_for_which(
    steps: int, concurrent: bool, orders: dict[int, tuple[int, ...]], expected: list[tuple[int, ...]]
) -> None:
    assert list(edges(steps, concurrent=concurrent, orders=orders)) == expected
    assert list(predecessors(make_saga("PP" * steps, concurrent=concurrent, orders=orders))) == expected


@pytest.mark.parametrize(
    ("before", "cycle"),
    [
        pytest.param([], (), id="nothing"),
        pytest.param([(), (0,), (0, 1)], (), id="a chain with a short cut"),
        pytest.param([(1, 2), (3,), (3,), ()], (), id="a diamond"),
        pytest.param([(0,)], (0,), id="a step that waits for itself"),
        pytest.param([(1,), (0,)], (0, 1), id="two that wait for each other"),
        pytest.param([(), (2,), (3,), (1,)], (1, 2, 3), id="three, beside a free one"),
        pytest.param([(1,), (2,), (1,)], (1, 2), id="only the ring, not the way to it"),
    ],
)
def test_a_cycle_is_named_in_the_order_of_waiting(before: list[tuple[int, ...]], cycle: tuple[int, ...]) -> None:
    assert tuple(find_cycle(before)) == cycle


def test_a_long_chain_is_no_deeper_than_our_own_stack() -> None:
    chain = [(step + 1,) for step in range(9_999)]

    assert find_cycle([*chain, ()]) == ()
    assert len(find_cycle([*chain, (0,)])) == 10_000


graphs = st.integers(1, 7).flatmap(
    lambda size: st.lists(st.lists(st.integers(0, size - 1), max_size=3), min_size=size, max_size=size)
)


@given(graphs)
def test_a_cycle_is_found_exactly_when_there_is_one(before: list[list[int]]) -> None:
    left = set(range(len(before)))
    while free := {step for step in left if not left & set(before[step])}:
        left -= free

    cycle = find_cycle(before)

    assert bool(cycle) == bool(left)
    for step, waits_for in zip(cycle, [*cycle[1:], *cycle[:1]], strict=True):
        assert waits_for in before[step]
