"""The health service of gRPC (grpc.health.v1) and its reflection: what tools and load balancers ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Sequence
from typing import Final, cast

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from txcoord.api import replies
from txcoord.api.grpc import Context, read_message, refuse
from txcoord.api.grpc_wire import decode
from txcoord.api.replies import Reply
from txcoord.errors import InvalidRequestError, TxcoordError
from txcoord.protocol import JSON_RPC_INTERNAL_ERROR, GrpcStatus
from txcoord.service import Service

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
WATCHERS_AT_MOST: Final = 100
WATCH_INTERVAL_S: Final = 1.0

_SERVING: Final[bytes] = HealthCheckResponse(status=HealthCheckResponse.SERVING).SerializeToString()
_NOT_SERVING: Final[bytes] = HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING).SerializeToString()
_SERVICE_UNKNOWN: Final[bytes] = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN).SerializeToString()


class Health:
    """Says SERVING when `/readyz` says ready: with a lease and a store, and not on the way out."""

    def __init__(self, service: Service, names: Sequence[str]) -> None:
        """
        Args:
            names: of the services that can be asked for; "" is the server as a whole.
        """
        self._service = service
        self._names = frozenset(["", *names])
        self._watchers = 0
        self._draining = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            HEALTH_SERVICE,
            {
                "Check": grpc.stream_unary_rpc_method_handler(self._check),
                "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
            },
        )

    def begin_drain(self) -> None:
        """Tell those who watch, and let them go: they would hold up the end."""
        self._draining.set()

    async def _check(self, _requests: AsyncIterable[bytes], context: Context) -> bytes:
        name = await self._name_of(context)
        if name not in self._names:
            await refuse(context, _unknown(name))
        return await self._status()

    async def _watch(self, _requests: AsyncIterable[bytes], context: Context) -> None:
        name = await self._name_of(context)
        if self._watchers >= WATCHERS_AT_MOST:
            await refuse(context, _TOO_MANY)
        self._watchers += 1
        try:
            said = None
            while True:
                # Before the status is asked for: what has begun by then is in it.
                is_draining = self._draining.is_set()
                status = await self._status() if name in self._names else _SERVICE_UNKNOWN
                if status != said:
                    await context.write(status)
                    said = status
                if is_draining:
                    return
                try:
                    async with asyncio.timeout(WATCH_INTERVAL_S):
                        await self._draining.wait()
                except TimeoutError:
                    continue
        finally:
            self._watchers -= 1

    async def _name_of(self, context: Context) -> str:
        try:
            return str(decode(HealthCheckRequest, await read_message(context)).service)
        except InvalidRequestError as error:
            await refuse(context, cast(Reply, replies.of_error(error)))
            raise

    async def _status(self) -> bytes:
        try:
            await self._service.check_ready()
        except TxcoordError:
            return _NOT_SERVING
        return _SERVING


def _unknown(name: str) -> Reply:
    message = f"no service named {name[:100]!r} is offered here"
    return Reply(404, JSON_RPC_INTERNAL_ERROR, GrpcStatus.NOT_FOUND, message)


_TOO_MANY: Final = Reply(
    429,
    JSON_RPC_INTERNAL_ERROR,
    GrpcStatus.RESOURCE_EXHAUSTED,
    f"{WATCHERS_AT_MOST} callers watch already, which is the most: use Check",
)


def reflection_handler(names: Sequence[str]) -> grpc.GenericRpcHandler:
    """Let tools such as grpcurl ask for the services and their messages."""
    servicer = reflection.aio.ReflectionServicer([*names, reflection.SERVICE_NAME])
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=_read_reflection_request,
        response_serializer=ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": handler})


def _read_reflection_request(body: bytes) -> ServerReflectionRequest:
    try:
        return ServerReflectionRequest.FromString(body)
    except DecodeError:
        # One that asks for nothing, which is answered as an invalid one.
        return ServerReflectionRequest()
