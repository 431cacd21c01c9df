"""What is asked and answered over HTTP, JSON-RPC and gRPC alike: one list of scenarios for all three."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
import structlog

from localservers.processes import free_port
from tests.e2e.harness import Process, coordinator
from tests.integration.allowed import message_calls, two_phase_calls, workflow_calls
from tests.integration.callers import Caller, GrpcCaller, HttpCaller, JsonRpcCaller, Said
from tests.integration.test_api_answers import ERRORS, FakeService
from txcoord.api import replies
from txcoord.api.grpc_server import GrpcServer
from txcoord.api.http import HttpApi
from txcoord.errors import TransactionNotFoundError
from txcoord.model import Status
from txcoord.protocol import GrpcStatus
from txcoord.request import BranchRegistration, SubmitResult

APIS = ["http", "json-rpc", "grpc"]


# -- over a service that answers what the test says ----------------------------------------


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture(params=APIS)
async def api(request: pytest.FixtureRequest, service: FakeService) -> AsyncIterator[Caller]:
    if request.param == "grpc":
        server = GrpcServer(service, max_body_bytes=1000, max_rpcs=10)
        port = free_port()
        await server.start(("127.0.0.1", port), None)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield GrpcCaller(channel)
        await server.stop(0)
        return
    transport = httpx.ASGITransport(app=HttpApi(service, max_body_bytes=1000))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://coordinator") as http:
        yield HttpCaller(http) if request.param == "http" else JsonRpcCaller(http)


GOES_ON = "goes on by itself"


@pytest.mark.parametrize(
    ("method", "result", "word", "message"),
    [
        pytest.param("submit", SubmitResult(waited=False, status=Status.SUBMITTED), "SUCCESS", "", id="accepted"),
        pytest.param("submit", SubmitResult(waited=True, status=Status.SUCCEEDED), "SUCCESS", "", id="succeeded"),
        pytest.param(
            "submit",
            SubmitResult(waited=True, status=Status.FAILED, reason="kein Geld: 0 €"),
            "FAILURE",
            "kein Geld: 0 € FAILURE",
            id="rolled back",
        ),
        pytest.param(
            "submit",
            SubmitResult(waited=True, status=Status.ABORTING, reason="no money FAILURE"),
            "FAILURE",
            "no money FAILURE",
            id="being rolled back",
        ),
        pytest.param(
            "submit",
            SubmitResult(waited=True, status=Status.SUBMITTED, reason="busy"),
            "ONGOING",
            f"g1 is submitted and {GOES_ON} (busy); ask /api/dtmsvr/query?gid=g1 how it ends",
            id="still running",
        ),
        pytest.param("abort", SubmitResult(waited=False, status=Status.ABORTING), "SUCCESS", "", id="abort accepted"),
        pytest.param("abort", SubmitResult(waited=True, status=Status.FAILED), "SUCCESS", "", id="aborted"),
        pytest.param(
            "abort",
            SubmitResult(waited=True, status=Status.ABORTING),
            "ONGOING",
            f"g1 is aborting and {GOES_ON}; ask /api/dtmsvr/query?gid=g1 how it ends",
            id="abort still running",
        ),
    ],
)
async def test_a_result_is_the_same_word_and_sentence(
    api: Caller, service: FakeService, method: str, result: SubmitResult, word: str, message: str
) -> None:
    service.result = result

    said = await api.call(method, gid="g1", trans_type="tcc")

    assert (said.word, said.message) == (word, message)


NUMBERS = {
    400: (-32603, grpc.StatusCode.INVALID_ARGUMENT),
    404: (-32603, grpc.StatusCode.NOT_FOUND),
    409: (-32901, grpc.StatusCode.ABORTED),
    413: (-32603, grpc.StatusCode.RESOURCE_EXHAUSTED),
    503: (-32603, grpc.StatusCode.UNAVAILABLE),
}
"""Code of JSON-RPC and status of gRPC for a status of HTTP."""


@pytest.mark.parametrize(("error", "status", "body"), ERRORS.values(), ids=ERRORS)
async def test_an_error_is_the_same_sentence_with_its_number(
    api: Caller, service: FakeService, error: Exception, status: int, body: dict[str, str]
) -> None:
    service.error = error

    said = await api.call("submit", gid="g1")

    code, of_grpc = NUMBERS[status]
    assert said.number in (status, code, of_grpc.value[0])
    assert (said.word, said.message) == ("FAILURE" if status == 409 else "ERROR", body["message"])


@pytest.mark.parametrize("row", replies.ERROR_ROWS.values(), ids=[kind.__name__ for kind in replies.ERROR_ROWS])
def test_the_row_of_an_error_means_the_same_in_each_protocol(row: replies.ErrorRow) -> None:
    code, of_grpc = NUMBERS[row.status]

    assert (row.code, row.grpc) == (code, of_grpc.value[0])


async def test_a_branch_of_nothing_is_a_failure(api: Caller, service: FakeService) -> None:
    service.error = TransactionNotFoundError("g1")

    said = await api.call("registerBranch", gid="g1")

    assert (said.word, said.message) == ("FAILURE", "no trans with gid: g1 status: prepared found FAILURE")


async def test_what_nobody_expected_is_an_incident_in_the_log(api: Caller, service: FakeService) -> None:
    service.error = KeyError("secret detail")

    with structlog.testing.capture_logs() as lines:
        said = await api.call("submit", gid="g1")

    [line] = lines
    assert line["exc_info"] is service.error
    assert line["incident"] in said.message
    assert "secret" not in said.message
    assert said.number in (500, -32603, GrpcStatus.INTERNAL)


async def test_a_request_says_the_same_to_the_service(api: Caller, service: FakeService) -> None:
    await api.call(
        "submit",
        gid="g\n1;",
        trans_type="saga",
        steps=[{"action": "http://a", "compensate": None}],
        payloads=['{"a":"ü"}'],
        custom_data='{"concurrent":true}',
        wait_result=True,
        timeout_to_fail=1,
        request_timeout=2,
        retry_interval=3,
        retry_limit=4,
        branch_headers={"a": "b"},
        query_prepared="http://q",
        rollback_reason="why",
        req_extra={"status": "succeed"},
    )
    await api.call("registerBranch", gid="g1;", trans_type="tcc", branch_id="01", data="{}", confirm="c", cancel="d")
    await api.call("registerBranch", gid="g1", trans_type="xa", branch_id="01", url="u")
    await api.call("registerBranch", gid="g1", trans_type="workflow", branch_id="01", op="action", status="succeed")

    request, *branches = service.asked
    assert (request.gid, request.trans_type) == ("g1", "saga")
    assert request.steps == ({"action": "http://a", "compensate": ""},)
    assert request.payloads == ('{"a":"ü"}'.encode(),)
    assert (request.custom_data, request.wait_result) == ('{"concurrent":true}', True)
    assert (request.timeout_to_fail, request.request_timeout) == (1, 2)
    assert (request.retry_interval, request.retry_limit) == (3, 4)
    assert (request.branch_headers, request.req_extra) == ({"a": "b"}, {"status": "succeed"})
    assert (request.query_prepared, request.rollback_reason) == ("http://q", "why")
    assert request.protocol == ("grpc" if isinstance(api, GrpcCaller) else "")
    assert branches == [
        BranchRegistration(gid="g1", trans_type="tcc", branch_id="01", data=b"{}", confirm="c", cancel="d"),
        BranchRegistration(gid="g1", trans_type="xa", branch_id="01", url="u"),
        BranchRegistration(gid="g1", trans_type="workflow", branch_id="01", op="action", status="succeed"),
    ]


# -- against a running coordinator: DTM's table of what is allowed when ---------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with coordinator("memory://", tmp_path_factory.mktemp("coordinator")) as process:
        yield process


@pytest.fixture(params=APIS)
async def caller(request: pytest.FixtureRequest, server: Process) -> AsyncIterator[Caller]:
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=20) as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        yield {"http": HttpCaller(http), "json-rpc": JsonRpcCaller(http), "grpc": GrpcCaller(channel)}[request.param]


NOBODY = "http://127.0.0.1:1/nobody"
"""Nobody answers there, so that what calls there stays as it is."""

BRANCHES: dict[str, dict[str, Any]] = {
    "tcc": {"confirm": NOBODY, "cancel": NOBODY},
    "xa": {"url": NOBODY},
    "workflow": {"op": "action", "status": "succeed", "data": "x"},
}
TABLES = {
    "tcc": two_phase_calls("tcc"),
    "xa": two_phase_calls("xa"),
    "workflow": workflow_calls(),
    "msg": message_calls(),
}
METHODS = ("prepare", "submit", "abort", "registerBranch")
"""What each API has, for each pattern."""


class Transaction:
    """One of this pattern, made by one of the APIs."""

    def __init__(self, caller: Caller, pattern: str) -> None:
        self.gid = f"g-{uuid4().hex}"
        self._caller = caller
        self._pattern = pattern

    async def call(self, method: str, *, ends: str = "succeed", branch_id: str = "02", url: str = NOBODY) -> Said:
        return await self._caller.call(
            method, gid=self.gid, trans_type=self._pattern, **self._fields(method, ends, branch_id, url)
        )

    def _fields(self, method: str, ends: str, branch_id: str, url: str) -> dict[str, Any]:
        match self._pattern, method:
            case _, "registerBranch":
                return {"branch_id": branch_id, **BRANCHES[self._pattern]}
            case "msg", "prepare" | "submit":
                return {"steps": [{"action": url}], "payloads": ["{}"], "query_prepared": NOBODY}
            case "workflow", "prepare":
                return {"query_prepared": NOBODY, "custom_data": '{"name":"w","data":""}', "retry_interval": 1000}
            case "workflow", "submit":
                return {"req_extra": {"status": ends}}
            case _:
                return {}

    async def becomes(self, status: str) -> None:
        url = "" if status == "succeed" else NOBODY
        goes_on = status in ("submitted", "aborting")
        steps = ["prepare"] if status != "none" else []
        if goes_on and self._pattern in BRANCHES:
            steps.append("registerBranch")
        if status in ("submitted", "succeed") or (self._pattern, status) == ("workflow", "failed"):
            steps.append("submit")
        elif status in ("aborting", "failed"):
            steps.append("abort")
        for method in steps:
            said = await self.call(method, ends=status, branch_id="01", url=url)
            assert said.word == "SUCCESS", said


async def stands(http: httpx.AsyncClient, gid: str, status: str) -> None:
    """Wait until a transaction has this status."""
    async with asyncio.timeout(15):
        while True:
            found = (await http.get("/api/dtmsvr/query", params={"gid": gid})).json()["transaction"]
            if (found or {"status": "none"})["status"] == status:
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("pattern", "status", "method"),
    [
        (pattern, status, method)
        for pattern, table in TABLES.items()
        for status, calls in table.items()
        for method in METHODS
        if method in calls
    ],
    ids=str,
)
async def test_what_is_allowed_when(server: Process, caller: Caller, pattern: str, status: str, method: str) -> None:
    transaction = Transaction(caller, pattern)
    await transaction.becomes(status)
    async with httpx.AsyncClient(base_url=server.url) as http:
        await stands(http, transaction.gid, status)

    said = await transaction.call(method)

    number, message = TABLES[pattern][status][method]
    if number == 200:
        assert said.word == "SUCCESS", said
        return
    code, of_grpc = NUMBERS[number]
    assert said.number in (number, code, of_grpc.value[0])
    assert (said.word, said.message) == ("FAILURE" if number == 409 else "ERROR", message.format(gid=transaction.gid))
