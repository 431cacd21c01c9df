"""The example services: each on every database, and all together with a real coordinator."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from examples.bff import make_bff
from examples.demo.databases import Databases
from examples.demo.shop import Shop
from examples.order import make_order_service
from examples.service import open_engine
from examples.storage import make_storage_service
from localservers.processes import free_port

GID = "g1"


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):
        yield client


def operation_at(path: str) -> tuple[str, str]:
    """The pattern and the op that an endpoint is for."""
    match path.split("-"):
        case [*_, "compensate"]:
            return "saga", "compensate"
        case ["/order", "create", "try" | "confirm" | "cancel" as op] | ["/deduct", "try" | "confirm" | "cancel" as op]:
            return "tcc", op
        case _:
            return "saga", "action"


class Services:
    """Order and storage service in this process, called as a coordinator calls them."""

    def __init__(self, order: httpx.AsyncClient, storage: httpx.AsyncClient) -> None:
        self._clients = {"order": order, "storage": storage}

    async def call(
        self, path: str, *, gid: str = GID, branch_id: str = "01", product: int = 3, quantity: int = 20
    ) -> httpx.Response:
        trans_type, op = operation_at(path)
        query = {"gid": gid, "trans_type": trans_type, "branch_id": branch_id, "op": op}
        return await self.post(path, query, {"id": product, "quantity": quantity, "tx_id": gid})

    async def post(self, path: str, query: dict[str, str], body: dict[str, object]) -> httpx.Response:
        client = self._clients["order" if path.startswith("/order") else "storage"]
        return await client.post(path, params=query, json=body)

    async def passage(self, path: str, **facts: str | int) -> str:
        answer = await self.call(path, **facts)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
        assert answer.json()["dtm_result"] == "SUCCESS"
        return str(answer.json()["barrier"])

    async def stock(self, product: int) -> int:
        return (await self.goods(product))[0]

    async def goods(self, product: int) -> tuple[int, int]:
        """How many there are, and how many of them are frozen."""
        found = (await self._clients["storage"].get(f"/storages/{product}")).json()
        return found["inventory"], found["frozen_inventory"]

    async def order(self, gid: str = GID) -> dict[str, object]:
        answer = await self._clients["order"].get(f"/orders/{gid}")
        assert answer.status_code == 200, answer.text
        found: dict[str, object] = answer.json()
        return found


@pytest.fixture(params=["sqlite", "mysql", "postgres"])
async def services(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> AsyncIterator[Services]:
    async with AsyncExitStack() as stack:
        order = await stack.enter_async_context(client_of(make_order_service(make_database(request.param))))
        storage = await stack.enter_async_context(client_of(make_storage_service(make_database(request.param))))
        yield Services(order, storage)


# -- each service ------------------------------------------------------------------------


async def test_an_order_is_confirmed_by_the_last_step(services: Services) -> None:
    assert await services.passage("/order-create") == "run"
    assert (await services.order())["status"] == "confirming"

    assert await services.passage("/order-confirm", branch_id="03") == "run"

    order = await services.order()
    assert order == {
        "id": 1,
        "tx_id": GID,
        "status": "confirmed",
        "total": 1024,
        "products": [{"product_id": 3, "quantity": 20, "price": 99}],
    }


async def test_a_repeated_call_has_no_second_effect(services: Services) -> None:
    for path in ("/order-create", "/deduct"):
        assert [await services.passage(path), await services.passage(path)] == ["run", "duplicate"]

    assert await services.stock(3) == 88
    assert (await services.order())["products"] == [{"product_id": 3, "quantity": 20, "price": 99}]


async def test_compensations_undo_what_was_done_once(services: Services) -> None:
    for path in ("/order-create", "/deduct"):
        await services.passage(path)
        compensate = f"{path}-compensate"
        assert [await services.passage(compensate), await services.passage(compensate)] == ["run", "duplicate"]

    assert await services.stock(3) == 108
    assert (await services.order())["status"] == "not confirmed"


async def test_an_action_after_its_compensation_does_nothing(services: Services) -> None:
    for path in ("/order-create", "/deduct"):
        assert await services.passage(f"{path}-compensate") == "empty"
        assert await services.passage(path) == "suspended"

    assert await services.stock(3) == 108
    with pytest.raises(AssertionError, match="there is no order g1"):
        await services.order()


async def test_an_order_that_was_undone_cannot_be_confirmed_any_more(services: Services) -> None:
    await services.passage("/order-create")
    await services.passage("/order-create-compensate")

    answer = await services.call("/order-confirm", branch_id="03")

    assert answer.status_code == 409
    assert (await services.order())["status"] == "not confirmed"


@pytest.mark.parametrize(("product", "quantity"), [(8, 20), (3, 109), (99, 1)])
async def test_what_is_not_there_is_refused(services: Services, product: int, quantity: int) -> None:
    answer = await services.call("/deduct", product=product, quantity=quantity)

    assert answer.status_code == 409
    assert answer.json() == {
        "dtm_result": "FAILURE",
        "message": f"no stock: there are not {quantity} of product {product}",
    }
    assert (await services.stock(3), await services.stock(8)) == (108, 10)
    # Nothing of the refused action is left: its compensation has nothing to give back.
    assert await services.passage("/deduct-compensate", product=product, quantity=quantity) == "empty"
    assert (await services.stock(3), await services.stock(8)) == (108, 10)


async def test_customers_who_come_at_once_get_no_more_than_there_is(services: Services) -> None:
    answers = await asyncio.gather(*(services.call("/deduct", gid=f"g{number}", quantity=20) for number in range(12)))

    assert Counter(answer.status_code for answer in answers) == {200: 5, 409: 7}
    assert await services.stock(3) == 8


# -- the same in two phases --------------------------------------------------------------


async def test_goods_are_frozen_by_a_try_and_taken_by_its_confirm(services: Services) -> None:
    assert [await services.passage("/deduct-try") for _ in range(2)] == ["run", "duplicate"]
    assert await services.goods(3) == (108, 20)

    assert [await services.passage("/deduct-confirm") for _ in range(2)] == ["run", "duplicate"]
    assert await services.goods(3) == (88, 0)


async def test_frozen_goods_are_free_again_after_a_cancel(services: Services) -> None:
    await services.passage("/deduct-try")

    assert [await services.passage("/deduct-cancel") for _ in range(2)] == ["run", "duplicate"]
    assert await services.goods(3) == (108, 0)


async def test_a_try_makes_an_order_and_a_confirm_or_a_cancel_ends_it(services: Services) -> None:
    for gid, end, status in (("g1", "confirm", "confirmed"), ("g2", "cancel", "not confirmed")):
        assert await services.passage("/order-create-try", gid=gid) == "run"
        assert (await services.order(gid))["status"] == "confirming"

        assert [await services.passage(f"/order-create-{end}", gid=gid) for _ in range(2)] == ["run", "duplicate"]
        assert (await services.order(gid))["status"] == status


async def test_a_try_after_its_cancel_reserves_nothing(services: Services) -> None:
    for path in ("/order-create", "/deduct"):
        assert await services.passage(f"{path}-cancel") == "empty"
        assert await services.passage(f"{path}-try") == "suspended"

    assert await services.goods(3) == (108, 0)
    with pytest.raises(AssertionError, match="there is no order g1"):
        await services.order()


@pytest.mark.parametrize("path", ["/deduct", "/deduct-try"])
async def test_nobody_gets_what_is_frozen_for_another(services: Services, path: str) -> None:
    await services.passage("/deduct-try", quantity=100)

    refused = await services.call(path, gid="g2", quantity=9)
    assert (refused.status_code, refused.json()["message"]) == (409, "no stock: there are not 9 of product 3")
    assert await services.passage(path, gid="g3", quantity=8) == "run"

    await services.passage("/deduct-confirm", quantity=100)
    inventory, frozen = await services.goods(3)
    assert inventory - frozen == 0


async def test_what_a_try_refused_has_nothing_to_be_cancelled(services: Services) -> None:
    assert (await services.call("/deduct-try", quantity=109)).status_code == 409

    assert await services.passage("/deduct-cancel", quantity=109) == "empty"
    assert await services.goods(3) == (108, 0)


async def test_tries_that_come_at_once_freeze_no_more_than_there_is(services: Services) -> None:
    tries = (services.call("/deduct-try" if n % 2 else "/deduct", gid=f"g{n}", quantity=20) for n in range(12))
    answers = await asyncio.gather(*tries)

    assert Counter(answer.status_code for answer in answers) == {200: 5, 409: 7}
    inventory, frozen = await services.goods(3)
    assert inventory - frozen == 8


ENDPOINTS = [
    "/order-create",
    "/order-create-compensate",
    "/order-confirm",
    "/order-create-try",
    "/order-create-confirm",
    "/order-create-cancel",
    "/deduct",
    "/deduct-compensate",
    "/deduct-try",
    "/deduct-confirm",
    "/deduct-cancel",
]


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_call_that_is_no_branch_operation_is_refused(services: Services, path: str) -> None:
    answer = await services.post(path, {}, {"id": 3, "quantity": 20, "tx_id": GID})

    assert answer.status_code == 400
    assert "gid" in answer.json()["detail"]
    assert await services.stock(3) == 108


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgres"])
async def test_a_second_start_finds_what_is_there(kind: str, make_database: Callable[[str], str]) -> None:
    url = make_database(kind)
    query = {"gid": GID, "trans_type": "saga", "branch_id": "02", "op": "action"}
    async with client_of(make_storage_service(url)) as first:
        await first.post("/deduct", params=query, json={"id": 3, "quantity": 20, "tx_id": GID})

        async with client_of(make_storage_service(url)) as second:
            assert (await second.get("/storages/3")).json() == {"id": 3, "inventory": 88, "frozen_inventory": 0}
            assert (await second.get("/healthz")).status_code == 200


def test_a_database_that_is_not_known_is_named() -> None:
    with pytest.raises(SystemExit, match=r"'oracle'.*sqlite, mysql"):
        open_engine("oracle://host/database")


# -- all together ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    with Databases(folder) as databases, Shop(folder, databases) as shop:
        shop.start("coordinator", "order", "storage", "bff")
        yield shop


def test_orders_made_at_once_take_just_what_there_is(shop: Shop) -> None:
    before = shop.stock(3)

    def order(_: int) -> httpx.Response:
        return shop.ask("bff", "POST", "/orders", {"id": 3, "quantity": 20})

    with ThreadPoolExecutor(12) as customers:
        answers = list(customers.map(order, range(12)))

    by_code = {code: {answer.json()["gid"] for answer in answers if answer.status_code == code} for code in (200, 409)}
    statuses = {
        status: {gid for gid, its in shop.rows("order", "select tx_id, status from orders") if its == status}
        for status in ("confirmed", "not confirmed", "confirming")
    }
    assert len(by_code[200]) == before // 20
    assert len(by_code[409]) == 12 - before // 20
    assert shop.stock(3) == before % 20
    assert by_code[200] <= statuses["confirmed"]
    assert by_code[409] <= statuses["not confirmed"]
    assert statuses["confirming"] == set()


def test_the_bff_tells_why_an_order_failed_and_how_it_stands(shop: Shop) -> None:
    answer = shop.ask("bff", "POST", "/orders", {"id": 8, "quantity": 11})

    told = answer.json()
    assert answer.status_code == 409
    assert told["status"] == "failed"
    assert "no stock: there are not 11 of product 8" in told["reason"]
    state = shop.ask("bff", "GET", f"/orders/{told['gid']}").json()
    assert state["status"] == "failed"
    assert [(branch["branch_id"], branch["op"], branch["status"]) for branch in state["branches"]] == [
        ("01", "compensate", "succeed"),
        ("01", "action", "succeed"),
        ("02", "compensate", "succeed"),
        ("02", "action", "failed"),
        ("03", "compensate", "prepared"),
        ("03", "action", "prepared"),
    ]


def test_an_order_in_two_phases_is_confirmed_everywhere(shop: Shop) -> None:
    before = shop.stock(8)

    answer = shop.ask("bff", "POST", "/orders?pattern=tcc", {"id": 8, "quantity": 2})

    gid = answer.json()["gid"]
    assert (answer.status_code, answer.json()["status"]) == (200, "succeed")
    assert shop.rows("order", "select status from orders where tx_id = :gid", gid=gid) == [("confirmed",)]
    assert (shop.stock(8), shop.frozen(8)) == (before - 2, 0)
    branches = shop.ask("bff", "GET", f"/orders/{gid}").json()["branches"]
    assert [(branch["branch_id"], branch["op"], branch["status"]) for branch in branches] == [
        ("01", "cancel", "prepared"),
        ("01", "confirm", "succeed"),
        ("02", "cancel", "prepared"),
        ("02", "confirm", "succeed"),
    ]


def test_an_order_in_two_phases_that_lacks_stock_is_cancelled_everywhere(shop: Shop) -> None:
    before = shop.stock(8)

    answer = shop.ask("bff", "POST", "/orders?pattern=tcc", {"id": 8, "quantity": 11})

    told = answer.json()
    assert (answer.status_code, told["status"]) == (409, "failed")
    assert "no stock: there are not 11 of product 8" in told["reason"]
    assert shop.rows("order", "select status from orders where tx_id = :gid", gid=told["gid"]) == [("not confirmed",)]
    assert (shop.stock(8), shop.frozen(8)) == (before, 0)


def test_the_bff_answers_202_for_an_order_that_takes_longer_than_it_waits(shop: Shop) -> None:
    shop.ask("storage", "POST", "/demo/hold?path=/deduct")
    app = make_bff(
        coordinator=shop.url("coordinator"), order_url=shop.url("order"), storage_url=shop.url("storage"), wait_s=0.5
    )

    async def order() -> httpx.Response:
        async with client_of(app) as client:
            return await client.post("/orders", json={"id": 8, "quantity": 1})

    answer = asyncio.run(order())

    shop.ask("storage", "POST", "/demo/let-go")
    gid = answer.json()["gid"]
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/orders/{gid}"
    shop.coordinator.wait(gid)
    assert shop.ask("bff", "GET", f"/orders/{gid}").json()["status"] == "succeed"


@pytest.mark.parametrize("body", [{"id": 3}, {"id": 3, "quantity": 0}, {"id": "x", "quantity": 1}])
def test_an_order_that_makes_no_sense_opens_no_saga(shop: Shop, body: dict[str, object]) -> None:
    before = [found.gid for found in shop.coordinator.list()]

    assert shop.ask("bff", "POST", "/orders", body).status_code == 422
    assert shop.ask("bff", "POST", "/orders?pattern=xyz", {"id": 3, "quantity": 1}).status_code == 422

    assert [found.gid for found in shop.coordinator.list()] == before


def test_an_order_that_nobody_made_is_not_found(shop: Shop) -> None:
    for name in ("bff", "order"):
        assert shop.ask(name, "GET", "/orders/nobody").status_code == 404
    assert shop.ask("storage", "GET", "/storages/99").status_code == 404


@pytest.mark.parametrize("pattern", ["saga", "tcc"])
async def test_the_bff_gives_the_gid_when_no_coordinator_answers(pattern: str) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    app = make_bff(coordinator=nobody, order_url=nobody, storage_url=nobody)

    async with client_of(app) as client:
        answer = await client.post(f"/orders?pattern={pattern}", json={"id": 3, "quantity": 20})

    assert answer.status_code == 503
    assert answer.headers["location"] == f"/orders/{answer.json()['gid']}"


def test_a_service_says_in_its_log_what_the_barrier_left_out(shop: Shop) -> None:
    query = "gid=early&trans_type=saga&branch_id=02&op=compensate"
    shop.ask("storage", "POST", f"/deduct-compensate?{query}", {"id": 3, "quantity": 20, "tx_id": "early"})

    assert "saga early, branch 02, compensate: left out as an empty compensation" in shop.log("storage").read_text()
