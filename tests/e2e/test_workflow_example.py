"""The checkout of the examples: a workflow over the shop's services, on every database, with a real coordinator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack

import httpx
import pytest

from examples.checkout import PURSES, make_checkout_service
from examples.order import PRICE, make_order_service
from examples.storage import FIRST_STOCK, make_storage_service
from localservers.processes import free_port
from tests.e2e.harness import Process, coordinator
from tests.integration.serving import serving

PRODUCT = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with coordinator("memory://", tmp_path_factory.mktemp("coordinator")) as process:
        yield process


class Shop:
    def __init__(self, **clients: httpx.AsyncClient) -> None:
        self._clients = clients

    async def check_out(self, gid: str, *, customer: str = "ada", product: int = PRODUCT) -> httpx.Response:
        purchase = {"customer": customer, "id": product, "quantity": 20}
        return await self._clients["checkout"].put(f"/checkouts/{gid}", json=purchase)

    async def get(self, service: str, path: str) -> dict[str, object]:
        found: dict[str, object] = (await self._clients[service].get(path)).json()
        return found

    async def standing(self, gid: str, customer: str = "ada") -> tuple[object, ...]:
        """The order's status, the goods that are there and that are frozen, and the money."""
        order = await self.get("order", f"/orders/{gid}")
        goods = await self.get("storage", f"/storages/{PRODUCT}")
        purse = await self.get("checkout", f"/purses/{customer}")
        return order["status"], goods["inventory"], goods["frozen_inventory"], purse["balance"]


@pytest.fixture(params=["sqlite", "mysql", "postgres"])
async def shop(
    request: pytest.FixtureRequest, make_database: Callable[[str], str], server: Process
) -> AsyncIterator[Shop]:
    kind = request.param
    async with AsyncExitStack() as stack:
        urls = {
            "order": await stack.enter_async_context(serving(make_order_service(make_database(kind)), lifespan="on")),
            "storage": await stack.enter_async_context(
                serving(make_storage_service(make_database(kind)), lifespan="on")
            ),
        }
        port = free_port()
        app = make_checkout_service(
            make_database(kind),
            coordinator=server.url,
            own_url=f"http://127.0.0.1:{port}",
            order_url=urls["order"],
            storage_url=urls["storage"],
        )
        urls["checkout"] = await stack.enter_async_context(serving(app, port, lifespan="on"))
        clients = {
            name: await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20))
            for name, url in urls.items()
        }
        yield Shop(**clients)


async def test_a_purchase_happens_everywhere_and_once(shop: Shop, request: pytest.FixtureRequest) -> None:
    gid = f"buy-{request.node.callspec.id}"
    price = 20 * PRICE
    receipt = {"gid": gid, "paid": price, "left": PURSES["ada"] - price}

    answers = [await shop.check_out(gid), await shop.check_out(gid)]

    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, receipt)] * 2
    assert await shop.standing(gid) == ("confirmed", FIRST_STOCK[PRODUCT] - 20, 0, PURSES["ada"] - price)


async def test_who_cannot_pay_gets_nothing_and_owes_nothing(shop: Shop, request: pytest.FixtureRequest) -> None:
    gid = f"poor-{request.node.callspec.id}"

    answer = await shop.check_out(gid, customer="bob")

    assert answer.status_code == 409
    assert f"bob has not got {20 * PRICE}" in answer.json()["reason"]
    assert await shop.standing(gid, "bob") == ("not confirmed", FIRST_STOCK[PRODUCT], 0, PURSES["bob"])


async def test_who_wants_what_is_not_there_pays_nothing(shop: Shop, request: pytest.FixtureRequest) -> None:
    gid = f"scarce-{request.node.callspec.id}"

    answer = await shop.check_out(gid, product=8)

    assert answer.status_code == 409
    assert "no stock: there are not 20 of product 8" in answer.json()["reason"]
    assert await shop.standing(gid) == ("not confirmed", FIRST_STOCK[PRODUCT], 0, PURSES["ada"])
