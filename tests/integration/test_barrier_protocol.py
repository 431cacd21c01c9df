"""DTM's own tests of its barrier in SQL databases, as ours, against a running server on every store.

The participants' database is of the kind that the coordinator's store is. Those of TCC are in `test_tcc_protocol`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import httpx
import pytest
from sqlalchemy import Connection
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from conftest import MakeDatabase
from localservers.processes import free_port
from tests.e2e.harness import Process
from tests.integration.disorder import Balances, Network, SqlPurses
from tests.integration.dtm import Dtm
from tests.integration.initiators import Initiator, initiator
from txcoord_sdk import AsyncCoordinator, CoordinatorUnreachableError, Message
from txcoord_sdk.barrier import DuplicatedError
from txcoord_sdk.branch import BranchFailed
from txcoord_sdk.starlette import BranchContext, branch_endpoint

SAME: Balances = {"out": (100, 0), "in": (100, 0)}
MOVED: Balances = {"out": (70, 0), "in": (130, 0)}


@dataclass(frozen=True, slots=True)
class Bank:
    """Two purses in a database, and one transaction that moves 30 from `out` to `in`."""

    purses: SqlPurses
    network: Network
    dtm: Dtm

    async def open(self, *, out: int = 100) -> None:
        await self.purses.open(self.dtm.gid, {"out": out, "in": 100})

    async def balances(self) -> Balances:
        return await self.purses.balances(self.dtm.gid, ["out", "in"])

    async def submit_saga(self) -> None:
        purse = f"{self.network.url}/purse"
        payloads = ['{"owner":"in","amount":30}', '{"owner":"out","amount":-30}']
        steps = [{"action": purse, "compensate": purse}] * 2
        assert (await self.dtm.submit(steps=steps, payloads=payloads)).status_code == 200

    async def send(self, by: Initiator, client: AsyncCoordinator | None = None) -> None:
        message = Message(self.dtm.gid, timeout_to_fail=3)
        message.step(f"{self.network.url}/purse", {"owner": "in", "amount": 30})
        await self.purses.send(client or by.client, message, by.check_back, 30)


@pytest.fixture
async def bank(request: pytest.FixtureRequest, server: Process, make_database: MakeDatabase) -> AsyncIterator[Bank]:
    purses = SqlPurses(make_database(request.node.callspec.params["server"]))
    await purses.start()

    async def transfer(_: Request, branch: BranchContext) -> None:
        await purses.perform(branch, branch.op, "out", -30)
        await purses.perform(branch, branch.op, "in", 30)

    route = Route("/transfer", branch_endpoint(transfer), methods=["POST"])
    async with (
        Network(server.url) as network,
        httpx.AsyncClient(base_url=server.url, timeout=20) as http,
    ):
        network.app = Starlette(routes=[*purses.routes, route])
        yield Bank(purses, network, Dtm(http, network))
    await purses.stop()


@pytest.fixture(params=["http", "grpc"])
async def by(request: pytest.FixtureRequest, server: Process, bank: Bank) -> AsyncIterator[Initiator]:
    async with initiator(request.param, server, bank.network.url, bank.purses.source) as made:
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
    assert "out has less than 30" in transaction["rollback_reason"]
    assert await bank.balances() == {"out": (20, 0), "in": (100, 0)}


@pytest.mark.parametrize("refused", [False, True], ids=["succeeds", "refused"])
async def test_saga_with_two_calls_of_the_barrier_in_one_handler(bank: Bank, refused: bool) -> None:
    await bank.open()
    url = f"{bank.network.url}/transfer"
    # The second step has the first one, which took effect, compensated: both of its calls.
    steps = [{"action": url, "compensate": url}, {"action": f"{bank.network.url}/purse" if refused else ""}]
    payloads = ["{}", '{"owner":"out","amount":-1000}']

    await bank.dtm.submit(steps=steps, payloads=payloads)

    await bank.dtm.ends(*(("failed", "SSSF") if refused else ("succeed", "PSPS")))
    assert await bank.balances() == (SAME if refused else MOVED)


# -- messages --------------------------------------------------------------------------------


async def test_message(bank: Bank, by: Initiator) -> None:
    await bank.open()
    await bank.send(by)
    await bank.dtm.ends("succeed", "S")
    assert await bank.balances() == MOVED


async def test_message_whose_business_fails(bank: Bank, by: Initiator) -> None:
    await bank.open(out=20)
    with pytest.raises(BranchFailed, match="has less than 30"):
        await bank.send(by)
    await bank.dtm.ends("failed", "P")
    assert await bank.balances() == {"out": (20, 0), "in": (100, 0)}


async def test_message_whose_business_comes_late(bank: Bank, by: Initiator) -> None:
    await bank.open()
    assert not await by.has_committed(bank.dtm.gid)

    with pytest.raises(DuplicatedError, match=bank.dtm.gid):
        await bank.send(by)

    await bank.dtm.ends("failed", "P")
    assert await bank.balances() == SAME


async def test_message_that_cannot_be_prepared(bank: Bank, by: Initiator) -> None:
    await bank.open()
    scheme = by.client.url.partition(":")[0]
    async with AsyncCoordinator(f"{scheme}://127.0.0.1:{free_port()}", attempts=1) as nobody:
        with pytest.raises(CoordinatorUnreachableError):
            await bank.send(by, nobody)
    assert await bank.balances() == SAME


def _commit_failed(commit: Callable[[Connection], None], connection: Connection) -> None:
    connection.rollback()
    raise ConnectionError("the server went away")


def _commit_after_failed(commit: Callable[[Connection], None], connection: Connection) -> None:
    commit(connection)
    raise ConnectionError("the answer was lost")


@pytest.mark.parametrize(
    ("commits", "status", "rows", "balances"),
    [
        pytest.param(_commit_failed, "failed", "P", SAME, id="commit failed"),
        pytest.param(_commit_after_failed, "succeed", "S", MOVED, id="commit after failed"),
    ],
)
async def test_message_with_an_error_at_its_commit(
    bank: Bank,
    by: Initiator,
    monkeypatch: pytest.MonkeyPatch,
    commits: Callable[[Callable[[Connection], None], Connection], None],
    status: str,
    rows: str,
    balances: Balances,
) -> None:
    await bank.open()
    commit = Connection.commit
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "commit", lambda connection: commits(commit, connection))
        with pytest.raises(ConnectionError) as raised:
            await bank.send(by)
    assert "is not known" in raised.value.__notes__[-1]

    await bank.dtm.ends(status, rows)
    assert await bank.balances() == balances
