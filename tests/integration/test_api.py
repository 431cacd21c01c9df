"""DTM's own tests of its API and administration, as ours; and what a server owes anybody who connects to it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.harness import Process, coordinator, store_for
from tests.integration.scripted import ONGOING, Participant

DTM = "/api/dtmsvr"


@pytest.fixture(scope="module", params=["memory", "sqlite", "mysql", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("coordinator")
    with coordinator(store_for(request, folder), folder, TXCOORD_MAX_BODY_BYTES="100000") as process:
        yield process


@pytest.fixture
async def http(server: Process) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
        yield client


async def submit(http: httpx.AsyncClient, url: str = "", **changes: Any) -> str:
    """Submit a saga of one step and return its gid; without a URL there is nothing to call."""
    gid = f"g-{uuid4().hex}"
    body = {"gid": gid, "trans_type": "saga", "steps": [{"action": url, "compensate": ""}], "payloads": ["{}"]}
    answer = await http.post(f"{DTM}/submit", json=body | changes)
    assert answer.status_code in (200, 425), answer.text
    return gid


async def query(http: httpx.AsyncClient, gid: str) -> Any:
    answer = await http.get(f"{DTM}/query", params={"gid": gid})
    assert answer.status_code == 200
    return answer.json()


async def listed(http: httpx.AsyncClient, **filters: object) -> Any:
    answer = await http.get(f"{DTM}/all", params={name: str(value) for name, value in filters.items()})
    assert answer.status_code == 200
    return answer.json()


async def becomes(http: httpx.AsyncClient, gid: str, status: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            transaction: dict[str, Any] = (await query(http, gid))["transaction"]
            if transaction["status"] == status:
                return transaction
            await asyncio.sleep(0.02)


async def parked(http: httpx.AsyncClient, participant: Participant, *, retry_interval: int) -> str:
    """A saga whose action answered ONGOING once, and which now waits."""
    path = uuid4().hex
    participant.script(path, ONGOING)
    return await submit(http, f"{participant.url}/{path}", wait_result=True, retry_interval=retry_interval)


async def test_version(http: httpx.AsyncClient) -> None:
    answer = await http.get(f"{DTM}/version")

    assert answer.status_code == 200
    assert list(answer.json()) == ["version"]


async def test_new_gids_differ(http: httpx.AsyncClient) -> None:
    gids = {(await http.get(f"{DTM}/newGid")).json()["gid"] for _ in range(20)}

    assert len(gids) == 20
    assert {len(gid) for gid in gids} == {22}


async def test_query(http: httpx.AsyncClient) -> None:
    gid = await submit(http)
    found = await query(http, gid)

    assert found["transaction"]["gid"] == gid
    assert [(branch["branch_id"], branch["op"]) for branch in found["branches"]] == [
        ("01", "compensate"),
        ("01", "action"),
    ]
    assert (await http.get(f"{DTM}/query?gid=")).status_code == 400
    assert await query(http, "zzz") == {"branches": [], "transaction": None}


async def test_all(http: httpx.AsyncClient) -> None:
    gids = [await submit(http, wait_result=True) for _ in range(3)]

    first = await listed(http, limit=1)
    assert first["transactions"][0]["gid"] == gids[-1]
    assert first["next_position"] != ""

    assert [row["gid"] for row in (await listed(http, gid=gids[0]))["transactions"]] == [gids[0]]

    second = await listed(http, limit=1, position=first["next_position"])
    assert second["transactions"][0]["gid"] == gids[-2]
    assert second["next_position"] not in ("", first["next_position"])

    rest = await listed(http, limit=1000, position=first["next_position"])
    assert rest["next_position"] == ""
    assert gids[-1] not in [row["gid"] for row in rest["transactions"]]

    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    minute_ms = 60_000
    window = {"createTimeStart": now_ms - 10 * minute_ms, "createTimeEnd": now_ms + minute_ms, "limit": 1000}
    matching = await listed(http, status="succeed", transType="saga", **window)
    assert {(row["status"], row["trans_type"]) for row in matching["transactions"]} == {("succeed", "saga")}
    assert {row["gid"] for row in matching["transactions"]} >= set(gids)
    assert matching["next_position"] == ""

    earlier = await listed(
        http, createTimeStart=now_ms - 10 * minute_ms, createTimeEnd=now_ms - 5 * minute_ms, limit=1000
    )
    assert earlier == {"next_position": "", "transactions": []}


async def test_reset_cron_time(http: httpx.AsyncClient, participant: Participant) -> None:
    # An interval is shortened by up to a quarter, so that those that wait do not come back together.
    far = [await parked(http, participant, retry_interval=11_000) for _ in range(10)]
    near = await parked(http, participant, retry_interval=5_000)

    async def reset(**parameters: int) -> Any:
        return (await http.get(f"{DTM}/resetCronTime", params=parameters)).json()

    assert await reset(timeout=6000, limit=9) == {"has_remaining": True, "succeed_count": 9}
    assert await reset(timeout=6000, limit=10) == {"has_remaining": False, "succeed_count": 1}
    for gid in far:
        await becomes(http, gid, "succeed")  # they were taken at once
    assert (await query(http, near))["transaction"]["status"] == "submitted"
    assert await reset(timeout=3000) == {"has_remaining": False, "succeed_count": 1}
    assert await reset(timeout=3000) == {"has_remaining": False, "succeed_count": 0}
    await becomes(http, near, "succeed")


async def test_force_stop(http: httpx.AsyncClient, participant: Participant) -> None:
    gid = await parked(http, participant, retry_interval=100)

    assert (await http.post(f"{DTM}/forceStop", json={"gid": gid})).json() == {"dtm_result": "SUCCESS"}
    transaction = (await query(http, gid))["transaction"]
    assert transaction["status"] == "failed"
    assert transaction["rollback_time"]

    again = await http.post(f"{DTM}/forceStop", json={"gid": gid})
    assert again.status_code == 409
    assert again.json()["message"] == "global transaction force stop error. status: failed. error: FAILURE"
    assert (await http.post(f"{DTM}/forceStop", json={"gid": "zzz"})).status_code == 404


async def test_reset_next_cron_time_of_a_finished_one_notes_the_time(http: httpx.AsyncClient) -> None:
    gid = await submit(http, wait_result=True)
    before = datetime.now(UTC)

    assert (await http.post(f"{DTM}/resetNextCronTime", json={"gid": gid})).json() == {"dtm_result": "SUCCESS"}

    transaction = (await query(http, gid))["transaction"]
    assert transaction["status"] == "succeed"
    assert before <= datetime.fromisoformat(transaction["next_cron_time"]) <= datetime.now(UTC)
    assert (await http.post(f"{DTM}/resetNextCronTime", json={"gid": "zzz"})).status_code == 404


async def test_reset_next_cron_time_of_a_waiting_one_wakes_it(
    http: httpx.AsyncClient, participant: Participant
) -> None:
    gid = await parked(http, participant, retry_interval=1000)

    await http.post(f"{DTM}/resetNextCronTime", json={"gid": gid})

    await becomes(http, gid, "succeed")


async def test_a_saga_is_neither_prepared_nor_aborted(http: httpx.AsyncClient, participant: Participant) -> None:
    gid = await parked(http, participant, retry_interval=100)

    prepared = await http.post(f"{DTM}/prepare", json={"gid": gid, "trans_type": "saga"})
    aborted = await http.post(f"{DTM}/abort", json={"gid": gid, "trans_type": "tcc"})

    assert prepared.status_code == 400
    assert aborted.status_code == 409
    message = "trans type: 'saga' current status 'submitted', cannot abort. FAILURE"
    assert aborted.json() == {"dtm_result": "FAILURE", "message": message}
    assert (await http.post(f"{DTM}/abort", json={"gid": "zzz"})).status_code == 404


async def test_a_finished_saga_is_not_submitted_again(http: httpx.AsyncClient) -> None:
    gid = await submit(http, wait_result=True)
    body = {"gid": gid, "trans_type": "saga", "steps": [{"action": ""}], "payloads": [""]}

    answer = await http.post(f"{DTM}/submit", json=body)

    assert answer.status_code == 409
    message = "current status 'succeed', cannot sumbmit. FAILURE"
    assert answer.json() == {"dtm_result": "FAILURE", "message": message}


@pytest.mark.parametrize(
    ("changes", "code", "sentence"),
    [
        ({"gid": ""}, 400, "gid is empty"),
        ({"gid": "g\u0000"}, 400, "gid"),
        ({"gid": "g" * 200}, 400, "gid has 200 characters"),
        ({"trans_type": ""}, 400, "trans_type"),
        ({"trans_type": "barter"}, 400, "trans_type 'barter' is not known"),
        ({"payloads": []}, 400, "payloads has 0 entries for 1 steps"),
        ({"steps": [{"action": "ftp://x"}]}, 400, "ftp://x"),
        ({"custom_data": '{"orders":{"0":[0]}}'}, 400, "orders can never be met"),
        ({"custom_data": "[]"}, 400, "custom_data"),
        ({"timeout_to_fail": 10**9}, 400, "timeout_to_fail"),
        ({"branch_headers": {"a b": "c"}}, 400, "branch_headers"),
        ({"steps": [{}] * 1001, "payloads": [""] * 1001}, 413, "max_branches"),
        ({"payloads": ["x" * 100_000]}, 413, "max_body_bytes"),
    ],
    ids=str,
)
async def test_what_cannot_succeed_is_refused_and_not_stored(
    http: httpx.AsyncClient, changes: dict[str, Any], code: int, sentence: str
) -> None:
    gid = f"refused-{uuid4().hex}"
    body = {"gid": gid, "trans_type": "saga", "steps": [{"action": ""}], "payloads": [""]}

    answer = await http.post(f"{DTM}/submit", json=body | changes)

    assert answer.status_code == code, answer.text
    assert sentence in answer.json()["message"]
    assert (await query(http, gid))["transaction"] is None


@pytest.mark.parametrize("gid", ["\u0000", "\ud7ff", "g" * 5000, "'; drop table", "%00", "\U0001f600", " "])
async def test_a_gid_that_none_can_have_is_not_found(http: httpx.AsyncClient, gid: str) -> None:
    for path in (f"{DTM}/query", f"{DTM}/all"):
        answer = await http.get(path, params={"gid": gid})
        assert answer.status_code in (200, 400), answer.text
        assert not answer.json().get("transactions")
        assert not answer.json().get("transaction")
    for path in ("forceStop", "resetNextCronTime", "abort"):
        assert (await http.post(f"{DTM}/{path}", json={"gid": gid})).status_code in (400, 404)


async def test_metrics_and_health(http: httpx.AsyncClient) -> None:
    await submit(http, wait_result=True)

    metrics = await http.get("/api/metrics")

    assert metrics.status_code == 200
    assert 'dtm_transaction_process_total{model="saga",status="ok"}' in metrics.text
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).status_code == 200


# -- whoever connects -----------------------------------------------------------------


def exchange(server: Process, request: bytes, *, is_all: bool = False) -> bytes:
    """Send bytes, and with `is_all` the end of the stream; return what comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        if is_all:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def request_with(body: bytes, *, headers: str = "", path: str = "submit") -> bytes:
    head = f"POST {DTM}/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_an_answer_without_a_body_is_sent(server: Process) -> None:
    answer = exchange(server, b"HEAD /api/ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")


def test_pipelined_requests_are_answered_in_order(server: Process) -> None:
    ping = b"GET /api/ping HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    answer = exchange(server, ping + ping + last)

    assert re.findall(rb'{"[^}]+}', answer) == [b'{"msg":"pong"}', b'{"msg":"pong"}', b'{"status":"ok"}']
    assert answer.count(b"HTTP/1.1 200 ") == 3


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(server: Process) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request_with(b"{}", headers="Expect: 100-continue\r\n")[:-2])
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_the_head_of_a_request_has_a_bound(server: Process) -> None:
    many = "".join(f"x-{number}: {'y' * 1000}\r\n" for number in range(100))

    assert exchange(server, request_with(b"{}", headers=many)).startswith(b"HTTP/1.1 400 ")


def test_a_chunked_body_has_a_bound(server: Process) -> None:
    head = f"POST {DTM}/submit HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

    answer = exchange(server, head.encode() + chunk * 3 + b"0\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"max_body_bytes" in answer


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), path=st.sampled_from(["submit", "prepare", "abort", "registerBranch"]))
def test_rubbish_bodies_are_refused(server: Process, body: bytes, path: str) -> None:
    assert exchange(server, request_with(body, path=path)).startswith(b"HTTP/1.1 400 ")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.dictionaries(
        st.sampled_from(["gid", "trans_type", "steps", "payloads", "custom_data", "branch_headers", "timeout_to_fail"]),
        st.recursive(
            st.none() | st.integers() | st.text() | st.just("saga"),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_rubbish_fields_never_break_the_server(server: Process, body: dict[str, Any]) -> None:
    text = json.dumps(body).encode()

    assert exchange(server, request_with(text))[9:12] in (b"200", b"400", b"413", b"409")


RUBBISH = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2)


@pytest.fixture(scope="module")
def prepared_gid(server: Process) -> Iterator[str]:
    """A TCC that takes branches; whatever it took, it can be cancelled in the end."""
    gid = f"rubbish-{uuid4().hex}"
    with httpx.Client(base_url=server.url, timeout=20) as http:
        body = {"gid": gid, "trans_type": "tcc", "timeout_to_fail": 3600}
        assert http.post(f"{DTM}/prepare", json=body).status_code == 200
        yield gid
        assert http.post(f"{DTM}/abort", json=body).json() == {"dtm_result": "SUCCESS"}
        assert http.get(f"{DTM}/query", params={"gid": gid}).json()["transaction"]["status"] in ("aborting", "failed")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    # Mostly right, so that what is wrong is not always the gid.
    fields=st.fixed_dictionaries(
        {},
        optional={
            "branch_id": st.text(max_size=200) | RUBBISH,
            "data": st.text() | RUBBISH,
            "confirm": st.text().map("http://".__add__) | st.just("") | RUBBISH,
            "cancel": st.text().map("http://".__add__) | st.just("") | RUBBISH,
            "gid": RUBBISH,
            "trans_type": RUBBISH,
            "op": RUBBISH,
        },
    ),
    more=st.dictionaries(st.text(max_size=100), st.text() | RUBBISH, max_size=2),
    ascii_only=st.booleans(),
)
def test_rubbish_branches_never_break_the_server(
    server: Process, prepared_gid: str, fields: dict[str, Any], more: dict[str, Any], ascii_only: bool
) -> None:
    body = more | {"gid": prepared_gid, "trans_type": "tcc", "branch_id": "01"} | fields
    text = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")

    assert exchange(server, request_with(text, path="registerBranch"))[9:12] in (b"200", b"400", b"413", b"409")


@pytest.mark.parametrize("text", ['"\\ud800"', '"\\udc00x"', "1", "[]", "{}", "true", "1e400", '"\\u0000"'])
@pytest.mark.parametrize("key", ["gid", "trans_type", "branch_id", "data", "confirm", "cancel", "other"])
def test_values_of_a_branch_that_no_text_can_hold(server: Process, prepared_gid: str, key: str, text: str) -> None:
    good = {"gid": prepared_gid, "trans_type": "tcc", "branch_id": "02", "data": "", "confirm": "", "cancel": ""}
    members = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in good.items() if name != key]
    body = "{" + ",".join([*members, f'"{key}":{text}']) + "}"

    assert exchange(server, request_with(body.encode(), path="registerBranch"))[9:12] in (b"200", b"400")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=st.binary(min_size=1, max_size=300))
def test_rubbish_instead_of_http_harms_nobody(server: Process, request: bytes) -> None:
    exchange(server, request, is_all=True)

    assert httpx.get(f"{server.url}/healthz").status_code == 200
