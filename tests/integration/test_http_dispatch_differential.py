"""From the same bytes, httpx and our client read the same answer, or both refuse it.

The bytes are fed without sockets, so that each split of the stream is played exactly.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import zlib
from dataclasses import dataclass

import httpcore
import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from txcoord.dispatch.connection import Answer, Connection
from txcoord.dispatch.content import ContentError, decode_content
from txcoord.dispatch.deadlines import End
from txcoord.dispatch.settings import DispatchSettings

Read = tuple[int, bytes] | None
"""Status and body; None: no answer."""


def read_by_httpx(pieces: list[bytes]) -> Read:
    transport = httpx.HTTPTransport(verify=False)
    backend = httpcore.MockBackend(list(pieces))
    transport._pool = httpcore.ConnectionPool(network_backend=backend)
    with httpx.Client(transport=transport) as client:
        try:
            response = client.post("http://a/", content=b"x")
        except httpx.HTTPError:
            return None
        return response.status_code, response.content


class _Wire(asyncio.Transport):
    """Takes what is sent; notes that it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: object) -> None:
        assert not self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.closed = True

    close = abort

    def is_closing(self) -> bool:
        return self.closed


def read_by_us(pieces: list[bytes]) -> Read:
    loop = asyncio.new_event_loop()
    try:
        waiter: asyncio.Future[End] = loop.create_future()
        connection = Connection(DispatchSettings(), lambda _: None)
        connection.connection_made(_Wire())
        connection.send(b"POST / HTTP/1.1\r\n", waiter)
        for piece in pieces:
            if not waiter.done():
                connection.data_received(piece)
        if not waiter.done():
            connection.connection_lost(None)
        assert waiter.done(), "the end of the connection ends the wait"
        return _read(connection.answer()) if waiter.result() is End.DONE else None
    finally:
        loop.close()


def _read(answer: Answer) -> Read:
    try:
        return answer.status, decode_content(answer.body, answer.encoding, limit=2**20)
    except ContentError:
        return None


@dataclass(frozen=True)
class Script:
    """What a participant sends."""

    data: bytes
    cuts: tuple[int, ...] = ()

    @property
    def pieces(self) -> list[bytes]:
        bounds = [0, *sorted({cut % (len(self.data) + 1) for cut in self.cuts}), len(self.data)]
        pieces = (self.data[start:end] for start, end in itertools.pairwise(bounds))
        return [piece for piece in pieces if piece]


TOKENS = st.text("abcXYZ09-_", min_size=1, max_size=12).map(lambda name: "x-" + name)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20) | st.sampled_from(
    ["a b", "a\tb", ""]
)
HEADERS = st.lists(st.builds("{}:{}{}".format, TOKENS, st.sampled_from(["", " ", "\t", "  "]), VALUES), max_size=4)
STATUSES = st.sampled_from([200, 200, 200, 201, 204, 304, 400, 409, 425, 500, 503]) | st.integers(200, 599).filter(
    lambda status: not 300 <= status < 400
)
BODIES = st.binary(max_size=120) | st.sampled_from(
    [b"FAILURE", b'{"dtm_result":"SUCCESS"}', b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n"]
)
CUTS = st.lists(st.integers(0, 400), max_size=12).map(tuple)


@st.composite
def whole_answers(draw: st.DrawFn) -> bytes:
    """Answers as servers may send them."""
    eol = draw(st.sampled_from(["\r\n"] * 9 + ["\n"]))
    interim = "".join(
        eol.join([f"HTTP/1.1 {status} Wait", *headers, "", ""])
        for status, headers in draw(st.lists(st.tuples(st.sampled_from([100, 102, 103]), HEADERS), max_size=2))
    )
    status, body = draw(STATUSES), draw(BODIES)
    headers = draw(HEADERS)
    version = draw(st.sampled_from(["1.1"] * 4 + ["1.0"]))
    coding = draw(st.sampled_from([None] * 6 + ["gzip", "deflate", "identity", "GZIP"]))
    if coding is not None:
        headers.append(f"Content-Encoding: {coding}")
        body = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[coding.lower()](body)
    framing = draw(st.sampled_from(["length", "length", "chunked", "close"]))
    if status in (204, 304):
        body = b""
    name = draw(st.sampled_from([str.title, str.lower, str.upper]))
    if framing == "length":
        headers.append(f"{name('content-length')}: {len(body)}")
        sent = body
    elif framing == "chunked" and version == "1.1" and status not in (204, 304):
        headers.append(f"{name('transfer-encoding')}: {draw(st.sampled_from(['chunked', 'Chunked']))}")
        sent = draw(_chunked(body))
    else:
        sent = body
    if draw(st.booleans()):
        headers.append(f"Connection: {draw(st.sampled_from(['close', 'keep-alive', 'Keep-Alive', 'x']))}")
    headers = draw(st.permutations(headers))
    reason = draw(st.sampled_from([" OK", " Not Found", " ", ""]))
    return (interim + eol.join([f"HTTP/{version} {status}{reason}", *headers, "", ""])).encode() + sent


@st.composite
def _chunked(draw: st.DrawFn, body: bytes) -> bytes:
    extension = draw(st.sampled_from([b"", b"", b";a=b", b" ", b';a="b c"']))
    result, rest = b"", body
    while rest:
        size = draw(st.integers(1, len(rest)))
        digits = draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % size
        result += digits + extension + b"\r\n" + rest[:size] + b"\r\n"
        rest = rest[size:]
    trailers = draw(st.sampled_from([b"", b"", b"X-T: a\r\n", b"Location: /x\r\nContent-Encoding: gzip\r\n"]))
    return result + b"0\r\n" + trailers + b"\r\n"


@settings(max_examples=400, deadline=None)
@given(whole_answers(), CUTS)
def test_a_whole_answer_is_read_alike(data: bytes, cuts: tuple[int, ...]) -> None:
    script = Script(data, cuts)

    ours = read_by_us(script.pieces)

    assert ours is not None
    assert ours == read_by_httpx(script.pieces)


@settings(max_examples=300, deadline=None)
@given(whole_answers(), st.integers(0, 400), CUTS)
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", 400, ())
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n", 400, ())
@example(b"HTTP/1.1 200 OK\r\n\r\nab", 400, ())
def test_an_answer_that_ends_early_is_read_alike(data: bytes, length: int, cuts: tuple[int, ...]) -> None:
    script = Script(data[:length], cuts)

    ours, theirs = read_by_us(script.pieces), read_by_httpx(script.pieces)

    # httpx lets compressed data end early, and gives what it has.
    if ours is None and b"content-encoding" in data.lower():
        return
    assert ours == theirs


@settings(max_examples=400, deadline=None)
@given(whole_answers(), st.integers(0, 400), st.binary(min_size=1, max_size=3), st.booleans(), CUTS)
def test_a_damaged_answer_is_never_read_differently(
    data: bytes, at: int, damage: bytes, insert: bool, cuts: tuple[int, ...]
) -> None:
    at %= len(data)
    script = Script(data[:at] + damage + data[at + (0 if insert else len(damage)) :], cuts)

    ours, theirs = read_by_us(script.pieces), read_by_httpx(script.pieces)

    # Either may be the stricter one; two different answers would be the danger.
    if ours is not None and theirs is not None:
        assert ours == theirs


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda rest: b"HTTP/1.1 " + rest), CUTS)
def test_garbage_is_no_answer_to_either(data: bytes, cuts: tuple[int, ...]) -> None:
    script = Script(data, cuts)

    ours = read_by_us(script.pieces)

    if ours is not None:
        assert ours == read_by_httpx(script.pieces)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\r\n\r\n", id="line breaks"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nab", id="length in hex"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab", id="other transfer encoding"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", id="two transfer encodings"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="no chunk size"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX Y: a\r\n\r\n", id="blank in a name"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n", id="NUL in a value"),
        pytest.param(b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="switched protocols"),
        pytest.param(b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", id="two digits"),
        pytest.param(b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", id="status below 100"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="only an interim answer"),
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    for script in (Script(data), Script(data, tuple(range(len(data))))):
        assert read_by_us(script.pieces) is None
        assert read_by_httpx(script.pieces) is None
