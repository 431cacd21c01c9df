"""One gRPC server: its port, its bounds, its orderly end."""

from __future__ import annotations

import asyncio
from typing import Final

import grpc

from txcoord.api.grpc import GrpcApi
from txcoord.api.grpc_health import HEALTH_SERVICE, Health, reflection_handler
from txcoord.service import Service

_KEEPALIVE_MS: Final = 60_000
_PINGS_AT_LEAST_APART_MS: Final = 5_000
_CALLS_PER_CONNECTION: Final = 1_000


class GrpcServer:
    """Serves the gRPC API, health and reflection on a port. Made and used within a running loop."""

    def __init__(self, service: Service, *, max_body_bytes: int, max_rpcs: int) -> None:
        """
        Args:
            max_rpcs: how many calls may be under way at once; others get RESOURCE_EXHAUSTED.
        """
        self._api = GrpcApi(service)
        self._health = Health(service, self._api.services)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_body_bytes),
                # Of one connection: it must not take all places, health checks' among them.
                ("grpc.max_concurrent_streams", _CALLS_PER_CONNECTION),
                # Several processes may share the port; each of them checked before that it is free.
                ("grpc.so_reuseport", 1),
                # Calls of clients that vanished end, and clients may look in turn whether we are there.
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", _PINGS_AT_LEAST_APART_MS),
            ],
            maximum_concurrent_rpcs=max_rpcs,
        )
        names = [*self._api.services, HEALTH_SERVICE]
        handlers = [*self._api.handlers(), self._health.handler(), reflection_handler(names)]
        self._server.add_generic_rpc_handlers(handlers)
        self._hurrying: asyncio.Task[None] | None = None

    async def start(self, address: tuple[str, int], credentials: grpc.ServerCredentials | None) -> int:
        """Listen at an IP address and port, with TLS if there are credentials.

        Returns:
            The port: a free one was taken if it was 0.

        Raises:
            OSError: the port cannot be had.
        """
        host, port = address
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                port = self._server.add_insecure_port(target)
            else:
                port = self._server.add_secure_port(target, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen for gRPC on {target}: {error}") from error
        await self._server.start()
        return port

    def begin_drain(self) -> None:
        """Let those who watch its health know."""
        self._health.begin_drain()

    def stop_waiting(self) -> None:
        """End what is under way now, and with it a `stop` that waits."""
        self._hurrying = asyncio.get_running_loop().create_task(self._server.stop(0))

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; end those under way when `grace_s` has passed."""
        await self._server.stop(grace_s)
        if self._hurrying is not None:
            await self._hurrying
        await self._api.close()
