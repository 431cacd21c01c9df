"""gRPC servers of either kind, in this process, whose methods take and give bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc

Method = Callable[..., Any]
SERVICE = "shop.Storage"


def handler_of(methods: Mapping[str, Method], service: str = SERVICE) -> grpc.GenericRpcHandler:
    named = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    return grpc.method_handlers_generic_handler(service, named)


@asynccontextmanager
async def serving_async(
    *handlers: grpc.GenericRpcHandler,
    interceptors: Any = (),
    add: Callable[[Any], None] = lambda _: None,
    at: str = "127.0.0.1:0",
    tls: grpc.ServerCredentials | None = None,
) -> AsyncIterator[str]:
    """Run a server of `grpc.aio`; give its host and port."""
    pool = ThreadPoolExecutor(4)
    server = grpc.aio.server(migration_thread_pool=pool, interceptors=interceptors)
    server.add_generic_rpc_handlers(handlers)
    add(server)
    port = server.add_secure_port(at, tls) if tls else server.add_insecure_port(at)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        pool.shutdown()


@asynccontextmanager
async def serving_threads(
    *handlers: grpc.GenericRpcHandler,
    interceptors: Any = (),
    add: Callable[[Any], None] = lambda _: None,
    at: str = "127.0.0.1:0",
) -> AsyncIterator[str]:
    """Run a server that works in threads; give its host and port."""
    pool = ThreadPoolExecutor(4)
    server = grpc.server(pool, interceptors=interceptors)
    server.add_generic_rpc_handlers(handlers)
    add(server)
    port = server.add_insecure_port(at)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
        pool.shutdown()


async def call(
    target: str, method: str, message: bytes = b"", *, timeout_s: float = 10, **metadata: str
) -> tuple[grpc.StatusCode, str, bytes]:
    """Call a method with `dtm-` metadata; give code, text and answer."""
    async with grpc.aio.insecure_channel(target) as channel:
        pairs = tuple((f"dtm-{name}", value) for name, value in metadata.items())
        calling = channel.unary_unary(f"/{method}")(message, metadata=pairs, timeout=timeout_s)
        try:
            body = await calling
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or "", b""
        return grpc.StatusCode.OK, "", body
