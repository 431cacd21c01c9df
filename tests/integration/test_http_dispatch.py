"""Calls over HTTP: the request as the participant sees it, and what each kind of answer comes to."""

from __future__ import annotations

import asyncio
import gzip
import socket

import pytest
import uvloop

from tests.integration.http_participant import Clock, Received, answer, never, participant, plays, request
from txcoord import __version__
from txcoord.dispatch.http import DispatchSettings, HttpDispatcher
from txcoord.model import Op, Outcome, Pattern

SUCCESS = b'{"dtm_result":"SUCCESS"}'


# The hook that is to replace this fixture would rename all asynchronous tests of the project.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


@pytest.fixture
async def dispatcher():
    it = HttpDispatcher(DispatchSettings(max_body_bytes=20_000, max_header_bytes=2_000, max_in_flight=4))
    yield it
    await it.close()


async def test_the_tests_of_this_module_run_on_both_loops(request: pytest.FixtureRequest) -> None:
    is_uvloop = isinstance(asyncio.get_running_loop(), uvloop.Loop)

    assert is_uvloop == (request.node.callspec.id == "uvloop")


# ---- the request


async def test_a_call_with_a_payload_is_a_post_that_says_which_op_it_is(dispatcher: HttpDispatcher) -> None:
    async with participant(plays(answer(200, SUCCESS))) as it:
        result = await dispatcher.call(request(it.base + "/deduct?a=1&gid=x", gid="g 1/ü&", payload=b'{"id":3}'))

    assert (result.outcome, result.code, result.called) == (Outcome.SUCCESS, 200, True)
    assert result.duration_us > 0
    [seen] = it.received
    assert seen.method == "POST"
    assert seen.target == "/deduct?a=1&gid=x&branch_id=01&gid=g%201%2F%C3%BC%26&op=action&trans_type=saga"
    assert seen.body == b'{"id":3}'
    assert dict(seen.headers) == {
        "Host": f"127.0.0.1:{it.port}",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": f"txcoord/{__version__}",
        "Content-Length": "8",
    }


async def test_a_call_without_a_payload_is_a_get(dispatcher: HttpDispatcher) -> None:
    async with participant(plays(answer())) as it:
        await dispatcher.call(request(it.base, payload=b"", op=Op.MSG, branch_id="00", pattern=Pattern.MSG))

    [seen] = it.received
    assert (seen.method, seen.target) == ("GET", "/?branch_id=00&gid=g1&op=msg&trans_type=msg")
    assert seen.header("Content-Length") is None
    assert seen.header("Content-Type") == "application/json"


async def test_an_empty_xa_call_is_a_post_of_nothing(dispatcher: HttpDispatcher) -> None:
    async with participant(plays(answer())) as it:
        await dispatcher.call(request(it.base + "/?", payload=b"", op=Op.COMMIT, pattern=Pattern.XA))

    [seen] = it.received
    assert (seen.method, seen.target) == ("POST", "/?branch_id=01&gid=g1&op=commit&trans_type=xa")
    assert seen.header("Content-Length") == "0"


async def test_branch_headers_override_ours_but_not_the_connection_s(dispatcher: HttpDispatcher) -> None:
    headers = {
        "content-type": "text/plain",
        "X-Tenant": "t1",
        "Host": "evil",
        "Content-Length": "999",
        "Connection": "x",
    }
    async with participant(plays(answer())) as it:
        await dispatcher.call(request(it.base, headers=headers))

    [seen] = it.received
    assert seen.header("Content-Type") == "text/plain"
    assert seen.header("X-Tenant") == "t1"
    assert seen.header("Host") == f"127.0.0.1:{it.port}"
    assert seen.header("Content-Length") == "8"
    assert seen.header("Connection") is None


async def test_credentials_in_the_url_are_sent_as_basic_authorization(dispatcher: HttpDispatcher) -> None:
    async with participant(plays(answer())) as it:
        await dispatcher.call(request(f"http://user:pass@127.0.0.1:{it.port}/"))

    assert it.received[0].header("Authorization") == "Basic dXNlcjpwYXNz"


async def test_an_ipv6_address_is_called(dispatcher: HttpDispatcher) -> None:
    sock = socket.socket(socket.AF_INET6)
    try:
        sock.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 on this machine")
    async with participant(plays(answer()), sock=sock) as it:
        result = await dispatcher.call(request(f"http://[::1]:{it.port}/"))

    assert result.outcome is Outcome.SUCCESS
    assert it.received[0].header("Host") == f"[::1]:{it.port}"


async def test_a_name_is_looked_up(dispatcher: HttpDispatcher) -> None:
    async with participant(plays(answer())) as it:
        results = await asyncio.gather(*(dispatcher.call(request(f"http://localhost:{it.port}/")) for _ in range(20)))

    assert {result.outcome for result in results} == {Outcome.SUCCESS}
    assert it.received[0].header("Host") == f"localhost:{it.port}"


@pytest.mark.parametrize(
    "url", ["", "localhost:1/x", "ftp://a/b", "http://a/\r\nX-Evil: 1", "http://a\x00b/", "http://[::1"], ids=ascii
)
async def test_a_url_that_cannot_be_called_is_unknown(dispatcher: HttpDispatcher, url: str) -> None:
    result = await dispatcher.call(request(url))

    assert (result.outcome, result.code, result.called) == (Outcome.UNKNOWN, 0, True)
    assert "cannot be called" in result.detail
    assert "repeated" in result.detail
    assert result.detail.isprintable()


async def test_a_header_that_cannot_be_sent_is_unknown(dispatcher: HttpDispatcher) -> None:
    async with participant(plays(answer())) as it:
        result = await dispatcher.call(request(it.base, headers={"X": "a\r\nX-Evil: 1"}))

    assert result.outcome is Outcome.UNKNOWN
    assert "cannot be sent" in result.detail
    assert it.connections == 0


# ---- the answer


@pytest.mark.parametrize(
    ("status", "body", "outcome", "detail"),
    [
        (200, b"", Outcome.SUCCESS, ""),
        (200, b'{"dtm_result":"FAILURE","reason":"no stock"}', Outcome.FAILURE, None),
        (409, b"no\nstock", Outcome.FAILURE, "no stock"),
        (425, b"wait", Outcome.ONGOING, "wait"),
        (503, b"busy \x00", Outcome.UNKNOWN, "HTTP 503: busy  "),
        (204, b"", Outcome.UNKNOWN, "HTTP 204"),
    ],
)
async def test_outcomes(
    dispatcher: HttpDispatcher, status: int, body: bytes, outcome: Outcome, detail: str | None
) -> None:
    async with participant(plays(answer(status, body))) as it:
        result = await dispatcher.call(request(it.base))

    assert (result.outcome, result.code) == (outcome, status)
    assert result.detail == (body.decode() if detail is None else detail)


async def test_the_rule_of_dtm_can_be_switched_on() -> None:
    dispatcher = HttpDispatcher(DispatchSettings(failure_word_anywhere=True))
    async with participant(plays(answer(500, b"java.lang.FAILURE"))) as it:
        result = await dispatcher.call(request(it.base))
        await dispatcher.close()

    assert result.outcome is Outcome.FAILURE


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([answer(409, b"no")[:9], answer(409, b"no")[9:40], answer(409, b"no")[40:]], id="split"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n", answer(409, b"no")], id="interim"),
        pytest.param(
            [b"HTTP/1.1 409 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nn\r\n", b"1\r\no\r\n0\r\nA: b\r\n\r\n"],
            id="chunks",
        ),
        pytest.param([answer(409, gzip.compress(b"no"), "Content-Encoding: gzip")], id="gzip"),
        pytest.param([b"HTTP/1.1 409 X\r\n", b"\r\nn", b"o"], id="until close"),
    ],
)
async def test_forms_of_an_answer(dispatcher: HttpDispatcher, pieces: list[bytes]) -> None:
    async with participant(plays(*pieces, close=True)) as it:
        result = await dispatcher.call(request(it.base))

    assert (result.outcome, result.detail) == (Outcome.FAILURE, "no")


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        pytest.param([], "closed the connection without an answer", id="nothing"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"], "before its answer was whole", id="cut"),
        pytest.param([b"SSH-2.0-OpenSSH\r\n"], "not HTTP/1.1", id="garbage"),
        pytest.param([b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"], "nobody asked", id="upgrade"),
        pytest.param([b"HTTP/1.1 200 OK\r\nX: " + b"a" * 10_000], "more than 2000 bytes of headers", id="long header"),
        pytest.param(
            [b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 2000], "more than 2000 bytes of headers", id="many headers"
        ),
        pytest.param(
            [b"HTTP/1.1 100 Go on\r\n\r\n" * 500], "more than 2000 bytes of headers", id="many interim answers"
        ),
        pytest.param(
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: a\r\n" * 2000],
            "more than 2000 bytes of headers",
            id="many trailers",
        ),
    ],
)
async def test_what_is_no_answer_is_unknown(dispatcher: HttpDispatcher, pieces: list[bytes], words: str) -> None:
    async with participant(plays(*pieces, close=True)) as it:
        result = await dispatcher.call(request(it.base))

        assert (result.outcome, result.code, result.called) == (Outcome.UNKNOWN, 0, True)
        assert words in result.detail
        assert result.detail.startswith(it.base)


async def _endless_headers(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not writer.is_closing():
        writer.write(b"a" * 1000)
        await writer.drain()


async def _endless_body(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"1\r\na\r\n" * 500)
        await writer.drain()


async def test_endless_headers_end(dispatcher: HttpDispatcher) -> None:
    async with participant(_endless_headers) as it:
        result = await dispatcher.call(request(it.base))
        await it.wait_until(lambda: it.open_connections == 0)

    assert "more than 2000 bytes of headers" in result.detail


async def test_an_endless_body_ends(dispatcher: HttpDispatcher) -> None:
    async with participant(_endless_body) as it:
        result = await dispatcher.call(request(it.base))
        await it.wait_until(lambda: it.open_connections == 0)

    assert (result.outcome, result.code) == (Outcome.UNKNOWN, 200)
    assert result.detail == "HTTP 200: the answer is longer than 20000 bytes"


@pytest.mark.parametrize(
    ("status", "outcome"), [(409, Outcome.FAILURE), (425, Outcome.ONGOING), (500, Outcome.UNKNOWN)]
)
async def test_of_a_huge_body_the_status_decides_alone(
    dispatcher: HttpDispatcher, status: int, outcome: Outcome
) -> None:
    async with participant(plays(answer(status, b"a" * 50_000))) as it:
        result = await dispatcher.call(request(it.base))

    assert (result.outcome, result.code) == (outcome, status)
    assert len(result.detail) <= 512


async def test_a_body_at_the_bound_is_read(dispatcher: HttpDispatcher) -> None:
    body = b"a" * 20_000
    async with participant(plays(answer(200, body))) as it:
        assert (await dispatcher.call(request(it.base))).outcome is Outcome.SUCCESS


async def test_a_compressed_bomb_is_unknown(dispatcher: HttpDispatcher) -> None:
    async with participant(plays(answer(200, gzip.compress(b"a" * 10**6), "Content-Encoding: gzip"))) as it:
        result = await dispatcher.call(request(it.base))

    assert result.outcome is Outcome.UNKNOWN
    assert "longer than 20000 bytes when decompressed" in result.detail


async def test_a_huge_payload_is_sent_whole(dispatcher: HttpDispatcher) -> None:
    payload = b"a" * 3_000_000
    async with participant(plays(answer())) as it:
        result = await dispatcher.call(request(it.base, payload=payload))

    assert result.outcome is Outcome.SUCCESS
    assert it.received[0].body == payload


async def test_an_early_answer_to_a_huge_payload_counts_and_its_connection_is_not_used_again(
    dispatcher: HttpDispatcher,
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(413, b"too large"))
        await writer.drain()
        ended.set()
        await writer.wait_closed()

    ended = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0, limit=1000)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for _ in range(2):
        result = await dispatcher.call(request(base, payload=b"a" * 30_000_000))
        assert (result.outcome, result.detail) == (Outcome.UNKNOWN, "HTTP 413: too large")
    assert ended.is_set()
    await dispatcher.close()
    server.close()


# ---- time


async def test_no_answer_in_time(dispatcher: HttpDispatcher) -> None:
    async with participant(never) as it:
        result = await dispatcher.call(request(it.base, timeout_s=0.05))
        await it.wait_until(lambda: it.open_connections == 0)

    assert (result.outcome, result.called) == (Outcome.UNKNOWN, True)
    assert result.detail == f"{it.base}: no answer came within 0.05 s"


async def test_a_slow_drip_does_not_win_time(dispatcher: HttpDispatcher) -> None:
    async def drip(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.005)

    async with participant(drip) as it:
        result = await dispatcher.call(request(it.base, timeout_s=0.1))
        await it.wait_until(lambda: it.open_connections == 0)

    assert result.detail == f"{it.base}: no whole answer came within 0.1 s"


async def test_no_connection_in_time() -> None:
    # A listener whose queue is full drops what else comes in.
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for other in (first, second):
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        dispatcher = HttpDispatcher(DispatchSettings(connect_timeout_s=0.05))
        result = await dispatcher.call(request(f"http://127.0.0.1:{full.getsockname()[1]}/", timeout_s=20))
        await dispatcher.close()

    assert result.outcome is Outcome.UNKNOWN
    assert "no connection" in result.detail


async def test_nobody_listens(dispatcher: HttpDispatcher) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        result = await dispatcher.call(request(f"http://127.0.0.1:{bound.getsockname()[1]}/"))

    assert (result.outcome, result.called) == (Outcome.UNKNOWN, True)
    assert "connection refused" in result.detail


async def test_a_name_that_does_not_resolve(dispatcher: HttpDispatcher) -> None:
    result = await dispatcher.call(request("http://nowhere.invalid/"))

    assert result.outcome is Outcome.UNKNOWN
    assert result.detail == "http://nowhere.invalid:80: no connection could be made (its name does not resolve)"


# ---- connections


async def test_a_connection_is_used_again(dispatcher: HttpDispatcher) -> None:
    async with participant(plays(answer(200, SUCCESS))) as it:
        for _ in range(5):
            await dispatcher.call(request(it.base))

    assert [seen.connection for seen in it.received] == [1] * 5


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(answer(200, b"", "Connection: close"), id="asked to close"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", id="HTTP/1.0"),
        pytest.param(answer(200, b"") + b"HTT", id="more than asked for"),
        pytest.param(answer(200, b"") + answer(409, b""), id="another answer"),
        pytest.param(answer(200, b"") + b"\x00garbage", id="garbage behind"),
    ],
)
async def test_a_connection_that_must_not_be_used_again_is_closed(dispatcher: HttpDispatcher, data: bytes) -> None:
    async with participant(plays(data)) as it:
        for _ in range(3):
            assert (await dispatcher.call(request(it.base))).outcome is Outcome.SUCCESS

    assert [seen.connection for seen in it.received] == [1, 2, 3]


async def test_bytes_on_an_idle_connection_are_no_answer_to_the_next_call(dispatcher: HttpDispatcher) -> None:
    async def play(seen: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(200))
        await writer.drain()
        if seen.connection == 1:
            await may_add.wait()
            writer.write(answer(409, b"not yours"))
            await writer.drain()
            await seen.left()

    may_add = asyncio.Event()
    async with participant(play) as it:
        await dispatcher.call(request(it.base))
        may_add.set()
        await it.wait_until(lambda: it.open_connections == 0)
        result = await dispatcher.call(request(it.base))

    assert result.outcome is Outcome.SUCCESS
    assert [seen.connection for seen in it.received] == [1, 2]


async def test_a_call_is_repeated_once_when_a_kept_connection_turns_out_to_be_closed(
    dispatcher: HttpDispatcher,
) -> None:
    async def play(seen: Received, writer: asyncio.StreamWriter) -> None:
        if seen.connection == 1 and len(it.received) == 2:
            writer.close()
        else:
            writer.write(answer(200))

    async with participant(play) as it:
        first = await dispatcher.call(request(it.base))
        second = await dispatcher.call(request(it.base, gid="g2"))

    assert (first.outcome, second.outcome) == (Outcome.SUCCESS, Outcome.SUCCESS)
    assert [(seen.connection, "gid=g2" in seen.target) for seen in it.received] == [(1, False), (1, True), (2, True)]


async def test_a_call_is_not_repeated_when_the_new_connection_is_closed_too(dispatcher: HttpDispatcher) -> None:
    async def play(_: Received, writer: asyncio.StreamWriter) -> None:
        if len(it.received) == 1:
            writer.write(answer(200))
        else:
            writer.close()

    async with participant(play) as it:
        await dispatcher.call(request(it.base))
        result = await dispatcher.call(request(it.base))

    assert result.outcome is Outcome.UNKNOWN
    assert [seen.connection for seen in it.received] == [1, 1, 2]


async def test_a_call_is_not_repeated_when_a_part_of_the_answer_came(dispatcher: HttpDispatcher) -> None:
    async def play(_: Received, writer: asyncio.StreamWriter) -> None:
        if len(it.received) == 1:
            writer.write(answer(200))
        else:
            writer.write(b"HTTP/1.1 2")
            await writer.drain()
            writer.close()

    async with participant(play) as it:
        await dispatcher.call(request(it.base))
        result = await dispatcher.call(request(it.base))

    assert "before its answer was whole" in result.detail
    assert len(it.received) == 2


async def test_a_connection_that_was_idle_for_too_long_is_not_used() -> None:
    clock = Clock()
    dispatcher = HttpDispatcher(DispatchSettings(keep_alive_idle_s=4.0), clock=clock)
    async with participant(plays(answer())) as it:
        for wait_s in (0.0, 3.9, 4.0):
            clock.now += wait_s
            await dispatcher.call(request(it.base))
        await dispatcher.close()

    assert [seen.connection for seen in it.received] == [1, 1, 2]


async def test_idle_connections_are_closed_by_themselves() -> None:
    dispatcher = HttpDispatcher(DispatchSettings(keep_alive_idle_s=0.01, endpoint_idle_s=0.01))
    async with participant(plays(answer())) as it:
        await dispatcher.call(request(it.base))
        await it.wait_until(lambda: it.open_connections == 0)
        again = await dispatcher.call(request(it.base))
        await dispatcher.close()

    assert again.outcome is Outcome.SUCCESS


# ---- redirects


@pytest.mark.parametrize(
    ("status", "method", "body"),
    [(301, "GET", b""), (302, "GET", b""), (303, "GET", b""), (307, "POST", b'{"id":3}'), (308, "POST", b'{"id":3}')],
)
async def test_a_redirect_is_followed(dispatcher: HttpDispatcher, status: int, method: str, body: bytes) -> None:
    async def play(seen: Received, writer: asyncio.StreamWriter) -> None:
        there = seen.target == "/there?x=1"
        writer.write(answer(409, b"no") if there else answer(status, b"moved", "Location: /there?x=1"))

    async with participant(play) as it:
        result = await dispatcher.call(request(it.base + "/here"))

    assert (result.outcome, result.detail) == (Outcome.FAILURE, "no")
    assert (it.received[1].method, it.received[1].body) == (method, body)
    assert it.received[1].header("Content-Length") == (str(len(body)) if body else None)


async def test_credentials_stay_with_their_origin(dispatcher: HttpDispatcher) -> None:
    headers = {"Authorization": "Bearer x", "Cookie": "a=b", "X-Tenant": "t"}

    async def play(seen: Received, writer: asyncio.StreamWriter) -> None:
        to = {"/1": "/2", "/2": elsewhere.base + "/3"}[seen.target.partition("?")[0]]
        writer.write(answer(307, b"", f"Location: {to}"))

    async with participant(plays(answer())) as elsewhere, participant(play) as it:
        result = await dispatcher.call(request(it.base + "/1", headers=headers))

    assert result.outcome is Outcome.SUCCESS
    assert [seen.header("Authorization") for seen in it.received] == ["Bearer x", "Bearer x"]
    [seen] = elsewhere.received
    assert (seen.header("Authorization"), seen.header("Cookie"), seen.header("X-Tenant")) == (None, None, "t")
    assert seen.header("Host") == f"127.0.0.1:{elsewhere.port}"


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/again", "more than 5 redirects"),
        ("ftp://a/", "its scheme is 'ftp'"),
        ("http://a:b/", "its port is not a number"),
    ],
)
async def test_a_redirect_that_leads_nowhere_is_unknown(dispatcher: HttpDispatcher, location: str, words: str) -> None:
    async with participant(plays(answer(307, b"", f"Location: {location}"))) as it:
        result = await dispatcher.call(request(it.base))

    assert (result.outcome, result.called) == (Outcome.UNKNOWN, True)
    assert words in result.detail


async def test_a_redirect_without_a_location_is_an_answer(dispatcher: HttpDispatcher) -> None:
    async with participant(plays(answer(302, b"where to?"))) as it:
        result = await dispatcher.call(request(it.base))

    assert (result.code, result.detail) == (302, "HTTP 302: where to?")


# ---- the end


async def test_cancelling_a_call_closes_its_connection(dispatcher: HttpDispatcher) -> None:
    async with participant(never) as it:
        call = asyncio.create_task(dispatcher.call(request(it.base)))
        await it.wait_until(lambda: len(it.received) == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await it.wait_until(lambda: it.open_connections == 0)


async def test_closing_ends_calls_under_way_as_unknown(dispatcher: HttpDispatcher) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for other in (first, second):
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        async with participant(never) as it:
            calls = [asyncio.create_task(dispatcher.call(request(it.base))) for _ in range(10)]
            connecting = asyncio.create_task(
                dispatcher.call(request(f"http://127.0.0.1:{full.getsockname()[1]}/", timeout_s=60))
            )
            await it.wait_until(lambda: len(it.received) == 4)
            await dispatcher.close()
            results = await asyncio.gather(*calls, connecting)

    assert {result.outcome for result in results} == {Outcome.UNKNOWN}
    assert all("stopping" in result.detail for result in results), results
    assert "stopping" in (await dispatcher.call(request(it.base))).detail
    assert asyncio.all_tasks() == {asyncio.current_task()}
