"""What is particular to a driver, a session or an isolation level; and what is refused."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import aiomysql
import aiosqlite
import asyncpg
import psycopg
import pymysql
import pytest
from psycopg.rows import dict_row
from pymysql.cursors import DictCursor
from sqlalchemy import Connection, NullPool, String, create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from sdk.tests import barrier_support as support
from txcoord.errors import InvalidRequestError
from txcoord_sdk.barrier import (
    BarrierError,
    BranchBarrier,
    NoTransactionError,
    Passage,
    create_table,
    create_table_at,
    create_table_sync,
)

RUN, DUPLICATE, EMPTY, SUSPENDED = Passage.RUN, Passage.DUPLICATE, Passage.EMPTY, Passage.SUSPENDED


class Base(DeclarativeBase):
    pass


class Purse(Base):
    __tablename__ = "purse"

    owner: Mapped[str] = mapped_column(String(60), primary_key=True)
    balance: Mapped[int]


@pytest.fixture
def gid() -> str:
    return f"gid-{uuid4().hex}"


def action(gid: str, op: str = "action") -> BranchBarrier:
    return BranchBarrier("saga", gid, "01", op)


def nothing(_: object) -> None:
    pass


async def nothing_async(_: object) -> None:
    pass


# -- sessions --------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "mysql", "postgres"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[support.SqlAlchemySession]:
    bench = support.SqlAlchemySession(request.getfixturevalue(f"shared_{request.param}_url"))
    await bench.prepare()
    yield bench
    await bench.close()


@pytest.fixture
async def session(bench: support.SqlAlchemySession) -> Session:
    opened: Session = (await bench.connect()).connection
    return opened


def test_objects_added_by_the_work_commit_with_the_barrier(session: Session, gid: str) -> None:
    action(gid).call_sync(session, lambda s: s.add(Purse(owner=gid, balance=5)))
    session.commit()
    assert session.scalars(select(Purse.balance).where(Purse.owner == gid)).all() == [5]

    assert action(gid).call_sync(session, lambda s: s.add(Purse(owner=gid, balance=6))) is DUPLICATE
    session.commit()


def test_objects_of_failed_work_leave_the_session_and_earlier_ones_stay(session: Session, gid: str) -> None:
    session.add(Purse(owner=gid, balance=1))

    def work(within: Session) -> None:
        within.add(Purse(owner=f"{gid}-2", balance=2))
        within.get_one(Purse, gid).balance = 99
        raise LookupError

    with pytest.raises(LookupError):
        action(gid).call_sync(session, work)
    session.commit()

    found = session.execute(select(Purse.owner, Purse.balance).where(Purse.owner.startswith(gid))).all()
    assert [tuple(row) for row in found] == [(gid, 1)]


def test_a_flush_that_fails_is_of_the_call_and_the_session_goes_on(session: Session, gid: str) -> None:
    session.add(Purse(owner=gid, balance=1))
    session.flush()
    session.expunge_all()
    with pytest.raises(IntegrityError):
        # The work only adds; the call ends with a flush, so that the error is the call's.
        action(gid).call_sync(session, lambda s: s.add(Purse(owner=gid, balance=2)))
    session.commit()

    assert session.get_one(Purse, gid).balance == 1
    assert action(gid).call_sync(session, nothing) is RUN


def test_a_block_of_begin_works_as_always(bench: support.SqlAlchemySession, gid: str) -> None:
    engine = create_engine(bench.driver_url, poolclass=NullPool)
    with engine.begin() as connection:
        assert action(gid).call_sync(connection, nothing) is RUN
    with pytest.raises(LookupError), engine.begin() as connection:
        action(gid, "compensate").call_sync(connection, raise_lookup_error)
    with Session(engine) as session, session.begin():
        assert action(gid, "compensate").call_sync(session, nothing) is RUN
        assert action(gid, "compensate").call_sync(session, nothing) is DUPLICATE
    with Session(engine) as session, session.begin():
        assert action(gid, "compensate").call_sync(session, nothing) is DUPLICATE


def raise_lookup_error(_: object) -> None:
    raise LookupError


def test_a_session_within_a_savepoint_of_the_caller(session: Session, gid: str) -> None:
    with session.begin_nested() as nested:
        assert action(gid).call_sync(session, nothing) is RUN
        nested.rollback()
    assert action(gid, "compensate").call_sync(session, nothing) is EMPTY
    session.commit()


def test_scoped_sessions_are_sessions(bench: support.SqlAlchemySession, gid: str) -> None:
    scoped = scoped_session(sessionmaker(create_engine(bench.driver_url, poolclass=NullPool)))
    assert action(gid).call_sync(scoped, nothing, commit=True) is RUN
    assert action(gid).call_sync(scoped, nothing) is DUPLICATE
    scoped.remove()


async def test_async_scoped_sessions_are_sessions(sqlite_url: str, gid: str) -> None:
    create_table_at(sqlite_url)
    engine = create_async_engine(sqlite_url.replace("sqlite:", "sqlite+aiosqlite:"), poolclass=NullPool)
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    assert await action(gid).call(scoped, nothing_async, commit=True) is RUN
    await scoped.remove()
    async with AsyncSession(engine) as session, session.begin():
        assert await action(gid).call(session, nothing_async) is DUPLICATE


def test_an_autocommit_option_of_one_connection_is_seen(bench: support.SqlAlchemySession, gid: str) -> None:
    engine = create_engine(bench.driver_url, poolclass=NullPool)
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(NoTransactionError),
    ):
        action(gid).call_sync(connection, nothing)


def autocommitting(bench: support.SqlAlchemySession) -> dict[str, Any]:
    """Say it to the driver itself."""
    if bench.database == "sqlite" and sys.version_info < (3, 12):
        pytest.skip("sqlite3.connect(autocommit=…) came with Python 3.12")
    return {"connect_args": {"autocommit": True}, "poolclass": NullPool}


@pytest.mark.parametrize("commit", [False, True])
def test_an_autocommit_of_the_driver_is_seen(bench: support.SqlAlchemySession, gid: str, commit: bool) -> None:
    engine = create_engine(bench.driver_url, **autocommitting(bench))
    with engine.connect() as connection, pytest.raises(NoTransactionError):
        action(gid).call_sync(connection, nothing, commit=commit)
    with Session(engine) as session, pytest.raises(NoTransactionError):
        action(gid).call_sync(session, nothing, commit=commit)

    with create_engine(bench.driver_url, poolclass=NullPool).connect() as connection:
        assert action(gid).call_sync(connection, nothing) is RUN


@pytest.mark.parametrize("commit", [False, True])
async def test_an_autocommit_of_an_async_driver_is_seen(
    mysql_url: str, postgres_url: str, gid: str, commit: bool
) -> None:
    urls = mysql_url.replace("mysql:", "mysql+aiomysql:"), postgres_url.replace("postgresql:", "postgresql+psycopg:")
    for url in urls:
        engine = create_async_engine(url, connect_args={"autocommit": True}, poolclass=NullPool)
        async with engine.connect() as connection:
            with pytest.raises(NoTransactionError):
                await action(gid).call(connection, nothing_async, commit=commit)


@pytest.mark.parametrize("commit", [False, True])
def test_an_autocommit_of_the_driver_will_do_where_begin_is_sent(
    bench: support.SqlAlchemySession, gid: str, commit: bool
) -> None:
    if bench.database == "sqlite":
        pytest.skip("its transaction has to be ended by statement then, which SQLAlchemy does not")
    engine = create_engine(bench.driver_url, **autocommitting(bench))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("begin"))
    for passage in (RUN, DUPLICATE):
        with engine.connect() as connection:
            assert action(gid).call_sync(connection, nothing, commit=commit) is passage
            connection.commit()
    with Session(engine) as session:
        assert action(gid).call_sync(session, nothing, commit=commit) is DUPLICATE


def test_an_engine_makes_its_own_table(bench: support.SqlAlchemySession) -> None:
    table = bench.new_table()
    engine = create_engine(bench.driver_url, poolclass=NullPool)

    assert create_table_sync(engine, table=table)
    assert not create_table_sync(engine, table=table)


async def test_an_async_engine_makes_its_own_table(sqlite_url: str) -> None:
    engine = create_async_engine(sqlite_url.replace("sqlite:", "sqlite+aiosqlite:"), poolclass=NullPool)

    assert await create_table(engine)
    assert not await create_table(engine)


def test_a_database_without_a_table_of_ours_is_refused(gid: str) -> None:
    engine = create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with engine.connect() as connection, pytest.raises(BarrierError, match="no table for oracle"):
        action(gid).call_sync(connection, nothing)


# -- blocks ----------------------------------------------------------------------------------


def test_a_block_is_run_or_left_out(sqlite_url: str, gid: str) -> None:
    create_table_at(sqlite_url)
    connection = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    ran = []
    for _ in range(2):
        with action(gid).guard_sync(connection, commit=True) as passage:
            if passage.runs:
                ran.append(passage)
    assert ran == [RUN]

    with pytest.raises(LookupError), action(gid, "compensate").guard_sync(connection, commit=True):
        raise LookupError
    with action(gid, "compensate").guard_sync(connection) as passage:
        assert passage is RUN


async def test_a_block_that_is_cancelled_leaves_nothing(postgres_url: str, gid: str) -> None:
    create_table_at(postgres_url)
    connection = await asyncpg.connect(postgres_url)
    inside = asyncio.Event()

    async def handler() -> None:
        async with connection.transaction(), action(gid).guard(connection):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(handler())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with connection.transaction(), action(gid, "compensate").guard(connection) as passage:
        assert passage is EMPTY
    await connection.close()


# -- rows as dicts, bytes or whatever the application likes -----------------------------------


def _twice(connection: Any, gid: str) -> list[Passage]:
    passages = [action(gid, op).call_sync(connection, nothing) for op in ("compensate", "action")]
    connection.commit()
    connection.close()
    return passages


def test_the_callers_kind_of_row_does_not_matter(mysql_url: str, postgres_url: str, sqlite_url: str, gid: str) -> None:
    for url in (mysql_url, postgres_url, sqlite_url):
        create_table_at(url)
    account = support.PyMySQL(mysql_url).account
    as_rows, as_bytes = (sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) for _ in range(2))
    as_rows.row_factory = lambda cursor, row: {"values": row}
    as_bytes.text_factory = bytes

    assert _twice(pymysql.connect(**account, cursorclass=DictCursor), gid) == [EMPTY, SUSPENDED]
    assert _twice(psycopg.connect(postgres_url, row_factory=dict_row), gid) == [EMPTY, SUSPENDED]
    assert _twice(as_rows, gid) == [EMPTY, SUSPENDED]
    assert _twice(as_bytes, f"{gid}-2") == [EMPTY, SUSPENDED]


async def test_pools_lend_connections_that_will_do(mysql_url: str, postgres_url: str, gid: str) -> None:
    for url in (mysql_url, postgres_url):
        create_table_at(url)
    account = support.PyMySQL(mysql_url).account
    async with asyncpg.create_pool(postgres_url, min_size=1) as pool, pool.acquire() as connection:
        async with connection.transaction():
            assert await action(gid).call(connection, nothing_async) is RUN
        with pytest.raises(NoTransactionError):
            await action(gid).call(connection, nothing_async)
        with pytest.raises(BarrierError, match="Pool"):
            await action(gid).call(pool, nothing_async)
    async with aiomysql.create_pool(minsize=1, **account) as my_pool, my_pool.acquire() as connection:
        assert await action(gid).call(connection, nothing_async, commit=True) is RUN


async def test_leaving_out_a_duplicate_is_nothing_to_warn_of(mysql_url: str, gid: str) -> None:
    create_table_at(mysql_url)
    connection = await aiomysql.connect(**support.PyMySQL(mysql_url).account)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passages = [await action(gid).call(connection, nothing_async) for _ in range(2)]
    connection.close()

    assert passages == [RUN, DUPLICATE]


# -- isolation levels ------------------------------------------------------------------------


def test_a_row_committed_after_the_callers_snapshot_is_still_found(mysql_url: str, gid: str) -> None:
    create_table_at(mysql_url)
    account = support.PyMySQL(mysql_url).account
    early, late = pymysql.connect(**account), pymysql.connect(**account)
    with late.cursor() as cursor:  # REPEATABLE READ: from here on it sees what is there now
        cursor.execute("select count(*) from dtm_barrier.barrier")
    assert action(gid).call_sync(early, nothing, commit=True) is RUN

    assert action(gid).call_sync(late, nothing, commit=True) is DUPLICATE
    early.close()
    late.close()


def test_a_snapshot_that_postgresql_cannot_keep_is_an_error_and_not_a_guess(postgres_url: str, gid: str) -> None:
    create_table_at(postgres_url)
    early, late = psycopg.connect(postgres_url), psycopg.connect(postgres_url)
    late.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    late.execute("select 1 from dtm_barrier.barrier limit 1")
    assert action(gid).call_sync(early, nothing, commit=True) is RUN

    with pytest.raises(psycopg.errors.SerializationFailure):
        action(gid).call_sync(late, nothing, commit=True)
    assert action(gid).call_sync(late, nothing, commit=True) is DUPLICATE
    early.close()
    late.close()


def test_a_deadlock_comes_through_and_leaves_nothing(mysql_url: str, gid: str) -> None:
    create_table_at(mysql_url)
    account = support.PyMySQL(mysql_url).account
    one, two = pymysql.connect(**account), pymysql.connect(**account)
    # Each holds its own row and, as its work, wants the other's.
    errors: list[BaseException] = []
    both_hold = threading.Barrier(2)

    def handler(connection: Any, mine: str, other: str) -> None:
        def work(within: Any) -> None:
            both_hold.wait(support.LOCK_WAIT_S)
            assert action(other).call_sync(within, nothing) is RUN

        try:
            action(mine).call_sync(connection, work)
            connection.commit()
        except pymysql.err.OperationalError as error:
            connection.rollback()
            errors.append(error)

    names = (f"{gid}-1", f"{gid}-2")
    threads = [
        threading.Thread(target=handler, args=arguments) for arguments in ((one, *names), (two, *reversed(names)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(support.LOCK_WAIT_S)

    # One is the victim, wholly: the other's work did run.
    [error] = errors
    assert "Deadlock" in str(error)
    assert [action(each).call_sync(one, nothing) for each in names] == [DUPLICATE, DUPLICATE]
    one.close()
    two.close()


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_deadlock_that_the_work_survives_leaves_nothing(mysql_url: str, gid: str, autocommit: bool) -> None:
    create_table_at(mysql_url)
    bench = support.PyMySQL(mysql_url)
    account = {**bench.account, "database": bench.database_name}
    ours, other = pymysql.connect(**account, autocommit=autocommit), pymysql.connect(**account)
    with ours.cursor() as cursor:
        cursor.execute("create table account (id int primary key, balance int not null)")
        cursor.executemany("insert into account values (%s, 100)", [(number,) for number in range(1, 51)])
        ours.commit()
    with other.cursor() as cursor:  # has changed more, so that ours is the victim
        cursor.execute("update account set balance = balance + 1 where id > 1")

    def transfer(within: Any) -> None:
        with within.cursor() as cursor:
            cursor.execute("update account set balance = balance - 10 where id = 1")
            waiting = threading.Thread(target=lambda: other.cursor().execute("select 1 from account for update"))
            waiting.start()
            with pytest.raises(pymysql.err.OperationalError, match="Deadlock"):
                cursor.execute("update account set balance = balance + 10 where id = 2")
            waiting.join(support.LOCK_WAIT_S)
            other.rollback()
            cursor.execute("update account set balance = balance - 10 where id = 1")
            cursor.execute("update account set balance = balance + 10 where id = 2")

    with pytest.raises(pymysql.err.OperationalError, match=r"SAVEPOINT .* does not exist"):
        action(gid).call_sync(ours, transfer, commit=True)

    with other.cursor() as cursor:
        cursor.execute("select balance from account where id < 3")
        assert cursor.fetchall() == ((100,), (100,))
    assert ours.get_autocommit() is autocommit
    assert action(gid).call_sync(ours, nothing, commit=True) is RUN
    ours.close()
    other.close()


# -- SQLite's ways with transactions ---------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3.connect(autocommit=…) came with Python 3.12")
def test_sqlite_connections_of_the_newer_way(sqlite_url: str, gid: str) -> None:
    create_table_at(sqlite_url)
    path = sqlite_url.removeprefix("sqlite:///")
    each = sqlite3.connect(path, autocommit=True)  # type: ignore[call-arg, unused-ignore]
    always = sqlite3.connect(path, autocommit=False)  # type: ignore[call-arg, unused-ignore]

    with pytest.raises(NoTransactionError):
        action(gid).call_sync(each, nothing)
    assert action(gid).call_sync(each, nothing, commit=True) is RUN
    assert action(gid, "compensate").call_sync(always, nothing) is RUN
    always.rollback()
    assert action(gid, "compensate").call_sync(always, nothing, commit=True) is RUN
    assert action(gid, "compensate").call_sync(each, nothing, commit=True) is DUPLICATE


@pytest.mark.parametrize("level", [None, "DEFERRED"])
async def test_cancelled_while_it_begins_it_leaves_no_transaction_open(
    sqlite_url: str, gid: str, level: Literal["DEFERRED"] | None
) -> None:
    create_table_at(sqlite_url)
    path = sqlite_url.removeprefix("sqlite:///")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    async with aiosqlite.connect(path, timeout=support.LOCK_WAIT_S, isolation_level=level) as connection:
        waiting = asyncio.create_task(action(gid).call(connection, nothing_async, commit=True))
        while not connection._tx.empty():  # its thread has taken the `begin`, which waits for the other one
            await asyncio.sleep(0.01)
        waiting.cancel()
        other.execute("commit")
        with pytest.raises(asyncio.CancelledError):
            await waiting

        assert not connection.in_transaction
        assert await action(gid).call(connection, nothing_async, commit=True) is RUN
    other.close()


def test_sqlite_connections_as_context_managers(sqlite_url: str, gid: str) -> None:
    create_table_at(sqlite_url)
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
        assert action(gid).call_sync(connection, nothing) is RUN
    with pytest.raises(LookupError), connection:
        action(gid, "compensate").call_sync(connection, raise_lookup_error)
    with connection:
        assert action(gid, "compensate").call_sync(connection, nothing) is RUN


# -- rights ----------------------------------------------------------------------------------


def test_a_table_that_is_there_needs_no_right_to_make_one(postgres_url: str) -> None:
    create_table_at(postgres_url)
    role = f"shop_{uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"create role {role}".encode())
        admin.execute(f"grant usage on schema dtm_barrier to {role}".encode())
    try:
        with psycopg.connect(postgres_url) as connection:
            connection.execute(f"set role {role}".encode())
            connection.commit()
            assert not create_table_sync(connection)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                create_table_sync(connection, table=f"new_{role}.barrier")
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute(f"drop owned by {role}".encode())
            admin.execute(f"drop role {role}".encode())


def test_the_table_joins_a_transaction_of_the_caller(postgres_url: str) -> None:
    table = f"made_{uuid4().hex}"
    with psycopg.connect(postgres_url) as connection:
        connection.execute("select 1")
        assert create_table_sync(connection, table=table)
        connection.rollback()
        assert create_table_sync(connection, table=table)


# -- refused before anything is asked of a database -------------------------------------------


@pytest.mark.parametrize("field", ["trans_type", "gid", "branch_id", "op"])
def test_each_part_of_a_barrier_is_needed(field: str) -> None:
    parts = {"trans_type": "saga", "gid": "g1", "branch_id": "01", "op": "action"}
    with pytest.raises(InvalidRequestError, match=f"{field} is missing"):
        BranchBarrier(**{**parts, field: ""})


def test_values_that_mysql_would_cut_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="gid has 129 characters"):
        action("x" * 129)
    with pytest.raises(InvalidRequestError, match="barrier_id has 46"):
        action("g1").call_sync(sqlite3.connect(":memory:"), nothing, barrier_id="x" * 46)


def test_a_wrong_table_name_never_reaches_the_database() -> None:
    connection = sqlite3.connect(":memory:")
    barrier = BranchBarrier("saga", "g1", "01", "action", table="barrier; drop table purse")
    with pytest.raises(InvalidRequestError, match="cannot name the barrier table"):
        barrier.call_sync(connection, nothing)
    assert not connection.in_transaction


@pytest.mark.parametrize(
    "connection",
    [None, 5, sqlite3.connect(":memory:").cursor(), create_engine("sqlite://"), Path()],
    ids=["None", "int", "cursor", "engine", "path"],
)
def test_what_is_no_connection_is_refused(connection: object) -> None:
    with pytest.raises(BarrierError, match="give it the connection or session that the work uses"):
        action("g1").call_sync(connection, nothing)


def test_a_subclass_of_a_connection_is_a_connection() -> None:
    class Ours(sqlite3.Connection):
        pass

    connection = Ours(":memory:")
    create_table_sync(connection)

    assert action("g1").call_sync(connection, nothing) is RUN


def test_a_row_that_vanishes_is_an_error_and_not_a_guess() -> None:
    connection = sqlite3.connect(":memory:")
    create_table_sync(connection)
    connection.execute("create trigger vanish before insert on barrier begin select raise(ignore); end")

    with pytest.raises(BarrierError, match="neither inserted nor found; call again"):
        action("g1").call_sync(connection, nothing)


def test_the_first_error_is_the_one_that_counts() -> None:
    connection = sqlite3.connect(":memory:")
    create_table_sync(connection)

    def work(within: sqlite3.Connection) -> None:
        within.close()
        raise LookupError("out of stock")

    with pytest.raises(LookupError, match="out of stock") as caught:
        action("g1").call_sync(connection, work)
    assert any("taking it back failed too" in note for note in caught.value.__notes__)


def test_an_error_says_which_operation_it_was_about() -> None:
    with pytest.raises(sqlite3.OperationalError) as caught:
        BranchBarrier("tcc", "g1", "02", "try").call_sync(sqlite3.connect(":memory:"), nothing)

    [note] = caught.value.__notes__
    assert "barrier 01 of tcc g1, branch 02, try: writing to barrier failed" in note
    assert repr(action("g1")) == "BranchBarrier('saga', 'g1', '01', 'action')"


def test_a_statement_through_sqlalchemy_keeps_its_errors(bench: support.SqlAlchemySession, gid: str) -> None:
    engine = create_engine(bench.driver_url, poolclass=NullPool)

    def work(connection: Connection) -> None:
        connection.execute(text("select * from no_such_table"))

    with pytest.raises(DBAPIError, match="no_such_table"), engine.begin() as connection:
        action(gid).call_sync(connection, work)
