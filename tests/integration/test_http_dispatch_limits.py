"""Bounds for each endpoint: places, waiting, the breaker; and TLS."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.http_participant import Clock, Received, answer, never, participant, plays, request
from txcoord.dispatch.base import CallResult
from txcoord.dispatch.http import DispatchSettings, HttpDispatcher
from txcoord.model import Outcome


@contextmanager
def nobody_listens() -> Iterator[tuple[str, socket.socket]]:
    """A base URL that refuses connections, and the socket that can be made to listen there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", bound


class Gate:
    """A participant that answers when it is told to."""

    def __init__(self, data: bytes = answer()) -> None:
        self.data = data
        self.waiting = 0
        self.most_waiting = 0
        self.open = asyncio.Event()

    async def __call__(self, _: Received, writer: asyncio.StreamWriter) -> None:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        await self.open.wait()
        self.waiting -= 1
        writer.write(self.data)


# ---- places


async def test_a_thousand_calls_at_once_respect_the_limit_and_all_are_made() -> None:
    gate = Gate()
    dispatcher = HttpDispatcher(DispatchSettings(max_in_flight=8))
    async with participant(gate) as it:
        calls = [asyncio.create_task(dispatcher.call(request(it.base, gid=str(each)))) for each in range(1000)]
        await it.wait_until(lambda: gate.waiting == 8)
        gate.open.set()
        results = await asyncio.gather(*calls)
        await dispatcher.close()

    assert {result.outcome for result in results} == {Outcome.SUCCESS}
    assert len(it.received) == 1000
    assert gate.most_waiting <= 8
    assert it.connections <= 8


async def test_who_waits_is_served_in_the_order_of_coming() -> None:
    dispatcher = HttpDispatcher(DispatchSettings(max_in_flight=1))
    async with participant(plays(answer())) as it:
        await asyncio.gather(*(dispatcher.call(request(it.base, branch_id=f"{each:02}")) for each in range(50)))
        await dispatcher.close()

    assert [seen.target.partition("&")[0] for seen in it.received] == [f"/?branch_id={each:02}" for each in range(50)]


async def test_an_endpoint_that_does_not_answer_delays_no_other() -> None:
    dispatcher = HttpDispatcher(DispatchSettings(max_in_flight=2))
    async with participant(never) as dead, participant(plays(answer())) as alive:
        stuck = [asyncio.create_task(dispatcher.call(request(dead.base))) for _ in range(100)]
        await dead.wait_until(lambda: len(dead.received) == 2)
        results = await asyncio.gather(*(dispatcher.call(request(alive.base)) for _ in range(100)))
        assert not any(task.done() for task in stuck)
        await dispatcher.close()
        await asyncio.gather(*stuck)

    assert {result.outcome for result in results} == {Outcome.SUCCESS}


async def test_waiting_for_a_place_counts_towards_the_call_s_time_and_is_no_call() -> None:
    dispatcher = HttpDispatcher(DispatchSettings(max_in_flight=1))
    async with participant(never) as it:
        first = asyncio.create_task(dispatcher.call(request(it.base)))
        await it.wait_until(lambda: len(it.received) == 1)
        result = await dispatcher.call(request(it.base, timeout_s=0.05))
        first.cancel()
        await asyncio.wait([first])
        await dispatcher.close()

    assert (result.outcome, result.called) == (Outcome.UNKNOWN, False)
    assert result.retry_after_s > 0
    assert "all 1 places" in result.detail
    assert len(it.received) == 1


async def test_not_more_than_so_many_may_wait() -> None:
    gate = Gate()
    dispatcher = HttpDispatcher(DispatchSettings(max_in_flight=1, max_waiting=2))
    async with participant(gate) as it:
        calls = [asyncio.create_task(dispatcher.call(request(it.base))) for _ in range(3)]
        await it.wait_until(lambda: gate.waiting == 1)
        refused = await dispatcher.call(request(it.base))
        gate.open.set()
        results = await asyncio.gather(*calls)
        await dispatcher.close()

    assert (refused.outcome, refused.called) == (Outcome.UNKNOWN, False)
    assert refused.retry_after_s > 0
    assert "2 calls wait" in refused.detail
    assert {result.outcome for result in results} == {Outcome.SUCCESS}


async def test_cancelled_calls_give_their_places_back() -> None:
    gate = Gate()
    dispatcher = HttpDispatcher(DispatchSettings(max_in_flight=2))
    async with participant(gate) as it:
        for count in (2, 4):
            calls = [asyncio.create_task(dispatcher.call(request(it.base))) for _ in range(6)]
            await it.wait_until(lambda count=count: len(it.received) == count)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
        gate.open.set()
        results = await asyncio.gather(*(dispatcher.call(request(it.base)) for _ in range(4)))
        await dispatcher.close()

    assert {result.outcome for result in results} == {Outcome.SUCCESS}


async def test_a_place_handed_to_a_call_that_is_cancelled_in_that_instant_is_passed_on() -> None:
    gate = Gate()
    dispatcher = HttpDispatcher(DispatchSettings(max_in_flight=1))
    async with participant(gate) as it:
        first = asyncio.create_task(dispatcher.call(request(it.base)))
        await it.wait_until(lambda: gate.waiting == 1)
        second = asyncio.create_task(dispatcher.call(request(it.base)))
        third = asyncio.create_task(dispatcher.call(request(it.base)))
        await asyncio.sleep(0)
        # Called when the first is done, which is after it has handed its place on.
        first.add_done_callback(lambda _: second.cancel())
        gate.open.set()
        result = await third
        await asyncio.wait([second])
        await dispatcher.close()

    assert second.cancelled()
    assert result.outcome is Outcome.SUCCESS


async def test_only_so_many_endpoints_are_held_and_the_idle_ones_make_room() -> None:
    gate = Gate()
    dispatcher = HttpDispatcher(DispatchSettings(max_endpoints=1))
    async with participant(plays(answer())) as one, participant(gate) as two:
        assert (await dispatcher.call(request(one.base))).outcome is Outcome.SUCCESS
        busy = asyncio.create_task(dispatcher.call(request(two.base)))
        await two.wait_until(lambda: gate.waiting == 1)
        await one.wait_until(lambda: one.open_connections == 0)
        refused = await dispatcher.call(request(one.base))
        gate.open.set()
        assert (await busy).outcome is Outcome.SUCCESS
        again = await dispatcher.call(request(one.base))
        await dispatcher.close()

    assert (refused.outcome, refused.called) == (Outcome.UNKNOWN, False)
    assert again.outcome is Outcome.SUCCESS


# ---- the breaker


def make_breaking(clock: Clock, **changes: float) -> HttpDispatcher:
    return HttpDispatcher(DispatchSettings(breaker_failures=3, breaker_hold_s=1.0, **changes), clock=clock)


async def fail(dispatcher: HttpDispatcher, base: str, times: int) -> list[CallResult]:
    return [await dispatcher.call(request(base)) for _ in range(times)]


async def test_an_endpoint_without_answers_is_held_off_and_found_again(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    dispatcher = make_breaking(clock)
    with nobody_listens() as (base, sock), caplog.at_level(logging.WARNING, "txcoord.dispatch"):
        *failed, held = await fail(dispatcher, base, 4)
        assert all(result.called for result in failed)
        assert (held.outcome, held.called) == (Outcome.UNKNOWN, False)
        assert 0 < held.retry_after_s <= 1.5
        assert held.detail == f"{base}: not called, it is held off after 3 calls in a row without an answer"

        clock.now += held.retry_after_s
        probe, held = await fail(dispatcher, base, 2)
        assert (probe.called, held.called) == (True, False)
        assert 1.4 < held.retry_after_s <= 2.5

        async with participant(plays(answer()), sock=sock):
            clock.now += held.retry_after_s
            results = await fail(dispatcher, base, 3)
            await dispatcher.close()

    assert {result.outcome for result in results} == {Outcome.SUCCESS}
    assert [record.message.split(" ", 2)[2].partition(":")[0] for record in caplog.records] == [
        "is held off after 3 calls without an answer",
        "is held off after 4 calls without an answer",
        "answers again",
    ]


async def test_while_a_probe_is_under_way_no_other_call_is_made() -> None:
    clock = Clock()
    gate = Gate()
    dispatcher = make_breaking(clock)
    with nobody_listens() as (base, sock):
        await fail(dispatcher, base, 3)
        async with participant(gate, sock=sock) as it:
            clock.now += 2
            probe = asyncio.create_task(dispatcher.call(request(base)))
            await it.wait_until(lambda: gate.waiting == 1)
            held = await dispatcher.call(request(base))
            gate.open.set()
            result = await probe
            after = await dispatcher.call(request(base))
            await dispatcher.close()

    assert (held.called, held.retry_after_s > 0) == (False, True)
    assert (result.outcome, after.outcome) == (Outcome.SUCCESS, Outcome.SUCCESS)


async def test_a_cancelled_probe_makes_room_for_another() -> None:
    clock = Clock()
    gate = Gate()
    dispatcher = make_breaking(clock)
    with nobody_listens() as (base, sock):
        await fail(dispatcher, base, 3)
        async with participant(gate, sock=sock) as it:
            clock.now += 2
            probe = asyncio.create_task(dispatcher.call(request(base)))
            await it.wait_until(lambda: gate.waiting == 1)
            probe.cancel()
            await asyncio.wait([probe])
            gate.open.set()
            again = await dispatcher.call(request(base))
            await dispatcher.close()

    assert (again.outcome, again.called) == (Outcome.SUCCESS, True)


async def test_who_waits_for_a_place_is_told_at_once_that_the_endpoint_is_held_off() -> None:
    release = asyncio.Event()

    async def hang_up(_: Received, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    dispatcher = HttpDispatcher(DispatchSettings(breaker_failures=3, max_in_flight=3))
    async with participant(hang_up) as it:
        calls = [asyncio.create_task(dispatcher.call(request(it.base))) for _ in range(20)]
        await it.wait_until(lambda: len(it.received) == 3)
        release.set()
        results = await asyncio.gather(*calls)
        await dispatcher.close()

    # A place that is given back before the third failure goes to one who waits.
    assert 3 <= sum(result.called for result in results) <= 5
    assert {result.outcome for result in results} == {Outcome.UNKNOWN}


async def test_bad_answers_do_not_open_the_breaker_for_they_come_from_a_participant_that_lives() -> None:
    dispatcher = HttpDispatcher(DispatchSettings(breaker_failures=3))
    async with participant(plays(answer(500, b"oops"))) as it:
        results = await fail(dispatcher, it.base, 10)
        await dispatcher.close()

    assert all(result.called for result in results)
    assert len(it.received) == 10


async def test_time_outs_open_the_breaker() -> None:
    dispatcher = HttpDispatcher(DispatchSettings(breaker_failures=2))
    async with participant(never) as it:
        results = [await dispatcher.call(request(it.base, timeout_s=0.02)) for _ in range(3)]
        await dispatcher.close()

    assert [result.called for result in results] == [True, True, False]


async def test_the_breaker_of_one_endpoint_is_not_that_of_another() -> None:
    dispatcher = make_breaking(Clock())
    with nobody_listens() as (base, _):
        async with participant(plays(answer())) as it:
            await fail(dispatcher, base, 5)
            result = await dispatcher.call(request(it.base))
            await dispatcher.close()

    assert result.outcome is Outcome.SUCCESS


async def test_running_out_of_descriptors_is_not_the_endpoint_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    dispatcher = make_breaking(Clock())
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fails)
    results = await fail(dispatcher, "http://127.0.0.1:9/", 10)
    await dispatcher.close()

    assert all(result.called for result in results)
    assert "EMFILE" in results[0].detail


# ---- nothing stays behind


async def test_nothing_stays_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def capricious(seen: Received, writer: asyncio.StreamWriter) -> None:
        match int(seen.target.partition("=")[2].partition("&")[0]) % 5:
            case 0:
                await seen.left()
                writer.close()
            case 1:
                writer.write(b"garbage\r\n\r\n")
                writer.close()
            case 2:
                writer.write(answer(409, b"no", "Connection: close"))
            case _:
                writer.write(answer())

    loop = asyncio.get_running_loop()
    unhandled: list[object] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    dispatcher = HttpDispatcher(DispatchSettings(max_in_flight=10, breaker_failures=10_000))
    async with participant(capricious) as it:
        calls = [
            asyncio.create_task(dispatcher.call(request(it.base, branch_id=str(each), timeout_s=0.3)))
            for each in range(200)
        ]
        await it.wait_until(lambda: len(it.received) > 20)
        for call in calls[::7]:
            call.cancel()
        await asyncio.wait(calls)
        await dispatcher.close()
        await it.wait_until(lambda: it.open_connections == 0)
    gc.collect()

    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not unhandled
    assert not caplog.records
