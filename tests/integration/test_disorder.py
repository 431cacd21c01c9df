"""Calls lost, doubled, late and out of order, at every point of every pattern: balances stay exact.

Of each scenario there is one transaction for each point and each fault, and one without a fault, which shows
that no point is forgotten. When one has ended, everything that was ever sent for it is delivered once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import product
from uuid import uuid4

import pytest

from conftest import MakeDatabase
from tests.e2e.harness import Process, coordinator
from tests.integration.disorder import (
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

EVERY_POINT = {
    "saga": ["01 action", "02 action"],
    "saga refused": ["01 action", "02 action", "01 compensate", "02 compensate"],
    "concurrent saga": ["01 action", "02 action"],
    "concurrent saga refused": ["01 action", "02 action", "01 compensate", "02 compensate"],
    "tcc": ["01 try", "02 try", "01 confirm", "02 confirm"],
    "tcc refused": ["01 try", "02 try", "01 cancel", "02 cancel"],
    "tcc abandoned": ["01 try", "02 try", "01 cancel", "02 cancel"],
    "xa": ["01 action", "02 action", "01 commit", "02 commit"],
    "xa refused": ["01 action", "02 action", "01 rollback"],
    "xa abandoned": ["01 action", "02 action", "01 rollback", "02 rollback"],
    "message": ["01 action", "02 action"],
    "message not submitted": ["00 msg", "01 action", "02 action"],
    "message not committed": ["00 msg"],
}
"""What each scenario has to call; the order is the coordinator's."""

STORES = ["sqlite", "mysql", "postgres", "redis"]
PREPARING = ["mysql", "postgres"]
"""Those that can prepare a transaction."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = coordinator(
        "memory://",
        tmp_path_factory.mktemp("coordinator"),
        TXCOORD_RETRY_INTERVAL_S="1",
        # So many calls are lost here that participants would be left alone for a while.
        TXCOORD_BREAKER_FAILURES="1000000",
    )
    try:
        process.start()
        yield process
    finally:
        process.close()


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
        Network(purses.app) as network,
        AsyncCoordinator(server.url, timeout=30) as client,
    ):
        yield World(coordinator=client, network=network, purses=purses)


@pytest.mark.parametrize(
    ("store", "name"),
    [(store, name) for name in SCENARIOS for store in (PREPARING if name.startswith("xa") else STORES)],
)
async def test_balances_are_exact_whatever_happens_to_a_call(world: World, store: str, name: str) -> None:
    scenario = SCENARIOS[name]
    points = [Point(*point.split()) for point in EVERY_POINT[name]]

    async def undisturbed() -> None:
        gid = f"g-{uuid4().hex}"
        status = await live_through(world, scenario, gid)
        assert sorted(world.network.points(gid)) == sorted(points), "there are other points than those listed"
        assert status is scenario.ends or world.network.broke(gid)

    async def disturbed(point: Point, fault: Fault) -> None:
        gid = f"g-{uuid4().hex}"
        world.network.fails(gid, point, fault)
        status = await live_through(world, scenario, gid)
        assert point in world.network.points(gid), f"{gid}: {point} was not called"
        assert status is scenario.ends_with(point, fault) or world.network.broke(gid), f"{gid}: {fault} at {point}"

    await asyncio.gather(undisturbed(), *(disturbed(point, fault) for point, fault in product(points, Fault)))


async def live_through(world: World, scenario: Scenario, gid: str) -> Status:
    """Run one transaction to its end, then everything that can still come; check the balances both times."""
    await world.purses.open(gid, scenario.opening)
    await scenario.initiate(world, gid)
    status = (await world.coordinator.wait(gid)).status
    assert await world.purses.balances(gid, ["out", "in"]) == scenario.expected(status), f"{gid} {status}"

    await world.network.deliver_late(gid)
    if scenario.comes_late:
        await scenario.comes_late(world, gid)
    assert await world.purses.balances(gid, ["out", "in"]) == scenario.expected(status), f"{gid} {status}, late calls"
    assert await world.purses.prepared(gid) == []
    return status
