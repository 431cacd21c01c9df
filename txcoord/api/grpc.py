"""The gRPC API: DTM's service, and one of ours for what DTM offers over HTTP only.

An adapter like the others: it parses, calls the service, and maps what comes back by the
tables in `txcoord.api.replies`. Messages are decoded here and not by grpc, which would
answer what it cannot read as a fault of the server. For the same reason a request is read
as a stream, of which the first message counts: a unary method of grpc leaves a caller that
sends no message without an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Mapping
from time import perf_counter
from typing import Any, Final, cast

import grpc

from txcoord import __version__, metrics
from txcoord.api import replies
from txcoord.api.grpc_wire import decode, decode_branch, decode_trans, encode_progress
from txcoord.api.operations import Operations
from txcoord.api.queries import gid_of, list_transactions, query_transaction
from txcoord.api.replies import Reply
from txcoord.api.views import encode
from txcoord.errors import InvalidRequestError
from txcoord.proto.dtm_pb2 import DtmGidReply, DtmTopicRequest
from txcoord.proto.txcoord_pb2 import Gid, Json, ListRequest, Version
from txcoord.protocol import GRPC, GRPC_OPERATORS_SERVICE, GRPC_SERVICE, GrpcStatus
from txcoord.service import Service

Context = grpc.aio.ServicerContext[bytes, bytes]
Handle = Callable[[bytes], Awaitable[bytes | Reply]]
"""What a method does with a request: the reply's bytes, or how it went."""

MESSAGE_TIMEOUT_S: Final = 30.0
_DETAILS_BYTES: Final = 2000
"""How much of a sentence is sent: it travels in a header, escaped to three times its size, and clients bound those."""
_TAIL_BYTES: Final = 100

_EMPTY: Final = b""
_CODES: Final = {status: next(code for code in grpc.StatusCode if code.value[0] == status) for status in GrpcStatus}


class GrpcApi:
    """Messages in, calls of the service, messages out. Nothing that a client sends may end in INTERNAL."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._operations = Operations(service)
        self._under_way: set[asyncio.Task[bytes | Reply]] = set()
        self._services: Mapping[str, Mapping[str, Handle]] = {
            GRPC_SERVICE: {
                "Submit": self._submit,
                "Prepare": self._prepare,
                "RegisterBranch": self._register_branch,
                "Abort": self._abort,
                "PrepareWorkflow": self._prepare_workflow,
                "NewGid": self._new_gid,
                "Subscribe": self._subscribe,
                "Unsubscribe": self._unsubscribe,
                "DeleteTopic": self._delete_topic,
            },
            GRPC_OPERATORS_SERVICE: {
                "Query": self._query,
                "List": self._list,
                "ForceStop": self._force_stop,
                "ResetNextCronTime": self._reset_next_cron_time,
                "GetVersion": self._get_version,
            },
        }

    @property
    def services(self) -> tuple[str, ...]:
        """Their full names."""
        return tuple(self._services)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a server of `grpc.aio` is given, in the order in which it shall look."""
        return [
            grpc.method_handlers_generic_handler(
                service, {name: self._handler(service, name, handle) for name, handle in methods.items()}
            )
            for service, methods in self._services.items()
        ]

    async def close(self) -> None:
        """End the calls whose callers have gone. Comes when no more can arrive."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _handler(self, service: str, name: str, handle: Handle) -> grpc.RpcMethodHandler[bytes, bytes]:
        measured = metrics.ApiMetrics(name.lower(), kind=GRPC)
        path = f"/{service}/{name}"

        async def answer(_requests: AsyncIterable[bytes], context: Context) -> bytes:
            started = perf_counter()
            try:
                body = await read_message(context)
            except InvalidRequestError as error:
                result: bytes | Reply = cast(Reply, replies.of_error(error))
            else:
                result = await self._outlive(_carry_out(handle, body, path))
            if isinstance(result, bytes):
                measured.answered(200, perf_counter() - started)
                return result
            measured.answered(result.status, perf_counter() - started)
            if result.grpc is not GrpcStatus.OK:
                await refuse(context, result)
            return _EMPTY

        return grpc.stream_unary_rpc_method_handler(answer)

    async def _outlive(self, call: Coroutine[Any, Any, bytes | Reply]) -> bytes | Reply:
        # A caller that goes away or runs out of time is not a reason to stop halfway: what it
        # asked for is carried out, as it is for one that loses its HTTP connection.
        task = asyncio.get_running_loop().create_task(call)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    # -- dtmgimp.Dtm -----------------------------------------------------------------

    async def _new_gid(self, _body: bytes) -> bytes:
        return DtmGidReply(Gid=self._service.new_gid()).SerializeToString()

    async def _submit(self, body: bytes) -> Reply:
        return await self._operations.submit(decode_trans(body))

    async def _prepare(self, body: bytes) -> Reply:
        return await self._operations.prepare(decode_trans(body))

    async def _abort(self, body: bytes) -> Reply:
        return await self._operations.abort(decode_trans(body))

    async def _register_branch(self, body: bytes) -> Reply:
        return await self._operations.register_branch(decode_branch(body))

    async def _prepare_workflow(self, body: bytes) -> bytes:
        return encode_progress(await self._operations.prepare_workflow(decode_trans(body)))

    async def _subscribe(self, body: bytes) -> Reply:
        wanted = decode(DtmTopicRequest, body)
        return await self._operations.subscribe(wanted.Topic, wanted.URL, wanted.Remark)

    async def _unsubscribe(self, body: bytes) -> Reply:
        wanted = decode(DtmTopicRequest, body)
        return await self._operations.unsubscribe(wanted.Topic, wanted.URL)

    async def _delete_topic(self, body: bytes) -> Reply:
        return await self._operations.delete_topic(decode(DtmTopicRequest, body).Topic)

    # -- txcoord.v1.Coordinator ------------------------------------------------------

    async def _query(self, body: bytes) -> bytes:
        found = await query_transaction(self._service, decode(Gid, body).gid)
        return Json(json=encode(found)).SerializeToString()

    async def _list(self, body: bytes) -> bytes:
        found = await list_transactions(self._service, decode(ListRequest, body).parameters)
        return Json(json=encode(found)).SerializeToString()

    async def _force_stop(self, body: bytes) -> bytes:
        await self._service.force_stop(gid_of(decode(Gid, body).gid))
        return _EMPTY

    async def _reset_next_cron_time(self, body: bytes) -> bytes:
        await self._service.reset_next_cron_time(gid_of(decode(Gid, body).gid))
        return _EMPTY

    async def _get_version(self, _body: bytes) -> bytes:
        return Version(version=__version__).SerializeToString()


async def read_message(context: Context) -> bytes:
    """Return the request.

    Raises:
        InvalidRequestError: there is none, or it does not come.
    """
    try:
        async with asyncio.timeout(MESSAGE_TIMEOUT_S):
            body = await context.read()
    except TimeoutError:
        raise InvalidRequestError(f"the request's message did not arrive within {MESSAGE_TIMEOUT_S:.0f} s") from None
    if not isinstance(body, bytes):
        raise InvalidRequestError("the request has no message: send one, which may be empty")
    return body


async def refuse(context: Context, reply: Reply) -> None:
    """End a call with the status and the sentence of a reply. Does not return."""
    await context.abort(_CODES[reply.grpc], details_of(reply.message))


def details_of(message: str) -> str:
    """Bound a sentence; its last words, which may be FAILURE, are kept."""
    text = message.encode(errors="replace")
    if len(text) > _DETAILS_BYTES:
        text = text[: _DETAILS_BYTES - _TAIL_BYTES] + " … ".encode() + text[-_TAIL_BYTES:]
    return text.decode(errors="ignore")


async def _carry_out(handle: Handle, body: bytes, path: str) -> bytes | Reply:
    try:
        return await handle(body)
    except Exception as error:  # noqa: BLE001 - the last resort, which logs it
        return replies.of_error(error) or replies.of_bug(error, where=path)
