"""Clients whose transactions take several requests, or gRPC: `python -m bench.client`, one process, one JSON line.

wrk cannot say which answer belongs to which connection, and speaks no gRPC. Here one event loop does what wrk's does:
each client has a connection and begins its next transaction when the last has ended.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Annotated, cast
from urllib.parse import urlsplit

import msgspec
import typer
import uvloop

from bench.flows import FLOWS, Flow, Load, UnexpectedAnswerError, saga_steps

GRACE_S = 30.0


class Seen:
    """What all clients of a run saw, with the latencies of whole transactions in microseconds."""

    def __init__(self, *, seconds: float) -> None:
        self.started = time.perf_counter()
        self.ends_at = self.started + seconds
        self.latencies_us: list[int] = []
        self.errors = 0
        self.first_error = ""

    @property
    def is_over(self) -> bool:
        return time.perf_counter() >= self.ends_at

    def ended(self, began: float) -> None:
        now = time.perf_counter()
        if now < self.ends_at:
            self.latencies_us.append(int((now - began) * 1e6))

    def failed(self, why: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or why

    def summary(self) -> dict[str, object]:
        ordered = sorted(self.latencies_us) or [0]

        def quantile(share: float) -> int:
            return ordered[min(int(len(ordered) * share), len(ordered) - 1)]

        return {
            "transactions": len(self.latencies_us),
            "duration_us": int((self.ends_at - self.started) * 1e6),
            "errors": self.errors,
            "first_error": self.first_error,
            "mean_us": statistics.fmean(ordered),
            "p50_us": quantile(0.5),
            "p90_us": quantile(0.9),
            "p99_us": quantile(0.99),
            "max_us": ordered[-1],
        }


class HttpClient(asyncio.Protocol):
    """One keep-alive connection, which runs one flow after another."""

    def __init__(self, host: str, begin: Callable[[], Flow], seen: Seen) -> None:
        self._head = f" HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: "
        self._begin = begin
        self._seen = seen
        self._buffer = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next_flow()

    def _next_flow(self) -> None:
        if self._seen.is_over:
            self._transport.close()
            return
        self._flow = self._begin()
        self._began = time.perf_counter()
        self._send(next(self._flow))

    def _send(self, request: tuple[str, bytes]) -> None:
        path, body = request
        self._transport.write(f"POST {path}{self._head}{len(body)}\r\n\r\n".encode() + body)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, mark, body = self._buffer.partition(b"\r\n\r\n")
        if not mark:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._buffer = b""
        try:
            self._send(self._flow.send(body))
        except StopIteration:
            self._seen.ended(self._began)
            self._next_flow()
        except UnexpectedAnswerError as error:
            self._seen.failed(str(error))
            self._next_flow()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._seen.is_over:
            self._seen.failed(f"a connection broke: {error or 'closed by the server'}")
        if not self.done.done():
            self.done.set_result(None)


async def over_http(url: str, begin: Callable[[], Flow], *, clients: int, seconds: float) -> Seen:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    seen = Seen(seconds=seconds)
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: HttpClient(parts.netloc, begin, seen), host, port) for _ in range(clients)
    ]
    try:
        async with asyncio.timeout(seconds + GRACE_S):
            await asyncio.gather(*(client.done for _, client in made))
    except TimeoutError:
        seen.failed(f"an answer took longer than {GRACE_S:g} s")
    return seen


async def over_grpc(
    target: str, next_gid: Callable[[], str], participants: str, *, clients: int, seconds: float
) -> Seen:
    import grpc.aio

    from txcoord.proto.dtm_pb2 import DtmRequest, DtmTransOptions

    steps = msgspec.json.encode(list(saga_steps(participants))).decode()
    options = DtmTransOptions(WaitResult=True)

    def saga() -> bytes:
        request = DtmRequest(
            Gid=next_gid(), TransType="saga", TransOptions=options, Steps=steps, BinPayloads=[b'{"amount":30}'] * 2
        )
        return request.SerializeToString()

    async def client() -> None:
        # A connection of its own, as services on many machines have.
        choices = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(target, options=choices) as channel:
            submit: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/dtmgimp.Dtm/Submit")
            await channel.channel_ready()
            while not seen.is_over:
                began = time.perf_counter()
                try:
                    await submit(saga(), timeout=GRACE_S)
                except grpc.aio.AioRpcError as error:
                    seen.failed(f"{error.code().name}: {error.details()}")
                else:
                    seen.ended(began)

    seen = Seen(seconds=seconds)
    await asyncio.gather(*(client() for _ in range(clients)))
    return seen


def main(
    load: Annotated[Load, typer.Option()],
    url: Annotated[str, typer.Option(help="http://host:port, or host:port for gRPC.")],
    participants: Annotated[str, typer.Option()],
    prefix: Annotated[str, typer.Option(help="Of all gids; they are counted up.")],
    clients: Annotated[int, typer.Option()],
    seconds: Annotated[float, typer.Option()],
) -> None:
    number = 0

    def next_gid() -> str:
        nonlocal number
        number += 1
        return f"{prefix}{number:09d}"

    if load is Load.GRPC:
        run = over_grpc(url, next_gid, participants, clients=clients, seconds=seconds)
    else:
        flow = FLOWS[load]
        run = over_http(url, lambda: flow(next_gid(), participants), clients=clients, seconds=seconds)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(msgspec.json.encode(runner.run(run).summary()).decode())


if __name__ == "__main__":
    typer.run(main)
