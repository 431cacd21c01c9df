"""Serves one coordinator process: its sockets, its signals, and its orderly end.

The end, on SIGTERM or SIGINT: `/readyz` says 503 and submits are refused at once; the
sockets close; calls under way end, for `drain_s` at most; what is still owned is given up
for other nodes to take; then the process leaves with 0. A second signal does not wait.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, cast

import httptools
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from txcoord.api.grpc_server import GrpcServer
from txcoord.app import App, build
from txcoord.errors import SchemaError, StoreUnavailableError
from txcoord.logs import get_logger
from txcoord.settings import Settings
from txcoord.store.url import cannot_be_used, open_store
from txcoord.tls import Tls, load_tls

log = get_logger()

BACKLOG = 2048
_MAX_HEAD_BYTES = 64 * 1024
_HEAD_TIMEOUT_S = 30.0
_OTHER_RPCS = 1000

EXIT_OK = 0
EXIT_NOT_STARTED = 1

Address = tuple[str, int]
"""An IP address and a port."""


class StartError(Exception):
    """The coordinator could not start; the sentence says why and what to do."""


# -- the sockets -----------------------------------------------------------------------


def bind(host: str, port: int, *, shared: bool = False, flag: str = "--port") -> socket.socket:
    """Bind a socket; with `shared` several processes may, and the kernel spreads connections.

    Raises:
        StartError: the address is in use, or not ours.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartError(
            f"host {host} cannot be resolved: {error.strerror or error}; choose another with --host"
        ) from error
    # "localhost" is both; most clients try IPv4, and all of them do so in the end.
    family, kind, protocol, _, address = min(addresses, key=lambda found: found[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        cure = "stop what uses it, or choose" if error.errno == errno.EADDRINUSE else "choose"
        raise StartError(
            f"cannot listen on {host} port {port}: {error.strerror}; {cure} another with --host and {flag}"
        ) from error
    return listener


@contextmanager
def reserved(host: str, port: int, *, flag: str = "--port") -> Iterator[Address]:
    """Hold a port for servers that bind it themselves, and share it: it is bound, but nobody listens.

    Raises:
        StartError: the address is in use, or not ours.
    """
    if port:
        # Two servers of one user may share a port without noticing: ask once without sharing.
        bind(host, port, flag=flag).close()
    with bind(host, port, shared=True, flag=flag) as reservation:
        yield reservation.getsockname()[:2]


@contextmanager
def grpc_reserved(settings: Settings) -> Iterator[Address | None]:
    """Hold the port of the gRPC API; None: it is switched off."""
    if not settings.grpc:
        yield None
        return
    with reserved(settings.host, settings.grpc_port, flag="--grpc-port") as address:
        yield address


def urls_of(settings: Settings, address: Address, grpc_address: Address | None) -> Sequence[str]:
    """Say where the servers can be reached."""
    tls = "s" if settings.tls_cert_file else ""
    urls = [f"http{tls}://{_shown(address)}"]
    return [*urls, f"grpc{tls}://{_shown(grpc_address)}"] if grpc_address else urls


def _shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# -- the server -----------------------------------------------------------------------


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


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol; an answer is one write, a head has bounds, and wishes for another protocol are not heard."""

    _head_bytes = 0
    _is_in_head = False
    _late: asyncio.TimerHandle | None = None
    """Runs while a head is awaited that has begun, or the first one of a connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.transport = cast(asyncio.Transport, _JoinedWrites(self.transport))
        self._late = self.loop.call_later(_HEAD_TIMEOUT_S, self.transport.close)

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
            self._late = self.loop.call_later(_HEAD_TIMEOUT_S, self.transport.close)

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
        if self._head_bytes > _MAX_HEAD_BYTES:
            # The parser turns it into the answer 400 and the end of the connection.
            raise ValueError("the request's head is too large")


class Server(uvicorn.Server):
    """uvicorn's server and the gRPC server; signals drain the coordinator, and stopping is its orderly end."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: App,
        grpc_server: GrpcServer | None,
        *,
        on_ready: Callable[[App], None],
        is_worker: bool,
    ) -> None:
        super().__init__(config)
        self._app = app
        self._grpc = grpc_server
        self._on_ready = on_ready
        self._is_worker = is_worker
        self._loop = asyncio.get_running_loop()
        self._stopping: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own, which would raise the signal again at the end: the exit code is 0.
        # A worker hears its signals twice (the supervisor's, and the terminal's or systemd's to
        # the whole group); its supervisor has other means when it shall not wait.
        if not self.should_exit:
            self.should_exit = True
            self._loop.call_soon_threadsafe(self._begin_drain)
        elif not self._is_worker:
            self.force_exit = True
            self._loop.call_soon_threadsafe(self._stop_waiting)

    def _begin_drain(self) -> None:
        self._app.begin_drain()
        if self._grpc is not None:
            self._grpc.begin_drain()

    def _stop_waiting(self) -> None:
        if self._stopping is not None:
            self._stopping.cancel()
        if self._grpc is not None:
            self._grpc.stop_waiting()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready(self._app)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping = asyncio.create_task(self._app.stop_engine())
        if self.force_exit:
            self._stopping.cancel()
        # Meanwhile: submits that wait are answered as their transactions stop.
        grpc_stopping = asyncio.create_task(self._stop_grpc())
        await super().shutdown(sockets)
        with suppress(asyncio.CancelledError):
            await self._stopping
        await grpc_stopping
        await self._app.close()

    async def _stop_grpc(self) -> None:
        if self._grpc is not None:
            grace_s = self.config.timeout_graceful_shutdown or 0
            await self._grpc.stop(0.0 if self.force_exit else grace_s)


@contextmanager
def _sentences(settings: Settings) -> Iterator[None]:
    """Turn what can be wrong at start into the sentence that is printed."""
    try:
        yield
    except StoreUnavailableError as error:
        raise StartError(cannot_be_used(settings.store, error)) from error
    except (ValueError, SchemaError) as error:
        raise StartError(str(error)) from error


async def check_start(settings: Settings) -> None:
    """Read the certificates and whatever else a coordinator is made of, open the store once, and close it.

    Raises:
        StartError: one of them cannot be used.
    """
    with _sentences(settings):
        load_tls(settings)
        await build(settings).close()
        store = open_store(settings.store, timeout_s=settings.store_timeout_s, pool_size=1)
        try:
            await store.open()
        finally:
            await store.close()


async def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    grpc_address: Address | None,
    on_ready: Callable[[App], None],
    is_worker: bool = False,
) -> int:
    """Serve until a signal ends it; return the exit code.

    Raises:
        StartError: it could not start.
    """
    with _sentences(settings):
        tls = load_tls(settings)
        app = build(settings)
        await app.start()
        try:
            grpc_server = await _start_grpc(settings, app, grpc_address, tls) if grpc_address else None
        except BaseException:
            await app.stop_engine()
            await app.close()
            raise
    config = uvicorn.Config(
        app.asgi,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=math.ceil(settings.drain_s) + 1,
    )
    config.load()
    config.ssl = tls.context if tls else None
    server = Server(config, app, grpc_server, on_ready=on_ready, is_worker=is_worker)
    _spare_the_collector()
    await server.serve(sockets=[listener])
    return EXIT_NOT_STARTED if server.force_exit else EXIT_OK


async def _start_grpc(settings: Settings, app: App, address: Address, tls: Tls | None) -> GrpcServer:
    # One call may wait for each live transaction; the rest is for those that ask for something else.
    max_rpcs = settings.max_live + _OTHER_RPCS
    server = GrpcServer(app.service, max_body_bytes=settings.max_body_bytes, max_rpcs=max_rpcs)
    try:
        await server.start(address, tls.credentials if tls else None)
    except OSError as error:
        raise StartError(str(error)) from error
    return server


def _spare_the_collector() -> None:
    # What is loaded by now stays; looking through it again and again costs several per cent
    # of the time under load. What a request makes is freed by its reference counts.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def run(
    settings: Settings,
    listener: socket.socket,
    *,
    grpc_address: Address | None,
    on_ready: Callable[[App], None],
    is_worker: bool = False,
) -> int:
    """`serve` in an event loop of its own."""
    listener.listen(BACKLOG)
    listener.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings, listener, grpc_address=grpc_address, on_ready=on_ready, is_worker=is_worker))
