from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.model import MICROSECONDS, Options
from txcoord.retry import JITTER, RetryDefaults, RetryPolicy, error_delay_us, jittered_us, ongoing_delay_us

SERVER = RetryDefaults(retry_interval_s=10.0, error_backoff_s=1.0, backoff_cap_s=300.0)


class NoJitter(Random):
    def random(self) -> float:
        return 0.0


class MostJitter(Random):
    def random(self) -> float:
        return 1.0 - 2**-53


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(Options(), RetryPolicy(ongoing_s=10, first_error_s=1, cap_s=300), id="as the server is set"),
        pytest.param(
            Options(retry_interval_s=15),
            RetryPolicy(ongoing_s=15, first_error_s=30, cap_s=300),
            id="TestSetNextCron: 15",
        ),
        pytest.param(
            Options(timeout_to_fail_s=3),
            RetryPolicy(ongoing_s=3, first_error_s=1, cap_s=300),
            id="TestSetNextCron: timeout 3",
        ),
        pytest.param(
            Options(timeout_to_fail_s=60), RetryPolicy(ongoing_s=10, first_error_s=1, cap_s=300), id="a long timeout"
        ),
        pytest.param(
            Options(retry_interval_s=15, timeout_to_fail_s=3),
            RetryPolicy(ongoing_s=15, first_error_s=30, cap_s=300),
            id="an interval counts more than a timeout",
        ),
        pytest.param(
            Options(retry_interval_s=600),
            RetryPolicy(ongoing_s=600, first_error_s=1200, cap_s=1200),
            id="an interval longer than the cap is kept",
        ),
    ],
)
def test_the_delays_of_a_transaction(options: Options, expected: RetryPolicy) -> None:
    assert SERVER.policy(options) == expected


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [
        pytest.param(1, 20, id="first error: twice the interval, as DTM"),
        pytest.param(2, 40, id="then doubled"),
        pytest.param(4, 160, id="and again"),
        pytest.param(5, 300, id="up to the cap"),
        pytest.param(10**6, 300, id="no overflow after a million"),
    ],
)
def test_errors_in_a_row_double_the_delay_up_to_the_cap(failures: int, seconds: int) -> None:
    policy = SERVER.policy(Options(retry_interval_s=10))

    assert error_delay_us(policy, failures, NoJitter()) == seconds * MICROSECONDS


def test_ongoing_is_asked_again_after_the_interval_and_never_doubled() -> None:
    policy = SERVER.policy(Options(retry_interval_s=7))

    assert ongoing_delay_us(policy, NoJitter()) == 7 * MICROSECONDS


def test_jitter_takes_away_up_to_a_quarter() -> None:
    assert jittered_us(8.0, NoJitter()) == 8 * MICROSECONDS
    assert jittered_us(8.0, MostJitter()) == pytest.approx(6 * MICROSECONDS, abs=1)


@given(st.floats(0, 1e6), st.integers(0, 2**32))
def test_jitter_shortens_and_never_lengthens(delay_s: float, seed: int) -> None:
    delayed = jittered_us(delay_s, Random(seed))

    assert int(delay_s * (1 - JITTER) * MICROSECONDS) - 1 <= delayed <= delay_s * MICROSECONDS


@given(st.integers(1, 200), st.integers(0, 2**32), st.integers(0, 10_000))
def test_a_delay_is_never_beyond_the_cap(failures: int, seed: int, interval_s: int) -> None:
    policy = SERVER.policy(Options(retry_interval_s=interval_s))

    assert 0 < error_delay_us(policy, failures, Random(seed)) <= policy.cap_s * MICROSECONDS
