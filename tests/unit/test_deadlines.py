"""Time limits of many futures on one timer."""

from __future__ import annotations

import asyncio
import time

from txcoord.dispatch.deadlines import Deadlines, End


async def test_a_future_ends_at_its_time_and_not_before() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, time.monotonic)
    ended: dict[int, float] = {}
    limits = {each: time.monotonic() + wait_s for each, wait_s in enumerate([0.08, 0.0, 0.03, 0.03, 0.05])}
    futures = []
    for each, at in limits.items():
        future: asyncio.Future[End] = loop.create_future()
        future.add_done_callback(lambda _, each=each: ended.setdefault(each, time.monotonic()))
        deadlines.add(future, at)
        futures.append(future)

    assert await asyncio.gather(*futures) == [End.TIMED_OUT] * 5
    assert all(ended[each] >= at for each, at in limits.items())
    assert len(deadlines) == 0


async def test_a_future_that_is_done_is_left_alone() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, time.monotonic)
    done: asyncio.Future[End] = loop.create_future()
    later: asyncio.Future[End] = loop.create_future()
    deadlines.add(done, time.monotonic() + 0.01)
    deadlines.add(later, time.monotonic() + 0.05)
    done.set_result(End.DONE)

    assert await later is End.TIMED_OUT
    assert done.result() is End.DONE


async def test_long_limits_of_calls_that_are_over_take_no_room() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, lambda: 0.0)
    waiting: asyncio.Future[End] = loop.create_future()
    deadlines.add(waiting, 5000.0)
    for second in range(1, 10_000):
        future: asyncio.Future[End] = loop.create_future()
        deadlines.add(future, float(second)).discard(future)

    assert len(deadlines) <= 1024
    assert waiting in deadlines.add(loop.create_future(), 5000.0)
    deadlines.close()
