"""Starlette endpoints as branches."""

from __future__ import annotations

import sqlite3
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from txcoord_sdk.barrier import create_table_sync
from txcoord_sdk.starlette import BranchContext, BranchFailed, BranchOngoing, branch_endpoint

QUERY = {"gid": "g1", "trans_type": "saga", "branch_id": "01", "op": "action"}


async def call(endpoint: Any, query: dict[str, str] = QUERY) -> httpx.Response:
    app = Starlette(routes=[Route("/deduct", endpoint, methods=["POST"])])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        return await client.post("/deduct", params=query, json={"id": 3})


async def test_a_coroutine_function_and_a_plain_one_do_a_branch_operation() -> None:
    @branch_endpoint
    async def deduct(request: Request, branch: BranchContext) -> dict[str, object]:
        return {"id": (await request.json())["id"], "gid": branch.gid, "op": branch.op}

    @branch_endpoint
    def blocking(request: Request, branch: BranchContext) -> None:
        assert branch.trans_type == "saga"

    answer = await call(deduct)
    assert (answer.status_code, answer.json()) == (200, {"dtm_result": "SUCCESS", "id": 3, "gid": "g1", "op": "action"})
    assert (await call(blocking)).json() == {"dtm_result": "SUCCESS"}


@pytest.mark.parametrize(
    ("raised", "status", "body"),
    [
        (BranchFailed("no stock"), 409, {"dtm_result": "FAILURE", "message": "no stock"}),
        (BranchOngoing("wait"), 425, {"dtm_result": "ONGOING", "message": "wait"}),
        (LookupError("FAILURE"), 500, {"message": "the endpoint broke off; its log has the traceback"}),
    ],
)
async def test_what_it_raises_is_the_answer(raised: Exception, status: int, body: dict[str, str]) -> None:
    @branch_endpoint
    async def deduct(request: Request, branch: BranchContext) -> None:
        raise raised

    answer = await call(deduct)
    assert (answer.status_code, answer.json()) == (status, body)


async def test_answers_that_the_endpoint_chose_stay() -> None:
    @branch_endpoint
    async def deduct(request: Request, branch: BranchContext) -> PlainTextResponse:
        return PlainTextResponse("fine", 202)

    @branch_endpoint
    async def refuse(request: Request, branch: BranchContext) -> None:
        raise HTTPException(409, "no such storage")

    assert ((await call(deduct)).status_code, (await call(deduct)).text) == (202, "fine")
    assert ((await call(refuse)).status_code, (await call(refuse)).text) == (409, "no such storage")


async def test_what_is_not_a_branch_call_is_told_what_it_lacks() -> None:
    @branch_endpoint
    async def deduct(request: Request, branch: BranchContext) -> None:
        raise AssertionError("must not be called")

    answer = await call(deduct, {"gid": "g1"})
    assert answer.status_code == 400
    assert "the query lacks branch_id, op, trans_type" in answer.json()["message"]


async def test_another_table_may_be_named() -> None:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    create_table_sync(connection, table="barrier_of_shop")

    @branch_endpoint(table="barrier_of_shop")
    def deduct(request: Request, branch: BranchContext) -> dict[str, str]:
        return {"passage": branch.barrier.call_sync(connection, lambda _: None, commit=True)}

    assert (await call(deduct)).json() == {"dtm_result": "SUCCESS", "passage": "run"}
    assert (await call(deduct)).json() == {"dtm_result": "SUCCESS", "passage": "duplicate"}
