"""DTM's own tests of its barrier in Redis, as ours, against a running server on every store."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
import redis
import redis.asyncio as aredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from conftest import MakeDatabase
from localservers.processes import free_port
from sdk.tests.redis_support import LossyWay
from tests.e2e.harness import Process
from tests.integration.disorder import Balances, Fault, Network, Point, RedisPurses, World
from tests.integration.dtm import Dtm
from tests.integration.initiators import Initiator, initiator
from txcoord_sdk import AsyncCoordinator, CoordinatorUnreachableError, Message
from txcoord_sdk.barrier import BranchBarrier, DuplicatedError
from txcoord_sdk.barrier.redis import Increment
from txcoord_sdk.branch import BranchFailed

SAME: Balances = {"out": (100, 0), "in": (100, 0)}
MOVED: Balances = {"out": (70, 0), "in": (130, 0)}


@dataclass(frozen=True, slots=True)
class Bank:
    """Two purses in Redis, and one transaction that moves 30 from `out` to `in`."""

    world: World
    dtm: Dtm
    url: str
    """Of the Redis."""

    @property
    def gid(self) -> str:
        return self.dtm.gid

    @property
    def purse(self) -> str:
        return f"{self.world.network.url}/purse"

    async def open(self, *, out: int = 100) -> None:
        await self.world.purses.open(self.gid, {"out": out, "in": 100})

    async def balances(self) -> Balances:
        return await self.world.purses.balances(self.gid, ["out", "in"])

    async def submit_saga(self) -> None:
        steps = [{"action": self.purse, "compensate": self.purse}] * 2
        payloads = ['{"owner":"in","amount":30}', '{"owner":"out","amount":-30}']
        assert (await self.dtm.submit(steps=steps, payloads=payloads)).status_code == 200

    def message(self) -> Message:
        message = Message(self.gid, timeout_to_fail=3)
        message.step(self.purse, {"owner": "in", "amount": 30})
        return message

    @property
    def takes(self) -> Increment:
        return Increment(f"{{{self.gid}}}:out", -30)

    async def send(self, by: Initiator, client: aredis.Redis, coordinator: AsyncCoordinator | None = None) -> None:
        await (coordinator or by.client).redis_do_and_submit(self.message(), by.check_back, client, self.takes)


@contextlib.asynccontextmanager
async def _client(url: str) -> AsyncIterator[aredis.Redis]:
    async with aredis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
        yield client


@pytest.fixture
async def bank(server: Process, make_database: MakeDatabase) -> AsyncIterator[Bank]:
    url = make_database("redis")
    purses = RedisPurses(url)
    async with (
        Network(server.url) as network,
        httpx.AsyncClient(base_url=server.url, timeout=20) as http,
        AsyncCoordinator(server.url, timeout=20) as coordinator,
    ):
        world = World(network, coordinator, coordinator, purses)
        yield Bank(world, Dtm(http, network), url)
    await purses.stop()


@pytest.fixture(params=["http", "grpc"])
async def by(request: pytest.FixtureRequest, server: Process, bank: Bank) -> AsyncIterator[Initiator]:
    async with initiator(request.param, server, bank.world.network.url, bank.world.purses.source) as made:
        yield made


@pytest.fixture
async def client(bank: Bank) -> AsyncIterator[aredis.Redis]:
    async with _client(bank.url) as made:
        yield made


# -- sagas -----------------------------------------------------------------------------------


async def test_saga_normal(bank: Bank) -> None:
    await bank.open()
    await bank.submit_saga()
    await bank.dtm.ends("succeed", "PSPS")
    assert await bank.balances() == MOVED


async def test_saga_rollback(bank: Bank) -> None:
    await bank.open(out=20)
    await bank.submit_saga()
    transaction = await bank.dtm.ends("failed", "SSSF")
    assert "adding -30 would bring it below 0" in transaction["rollback_reason"]
    assert await bank.balances() == {"out": (20, 0), "in": (100, 0)}


# -- tcc -------------------------------------------------------------------------------------


async def test_tcc_disorder(bank: Bank) -> None:
    await bank.open()
    bank.world.network.fails(bank.gid, Point("01", "cancel"), Fault.TWICE_AT_ONCE)
    data = '{"owner":"out","amount":-30}'
    branch = {"branch_id": "01", "data": data, "confirm": bank.purse, "cancel": bank.purse, "try": bank.purse}
    assert (await bank.dtm.post("prepare", trans_type="tcc", timeout_to_fail=3)).status_code == 200
    assert (await bank.dtm.post("registerBranch", trans_type="tcc", **branch)).status_code == 200
    # Nothing is tried before the deadline, and the coordinator's cancel comes twice at the same time.
    await bank.dtm.ends("failed", "SP")
    assert bank.world.network.points(bank.gid) == [Point("01", "cancel")]

    query = {"gid": bank.gid, "trans_type": "tcc", "branch_id": "01", "op": "try"}
    async with httpx.AsyncClient() as http:
        late = await http.post(bank.purse, params=query, content=data)

    assert (late.status_code, late.json()) == (200, {"dtm_result": "SUCCESS"})
    assert await bank.balances() == SAME


# -- messages --------------------------------------------------------------------------------


async def test_message(bank: Bank, by: Initiator, client: aredis.Redis) -> None:
    await bank.open()
    await bank.send(by, client)
    await bank.dtm.ends("succeed", "S")
    assert await bank.balances() == MOVED


async def test_message_whose_business_fails(bank: Bank, by: Initiator, client: aredis.Redis) -> None:
    await bank.open(out=20)
    with pytest.raises(BranchFailed, match="below 0"):
        await bank.send(by, client)
    await bank.dtm.ends("failed", "P")
    assert await bank.balances() == {"out": (20, 0), "in": (100, 0)}


async def test_message_whose_business_comes_late(bank: Bank, by: Initiator, client: aredis.Redis) -> None:
    await bank.open()
    assert not await by.has_committed(bank.gid, redis_key=bank.takes.key)

    with pytest.raises(DuplicatedError, match=bank.gid):
        await bank.send(by, client)

    await bank.dtm.ends("failed", "P")
    assert await bank.balances() == SAME


async def test_message_that_cannot_be_prepared(bank: Bank, by: Initiator, client: aredis.Redis) -> None:
    await bank.open()
    scheme = by.client.url.partition(":")[0]
    async with AsyncCoordinator(f"{scheme}://127.0.0.1:{free_port()}", attempts=1) as nobody:
        with pytest.raises(CoordinatorUnreachableError):
            await bank.send(by, client, nobody)
    assert await bank.balances() == SAME


@pytest.mark.parametrize("takes_effect", [False, True], ids=["commit failed", "commit after failed"])
async def test_message_with_an_error_at_its_commit(bank: Bank, by: Initiator, takes_effect: bool) -> None:
    await bank.open()
    async with LossyWay(bank.url) as way, _client(way.url) as client:
        # Redis knows the script from now on: what gets lost is the run, not the search for it.
        other = BranchBarrier("msg", f"{bank.gid}-other", "00", "msg")
        await other.redis_call(client, Increment(f"{{{bank.gid}}}:other", 1, floor=None))
        way.loses, way.drops_requests = 1, not takes_effect
        with pytest.raises(redis.ConnectionError) as raised:
            await bank.send(by, client)
    assert "is not known" in raised.value.__notes__[-1]

    await bank.dtm.ends("succeed" if takes_effect else "failed", "S" if takes_effect else "P")
    assert await bank.balances() == (MOVED if takes_effect else SAME)
