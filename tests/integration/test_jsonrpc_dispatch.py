"""Calls over JSON-RPC: which calls they are, the request as the participant sees it, and odd answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.http_participant import Clock, answer, participant, plays, request
from txcoord.dispatch.base import BranchRequest
from txcoord.dispatch.router import RoutingDispatcher
from txcoord.dispatch.settings import DispatchSettings
from txcoord.model import Op, Outcome, Pattern

DONE = answer(200, b'{"jsonrpc":"2.0","id":"x","error":null,"result":null}')


@pytest.fixture
async def dispatcher() -> AsyncIterator[RoutingDispatcher]:
    it = RoutingDispatcher(DispatchSettings(max_body_bytes=1000, max_in_flight=4))
    yield it
    await it.close()


def over_json_rpc(url: str, **changes: Any) -> BranchRequest:
    return request(url, protocol="json-rpc", **changes)


async def test_a_call_is_a_post_of_one_request(dispatcher: RoutingDispatcher) -> None:
    async with participant(plays(DONE)) as it:
        called = over_json_rpc(it.base + "/rpc?method=TransIn&a=1", payload=b'{"id":3}', headers={"X-Tenant": "t1"})
        result = await dispatcher.call(called)

    assert (result.outcome, result.code, result.called) == (Outcome.SUCCESS, 200, True)
    [seen] = it.received
    assert (seen.method, seen.target) == ("POST", "/rpc?method=TransIn&a=1")
    assert seen.header("Content-Type") == "application/json"
    assert seen.header("X-Tenant") == "t1"
    assert json.loads(seen.body) == {
        "jsonrpc": "2.0",
        "id": "g1/saga/01/action",
        "method": "TransIn",
        "params": {"id": 3, "gid": "g1", "trans_type": "saga", "branch_id": "01", "op": "action"},
    }


async def test_a_call_without_a_payload_says_only_which_it_is(dispatcher: RoutingDispatcher) -> None:
    async with participant(plays(DONE)) as it:
        await dispatcher.call(
            over_json_rpc(it.base + "/?method=Q", payload=b"", op=Op.MSG, branch_id="00", pattern=Pattern.MSG)
        )

    [seen] = it.received
    assert seen.method == "POST"
    assert json.loads(seen.body)["params"] == {"gid": "g1", "trans_type": "msg", "branch_id": "00", "op": "msg"}


@pytest.mark.parametrize(
    ("protocol", "target", "called"),
    [
        pytest.param("json-rpc", "/rpc?method=A", "/rpc?method=A", id="JSON-RPC"),
        pytest.param("json-rpc", "/rpc", "/rpc?branch_id=01&gid=g1&op=action&trans_type=saga", id="no method"),
        pytest.param(
            "http", "/?method=A", "/?method=A&branch_id=01&gid=g1&op=action&trans_type=saga", id="another protocol"
        ),
    ],
)
async def test_the_protocol_and_the_url_decide(
    dispatcher: RoutingDispatcher, protocol: str, target: str, called: str
) -> None:
    async with participant(plays(DONE)) as it:
        await dispatcher.call(request(it.base + target, protocol=protocol))

    assert [seen.target for seen in it.received] == [called]


@pytest.mark.parametrize(
    ("body", "outcome", "detail"),
    [
        (b'{"error":{"code":-32901,"message":"no money"}}', Outcome.FAILURE, "no money"),
        (b'{"error":{"code":-32902,"message":"later"}}', Outcome.ONGOING, "later"),
        (b'{"error":{"code":-32000,"message":"boom"}}', Outcome.UNKNOWN, "JSON-RPC error -32000: boom"),
        (b"<html>", Outcome.UNKNOWN, "HTTP 200, but no JSON-RPC reply: <html>"),
    ],
)
async def test_the_code_of_the_error_decides(
    dispatcher: RoutingDispatcher, body: bytes, outcome: Outcome, detail: str
) -> None:
    async with participant(plays(answer(200, body))) as it:
        result = await dispatcher.call(over_json_rpc(it.base + "/?method=A"))

    assert (result.outcome, result.code, result.detail) == (outcome, 200, detail)


async def test_a_payload_that_is_no_object_is_not_sent(dispatcher: RoutingDispatcher) -> None:
    async with participant(plays(DONE)) as it:
        result = await dispatcher.call(over_json_rpc(it.base + "/?method=A", payload=b"[1]"))

    assert it.received == []
    assert (result.outcome, result.code) == (Outcome.UNKNOWN, 0)
    assert result.detail.startswith("the payload is JSON, but not an object; the params of a JSON-RPC call must be")


async def test_a_url_that_cannot_be_called_is_an_outcome(dispatcher: RoutingDispatcher) -> None:
    result = await dispatcher.call(over_json_rpc("http:///?method=A"))

    assert result.outcome is Outcome.UNKNOWN
    assert "it has no host" in result.detail


async def test_an_answer_that_was_not_read_whole_is_unknown(dispatcher: RoutingDispatcher) -> None:
    body = b'{"result":"' + b"x" * 2000 + b'"}'
    async with participant(plays(answer(200, body))) as it:
        result = await dispatcher.call(over_json_rpc(it.base + "/?method=A"))

    assert result.outcome is Outcome.UNKNOWN
    assert result.detail.startswith("HTTP 200: ")


async def test_the_breaker_is_that_of_the_endpoint_whatever_the_protocol() -> None:
    async with participant(plays(DONE)) as it:
        base = it.base
    dispatcher = RoutingDispatcher(DispatchSettings(breaker_failures=1), clock=Clock())
    try:
        first = await dispatcher.call(over_json_rpc(base + "/?method=A"))
        second = await dispatcher.call(request(base + "/"))
    finally:
        await dispatcher.close()

    assert (first.called, first.outcome) == (True, Outcome.UNKNOWN)
    assert not second.called
    assert second.retry_after_s > 0
