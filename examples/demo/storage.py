"""The storage service with a gate, so that the demo can strike at the worst moment.

Told to, it does what it is asked and holds its answer back: the stock has been taken, and
the coordinator does not know. The example service itself is not changed.

    python -m examples.demo.storage --port 8082 --database sqlite:///storage.db
"""

from __future__ import annotations

import asyncio
from collections import Counter
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from examples.service import serve
from examples.storage import command_line, make_storage_service


class Gate:
    """Counts the calls, and holds back the answer to the next one of a path when told to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._calls: Counter[tuple[str, str]] = Counter()
        self._armed_for = ""
        self._holding = asyncio.Event()
        self._open = asyncio.Event()

    def hold_next(self, path: str) -> None:
        self._armed_for = path
        self._holding.clear()
        self._open.clear()

    async def wait_until_holding(self) -> None:
        await self._holding.wait()

    def let_go(self) -> None:
        self._open.set()

    def calls(self, gid: str, path: str) -> int:
        return self._calls[gid, path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        self._calls[_gid_of(scope), path] += 1
        holds = path == self._armed_for
        if holds:
            self._armed_for = ""

        async def send_when_open(message: Message) -> None:
            if holds and message["type"] == "http.response.start":
                self._holding.set()
                await self._open.wait()
            await send(message)

        await self._app(scope, receive, send_when_open)


def _gid_of(scope: Scope) -> str:
    query: str = scope["query_string"].decode()
    return parse_qs(query).get("gid", [""])[0]


def make_gated_storage_service(database: str) -> Gate:
    app = make_storage_service(database)
    gate = Gate(app)

    @app.post("/demo/hold")
    async def hold(path: str) -> None:
        gate.hold_next(path)

    @app.get("/demo/holding")
    async def holding() -> None:
        await gate.wait_until_holding()

    @app.post("/demo/let-go")
    async def let_go() -> None:
        gate.let_go()

    @app.get("/demo/calls/{gid}")
    async def calls(gid: str, path: str) -> int:
        return gate.calls(gid, path)

    return gate


def main() -> None:
    options = command_line().parse_args()
    serve(make_gated_storage_service(options.database), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
