"""Participants over gRPC for tests: real grpc.aio servers that know no messages, only bytes."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

import grpc
import grpc.aio

SERVICE = "busi.Busi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One call as it arrived."""

    method: str
    """Its name, without the service."""
    path: str
    """The full method."""
    metadata: dict[str, str | bytes]
    message: bytes
    time_left_s: float | None
    peer: str
    """The other end of the connection."""

    @property
    def gid(self) -> str:
        return str(self.metadata["dtm-gid"])

    @property
    def op(self) -> str:
        return str(self.metadata["dtm-op"])


Answer = tuple[grpc.StatusCode, str]

SUCCESS: Answer = (grpc.StatusCode.OK, "")
ONGOING: Answer = (grpc.StatusCode.FAILED_PRECONDITION, "not yet")
OLD_ONGOING: Answer = (grpc.StatusCode.ABORTED, "ONGOING")
ERROR: Answer = (grpc.StatusCode.INTERNAL, "out of order FAILURE")

Work = Callable[[Received], Awaitable[Answer]]


def failure(reason: str) -> Answer:
    return (grpc.StatusCode.ABORTED, reason)


class GrpcParticipant(grpc.GenericRpcHandler):
    """Answers OK, unless the next answers of a method have been set with `script`."""

    def __init__(self, *, credentials: grpc.ServerCredentials | None = None, port: int = 0) -> None:
        self.received: list[Received] = []
        self.reply = b"\xffno protobuf"
        self._scripts: dict[str, deque[Answer]] = defaultdict(deque)
        self._gates: dict[str, asyncio.Event] = {}
        self._arrived = asyncio.Condition()
        self._credentials = credentials
        self.work: Work | None = None
        """Decides, in place of OK, what is answered to a call without a script."""
        self.port = port
        self._server: Any = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, method: str) -> str:
        return f"{self.address}/{SERVICE}/{method}"

    def script(self, method: str, *answers: Answer) -> None:
        """Set the next answers of a method."""
        self._scripts[method].extend(answers)

    def hold(self, method: str) -> asyncio.Event:
        """Let calls of a method wait until the event is set."""
        return self._gates.setdefault(method, asyncio.Event())

    def calls(self, gid: str) -> list[str]:
        """The methods called for a transaction, in order."""
        return [call.method for call in self.received if call.gid == gid]

    def ops(self, gid: str) -> list[str]:
        """The same with their operations, as "Out confirm"."""
        return [f"{call.method} {call.op}" for call in self.received if call.gid == gid]

    async def called(self, method: str, gid: str, *, times: int = 1) -> None:
        """Wait until a method has been called for a transaction."""
        await self.wait_until(lambda: self.calls(gid).count(method) >= times)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(15), self._arrived:
            await self._arrived.wait_for(condition)

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        where = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(where)
        else:
            self.port = self._server.add_secure_port(where, self._credentials)
        await self._server.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for gate in self._gates.values():
            gate.set()
        await self._server.stop(None)

    def service(self, details: Any) -> Any:
        path: str = details.method

        async def answer(message: bytes, context: Any) -> bytes:
            return await self._answer(path, message, context)

        return grpc.unary_unary_rpc_method_handler(answer)

    async def _answer(self, path: str, message: bytes, context: Any) -> bytes:
        method = path.rpartition("/")[2]
        metadata = dict(context.invocation_metadata())
        received = Received(
            method=method,
            path=path,
            metadata=metadata,
            message=message,
            time_left_s=context.time_remaining(),
            peer=context.peer(),
        )
        async with self._arrived:
            self.received.append(received)
            self._arrived.notify_all()
        if method in self._gates:
            await self._gates[method].wait()
        if self._scripts[method]:
            code, text = self._scripts[method].popleft()
        else:
            code, text = await self.work(received) if self.work else SUCCESS
        if code is not grpc.StatusCode.OK:
            await context.abort(code, text)
        return self.reply
