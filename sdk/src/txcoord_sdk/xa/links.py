"""A connection of its own for one phase of a branch: where it comes from, and how it is given back.

A prepared transaction belongs to the connection that prepared it for as long as MySQL and MariaDB
see that open: only then can another one commit it. So what is used is never the caller's.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from inspect import isawaitable, iscoroutine
from typing import Any

from txcoord.barrier.tables import Database
from txcoord_sdk.barrier.drivers.base import Driver, Standing
from txcoord_sdk.barrier.drivers.registry import driver_of
from txcoord_sdk.barrier.errors import BarrierError
from txcoord_sdk.xa.errors import XaError

Source = Any
"""A SQLAlchemy engine (async or not), a pool with `acquire`, or a function that returns a connection, an
awaitable of one, or a context manager of one."""


class Link(ABC):
    """One connection during one phase. Subclasses know a driver; `_Blocking` ones never suspend."""

    is_async = True

    def __init__(self, connection: Any, driver: Driver) -> None:
        self.connection = connection
        self.driver = driver
        self.is_discarded = False

    @property
    def database(self) -> Database:
        return self.driver.database

    async def run(self, statement: str) -> None:
        """Run a statement that returns nothing and has no values."""
        await self.driver.execute(statement)

    @abstractmethod
    async def rows(self, statement: str) -> Sequence[Sequence[Any]]:
        """Run a query without values."""

    async def begin(self) -> None:
        """Open the local transaction that is to be prepared; not asked of MySQL."""
        if await self.driver.standing() is Standing.NONE:
            await self.driver.begin()

    async def leave(self) -> None:
        """Roll back what `begin` opened. After a prepare nothing is open any more, but the driver has to hear it."""
        await self.driver.rollback()

    @abstractmethod
    async def commit_each(self) -> None:
        """Have each statement commit by itself, on a connection with nothing under way."""

    @abstractmethod
    async def restore(self) -> None:
        """Undo `commit_each`, for whoever has the connection next."""

    @abstractmethod
    async def discard(self) -> None:
        """Close the connection itself, rather than give it back to its pool."""

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Blocking(Link):
    is_async = False

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 (never within a loop: `run_now` runs it)


class _PyMySQL(_Blocking):
    async def rows(self, statement: str) -> Sequence[Sequence[Any]]:
        from pymysql.cursors import Cursor

        with self.connection.cursor(Cursor) as cursor:
            cursor.execute(statement)
            found: Sequence[Sequence[Any]] = cursor.fetchall()
            return found

    async def commit_each(self) -> None:
        self._before = self.connection.get_autocommit()
        self.connection.autocommit(True)

    async def restore(self) -> None:
        self.connection.autocommit(self._before)

    async def discard(self) -> None:
        self.connection.close()


class _Aiomysql(Link):
    async def rows(self, statement: str) -> Sequence[Sequence[Any]]:
        from aiomysql.cursors import Cursor

        async with self.connection.cursor(Cursor) as cursor:
            await cursor.execute(statement)
            found: Sequence[Sequence[Any]] = await cursor.fetchall()
            return found

    async def commit_each(self) -> None:
        self._before = self.connection.get_autocommit()
        await self.connection.autocommit(True)

    async def restore(self) -> None:
        await self.connection.autocommit(self._before)

    async def discard(self) -> None:
        self.connection.close()


class _Asyncpg(Link):
    async def rows(self, statement: str) -> Sequence[Sequence[Any]]:
        return [tuple(row) for row in await self.connection.fetch(statement)]

    async def begin(self) -> None:
        # Not by statement: within that, the driver would refuse the work a transaction of its own,
        # which is its only way to a savepoint.
        self._transaction = self.connection.transaction()
        await self._transaction.start()

    async def leave(self) -> None:
        await self._transaction.rollback()

    async def commit_each(self) -> None:
        pass  # it always does

    async def restore(self) -> None:
        pass

    async def discard(self) -> None:
        self.connection.terminate()


class _Psycopg(_Blocking):
    async def rows(self, statement: str) -> Sequence[Sequence[Any]]:
        from psycopg.rows import tuple_row

        with self.connection.cursor(row_factory=tuple_row) as cursor:
            found: Sequence[Sequence[Any]] = cursor.execute(statement.encode()).fetchall()
            return found

    async def commit_each(self) -> None:
        self._before = self.connection.autocommit
        self.connection.autocommit = True

    async def restore(self) -> None:
        self.connection.autocommit = self._before

    async def discard(self) -> None:
        self.connection.close()


class _AsyncPsycopg(Link):
    async def rows(self, statement: str) -> Sequence[Sequence[Any]]:
        from psycopg.rows import tuple_row

        async with self.connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(statement.encode())
            found: Sequence[Sequence[Any]] = await cursor.fetchall()
            return found

    async def commit_each(self) -> None:
        self._before = self.connection.autocommit
        await self.connection.set_autocommit(True)

    async def restore(self) -> None:
        await self.connection.set_autocommit(self._before)

    async def discard(self) -> None:
        await self.connection.close()


class _SqlAlchemy(_Blocking):
    async def rows(self, statement: str) -> Sequence[Sequence[Any]]:
        found: Sequence[Sequence[Any]] = self.connection.exec_driver_sql(statement).all()
        return found

    async def commit_each(self) -> None:
        self.connection.execution_options(isolation_level="AUTOCOMMIT")

    async def restore(self) -> None:
        pass  # the pool does

    async def discard(self) -> None:
        self.connection.invalidate()


class _AsyncSqlAlchemy(Link):
    async def rows(self, statement: str) -> Sequence[Sequence[Any]]:
        found: Sequence[Sequence[Any]] = (await self.connection.exec_driver_sql(statement)).all()
        return found

    async def commit_each(self) -> None:
        await self.connection.execution_options(isolation_level="AUTOCOMMIT")

    async def restore(self) -> None:
        pass  # the pool does

    async def discard(self) -> None:
        await self.connection.invalidate()


_LINKS: dict[str, type[Link]] = {
    "PyMySQLDriver": _PyMySQL,
    "AiomysqlDriver": _Aiomysql,
    "AsyncpgDriver": _Asyncpg,
    "PsycopgDriver": _Psycopg,
    "AsyncPsycopgDriver": _AsyncPsycopg,
    "SqlAlchemyDriver": _SqlAlchemy,
    "AsyncSqlAlchemyDriver": _AsyncSqlAlchemy,
}


class BorrowedLink:
    """A link for the length of a block. The connection is closed, or goes back to where it came from."""

    def __init__(self, source: Source, *, is_async: bool) -> None:
        self._source = source
        self._is_async = is_async
        self._manager: Any = None
        self._link: Link | None = None

    async def __aenter__(self) -> Link:
        connection = await self._open()
        try:
            driver = driver_of(connection, is_async=self._is_async)
            # An error of the driver's settles that it is a session, which keeps its own transaction.
            kind = _LINKS.get(type(driver).__name__)
            if kind is None or _is_session(connection):
                raise XaError(
                    f"XA does not work on a {type(connection).__module__}.{type(connection).__qualname__}: give it a "
                    "SQLAlchemy engine, a pool, or a function that opens a connection, for MySQL, MariaDB or PostgreSQL"
                )
            if await driver.standing() is Standing.OPEN:  # settles which database it is, too
                raise XaError("the source gave a connection that has a transaction open: XA begins and ends its own")
        except BaseException as error:
            await self._close(connection, error)
            raise
        self._link = kind(connection, driver)
        return self._link

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        assert self._link is not None, "entered"
        await self._close(self._link.connection, error)

    async def _open(self) -> Any:
        source = self._source
        if _is_engine(source):
            if _is_async_engine(source) is not self._is_async:
                kind, ends = ("blocks", "that ends in _sync") if self._is_async else ("is async", "without _sync")
                raise XaError(f"this SQLAlchemy engine {kind}: use the function {ends}")
            opened = source.connect()
        elif hasattr(source, "acquire"):
            opened = source.acquire()
        elif callable(source):
            opened = source()
        else:
            raise XaError(
                f"a {type(source).__qualname__} gives no connections: pass a SQLAlchemy engine, a pool, or a function "
                "that opens a connection; a connection itself will not do, for XA needs one of its own"
            )
        # A connection is a context manager too, but leaving it may commit; an async engine's has to be entered.
        is_unopened = getattr(opened, "sync_connection", opened) is None
        if _is_engine(source) or is_unopened or not _is_connection(opened):
            if self._is_async and isinstance(opened, AbstractAsyncContextManager):
                self._manager = opened
                return await opened.__aenter__()
            if not self._is_async and isinstance(opened, AbstractContextManager):
                self._manager = opened
                return opened.__enter__()
        if _is_connection(opened):
            return opened
        if self._is_async and isawaitable(opened):
            return await _awaited(opened)
        if iscoroutine(opened):
            opened.close()
        raise XaError(
            f"the source gave a {type(opened).__module__}.{type(opened).__qualname__}, which is not "
            f"{'an async' if self._is_async else 'a blocking'} connection"
        )

    async def _close(self, connection: Any, error: BaseException | None) -> None:
        raised = (type(error), error, error.__traceback__) if error is not None else (None, None, None)
        if self._manager is not None:
            if self._is_async:
                pool = getattr(self._manager, "_pool", None)  # aiomysql's has no name for it but this
                await self._manager.__aexit__(*raised)
                await _let_others_have(pool, connection)
            else:
                self._manager.__exit__(*raised)
            return
        if self._link is not None and self._link.is_discarded:
            return
        closed = connection.close()
        if self._is_async and isawaitable(closed):
            await closed
        elif iscoroutine(closed):
            closed.close()  # of an async connection that a blocking function was given


async def _let_others_have(pool: Any, connection: Any) -> None:
    # aiomysql's pool tells those who wait for a connection of one that comes back open, but not of
    # one that was closed, and whose place is free.
    if type(pool).__module__.partition(".")[0] == "aiomysql" and connection.closed:
        await pool._wakeup()


async def _awaited(opened: Awaitable[Any]) -> Any:
    return await opened


def _is_connection(opened: object) -> bool:
    for is_async in (True, False):
        try:
            driver_of(opened, is_async=is_async)
        except BarrierError:
            continue
        return True
    return False


def _is_engine(source: object) -> bool:
    return any(kind.__name__ in ("Engine", "AsyncEngine") for kind in type(source).__mro__) and hasattr(
        source, "connect"
    )


def _is_async_engine(engine: object) -> bool:
    return any(kind.__name__ == "AsyncEngine" for kind in type(engine).__mro__)


def _is_session(connection: object) -> bool:
    return hasattr(connection, "expunge_all")
