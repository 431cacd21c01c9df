"""XA of the SDK with participants over gRPC: money moves from MariaDB to PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import Int64Value
from sqlalchemy.ext.asyncio import AsyncConnection

from sdk.tests.grpc_support import call, handler_of, serving_async
from tests.e2e.harness import Process, coordinator
from tests.integration.banks import BALANCE, Bank
from txcoord_sdk import ActionFailedError, AsyncCoordinator, AsyncXa, Outcome, Status
from txcoord_sdk.grpc import AsyncBranchInterceptor, BranchFailed, branch_context
from txcoord_sdk.xa import take_part

AMOUNT = Int64Value(value=200)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with coordinator("memory://", tmp_path_factory.mktemp("coordinator"), TXCOORD_RETRY_INTERVAL_S="1") as process:
        yield process


@pytest.fixture(params=["grpc", "http"])
async def client(request: pytest.FixtureRequest, server: Process) -> AsyncIterator[AsyncCoordinator]:
    url = f"grpc://127.0.0.1:{server.grpc_port}" if request.param == "grpc" else server.url
    async with AsyncCoordinator(url, attempts=3, backoff=0.01) as client:
        yield client


class Desk:
    """A bank in each database, each behind a method of its own."""

    def __init__(self, mysql_url: str, postgres_url: str) -> None:
        self.banks = {"Out": Bank(mysql_url), "In": Bank(postgres_url)}
        self.closed: set[str] = set()
        """Whose action refuses when its work is done."""
        self.target = ""

    def url(self, name: str) -> str:
        return f"{self.target}/bank.Accounts/{name}"

    @property
    def balances(self) -> tuple[int, int]:
        return self.banks["Out"].balance, self.banks["In"].balance

    @property
    def prepared(self) -> list[str]:
        return [name for bank in self.banks.values() for name in bank.prepared]

    async def answer(self, name: str, request: bytes, _context: Any) -> bytes:
        bank = self.banks[name]
        amount = Int64Value.FromString(request).value

        async def work(connection: AsyncConnection) -> None:
            await bank.change(connection, -amount if name == "Out" else amount)
            if name in self.closed:
                raise BranchFailed("account closed")

        await take_part(branch_context(), bank.engine, work, table=bank.table)
        return b""


@pytest.fixture
async def desk(mysql_url: str, postgres_url: str) -> AsyncIterator[Desk]:
    desk = Desk(mysql_url, postgres_url)
    handler = handler_of({name: partial(desk.answer, name) for name in desk.banks}, "bank.Accounts")
    async with serving_async(handler, interceptors=[AsyncBranchInterceptor()]) as desk.target:
        yield desk
    for bank in desk.banks.values():
        await bank.engine.dispose()
        bank.end_all()


async def move(xa: AsyncXa, desk: Desk) -> None:
    for name in ("Out", "In"):
        await xa.call(desk.url(name), AMOUNT)


async def test_normal(client: AsyncCoordinator, desk: Desk) -> None:
    async with client.xa(protocol="grpc") as xa:
        await move(xa, desk)

    found = await client.wait(xa.gid)
    assert [(branch.op, branch.status.value) for branch in found.branches] == [
        ("rollback", "prepared"),
        ("commit", "succeed"),
    ] * 2
    assert desk.balances == (BALANCE - 200, BALANCE + 200)
    assert desk.prepared == []


async def test_rollback(client: AsyncCoordinator, desk: Desk) -> None:
    desk.closed = {"In"}

    with pytest.raises(ActionFailedError, match="account closed") as caught:
        async with client.xa(protocol="grpc") as xa:
            await move(xa, desk)

    assert caught.value.outcome is Outcome.FAILURE
    assert (await client.wait(xa.gid)).status is Status.FAILED
    assert desk.balances == (BALANCE, BALANCE)
    assert desk.prepared == []


async def test_local_error(client: AsyncCoordinator, desk: Desk) -> None:
    xa = client.xa(protocol="grpc")

    async def buy() -> None:
        async with xa:
            await move(xa, desk)
            raise LookupError("no such customer")

    with pytest.raises(LookupError):
        await buy()

    assert (await client.wait(xa.gid)).reason == "LookupError: no such customer"
    assert desk.balances == (BALANCE, BALANCE)
    assert desk.prepared == []


async def test_type(desk: Desk) -> None:
    action = {"gid": "g1", "trans_type": "xa", "branch_id": "01", "op": "action"}

    for lacking in ({}, {"gid": "g1"}, action, {**action, "phase2_url": desk.url("In")}):
        code, text, _ = await call(desk.target, "bank.Accounts/In", AMOUNT.SerializeToString(), **lacking)
        assert (code.name, bool(text)) == ("INVALID_ARGUMENT", True)
    assert desk.prepared == []
