"""Calls of branch operations over gRPC: what goes out, what an answer means, and endpoints that are no good."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import uvloop

from tests.integration.grpc_participant import ERROR, OLD_ONGOING, ONGOING, Answer, GrpcParticipant, failure
from tests.integration.http_participant import Clock, answer, plays
from tests.integration.http_participant import participant as http_participant
from txcoord import metrics
from txcoord.dispatch.base import BranchRequest, CallResult
from txcoord.dispatch.grpc import GrpcDispatcher, make_metadata, parse_target
from txcoord.dispatch.headers import BadHeaderError
from txcoord.dispatch.router import RoutingDispatcher
from txcoord.dispatch.settings import DispatchSettings
from txcoord.model import Op, Outcome, Pattern
from txcoord.proto.workflow_pb2 import WorkflowData
from txcoord.url import BadUrlError


def request(url: str, **changes: Any) -> BranchRequest:
    """A call of a saga's action."""
    fields: dict[str, Any] = {
        "gid": "g1",
        "pattern": Pattern.SAGA,
        "branch_id": "01",
        "op": Op.ACTION,
        "payload": b"\x00\xff{}",
        "protocol": "grpc",
        "timeout_s": 20.0,
    }
    return BranchRequest(url=url, **(fields | changes))


@pytest.fixture
async def it() -> AsyncIterator[GrpcParticipant]:
    async with GrpcParticipant() as made:
        yield made


@pytest.fixture
async def dispatcher() -> AsyncIterator[GrpcDispatcher]:
    made = GrpcDispatcher(DispatchSettings(max_body_bytes=1000))
    yield made
    await made.close()


# -- what goes out -------------------------------------------------------------------------


async def test_the_call_as_the_participant_gets_it(it: GrpcParticipant, dispatcher: GrpcDispatcher) -> None:
    result = await dispatcher.call(request(it.url("TransIn"), headers={"X-Tenant": "a b", "Trace-Bin": "é"}))

    assert (result.outcome, result.code, result.detail, result.called) == (Outcome.SUCCESS, 0, "", True)
    assert result.duration_us > 0
    [seen] = it.received
    assert (seen.path, seen.message) == ("/busi.Busi/TransIn", b"\x00\xff{}")
    assert str(seen.metadata.pop("user-agent")).startswith("txcoord/")
    assert seen.metadata == {
        "dtm-gid": "g1",
        "dtm-trans_type": "saga",
        "dtm-branch_id": "01",
        "dtm-op": "action",
        "dtm-dtm": "",
        "x-tenant": "a b",
        "trace-bin": "é".encode(),
    }
    assert seen.time_left_s is not None
    assert 10 < seen.time_left_s < 21


def test_on_uvloop_too() -> None:
    async def call() -> None:
        dispatcher = GrpcDispatcher()
        async with GrpcParticipant() as it:
            results = await asyncio.gather(*[dispatcher.call(request(it.url("In"))) for _ in range(100)])
            await dispatcher.close()
        assert {result.outcome for result in results} == {Outcome.SUCCESS}

    uvloop.run(call())


async def test_a_check_back_is_an_empty_message(it: GrpcParticipant, dispatcher: GrpcDispatcher) -> None:
    await dispatcher.call(request(it.url("Query"), pattern=Pattern.MSG, op=Op.MSG, branch_id="00", payload=b""))

    [seen] = it.received
    assert (seen.message, seen.metadata["dtm-branch_id"], seen.op) == (b"", "00", "msg")


async def test_a_workflow_is_resumed_with_its_input(it: GrpcParticipant, dispatcher: GrpcDispatcher) -> None:
    resume = request(
        f"{it.address}/workflow.Workflow/Execute",
        pattern=Pattern.WORKFLOW,
        op="transfer",
        branch_id="00",
        payload=b"\xff",
    )

    assert (await dispatcher.call(resume)).outcome is Outcome.SUCCESS

    [seen] = it.received
    assert seen.path == "/workflow.Workflow/Execute"
    assert WorkflowData.FromString(seen.message).Data == b"\xff"
    assert (seen.op, seen.metadata["dtm-trans_type"]) == ("transfer", "workflow")


async def test_ids_beyond_ascii_are_percent_encoded(it: GrpcParticipant, dispatcher: GrpcDispatcher) -> None:
    result = await dispatcher.call(request(it.url("In"), gid="g-é", branch_id="0 %1", op="Überweisung"))

    assert result.outcome is Outcome.SUCCESS
    [seen] = it.received
    assert (seen.gid, seen.metadata["dtm-branch_id"], seen.op) == ("g-%C3%A9", "0 %1", "%C3%9Cberweisung")


def test_headers_that_only_the_sender_knows_are_left_out() -> None:
    names = ("Content-Type", "TE", "Host", "User-Agent", "Grpc-Timeout", "grpc-trace-bin", "DTM-Gid", "connection")

    assert make_metadata((name, "x") for name in names) == ()
    assert make_metadata([("X-A", "1"), ("x-a", "2")]) == (("x-a", "2"),)


@pytest.mark.parametrize(("name", "value"), [("x$y", "1"), ("x-a", "é"), ("x-a", "a\tb"), ("", "1"), ("ü", "1")])
async def test_a_header_that_cannot_be_metadata_is_unknown(
    it: GrpcParticipant, dispatcher: GrpcDispatcher, name: str, value: str
) -> None:
    with pytest.raises(BadHeaderError):
        make_metadata([(name, value)])

    result = await dispatcher.call(request(it.url("In"), headers={name: value}))

    assert (result.outcome, result.code, result.called) == (Outcome.UNKNOWN, 0, True)
    assert "cannot be sent over gRPC" in result.detail
    assert not it.received


def test_urls() -> None:
    target = parse_target("[::1]:50051/a.b.C/D")

    assert (target.host, target.port, target.method) == ("::1", 50051, "/a.b.C/D")
    assert (target.address, target.origin) == ("dns:///[::1]:50051", "grpc://[::1]:50051")
    assert parse_target("Unix:1/C/D").address == "dns:///unix:1"
    assert parse_target("orders/C/D").port == 443


BAD_URLS = [
    "",
    "x",
    "host:1/a",
    "host:0/a.B/C",
    "host:99999/a.B/C",
    "unix:///tmp/x/a.B/C",
    "h:1/a.B/C?x=1",
    "h:1/ä.B/C",
]


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_url_that_cannot_be_called_is_unknown(dispatcher: GrpcDispatcher, url: str) -> None:
    with pytest.raises(BadUrlError):
        parse_target(url)

    result = await dispatcher.call(request(url))

    assert (result.outcome, result.code) == (Outcome.UNKNOWN, 0)
    assert "cannot be called over gRPC" in result.detail


# -- what an answer means ------------------------------------------------------------------

ANSWERS: dict[str, tuple[Answer, Outcome, str]] = {
    "failure": (failure("no money"), Outcome.FAILURE, "no money"),
    "failure without a word": (failure(""), Outcome.FAILURE, ""),
    "failure that quotes": (failure("is ONGOING"), Outcome.FAILURE, "is ONGOING"),
    "ongoing": (ONGOING, Outcome.ONGOING, "not yet"),
    "ongoing of old clients": (OLD_ONGOING, Outcome.ONGOING, "ONGOING"),
    "error": (ERROR, Outcome.UNKNOWN, "gRPC INTERNAL: out of order FAILURE"),
    "error without a word": ((grpc.StatusCode.UNKNOWN, ""), Outcome.UNKNOWN, "gRPC UNKNOWN"),
    "control characters": (failure("a\nb"), Outcome.FAILURE, "a b"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_answers(it: GrpcParticipant, dispatcher: GrpcDispatcher, name: str) -> None:
    status, outcome, detail = ANSWERS[name]
    it.script("In", status)

    result = await dispatcher.call(request(it.url("In")))

    assert (result.outcome, result.code, result.detail) == (outcome, status[0].value[0], detail)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0] not in (0, 9, 10)])
async def test_every_other_status_is_unknown_and_counts_as_an_answer(
    it: GrpcParticipant, code: grpc.StatusCode
) -> None:
    dispatcher = GrpcDispatcher(DispatchSettings(breaker_failures=1))
    it.script("In", *[(code, "so it is")] * 2)

    results = [await dispatcher.call(request(it.url("In"))) for _ in range(2)]
    await dispatcher.close()

    assert [(each.outcome, each.code, each.called) for each in results] == [(Outcome.UNKNOWN, code.value[0], True)] * 2
    assert results[0].detail == f"gRPC {code.name}: so it is"
    assert len(it.received) == 2, "the breaker must not open"


async def test_a_method_that_is_not_there_is_unknown(it: GrpcParticipant, dispatcher: GrpcDispatcher) -> None:
    it.service = lambda details: None  # type: ignore[method-assign]

    result = await dispatcher.call(request(it.url("Nope")))

    assert (result.outcome, result.code) == (Outcome.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED.value[0])


async def test_an_answer_that_is_too_long_is_unknown(it: GrpcParticipant, dispatcher: GrpcDispatcher) -> None:
    it.reply = b"x" * 1001

    result = await dispatcher.call(request(it.url("In")))

    assert (result.outcome, result.code) == (Outcome.UNKNOWN, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
    assert len(it.received) == 1


async def test_a_long_reason_is_cut(it: GrpcParticipant) -> None:
    dispatcher = GrpcDispatcher(DispatchSettings(detail_bytes=20))
    it.script("In", failure("é" * 100))

    result = await dispatcher.call(request(it.url("In")))
    await dispatcher.close()

    assert (result.outcome, result.detail) == (Outcome.FAILURE, "é" * 10)


# -- endpoints that are no good --------------------------------------------------------------


async def test_a_dead_endpoint_is_unknown_without_a_code(dispatcher: GrpcDispatcher) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        result = await dispatcher.call(request(f"127.0.0.1:{reserved.getsockname()[1]}/busi.Busi/In"))

    assert (result.outcome, result.code, result.called) == (Outcome.UNKNOWN, 0, True)
    assert "Connection refused" in result.detail
    assert result.detail.startswith("grpc://127.0.0.1:")


async def test_a_name_that_does_not_resolve_is_unknown(dispatcher: GrpcDispatcher) -> None:
    result = await dispatcher.call(request("nowhere.invalid:1/busi.Busi/In"))

    assert (result.outcome, result.code, result.called) == (Outcome.UNKNOWN, 0, True)


async def test_an_endpoint_that_hangs_is_unknown_when_its_time_is_up(
    it: GrpcParticipant, dispatcher: GrpcDispatcher
) -> None:
    it.hold("In")

    result = await dispatcher.call(request(it.url("In"), timeout_s=0.3))

    assert (result.outcome, result.code, result.called) == (Outcome.UNKNOWN, 0, True)
    assert result.detail == f"grpc://{it.address}: no answer came within 0.3 s"
    assert result.duration_us >= 300_000


async def test_an_endpoint_that_accepts_and_says_nothing_is_unknown() -> None:
    dispatcher = GrpcDispatcher(DispatchSettings(connect_timeout_s=0.3))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        result = await dispatcher.call(request(f"127.0.0.1:{silent.getsockname()[1]}/busi.Busi/In", timeout_s=10))
    await dispatcher.close()

    assert (result.outcome, result.code, result.called) == (Outcome.UNKNOWN, 0, True)
    assert result.duration_us < 10_000_000, "the limit for connecting is the shorter one"


@asynccontextmanager
async def speaking(garbage: bytes) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


GARBAGE = {
    "binary": bytes(range(256)),
    "text": b"220 mail ready\r\n",
    "HTTP/1.1": answer(200, b'{"dtm_result":"FAILURE"}'),
    "hangs up": b"",
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_an_endpoint_that_speaks_something_else_is_unknown(dispatcher: GrpcDispatcher, name: str) -> None:
    async with speaking(GARBAGE[name]) as port:
        result = await dispatcher.call(request(f"127.0.0.1:{port}/busi.Busi/In", timeout_s=5))

    assert (result.outcome, result.code, result.called) == (Outcome.UNKNOWN, 0, True)


async def test_an_http_participant_that_is_called_over_grpc_is_unknown(dispatcher: GrpcDispatcher) -> None:
    async with http_participant(plays(answer(409, b"FAILURE"), close=True)) as web:
        result = await dispatcher.call(request(f"127.0.0.1:{web.port}/busi.Busi/In", timeout_s=5))

    assert result.outcome is Outcome.UNKNOWN


# -- limits, breaker, life ---------------------------------------------------------------------


async def until(results: Callable[[], Awaitable[CallResult]], outcome: Outcome) -> CallResult:
    async with asyncio.timeout(15):
        while (result := await results()).outcome is not outcome:
            await asyncio.sleep(0.02)
    return result


async def test_a_dead_endpoint_is_held_off_and_found_again() -> None:
    clock = Clock()
    dispatcher = GrpcDispatcher(DispatchSettings(breaker_failures=2, breaker_hold_s=30), clock=clock)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        url = f"127.0.0.1:{port}/busi.Busi/In"
        failed = [await dispatcher.call(request(url)) for _ in range(2)]
        held = await dispatcher.call(request(url))
    assert [each.called for each in failed] == [True, True]
    assert (held.outcome, held.called) == (Outcome.UNKNOWN, False)
    assert held.retry_after_s > 0
    assert "held off after 2 calls in a row without an answer" in held.detail

    async with GrpcParticipant(port=port):
        clock.now += 60
        # At once: the probe has a channel of its own, that waits for nothing.
        probe = await dispatcher.call(request(url))
        after = await dispatcher.call(request(url))
    await dispatcher.close()

    assert (probe.outcome, after.outcome) == (Outcome.SUCCESS, Outcome.SUCCESS)


async def test_calls_that_time_out_open_the_breaker(it: GrpcParticipant) -> None:
    gate = it.hold("In")
    dispatcher = GrpcDispatcher(DispatchSettings(breaker_failures=2, breaker_hold_s=0.05, breaker_hold_max_s=0.05))
    first = asyncio.create_task(dispatcher.call(request(it.url("In"))))
    await it.called("In", "g1")

    late = [await dispatcher.call(request(it.url("In"), timeout_s=0.2)) for _ in range(2)]
    held = await dispatcher.call(request(it.url("In")))
    gate.set()

    assert [each.called for each in late] == [True, True]
    assert not held.called
    assert (await first).outcome is Outcome.SUCCESS, "a call under way keeps its channel until it ends"
    assert (await until(lambda: dispatcher.call(request(it.url("In"))), Outcome.SUCCESS)).called
    await dispatcher.close()


async def test_a_late_failure_does_not_take_the_probes_channel(it: GrpcParticipant) -> None:
    clock = Clock()
    it.hold("Never")
    dispatcher = GrpcDispatcher(DispatchSettings(breaker_failures=1, breaker_hold_s=5), clock=clock)
    late = asyncio.create_task(dispatcher.call(request(it.url("Never"), timeout_s=0.6)))
    first = asyncio.create_task(dispatcher.call(request(it.url("Never"), timeout_s=0.2)))
    await it.called("Never", "g1", times=2)
    clock.now += 0.3
    assert "no answer came" in (await first).detail
    clock.now += 60
    gate = it.hold("Slow")
    probe = asyncio.create_task(dispatcher.call(request(it.url("Slow"))))
    await it.called("Slow", "g1")

    assert "no answer came" in (await late).detail
    gate.set()
    assert (await probe).outcome is Outcome.SUCCESS
    await dispatcher.call(request(it.url("In")))
    await dispatcher.close()

    peers = {call.method: call.peer for call in it.received}
    assert peers["In"] == peers["Slow"] != peers["Never"]


async def test_an_endpoint_has_so_many_calls_at_once_and_no_more(it: GrpcParticipant) -> None:
    gate = it.hold("In")
    dispatcher = GrpcDispatcher(DispatchSettings(max_in_flight=2, max_waiting=1))
    running = [asyncio.create_task(dispatcher.call(request(it.url("In")))) for _ in range(2)]
    await it.called("In", "g1", times=2)
    short = await dispatcher.call(request(it.url("In"), timeout_s=0.1))
    waits = asyncio.create_task(dispatcher.call(request(it.url("In"))))
    await asyncio.sleep(0)
    refused = await dispatcher.call(request(it.url("In")))

    assert len(it.received) == 2
    gate.set()
    results = [*await asyncio.gather(*running), await waits]
    await dispatcher.close()

    assert {each.outcome for each in results} == {Outcome.SUCCESS}
    assert (short.called, "places for calls were taken" in short.detail) == (False, True)
    assert (refused.called, "1 calls wait for it already" in refused.detail) == (False, True)


async def test_idle_endpoints_make_room() -> None:
    dispatcher = GrpcDispatcher(DispatchSettings(max_endpoints=1))
    async with GrpcParticipant() as one, GrpcParticipant() as other:
        gate = one.hold("Slow")
        assert (await dispatcher.call(request(one.url("In")))).outcome is Outcome.SUCCESS
        assert (await dispatcher.call(request(other.url("In")))).outcome is Outcome.SUCCESS
        slow = asyncio.create_task(dispatcher.call(request(one.url("Slow"))))
        await one.called("Slow", "g1")
        refused = await dispatcher.call(request(other.url("In")))
        gate.set()
        assert (await slow).outcome is Outcome.SUCCESS
        await dispatcher.close()

    assert (refused.called, "1 other endpoints are being called" in refused.detail) == (False, True)


async def test_a_participant_that_was_started_anew_is_called_again(dispatcher: GrpcDispatcher) -> None:
    async with GrpcParticipant() as first:
        assert (await dispatcher.call(request(first.url("In")))).outcome is Outcome.SUCCESS
        url, port = first.url("In"), first.port
    async with GrpcParticipant(port=port):
        await until(lambda: dispatcher.call(request(url)), Outcome.SUCCESS)


async def test_a_participant_that_dies_under_a_call_is_unknown(dispatcher: GrpcDispatcher) -> None:
    async with GrpcParticipant() as it:
        it.hold("In")
        call = asyncio.create_task(dispatcher.call(request(it.url("In"))))
        await it.called("In", "g1")
        await it._server.stop(0)
        result = await call

    assert (result.outcome, result.called) == (Outcome.UNKNOWN, True)


async def test_cancelling_the_caller_ends_the_call(it: GrpcParticipant, dispatcher: GrpcDispatcher) -> None:
    it.hold("In")
    call = asyncio.create_task(dispatcher.call(request(it.url("In"))))
    await it.called("In", "g1")

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await dispatcher.call(request(it.url("Other")))).outcome is Outcome.SUCCESS


async def test_closing_ends_calls_under_way_as_unknown(it: GrpcParticipant) -> None:
    it.hold("In")
    dispatcher = GrpcDispatcher(DispatchSettings(max_in_flight=1))
    calls = [asyncio.create_task(dispatcher.call(request(it.url("In")))) for _ in range(2)]
    await it.called("In", "g1")

    await dispatcher.close()
    results = [*await asyncio.gather(*calls), await dispatcher.call(request(it.url("In")))]

    assert {(each.outcome, "the coordinator is stopping" in each.detail) for each in results} == {
        (Outcome.UNKNOWN, True)
    }
    assert not results[2].called


async def test_metrics_show_how_participants_stand(it: GrpcParticipant) -> None:
    def shown() -> dict[str, list[float]]:
        lines = metrics.exposition().decode().splitlines()
        names = ("endpoints", "endpoints_held_off", "endpoint_calls", "endpoint_waiting")
        return {
            protocol: [
                float(line.split()[-1])
                for name in names
                for line in lines
                if line.startswith(f'txcoord_{name}{{protocol="{protocol}"}}')
            ]
            for protocol in ("grpc", "http")
        }

    dispatcher = RoutingDispatcher(DispatchSettings(breaker_failures=1, max_in_flight=2))
    gate = it.hold("Slow")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        await dispatcher.call(request(f"127.0.0.1:{port}/busi.Busi/In"))
        await dispatcher.call(request(f"http://127.0.0.1:{port}/in"))
    slow = [asyncio.create_task(dispatcher.call(request(it.url("Slow")))) for _ in range(3)]

    async with asyncio.timeout(10):
        while shown() != {"grpc": [2, 1, 2, 1], "http": [1, 1, 0, 0]}:
            await asyncio.sleep(0.02)
    gate.set()
    await asyncio.gather(*slow)
    await dispatcher.close()

    assert shown() == {"grpc": [0, 0, 0, 0], "http": [0, 0, 0, 0]}


# -- which dispatcher makes a call ---------------------------------------------------------------


async def test_the_protocol_and_the_url_choose_the_way(it: GrpcParticipant) -> None:
    dispatcher = RoutingDispatcher()
    async with http_participant(plays(answer(200, b'{"jsonrpc":"2.0","result":null,"id":"x"}'))) as web:
        ways = [
            request(it.url("In")),
            request(it.url("In"), protocol="json-rpc"),
            request(f"{web.base}/plain"),
            request(f"{web.base}/rpc?method=x", protocol="json-rpc", payload=b"{}"),
        ]
        outcomes = [(await dispatcher.call(way)).outcome for way in ways]
        without_scheme = await dispatcher.call(request(it.url("In"), protocol="http"))
        await dispatcher.close()

    assert outcomes == [Outcome.SUCCESS] * 4
    assert len(it.received) == 2
    assert [seen.target.partition("?")[0] for seen in web.received] == ["/plain", "/rpc"]
    assert without_scheme.outcome is Outcome.UNKNOWN
