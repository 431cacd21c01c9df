"""Both phases of XA, on every driver and database: the usual way, what fails, and what comes in the wrong order."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
import pymysql
import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.orm import Session

from localservers.servers import start_postgres
from sdk.tests.xa_support import WAYS, Ledger, Way, account, aiomysql_pool, over
from txcoord.barrier.tables import Database
from txcoord.errors import InvalidRequestError
from txcoord.xa.xid import xid_of
from txcoord_sdk import new_gid
from txcoord_sdk.barrier import BarrierError, Passage
from txcoord_sdk.branch import BranchContext, BranchFailed, BranchOngoing
from txcoord_sdk.xa import XaError, XaKey, finish, finish_sync, prepare, prepare_sync, take_part_sync
from txcoord_sdk.xa.dialects import why_too_old

BLOCKING = ("PyMySQL", "SQLAlchemy, PyMySQL", "SQLAlchemy, PyMySQL, no pool", "psycopg", "SQLAlchemy, psycopg")
"""A thread cannot be cancelled."""

RUN, DUPLICATE, EMPTY = Passage.RUN, Passage.DUPLICATE, Passage.EMPTY


@pytest.fixture(params=WAYS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ledger(request: pytest.FixtureRequest, name: str) -> Any:
    made = Ledger(request.getfixturevalue(f"shared_{WAYS[name][0]}_url"))
    yield made
    made.end_all()


@pytest.fixture
async def way(name: str, ledger: Ledger) -> AsyncIterator[Way]:
    async with WAYS[name][1](ledger.url, ledger.name) as made:
        yield made


@pytest.fixture(params=["gid-{}", "it's {}; 50% :x", "ö" * 90 + "{}"], ids=["plain", "unusual", "long"])
def gid(request: pytest.FixtureRequest) -> str:
    return str(request.param).format(uuid4().hex)


@pytest.fixture
def key() -> XaKey:
    return XaKey(gid=f"gid-{uuid4().hex}", branch_id="01")


# -- the usual way, and the same once more -----------------------------------------------------


@pytest.mark.parametrize("op", ["commit", "rollback"])
async def test_what_is_prepared_is_kept_until_it_is_ended(way: Way, ledger: Ledger, gid: str, op: str) -> None:
    key = XaKey(gid=gid, branch_id="0102")
    xid = xid_of(key, Database.MYSQL if ledger.is_mysql else Database.POSTGRESQL)

    prepared = await way.prepare(key, gid[-40:])

    assert (prepared.passage, prepared.result) == (RUN, 1)
    assert ledger.prepared == [xid]
    assert not ledger.has(gid[-40:])
    assert await way.finish(key, op) is RUN
    assert ledger.has(gid[-40:]) is (op == "commit")
    assert ledger.prepared == []


async def test_a_second_action_does_not_run_again(way: Way, ledger: Ledger, key: XaKey) -> None:
    await way.prepare(key, key.gid)

    again = await way.prepare(key, f"{key.gid}-2")
    assert (again.passage, again.result) == (DUPLICATE, None)
    await way.finish(key, "commit")
    late = await way.prepare(key, f"{key.gid}-2")

    assert late.passage is DUPLICATE
    assert ledger.has(key.gid)
    assert not ledger.has(f"{key.gid}-2")
    assert ledger.prepared == []


@pytest.mark.parametrize("op", ["commit", "rollback"])
async def test_a_second_end_changes_nothing(way: Way, ledger: Ledger, key: XaKey, op: str) -> None:
    await way.prepare(key, key.gid)

    assert [await way.finish(key, op) for _ in range(3)] == [RUN, DUPLICATE, DUPLICATE]
    assert ledger.has(key.gid) is (op == "commit")


async def test_connections_can_be_used_again(way: Way, ledger: Ledger) -> None:
    for number in range(6):
        key = XaKey(gid=f"gid-{uuid4().hex}", branch_id="01")
        if number % 3 == 2:
            with pytest.raises(LookupError):
                await way.prepare(key, key.gid, error=LookupError())
        else:
            await way.prepare(key, key.gid)
            await way.finish(key, ["commit", "rollback"][number % 3])
    assert ledger.prepared == []


# -- what fails --------------------------------------------------------------------------------


async def test_who_waits_for_a_connection_of_a_pool_gets_one(way: Way, ledger: Ledger) -> None:
    keys = [XaKey(gid=new_gid(), branch_id="01") for _ in range(4)]  # more than the pools here have

    async with asyncio.timeout(60):
        await asyncio.gather(*(way.prepare(key, key.gid) for key in keys))
        await asyncio.gather(*(way.finish(key, "commit") for key in keys))
    assert all(ledger.has(key.gid) for key in keys)


async def test_work_that_raises_leaves_nothing(way: Way, ledger: Ledger, key: XaKey) -> None:
    registered: list[bool] = []

    with pytest.raises(LookupError):
        await way.prepare(key, key.gid, error=LookupError(), register=lambda: registered.append(True))

    assert (registered, ledger.prepared, ledger.has(key.gid)) == ([], [], False)
    assert (await way.prepare(key, key.gid)).passage is RUN, "it may be tried again"
    await way.finish(key, "rollback")


async def test_a_statement_that_fails_leaves_nothing(way: Way, ledger: Ledger, key: XaKey) -> None:
    with pytest.raises(Exception, match=r"(?i)duplicate"):
        await way.prepare(key, key.gid, key.gid)

    assert (ledger.prepared, ledger.has(key.gid)) == ([], False)


async def test_what_is_not_registered_is_not_prepared(way: Way, ledger: Ledger, key: XaKey) -> None:
    def refuse() -> None:
        raise BranchFailed("too late")

    with pytest.raises(BranchFailed, match="too late"):
        await way.prepare(key, key.gid, register=refuse)

    assert (ledger.prepared, ledger.has(key.gid)) == ([], False)


async def test_a_commit_of_nothing_is_refused(way: Way, ledger: Ledger, key: XaKey) -> None:
    with pytest.raises(BranchFailed, match="nothing is prepared here, and nothing was committed"):
        await way.finish(key, "commit")

    assert (await way.prepare(key, key.gid)).passage is RUN, "asking leaves no trace"
    assert await way.finish(key, "commit") is RUN
    assert ledger.has(key.gid)


# -- what comes in the wrong order -----------------------------------------------------------------


async def test_an_action_that_comes_after_its_rollback_does_not_run(way: Way, ledger: Ledger, key: XaKey) -> None:
    assert await way.finish(key, "rollback") is EMPTY

    with pytest.raises(BranchFailed, match="was rolled back before its action came"):
        await way.prepare(key, key.gid)

    assert (ledger.prepared, ledger.has(key.gid)) == ([], False)
    assert await way.finish(key, "rollback") is DUPLICATE


async def test_what_was_ended_one_way_is_not_ended_the_other(way: Way, ledger: Ledger, key: XaKey) -> None:
    await way.prepare(key, key.gid)
    await way.finish(key, "commit")
    with pytest.raises(BranchFailed, match="it was committed before"):
        await way.finish(key, "rollback")

    other = XaKey(gid=key.gid, branch_id="02")
    await way.prepare(other, f"{key.gid}-2")
    await way.finish(other, "rollback")
    with pytest.raises(BranchFailed, match="it was rolled back before"):
        await way.finish(other, "commit")

    assert ledger.has(key.gid)
    assert not ledger.has(f"{key.gid}-2")


async def test_calls_during_the_action_are_to_come_again(way: Way, ledger: Ledger, key: XaKey) -> None:
    working, gate = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        working.set()
        await gate.wait()

    action = asyncio.create_task(way.prepare(key, key.gid, after=wait))
    await asyncio.wait_for(working.wait(), 10)
    for op in ("rollback", "commit"):
        with pytest.raises(BranchOngoing):
            await way.finish(key, op)
    with pytest.raises(BranchOngoing):
        await way.prepare(key, f"{key.gid}-2")
    gate.set()
    await action

    assert await way.finish(key, "rollback") is RUN
    assert (ledger.prepared, ledger.has(key.gid)) == ([], False)


@pytest.mark.parametrize("name", [name for name in WAYS if name not in BLOCKING])
async def test_a_cancelled_action_leaves_nothing(way: Way, ledger: Ledger, key: XaKey) -> None:
    working = asyncio.Event()

    async def wait() -> None:
        working.set()
        await asyncio.Event().wait()

    action = asyncio.create_task(way.prepare(key, key.gid, after=wait))
    await asyncio.wait_for(working.wait(), 10)
    action.cancel()
    with pytest.raises(asyncio.CancelledError):
        await action

    assert await way.finish(key, "rollback") is EMPTY
    assert (ledger.prepared, ledger.has(key.gid)) == ([], False)


# -- MySQL and MariaDB ---------------------------------------------------------------------------


@pytest.fixture
def mariadb(shared_mysql_url: str) -> Iterator[Ledger]:
    made = Ledger(shared_mysql_url)
    yield made
    made.end_all()


def test_a_commit_is_not_done_while_the_connection_that_prepared_is_open(mariadb: Ledger, key: XaKey) -> None:
    # As after the loss of a participant's machine, which the server does not notice for hours. The
    # server says then that there is no such transaction, which DTM takes for a commit.
    with closing(hold_prepared(mariadb, key)):
        for op in ("commit", "rollback"):
            with pytest.raises(BranchOngoing, match="its connection is not closed yet"):
                finish_sync(mariadb.connect, key, op)
        assert not mariadb.has(key.gid)

    assert finish_sync(mariadb.connect, key, "commit") is RUN
    assert mariadb.has(key.gid)


def hold_prepared(ledger: Ledger, key: XaKey) -> Any:
    """Prepare on a connection that stays open."""
    held = ledger.connect()
    with held.cursor() as cursor:
        cursor.execute(f"xa start '{key.gid}-01'")
        cursor.execute(
            "insert into dtm_barrier.barrier (trans_type, gid, branch_id, op, barrier_id, reason) "
            "values (%s, %s, %s, %s, %s, %s)",
            ("xa", key.gid, "01", "action", "01", "action"),
        )
        cursor.execute("insert into entry values (%s)", (key.gid,))
        cursor.execute(f"xa end '{key.gid}-01'")
        cursor.execute(f"xa prepare '{key.gid}-01'")
    return held


def test_a_commit_does_not_take_what_is_only_prepared_for_committed(mariadb: Ledger, key: XaKey) -> None:
    def connect() -> Any:
        return pymysql.connect(
            **account(mariadb.url), init_command="set session transaction isolation level read uncommitted"
        )

    with closing(hold_prepared(mariadb, key)), pytest.raises(BranchOngoing, match="its connection is not closed yet"):
        finish_sync(connect, key, "commit")

    assert finish_sync(connect, key, "commit") is RUN
    assert mariadb.has(key.gid)


def test_work_cannot_commit_in_mariadb(mariadb: Ledger, key: XaKey) -> None:
    def work(connection: Any) -> None:
        connection.cursor().execute("insert into entry values (%s)", (key.gid,))
        connection.commit()

    with pytest.raises(pymysql.err.OperationalError, match="XAER_RMFAIL"):
        prepare_sync(mariadb.connect, key, work, register=lambda: None)

    assert (mariadb.prepared, mariadb.has(key.gid)) == ([], False)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        pytest.param("10.11.6-MariaDB-0+deb12u1", "", id="MariaDB"),
        pytest.param("10.4.34-MariaDB", "XA needs 10.5.2 or later", id="old MariaDB"),
        pytest.param("8.0.36", "", id="MySQL"),
        pytest.param("5.7.7-rc", "", id="first MySQL"),
        pytest.param("5.6.51-log", "XA needs 5.7.7 or later", id="old MySQL"),
    ],
)
def test_versions_that_forget_what_is_prepared_are_refused(version: str, words: str) -> None:
    why = why_too_old(version)

    assert why.endswith(words) if words else not why


def test_a_connection_keeps_its_settings(mariadb: Ledger, key: XaKey) -> None:
    kept = mariadb.connect()
    kept.cursor().execute("set innodb_lock_wait_timeout = 17")

    @contextmanager
    def lend() -> Iterator[Any]:
        yield kept

    kept.autocommit(False)
    assert finish_sync(lend, key, "rollback") is EMPTY

    assert not kept.get_autocommit()
    cursor = kept.cursor()
    cursor.execute("select @@innodb_lock_wait_timeout")
    assert cursor.fetchone() == (17,)
    kept.close()


async def test_a_connection_keeps_its_settings_when_the_action_ends_meanwhile(mariadb: Ledger, key: XaKey) -> None:
    kept = mariadb.connect()
    kept.cursor().execute("set innodb_lock_wait_timeout = 17")

    @contextmanager
    def lend() -> Iterator[Any]:
        yield kept

    working, gate = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        working.set()
        await gate.wait()

    async with aiomysql_pool(mariadb.url, mariadb.name) as way:
        action = asyncio.create_task(way.prepare(key, key.gid, after=wait))
        await asyncio.wait_for(working.wait(), 10)
        rollback = asyncio.create_task(asyncio.to_thread(finish_sync, lend, key, "rollback"))
        inserting = "select 1 from information_schema.processlist where info like %s"
        while not rollback.done() and not await asyncio.to_thread(
            mariadb.run, inserting, f"insert ignore into dtm_barrier%{key.gid}%"
        ):
            pass
        gate.set()
        await action
        with suppress(BranchOngoing):  # a connection that is closed lets go a moment after
            await rollback

    if kept.open:
        cursor = kept.cursor()
        cursor.execute("select @@innodb_lock_wait_timeout")
        assert cursor.fetchone() == (17,)
        kept.close()
    assert await asyncio.to_thread(finish_sync, mariadb.connect, key, "rollback") is DUPLICATE
    assert not mariadb.has(key.gid)


# -- PostgreSQL ----------------------------------------------------------------------------------


@pytest.fixture
def postgres(shared_postgres_url: str) -> Iterator[Ledger]:
    made = Ledger(shared_postgres_url)
    yield made
    made.end_all()


def opened(ledger: Ledger) -> Callable[[], Any]:
    return lambda: psycopg.connect(ledger.url)


@pytest.mark.parametrize(
    "statement", ["commit", "rollback", "select 1/0"], ids=["commits", "rolls back", "swallows an error"]
)
def test_work_that_ends_or_breaks_the_transaction_is_noticed(postgres: Ledger, key: XaKey, statement: str) -> None:
    # The prepare would otherwise prepare nothing, or roll back, and report success.
    def work(connection: psycopg.Connection) -> None:
        connection.execute("insert into entry values (%s)", (key.gid,))
        with suppress(psycopg.errors.DivisionByZero):
            connection.execute(statement.encode())

    with pytest.raises(psycopg.Error):
        prepare_sync(opened(postgres), key, work, register=lambda: None)

    assert postgres.prepared == []
    assert postgres.has(key.gid) is (statement == "commit"), "what work commits by itself cannot be taken back"


def test_a_server_without_prepared_transactions_is_named(key: XaKey) -> None:
    with start_postgres(settings={"max_prepared_transactions": "0"}) as server:
        ledger = Ledger(server.create_database("plain"))
        with pytest.raises(XaError, match=r"set max_prepared_transactions .* and restart it"):
            prepare_sync(opened(ledger), key, lambda _: pytest.fail("it was to be found before"), register=lambda: None)


def test_the_lock_timeout_of_the_work_is_its_own(postgres: Ledger, key: XaKey) -> None:
    def connect() -> psycopg.Connection:
        return psycopg.connect(postgres.url, options="-c lock_timeout=54321")

    def work(connection: psycopg.Connection) -> object:
        return connection.execute("show lock_timeout").fetchone()

    prepared = prepare_sync(connect, key, work, register=lambda: None)

    assert prepared.result == ("54321ms",)


# -- what cannot work ------------------------------------------------------------------------------


async def nothing() -> None:
    pass


def test_sources_that_give_no_connection(postgres: Ledger, key: XaKey, tmp_path: Path) -> None:
    for source, words in (
        (None, "gives no connections"),
        (psycopg.connect(postgres.url), "gives no connections"),
        (lambda: 7, "which is not a blocking connection"),
        (lambda: sqlite3.connect(tmp_path / "x.db"), "XA does not work on a sqlite3.Connection"),
        (lambda: Session(create_engine(over(postgres.url, "psycopg"))), "XA does not work on a sqlalchemy"),
        (create_engine(f"sqlite:///{tmp_path}/x.db"), "sqlite has no prepared transactions"),
        (create_async_engine(over(postgres.url, "asyncpg")), "is async"),
        (lambda: psycopg.AsyncConnection.connect(postgres.url), "which is not a blocking connection"),
    ):
        with pytest.raises((XaError, BarrierError, InvalidRequestError), match=words):
            finish_sync(source, key, "rollback")


@pytest.mark.parametrize(("kind", "driver"), [("mysql", "aiomysql"), ("postgres", "asyncpg")])
async def test_methods_of_an_engine_are_sources_too(
    request: pytest.FixtureRequest, key: XaKey, kind: str, driver: str
) -> None:
    ledger = Ledger(request.getfixturevalue(f"shared_{kind}_url"))
    engine = create_async_engine(over(ledger.url, driver))

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(text("insert into entry values (:name)"), {"name": key.gid})

    # It would end, or keep, what is not its own.
    with pytest.raises(XaError, match="has a transaction open"):
        await prepare(engine.begin, key, work, register=nothing)
    await prepare(engine.connect, key, work, register=nothing)
    assert await finish(engine.connect, key, "commit") is RUN

    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()
    assert ledger.has(key.gid)


async def test_blocking_sources_do_not_enter_the_event_loop(postgres: Ledger, key: XaKey) -> None:
    for source in (opened(postgres), create_engine(over(postgres.url, "psycopg"))):
        with pytest.raises((BarrierError, XaError), match=r"blocks: use the \w+ that ends in _sync"):
            await finish(source, key, "rollback")


async def test_work_of_the_wrong_kind(postgres: Ledger, key: XaKey) -> None:
    async def coroutine(_: Any) -> None:
        pass

    with pytest.raises(TypeError, match="use prepare, with an async source"):
        prepare_sync(opened(postgres), key, coroutine, register=lambda: None)
    with pytest.raises(TypeError, match="use prepare_sync"):
        await prepare(lambda: asyncpg.connect(postgres.url), key, lambda _: None, register=nothing)  # type: ignore[arg-type, return-value]
    assert postgres.prepared == []


@pytest.mark.parametrize(
    ("gid", "branch_id", "op", "words"),
    [
        ("g" * 129, "01", "commit", "gid has 129 characters"),
        ("", "01", "commit", "gid is missing"),
        ("g", "", "rollback", "branch_id is missing"),
        ("g", "01", "action", "it is commit or rollback"),
    ],
)
def test_what_the_barrier_cannot_keep(postgres: Ledger, gid: str, branch_id: str, op: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        finish_sync(opened(postgres), XaKey(gid=gid, branch_id=branch_id), op)


def test_a_missing_barrier_table_is_named(make_database: Callable[[str], str], key: XaKey) -> None:
    url = make_database("postgres")

    with pytest.raises(psycopg.errors.UndefinedTable) as caught:
        finish_sync(lambda: psycopg.connect(url), key, "rollback")

    assert any("txcoord-barrier create URL" in note for note in caught.value.__notes__)


# -- a barrier within the work -------------------------------------------------------------


class Registry:
    """Where a branch registers, and is taken as it is."""

    def register_xa_branch(self, branch: BranchContext) -> None:
        pass


def branch_of(key: XaKey, op: str) -> BranchContext:
    query = {"gid": key.gid, "branch_id": key.branch_id, "trans_type": "xa", "op": op, "phase2_url": "http://bank/end"}
    return BranchContext.from_query(query)


@pytest.mark.parametrize("kind", ["mysql", "postgres"])
def test_a_barrier_within_the_work_is_not_that_of_xa(request: pytest.FixtureRequest, key: XaKey, kind: str) -> None:
    ledger = Ledger(request.getfixturevalue(f"shared_{kind}_url"))
    engine = create_engine(over(ledger.url, "pymysql" if kind == "mysql" else "psycopg"))
    registry: Any = Registry()
    passages: list[Passage] = []

    def write(connection: Connection) -> None:
        connection.execute(text("insert into entry values (:name)"), {"name": f"{key.gid}-{len(passages)}"})

    for _ in range(2):  # the second delivery finds what is prepared
        branch = branch_of(key, "action")

        def work(connection: Connection, branch: BranchContext = branch) -> None:
            passages.append(branch.barrier.call_sync(connection, write))

        take_part_sync(branch, engine, work, coordinator=registry)
    take_part_sync(branch_of(key, "commit"), engine, lambda _: None, coordinator=registry)

    assert passages == [RUN]
    assert ledger.has(f"{key.gid}-0")

    late = branch_of(XaKey(gid=f"{key.gid}-late", branch_id="01"), "action")
    with engine.begin() as connection:
        late.barrier.call_sync(connection, lambda _: None)
    with pytest.raises(XaError, match="called before take_part"):
        take_part_sync(late, engine, lambda _: None, coordinator=registry)
    engine.dispose()
