"""Serves one coordinator: its HTTP and gRPC servers, its signals, and its orderly end.

The end, on SIGTERM or SIGINT: `/readyz` says 503 and submits are refused at once; the
sockets close; calls under way end, for `drain_s` at most; what is still owned is given up
for other nodes to take; then the process leaves with 0. A second signal does not wait.
"""

from __future__ import annotations

import asyncio
import gc
import math
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
import uvloop

from txcoord.api.grpc_server import GrpcServer
from txcoord.app import App, build
from txcoord.process.http_protocol import HttpProtocol
from txcoord.process.sockets import Address
from txcoord.process.start import EXIT_NOT_STARTED, EXIT_OK, StartError, sentences
from txcoord.settings.table import Settings
from txcoord.store.url import open_store
from txcoord.tls import Tls, load_tls

BACKLOG = 2048
_OTHER_RPCS = 1000


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


async def check_start(settings: Settings) -> None:
    """Read the certificates and whatever else a coordinator is made of, open the store once, and close it.

    Raises:
        StartError: one of them cannot be used.
    """
    with sentences(settings.store):
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
    with sentences(settings.store):
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
        http=HttpProtocol,
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
