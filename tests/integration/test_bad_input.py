"""Bad input to a running coordinator: bytes that are no HTTP or JSON-RPC, and requests of all three APIs in any order.

Never a fault of the server, never a transaction that is stuck, and the server lives.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
import uvicorn
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localservers.processes import free_port
from tests.e2e.harness import Process, coordinator, store_for
from tests.integration.callers import DTM, branch_message, trans_message
from tests.integration.rubbish import Rubbish, assert_nothing_is_stuck
from txcoord.process import http_protocol
from txcoord.proto.dtm_pb2 import DtmTopicRequest

BASE = "/api/dtmsvr"
PARTICIPANT = Rubbish()


@pytest.fixture(scope="module", params=["sqlite", "mysql", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("coordinator")
    process = coordinator(
        store_for(request, folder),
        folder,
        TXCOORD_MAX_BODY_BYTES="100000",
        TXCOORD_MAX_WAIT_S="0.3",
        TXCOORD_BREAKER_FAILURES="1000000",
    )
    with PARTICIPANT.serving():
        try:
            process.start()
            yield process
            # Here and not in a test, which might run elsewhere than those that sent the rubbish.
            assert_nothing_is_stuck(process)
        finally:
            process.close()


on_sqlite = pytest.mark.parametrize("server", ["sqlite"], indirect=True, scope="module")
"""For what does not get as far as the store."""


# -- bytes ----------------------------------------------------------------------------


def exchange(server: Process, *pieces: bytes, is_all: bool = False) -> bytes:
    """Send bytes, and with `is_all` the end of the stream; return what comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        if is_all:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answer)]


PING = b"GET /api/ping HTTP/1.1\r\nHost: x\r\n"
LAST = PING + b"Connection: close\r\n\r\n"
SUBMIT = b"POST /api/dtmsvr/submit HTTP/1.1\r\nHost: x\r\n"
CHUNKED = SUBMIT + b"Transfer-Encoding: chunked\r\n\r\n"


@on_sqlite
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n", id="a chunk of a negative size"),
        pytest.param(CHUNKED + b"fffffffffffffffff\r\nhello", id="a chunk beyond 64 bits"),
        pytest.param(CHUNKED + b"zz\r\n", id="a chunk of no size"),
        pytest.param(CHUNKED + b"2\r\n{}}}0\r\n\r\n", id="a chunk longer than its size"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", id="a huge trailer"),
        pytest.param(SUBMIT + b"Content-Length: -1\r\n\r\n{}", id="a negative length"),
        pytest.param(SUBMIT + b"Content-Length: 99999999999999999999\r\n\r\n{}", id="a length beyond 64 bits"),
        pytest.param(SUBMIT + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", id="two lengths"),
        pytest.param(
            SUBMIT + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            id="a length and chunks",
        ),
        pytest.param(SUBMIT + b"Transfer-Encoding: xchunked\r\n\r\n{}", id="an unknown encoding"),
        pytest.param(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="a huge path"),
        pytest.param(b"GET /api/\x00 HTTP/1.1\r\nHost: x\r\n\r\n", id="a zero in the path"),
        pytest.param(b"GET http://x:99999999/ HTTP/1.1\r\nHost: x\r\n\r\n", id="no port"),
        pytest.param(PING + b": x\r\n\r\n", id="a header without a name"),
        pytest.param(PING + b" folded\r\n\r\n", id="a folded header"),
        pytest.param(PING + b"x: \x00\r\n\r\n", id="a zero in a header"),
        pytest.param(b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", id="a tunnel"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), id="HTTP/2"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), id="TLS"),
    ],
)
def test_what_is_no_request_is_refused(server: Process, request_: bytes) -> None:
    assert statuses(exchange(server, request_)) == [400]


@on_sqlite
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"POST /api/dtmsvr/submit HTTP/1.1\r\nHos", id="a head"),
        pytest.param(SUBMIT + b"Content-Length: 200\r\n\r\n{", id="a body"),
        pytest.param(CHUNKED + b"ff\r\n{", id="a chunk"),
        pytest.param(CHUNKED + b"7fffffffffffffff\r\n{", id="a chunk without an end"),
    ],
)
def test_half_a_request_is_not_answered(server: Process, request_: bytes) -> None:
    assert exchange(server, request_, is_all=True) == b""
    assert statuses(exchange(server, LAST)) == [200]


@on_sqlite
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from([b"GET", b"POST", b"DELETE", b"PUT", b"HEAD", b"OPTIONS"]),
    path=st.sampled_from(["/all", "/query", "/queryKV", "/scanKV", "/subscribe", "/unsubscribe", "/topic/", "/x"]),
    rest=st.text(st.sampled_from("/%;?&=#\\.+-0f9z") | st.characters(max_codepoint=126, min_codepoint=33), max_size=20),
    names=st.lists(st.sampled_from(["gid", "limit", "position", "cat", "key", "topic", "url", "status"]), max_size=3),
    value=st.binary(max_size=12).map(lambda raw: "".join(f"%{byte:02x}" for byte in raw)) | st.integers().map(str),
)
def test_rubbish_in_paths_and_queries_is_refused(
    server: Process, method: bytes, path: str, rest: str, names: list[str], value: str
) -> None:
    query = "&".join(f"{name}={value}" for name in names)
    target = f"{BASE}{path}{rest}?{query}".encode()

    head = b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % (method, target)

    assert statuses(exchange(server, head)) in ([200], [400], [404], [409])


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
BODY = b'{"gid":"upgraded","trans_type":"tcc"}'


@on_sqlite
@pytest.mark.parametrize(
    "framed",
    [
        pytest.param(b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY), id="length"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), id="chunks"),
    ],
)
@pytest.mark.parametrize("cut", [0, 60, -10], ids=["whole", "head cut", "body cut"])
def test_who_would_rather_speak_http_2_is_answered_all_the_same(server: Process, framed: bytes, cut: int) -> None:
    prepare = b"POST /api/dtmsvr/prepare HTTP/1.1\r\nHost: x\r\n" + UPGRADE + framed
    ping = PING + UPGRADE + b"\r\n"

    answer = exchange(server, prepare[:cut], prepare[cut:] + ping + LAST)

    assert statuses(answer) == [200, 200, 200]
    assert re.findall(rb"{[^}]+}", answer) == [b'{"dtm_result":"SUCCESS"}', b'{"msg":"pong"}', b'{"msg":"pong"}']


@on_sqlite
def test_rubbish_behind_a_request_does_not_answer_it(server: Process) -> None:
    answer = exchange(server, PING + b"\r\n" + PING + b"\r\n" + b"\x00 rubbish\r\n\r\n")

    assert statuses(answer) == [200, 200]
    assert b"connection: close" in answer


@pytest.mark.parametrize("sent", [b"", b"GET /api", PING + b"\r\n" + PING], ids=["nothing", "a head", "a second head"])
async def test_a_head_that_does_not_come_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(app, port=free_port(), http=http_protocol.HttpProtocol, lifespan="off", log_level="warning")
    serving = uvicorn.Server(config)
    task = asyncio.create_task(serving.serve())
    async with asyncio.timeout(10):
        while not serving.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", config.port)
        writer.write(sent)
        assert statuses(await reader.read()) == ([200] if sent.startswith(PING) else [])
    writer.close()
    serving.should_exit = True
    await task


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A JSON-RPC request of which a piece is something else."""
    method = draw(st.sampled_from(["submit", "prepare", "registerBranch", "newGid"]))
    params = {
        "gid": draw(st.uuids()).hex,
        "trans_type": draw(st.sampled_from(["saga", "msg", "tcc"])),
        "steps": [{"action": PARTICIPANT.url("ok"), "compensate": PARTICIPANT.url("ok")}],
        "payloads": ["{}"],
        "branch_id": "01",
    }
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    start = draw(st.integers(0, len(body)))
    return body[:start] + draw(st.binary(max_size=4)) + body[start + draw(st.integers(0, 12)) :]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=80) | damaged())
def test_random_bytes_over_json_rpc_are_answered_as_json_rpc(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/api/json-rpc", content=body)

    assert answer.status_code in (200, 400), answer.text
    reply = answer.json()
    assert set(reply) == {"jsonrpc", "id", "error", "result"}
    code = reply["error"] and reply["error"]["code"]
    assert code in (None, -32700, -32600, -32601, -32603, -32901, -32902), reply
    assert (answer.status_code == 400) == (code == -32700)


@pytest.fixture(scope="module")
def http(server: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as made:
        yield made


# -- requests -------------------------------------------------------------------------

Step = tuple[str, str, dict[str, Any]]
"""API, operation, fields."""

PATTERNS = st.sampled_from(["saga", "tcc", "xa", "msg", "workflow"])
NAMES = st.sampled_from(["ok", "ok", "no", "later", "words", "nothing", "text?method=Do"])
URLS = NAMES.map(lambda name: f"participant/{name}") | st.sampled_from(["", "topic://t", "127.0.0.1:1/a.B/C", "x"])
PAYLOADS = st.sampled_from(["{}", "{}", "", "[]", "\x00"])
SECONDS = st.sampled_from([0, 0, 1, 3600, -1, 2**63 - 1])
TRANS = st.fixed_dictionaries(
    {},
    optional={
        "trans_type": PATTERNS,
        "steps": st.lists(
            st.fixed_dictionaries({}, optional={"action": URLS, "compensate": URLS, "": URLS}), max_size=3
        ),
        "payloads": st.lists(PAYLOADS, min_size=2, max_size=3),
        "query_prepared": URLS,
        "custom_data": st.sampled_from(
            [
                '{"concurrent":true}',
                '{"delay":0.1,"max_attempts":1}',
                '{"name":"w","data":"e30="}',
                '{"name":"\\u0000"}',
            ]
        ),
        "req_extra": st.dictionaries(
            st.sampled_from(["status", "result", "rollback_reason"]),
            st.sampled_from(["succeed", "failed", "e30=", "\x00", ""]),
        ),
        "wait_result": st.booleans(),
        "timeout_to_fail": SECONDS,
        "request_timeout": SECONDS,
        "retry_interval": SECONDS,
        "retry_limit": st.sampled_from([0, 1, -1, 2**63 - 1]),
        "branch_headers": st.dictionaries(st.sampled_from(["x", "host", ""]), st.sampled_from(["1", "\n", "é"])),
        "rollback_reason": st.text(max_size=5) | st.just("x" * 3000),
    },
)
BRANCH = st.fixed_dictionaries(
    {},
    optional={
        "trans_type": PATTERNS,
        "branch_id": st.sampled_from(["01", "02", "", "\x00"]),
        "data": PAYLOADS,
        "confirm": URLS,
        "cancel": URLS,
        "url": URLS,
        "op": st.sampled_from(["action", "commit", "rollback", "business", "", "resume"]),
        "status": st.sampled_from(["succeed", "failed", "prepared", ""]),
    },
)
TOPIC = st.fixed_dictionaries(
    {}, optional={"topic": st.sampled_from(["t", "t", "", "a/b"]), "url": URLS, "remark": st.text(max_size=3)}
)
FIELDS = {
    **dict.fromkeys(["prepare", "submit", "abort", "prepareWorkflow"], TRANS),
    "registerBranch": BRANCH,
    **dict.fromkeys(["forceStop", "resetNextCronTime", "query"], st.just({})),
    **dict.fromkeys(["subscribe", "unsubscribe", "deleteTopic"], TOPIC),
}
OFTEN = ["prepare", "submit", "registerBranch"]
JSON_RPC = ["prepare", "submit", "abort", "registerBranch"]
GRPC = [*JSON_RPC, "prepareWorkflow", "subscribe", "unsubscribe", "deleteTopic"]


@st.composite
def sequences(draw: st.DrawFn) -> list[Step]:
    """Requests about one transaction, half of them as they should be, by any API that has them."""
    pattern = draw(PATTERNS)
    steps = []
    for _ in range(draw(st.integers(1, 8))):
        operation = draw(st.sampled_from([*OFTEN, *OFTEN, *FIELDS]))
        if (pattern, operation) == ("workflow", "prepare"):
            operation = "prepareWorkflow"
        apis = ["http", *(["jsonrpc"] if operation in JSON_RPC else []), *(["grpc"] if operation in GRPC else [])]
        fields = good(draw, pattern, operation) | draw(st.just({}) | FIELDS[operation])
        steps.append((draw(st.sampled_from(apis)), operation, fields))
    return steps


def good(draw: st.DrawFn, pattern: str, operation: str) -> dict[str, Any]:
    """Fields as they should be."""
    urls = [f"participant/{draw(NAMES)}" for _ in range(2)]
    if operation in ("subscribe", "unsubscribe", "deleteTopic"):
        return {"topic": "t", "url": urls[0], "remark": ""}
    if operation in ("forceStop", "resetNextCronTime", "query"):
        return {}
    named = {"trans_type": pattern}
    match pattern, operation:
        case "tcc", "registerBranch":
            return named | {"branch_id": "01", "confirm": urls[0], "cancel": urls[1], "data": "{}"}
        case "xa", "registerBranch":
            return named | {"branch_id": "01", "url": urls[0]}
        case _, "registerBranch":
            return named | {"branch_id": "01", "op": "action", "status": "succeed", "data": "{}"}
        case "workflow", "submit":
            return named | {"req_extra": {"status": "succeed", "result": "e30="}}
        case "workflow", _:
            return named | {"query_prepared": urls[0], "custom_data": '{"name":"w","data":"e30="}', "retry_interval": 1}
        case "saga", _:
            steps = [{"action": f"participant/{draw(NAMES)}", "compensate": url} for url in urls]
            return named | {"steps": steps, "payloads": ["{}", "{}"]}
        case "msg", _:
            steps = [{"action": urls[0]}, {"action": "topic://t" if draw(st.booleans()) else urls[0]}]
            return named | {"steps": steps, "payloads": ["{}", "{}"], "query_prepared": urls[1], "timeout_to_fail": 1}
        case _:
            return named | {"timeout_to_fail": draw(SECONDS)}


class Callers:
    """Sends requests; what comes back is checked."""

    STATUSES = frozenset((200, 400, 404, 409, 413, 425))
    CODES = frozenset((None, -32901, -32902, -32603))
    GRPC_CODES = frozenset(code for code in grpc.StatusCode if code.value[0] in (0, 3, 5, 8, 9, 10))

    def __init__(self, http: httpx.Client, channel: grpc.Channel) -> None:
        self._http = http
        self._channel = channel

    def send(self, api: str, operation: str, gid: str, fields: dict[str, Any]) -> None:
        fields = json.loads(json.dumps(fields).replace("participant/", PARTICIPANT.url("")))
        if operation in ("subscribe", "unsubscribe", "deleteTopic"):
            send = self._change_topic_by_grpc if api == "grpc" else self._change_topic
            send(operation, **fields)
        else:
            by = {"http": self._by_http, "jsonrpc": self._by_json_rpc, "grpc": self._by_grpc}
            by[api](operation, {"gid": gid, **fields})

    def _by_http(self, operation: str, body: dict[str, Any]) -> None:
        if operation == "query":
            self._check(self._http.get(f"{BASE}/query", params=body))
        else:
            self._check(self._http.post(f"{BASE}/{operation}", json=body))

    def _by_json_rpc(self, operation: str, body: dict[str, Any]) -> None:
        request = {"jsonrpc": "2.0", "id": 1, "method": operation, "params": {**body, "protocol": "json-rpc"}}
        answer = self._http.post("/api/json-rpc", json=request)
        error = answer.json()["error"] or {"code": None}
        assert answer.status_code == 200
        assert error["code"] in self.CODES, error

    def _by_grpc(self, operation: str, body: dict[str, Any]) -> None:
        message = branch_message(**body) if operation == "registerBranch" else trans_message(**body)
        self._call(operation, message)

    def _change_topic(self, operation: str, *, topic: str, url: str, remark: str) -> None:
        if operation == "deleteTopic":
            self._check(self._http.delete(f"{BASE}/topic/{topic}"))
        else:
            self._check(self._http.post(f"{BASE}/{operation}", params={"topic": topic, "url": url, "remark": remark}))

    def _change_topic_by_grpc(self, operation: str, *, topic: str, url: str, remark: str) -> None:
        self._call(operation, DtmTopicRequest(Topic=topic, URL=url, Remark=remark))

    def _check(self, answer: httpx.Response) -> None:
        assert answer.status_code in self.STATUSES, answer.text

    def _call(self, operation: str, message: Message) -> None:
        method = f"{DTM}{operation[0].upper()}{operation[1:]}"
        # A future that has ended has a code, whatever it is; a call that returns would raise it.
        call = self._channel.unary_unary(method).future(message.SerializeToString(), timeout=20)
        assert call.code() in self.GRPC_CODES, call.details()


@pytest.fixture(scope="module")
def callers(server: Process, http: httpx.Client) -> Iterator[Callers]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield Callers(http, channel)


numbers = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=sequences())
def test_requests_in_any_order(callers: Callers, steps: list[Step]) -> None:
    gid = f"g-{next(numbers)}"
    for api, operation, fields in steps:
        callers.send(api, operation, gid, fields)
