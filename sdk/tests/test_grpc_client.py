"""How transactions are asked for and branches called over gRPC: what is written, and how answers are read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int64Value

from sdk.tests.client_support import Answer, Client, scripted_coordinator
from sdk.tests.grpc_support import handler_of, serving_async
from tests.certificates import Authority
from txcoord.model import Status
from txcoord.proto import dtm_pb2, txcoord_pb2
from txcoord_sdk import (
    AsyncCoordinator,
    Coordinator,
    CoordinatorUnreachableError,
    Message,
    Outcome,
    RequestRefusedError,
    Saga,
    TransactionFailedError,
    TransactionNotFoundError,
    TransactionRunningError,
    TryFailedError,
)
from txcoord_sdk._branch_calls import branch_call, understood
from txcoord_sdk._calls import GrpcAnswer, GrpcCall, HttpAnswer, HttpCall, NoAnswer
from txcoord_sdk._checks import base_url
from txcoord_sdk._grpc_wire import GrpcWire
from txcoord_sdk._rules import Rules

URL = "bank:9000/bank.Purses/Out"
AMOUNT = Int64Value(value=200)
CODES = grpc.StatusCode


def answered(code: grpc.StatusCode, message: str = "", body: bytes = b"") -> GrpcAnswer:
    return GrpcAnswer(code=code.value[0], name=code.name, message=message, body=body)


def written(path: str, **fields: Any) -> GrpcCall:
    call = GrpcWire("grpc://c:1").call("POST", f"/api/dtmsvr{path}", query={}, body=fields, timeout_s=7)
    assert isinstance(call, GrpcCall)
    assert (call.target, call.timeout_s, call.is_branch) == ("c:1", 7, False)
    return call


# -- requests ------------------------------------------------------------------------------


def test_a_saga_is_written_as_dtm_s_message() -> None:
    saga = Saga(
        "g1",
        concurrent=True,
        wait_result=True,
        timeout_to_fail=2,
        request_timeout=3,
        retry_interval=4,
        retry_limit=5,
        branch_headers={"X-Tenant": "t1"},
    )
    first = saga.step(URL, URL, AMOUNT)
    saga.step("http://shop/pay", "", {"id": 3}, after=[first])

    call = written("/submit", **saga.request())

    assert call.method == "/dtmgimp.Dtm/Submit"
    assert dtm_pb2.DtmRequest.FromString(call.message) == dtm_pb2.DtmRequest(
        Gid="g1",
        TransType="saga",
        TransOptions=dtm_pb2.DtmTransOptions(
            WaitResult=True,
            TimeoutToFail=2,
            RequestTimeout=3,
            RetryInterval=4,
            RetryLimit=5,
            BranchHeaders={"X-Tenant": "t1"},
        ),
        CustomedData='{"orders":{"1":[0]},"concurrent":true}',
        BinPayloads=[AMOUNT.SerializeToString(), b'{"id":3}'],
        Steps=json.dumps(
            [{"action": URL, "compensate": URL}, {"action": "http://shop/pay", "compensate": ""}], separators=(",", ":")
        ),
    )


def test_a_message_that_is_concurrent_says_so_where_there_is_room() -> None:
    message = Message("g1", concurrent=True, delay=60)
    message.step(URL, AMOUNT)

    call = written("/prepare", **message.prepare_request("shop:9000/txcoord.v1.CheckBack/QueryPrepared"))

    request = dtm_pb2.DtmRequest.FromString(call.message)
    assert call.method == "/dtmgimp.Dtm/Prepare"
    assert json.loads(request.CustomedData) == {"delay": 60, "concurrent": True}
    assert request.QueryPrepared == "shop:9000/txcoord.v1.CheckBack/QueryPrepared"


def test_a_branch_is_written_with_its_payload_apart() -> None:
    call = written(
        "/registerBranch", gid="g1", trans_type="tcc", branch_id="01", confirm=URL, cancel="", data=b"\xff", op="try"
    )

    assert call.method == "/dtmgimp.Dtm/RegisterBranch"
    assert dtm_pb2.DtmBranchRequest.FromString(call.message) == dtm_pb2.DtmBranchRequest(
        Gid="g1",
        TransType="tcc",
        BranchID="01",
        Op="try",
        Data={"confirm": URL, "cancel": "", "op": "try"},
        BusiPayload=b"\xff",
    )


def test_an_abort_carries_its_reason_and_no_steps() -> None:
    call = written("/abort", gid="g1", trans_type="tcc", rollback_reason="no stock")

    request = dtm_pb2.DtmRequest.FromString(call.message)
    assert call.method == "/dtmgimp.Dtm/Abort"
    assert (request.RollbackReason, request.Steps, request.TransType) == ("no stock", "", "tcc")


@pytest.mark.parametrize("path", ["/forceStop", "/resetNextCronTime"])
def test_an_operator_s_request_names_the_gid(path: str) -> None:
    call = written(path, gid="g1")

    assert call.method.startswith("/txcoord.v1.Coordinator/")
    assert txcoord_pb2.Gid.FromString(call.message).gid == "g1"


def test_the_progress_of_a_workflow_is_read_as_http_s() -> None:
    wire = GrpcWire("grpc://c:1")
    call = written("/prepareWorkflow", gid="g1", trans_type="workflow")
    progress = dtm_pb2.DtmProgressesReply(
        Transaction=dtm_pb2.DtmTransaction(Gid="g1", Status="prepared", CustomedData='{"name":"buy"}'),
        Progresses=[dtm_pb2.DtmProgress(Status="succeed", BinData=b"\xff", BranchID="01", Op="action")],
    )

    answer = wire.answer(call, answered(CODES.OK, body=progress.SerializeToString()))

    assert isinstance(answer, HttpAnswer)
    assert json.loads(answer.body) == {
        "transaction": {
            "gid": "g1",
            "status": "prepared",
            "rollback_reason": "",
            "result": "",
            "custom_data": '{"name":"buy"}',
        },
        "progresses": [{"status": "succeed", "bin_data": "/w==", "branch_id": "01", "op": "action"}],
    }


# -- answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (CODES.ABORTED, 409),
        (CODES.FAILED_PRECONDITION, 425),
        (CODES.INVALID_ARGUMENT, 400),
        (CODES.NOT_FOUND, 404),
        (CODES.UNAUTHENTICATED, 401),
        (CODES.PERMISSION_DENIED, 403),
        (CODES.RESOURCE_EXHAUSTED, 413),
        (CODES.UNIMPLEMENTED, 404),
        (CODES.INTERNAL, 500),
        (CODES.UNKNOWN, 500),
    ],
    ids=str,
)
def test_a_code_is_read_as_the_status_of_http(code: grpc.StatusCode, status: int) -> None:
    answer = GrpcWire("grpc://c:1").answer(written("/forceStop", gid="g1"), answered(code, "why not"))

    assert answer == HttpAnswer(status=status, body=b'{"message":"why not"}')


def test_a_server_with_too_many_calls_is_asked_again() -> None:
    # What gRPC itself answers then is not the answer to a request that is too large, though the code is the same.
    answer = GrpcWire("grpc://c:1").answer(
        written("/forceStop", gid="g1"), answered(CODES.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
    )

    assert isinstance(answer, HttpAnswer)
    assert answer.status == 429


@pytest.mark.parametrize("code", [CODES.UNAVAILABLE, CODES.DEADLINE_EXCEEDED, CODES.CANCELLED], ids=str)
def test_where_no_answer_came_the_request_may_have_arrived(code: grpc.StatusCode) -> None:
    answer = GrpcWire("grpc://c:1").answer(written("/forceStop", gid="g1"), answered(code, "reset"))

    assert answer == NoAnswer(detail=f"{code.name}: reset", may_have_arrived=True)


DTM_S = ("Submit", "Prepare", "Abort", "RegisterBranch", "NewGid")


class Scripted:
    """A coordinator over gRPC that answers each method with what was scripted for it, in order."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self._script: dict[str, list[grpc.StatusCode | bytes]] = {}
        self.handlers = [
            handler_of({name: self._method(name) for name in DTM_S}, "dtmgimp.Dtm"),
            handler_of(
                {name: self._method(name) for name in ("Query", "ForceStop", "GetVersion", "List")},
                "txcoord.v1.Coordinator",
            ),
        ]

    def answers(self, name: str, *replies: grpc.StatusCode | bytes) -> None:
        self._script.setdefault(name, []).extend(replies)

    def stands(self, status: str, reason: str = "") -> None:
        transaction = {"gid": "g1", "trans_type": "saga", "status": status, "rollback_reason": reason}
        body = json.dumps({"transaction": transaction, "branches": []}).encode()
        self.answers("Query", txcoord_pb2.Json(json=body).SerializeToString())

    def _method(self, name: str) -> Callable[..., Any]:
        async def answer(_request: bytes, context: Any) -> bytes:
            self.called.append(name)
            reply = self._script[name].pop(0)
            if isinstance(reply, grpc.StatusCode):
                await context.abort(reply, "so it is with g1")
            return reply

        return answer


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
async def served(scripted: Scripted) -> AsyncIterator[str]:
    async with serving_async(*scripted.handlers) as target:
        yield f"grpc://{target}"


@pytest.fixture
async def client(served: str) -> AsyncIterator[AsyncCoordinator]:
    async with AsyncCoordinator(served, attempts=3, backoff=0.001, timeout=5) as client:
        yield client


def one_step(gid: str = "g1", **options: Any) -> Saga:
    saga = Saga(gid, **options)
    saga.step(URL, URL, AMOUNT)
    return saga


async def test_a_request_that_may_have_arrived_is_looked_up_before_it_is_sent_again(
    scripted: Scripted, client: AsyncCoordinator
) -> None:
    scripted.answers("Submit", CODES.UNAVAILABLE, CODES.INTERNAL)
    scripted.answers("Query", txcoord_pb2.Json(json=b'{"transaction":null,"branches":[]}').SerializeToString())
    scripted.stands("submitted")

    assert await client.submit(one_step()) == "g1"

    assert scripted.called == ["Submit", "Query", "Submit", "Query"]


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (CODES.ABORTED, "failed", TransactionFailedError),
        (CODES.FAILED_PRECONDITION, "submitted", TransactionRunningError),
    ],
    ids=str,
)
async def test_a_waiting_submit_says_how_it_stands(
    scripted: Scripted, client: AsyncCoordinator, code: grpc.StatusCode, status: str, error: type[Exception]
) -> None:
    scripted.answers("Submit", code)
    scripted.stands(status, "no stock")

    with pytest.raises(error, match="no stock"):
        await client.submit(one_step(wait_result=True))


async def test_what_is_refused_is_said_in_the_coordinator_s_words(scripted: Scripted, client: AsyncCoordinator) -> None:
    scripted.answers("Submit", CODES.INVALID_ARGUMENT)
    scripted.answers("ForceStop", CODES.NOT_FOUND)

    with pytest.raises(RequestRefusedError, match="so it is with g1"):
        await client.submit(one_step())
    with pytest.raises(TransactionNotFoundError):
        await client.force_stop("g1")


async def test_another_server_is_not_taken_for_a_coordinator(scripted: Scripted, client: AsyncCoordinator) -> None:
    scripted.answers("Query", b"\xff", txcoord_pb2.Json(json=b"no JSON").SerializeToString())

    for _ in range(2):
        with pytest.raises(CoordinatorUnreachableError, match="not as a coordinator does"):
            await client.query("g1")
    with pytest.raises(CoordinatorUnreachableError, match="status 404, Method not found"):
        await client.retry_now("g1")


@pytest.mark.parametrize("kind", [Coordinator, AsyncCoordinator])
def test_a_client_that_was_closed_can_be_closed_again(kind: Any) -> None:
    client = Client(kind, "grpc://127.0.0.1:1", attempts=1, timeout=5)
    with pytest.raises(CoordinatorUnreachableError):
        client.do("ping")
    client.do("close")
    client.close()


# -- addresses, URLs and payloads ----------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("grpc://c:1", "grpc://c:1"),
        ("grpc://c:1/", "grpc://c:1"),
        ("grpcs://c", "grpcs://c:36790"),
        ("grpc://[::1]:1", "grpc://[::1]:1"),
        ("http://c/api/dtmsvr/", "http://c"),
    ],
)
def test_an_address_has_one_form(given: str, url: str) -> None:
    assert base_url(given) == url


@pytest.mark.parametrize("url", ["grpc://", "grpc://c:x", "grpc://c:0", "grpc://c:1/path", "grpc://a@c:1", "c:1"])
def test_an_address_that_cannot_be_meant_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"the coordinator's URL"):
        Coordinator(url)


@pytest.mark.parametrize(
    ("make", "protocol"),
    [
        pytest.param(lambda: one_step(), "grpc", id="told by a URL"),
        pytest.param(lambda: one_step(protocol="grpc"), "grpc", id="said"),
        pytest.param(lambda: _of("http://shop/pay"), None, id="HTTP"),
        pytest.param(lambda: _of("http://shop/pay", protocol="grpc"), "grpc", id="said of HTTP"),
        pytest.param(lambda: _of("http://shop/pay", "bank:1/b.P/Out"), "grpc", id="mixed"),
    ],
)
def test_the_protocol_is_told_by_the_urls(make: Callable[[], Saga], protocol: str | None) -> None:
    assert make().request().get("protocol") == protocol


def _of(*urls: str, **options: Any) -> Saga:
    saga = Saga(**options)
    for url in urls:
        saga.step(url, payload=b"")
    return saga


def test_the_check_back_alone_tells_the_protocol_of_a_message() -> None:
    message = Message()
    message.step("http://gift/grant")

    assert message.prepare_request("shop:9000/txcoord.v1.CheckBack/QueryPrepared")["protocol"] == "grpc"


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (lambda: Saga().step("storage/deduct"), "host:port/package.Service/Method; a URL of HTTP begins with http://"),
        (lambda: Saga().step("bank:9000/Out"), "host:port/package.Service/Method"),
        (lambda: Saga().step(URL, payload={"id": 3}), "takes a protobuf message or bytes, not dict"),
        (lambda: Saga().step(URL, payload="text"), "takes a protobuf message or bytes, not str"),
        (lambda: Saga(protocol="json-rpc"), "protocol 'json-rpc' is not offered"),
        (lambda: Message(protocol="ftp"), "protocol 'ftp' is not offered"),
        (lambda: Saga(protocol="http").step(URL), "needs protocol='grpc'"),
        (lambda: Message(protocol="http").step(URL), "needs protocol='grpc'"),
        (lambda: branch_call(URL, b"", **BRANCH, headers={"X-A": "ä"}, timeout_s=1), "not printable ASCII"),
        (lambda: branch_call(URL, b"", **BRANCH, headers={"X!": "a"}, timeout_s=1), "not a name of metadata"),
    ],
)
def test_a_mistake_is_named_where_it_is_made(mistake: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mistake()


@pytest.mark.parametrize("payload", [b"", None], ids=["empty", "none"])
def test_no_payload_is_an_empty_message(payload: object) -> None:
    assert Saga().step(URL, payload=payload).payload == b""


def rules(url: str) -> Rules:
    return Rules(url=url, timeout_s=1, attempts=1, backoff_s=0, clock=lambda: 0, random=Random(1))


def test_the_http_api_refuses_bytes_that_it_cannot_carry_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match=r"must be UTF-8 text: .* gRPC API"):
        next(rules("http://c").submit(one_step()))
    assert isinstance(next(rules("grpc://c:1").submit(one_step())), GrpcCall)


@pytest.mark.parametrize(
    ("options", "payload", "sentence"),
    [
        ({}, AMOUNT, "has to be opened with protocol='grpc'"),
        ({"protocol": "grpc"}, AMOUNT, "must be UTF-8 text"),
        ({"protocol": "grpc", "branch_headers": {"X-A": "ä"}}, b"", "not printable ASCII"),
    ],
)
def test_a_branch_that_cannot_be_registered_is_not_a_branch(
    options: dict[str, Any], payload: object, sentence: str
) -> None:
    with scripted_coordinator() as (server, url), Coordinator(url) as client:
        server.answers("/prepare", Answer())
        server.answers("/submit", Answer())

        with client.tcc("g1", **options) as tcc, pytest.raises(ValueError, match=sentence):
            tcc.call(URL, URL, URL, payload)

    assert server.paths == ["/prepare", "/submit"]
    assert server.requests[0].body.get("protocol") == options.get("protocol")


# -- calls of branches ---------------------------------------------------------------------

BRANCH = {"gid": "g1", "trans_type": "xa", "branch_id": "01", "op": "action"}


def test_a_branch_is_called_with_its_operation_as_metadata() -> None:
    headers = {"X-Tenant": "t1", "Host": "h", "DTM-GID": "forged", "grpc-timeout": "1S", "trace-bin": "ä"}

    call = branch_call(
        URL,
        b"\xff",
        **BRANCH,
        coordinator="grpc://c:1",
        phase2_url="bank:9000/bank.Purses/End",
        headers=headers,
        timeout_s=3,
    )

    assert isinstance(call, GrpcCall)
    assert (call.target, call.method, call.message) == ("bank:9000", "/bank.Purses/Out", b"\xff")
    assert (call.timeout_s, call.is_branch) == (3, True)
    assert dict(call.metadata) == {
        "x-tenant": "t1",
        "trace-bin": "ä".encode(),
        "dtm-gid": "g1",
        "dtm-trans_type": "xa",
        "dtm-branch_id": "01",
        "dtm-op": "action",
        "dtm-dtm": "c:1",
        "dtm-phase2_url": "bank:9000/bank.Purses/End",
    }
    assert len(call.metadata) == len(dict(call.metadata))


@pytest.mark.parametrize(
    ("coordinator", "over_grpc", "over_http"),
    [
        ("http://c:1", "http://c:1/api/dtmsvr", "http://c:1/api/dtmsvr"),
        ("grpc://c:1", "c:1", "grpc://c:1"),
        ("grpcs://c:1", "grpcs://c:1", "grpcs://c:1"),
    ],
)
def test_the_coordinator_is_named_as_the_participant_needs_it(coordinator: str, over_grpc: str, over_http: str) -> None:
    by_grpc = branch_call(URL, b"", **BRANCH, coordinator=coordinator, timeout_s=1)
    by_http = branch_call("http://bank/out", b"", **BRANCH, coordinator=coordinator, timeout_s=1)

    assert isinstance(by_grpc, GrpcCall)
    assert isinstance(by_http, HttpCall)
    assert dict(by_grpc.metadata)["dtm-dtm"] == over_grpc
    assert dict(parse_qsl(urlsplit(by_http.url).query))["dtm"] == over_http


@pytest.mark.parametrize(
    ("code", "message", "outcome", "reason"),
    [
        (CODES.OK, "", Outcome.SUCCESS, ""),
        (CODES.ABORTED, "no stock", Outcome.FAILURE, "no stock"),
        (CODES.ABORTED, "", Outcome.FAILURE, "no further word"),
        (CODES.ABORTED, "ONGOING", Outcome.ONGOING, "ONGOING"),
        (CODES.FAILED_PRECONDITION, "later", Outcome.ONGOING, "later"),
        (CODES.INTERNAL, "FAILURE", Outcome.UNKNOWN, "gRPC INTERNAL: FAILURE"),
        (CODES.UNAVAILABLE, "refused", Outcome.UNKNOWN, "gRPC UNAVAILABLE: refused"),
    ],
)
def test_what_a_participant_s_answer_means(code: grpc.StatusCode, message: str, outcome: Outcome, reason: str) -> None:
    answer = understood(answered(code, message, b"FAILURE" if code is CODES.OK else b""))

    assert (answer.outcome, answer.reason) == (outcome, reason)


# -- TLS -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Coordinator, AsyncCoordinator])
async def test_coordinator_and_branches_have_certificates_of_their_own(
    kind: Any, scripted: Scripted, tmp_path: Path
) -> None:
    ours, theirs = Authority.make(tmp_path, "ours"), Authority.make(tmp_path, "theirs")
    trusted = {
        "credentials": grpc.ssl_channel_credentials(ours.ca_file.read_bytes()),
        "branch_credentials": grpc.ssl_channel_credentials(theirs.ca_file.read_bytes()),
    }
    scripted.answers("Prepare", b"", b"")
    scripted.answers("Submit", b"")
    scripted.answers("Abort", b"")
    scripted.answers("RegisterBranch", b"", b"")
    branches = handler_of({"Out": answer_nothing}, "bank.Purses")

    def work(coordinator: str, branch: str) -> None:
        client = Client(kind, f"grpcs://{coordinator}", attempts=1, timeout=5, **trusted)
        try:
            tcc_of(client, branch)
        finally:
            client.close()

    async with (
        serving_async(*scripted.handlers, tls=ours.server_credentials(ours.sign("coordinator"))) as coordinator,
        serving_async(branches, tls=theirs.server_credentials(theirs.sign("bank"))) as bank,
        serving_async(branches, tls=ours.server_credentials(ours.sign("impostor"))) as impostor,
    ):
        await asyncio.to_thread(work, coordinator, bank)
        with pytest.raises(TryFailedError, match="UNAVAILABLE"):
            await asyncio.to_thread(work, coordinator, impostor)
        with pytest.raises(CoordinatorUnreachableError, match="UNAVAILABLE"):
            await asyncio.to_thread(work, bank, bank)


async def answer_nothing(_request: bytes, _context: Any) -> bytes:
    return b""


def tcc_of(client: Client, branch: str) -> None:
    """Try one branch in a block of either client."""

    async def block() -> None:
        async with client.coordinator.tcc("g1") as tcc:
            await tcc.call(f"{branch}/bank.Purses/Out", payload=AMOUNT)

    if isinstance(client.coordinator, AsyncCoordinator):
        client.run(block())
    else:
        with client.coordinator.tcc("g1") as tcc:
            tcc.call(f"{branch}/bank.Purses/Out", payload=AMOUNT)


def test_credentials_are_not_left_unused() -> None:
    with (
        Coordinator("grpc://127.0.0.1:1", credentials=grpc.ssl_channel_credentials()) as client,
        pytest.raises(ValueError, match="say grpcs://"),
    ):
        client.ping()


def test_messages_do_not_tell_passwords() -> None:
    refused = TryFailedError("g1", Status.ABORTING, "no", "01", "http://me:secret@bank/try", Outcome.FAILURE)
    with (
        Coordinator("http://me:secret@127.0.0.1:1", attempts=1) as client,
        pytest.raises(CoordinatorUnreachableError) as caught,
    ):
        client.ping()

    assert "secret" not in f"{refused} {caught.value}"
    assert "//127.0.0.1:1" in str(caught.value)
