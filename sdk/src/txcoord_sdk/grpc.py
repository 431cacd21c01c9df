"""Branch operations as methods of gRPC services.

    server = grpc.aio.server(interceptors=[AsyncBranchInterceptor()])

    class Storage(StorageServicer):
        async def Deduct(self, request, context):
            async with engine.begin() as connection:
                await branch_context().barrier.call(connection, partial(take_from_stock, request))
            return Empty()

Or without an interceptor, one method at a time:

        @branch_method
        async def Deduct(self, request, context, branch): ...

Returning is success. Raising `BranchFailed` is failure (ABORTED), `BranchOngoing` is "call again"
(FAILED_PRECONDITION); anything else is logged with its gid and answered with INTERNAL, so that the coordinator
calls again. All of this is for asyncio and for threads; streams are let through, since no branch operation is one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, cast, overload

import grpc
from google.protobuf.message import DecodeError

from txcoord.errors import InvalidRequestError
from txcoord.outcome import clean
from txcoord.proto.workflow_pb2 import WorkflowData
from txcoord.protocol import METADATA_PREFIX, QUERY_PARAMETERS, STATUS_FAILURE, STATUS_ONGOING, WORKFLOW_METHOD
from txcoord_sdk._check_back import Source, check_back, check_back_sync
from txcoord_sdk._rules import MAX_REASON
from txcoord_sdk.branch import Answer, BranchContext, BranchFailed, BranchOngoing, answer_to, query_in

if TYPE_CHECKING:
    # A participant without workflows need not load them.
    from txcoord_sdk.workflow import AsyncWorkflows, Workflows

__all__ = [
    "QUERY_PREPARED",
    "RESUME_WORKFLOW",
    "AsyncBranchInterceptor",
    "BranchContext",
    "BranchFailed",
    "BranchInterceptor",
    "BranchOngoing",
    "add_query_prepared",
    "add_workflows",
    "branch_context",
    "branch_method",
]

QUERY_PREPARED = "txcoord.v1.CheckBack/QueryPrepared"
"""The method that `add_query_prepared` adds: with your host and port before it, the `query_prepared` of messages."""

RESUME_WORKFLOW = WORKFLOW_METHOD
"""The method that `add_workflows` adds: with your host and port before it, the `resume_url` of workflows."""

ServicerContext = Any
"""Of either kind of server; their common part is all that is used."""
Method = Callable[..., Any]
Reading = Callable[[ServicerContext], BranchContext | None]

_REQUIRED = frozenset(f"{METADATA_PREFIX}{name}" for name in QUERY_PARAMETERS)
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    STATUS_FAILURE: grpc.StatusCode.ABORTED,
    STATUS_ONGOING: grpc.StatusCode.FAILED_PRECONDITION,
}

_current: ContextVar[BranchContext] = ContextVar("txcoord_sdk.grpc.branch")
_read: ContextVar[tuple[ServicerContext, str | None, BranchContext]] = ContextVar("txcoord_sdk.grpc.read")
"""What was read last, with the method's context that it was read from. A thread keeps it longer than its call."""


class _NotABranchError(InvalidRequestError):
    """The method that was called is a branch operation, and the call is not."""


def branch_context(context: ServicerContext | None = None, *, table: str | None = None) -> BranchContext:
    """Return the branch operation of the call that is being answered, with its barrier.

    It is the same one each time, so that the barrier's calls are counted. (Not in several tasks or threads that a
    method has started: call it first, and hand it to them.)

    Args:
        context: the method's own; only needed where no interceptor of this module is at work.
        table: the barrier table, if it is not DTM's; an interceptor has it.

    Raises:
        InvalidRequestError: it is not the call of a branch. An interceptor answers with
            INVALID_ARGUMENT and the sentence, which says what the metadata lacks.
    """
    if context is not None:
        known = _read.get(None)
        if known is not None and known[0] is context and table in (None, known[1]):
            return known[2]
        branch = BranchContext.from_metadata(context.invocation_metadata() or (), table=table)
        _read.set((context, table, branch))
        return branch
    found = _current.get(None)
    if found is None:
        raise _NotABranchError(
            f"not the call of a branch: the metadata lacks {', '.join(sorted(_REQUIRED))}, which a coordinator adds"
            " (and an interceptor of txcoord_sdk.grpc reads)"
        )
    return found


class AsyncBranchInterceptor(grpc.aio.ServerInterceptor):
    """For `grpc.aio.server(interceptors=[…])`: reads the branch operation of each call, and answers for its method.

    Calls that are not branch operations, such as those of a health check, go through untouched.

    Args:
        table: the barrier table, if it is not DTM's.
    """

    def __init__(self, *, table: str | None = None) -> None:
        self._table = table

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        return _answering(await continuation(handler_call_details), handler_call_details, self._table)


class BranchInterceptor(grpc.ServerInterceptor):
    """The same for `grpc.server(…, interceptors=[…])`."""

    def __init__(self, *, table: str | None = None) -> None:
        self._table = table

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: Any
    ) -> Any:
        return _answering(continuation(handler_call_details), handler_call_details, self._table)


@overload
def branch_method(method: Method, /) -> Method: ...


@overload
def branch_method(*, table: str) -> Callable[[Method], Method]: ...


def branch_method(method: Method | None = None, /, *, table: str | None = None) -> Method | Callable[[Method], Method]:
    """Make a servicer's method of one that takes the branch as its last argument: `(self, request, context, branch)`.

    It answers as an interceptor would. A call without a branch's metadata is answered with INVALID_ARGUMENT.

    Args:
        table: the barrier table, if it is not DTM's.
    """
    if method is None:
        return lambda function: _with_branch(function, table)
    return _with_branch(method, table)


def add_query_prepared(server: grpc.Server | grpc.aio.Server, source: Source, *, table: str | None = None) -> None:
    """Add the check-back of a service that sends messages with `do_and_submit`.

    Its URL is your `host:port/` followed by `QUERY_PREPARED`. It tells the coordinator whether the local
    transaction has committed, as `txcoord_sdk.starlette.query_prepared_route` does; it needs no interceptor.

    Args:
        source: the database of those transactions: a SQLAlchemy engine, or a function that returns a
            context manager of a connection or session, or a client of Redis. They may be async ones
            in a server of `grpc.aio`.
        table: the barrier table, if it is not DTM's.
    """

    async def ask(_request: bytes, _context: ServicerContext, branch: BranchContext) -> bytes:
        await check_back(source, branch)
        return b""

    def ask_now(_request: bytes, _context: ServicerContext, branch: BranchContext) -> bytes:
        check_back_sync(source, branch)
        return b""

    _add(server, QUERY_PREPARED, _with_branch(ask if isinstance(server, grpc.aio.Server) else ask_now, table))


def add_workflows(server: grpc.Server | grpc.aio.Server, workflows: AsyncWorkflows | Workflows) -> None:
    """Add the method at which the coordinator asks a participant to go on with its workflows.

    Its URL is your `host:port/` followed by `RESUME_WORKFLOW`. It answers as `txcoord_sdk.starlette.workflow_route`
    does, in the words of gRPC; it needs no interceptor.

    Raises:
        TypeError: these are `AsyncWorkflows`, and the server is not one of `grpc.aio`.
    """

    async def resume(request: bytes, context: ServicerContext) -> bytes:
        query, given = _to_resume(request, context)
        answer = await cast("AsyncWorkflows", workflows).resume(query, given)
        if answer.status != 200:
            await context.abort(*_in_grpc(answer))
        return b""

    def resume_now(request: bytes, context: ServicerContext) -> bytes:
        query, given = _to_resume(request, context)
        answer = cast("Workflows", workflows).resume(query, given)
        if answer.status != 200:
            context.abort(*_in_grpc(answer))
        return b""

    is_async = iscoroutinefunction(workflows.resume)
    if is_async and not isinstance(server, grpc.aio.Server):
        raise TypeError("AsyncWorkflows need a server of grpc.aio: give it Workflows, which block")
    nothing = _nothing_read
    _add(server, RESUME_WORKFLOW, _answered(resume, nothing) if is_async else _answered_now(resume_now, nothing))


def _nothing_read(_context: ServicerContext) -> None:
    return None


def _to_resume(request: bytes, context: ServicerContext) -> tuple[dict[str, str], bytes]:
    try:
        data = WorkflowData.FromString(request).Data
    except DecodeError as error:
        raise InvalidRequestError(f"the request is not a {WorkflowData.DESCRIPTOR.full_name}: {error}") from error
    return query_in(context.invocation_metadata() or ()), data


def _add(server: grpc.Server | grpc.aio.Server, path: str, method: Method) -> None:
    service, _, name = path.partition("/")
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(method)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))


# -- how a call is answered ----------------------------------------------------------------


def _answering(handler: Any, details: Any, table: str | None) -> Any:
    if handler is None or handler.unary_unary is None:
        return handler
    metadata = details.invocation_metadata or ()
    is_branch = any(key in _REQUIRED for key, _ in metadata)

    def reading(context: ServicerContext) -> BranchContext | None:
        return branch_context(context, table=table) if is_branch else None

    answering = _answered if iscoroutinefunction(handler.unary_unary) else _answered_now
    return grpc.unary_unary_rpc_method_handler(
        answering(handler.unary_unary, reading),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _with_branch(method: Method, table: str | None) -> Method:
    def reading(context: ServicerContext) -> BranchContext:
        return branch_context(context, table=table)

    async def call(*args: Any) -> Any:
        return await method(*args, branch_context())

    def call_now(*args: Any) -> Any:
        return method(*args, branch_context())

    answered = _answered(call, reading) if iscoroutinefunction(method) else _answered_now(call_now, reading)
    return wraps(method)(answered)


def _answered(method: Method, reading: Reading) -> Method:
    """Wrap a method, whose last two arguments are request and context."""

    async def answer(*args: Any) -> Any:
        context = args[-1]
        try:
            with _being(reading(context)):
                return await method(*args)
        except grpc.aio.AbortError:
            raise  # an answer that the method chose
        except Exception as error:  # noqa: BLE001 (whatever it is, the caller gets an answer, the log the rest)
            await context.abort(*_status(error, context))

    return answer


def _answered_now(method: Method, reading: Reading) -> Method:
    """The same for a method that blocks, in either kind of server."""

    def answer(*args: Any) -> Any:
        context = args[-1]
        try:
            with _being(reading(context)):
                return method(*args)
        except grpc.aio.AbortError:
            raise  # as above
        except Exception as error:
            if _has_chosen(context):
                raise
            context.abort(*_status(error, context))

    return answer


def _has_chosen(context: ServicerContext) -> bool:
    # In a server of threads an abort raises no exception that could be told from others.
    return hasattr(context, "code") and context.code() is not None


@contextmanager
def _being(branch: BranchContext | None) -> Iterator[None]:
    if branch is None:
        yield
        return
    token = _current.set(branch)
    try:
        yield
    finally:
        _current.reset(token)


def _status(error: Exception, context: ServicerContext) -> tuple[grpc.StatusCode, str]:
    """Say what is answered to what a method raised.

    Raises:
        Exception: the same, if this was not a call of a branch.
    """
    if isinstance(error, InvalidRequestError):
        return grpc.StatusCode.INVALID_ARGUMENT, str(error)
    query = query_in(context.invocation_metadata() or ())
    if not query.keys() & QUERY_PARAMETERS:
        raise error
    return _in_grpc(answer_to(error, query))


def _in_grpc(answer: Answer) -> tuple[grpc.StatusCode, str]:
    said = clean(str(answer.body.get("message", "")), MAX_REASON)
    return _CODES.get(answer.status, grpc.StatusCode.INTERNAL), said
