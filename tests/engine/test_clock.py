from __future__ import annotations

import asyncio
import time

import pytest

from tests.engine.harness import now_s
from tests.sagas import NOON_US
from txcoord.engine.clock import SystemClock, sleep_until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SystemClock:
    """The machine's clock, standing still at noon, so that delays are exact."""
    monkeypatch.setattr(time, "time_ns", lambda: NOON_US * 1000 + 999)
    return SystemClock()


async def test_the_system_clock_counts_whole_microseconds(clock: SystemClock) -> None:
    assert clock.now_us() == NOON_US


@pytest.mark.parametrize(
    ("instant_us", "at_s"),
    [
        pytest.param(NOON_US + 5_000_000, 5.001, id="never early, at most a millisecond late"),
        pytest.param(NOON_US - 5_000_000, 0.001, id="an instant that has passed: now"),
    ],
)
async def test_a_timer_ends_once_its_instant_has_come(clock: SystemClock, instant_us: int, at_s: float) -> None:
    await sleep_until(clock, instant_us)

    assert now_s() == pytest.approx(at_s)


async def test_a_sleep_can_be_cut_short(clock: SystemClock) -> None:
    wake = asyncio.Event()
    asyncio.get_running_loop().call_later(1.0, wake.set)

    await sleep_until(clock, NOON_US + 5_000_000, wake=wake)

    assert now_s() == pytest.approx(1.0)


async def test_a_timer_can_be_called_off(clock: SystemClock) -> None:
    called = asyncio.Event()
    clock.call_at(NOON_US + 1_000_000, called.set).cancel()
    await asyncio.sleep(5.0)

    assert not called.is_set()
