"""A coordinator that answers by script, on a real socket, and one handle for both clients."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from txcoord_sdk import AsyncCoordinator, Coordinator

SUCCESS = {"dtm_result": "SUCCESS"}


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: Any = field(default_factory=lambda: SUCCESS)
    headers: tuple[tuple[str, str], ...] = ()

    def to_bytes(self) -> bytes:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        lines = [f"HTTP/1.1 {self.status} X", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode() + body


class Drop:
    """Read the request, then close the connection without a word."""


class Silence:
    """Read the request, and say nothing for as long as the client waits."""


Reply = Answer | Drop | Silence


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""


class ScriptedCoordinator:
    """Answers each path with what was scripted for it, in order, and keeps what was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._script: dict[str, deque[Reply]] = defaultdict(deque)

    def answers(self, path: str, *replies: Reply) -> None:
        self._script[path].extend(replies)

    @property
    def paths(self) -> list[str]:
        return [request.path.removeprefix("/api/dtmsvr") for request in self.requests]

    @property
    def unused(self) -> dict[str, deque[Reply]]:
        return {path: replies for path, replies in self._script.items() if replies}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head.decode(), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, _Dropped):
            pass
        finally:
            writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request_line, *header_lines = head.split("\r\n")
        pairs = (line.split(": ", 1) for line in header_lines if line)
        headers = {name.lower(): value for name, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = request_line.split(" ")
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.requests.append(Request(method, parts.path, query, json.loads(body) if body else None, headers))
        replies = self._script[parts.path.removeprefix("/api/dtmsvr")]
        # What no test scripted is refused, so that it shows.
        reply = replies.popleft() if replies else Answer(418, {"message": f"nothing is scripted for {target}"})
        match reply:
            case Answer():
                writer.write(reply.to_bytes())
                await writer.drain()
            case Drop():
                raise _Dropped
            case Silence():
                await reader.read()
                raise _Dropped


class _Dropped(Exception):
    pass


@contextmanager
def scripted_coordinator() -> Iterator[tuple[ScriptedCoordinator, str]]:
    """Run one in a thread of its own; give it and its URL."""
    server = ScriptedCoordinator()
    started = threading.Event()
    state: dict[str, Any] = {}

    async def main() -> None:
        state["loop"], state["stop"] = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
            state["port"] = listening.sockets[0].getsockname()[1]
            started.set()
            await state["stop"].wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    started.wait()
    try:
        yield server, f"http://127.0.0.1:{state['port']}"
    finally:
        state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join()


@contextmanager
def unused_url() -> Iterator[str]:
    """Give the URL of a port that nobody listens on, and nobody else can take meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


class Client:
    """Either client behind one blocking face: `client.do("submit", saga)`."""

    def __init__(self, kind: type[Coordinator] | type[AsyncCoordinator], url: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self.coordinator = kind(url, **options)

    def run(self, awaited: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(awaited)

    def do(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.coordinator, operation)(*args, **kwargs)
        if isinstance(result, AsyncIterator):
            return self._runner.run(_collected(result))
        if inspect.iscoroutine(result):
            return self._runner.run(result)
        return list(result) if isinstance(result, Iterator) else result

    def close(self) -> None:
        self.do("close")
        self._runner.close()


async def _collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]
