"""The gRPC API of a running coordinator, as clients of DTM and operators' tools call it; and what rubbish comes to."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localservers.servers import Server
from tests.e2e.harness import Process, coordinator, store_for, upgrade
from tests.integration.callers import COORDINATOR, DTM, ask, branch_message, trans_message
from tests.integration.scripted import ONGOING, Participant, failure
from tests.integration.test_api_answers import FakeService
from txcoord import __version__
from txcoord.api import grpc as grpc_api
from txcoord.api.grpc import details_of
from txcoord.api.grpc_server import GrpcServer
from txcoord.proto.dtm_pb2 import (
    DtmBranchRequest,
    DtmGidReply,
    DtmProgressesReply,
    DtmRequest,
    DtmTopicRequest,
    DtmTransOptions,
)
from txcoord.proto.txcoord_pb2 import Gid, Json, ListRequest, Version

OK = grpc.StatusCode.OK
ABORTED = grpc.StatusCode.ABORTED
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED

MAX_BODY_BYTES = 100_000


@pytest.fixture(scope="module", params=["sqlite"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("coordinator")
    settings = {"TXCOORD_MAX_BODY_BYTES": str(MAX_BODY_BYTES), "TXCOORD_DRAIN_S": "5"}
    with coordinator(store_for(request, folder), folder, **settings) as process:
        yield process


on_every_store = pytest.mark.parametrize("server", ["sqlite", "mysql", "postgres"], indirect=True, scope="module")
"""For patterns that have no module of their own over gRPC."""


@asynccontextmanager
async def connected(server: Process) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture
async def channel(server: Process) -> AsyncIterator[grpc.aio.Channel]:
    async with connected(server) as made:
        yield made


class Client:
    """One global transaction over gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.gid = f"g-{uuid4().hex}"

    async def call(self, method: str, trans_type: str = "tcc", **body: Any) -> tuple[grpc.StatusCode, str]:
        message = trans_message(gid=self.gid, trans_type=trans_type, **body)
        code, said, reply = await ask(self.channel, DTM + method, message)
        assert reply == b""
        return code, said

    async def saga(self, *urls: str, **more: Any) -> tuple[grpc.StatusCode, str]:
        steps = [{"action": url, "compensate": f"{url}-revert" if url else ""} for url in urls]
        return await self.call("Submit", "saga", steps=steps, payloads=["{}"] * len(urls), **more)

    async def register(self, branch_id: str, trans_type: str = "tcc", **data: str) -> tuple[grpc.StatusCode, str]:
        message = branch_message(gid=self.gid, trans_type=trans_type, branch_id=branch_id, **data)
        code, said, reply = await ask(self.channel, DTM + "RegisterBranch", message)
        assert reply == b""
        return code, said

    async def workflow(self) -> DtmProgressesReply:
        message = trans_message(gid=self.gid, trans_type="workflow", custom_data='{"name":"w","data":""}')
        code, said, reply = await ask(self.channel, DTM + "PrepareWorkflow", message)
        assert code is OK, said
        return DtmProgressesReply.FromString(reply)

    async def query(self) -> Any:
        code, said, reply = await ask(self.channel, COORDINATOR + "Query", Gid(gid=self.gid))
        assert code is OK, said
        return json.loads(Json.FromString(reply).json)

    async def status(self) -> str:
        status: str = (await self.query())["transaction"]["status"]
        return status

    async def becomes(self, status: str) -> None:
        async with asyncio.timeout(15):
            while await self.status() != status:
                await asyncio.sleep(0.02)


@pytest.fixture
def client(channel: grpc.aio.Channel) -> Client:
    return Client(channel)


# -- dtmgimp.Dtm -----------------------------------------------------------------------------


async def test_new_gids_differ(channel: grpc.aio.Channel) -> None:
    answers = [await ask(channel, DTM + "NewGid") for _ in range(20)]

    gids = {DtmGidReply.FromString(reply).Gid for _, _, reply in answers}
    assert len(gids) == 20
    assert {len(gid) for gid in gids} == {22}


async def test_a_saga_ends_as_its_participants_answer(client: Client, participant: Participant) -> None:
    body = trans_message(gid=client.gid, trans_type="saga", steps=[{"action": f"{participant.url}/out"}])
    body.BinPayloads.append(b"\xff\x00 exact bytes")
    body.TransOptions.WaitResult = True
    body.TransOptions.BranchHeaders["x-test"] = "1"

    assert (await ask(client.channel, DTM + "Submit", body))[:2] == (OK, "")

    [call] = participant.received
    assert (call.body, call.headers["x-test"]) == (b"\xff\x00 exact bytes", "1")
    assert (await client.query())["transaction"]["protocol"] == "grpc"
    assert await client.status() == "succeed"


async def test_a_rollback_is_aborted_with_its_reason(client: Client, participant: Participant) -> None:
    participant.script("out", failure("no money"))

    code, said = await client.saga(f"{participant.url}/out", wait_result=True)

    assert (code, said) == (ABORTED, f"url:{participant.url}/out return failed: no money FAILURE")
    await client.becomes("failed")


async def test_what_still_runs_is_a_failed_precondition(client: Client, participant: Participant) -> None:
    participant.script("out", ONGOING)

    code, said = await client.saga(f"{participant.url}/out", wait_result=True, retry_interval=100)

    assert code is FAILED_PRECONDITION
    assert said.startswith(f"{client.gid} is submitted and goes on by itself")
    assert (await ask(client.channel, COORDINATOR + "ResetNextCronTime", Gid(gid=client.gid)))[0] is OK
    await client.becomes("succeed")


async def test_a_tcc_is_prepared_registered_and_submitted(client: Client, participant: Participant) -> None:
    url = participant.url
    assert await client.call("Prepare") == (OK, "")
    branch = {"confirm": f"{url}/confirm", "cancel": f"{url}/cancel", "data": '{"amount":30}'}
    assert await client.register("01", **branch) == (OK, "")
    assert await client.register("01", **branch) == (OK, ""), "the same again changes nothing"
    assert await client.call("Submit", wait_result=True) == (OK, "")

    assert [(call.path, call.body) for call in participant.received] == [("confirm", b'{"amount":30}')]
    assert await client.call("Submit") == (ABORTED, "current status 'succeed', cannot sumbmit. FAILURE")
    assert await client.call("Prepare") == (ABORTED, "current status 'succeed', cannot prepare. FAILURE")


async def test_a_tcc_is_aborted(client: Client, participant: Participant) -> None:
    url = participant.url
    await client.call("Prepare")
    await client.register("01", confirm=f"{url}/confirm", cancel=f"{url}/cancel")

    assert await client.call("Abort", wait_result=True, rollback_reason="changed my mind") == (OK, "")

    assert participant.calls(client.gid) == ["cancel"]
    assert (await client.query())["transaction"]["rollback_reason"] == "changed my mind"


@on_every_store
async def test_a_branch_of_an_xa_is_registered_by_its_url(client: Client, participant: Participant) -> None:
    await client.call("Prepare", "xa")
    assert await client.register("01", "xa", url=f"{participant.url}/xa") == (OK, "")
    assert await client.call("Submit", "xa", wait_result=True) == (OK, "")

    assert [call.query["op"] for call in participant.received] == ["commit"]


@on_every_store
async def test_a_workflow_is_given_back_with_its_steps_and_its_result(client: Client) -> None:
    opened = await client.workflow()
    assert (opened.Transaction.Gid, opened.Transaction.Status) == (client.gid, "prepared")
    assert not opened.Progresses

    step = DtmBranchRequest(
        Gid=client.gid,
        TransType="workflow",
        BranchID="01",
        Data={"op": "action", "status": "succeed"},
        BusiPayload=b"\x00\xff result",
    )
    assert (await ask(client.channel, DTM + "RegisterBranch", step))[0] is OK
    [progress] = (await client.workflow()).Progresses
    assert (progress.BranchID, progress.Op, progress.Status) == ("01", "action", "succeed")
    assert progress.BinData == b"\x00\xff result"

    assert await client.call("Submit", "workflow", req_extra={"status": "succeed", "result": "aGk="}) == (OK, "")
    ended = await client.workflow()
    assert (ended.Transaction.Status, ended.Transaction.Result) == ("succeed", "aGk=")


@on_every_store
async def test_the_subscribers_of_a_topic_come_and_go(client: Client, participant: Participant) -> None:
    topic = f"topic-{uuid4().hex}"

    async def change(method: str, url: str = "") -> grpc.StatusCode:
        request = DtmTopicRequest(Topic=topic, URL=url, Remark="for a test")
        return (await ask(client.channel, DTM + method, request))[0]

    async def send() -> tuple[grpc.StatusCode, list[str]]:
        message = Client(client.channel)
        steps = [{"action": f"topic://{topic}"}]
        code, _ = await message.call("Submit", "msg", steps=steps, payloads=["{}"], wait_result=True)
        return code, sorted(participant.calls(message.gid))

    first, second = f"{participant.url}/first", f"{participant.url}/second"
    assert await change("Subscribe", first) is OK
    assert await change("Subscribe", second) is OK
    assert await send() == (OK, ["first", "second"])
    assert await change("Subscribe", first) is ABORTED
    assert await change("Unsubscribe", first) is OK
    assert await send() == (OK, ["second"])
    assert await change("DeleteTopic") is OK
    assert await change("DeleteTopic") is NOT_FOUND
    assert await change("Unsubscribe", first) is NOT_FOUND
    assert await change("Subscribe") is INVALID_ARGUMENT
    code, called = await send()
    assert (code in (INVALID_ARGUMENT, NOT_FOUND), called) == (True, [])


# -- txcoord.v1.Coordinator ------------------------------------------------------------------


async def listed(channel: grpc.aio.Channel, **parameters: str) -> Any:
    code, said, reply = await ask(channel, COORDINATOR + "List", ListRequest(parameters=parameters))
    assert code is OK, said
    return json.loads(Json.FromString(reply).json)


async def test_queries_answer_as_http_does(server: Process, client: Client) -> None:
    await client.saga("", wait_result=True)

    async with httpx.AsyncClient(base_url=f"{server.url}/api/dtmsvr") as http:
        assert await client.query() == (await http.get("/query", params={"gid": client.gid})).json()
        page = {"status": "succeed", "transType": "saga", "limit": "2"}
        assert await listed(client.channel, **page) == (await http.get("/all", params=page)).json()
        assert await listed(client.channel, gid=client.gid) == (await http.get("/all?gid=" + client.gid)).json()

    unknown = Client(client.channel)
    assert await unknown.query() == {"branches": [], "transaction": None}
    code, said, _ = await ask(client.channel, COORDINATOR + "Query", Gid())
    assert (code, said) == (INVALID_ARGUMENT, "no gid specified: name the global transaction")
    code, said, _ = await ask(client.channel, COORDINATOR + "List", ListRequest(parameters={"limit": "x"}))
    assert (code, said.partition(",")[0]) == (
        INVALID_ARGUMENT,
        "limit must be a whole number from 1 to 9223372036854775807",
    )


async def test_the_version(channel: grpc.aio.Channel) -> None:
    code, _, reply = await ask(channel, COORDINATOR + "GetVersion")

    assert (code, Version.FromString(reply).version) == (OK, __version__)


async def test_an_operator_stops_a_transaction(client: Client) -> None:
    stop = COORDINATOR + "ForceStop"
    await client.call("Prepare")

    assert (await ask(client.channel, stop, Gid(gid=f"{client.gid};")))[0] is OK, (
        "a gid is cleaned wherever it comes in"
    )

    assert await client.status() == "failed"
    said = "global transaction force stop error. status: failed. error: FAILURE"
    assert (await ask(client.channel, stop, Gid(gid=client.gid)))[:2] == (ABORTED, said)
    for path in (stop, COORDINATOR + "ResetNextCronTime"):
        assert (await ask(client.channel, path, Gid(gid="zzz")))[0] is NOT_FOUND
        assert (await ask(client.channel, path, Gid()))[0] is INVALID_ARGUMENT


async def metrics_of(server: Process) -> str:
    async with httpx.AsyncClient(base_url=server.url) as http:
        return (await http.get("/api/metrics")).text


async def test_metrics_are_kept_for_each_method(server: Process, channel: grpc.aio.Channel) -> None:
    await ask(channel, DTM + "NewGid")
    await ask(channel, DTM + "Abort", DtmRequest(Gid="zzz"))

    metrics = await metrics_of(server)

    assert re.search(r'dtm_server_process_total\{api="newgid",status="ok",type="grpc"\} [1-9]', metrics)
    assert re.search(r'dtm_server_process_total\{api="abort",status="fail",type="grpc"\} [1-9]', metrics)


# -- what cannot be answered well ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"TransType": ""}, "trans_type '' is not known", id="only a gid"),
        pytest.param({"TransType": "barter"}, "trans_type 'barter' is not known", id="unknown type"),
        pytest.param({"Gid": ""}, "gid is empty", id="no gid"),
        pytest.param({"Steps": "["}, "Steps is not JSON that can be read", id="steps are no JSON"),
        pytest.param({"Steps": "{}"}, "Steps must be an array of objects", id="steps are no list"),
        pytest.param({"Steps": '[{"action":5}]'}, "Steps[0].action must be a string, not a number", id="no string"),
        pytest.param({"Steps": "[" * 5000}, "Steps is n", id="deep steps"),
        pytest.param({"Steps": '[{"action":"x"}]'}, "payloads has 0 entries for 1 steps", id="no payload"),
        pytest.param({"CustomedData": "[]"}, "custom_data", id="custom data"),
    ],
)
async def test_what_cannot_succeed_is_refused_with_the_reason(
    client: Client, changes: dict[str, str], sentence: str
) -> None:
    request = DtmRequest(**({"Gid": client.gid, "TransType": "saga"} | changes))  # type: ignore[arg-type]

    code, said, _ = await ask(client.channel, DTM + "Submit", request)

    assert (code, said[: len(sentence)]) == (INVALID_ARGUMENT, sentence)
    assert (await client.query())["transaction"] is None


@pytest.mark.parametrize("steps", ["", "null", "[]"])
async def test_absent_steps_are_none(client: Client, steps: str) -> None:
    request = DtmRequest(Gid=client.gid, TransType="tcc", Steps=steps)

    assert (await ask(client.channel, DTM + "Submit", request))[0] is OK


async def test_a_field_that_old_clients_send_is_skipped(client: Client) -> None:
    options = DtmTransOptions(WaitResult=True).SerializeToString() + b"\x22\x03abc"  # 4: headers passed through
    request = (
        DtmRequest(Gid=client.gid, TransType="tcc").SerializeToString() + b"\x1a" + bytes([len(options)]) + options
    )

    assert (await ask(client.channel, DTM + "Submit", request))[0] is OK
    assert await client.status() == "succeed"


WITH_FIELDS = [
    *(DTM + name for name in ("Submit", "Prepare", "Abort", "RegisterBranch", "PrepareWorkflow")),
    *(DTM + name for name in ("Subscribe", "Unsubscribe", "DeleteTopic")),
    *(COORDINATOR + name for name in ("Query", "List", "ForceStop", "ResetNextCronTime")),
    "/grpc.health.v1.Health/Check",
]
METHODS = [DTM + "NewGid", COORDINATOR + "GetVersion", *WITH_FIELDS]


@pytest.mark.parametrize("path", WITH_FIELDS)
@pytest.mark.parametrize(
    "body", [b"\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"], ids=["no message", "cut", "no text"]
)
async def test_bytes_that_are_no_message_are_an_invalid_argument(
    channel: grpc.aio.Channel, path: str, body: bytes
) -> None:
    code, said, _ = await ask(channel, path, body)

    assert code is INVALID_ARGUMENT
    assert said.startswith("the request is not a ")


@pytest.mark.parametrize("path", METHODS)
async def test_a_call_without_a_message_is_answered(channel: grpc.aio.Channel, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.stream_unary(path)(iter(()), timeout=10)

    assert caught.value.code() is INVALID_ARGUMENT
    assert caught.value.details() == "the request has no message: send one, which may be empty"


@pytest.mark.parametrize("path", ["/dtmgimp.Dtm/Nope", "/dtmgimp.Dtm/", "/nobody.Home/Submit", "/x"])
async def test_what_is_not_there_is_unimplemented(channel: grpc.aio.Channel, path: str) -> None:
    assert (await ask(channel, path))[0] is UNIMPLEMENTED


async def test_a_message_has_a_bound(client: Client) -> None:
    request = DtmRequest(Gid=client.gid, TransType="tcc", BinPayloads=[b"x" * MAX_BODY_BYTES])

    code, said, _ = await ask(client.channel, DTM + "Submit", request)

    assert code is RESOURCE_EXHAUSTED
    assert str(MAX_BODY_BYTES) in said
    assert (await client.query())["transaction"] is None


async def test_a_bound_inside_a_message_is_named(client: Client) -> None:
    code, said = await client.saga(*[""] * 1001)

    assert (code, said) == (RESOURCE_EXHAUSTED, "1001 steps: at most 1000 (max_branches) are allowed")


def test_a_long_sentence_is_cut_where_it_says_least() -> None:
    said = details_of("url: " + "€" * 5000 + " no money FAILURE")

    assert len(said.encode()) < 2100
    assert said.startswith("url: €€€")
    assert said.endswith("€ no money FAILURE")
    assert details_of("no money \ud800") == "no money ?"


async def test_a_message_that_does_not_come_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_api, "MESSAGE_TIMEOUT_S", 0.05)
    async with in_process() as (_, channel):
        call = channel.stream_unary(DTM + "Submit")(timeout=10)

        assert await call.code() is INVALID_ARGUMENT
        assert "did not arrive" in await call.details()


@asynccontextmanager
async def in_process(*, max_rpcs: int = 10) -> AsyncIterator[tuple[FakeService, grpc.aio.Channel]]:
    service = FakeService()
    server = GrpcServer(service, max_body_bytes=1000, max_rpcs=max_rpcs)
    port = await server.start(("127.0.0.1", 0), None)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield service, channel
    await server.stop(0)


async def test_calls_under_way_have_a_bound() -> None:
    async with in_process(max_rpcs=1) as (_, channel):
        watching = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert await watching.read() == HealthCheckResponse(status="SERVING").SerializeToString()

        assert (await ask(channel, DTM + "NewGid"))[0] is RESOURCE_EXHAUSTED

        watching.cancel()
        async with asyncio.timeout(10):
            while (await ask(channel, DTM + "NewGid"))[0] is not OK:
                await asyncio.sleep(0.01)


# -- rubbish ---------------------------------------------------------------------------------

WORDS = st.sampled_from(["saga", "tcc", "xa", "msg", "workflow", "g1", "succeed", "01", ""]) | st.text(max_size=6)
STEPS = st.lists(
    st.dictionaries(st.sampled_from(["action", "compensate"]), st.sampled_from(["", "topic://t", "x"]) | st.text())
)
INT64 = st.integers(-(2**63), 2**63 - 1)
OPTIONS = st.builds(
    DtmTransOptions,
    TimeoutToFail=INT64,
    RetryInterval=INT64,
    RequestTimeout=INT64,
    RetryLimit=INT64,
    BranchHeaders=st.dictionaries(WORDS, WORDS, max_size=2),
)
REQUESTS = st.builds(
    DtmRequest,
    Gid=st.uuids().map(str) | WORDS,
    TransType=WORDS,
    TransOptions=OPTIONS,
    CustomedData=st.sampled_from(["", "{}", '{"orders":{"0":[1]}}', '{"delay":-1}', '{"name":"w"}']) | st.text(),
    BinPayloads=st.lists(st.binary(max_size=5), max_size=3),
    QueryPrepared=st.just("") | st.text(max_size=5),
    Steps=STEPS.map(json.dumps) | st.text(max_size=10),
    ReqExtra=st.dictionaries(st.sampled_from(["status", "result"]), WORDS),
    RollbackReason=st.text(),
)
MESSAGES = st.one_of(
    REQUESTS,
    st.builds(
        DtmBranchRequest,
        Gid=WORDS,
        TransType=WORDS,
        BranchID=WORDS,
        Data=st.dictionaries(st.sampled_from(["confirm", "cancel", "url", "op", "status"]), WORDS),
        BusiPayload=st.binary(max_size=5),
    ),
    st.builds(DtmTopicRequest, Topic=WORDS, URL=WORDS, Remark=WORDS),
    st.builds(Gid, gid=WORDS),
    st.builds(ListRequest, parameters=st.dictionaries(st.sampled_from(["limit", "position", "status", "gid"]), WORDS)),
)


@pytest.fixture(scope="module")
def blocking(server: Process) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as made:
        yield made


def _code(channel: grpc.Channel, path: str, body: bytes) -> grpc.StatusCode:
    try:
        channel.unary_unary(path)(body, timeout=20)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return OK


ALLOWED = {OK, ABORTED, FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED}


@pytest.mark.parametrize("path", METHODS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=80) | MESSAGES.map(lambda message: message.SerializeToString()))
def test_no_rubbish_is_a_fault_of_the_server(blocking: grpc.Channel, path: str, body: bytes) -> None:
    assert _code(blocking, path, body) in ALLOWED


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=REQUESTS)
def test_what_is_accepted_ends_or_is_waited_for(server: Process, blocking: grpc.Channel, request: DtmRequest) -> None:
    if _code(blocking, DTM + "Submit", request.SerializeToString()) is not OK:
        return

    gid = Gid(gid=re.sub("[\n\r;]", "", request.Gid)).SerializeToString()
    found = Json.FromString(blocking.unary_unary(COORDINATOR + "Query")(gid)).json
    transaction = json.loads(found)["transaction"]
    assert transaction["status"] in ("submitted", "aborting", "succeed", "failed")


async def test_nothing_is_stuck_after_the_rubbish(client: Client) -> None:
    async with asyncio.timeout(20):
        # Nobody was named who could be called: whatever was submitted can end by itself.
        while (await listed(client.channel, status="submitted", transType="saga"))["transactions"]:
            await asyncio.sleep(0.05)
    assert (await client.saga("", wait_result=True)) == (OK, "")


# -- health and reflection ---------------------------------------------------------------------


def serving(status: str) -> bytes:
    return HealthCheckResponse(status=status).SerializeToString()


async def test_health(channel: grpc.aio.Channel) -> None:
    path = "/grpc.health.v1.Health/Check"
    for name in ("", "dtmgimp.Dtm", "txcoord.v1.Coordinator"):
        assert await ask(channel, path, HealthCheckRequest(service=name)) == (OK, "", serving("SERVING"))

    code, said, _ = await ask(channel, path, HealthCheckRequest(service="nobody.Home"))
    assert (code, said) == (NOT_FOUND, "no service named 'nobody.Home' is offered here")

    watching = channel.unary_stream("/grpc.health.v1.Health/Watch")
    call = watching(HealthCheckRequest(service="nobody.Home").SerializeToString())
    assert await call.read() == serving("SERVICE_UNKNOWN")
    call.cancel()


async def test_health_follows_the_coordinator() -> None:
    async with in_process() as (service, channel):
        service.error = None
        watching = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert await watching.read() == serving("SERVING")

        service.error = grpc_api.InvalidRequestError("no lease")

        assert await watching.read() == serving("NOT_SERVING")
        assert (await ask(channel, "/grpc.health.v1.Health/Check"))[2] == serving("NOT_SERVING")
        service.error = None
        assert await watching.read() == serving("SERVING")
        watching.cancel()


async def reflected(channel: grpc.aio.Channel, *requests: bytes) -> list[ServerReflectionResponse]:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    call = channel.stream_stream(path)(iter(requests), timeout=10)
    return [ServerReflectionResponse.FromString(reply) async for reply in call]


async def test_tools_can_ask_for_services_and_messages(channel: grpc.aio.Channel) -> None:
    services, symbol = await reflected(
        channel,
        ServerReflectionRequest(list_services="").SerializeToString(),
        ServerReflectionRequest(file_containing_symbol="dtmgimp.Dtm").SerializeToString(),
    )

    names = {service.name for service in services.list_services_response.service}
    assert {"dtmgimp.Dtm", "txcoord.v1.Coordinator", "grpc.health.v1.Health"} <= names
    files = [FileDescriptorProto.FromString(file) for file in symbol.file_descriptor_response.file_descriptor_proto]
    [dtm] = [service for file in files for service in file.service if service.name == "Dtm"]
    assert {f"{DTM}{method.name}" for method in dtm.method} == {path for path in METHODS if path.startswith(DTM)}


async def test_a_reflection_of_nothing_is_refused_politely(channel: grpc.aio.Channel) -> None:
    [reply] = await reflected(channel, b"\xff\xff")

    assert reply.error_response.error_code == INVALID_ARGUMENT.value[0]


# -- callers that go, and the end --------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
async def test_a_caller_that_goes_does_not_take_the_transaction_along(
    client: Client, participant: Participant, how: str
) -> None:
    gate = participant.hold("slow")
    message = trans_message(
        gid=client.gid,
        trans_type="saga",
        steps=[{"action": f"{participant.url}/slow"}, {"action": f"{participant.url}/next"}],
        payloads=["{}", "{}"],
        wait_result=True,
    )
    call = client.channel.unary_unary(DTM + "Submit")(
        message.SerializeToString(), timeout=1 if how == "deadline" else None
    )
    await participant.called("slow", client.gid)
    if how == "cancelled":
        call.cancel()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call

    gate.set()

    await client.becomes("succeed")
    assert participant.calls(client.gid) == ["slow", "next"]


async def test_a_registration_whose_caller_went_is_carried_out() -> None:
    async with in_process() as (service, channel):
        entered, gate = asyncio.Event(), asyncio.Event()
        done = asyncio.Event()

        async def register_branch(branch: object) -> None:
            entered.set()
            await gate.wait()
            done.set()

        service.register_branch = register_branch  # type: ignore[assignment]
        call = channel.unary_unary(DTM + "RegisterBranch")(b"")
        await entered.wait()
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED
        # The server has heard of it when it answers something that came later.
        await ask(channel, DTM + "NewGid")
        gate.set()
        async with asyncio.timeout(10):
            await done.wait()


async def test_a_drain_answers_who_waits_and_takes_nothing_new(tmp_path: Path, participant: Participant) -> None:
    process = coordinator(f"sqlite:///{tmp_path}/txcoord.db", tmp_path, TXCOORD_DRAIN_S="10")
    process.start()
    try:
        async with connected(process) as channel:
            client = Client(channel)
            gate = participant.hold("slow")
            waiting = asyncio.create_task(client.saga(f"{participant.url}/slow", wait_result=True))
            await participant.called("slow", client.gid)
            watching = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
            assert await watching.read() == serving("SERVING")

            ending = asyncio.create_task(asyncio.to_thread(process.terminate))

            assert await watching.read() == serving("NOT_SERVING")
            assert await watching.read() is grpc.aio.EOF
            assert (await Client(channel).saga(""))[0] is UNAVAILABLE
            gate.set()
            assert await waiting == (OK, "")
            assert await ending == 0
    finally:
        process.close()


async def test_a_second_signal_does_not_wait(tmp_path: Path, participant: Participant) -> None:
    process = coordinator(f"sqlite:///{tmp_path}/txcoord.db", tmp_path, TXCOORD_DRAIN_S="300")
    process.start()
    assert process.process is not None
    try:
        async with connected(process) as channel:
            client = Client(channel)
            participant.hold("slow")
            waiting = asyncio.create_task(client.saga(f"{participant.url}/slow", wait_result=True, request_timeout=600))
            await participant.called("slow", client.gid)
            watching = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
            assert await watching.read() == serving("SERVING")

            process.process.send_signal(signal.SIGTERM)
            assert await watching.read() == serving("NOT_SERVING")
            process.process.send_signal(signal.SIGTERM)

            assert await asyncio.to_thread(process.process.wait, 30) == 1
            assert (await waiting)[0] in (UNAVAILABLE, grpc.StatusCode.CANCELLED)
    finally:
        process.close()


def test_nothing_of_all_this_was_an_incident(server: Process) -> None:
    log = server.log.read_text()

    assert "unexpected error" not in log
    assert "Traceback" not in log


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    process = coordinator("memory://", tmp_path, TXCOORD_GRPC="false")
    process.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
            assert _code(channel, DTM + "NewGid", b"") is UNAVAILABLE
        assert "grpc://" not in process.log.read_text()
    finally:
        process.close()


async def test_workers_share_the_port(mariadb_server: Server, tmp_path: Path) -> None:
    store = mariadb_server.create_database(f"store_{uuid4().hex[:8]}")
    upgrade(store)
    process = coordinator(store, tmp_path, TXCOORD_WORKERS="2")
    process.start()
    try:
        for _ in range(8):
            # Each channel is a connection, and goes to either worker.
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{process.grpc_port}", options=options) as channel:
                client = Client(channel)
                assert await client.saga("", wait_result=True) == (OK, "")
                assert await client.status() == "succeed"
        metrics = await metrics_of(process)
        assert 'dtm_server_process_total{api="submit",status="ok",type="grpc"} 8.0' in metrics
        assert process.terminate() == 0
    finally:
        process.close()
