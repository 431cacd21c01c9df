"""The database goes away, comes back, hangs, and loses its answers: what is promised then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from localservers.servers import Server
from tests.sagas import NOON_US, make_saga
from tests.store.proxies import proxied
from txcoord.errors import StoreUnavailableError
from txcoord.model import Status
from txcoord.store.base import Applied, Create, ListQuery, Save, Store
from txcoord.store.url import open_store, upgrade

pytestmark = pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> Server:
    """A server with our tables that may be stopped and killed."""
    server: Server = request.getfixturevalue({"mysql": "fragile_mariadb", "postgres": "fragile_postgres"}[kind])
    upgrade(server.url)
    return server


@pytest.fixture
async def store(server: Server) -> AsyncIterator[Store]:
    store = open_store(server.url, timeout_s=5)
    await store.open()
    yield store
    await store.close()


async def _everything_works(store: Store, node_id: int, gid: str) -> None:
    assert await store.apply(node_id, [Create(tx=make_saga(gid=gid), token=1)]) == [Applied.DONE]
    assert await store.renew(node_id, lease_s=600)
    assert await store.find(gid) is not None
    assert await store.list_transactions(ListQuery(limit=1))
    await store.ping()


async def test_a_database_that_is_away_is_reported_and_used_again_when_it_is_back(store: Store, server: Server) -> None:
    node = await store.join(name="a", lease_s=600)
    await _everything_works(store, node, "before")
    server.kill()

    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await store.apply(node, [Create(tx=make_saga(gid="during"), token=2)])
        with pytest.raises(StoreUnavailableError):
            await store.find("before")
        with pytest.raises(StoreUnavailableError):
            await store.renew(node, lease_s=600)
        with pytest.raises(StoreUnavailableError):
            await store.take_over_due(node, now_us=NOON_US, limit=1)
    server.start()

    await _everything_works(store, node, "after")
    assert await store.find("before") is not None


async def test_connections_that_died_while_nobody_used_them_are_not_noticed(store: Store, server: Server) -> None:
    node = await store.join(name="a", lease_s=600)
    await asyncio.gather(*(store.find("x") for _ in range(8)), _everything_works(store, node, "before a restart"))
    server.restart()

    await asyncio.gather(*(store.find("x") for _ in range(8)), _everything_works(store, node, "after a restart"))


async def test_a_database_that_hangs_is_given_up_in_time(server: Server) -> None:
    store = open_store(server.url, timeout_s=0.5)
    await store.open()
    node = await store.join(name="a", lease_s=600)
    await _everything_works(store, node, "before it hangs")
    server.pause()

    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match=r"did not answer in 0\.5 s"):
            await store.apply(node, [Create(tx=make_saga(gid="hanging"), token=3)])
        with pytest.raises(StoreUnavailableError):
            await store.find("x")
    server.resume()

    patient = open_store(server.url)
    await patient.open()
    # The batch that nobody waited for may have been written: applying it again tells, and does no harm.
    assert await patient.apply(node, [Create(tx=make_saga(gid="hanging"), token=3)]) == [Applied.DONE]
    await patient.close()
    await _everything_works(store, node, "after it hung")
    await store.close()


async def test_a_batch_whose_answer_was_lost_is_applied_again_without_harm(server: Server) -> None:
    async with proxied(server.url) as (proxy, url):
        store = open_store(url, timeout_s=5)
        await store.open()
        node = await store.join(name="a", lease_s=600)
        gid = "answered late"
        await store.apply(node, [Create(tx=make_saga(gid=gid), token=4)])
        batch = [
            Create(tx=make_saga(gid="new"), token=5),
            Save(tx=make_saga(gid=gid, status=Status.ABORTING), epoch=1),
        ]
        proxy.answers_to_lose = 1

        assert await store.apply(node, batch) == [Applied.DONE, Applied.DONE]

        assert proxy.lost == 1
        tx = await store.find(gid)
        assert tx is not None
        assert (tx.tx.status, tx.epoch) == (Status.ABORTING, 1)
        await store.close()


async def test_connections_that_were_cut_are_replaced(server: Server) -> None:
    async with proxied(server.url) as (proxy, url):
        store = open_store(url, timeout_s=5)
        await store.open()
        node = await store.join(name="a", lease_s=600)
        await _everything_works(store, node, "before the cut")
        for number in range(3):
            proxy.cut_all()
            await _everything_works(store, node, f"after cut {number}")
        await store.close()


async def test_a_batch_that_the_server_runs_late_undoes_nothing(server: Server) -> None:
    async with proxied(server.url) as (proxy, url):
        store = open_store(url, timeout_s=2)
        await store.open()
        node = await store.join(name="a", lease_s=600)
        tx = make_saga(gid="run late")
        await store.apply(node, [Create(tx=tx, token=6)])
        turned = Save(tx=tx.replace(status=Status.ABORTING, updated_us=NOON_US + 1), epoch=1)
        ended = Save(tx=tx.replace(status=Status.FAILED, updated_us=NOON_US + 2, finished_us=NOON_US + 2), epoch=1)
        proxy.requests_to_hold = 1

        with pytest.raises(StoreUnavailableError, match="did not answer"):
            await store.apply(node, [turned])
        assert await store.apply(node, [turned]) == [Applied.DONE]
        assert await store.apply(node, [ended]) == [Applied.DONE]
        before = await store.find("run late")
        proxy.let_go.set()
        await asyncio.wait_for(proxy.ran_late.wait(), timeout=30)

        assert await store.find("run late") == before
        assert before is not None
        assert (before.tx.status, before.owner) == (Status.FAILED, None)
        await store.close()
