"""A participant for tests of the HTTP dispatcher: reads requests, plays raw bytes as answers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from txcoord.dispatch.base import BranchRequest
from txcoord.model import Op, Pattern


@dataclass
class Received:
    """One request as it came."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int
    """Which connection it came on, counted from 1."""
    reader: asyncio.StreamReader

    async def left(self) -> None:
        """Wait until the other side closes the connection."""
        await self.reader.read()

    def header(self, name: str) -> str | None:
        """The only header of this name."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, values
        return values[0] if values else None


Play = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Participant:
    """A server that plays `play` for each request; a play that closes its writer ends the connection."""

    play: Play
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    most_open: int = 0
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    """Notified of each request, and of each connection that ends."""
    port: int = 0
    scheme: str = "http"

    @property
    def base(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self.arrived:
            await self.arrived.wait_for(condition)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self.open_connections += 1
        self.most_open = max(self.most_open, self.open_connections)
        try:
            while not writer.is_closing():
                request = await _read_request(reader, number)
                self.received.append(request)
                await self._notify()
                await self.play(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            self.open_connections -= 1
            writer.transport.abort()
            await self._notify()

    async def _notify(self) -> None:
        async with self.arrived:
            self.arrived.notify_all()


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    method, target, version = first.split(" ")
    assert version == "HTTP/1.1"
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    length = sum(int(value) for name, value in headers if name.lower() == "content-length")
    return Received(method, target, headers, await reader.readexactly(length), connection, reader)


@asynccontextmanager
async def participant(
    play: Play, *, tls: ssl.SSLContext | None = None, sock: socket.socket | None = None
) -> AsyncIterator[Participant]:
    """Run a participant on a free port."""
    it = Participant(play, scheme="https" if tls else "http")
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await it._serve(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            tasks.discard(task)

    where: dict[str, Any] = {"sock": sock} if sock else {"host": "127.0.0.1", "port": 0}
    server = await asyncio.start_server(serve, ssl=tls, backlog=2048, **where)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def plays(*pieces: bytes, close: bool = False) -> Play:
    """Always the same answer, in pieces that are sent apart."""

    async def play(_: Received, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return play


def answer(status: int = 200, body: bytes = b"", *headers: str) -> bytes:
    """A whole answer with a length."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


async def never(seen: Received, writer: asyncio.StreamWriter) -> None:
    """Answer nothing until the other side goes away."""
    await seen.left()
    writer.close()


def request(url: str, **changes: Any) -> BranchRequest:
    """A call of a saga's action."""
    fields: dict[str, Any] = {
        "gid": "g1",
        "pattern": Pattern.SAGA,
        "branch_id": "01",
        "op": Op.ACTION,
        "payload": b'{"id":3}',
        "timeout_s": 20.0,
    }
    return BranchRequest(url=url, **(fields | changes))


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
