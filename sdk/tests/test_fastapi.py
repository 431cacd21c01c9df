"""FastAPI endpoints as branches: what the coordinator gets to see, and what the dependencies do."""

# Annotations stay as they are: FastAPI reads them, and here they name what only the test knows.
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from txcoord_sdk.barrier import create_table
from txcoord_sdk.fastapi import Branch, BranchContext, BranchFailed, BranchOngoing, BranchRoute, branch_in

QUERY = {"gid": "g1", "trans_type": "saga", "branch_id": "01", "op": "action"}
SUCCESS = {"dtm_result": "SUCCESS"}


class Order(BaseModel):
    id: int
    quantity: int = 1


class OutOfStock(Exception):
    pass


async def call(app: FastAPI, path: str, *, json: Any = None, query: dict[str, str] | None = None) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        return await client.post(path, params=QUERY if query is None else query, json=json)


@pytest.fixture
def router() -> APIRouter:
    return APIRouter(route_class=BranchRoute)


@pytest.fixture
def app() -> FastAPI:
    return FastAPI()


def serve(app: FastAPI, router: APIRouter) -> FastAPI:
    """Give the application the routes that the test has put on the router by now."""
    app.include_router(router)
    return app


# -- success ---------------------------------------------------------------------------------

RETURNED = [
    pytest.param(None, SUCCESS, id="nothing"),
    pytest.param({"left": 88}, {**SUCCESS, "left": 88}, id="dict"),
    pytest.param(Order(id=3, quantity=20), {**SUCCESS, "id": 3, "quantity": 20}, id="model"),
    pytest.param({"dtm_result": "ONGOING"}, {"dtm_result": "ONGOING"}, id="its own result"),
    pytest.param([1, 2], {**SUCCESS, "result": [1, 2]}, id="list"),
    pytest.param("ünï", {**SUCCESS, "result": "ünï"}, id="text"),
    pytest.param(0, {**SUCCESS, "result": 0}, id="number"),
    pytest.param(JSONResponse({"left": 88}, 202), {**SUCCESS, "left": 88}, id="response"),
    pytest.param(Response(status_code=204), SUCCESS, id="response without content"),
]


@pytest.mark.parametrize(("returned", "body"), RETURNED)
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_returning_is_success(
    app: FastAPI, router: APIRouter, returned: object, body: dict[str, object], is_async: bool
) -> None:
    async def endpoint(branch: Branch) -> Any:
        return returned

    def blocking_endpoint(branch: Branch) -> Any:
        return returned

    router.post("/deduct")(endpoint if is_async else blocking_endpoint)
    answer = await call(serve(app, router), "/deduct")

    assert (answer.status_code, answer.json()) == (200, body)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_success_is_always_200_because_dtm_takes_other_codes_for_errors(
    app: FastAPI, router: APIRouter, status: int
) -> None:
    @router.post("/deduct", status_code=status)
    async def deduct() -> None:
        pass

    answer = await call(serve(app, router), "/deduct")

    assert (answer.status_code, answer.json()) == (200, SUCCESS)


async def test_a_response_model_shapes_the_body_and_headers_stay(app: FastAPI, router: APIRouter) -> None:
    @router.post("/deduct", response_model=Order)
    async def deduct(response: Response) -> dict[str, object]:
        response.headers["x-shop"] = "berlin"
        response.set_cookie("a", "b")
        return {"id": 3, "secret": 4}

    answer = await call(serve(app, router), "/deduct")

    assert answer.json() == {**SUCCESS, "id": 3, "quantity": 1}
    assert (answer.headers["x-shop"], answer.cookies["a"]) == ("berlin", "b")


async def test_a_text_is_left_as_it_is(app: FastAPI, router: APIRouter) -> None:
    router.post("/deduct")(lambda: PlainTextResponse("fine", 202))
    router.post("/stream")(lambda: StreamingResponse(iter([b"fi", b"ne"])))
    serve(app, router)

    for path in ("/deduct", "/stream"):
        answer = await call(app, path)
        assert (answer.status_code, answer.text) == (200, "fine")


# -- failure, ongoing, errors ----------------------------------------------------------------


async def test_failure_and_ongoing_are_raised(app: FastAPI, router: APIRouter) -> None:
    @router.post("/deduct")
    async def deduct() -> None:
        raise BranchFailed("no stock")

    @router.post("/ship")
    def ship() -> None:
        raise BranchOngoing("under way")

    serve(app, router)
    failed, ongoing = await call(app, "/deduct"), await call(app, "/ship")

    assert (failed.status_code, failed.json()) == (409, {"dtm_result": "FAILURE", "message": "no stock"})
    assert (ongoing.status_code, ongoing.json()) == (425, {"dtm_result": "ONGOING", "message": "under way"})


async def test_any_other_error_is_500_and_in_the_log(
    app: FastAPI, router: APIRouter, caplog: pytest.LogCaptureFixture
) -> None:
    @router.post("/deduct")
    async def deduct() -> None:
        raise OutOfStock("FAILURE of the shelf")

    answer = await call(serve(app, router), "/deduct", query={**QUERY, "gid": "g1\nforged line"})

    # DTM would take the word anywhere in the text for a definite failure.
    assert (answer.status_code, list(answer.json())) == (500, ["message"])
    assert "FAILURE" not in answer.text
    [record] = [record for record in caplog.records if record.name == "txcoord_sdk.branch"]
    assert record.getMessage() == "branch call failed: gid=g1forged line trans_type=saga branch_id=01 op=action"
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], OutOfStock)


async def test_a_dependency_may_raise_the_answer(app: FastAPI, router: APIRouter) -> None:
    def opening_hours() -> None:
        raise BranchFailed("closed")

    router.post("/deduct", dependencies=[Depends(opening_hours)])(lambda: None)

    assert (await call(serve(app, router), "/deduct")).status_code == 409


async def test_answers_that_the_application_chose_stay(app: FastAPI, router: APIRouter) -> None:
    @router.post("/deduct")
    async def deduct(order: Order) -> None:
        raise HTTPException(409, "no such storage") if order.id == 1 else OutOfStock

    @app.exception_handler(OutOfStock)
    async def out_of_stock(request: object, error: OutOfStock) -> JSONResponse:
        return JSONResponse({"dtm_result": "FAILURE"}, 409)

    serve(app, router)

    assert (await call(app, "/deduct", json={"id": 1})).json() == {"detail": "no such storage"}
    assert (await call(app, "/deduct", json={"id": 2})).json() == {"dtm_result": "FAILURE"}
    assert (await call(app, "/deduct", json={"id": "?"})).status_code == 422
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        assert (await client.get("/deduct")).status_code == 405


# -- the context -----------------------------------------------------------------------------


async def test_the_context_is_of_the_request(app: FastAPI, router: APIRouter) -> None:
    def nested(branch: Branch) -> BranchContext:
        return branch

    @router.post("/deduct")
    async def deduct(
        order: Order, branch: Branch, same: Annotated[BranchContext, Depends(nested)]
    ) -> dict[str, object]:
        assert same is branch
        return {
            "order": order.id,
            "context": [branch.trans_type, branch.gid, branch.branch_id, branch.op],
            "barrier": repr(branch.barrier),
        }

    serve(app, router)
    query = {"gid": "g;1\r\n", "trans_type": "saga", "branch_id": "02", "op": "compensate"}
    answer = (await call(app, "/deduct", json={"id": 3}, query=query)).json()

    assert answer == {
        **SUCCESS,
        "order": 3,
        "context": ["saga", "g1", "02", "compensate"],
        "barrier": "BranchBarrier('saga', 'g1', '02', 'compensate')",
    }


async def test_the_coordinators_parameters_come_after_those_of_the_url(app: FastAPI, router: APIRouter) -> None:
    router.post("/deduct")(gid_of)
    serve(app, router)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        url = "/deduct?gid=of-the-url&branch_id=01&gid=g1&op=action&trans_type=saga"
        assert (await client.post(url)).json() == {**SUCCESS, "gid": "g1"}


async def gid_of(branch: Branch) -> dict[str, str]:
    return {"gid": branch.gid}


@pytest.mark.parametrize("route_class", [BranchRoute, None])
@pytest.mark.parametrize("missing", QUERY)
async def test_what_is_not_a_branch_call_is_told_what_it_lacks(
    app: FastAPI, missing: str, route_class: type[BranchRoute] | None
) -> None:
    router = APIRouter(route_class=route_class) if route_class else APIRouter()
    router.post("/deduct")(gid_of)
    answer = await call(serve(app, router), "/deduct", query={**QUERY, missing: ";"})

    assert answer.status_code == 400
    assert answer.json()["detail"] == (
        f"not the call of a branch: the query lacks {missing}; a coordinator adds branch_id, gid, op, trans_type"
    )


async def test_a_gid_that_the_table_cannot_hold_is_refused(app: FastAPI, router: APIRouter) -> None:
    router.post("/deduct")(gid_of)
    answer = await call(serve(app, router), "/deduct", query={**QUERY, "gid": "x" * 129})

    assert answer.status_code == 400
    assert "gid has 129 characters" in answer.json()["detail"]


# -- with a database -------------------------------------------------------------------------


@pytest.fixture
async def engine(sqlite_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(sqlite_url.replace("sqlite:", "sqlite+aiosqlite:"))
    await create_table(engine)
    await create_table(engine, table="barrier_of_shop")
    async with engine.begin() as connection:
        await connection.execute(text("create table storages (id int primary key, inventory int)"))
        await connection.execute(text("insert into storages values (3, 108)"))
    yield engine
    await engine.dispose()


async def inventory(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return (await connection.execute(text("select inventory from storages"))).scalar_one()


async def deduct_20(connection: AsyncConnection) -> None:
    await connection.execute(text("update storages set inventory = inventory - 20 where id = 3"))


async def test_a_transaction_opened_by_a_dependency_is_committed_before_the_answer(
    app: FastAPI, router: APIRouter, engine: AsyncEngine
) -> None:
    happened: list[str] = []

    async def transaction() -> AsyncIterator[AsyncConnection]:
        async with engine.begin() as connection:
            yield connection
        happened.append("commit")

    @router.post("/deduct")
    async def deduct(branch: Branch, connection: Annotated[AsyncConnection, Depends(transaction)]) -> dict[str, str]:
        return {"passage": await branch.barrier.call(connection, deduct_20)}

    serve(app, router)
    first = await call_noting(app, "/deduct", happened)
    again = await call_noting(app, "/deduct", happened)

    assert happened == ["commit", "http.response.start", "http.response.body"] * 2
    assert (first["passage"], again["passage"]) == ("run", "duplicate")
    assert await inventory(engine) == 88


async def call_noting(app: FastAPI, path: str, happened: list[str]) -> dict[str, str]:
    async def noting(scope: Any, receive: Any, send: Any) -> None:
        async def noted(message: Any) -> None:
            happened.append(message["type"])
            await send(message)

        await app(scope, receive, noted)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(noting), base_url="http://shop") as client:
        body: dict[str, str] = (await client.post(path, params=QUERY)).json()
        return body


@pytest.mark.parametrize(("error", "status"), [(BranchFailed, 409), (BranchOngoing, 425), (OutOfStock, 500)])
async def test_a_transaction_opened_by_a_dependency_is_rolled_back_when_the_endpoint_raises(
    app: FastAPI, router: APIRouter, engine: AsyncEngine, error: type[Exception], status: int
) -> None:
    async def transaction() -> AsyncIterator[AsyncConnection]:
        async with engine.begin() as connection:
            yield connection

    @router.post("/deduct")
    async def deduct(branch: Branch, connection: Annotated[AsyncConnection, Depends(transaction)]) -> None:
        await branch.barrier.call(connection, deduct_20)
        raise error

    assert (await call(serve(app, router), "/deduct")).status_code == status
    assert await inventory(engine) == 108


async def test_a_commit_that_fails_after_the_endpoint_is_not_success(app: FastAPI, router: APIRouter) -> None:
    async def transaction() -> AsyncIterator[None]:
        yield
        raise OutOfStock("the commit failed")

    router.post("/deduct", dependencies=[Depends(transaction)])(lambda: None)

    assert (await call(serve(app, router), "/deduct")).status_code == 500


async def test_another_table_may_be_used(app: FastAPI, router: APIRouter, engine: AsyncEngine) -> None:
    @router.post("/deduct")
    async def deduct(branch: Annotated[BranchContext, Depends(branch_in("barrier_of_shop"))]) -> None:
        async with engine.begin() as connection:
            await branch.barrier.call(connection, deduct_20)

    await call(serve(app, router), "/deduct")
    assert (await call(app, "/deduct", query={**QUERY, "gid": ""})).status_code == 400

    async with engine.connect() as connection:
        assert (await connection.execute(text("select gid from barrier_of_shop"))).all() == [("g1",)]
        assert (await connection.execute(text("select gid from barrier"))).all() == []


async def test_background_tasks_run_after_the_answer(app: FastAPI, router: APIRouter) -> None:
    happened: list[str] = []

    @router.post("/deduct")
    async def deduct(background: BackgroundTasks) -> None:
        background.add_task(happened.append, "background")

    await call_noting(serve(app, router), "/deduct", happened)

    assert happened == ["http.response.start", "http.response.body", "background"]
