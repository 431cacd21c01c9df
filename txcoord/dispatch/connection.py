"""One HTTP/1.1 connection: sends a request, understands the framing of the answer.

The parser is llhttp (httptools); it knows chunks, lengths, interim answers and what makes
a message malformed. What is left for this module: the end of a body that only the end of
the connection marks, the bounds, and the rule when a connection may be used again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from msgspec import Struct

from txcoord.dispatch.deadlines import End
from txcoord.dispatch.settings import DispatchSettings


class Answer(Struct, frozen=True, gc=False):
    """One HTTP answer."""

    status: int
    body: bytes
    location: str = ""
    encoding: str = ""
    flaw: str = ""
    """Set when the body is not whole; the status is good all the same."""


class Connection(asyncio.Protocol):
    """One connection, for one request at a time.

    `on_lost` is called once, when it is gone. After `send`, its waiter gets `End.DONE` or
    `End.LOST`, unless the connection is aborted before.
    """

    __slots__ = (
        "_body",
        "_complete",
        "_encoding",
        "_framed",
        "_headers_done",
        "_location",
        "_max_body",
        "_max_header",
        "_on_lost",
        "_parser",
        "_quiet_bytes",
        "_status",
        "_too_large",
        "_transport",
        "_waiter",
        "flaw",
        "idle_since",
        "is_lost",
        "may_be_kept",
        "received",
    )

    def __init__(self, settings: DispatchSettings, on_lost: Callable[[Connection], None]) -> None:
        self._max_body = settings.max_body_bytes
        self._max_header = settings.max_header_bytes
        self._on_lost = on_lost
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        # What h11 takes too: bare line feeds, and blanks behind a chunk's size.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[End] | None = None
        self.idle_since = 0.0
        self.is_lost = False
        self.flaw = ""
        self._expect_answer()

    def _expect_answer(self) -> None:
        self.received = False
        """Whether any byte of the answer has come."""
        self.may_be_kept = False
        """Whether another request may follow the answer."""
        self._status = 0
        self._body: bytes | bytearray = b""
        self._location = b""
        self._encoding = b""
        self._framed = False
        self._headers_done = False
        self._complete = False
        self._too_large = False
        self._quiet_bytes = 0

    def send(self, data: bytes, waiter: asyncio.Future[End]) -> None:
        """Send a whole request. The waiter is told how it ended."""
        assert self._waiter is None, "one request at a time"
        self._expect_answer()
        self._waiter = waiter
        assert self._transport is not None
        self._transport.write(data)

    def answer(self) -> Answer:
        """The answer, after `End.DONE`."""
        flaw = f"the answer is longer than {self._max_body} bytes" if self._too_large else ""
        return Answer(
            self._status,
            bytes(self._body),
            _text(self._location) if self._location else "",
            self._encoding.decode("latin-1") if self._encoding else "",
            flaw,
        )

    def is_usable(self) -> bool:
        """Whether a request can be sent now; false once the other side has closed."""
        return not self.is_lost and self._transport is not None and not self._transport.is_closing()

    def is_drained(self) -> bool:
        """Whether the request has left this process whole. An answer may come before that."""
        return self._transport is not None and not self._transport.get_write_buffer_size()

    def abort(self, end: End | None = None) -> None:
        """Close at once. A pending waiter is told `end`, or left alone."""
        if end is not None:
            self._end(end)
        self._waiter = None
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close an idle connection, in the way its transport likes (TLS says goodbye)."""
        if self._transport is not None:
            self._transport.close()

    def _end(self, end: End) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(end)

    # ---- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not a subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if self._waiter is None or parser is None:
            # Whatever it is, it must not be taken for the next answer.
            self.flaw = "it sent bytes that nobody asked for"
            self.abort()
            return
        self.received = True
        try:
            if len(data) <= self._max_header:
                parser.feed_data(data)
                if not self._complete:
                    self._check_bounds(len(data))
            else:
                self._feed_slices(parser, data)
        except HttpParserUpgrade:
            self.flaw = "it switched protocols, which nobody asked for"
        except HttpParserError as error:
            # Behind a whole answer it does not concern this request.
            self.may_be_kept = False
            if not self._complete:
                self.flaw = f"its answer is not HTTP/1.1 ({error})"
        if self.flaw:
            self._end(End.LOST)
        elif self._complete:
            self._end(End.DONE)

    def _feed_slices(self, parser: HttpResponseParser, data: bytes) -> None:
        # Small enough that the bounds are checked often; a parser keeps an unfinished header line.
        view = memoryview(data)
        for start in range(0, len(data), self._max_header):
            piece = view[start : start + self._max_header]
            parser.feed_data(piece)
            if not self._complete:
                self._check_bounds(len(piece))
            if self.flaw or self._too_large:
                return

    def _check_bounds(self, fed: int) -> None:
        if self._too_large:
            self._complete, self.may_be_kept = True, False
            return
        self._quiet_bytes += fed
        if self._quiet_bytes > self._max_header:
            self.flaw = f"its answer has more than {self._max_header} bytes of headers"

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._parser = None
        if self._waiter is not None:
            if exc is None and self._headers_done and not self._framed:
                self.may_be_kept = False
                self._end(End.DONE)
            else:
                self.flaw = self.flaw or self._words_for_loss(exc)
                self._end(End.LOST)
        self._on_lost(self)

    def _words_for_loss(self, error: Exception | None) -> str:
        if isinstance(error, ssl.SSLError):
            return f"TLS failed ({error.reason})"
        when = "before its answer was whole" if self.received else "without an answer"
        return f"it closed the connection {when}"

    # ---- called by the parser

    def on_message_begin(self) -> None:
        if self._complete:
            self.may_be_kept = False

    def on_header(self, name: bytes, value: bytes) -> None:
        # Most headers do not concern us: their length tells, without lowering each.
        if len(name) not in _LENGTHS_OF_HEADERS or self._headers_done:
            return
        match name.lower():
            case b"content-length":
                self._framed = True
            case b"transfer-encoding":
                if self._framed or value.strip().lower() != b"chunked":
                    self.flaw = "its answer has a transfer encoding other than chunked"
                self._framed = True
            case b"content-encoding":
                self._encoding = self._encoding + b"," + value if self._encoding else value
            case b"location":
                self._location = value

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        assert self._parser is not None
        self._headers_done = True
        self._status = self._parser.get_status_code()
        if self._status == 204 or self._status == 304:
            self._framed = True

    def on_body(self, data: bytes) -> None:
        if self._complete or self._too_large:
            return
        self._quiet_bytes = 0
        body = self._body
        if not body:
            self._body = data
        elif isinstance(body, bytearray):
            body += data
        else:
            self._body = bytearray(body) + data
        if len(self._body) > self._max_body:
            self._too_large = True

    def on_message_complete(self) -> None:
        if self._complete:
            return
        status = self._status
        if status >= 200:
            assert self._parser is not None
            self._complete = True
            self.may_be_kept = self._parser.should_keep_alive() and not self._too_large
        elif 100 <= status != 101:
            # An interim answer; the real one follows.
            self._status, self._headers_done, self._framed = 0, False, False
            self._location = self._encoding = b""
        else:
            self.flaw = f"its answer has the status {status}, which nobody asked for"


def _text(value: bytes) -> str:
    try:
        return value.strip().decode()
    except UnicodeDecodeError:
        return value.strip().decode("latin-1")


_LENGTHS_OF_HEADERS = frozenset(map(len, (b"location", b"content-length", b"content-encoding", b"transfer-encoding")))
