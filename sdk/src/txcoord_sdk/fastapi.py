"""Branch endpoints in FastAPI.

    router = APIRouter(route_class=BranchRoute)

    @router.post("/deduct")
    async def deduct(order: Order, branch: Branch) -> None:
        async with engine.begin() as connection:
            await branch.barrier.call(connection, partial(take_from_stock, order))

Endpoints may be coroutine functions or plain ones, and use any dependency.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import Message, Receive, Scope, Send

from txcoord.errors import InvalidRequestError
from txcoord_sdk._check_back import Source, check_back
from txcoord_sdk._xa_endpoint import AnyCoordinator, XaEndpoint, XaWork
from txcoord_sdk.branch import BranchContext, BranchFailed, BranchOngoing, answer_to, success_body
from txcoord_sdk.starlette import workflow_endpoint

if TYPE_CHECKING:
    # A participant without workflows need not load them.
    from txcoord_sdk.workflow import AsyncWorkflows, Workflows

__all__ = [
    "Branch",
    "BranchContext",
    "BranchFailed",
    "BranchOngoing",
    "BranchRoute",
    "branch_context",
    "branch_in",
    "query_prepared_router",
    "workflow_router",
    "xa_router",
]

_AFTERWARDS = "txcoord_sdk.background"


async def branch_context(request: Request) -> BranchContext:
    """Depend on it for the branch operation of the request, with its barrier; see `Branch`.

    A request without the coordinator's parameters is answered with 400.
    """
    return _context(request, None)


def branch_in(table: str) -> Callable[[Request], Awaitable[BranchContext]]:
    """Make a `branch_context` whose barriers use another table than DTM's.

    ShopBranch = Annotated[BranchContext, Depends(branch_in("shop.barrier"))]
    """

    async def context(request: Request) -> BranchContext:
        return _context(request, table)

    return context


Branch = Annotated[BranchContext, Depends(branch_context)]
"""Type of an endpoint's parameter that takes the branch operation of the request."""


class BranchRoute(APIRoute):
    """Route class that answers as the coordinator understands; `APIRouter(route_class=BranchRoute)`.

    Returning is success: status 200, whatever the route's own 2xx; a dict or a model is kept
    as the body, with `dtm_result` added. Raising `BranchFailed` is failure, `BranchOngoing`
    is "call again". An exception that the application has no handler for is logged with its
    gid and answered with 500, so that the coordinator calls again.

    The answer is sent when the dependencies have ended, those with `yield` too: what they do
    after it, such as a commit, counts, and what they see is the exception, not the answer.
    Background tasks run after that.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            response = await handler(request)
            request.scope[_AFTERWARDS], response.background = response.background, None
            _say_success(response)
            return response

        return handle

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []

        async def hold(message: Message) -> None:
            held.append(message)

        try:
            # Not further in: there, an exception turned into an answer would let dependencies
            # with `yield` commit. And nothing sent yet: they end only after the response.
            await super().handle(scope, receive, hold)
        except AnyHTTPException:
            raise  # not of the endpoint (those are rendered by now): the method is not allowed
        except Exception as error:  # noqa: BLE001 (whatever it is, the coordinator gets an answer, the log the rest)
            answer = answer_to(error, Request(scope).query_params)
            await JSONResponse(answer.body, status_code=answer.status)(scope, receive, send)
            return
        for message in held:
            await send(message)
        if afterwards := scope.get(_AFTERWARDS):
            await afterwards()


def query_prepared_router(source: Source, *, path: str = "/query-prepared", table: str | None = None) -> APIRouter:
    """Make the check-back endpoint of a service; `app.include_router(query_prepared_router(engine))`.

    The arguments, and what it does, are those of `txcoord_sdk.starlette.query_prepared_route`.
    """
    router = APIRouter(route_class=BranchRoute)
    context = branch_context if table is None else branch_in(table)

    @router.get(path)
    async def query_prepared(branch: BranchContext = Depends(context)) -> None:  # noqa: B008 (as FastAPI takes it)
        try:
            await check_back(source, branch)
        except InvalidRequestError as error:
            raise HTTPException(400, str(error)) from error

    return router


def workflow_router(workflows: AsyncWorkflows | Workflows, *, path: str = "/workflow/resume") -> APIRouter:
    """Make the resume endpoint of a participant; `app.include_router(workflow_router(workflows))`.

    What it does is what `txcoord_sdk.starlette.workflow_route` says.
    """
    router = APIRouter()
    router.add_route(path, workflow_endpoint(workflows), methods=["GET", "POST"], include_in_schema=False)
    return router


def xa_router(
    path: str, source: Source, work: XaWork, *, coordinator: AnyCoordinator | None = None, table: str | None = None
) -> APIRouter:
    """Make a participant's endpoint of XA; `app.include_router(xa_router("/withdraw", engine, take_money))`.

    The arguments, and what it does, are those of `txcoord_sdk.starlette.xa_route`. For a payload that FastAPI
    validates, or dependencies, write an endpoint of your own with `txcoord_sdk.xa.take_part`.
    """
    router = APIRouter(route_class=BranchRoute)
    endpoint = XaEndpoint(source, work, coordinator=coordinator, table=table)
    context = branch_context if table is None else branch_in(table)

    @router.post(path)
    async def xa_branch(request: Request, branch: BranchContext = Depends(context)) -> Any:  # noqa: B008 (as FastAPI takes it)
        return await endpoint.answer(request, branch)

    return router


def _context(request: Request, table: str | None) -> BranchContext:
    try:
        return BranchContext.from_query(request.query_params, table=table)
    except InvalidRequestError as error:
        raise HTTPException(400, str(error)) from error


def _say_success(response: Response) -> None:
    body = getattr(response, "body", None)
    if body is None or not 200 <= response.status_code < 300:
        return  # streamed, or an answer that the endpoint chose
    # DTM takes 201 or 204 for an error, and would call again.
    response.status_code = 200
    if body and not response.headers.get("content-type", "").startswith("application/json"):
        return
    value = json.loads(bytes(body)) if body else None
    response.body = json.dumps(success_body(value), ensure_ascii=False, separators=(",", ":")).encode()
    response.headers["content-type"] = "application/json"
    response.headers["content-length"] = str(len(response.body))
