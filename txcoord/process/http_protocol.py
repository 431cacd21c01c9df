"""HTTP/1.1 as it is served: uvicorn's protocol on httptools, with bounds and repairs of ours.

What uvicorn leaves open: how large a request's head may be and how long it may take; an answer in one packet; and
clients that wish for another protocol with every first request.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
HEAD_TIMEOUT_S = 30.0


class _JoinedWrites:
    """A transport that sends the head of an answer together with its body.

    uvicorn writes them one after the other, and uvloop sends each write at once: two
    system calls and two packets per answer, about a tenth of a short request's time.
    """

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        if self._head:
            data, self._head = self._head, b""
            self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _WithoutHead:
    """What a parser reports to that is given a head which the protocol has dealt with; the rest goes on to it."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol
        self.is_head_done = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def on_message_begin(self) -> None:
        if self.is_head_done:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self.is_head_done:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_head_done:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.is_head_done:
            self._protocol.on_headers_complete()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol; an answer is one write, a head has bounds, and wishes for another protocol are not heard."""

    _head_bytes = 0
    _is_in_head = False
    _late: asyncio.TimerHandle | None = None
    """Runs while a head is awaited that has begun, or the first one of a connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.transport = cast(asyncio.Transport, _JoinedWrites(self.transport))
        self._late = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError:
            self._refuse()
            return
        if self._is_in_head and self._late is None:
            self._late = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _refuse(self) -> None:
        message = "Invalid HTTP request received."
        self.logger.warning(message)
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            self.send_400_response(message)
            return
        # The client would take it for the answer to the request before, which may have been accepted.
        self.cycle.keep_alive = False
        self.flow.pause_reading()

    def _feed(self, data: bytes) -> bytes:
        """Parse, and return what has to be parsed anew.

        A parser is of no more use once it has met the wish for another protocol, and it leaves the body out; but some
        clients send that wish (h2c) with every first request. So another one is told of the body, and reads on.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            framing = [field for field in self.headers if field[0] in (b"content-length", b"transfer-encoding")]
            rest = _WithoutHead(self)
            self.parser = httptools.HttpRequestParser(rest)
            self.cycle.more_body = True
            self.parser.feed_data(
                b"".join([b"POST / HTTP/1.1\r\n", *(b"%b: %b\r\n" % field for field in framing), b"\r\n"])
            )
            rest.is_head_done = True
            return data[upgrade.args[0] :]
        return b""

    def _head_came(self) -> None:
        self._is_in_head = False
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def on_response_complete(self) -> None:
        cast(_JoinedWrites, self.transport).flush()
        super().on_response_complete()

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._is_in_head = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            # The parser turns it into the answer 400 and the end of the connection.
            raise ValueError("the request's head is too large")
