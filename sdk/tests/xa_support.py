"""Participants for XA's tests: every driver on every database, behind one small face."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any
from urllib.parse import unquote, urlsplit

import aiomysql
import asyncpg
import psycopg
import pymysql
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from txcoord_sdk.barrier import Passage, create_table_at
from txcoord_sdk.xa import Prepared, XaKey, finish, finish_sync, prepare, prepare_sync


def account(url: str) -> dict[str, Any]:
    """What drivers of MySQL take instead of a URL."""
    parts = urlsplit(url)
    return {
        "host": parts.hostname,
        "port": parts.port,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
    }


class Ledger:
    """A database with a table of entries, looked at from outside."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_mysql = url.startswith("mysql")
        self.name = unquote(urlsplit(url).path[1:])
        create_table_at(url)
        self.run("create table if not exists entry (name varchar(160) primary key)")

    def connect(self) -> Any:
        if self.is_mysql:
            return pymysql.connect(**account(self.url), database=self.name, autocommit=True)
        return psycopg.connect(self.url, autocommit=True)

    def run(self, statement: str, *values: object) -> Sequence[Sequence[Any]]:
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall()) if cursor.description else []

    def has(self, name: str) -> bool:
        return bool(self.run("select 1 from entry where name = %s", name))

    @property
    def prepared(self) -> list[str]:
        if self.is_mysql:
            found = [row[3] for row in self.run("xa recover")]
            return [name.decode() if isinstance(name, bytes) else name for name in found]
        return [row[0] for row in self.run("select gid from pg_prepared_xacts where database = current_database()")]

    def end_all(self) -> None:
        """Roll back whatever a failed test has left."""
        verb = "xa rollback" if self.is_mysql else "rollback prepared"
        for name in self.prepared:
            self.run(f"{verb} '{name}'")


Write = Callable[[Any, str], Any]


class Way:
    """One driver, and one source of its connections."""

    def __init__(self, source: Any, write: Write) -> None:
        self.source = source
        self.write = write
        self.is_async = inspect.iscoroutinefunction(write)

    async def prepare(
        self,
        key: XaKey,
        *names: str,
        error: BaseException | None = None,
        register: Callable[[], None] = lambda: None,
        after: Callable[[], Awaitable[None]] | None = None,
    ) -> Prepared[int]:
        """Do phase 1, whose work writes entries, then waits for `after`, and raises `error`."""

        async def work(connection: Any) -> int:
            for name in names:
                await self.write(connection, name)
            if after is not None:
                await after()
            if error is not None:
                raise error
            return len(names)

        async def register_it() -> None:
            register()

        def blocking_work(connection: Any) -> int:
            for name in names:
                self.write(connection, name)
            if after is not None:
                asyncio.run_coroutine_threadsafe(after(), loop).result()
            if error is not None:
                raise error
            return len(names)

        if self.is_async:
            return await prepare(self.source, key, work, register=register_it)
        loop = asyncio.get_running_loop()
        return await asyncio.to_thread(prepare_sync, self.source, key, blocking_work, register=register)

    async def finish(self, key: XaKey, op: str) -> Passage:
        if self.is_async:
            return await finish(self.source, key, op)
        return await asyncio.to_thread(finish_sync, self.source, key, op)


async def _aiomysql(connection: Any, name: str) -> None:
    async with connection.cursor() as cursor:
        await cursor.execute("insert into entry values (%s)", (name,))


async def _asyncpg(connection: Any, name: str) -> None:
    async with connection.transaction():
        await connection.execute("insert into entry values ($1)", name)


async def _async_psycopg(connection: Any, name: str) -> None:
    async with connection.transaction():
        await connection.execute("insert into entry values (%s)", (name,))


async def _async_sqlalchemy(connection: Any, name: str) -> None:
    async with connection.begin_nested():
        await connection.execute(text("insert into entry values (:name)"), {"name": name})


def _pymysql(connection: Any, name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("insert into entry values (%s)", (name,))


def _psycopg(connection: Any, name: str) -> None:
    connection.execute("insert into entry values (%s)", (name,))


def _sqlalchemy(connection: Any, name: str) -> None:
    with connection.begin_nested():
        connection.execute(text("insert into entry values (:name)"), {"name": name})


def over(url: str, driver: str) -> str:
    return f"{url.partition('://')[0]}+{driver}://{url.partition('://')[2]}"


@asynccontextmanager
async def aiomysql_pool(url: str, name: str) -> AsyncIterator[Way]:
    async with aiomysql.create_pool(**account(url), db=name, minsize=0, maxsize=2) as pool:
        yield Way(pool, _aiomysql)


@asynccontextmanager
async def aiomysql_opened(url: str, name: str) -> AsyncIterator[Way]:
    yield Way(lambda: aiomysql.connect(**account(url), db=name), _aiomysql)


@asynccontextmanager
async def pymysql_opened(url: str, name: str) -> AsyncIterator[Way]:
    yield Way(lambda: pymysql.connect(**account(url), database=name), _pymysql)


@asynccontextmanager
async def asyncpg_pool(url: str, _: str) -> AsyncIterator[Way]:
    async with asyncpg.create_pool(url, min_size=0, max_size=2) as pool:
        yield Way(pool, _asyncpg)


@asynccontextmanager
async def asyncpg_opened(url: str, _: str) -> AsyncIterator[Way]:
    yield Way(lambda: asyncpg.connect(url), _asyncpg)


@asynccontextmanager
async def psycopg_opened(url: str, _: str) -> AsyncIterator[Way]:
    yield Way(lambda: psycopg.connect(url), _psycopg)


@asynccontextmanager
async def async_psycopg_opened(url: str, _: str) -> AsyncIterator[Way]:
    yield Way(lambda: psycopg.AsyncConnection.connect(url), _async_psycopg)


@asynccontextmanager
async def async_psycopg_autocommit(url: str, _: str) -> AsyncIterator[Way]:
    yield Way(lambda: psycopg.AsyncConnection.connect(url, autocommit=True), _async_psycopg)


def _engine(driver: str, *, pooled: bool = True) -> Callable[[str, str], Any]:
    @asynccontextmanager
    async def way(url: str, _: str) -> AsyncIterator[Way]:
        engine = create_engine(over(url, driver), **({} if pooled else {"poolclass": NullPool}))
        yield Way(engine, _sqlalchemy)
        engine.dispose()

    return way


def _async_engine(driver: str) -> Callable[[str, str], Any]:
    @asynccontextmanager
    async def way(url: str, _: str) -> AsyncIterator[Way]:
        engine = create_async_engine(over(url, driver))
        yield Way(engine, _async_sqlalchemy)
        await engine.dispose()

    return way


WAYS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "aiomysql, pool": ("mysql", aiomysql_pool),
    "aiomysql": ("mysql", aiomysql_opened),
    "PyMySQL": ("mysql", pymysql_opened),
    "SQLAlchemy, PyMySQL": ("mysql", _engine("pymysql")),
    "SQLAlchemy, PyMySQL, no pool": ("mysql", _engine("pymysql", pooled=False)),
    "SQLAlchemy, aiomysql": ("mysql", _async_engine("aiomysql")),
    "asyncpg, pool": ("postgres", asyncpg_pool),
    "asyncpg": ("postgres", asyncpg_opened),
    "psycopg": ("postgres", psycopg_opened),
    "psycopg, async": ("postgres", async_psycopg_opened),
    "psycopg, async, autocommit": ("postgres", async_psycopg_autocommit),
    "SQLAlchemy, psycopg": ("postgres", _engine("psycopg")),
    "SQLAlchemy, psycopg, async": ("postgres", _async_engine("psycopg")),
    "SQLAlchemy, asyncpg": ("postgres", _async_engine("asyncpg")),
}
"""Name of a driver and source → which fixture's database, and the way there."""
