"""Every pattern of the SDK, done and taken back: by both clients, over both APIs, with a coordinator on every store.

The initiator calls over HTTP or gRPC, and so do the coordinator and its participants; or both: it is called over HTTP,
and calls over gRPC. What is special about a pattern is shown elsewhere, on one store.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from uuid import uuid4

import grpc
import pytest
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from starlette.applications import Starlette

from localservers.servers import Server
from sdk.tests.grpc_support import SERVICE, handler_of, serving_async, serving_threads
from tests.e2e.harness import Process
from tests.integration.banks import Bank
from tests.integration.scripted import Participant, failure
from tests.integration.serving import serving
from txcoord_sdk import (
    ActionFailedError,
    AsyncCoordinator,
    Coordinator,
    Message,
    Saga,
    Status,
    TransactionFailedError,
    TryFailedError,
    new_gid,
)
from txcoord_sdk.barrier import create_table_at
from txcoord_sdk.branch import BranchFailed
from txcoord_sdk.grpc import AsyncBranchInterceptor, BranchInterceptor, branch_context
from txcoord_sdk.results import Transaction
from txcoord_sdk.starlette import xa_route
from txcoord_sdk.workflow import AsyncWorkflow, AsyncWorkflows, Workflow, Workflows
from txcoord_sdk.xa import take_part, take_part_sync

P = ParamSpec("P")
T = TypeVar("T")

NOWHERE = "http://127.0.0.1:1/nobody"
"""Where the coordinator would ask back, which it need not."""


# -- both clients --------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """One transaction of two branches."""

    gid: str
    urls: tuple[str, str]
    payload: Any
    options: Mapping[str, Any]
    """For what opens a block."""

    def saga(self) -> Saga:
        saga = Saga(self.gid)
        for url in self.urls:
            saga.step(url, url, self.payload)
        return saga

    def message(self) -> Message:
        message = Message(self.gid)
        for url in self.urls:
            message.step(url, self.payload)
        return message


class AsyncInitiator:
    def __init__(self, url: str, purse: Path) -> None:
        self._client = AsyncCoordinator(url, attempts=3, backoff=0.01)
        self._purse = create_async_engine(f"sqlite+aiosqlite:///{purse}", poolclass=NullPool)

    async def saga(self, work: Work) -> None:
        await self._client.run(work.saga())

    async def tcc(self, work: Work) -> None:
        async with self._client.tcc(work.gid, **work.options) as tcc:
            for url in work.urls:
                await tcc.call(url, url, url, work.payload)

    async def xa(self, work: Work) -> None:
        async with self._client.xa(work.gid, **work.options) as xa:
            for url in work.urls:
                await xa.call(url, work.payload)

    async def message(self, work: Work, *, refuses: bool) -> None:
        async def pay(connection: AsyncConnection) -> None:
            await connection.execute(text("insert into paid values (:gid)"), {"gid": work.gid})
            if refuses:
                raise BranchFailed("no money")

        async with self._purse.connect() as connection:
            await self._client.do_and_submit(work.message(), NOWHERE, connection, pay)

    async def workflow(self, work: Work) -> Any:
        workflows = AsyncWorkflows(self._client, resume_url=NOWHERE)

        @workflows.workflow
        async def transfer(wf: AsyncWorkflow, _: None) -> str:
            for url in work.urls:
                await wf.call(url, work.payload, on_commit=url, on_rollback=url)
            return "moved"

        return await transfer.run(None, gid=work.gid)

    async def wait(self, gid: str) -> Transaction:
        return await self._client.wait(gid)

    async def close(self) -> None:
        await self._client.close()
        await self._purse.dispose()


def blocking(work: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """Let it block a thread instead of the loop."""

    async def in_a_thread(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(work, *args, **kwargs)

    return in_a_thread


class SyncInitiator:
    def __init__(self, url: str, purse: Path) -> None:
        self._client = Coordinator(url, attempts=3, backoff=0.01)
        self._purse = purse

    @blocking
    def saga(self, work: Work) -> None:
        self._client.run(work.saga())

    @blocking
    def tcc(self, work: Work) -> None:
        with self._client.tcc(work.gid, **work.options) as tcc:
            for url in work.urls:
                tcc.call(url, url, url, work.payload)

    @blocking
    def xa(self, work: Work) -> None:
        with self._client.xa(work.gid, **work.options) as xa:
            for url in work.urls:
                xa.call(url, work.payload)

    @blocking
    def message(self, work: Work, *, refuses: bool) -> None:
        def pay(connection: sqlite3.Connection) -> None:
            connection.execute("insert into paid values (?)", (work.gid,))
            if refuses:
                raise BranchFailed("no money")

        with closing(sqlite3.connect(self._purse)) as connection:
            self._client.do_and_submit(work.message(), NOWHERE, connection, pay)

    @blocking
    def workflow(self, work: Work) -> Any:
        workflows = Workflows(self._client, resume_url=NOWHERE)

        @workflows.workflow
        def transfer(wf: Workflow, _: None) -> str:
            for url in work.urls:
                wf.call(url, work.payload, on_commit=url, on_rollback=url)
            return "moved"

        return transfer.run(None, gid=work.gid)

    @blocking
    def wait(self, gid: str) -> Transaction:
        return self._client.wait(gid)

    @blocking
    def close(self) -> None:
        self._client.close()


Initiator = AsyncInitiator | SyncInitiator


@pytest.fixture(params=["http", "grpc", "both"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def purse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of the initiator's own."""
    path = tmp_path_factory.mktemp("purse") / "purse.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table paid (gid text)")
    create_table_at(f"sqlite:///{path}")
    return path


@pytest.fixture
async def initiator(server: Process, protocol: str, kind: str, purse: Path) -> AsyncIterator[Initiator]:
    url = f"grpc://127.0.0.1:{server.grpc_port}" if protocol == "grpc" else server.url
    made: Initiator = AsyncInitiator(url, purse) if kind == "async" else SyncInitiator(url, purse)
    yield made
    await made.close()


# -- participants that say what they were called for -----------------------------------------


class HttpDesk(Participant):
    def url_of(self, name: str) -> str:
        return f"{self.url}/{name}"

    def refuse(self) -> None:
        self.script("in", failure("no money"))

    def ops(self, gid: str) -> list[str]:
        return [f"{call.path} {call.query['op']}" for call in self.received if call.gid == gid]


class GrpcDesk:
    def __init__(self) -> None:
        self.target = ""
        self._refuses = False
        self._ops: list[tuple[str, str]] = []

    def url_of(self, name: str) -> str:
        return f"{self.target}/{SERVICE}/{name}"

    def refuse(self) -> None:
        self._refuses = True

    def ops(self, gid: str) -> list[str]:
        return [op for of, op in self._ops if of == gid]

    async def answer(self, name: str, _: bytes, context: Any) -> bytes:
        called = dict(context.invocation_metadata())
        self._ops.append((called["dtm-gid"], f"{name} {called['dtm-op']}"))
        if self._refuses and (name, called["dtm-op"] in ("action", "try")) == ("in", True):
            await context.abort(grpc.StatusCode.ABORTED, "no money")
        return b""


Desk = HttpDesk | GrpcDesk


@pytest.fixture
async def desk(protocol: str) -> AsyncIterator[Desk]:
    if protocol == "http":
        async with HttpDesk() as over_http:
            yield over_http
        return
    made = GrpcDesk()
    async with serving_async(handler_of({name: partial(made.answer, name) for name in ("out", "in")})) as made.target:
        yield made


def a_transfer(protocol: str, url_of: Callable[[str], str], gid: str | None = None) -> Work:
    urls = (url_of("out"), url_of("in"))
    if protocol == "http":
        return Work(gid or new_gid(), urls, {"amount": 30}, {})
    # Text: DTM's API over HTTP carries no other bytes.
    return Work(gid or new_gid(), urls, b"30", {"protocol": "grpc"})


@pytest.fixture
def work(protocol: str, desk: Desk) -> Work:
    return a_transfer(protocol, desk.url_of)


async def test_saga_is_done(initiator: Initiator, desk: Desk, work: Work) -> None:
    await initiator.saga(work)

    assert (await initiator.wait(work.gid)).status is Status.SUCCEEDED
    assert desk.ops(work.gid) == ["out action", "in action"]


async def test_saga_is_taken_back(initiator: Initiator, desk: Desk, work: Work) -> None:
    desk.refuse()

    with pytest.raises(TransactionFailedError, match="no money"):
        await initiator.saga(work)

    assert (await initiator.wait(work.gid)).status is Status.FAILED
    assert desk.ops(work.gid) == ["out action", "in action", "in compensate", "out compensate"]


async def test_tcc_is_confirmed(initiator: Initiator, desk: Desk, work: Work) -> None:
    await initiator.tcc(work)

    assert (await initiator.wait(work.gid)).status is Status.SUCCEEDED
    assert desk.ops(work.gid) == ["out try", "in try", "in confirm", "out confirm"]


async def test_tcc_is_cancelled(initiator: Initiator, desk: Desk, work: Work) -> None:
    desk.refuse()

    with pytest.raises(TryFailedError, match="no money"):
        await initiator.tcc(work)

    assert (await initiator.wait(work.gid)).status is Status.FAILED
    assert desk.ops(work.gid) == ["out try", "in try", "in cancel", "out cancel"]


def has_paid(purse: Path, gid: str) -> bool:
    with closing(sqlite3.connect(purse)) as connection:
        return bool(connection.execute("select 1 from paid where gid = ?", (gid,)).fetchone())


async def test_message_goes_with_its_local_transaction(
    initiator: Initiator, desk: Desk, work: Work, purse: Path
) -> None:
    await initiator.message(work, refuses=False)

    assert (await initiator.wait(work.gid)).status is Status.SUCCEEDED
    assert desk.ops(work.gid) == ["out action", "in action"]
    assert has_paid(purse, work.gid)


async def test_message_does_not_go_without_it(initiator: Initiator, desk: Desk, work: Work, purse: Path) -> None:
    with pytest.raises(BranchFailed, match="no money"):
        await initiator.message(work, refuses=True)

    assert (await initiator.wait(work.gid)).status is Status.FAILED
    assert desk.ops(work.gid) == []
    assert not has_paid(purse, work.gid)


async def test_workflow_is_done_once(initiator: Initiator, desk: Desk, work: Work) -> None:
    assert [await initiator.workflow(work) for _ in range(2)] == ["moved"] * 2

    assert (await initiator.wait(work.gid)).status is Status.SUCCEEDED
    assert desk.ops(work.gid) == ["out action", "in action", "in commit", "out commit"]


async def test_workflow_is_taken_back_once(initiator: Initiator, desk: Desk, work: Work) -> None:
    desk.refuse()

    for _ in range(2):
        with pytest.raises(TransactionFailedError, match="no money"):
            await initiator.workflow(work)

    assert (await initiator.wait(work.gid)).status is Status.FAILED
    assert desk.ops(work.gid) == ["out action", "in action", "out rollback"]


# -- XA: participants with databases ---------------------------------------------------------

Pair = tuple[Bank, Bank]


@pytest.fixture(scope="module")
def pairs(mariadb_server: Server, postgres_server: Server) -> Iterator[Mapping[str, Pair]]:
    """Two banks on each kind of database. Money moves between the same ones all the time: tests look at differences."""
    names: list[tuple[Server, str]] = []

    def bank_at(server: Server) -> Bank:
        names.append((server, f"bank_{uuid4().hex[:16]}"))
        return Bank(server.create_database(names[-1][1]))

    servers = {"MariaDB": mariadb_server, "PostgreSQL": postgres_server}
    made = {name: (bank_at(server), bank_at(server)) for name, server in servers.items()}
    yield made
    for pair in made.values():
        for bank in pair:
            bank.end_all()
    for server, name in names:
        server.drop_database(name)


class Closed:
    """Whether the receiving bank refuses, with its work done."""

    now = False


@asynccontextmanager
async def xa_desk(protocol: str, kind: str, banks: Mapping[str, Bank], closed: Closed) -> AsyncIterator[str]:
    """Participants of this kind; gives where they are, up to the name of a bank."""

    def now(name: str, connection: Connection, *_: Any) -> None:
        banks[name].change_now(connection, -30 if name == "out" else 30)
        if closed.now and name == "in":
            raise BranchFailed("account closed")

    async def later(name: str, connection: AsyncConnection, *_: Any) -> None:
        await connection.run_sync(partial(now, name))

    if protocol == "http":
        routes = [
            xa_route(f"/{name}", bank.engine, partial(later, name), table=bank.table)
            if kind == "async"
            else xa_route(f"/{name}", bank.blocking_engine, partial(now, name), table=bank.table)
            for name, bank in banks.items()
        ]
        async with serving(Starlette(routes=routes)) as url:
            yield url
        return

    async def answer(name: str, *_: Any) -> bytes:
        await take_part(branch_context(), banks[name].engine, partial(later, name), table=banks[name].table)
        return b""

    def answer_now(name: str, *_: Any) -> bytes:
        bank = banks[name]
        take_part_sync(branch_context(), bank.blocking_engine, partial(now, name), table=bank.table)
        return b""

    if kind == "async":
        over_aio = serving_async(
            handler_of({name: partial(answer, name) for name in banks}), interceptors=[AsyncBranchInterceptor()]
        )
        async with over_aio as target:
            yield f"{target}/{SERVICE}"
    else:
        in_threads = serving_threads(
            handler_of({name: partial(answer_now, name) for name in banks}), interceptors=[BranchInterceptor()]
        )
        async with in_threads as target:
            yield f"{target}/{SERVICE}"


@pytest.mark.parametrize("refuses", [False, True], ids=["committed", "rolled back"])
async def test_xa_is(initiator: Initiator, protocol: str, kind: str, pairs: Mapping[str, Pair], refuses: bool) -> None:
    banks = {"out": pairs["MariaDB"][0], "in": pairs["PostgreSQL"][1]}
    before = {name: bank.balance for name, bank in banks.items()}
    closed = Closed()
    closed.now = refuses

    async with xa_desk(protocol, kind, banks, closed) as base:
        work = a_transfer(protocol, lambda name: f"{base}/{name}")
        if refuses:
            with pytest.raises(ActionFailedError, match="account closed"):
                await initiator.xa(work)
        else:
            await initiator.xa(work)
        found = await initiator.wait(work.gid)

    assert found.status is (Status.FAILED if refuses else Status.SUCCEEDED)
    moved = 0 if refuses else 30
    assert {name: bank.balance for name, bank in banks.items()} == {
        "out": before["out"] - moved,
        "in": before["in"] + moved,
    }
    assert [bank.prepared for bank in banks.values()] == [[], []]


@pytest.mark.parametrize("at", ["MariaDB", "PostgreSQL"])
@pytest.mark.parametrize("refuses", [False, True], ids=["committed", "rolled back"])
async def test_workflow_of_xa_steps_that_block_is(
    server: Process, pairs: Mapping[str, Pair], at: str, refuses: bool
) -> None:
    left, right = pairs[at]
    before = (left.balance, right.balance)
    gid = new_gid()

    def receive(connection: Connection) -> int:
        right.change_now(connection, 30)
        if refuses:
            raise BranchFailed("account closed")
        return 30

    @blocking
    def run() -> tuple[int, Transaction]:
        with Coordinator(server.url) as client:
            workflows = Workflows(client, resume_url=NOWHERE, table=left.table)

            @workflows.workflow
            def transfer(wf: Workflow, amount: int) -> int:
                wf.xa(left.blocking_engine, left.change_now, -amount)
                return wf.xa(right.blocking_engine, receive)

            return transfer.run(30, gid=gid), client.query(gid)

    for _ in range(2):
        if refuses:
            with pytest.raises(TransactionFailedError, match="account closed"):
                await run()
        else:
            result, found = await run()
            assert (result, found.status) == (30, Status.SUCCEEDED)

    moved = 0 if refuses else 30
    assert (left.balance, right.balance) == (before[0] - moved, before[1] + moved)
    assert (left.prepared, right.prepared) == ([], [])
