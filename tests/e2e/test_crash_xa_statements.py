"""The coordinator is killed at each statement that its store gets for an XA transaction: that ends all the same.

What goes to the database passes a proxy. Of all that is about one transaction, from its preparation to its end, the
first request is held back and the coordinator killed, with the next transaction the second, and so on: before the
request reaches the database, or when the database is through with it and nobody has heard so. The coordinator is
started again, and initiator and participants go on with the retries that the SDK has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import MakeDatabase
from tests.e2e.forked import ForkedProcess
from tests.e2e.harness import Process, coordinator
from tests.integration.banks import BALANCE, Banks
from tests.store.proxies import Proxy, proxied
from txcoord.store.base import Store
from txcoord.store.url import open_store, upgrade
from txcoord_sdk import AsyncCoordinator, Status, new_gid

pytestmark = pytest.mark.slow

MOST_REQUESTS = 40
SETTLE_S = 60


@pytest.fixture(params=["mysql", "postgres"])
def store_url(request: pytest.FixtureRequest, make_database: MakeDatabase) -> str:
    url = make_database(request.param)
    upgrade(url)
    return url


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """What is in the database, whatever becomes of the proxy and the coordinator."""
    made = open_store(store_url)
    await made.open()
    yield made
    await made.close()


class Fate:
    """A coordinator, its way to the database, and who kills it there."""

    def __init__(self, process: Process, way: Proxy) -> None:
        self._coordinator = process
        self._way = way
        self.url = process.url

    def strike_at(self, number: int, *, of: str) -> None:
        """Choose the request for a transaction that is the coordinator's last."""
        way = self._way
        for event in (way.holds, way.let_go, way.ran_late):
            event.clear()
        way.counts, way.requests_to_pass, way.requests_to_hold = _requests_for(of), number, 1

    async def strike(self, *, takes_effect: bool) -> None:
        """Wait for that request, kill the coordinator, and start it again."""
        await self._way.holds.wait()
        if takes_effect:
            self._way.let_go.set()
            await self._way.ran_late.wait()
        await asyncio.to_thread(self._coordinator.kill)
        # What was held back is lost with its sender.
        self._way.cut_all()
        await asyncio.to_thread(self._coordinator.start)

    def spares(self) -> bool:
        """Whether it has not struck; then it does no more."""
        self._way.requests_to_hold = 0
        return not self._way.holds.is_set()


def _requests_for(gid: str) -> Callable[[bytes, asyncio.StreamWriter], bool]:
    """Find what names a transaction, and what follows on that connection up to the commit."""
    inside: set[asyncio.StreamWriter] = set()

    def counts(data: bytes, connection: asyncio.StreamWriter) -> bool:
        if gid.encode() in data:
            inside.add(connection)
        if connection not in inside:
            return False
        if b"COMMIT" in data or b"ROLLBACK" in data:
            inside.remove(connection)
        return True

    return counts


@pytest.fixture
async def fate(store_url: str, tmp_path: Path) -> AsyncIterator[Fate]:
    async with proxied(store_url) as (way, url):
        process = coordinator(url, tmp_path, kind=ForkedProcess, TXCOORD_LEASE_S="1")
        try:
            # In a thread: its way to the database is in this one's loop.
            await asyncio.to_thread(process.start)
            yield Fate(process, way)
        finally:
            process.close()


@pytest.fixture
async def client(fate: Fate) -> AsyncIterator[AsyncCoordinator]:
    async with AsyncCoordinator(fate.url, timeout=SETTLE_S, attempts=60, backoff=0.02) as made:
        yield made


@pytest.fixture
async def banks(client: AsyncCoordinator, mysql_url: str, postgres_url: str) -> AsyncIterator[Banks]:
    async with Banks(mysql_url, postgres_url) as made:
        made.coordinator = client
        yield made


async def move(client: AsyncCoordinator, banks: Banks, gid: str, decides: Status) -> None:
    with suppress(LookupError):
        async with client.xa(gid, request_timeout=SETTLE_S, timeout_to_fail=600) as xa:
            for name in ("out", "in"):
                await xa.call(f"{banks.url}/{name}", {"amount": 30})
            if decides is Status.FAILED:
                raise LookupError("no such customer")


async def until_it_is_over(store: Store, gid: str) -> None:
    # Past the coordinator: to ask it would be a request to its store, too.
    while (stored := await store.find(gid)) is None or not stored.tx.status.is_final:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("decides", [Status.SUCCEEDED, Status.FAILED], ids=["commit", "rollback"])
async def test_killed_at_each_request_to_the_store(
    fate: Fate, store: Store, client: AsyncCoordinator, banks: Banks, decides: Status
) -> None:
    moved = 0
    for takes_effect in (False, True):
        for number in range(MOST_REQUESTS):
            gid = new_gid()
            fate.strike_at(number, of=gid)
            async with asyncio.timeout(SETTLE_S), asyncio.TaskGroup() as tasks:
                striking = tasks.create_task(fate.strike(takes_effect=takes_effect))
                await move(client, banks, gid, decides)
                await until_it_is_over(store, gid)
                if is_spared := fate.spares():
                    striking.cancel()

            moved += 30 if decides is Status.SUCCEEDED else 0
            assert (await client.wait(gid)).status is decides
            assert banks.balances == (BALANCE - moved, BALANCE + moved)
            assert banks.prepared(gid) == []
            if is_spared:
                break
        else:
            pytest.fail("it never came to its end")
        assert number >= 5, "prepared, registered twice, decided, ended"
