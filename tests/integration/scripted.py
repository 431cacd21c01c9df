"""A participant that answers as it is told: a real HTTP server with one-shot switches."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from localservers.processes import free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One call as it arrived."""

    path: str
    method: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def gid(self) -> str | None:
        if "method" not in self.query:
            return self.query.get("gid")
        gid: str = json.loads(self.body)["params"]["gid"]
        return gid


Answer = tuple[int, str]

SUCCESS: Answer = (200, '{"dtm_result":"SUCCESS"}')
ONGOING: Answer = (425, '{"dtm_result":"ONGOING"}')
ERROR: Answer = (500, "out of order")


def failure(reason: str) -> Answer:
    return (409, reason)


class Participant:
    """Answers SUCCESS, unless the next answers of a path have been set with `script`."""

    usual = SUCCESS

    def __init__(self, port: int | None = None) -> None:
        self.received: list[Received] = []
        self._scripts: dict[str, deque[Answer]] = defaultdict(deque)
        self._gates: dict[str, asyncio.Event] = {}
        self._arrived = asyncio.Condition()
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        methods = ["GET", "POST"]
        app = Starlette(routes=[Route("/{path:path}", self._answer, methods=methods)])
        config = uvicorn.Config(app, port=self.port, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None

    def script(self, path: str, *answers: Answer) -> None:
        """Set the next answers of a path."""
        self._scripts[path].extend(answers)

    def hold(self, path: str) -> asyncio.Event:
        """Let calls of a path wait until the event is set."""
        return self._gates.setdefault(path, asyncio.Event())

    def release(self, path: str) -> None:
        """Let calls of a path go on, those to come too."""
        self._gates.pop(path).set()

    def calls(self, gid: str) -> list[str]:
        """The paths called for a transaction, in order."""
        return [call.path for call in self.received if call.gid == gid]

    async def called(self, path: str, gid: str, *, times: int = 1) -> None:
        """Wait until a path has been called for a transaction."""
        async with asyncio.timeout(10), self._arrived:
            await self._arrived.wait_for(lambda: self.calls(gid).count(path) >= times)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._server.serve())
        async with asyncio.timeout(10):
            while not self._server.started:
                await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for gate in self._gates.values():
            gate.set()
        self._server.should_exit = True
        assert self._task is not None
        await self._task

    async def _answer(self, request: Request) -> Response:
        path = request.path_params["path"]
        received = Received(
            path=path,
            method=request.method,
            query=dict(request.query_params),
            headers=dict(request.headers),
            body=await request.body(),
        )
        async with self._arrived:
            self.received.append(received)
            self._arrived.notify_all()
        if path in self._gates:
            await self._gates[path].wait()
        status, body = self._scripts[path].popleft() if self._scripts[path] else self.usual
        return Response(body, status_code=status, media_type="application/json")
