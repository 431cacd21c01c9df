"""Participants for the barrier's tests: every driver on every database, behind one small face.

A `Bench` is one way to reach one database; a `Caller` is one connection or session of it, used
as an application would: plain SQL of its own, its own transactions. Blocking ones run in a
thread, so that two of them can meet at a lock.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import aiomysql
import aiosqlite
import asyncpg
import psycopg
import pymysql
import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from txcoord_sdk.barrier import BranchBarrier, Passage, create_table_at

LOCK_WAIT_S = 60
"""How long a connection waits for a lock; the tests end each wait by an event long before."""

Rows = Sequence[Sequence[Any]]
Statement = tuple[str, Sequence[object]]


RUN, DUPLICATE, EMPTY, SUSPENDED = Passage.RUN, Passage.DUPLICATE, Passage.EMPTY, Passage.SUSPENDED

ORDERS_OF_ARRIVAL = [
    pytest.param([("action", RUN)], 1, [("action", "action")], id="action"),
    pytest.param(
        [("action", RUN), ("compensate", RUN)],
        0,
        [("action", "action"), ("compensate", "compensate")],
        id="action, compensate",
    ),
    pytest.param(
        [("compensate", EMPTY), ("action", SUSPENDED)],
        0,
        [("action", "compensate"), ("compensate", "compensate")],
        id="compensate, late action",
    ),
    pytest.param([("action", RUN), ("action", DUPLICATE)], 1, [("action", "action")], id="action twice"),
    pytest.param(
        [("compensate", EMPTY), ("compensate", DUPLICATE)],
        0,
        [("action", "compensate"), ("compensate", "compensate")],
        id="compensate twice, never an action",
    ),
    pytest.param(
        [("action", RUN), ("compensate", RUN), ("compensate", DUPLICATE), ("action", DUPLICATE)],
        0,
        [("action", "action"), ("compensate", "compensate")],
        id="both twice",
    ),
    pytest.param(
        [("try", RUN), ("cancel", RUN), ("try", DUPLICATE)],
        0,
        [("try", "try"), ("cancel", "cancel")],
        id="try, cancel, try",
    ),
    pytest.param(
        [("cancel", EMPTY), ("try", SUSPENDED)], 0, [("try", "cancel"), ("cancel", "cancel")], id="cancel, late try"
    ),
    pytest.param(
        [("rollback", EMPTY), ("action", SUSPENDED)],
        0,
        [("action", "rollback"), ("rollback", "rollback")],
        id="rollback, late action",
    ),
    pytest.param([("confirm", RUN), ("confirm", DUPLICATE)], 1, [("confirm", "confirm")], id="confirm twice"),
]
"""What arrives and how it passes; how often the amount is in the balance then; the rows: op and reason."""

STRANGE_GIDS = (
    "' or '1'='1",
    "'); drop table purse; --",
    '"; select 1; --',
    "\\' or 1=1 -- ",
    "%s %d %% %(gid)s",
    ":gid ::text $1 ?",
    "{gid} \\n \\x00",
    "gid\nwith\ttabs",
    "订单-ünï-\U0001f6d2",
    "x" * 90,
)


def change(owner: str, amount: int) -> Statement:
    """The business: change a balance."""
    return "update purse set balance = balance + ? where owner = ?", (amount, owner)


class Caller:
    """One connection or session, with the caller's own transaction."""

    is_async: ClassVar[bool]
    mark: ClassVar[str]
    """How the driver wants a bound value marked; `#` stands for its number."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.is_closed = False

    async def call(
        self,
        barrier: BranchBarrier,
        *statements: Statement,
        error: BaseException | None = None,
        forgives: bool = False,
        **options: Any,
    ) -> Passage:
        """Run statements behind the barrier, and raise after them if told to.

        Args:
            forgives: have the work catch what the statements raise.
        """
        forgiven = (Exception,) if forgives else ()

        async def work(connection: Any) -> None:
            assert connection is self.connection
            for statement, values in statements:
                with suppress(*forgiven):
                    await self.execute(statement, *values)
            if error is not None:
                raise error

        def blocking_work(connection: Any) -> None:
            assert connection is self.connection
            for statement, values in statements:
                with suppress(*forgiven):
                    self.execute_now(statement, *values)
            if error is not None:
                raise error

        if self.is_async:
            return await barrier.call(self.connection, work, **options)
        return await asyncio.to_thread(barrier.call_sync, self.connection, blocking_work, **options)

    async def call_nested(
        self, outer: BranchBarrier, inner: BranchBarrier, statement: Statement
    ) -> tuple[Passage, Passage]:
        """Call one barrier within the work of another, and change the balance in both."""
        passages: list[Passage] = []

        async def change_it(connection: Any) -> None:
            await self.execute(statement[0], *statement[1])

        async def work(connection: Any) -> None:
            passages.append(await inner.call(connection, change_it))
            await change_it(connection)

        def blocking_change(connection: Any) -> None:
            self.execute_now(statement[0], *statement[1])

        def blocking_work(connection: Any) -> None:
            passages.append(inner.call_sync(connection, blocking_change))
            blocking_change(connection)

        if self.is_async:
            passages.append(await outer.call(self.connection, work))
        else:
            passages.append(await asyncio.to_thread(outer.call_sync, self.connection, blocking_work))
        return passages[1], passages[0]

    async def query_prepared(self, barrier: BranchBarrier) -> bool:
        if self.is_async:
            return await barrier.query_prepared(self.connection)
        return await asyncio.to_thread(barrier.query_prepared_sync, self.connection)

    async def execute(self, statement: str, *values: object) -> Rows:
        """Run a statement with `?` for each value, and return what it found."""
        raise NotImplementedError

    def execute_now(self, statement: str, *values: object) -> Rows:
        raise NotImplementedError

    async def begin(self) -> None:
        """Open a transaction, where the driver does not do so by itself."""

    async def commit(self) -> None:
        await self.do(self.connection.commit)

    async def rollback(self) -> None:
        await self.do(self.connection.rollback)

    async def close(self) -> None:
        """Go without a commit, as a process does that dies. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            await self.do(self.connection.close)

    async def do(self, method: Callable[..., Any], *arguments: object) -> Any:
        if self.is_async:
            return await method(*arguments)
        return await asyncio.to_thread(method, *arguments)

    def marked(self, statement: str) -> str:
        numbers = count(1)
        return re.sub(r"\?", lambda _: self.mark.replace("#", str(next(numbers))), statement)


class BlockingCaller(Caller):
    is_async = False

    async def execute(self, statement: str, *values: object) -> Rows:
        return await asyncio.to_thread(self.execute_now, statement, *values)


class SqliteCaller(BlockingCaller):
    mark = "?"

    def execute_now(self, statement: str, *values: object) -> Rows:
        return self.connection.execute(statement, values).fetchall()


class CursorCaller(BlockingCaller):
    """PyMySQL, psycopg."""

    mark = "%s"

    def execute_now(self, statement: str, *values: object) -> Rows:
        with self.connection.cursor() as cursor:
            cursor.execute(self.marked(statement), values)
            return cursor.fetchall() if cursor.description else ()


class AiosqliteCaller(Caller):
    is_async = True
    mark = "?"

    async def execute(self, statement: str, *values: object) -> Rows:
        return list(await self.connection.execute_fetchall(statement, values))


class AsyncCursorCaller(Caller):
    """aiomysql, psycopg."""

    is_async = True
    mark = "%s"

    async def execute(self, statement: str, *values: object) -> Rows:
        async with self.connection.cursor() as cursor:
            await cursor.execute(self.marked(statement), values)
            return await cursor.fetchall() if cursor.description else ()


class AiomysqlCaller(AsyncCursorCaller):
    async def close(self) -> None:
        self.connection.close()  # does not wait, unlike the others


class AsyncpgCaller(Caller):
    is_async = True
    mark = "$#"

    async def execute(self, statement: str, *values: object) -> Rows:
        return await self.connection.fetch(self.marked(statement), *values)

    async def begin(self) -> None:
        self.transaction = self.connection.transaction()
        await self.transaction.start()

    async def commit(self) -> None:
        await self.transaction.commit()

    async def rollback(self) -> None:
        await self.transaction.rollback()


class SqlAlchemyCaller(BlockingCaller):
    mark = ":p#"

    def execute_now(self, statement: str, *values: object) -> Rows:
        named = {f"p{number}": value for number, value in enumerate(values, start=1)}
        result = self.connection.execute(text(self.marked(statement)), named)
        return result.all() if result.returns_rows else ()


class AsyncSqlAlchemyCaller(Caller):
    is_async = True
    mark = ":p#"

    async def execute(self, statement: str, *values: object) -> Rows:
        named = {f"p{number}": value for number, value in enumerate(values, start=1)}
        result = await self.connection.execute(text(self.marked(statement)), named)
        return result.all() if result.returns_rows else ()


_prepared: set[str] = set()


class Bench(ABC):
    """One driver on one database. Connections that are still open at the end are closed."""

    caller: ClassVar[type[Caller]]

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = urlsplit(url).scheme.partition("+")[0]
        self._callers: list[Caller] = []

    async def prepare(self) -> None:
        """Make the tables, once for each database."""
        if self.url in _prepared:
            return
        create_table_at(self.url)
        caller = await self.begun()
        await caller.execute("create table if not exists purse (owner varchar(60) primary key, balance int not null)")
        await caller.commit()
        _prepared.add(self.url)

    def new_table(self) -> str:
        """A table name nobody has used. PostgreSQL: in a schema of its own, for DTM's constraint name is there once."""
        name = f"made_{uuid4().hex}"
        return f"{name}.barrier" if self.database == "postgresql" else name

    async def connect(self) -> Caller:
        """A connection as it is with nothing said about transactions."""
        return await self._kept(await self.open())

    async def begun(self) -> Caller:
        """A connection that will not commit before it is told to."""
        caller = await self.connect()
        await caller.begin()
        return caller

    async def committing_each(self) -> Caller:
        """A connection that commits each statement by itself."""
        return await self._kept(await self.open(autocommit=True))

    async def close(self) -> None:
        for caller in self._callers:
            await caller.close()

    @abstractmethod
    async def open(self, *, autocommit: bool = False) -> Any: ...

    async def _kept(self, connection: Any) -> Caller:
        caller = self.caller(connection)
        self._callers.append(caller)
        return caller

    @property
    def path(self) -> str:
        return unquote(self.url.partition(":///")[2])

    @property
    def account(self) -> dict[str, Any]:
        parts = urlsplit(self.url)
        return {
            "host": parts.hostname,
            "port": parts.port,
            "user": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
        }

    @property
    def database_name(self) -> str:
        return unquote(urlsplit(self.url).path[1:])


class Sqlite3(Bench):
    caller = SqliteCaller

    async def open(self, *, autocommit: bool = False) -> Any:
        return sqlite3.connect(
            self.path, timeout=LOCK_WAIT_S, check_same_thread=False, isolation_level=None if autocommit else "DEFERRED"
        )


class Aiosqlite(Bench):
    caller = AiosqliteCaller

    async def open(self, *, autocommit: bool = False) -> Any:
        level = None if autocommit else "DEFERRED"
        return await aiosqlite.connect(self.path, timeout=LOCK_WAIT_S, isolation_level=level)


class PyMySQL(Bench):
    caller = CursorCaller

    async def open(self, *, autocommit: bool = False) -> Any:
        return pymysql.connect(**self.account, database=self.database_name, autocommit=autocommit)


class Aiomysql(Bench):
    caller = AiomysqlCaller

    async def open(self, *, autocommit: bool = False) -> Any:
        return await aiomysql.connect(**self.account, db=self.database_name, autocommit=autocommit)


class Psycopg(Bench):
    caller = CursorCaller

    async def open(self, *, autocommit: bool = False) -> Any:
        return psycopg.connect(self.url, autocommit=autocommit)


class AsyncPsycopg(Bench):
    caller = AsyncCursorCaller

    async def open(self, *, autocommit: bool = False) -> Any:
        return await psycopg.AsyncConnection.connect(self.url, autocommit=autocommit)


class Asyncpg(Bench):
    caller = AsyncpgCaller

    async def open(self, *, autocommit: bool = False) -> Any:
        # It is always so, unless a transaction is begun.
        return await asyncpg.connect(self.url)


class SqlAlchemy(Bench):
    caller = SqlAlchemyCaller
    drivers: ClassVar = {"sqlite": "sqlite", "mysql": "mysql+pymysql", "postgresql": "postgresql+psycopg"}

    def __init__(self, url: str) -> None:
        super().__init__(url)
        _, _, rest = url.partition("://")
        self.driver_url = f"{self.drivers[self.database]}://{rest}"

    def engine_options(self, *, autocommit: bool) -> dict[str, Any]:
        options: dict[str, Any] = {"poolclass": NullPool}
        if self.database == "sqlite":
            options["connect_args"] = {"timeout": LOCK_WAIT_S, "check_same_thread": False}
        return {**options, "isolation_level": "AUTOCOMMIT"} if autocommit else options

    async def open(self, *, autocommit: bool = False) -> Any:
        return create_engine(self.driver_url, **self.engine_options(autocommit=autocommit)).connect()


class SqlAlchemySession(SqlAlchemy):
    async def open(self, *, autocommit: bool = False) -> Any:
        return Session(create_engine(self.driver_url, **self.engine_options(autocommit=autocommit)))


class AsyncSqlAlchemy(SqlAlchemy):
    caller = AsyncSqlAlchemyCaller
    drivers: ClassVar = {
        "sqlite": "sqlite+aiosqlite",
        "mysql": "mysql+aiomysql",
        "postgresql": "postgresql+asyncpg",
    }

    async def open(self, *, autocommit: bool = False) -> Any:
        return await create_async_engine(self.driver_url, **self.engine_options(autocommit=autocommit)).connect()


class AsyncSqlAlchemySession(AsyncSqlAlchemy):
    async def open(self, *, autocommit: bool = False) -> Any:
        return AsyncSession(create_async_engine(self.driver_url, **self.engine_options(autocommit=autocommit)))


OVER_SQLALCHEMY: Sequence[type[Bench]] = (SqlAlchemy, SqlAlchemySession, AsyncSqlAlchemy, AsyncSqlAlchemySession)

BENCHES: Sequence[tuple[str, type[Bench]]] = (
    *(("sqlite", kind) for kind in (Sqlite3, Aiosqlite, *OVER_SQLALCHEMY)),
    *(("mysql", kind) for kind in (PyMySQL, Aiomysql, *OVER_SQLALCHEMY)),
    *(("postgres", kind) for kind in (Psycopg, AsyncPsycopg, Asyncpg, *OVER_SQLALCHEMY)),
)
"""Which fixture's URL, and which way to it."""


_WAITING = {
    # Not from innodb_trx: its rows come from a cache that is not renewed while it is read often.
    "mysql": "select cast(variable_value as signed) from information_schema.global_status "
    "where variable_name = 'Innodb_row_lock_current_waits'",
    "postgresql": "select count(*) from pg_stat_activity where wait_event_type = 'Lock' "
    "and datname = current_database()",
}


async def until_it_waits(task: asyncio.Task[Any], bench: Bench) -> None:
    """Return when a task waits for a lock of the database.

    SQLite does not show who waits. There, a writer that comes during a transaction and one that
    comes after it see the same.
    """
    if bench.database not in _WAITING:
        return
    async with asyncio.timeout(LOCK_WAIT_S):
        while not await asyncio.to_thread(_count_waiting, bench):
            if task.done():
                pytest.fail(f"it did not wait: {task.exception() or task.result()!r}")
            await asyncio.sleep(0.01)


def _count_waiting(bench: Bench) -> int:
    if bench.database == "mysql":
        connection: Any = pymysql.connect(**bench.account)
    else:
        connection = psycopg.connect(bench.url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(_WAITING[bench.database])
            [number] = cursor.fetchone()
            return int(number)
    finally:
        connection.close()
