"""The JSON-RPC API over a service that answers what the test says: forms, codes, ids, rubbish."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.test_api_answers import ERRORS, FakeService
from txcoord.api import replies
from txcoord.api.http import HttpApi
from txcoord.errors import TransactionNotFoundError
from txcoord.model import Status
from txcoord.request import BranchRegistration, SubmitResult

MAX_BODY = 1000


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def http(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=HttpApi(service, max_body_bytes=MAX_BODY))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://coordinator") as client:
        yield client


async def send(http: httpx.AsyncClient, body: bytes | str) -> tuple[int, Any]:
    answer = await http.post("/api/json-rpc", content=body)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    return answer.status_code, answer.json()


async def call(http: httpx.AsyncClient, method: str, params: object = None, *, id_: object = "7") -> Any:
    status, reply = await send(http, json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}))
    assert status == 200
    return reply


def done(result: object = None, id_: object = "7") -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id_, "error": None, "result": result}


def refused(code: int, message: str, *, result: object = None, id_: object = "7") -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id_, "error": {"code": code, "message": message}, "result": result}


# -- methods -----------------------------------------------------------------------------


@pytest.mark.parametrize("params", [None, {}, "anything", ["a"], 5])
async def test_a_new_gid_is_given_whatever_the_params(http: httpx.AsyncClient, params: object) -> None:
    assert await call(http, "newGid", params) == done({"gid": "a-new-gid"})


@pytest.mark.parametrize("method", ["prepare", "submit", "abort"])
async def test_params_are_the_body_of_http(http: httpx.AsyncClient, service: FakeService, method: str) -> None:
    params = {"gid": "g\n1;", "Trans_Type": "tcc", "payloads": ["{}"], "wait_result": True, "owner": "me"}

    assert await call(http, method, params) == done()

    [request] = service.asked
    assert (request.gid, request.trans_type, request.payloads, request.wait_result) == ("g1", "tcc", (b"{}",), True)


async def test_a_branch_is_registered(http: httpx.AsyncClient, service: FakeService) -> None:
    params = {"gid": "g1;", "trans_type": "tcc", "branch_id": "01", "data": "{}", "confirm": "http://c", "cancel": ""}

    assert await call(http, "registerBranch", params) == done()

    assert service.asked == [
        BranchRegistration(gid="g1", trans_type="tcc", branch_id="01", data=b"{}", confirm="http://c")
    ]


# -- what goes wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(("error", "code", "body"), ERRORS.values(), ids=ERRORS)
async def test_an_error_says_over_json_rpc_what_it_says_over_http(
    http: httpx.AsyncClient, service: FakeService, error: Exception, code: int, body: dict[str, str]
) -> None:
    service.error = error

    reply = await call(http, "submit", {"gid": "g1"})

    assert reply == refused(-32901 if code == 409 else -32603, body["message"], result={})


def test_only_a_conflict_is_a_definite_failure() -> None:
    for row in replies.ERROR_ROWS.values():
        assert (row.code == -32901) == (row.status == 409)


async def test_a_branch_of_nothing_is_a_failure(http: httpx.AsyncClient, service: FakeService) -> None:
    service.error = TransactionNotFoundError("g1")

    reply = await call(http, "registerBranch", {"gid": "g1"})

    assert reply == refused(-32901, "no trans with gid: g1 status: prepared found FAILURE", result={})


async def test_a_rollback_is_a_failure_and_what_still_runs_is_ongoing(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.result = SubmitResult(waited=True, status=Status.FAILED, reason="no money")
    assert await call(http, "submit", {"gid": "g1"}) == refused(-32901, "no money FAILURE", result={})

    service.result = SubmitResult(waited=True, status=Status.SUBMITTED, reason="busy")
    reply = await call(http, "submit", {"gid": "g1"})
    assert reply["error"]["code"] == -32902
    assert reply["error"]["message"].startswith("g1 is submitted and goes on by itself (busy)")
    assert reply["result"] == {}


async def test_what_nobody_expected_is_an_incident_in_the_log(http: httpx.AsyncClient, service: FakeService) -> None:
    service.error = KeyError("secret detail")

    with structlog.testing.capture_logs() as lines:
        reply = await call(http, "submit", {"gid": "g1"})

    [line] = lines
    assert line["exc_info"] is service.error
    assert reply["error"]["code"] == -32603
    assert line["incident"] in reply["error"]["message"]
    assert "secret" not in json.dumps(reply)
    assert (reply["id"], reply["result"]) == ("7", None)


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        pytest.param("submit", None, "", id="null"),
        pytest.param("submit", ["a"], "params must be a JSON object, not an array", id="array"),
        pytest.param("submit", "a", "params must be a JSON object, not a string", id="string"),
        pytest.param("submit", {"gid": 5}, "gid must be a string, not a number", id="type of a field"),
        pytest.param("registerBranch", {"data": 5}, "data must be a string, not a number", id="number in a branch"),
    ],
)
async def test_params_of_another_form_are_refused(
    http: httpx.AsyncClient, method: str, params: object, message: str
) -> None:
    expected = refused(-32603, message, result={}) if message else done()

    assert await call(http, method, params) == expected


async def test_absent_params_are_refused(http: httpx.AsyncClient) -> None:
    _, reply = await send(http, '{"jsonrpc":"2.0","id":"7","method":"submit"}')

    assert reply == refused(-32603, "params is empty; send a JSON object", result={})


# -- the envelope ------------------------------------------------------------------------


@pytest.mark.parametrize("id_", ["a", "no-use", "<ü>", 0, 7, -5, 1.5])
async def test_ids_are_echoed_as_they_came(http: httpx.AsyncClient, id_: object) -> None:
    assert await call(http, "newGid", id_=id_) == done({"gid": "a-new-gid"}, id_)
    assert (await call(http, "nope", id_=id_))["id"] == id_


async def test_a_number_keeps_its_digits(http: httpx.AsyncClient) -> None:
    body = '{"jsonrpc":"2.0","id":123456789012345678901234567890.10,"method":"newGid"}'

    answer = await http.post("/api/json-rpc", content=body)

    assert '"id":123456789012345678901234567890.10,' in answer.text


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"hello", id="text"),
        pytest.param(b'{"jsonrpc":"2.0"', id="cut"),
        pytest.param(b'"x"', id="a string"),
        pytest.param(b'{"jsonrpc":"2.0","id":true,"method":"newGid"}', id="id true"),
        pytest.param(b'{"jsonrpc":"2.0","id":["a"],"method":"newGid"}', id="id in an array"),
        pytest.param(b'{"jsonrpc":"2.0","id":"\xff","method":"newGid"}', id="id no text"),
        pytest.param(b'{"jsonrpc":"2.0","id":"1","method":5}', id="method a number"),
        pytest.param(b'{"jsonrpc":2.0,"id":"1","method":"newGid"}', id="version a number"),
        pytest.param(b'{"params":' + b"[" * 450 + b"]" * 450 + b"", id="deep and cut"),
    ],
)
async def test_what_cannot_be_read_is_a_parse_error(http: httpx.AsyncClient, body: bytes) -> None:
    status, reply = await send(http, body)

    assert (status, reply["id"], reply["error"]["code"], reply["result"]) == (400, "", -32700, None)
    assert reply["error"]["message"].startswith("Parse json error: ")


@pytest.mark.parametrize(
    ("body", "id_", "why"),
    [
        pytest.param('{"jsonrpc":"1.0","id":"1","method":"newGid"}', "1", "jsonrpc must be '2.0'", id="version"),
        pytest.param('{"id":"1","method":"newGid"}', "1", "jsonrpc must be '2.0'", id="no version"),
        pytest.param('{"jsonrpc":"2.0","id":"","method":"newGid"}', "", "notifications are not taken", id="empty id"),
        pytest.param('{"jsonrpc":"2.0","id":null,"method":"newGid"}', "", "notifications are not taken", id="null id"),
        pytest.param('{"jsonrpc":"2.0","method":"newGid"}', "", "notifications are not taken", id="notification"),
        pytest.param('[{"jsonrpc":"2.0","id":"1","method":"newGid"}]', "", "batches are not taken", id="batch"),
    ],
)
async def test_a_bad_request_says_why(http: httpx.AsyncClient, body: str, id_: str, why: str) -> None:
    status, reply = await send(http, body)

    assert (status, reply["id"], reply["error"]["code"], reply["result"]) == (200, id_, -32600, None)
    assert reply["error"]["message"].startswith("Bad json request: ")
    assert why in reply["error"]["message"]


@pytest.mark.parametrize("method", ["query", "prepareWorkflow", "Submit", "", "x" * 500])
async def test_an_unknown_method_is_named(http: httpx.AsyncClient, method: str) -> None:
    assert await call(http, method) == refused(-32601, f"Method not found: {method[:200]}")


async def test_a_body_that_is_too_large_is_refused(http: httpx.AsyncClient) -> None:
    status, reply = await send(http, b" " * (MAX_BODY + 1))

    assert (status, reply["id"], reply["error"]["code"]) == (413, "", -32603)
    assert f"larger than {MAX_BODY} bytes" in reply["error"]["message"]


async def test_other_methods_of_http_are_not_found(http: httpx.AsyncClient) -> None:
    assert (await http.get("/api/json-rpc")).status_code == 404


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
methods = st.sampled_from(["newGid", "prepare", "submit", "abort", "registerBranch"])
almost_requests = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | json_values,
        "id": st.text(max_size=5) | st.integers() | json_values,
        "method": methods | json_values,
        "params": st.dictionaries(st.sampled_from(["gid", "steps", "payloads", "data", "confirm"]), json_values)
        | json_values,
    },
).map(lambda value: json.dumps(value).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(body=st.binary(max_size=80) | almost_requests)
async def test_no_rubbish_is_an_incident(http: httpx.AsyncClient, body: bytes) -> None:
    with structlog.testing.capture_logs() as lines:
        status, reply = await send(http, body)

    assert not lines
    assert status in (200, 400, 413)
    assert set(reply) == {"jsonrpc", "id", "error", "result"}
