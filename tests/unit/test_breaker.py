"""When an endpoint is left alone, and when it is tried again."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from txcoord.dispatch.breaker import Breaker
from txcoord.dispatch.settings import DispatchSettings

SETTINGS = DispatchSettings(breaker_failures=3, breaker_hold_s=1.0, breaker_hold_max_s=8.0)


def make_breaker(*, failures: int = 0, now: float = 0.0) -> Breaker:
    breaker = Breaker(SETTINGS, Random(1))
    for _ in range(failures):
        breaker.failed(now, probe=False)
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    breaker = make_breaker(failures=2)

    assert not breaker.is_open
    assert breaker.failed(0.0, probe=False)
    assert breaker.is_open


def test_an_answer_in_between_starts_the_count_anew() -> None:
    breaker = make_breaker(failures=2)
    breaker.succeeded()

    assert not breaker.failed(0.0, probe=False)
    assert not breaker.is_open


def test_no_call_passes_before_the_hold_is_over_and_then_a_single_one() -> None:
    breaker = make_breaker(failures=3)

    assert not breaker.admit_probe(0.7)
    assert breaker.admit_probe(1.0)
    assert not breaker.admit_probe(1.0)


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = make_breaker(failures=3)
    breaker.admit_probe(1.0)

    assert breaker.succeeded()
    assert not breaker.is_open
    assert not breaker.failed(2.0, probe=False)


def test_a_probe_that_is_withdrawn_makes_room_for_another() -> None:
    breaker = make_breaker(failures=3)
    breaker.admit_probe(1.0)
    breaker.withdrawn()

    assert breaker.admit_probe(1.0)


def test_late_failures_of_earlier_calls_do_not_lengthen_the_hold() -> None:
    breaker = make_breaker(failures=3)

    assert not breaker.failed(0.9, probe=False)
    assert breaker.admit_probe(1.0)


def test_a_late_answer_to_an_earlier_call_closes_it() -> None:
    breaker = make_breaker(failures=3)

    assert breaker.succeeded()
    assert not breaker.is_open


@given(st.integers(0, 12), st.integers())
def test_each_failed_probe_doubles_the_hold_up_to_the_cap(probes: int, seed: int) -> None:
    breaker = Breaker(SETTINGS, Random(seed))
    now = 0.0
    for _ in range(3):
        breaker.failed(now, probe=False)
    for _ in range(probes):
        now += SETTINGS.breaker_hold_max_s
        assert breaker.admit_probe(now)
        assert breaker.failed(now, probe=True)

    hold = min(2.0**probes, SETTINGS.breaker_hold_max_s)
    assert not breaker.admit_probe(now + hold * 0.74)
    assert hold * 0.75 <= breaker.retry_after_s(now) <= hold * 1.25
    assert breaker.admit_probe(now + hold)
