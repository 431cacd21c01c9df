"""Branch endpoints in Starlette.

@branch_endpoint
async def deduct(request: Request, branch: BranchContext) -> None:
    async with engine.begin() as connection:
        await branch.barrier.call(connection, take_from_stock)

app = Starlette(routes=[Route("/deduct", deduct, methods=["POST"])])
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, overload

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from txcoord.errors import InvalidRequestError
from txcoord_sdk._check_back import Source, check_back
from txcoord_sdk._xa_endpoint import AnyCoordinator, XaEndpoint, XaWork
from txcoord_sdk.branch import BranchContext, BranchFailed, BranchOngoing, answer_to, success_body

if TYPE_CHECKING:
    # A participant without workflows need not load them.
    from txcoord_sdk.workflow import AsyncWorkflows, Workflows

__all__ = [
    "BranchContext",
    "BranchFailed",
    "BranchOngoing",
    "branch_endpoint",
    "query_prepared_route",
    "workflow_endpoint",
    "workflow_route",
    "xa_route",
]

BranchEndpoint = Callable[[Request, BranchContext], object]
"""A function, run in a thread, or a coroutine function."""

StarletteEndpoint = Callable[[Request], Awaitable[Response]]


@overload
def branch_endpoint(endpoint: BranchEndpoint, /) -> StarletteEndpoint: ...


@overload
def branch_endpoint(*, table: str) -> Callable[[BranchEndpoint], StarletteEndpoint]: ...


def branch_endpoint(
    endpoint: BranchEndpoint | None = None, /, *, table: str | None = None
) -> StarletteEndpoint | Callable[[BranchEndpoint], StarletteEndpoint]:
    """Make an endpoint of a function that does a branch operation.

    Returning is success: a dict is kept as the body, with `dtm_result` added; a `Response` is
    sent as it is. Raising `BranchFailed` is failure, `BranchOngoing` is "call again";
    anything else is logged with its gid and answered with 500, so that the coordinator calls
    again. A request without the coordinator's parameters is answered with 400.

    Args:
        table: the barrier table, if it is not DTM's.
    """
    if endpoint is None:
        return lambda function: _wrapped(function, table)
    return _wrapped(endpoint, table)


def query_prepared_route(source: Source, *, path: str = "/query-prepared", table: str | None = None) -> Route:
    """Make the check-back endpoint of a service that sends messages with `do_and_submit`.

    It tells the coordinator whether the local transaction has committed: by its barrier's row, which
    it waits for, a second at most, while the transaction is under way ("ongoing"), and whose place it takes if there
    is none.

        app = Starlette(routes=[query_prepared_route(engine)])

    Args:
        source: the database of those transactions: a SQLAlchemy engine, async or not, or a
            function that returns a context manager of a connection or session, async or not
            (such as a session factory, or `pool.acquire`); or the client of a Redis, async or not, for
            `redis_do_and_submit`.
        table: the barrier table, if it is not DTM's.
    """

    async def query_prepared(_: Request, branch: BranchContext) -> None:
        try:
            await check_back(source, branch)
        except InvalidRequestError as error:
            raise HTTPException(400, str(error)) from error

    return Route(path, _wrapped(query_prepared, table), methods=["GET"])


def workflow_route(workflows: AsyncWorkflows | Workflows, *, path: str = "/workflow/resume") -> Route:
    """Make the endpoint at which the coordinator asks a participant to go on with its workflows.

        app = Starlette(routes=[workflow_route(workflows)])

    It answers 200 when the workflow has ended, 425 when it is under way or asks for patience, and 500 when it
    is interrupted, or not known here by its name; the log says more. Only what the coordinator knows is run.
    """
    return Route(path, workflow_endpoint(workflows), methods=["GET", "POST"])


def workflow_endpoint(workflows: AsyncWorkflows | Workflows) -> StarletteEndpoint:
    """Make the function of `workflow_route` alone."""

    async def resume(request: Request) -> Response:
        body = await request.body()
        if iscoroutinefunction(workflows.resume):
            answer = await workflows.resume(request.query_params, body)
        else:
            answer = await run_in_threadpool(workflows.resume, request.query_params, body)
        return JSONResponse(answer.body, status_code=answer.status)

    return resume


def xa_route(
    path: str, source: Source, work: XaWork, *, coordinator: AnyCoordinator | None = None, table: str | None = None
) -> Route:
    """Make a participant's endpoint of XA: action, commit and rollback on one URL.

        async def take_money(connection: AsyncConnection, transfer: dict[str, Any]) -> None:
            await connection.execute(…)

        app = Starlette(routes=[xa_route("/withdraw", engine, take_money)])

    Args:
        source: as for `txcoord_sdk.xa.take_part`.
        work: takes the connection and the action's payload, decoded from JSON. It writes, and neither
            commits nor rolls back; `BranchFailed` refuses. What it returns is the answer's `result`.
            A coroutine function where the source is async, a plain one, run in a thread, where it blocks.
        coordinator: where to register, if not where the action says that it was called from.
        table: the barrier table, if it is not DTM's; it has to exist.
    """
    endpoint = XaEndpoint(source, work, coordinator=coordinator, table=table)
    return Route(path, _wrapped(endpoint.answer, table), methods=["POST"])


def _wrapped(endpoint: BranchEndpoint, table: str | None) -> StarletteEndpoint:
    @wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            branch = BranchContext.from_query(request.query_params, table=table)
        except InvalidRequestError as error:
            return JSONResponse({"message": str(error)}, status_code=400)
        try:
            if iscoroutinefunction(endpoint):
                value = await endpoint(request, branch)
            else:
                value = await run_in_threadpool(endpoint, request, branch)
            return value if isinstance(value, Response) else JSONResponse(success_body(value))
        except HTTPException:
            raise  # an answer that the endpoint chose; the application renders it
        except Exception as error:  # noqa: BLE001 (whatever it is, the coordinator gets an answer, the log the rest)
            answer = answer_to(error, request.query_params)
            return JSONResponse(answer.body, status_code=answer.status)

    return answer
