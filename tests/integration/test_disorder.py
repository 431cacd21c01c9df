"""Calls lost, doubled, late and out of order, at every point of every pattern: balances stay exact.

Of each scenario there is one transaction for each point and each fault, and one without a fault, which shows
that no point is forgotten. When one has ended, there is money enough, and everything that was ever sent for it is
delivered once more.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from itertools import product
from uuid import uuid4

import httpx
import pytest

from conftest import MakeDatabase
from tests.e2e.harness import Process, coordinator
from tests.integration.disorder import (
    PAID_IN,
    SCENARIOS,
    Fault,
    Network,
    Point,
    Purses,
    RedisPurses,
    Scenario,
    SqlPurses,
    World,
)
from txcoord_sdk import AsyncCoordinator, Status


def _each(*ops: str) -> list[str]:
    """These operations of both branches."""
    return [f"{branch_id} {op}" for op in ops for branch_id in ("01", "02")]


EVERY_POINT = {
    "saga": ["- submit", "01 action", "02 action"],
    "saga refused": ["- submit", "01 action", "02 action", "01 compensate", "02 compensate"],
    "concurrent saga": ["- submit", "01 action", "02 action"],
    "concurrent saga refused": ["- submit", "01 action", "02 action", "01 compensate", "02 compensate"],
    "tcc": ["- prepare", *_each("registerBranch", "try", "confirm"), "- submit"],
    "tcc refused": ["- prepare", *_each("registerBranch", "try", "cancel"), "- abort"],
    "tcc abandoned": ["- prepare", *_each("registerBranch", "try", "cancel"), "- abort"],
    "xa": ["- prepare", *_each("registerBranch", "action", "commit"), "- submit"],
    "xa refused": ["- prepare", "01 registerBranch", "01 action", "02 action", "01 rollback", "- abort"],
    "xa abandoned": ["- prepare", *_each("registerBranch", "action", "rollback"), "- abort"],
    "workflow": ["- prepareWorkflow", *_each("action", "registerBranch:action"), "- submit"],
    "workflow refused": [
        "- prepareWorkflow",
        *_each("action", "registerBranch:action", "rollback", "registerBranch:rollback"),
        "- submit",
    ],
    "workflow broken off": ["- prepareWorkflow", "00 move", *_each("action", "registerBranch:action"), "- submit"],
    "workflow reserving": [
        "- prepareWorkflow",
        *_each("action", "registerBranch:action", "commit", "registerBranch:commit"),
        "- submit",
    ],
    "workflow reserving refused": [
        "- prepareWorkflow",
        *_each("action", "registerBranch:action", "rollback", "registerBranch:rollback"),
        "- submit",
    ],
    "xa workflow": [
        "- prepareWorkflow",
        *_each("registerBranch:business", "registerBranch:action", "registerBranch:commit"),
        "- submit",
    ],
    "xa workflow refused": [
        "- prepareWorkflow",
        "01 registerBranch:business",
        *_each("registerBranch:action", "registerBranch:rollback"),
        "- submit",
    ],
    "message": ["- prepare", "- submit", "01 action", "02 action"],
    "message not submitted": ["- prepare", "00 msg", "01 action", "02 action"],
    "message not committed": ["- prepare", "00 msg"],
}
"""What each scenario has to call; the order is the coordinator's."""

TLS = ssl.create_default_context()
"""It takes a while to make; nobody uses it here."""

AT_ONCE = 30
"""PostgreSQL is set up for 64 prepared transactions, and each of XA prepares two."""

STORES = ["sqlite", "mysql", "postgres", "redis"]
PREPARING = ["mysql", "postgres"]
"""Those that can prepare a transaction."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with coordinator(
        "memory://",
        tmp_path_factory.mktemp("coordinator"),
        TXCOORD_RETRY_INTERVAL_S="0.5",
        # So many calls are lost here that participants would be left alone for a while.
        TXCOORD_BREAKER_FAILURES="1000000",
    ) as process:
        yield process


@pytest.fixture
async def purses(request: pytest.FixtureRequest, make_database: MakeDatabase) -> AsyncIterator[Purses]:
    store: str = request.node.callspec.params["store"]
    url = make_database(store)
    purses = RedisPurses(url) if store == "redis" else SqlPurses(url)
    await purses.start()
    yield purses
    await purses.stop()


@pytest.fixture
async def world(server: Process, purses: Purses) -> AsyncIterator[World]:
    async with (
        Network(server.url) as network,
        httpx.AsyncClient(verify=TLS) as http,
    ):
        client = AsyncCoordinator(network.url, timeout=30, http=http)
        watch = AsyncCoordinator(server.url, timeout=30, http=http)
        yield World(network, client, watch, purses)
        assert network.incidents == []


@pytest.mark.parametrize(
    ("store", "name"),
    [(store, name) for name in SCENARIOS for store in (PREPARING if "xa" in name.split() else STORES)],
)
async def test_balances_are_exact_whatever_happens_to_a_call(world: World, store: str, name: str) -> None:
    scenario = SCENARIOS[name]
    points = [Point(*point.split()) for point in EVERY_POINT[name]]
    # What is lost on the way to the coordinator is the same whatever the balances are kept in, so one store is
    # enough; only a workflow of XA holds its database's transactions while it asks.
    one = PREPARING[0] if "xa" in name.split() else STORES[0]
    disturbs_requests = store == one or name.startswith("xa workflow")
    turns = asyncio.Semaphore(AT_ONCE)

    async def undisturbed() -> None:
        gid = f"g-{uuid4().hex}"
        async with turns:
            status = await live_through(world, scenario, gid)
        # Where an initiator is slow, a coordinator may ask how it stands; the rest is certain.
        called = [point for point in world.network.points(gid) if point in points or point.branch_id != "00"]
        assert sorted(called) == sorted(points), "there are other points than those listed"
        assert status is scenario.ends or world.network.broke(gid)

    async def disturbed(point: Point, fault: Fault) -> None:
        gid = f"g-{uuid4().hex}"
        world.network.fails(gid, point, fault)
        async with turns:
            status = await live_through(world, scenario, gid)
        assert point in world.network.points(gid), f"{gid}: {point} was not called"
        assert status is scenario.ends_with(point, fault) or world.network.broke(gid), f"{gid}: {fault} at {point}"

    async with asyncio.TaskGroup() as all_of_them:
        all_of_them.create_task(undisturbed())
        for point, fault in product(points, Fault):
            if disturbs_requests or not point.is_request:
                all_of_them.create_task(disturbed(point, fault))


async def live_through(world: World, scenario: Scenario, gid: str) -> Status:
    """Run one transaction to its end, then everything that can still come; check the balances both times."""
    await world.purses.open(gid, scenario.opening)
    with world.network.unquestioned(gid):
        await scenario.initiate(world, gid)
    status = (await world.watch.wait(gid)).status
    assert await world.purses.balances(gid, ["out", "in"]) == scenario.expected(status), f"{gid} {status}"

    await world.purses.pay_in(gid)
    await world.network.deliver_late(gid)
    if scenario.comes_late:
        await scenario.comes_late(world, gid)
    expected = scenario.expected(status, paid_in=PAID_IN)
    assert await world.purses.balances(gid, ["out", "in"]) == expected, f"{gid} {status}, late calls"
    assert (await world.watch.query(gid)).status is status, f"{gid} {status}, late calls"
    assert await world.purses.prepared(gid) == []
    return status
