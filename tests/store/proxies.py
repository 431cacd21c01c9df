"""A way to the database that can be cut at the worst moment: when the server has answered and nobody has heard it.

It can also be slow, so that the server gets what the client has long given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sqlalchemy import make_url


class Proxy:
    """Passes bytes between clients and a database server."""

    def __init__(self, *, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.answers_to_lose = 0
        """So many times the next answer is not passed on; the client's connection is cut instead."""
        self.lost = 0
        self.requests_to_hold = 0
        """So many times the next request is held back until `let_go` is set; it is the last of its connection."""
        self.requests_to_pass = 0
        """So many pass before one is held back."""
        self.counts: Callable[[bytes, asyncio.StreamWriter], bool] = lambda _data, _writer: True
        """Which of them that is about, from a request and whose connection it is; the others just pass."""
        self.holds = asyncio.Event()
        """Set when a request is held back."""
        self.let_go = asyncio.Event()
        self.ran_late = asyncio.Event()
        """Set when the server is through with a request that was held back."""
        self._held: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def cut_all(self) -> None:
        """Cut all connections, as a firewall does that forgets them."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, server_writer}
        asked = asyncio.create_task(self._pass_on(reader, server_writer))
        try:
            await self._pass_answers_on(server_reader, writer, server_writer)
            if server_writer in self._held:
                self.ran_late.set()
        finally:
            asked.cancel()
            writer.transport.abort()
            server_writer.transport.abort()
            self._writers -= {writer, server_writer}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if self._is_to_be_held(data, writer):
                    self._held.add(writer)
                    self.holds.set()
                    await self.let_go.wait()
                    # The end of the connection comes behind it: the server does what was asked, and then hangs up.
                    writer.write(data)
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.transport.abort()

    def _is_to_be_held(self, data: bytes, writer: asyncio.StreamWriter) -> bool:
        if not self.requests_to_hold or not self.counts(data, writer):
            return False
        if self.requests_to_pass:
            self.requests_to_pass -= 1
            return False
        self.requests_to_hold -= 1
        return True

    async def _pass_answers_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server_writer: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if server_writer in self._held:
                    continue
                if self.answers_to_lose:
                    self.answers_to_lose -= 1
                    self.lost += 1
                    return
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy to the server of `url`, and the same URL through it."""
    parsed = make_url(url)
    assert parsed.host is not None
    assert parsed.port is not None
    proxy = Proxy(host=parsed.host, port=parsed.port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield proxy, parsed.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    server.close()
    proxy.cut_all()
