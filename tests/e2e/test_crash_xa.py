"""The coordinator is killed between the decisions of an XA transaction: it ends as decided, with nothing left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Process, coordinator
from tests.integration.banks import BALANCE, Banks
from txcoord_sdk import AsyncCoordinator, AsyncXa, Status, TransactionFailedError, TxcoordSdkError

pytestmark = pytest.mark.slow

SAME, MOVED = (BALANCE, BALANCE), (BALANCE - 30, BALANCE + 30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    with coordinator(f"sqlite:///{tmp_path}/txcoord.db", tmp_path) as process:
        yield process


@pytest.fixture
async def banks(mysql_url: str, postgres_url: str) -> AsyncIterator[Banks]:
    async with Banks(mysql_url, postgres_url) as made:
        yield made


@pytest.fixture
async def client(server: Process) -> AsyncIterator[AsyncCoordinator]:
    async with AsyncCoordinator(server.url, attempts=3, backoff=0.01) as made:
        yield made


class Crashes:
    """Kills and starts the coordinator."""

    def __init__(self, server: Process) -> None:
        self._server = server

    async def now(self) -> None:
        await asyncio.to_thread(self._server.kill)
        await asyncio.to_thread(self._server.start)


@pytest.fixture
def crash(server: Process) -> Callable[[], Awaitable[None]]:
    return Crashes(server).now


async def pay(xa: AsyncXa, banks: Banks, *names: str) -> None:
    for name in names or ("out", "in"):
        await xa.call(f"{banks.url}/{name}", {"amount": 30})


async def ended(client: AsyncCoordinator, gid: str, banks: Banks, status: Status) -> None:
    assert (await client.wait(gid, timeout=30)).status is status
    assert banks.balances == (MOVED if status is Status.SUCCEEDED else SAME)
    assert banks.prepared(gid) == []


async def test_between_the_branches(
    client: AsyncCoordinator, banks: Banks, crash: Callable[[], Awaitable[None]]
) -> None:
    async with client.xa() as xa:
        await crash()
        await pay(xa, banks, "out")
        await crash()
        await pay(xa, banks, "in")
        await crash()

    await ended(client, xa.gid, banks, Status.SUCCEEDED)


@pytest.mark.parametrize("held", ["out", "in"])
@pytest.mark.parametrize("decides", [Status.SUCCEEDED, Status.FAILED], ids=["commit", "rollback"])
async def test_while_a_branch_is_ended(
    client: AsyncCoordinator, banks: Banks, crash: Callable[[], Awaitable[None]], held: str, decides: Status
) -> None:
    xa = client.xa()

    async def work() -> None:
        async with xa:
            await pay(xa, banks)
            banks.hold(held)
            if decides is Status.FAILED:
                raise LookupError

    if decides is Status.FAILED:
        with pytest.raises(LookupError):
            await work()
    else:
        await work()
    await banks.called(held, xa.gid, times=2)

    await crash()
    banks.release(held)

    await ended(client, xa.gid, banks, decides)


async def test_away_while_a_branch_registers(server: Process, client: AsyncCoordinator, banks: Banks) -> None:
    xa = client.xa(timeout_to_fail=2)

    async def work() -> None:
        async with xa:
            await pay(xa, banks, "out")
            await asyncio.to_thread(server.kill)
            await pay(xa, banks, "in")

    with pytest.raises(TxcoordSdkError) as caught:
        await work()
    assert isinstance(caught.value, TransactionFailedError)
    assert banks.prepared(xa.gid) == [f"{xa.gid}-01"], "what could not be registered is not prepared"
    await asyncio.to_thread(server.start)

    await ended(client, xa.gid, banks, Status.FAILED)
