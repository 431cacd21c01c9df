"""Connections and sessions of SQLAlchemy, blocking and async, over any driver of the three databases."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from sqlalchemy import Connection, CursorResult, NestedTransaction, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, SessionTransaction, scoped_session
from sqlalchemy.sql.elements import TextClause

from txcoord.barrier.tables import Database, Placeholders
from txcoord_sdk.barrier.drivers import sqlite
from txcoord_sdk.barrier.drivers.base import Driver, Standing, run_now
from txcoord_sdk.barrier.drivers.registry import find_driver
from txcoord_sdk.barrier.errors import BarrierError, NoTransactionError

T = TypeVar("T")

_DATABASES = {
    "mysql": Database.MYSQL,
    "mariadb": Database.MYSQL,
    "postgresql": Database.POSTGRESQL,
    "sqlite": Database.SQLITE,
}


class _SqlAlchemy(Driver):
    """The steps on a blocking connection or session; subclasses say how a step is run."""

    placeholders = Placeholders.NAMED

    def __init__(self) -> None:
        self._nested: NestedTransaction | SessionTransaction | None = None

    @abstractmethod
    async def run(self, step: Callable[[Connection | Session], T]) -> T:
        """Run a step on the blocking target."""

    async def standing(self) -> Standing:
        def step(target: Connection | Session) -> tuple[str, Standing]:
            # Before anything else: on a session, the next line opens its transaction.
            standing = Standing.OPEN if target.in_transaction() else Standing.OPENS
            core = _core(target)
            if _is_autocommit(core) or (_driver_commits_each(core) and not _begins(target, core)):
                standing = Standing.NONE
            return core.dialect.name, standing

        name, standing = await self.run(step)
        if name not in _DATABASES:
            raise BarrierError(f"the barrier has no table for {name}: it knows {', '.join(_DATABASES)}")
        self.database = _DATABASES[name]
        return standing

    async def execute(self, statement: str, values: Sequence[str] = ()) -> int:
        def step(target: Connection | Session) -> int:
            result: CursorResult[object] = _core(target).execute(
                _text(statement), _named(statement, values), execution_options={"preserve_rowcount": True}
            )
            affected = result.rowcount
            result.close()
            return affected

        return await self.run(step)

    async def fetch(self, statement: str, values: Sequence[str] = ()) -> Sequence[object] | None:
        def step(target: Connection | Session) -> Sequence[object] | None:
            return _core(target).execute(_text(statement), _named(statement, values)).first()

        return await self.run(step)

    async def commit(self) -> None:
        await self.run(lambda target: target.commit())

    async def rollback(self) -> None:
        await self.run(lambda target: target.rollback())

    async def begin(self) -> None:
        raise NoTransactionError(
            "the SQLAlchemy connection has the isolation level AUTOCOMMIT, or its driver an autocommit of its own, so "
            "barrier and work would not commit together: use an engine or a connection without it"
        )

    async def savepoint(self) -> None:
        def step(target: Connection | Session) -> None:
            if self.database is Database.SQLITE:
                _begin_in_sqlite(_core(target))
            # Not by statement: a session keeps its objects in step with the savepoint.
            self._nested = target.begin_nested()

        await self.run(step)

    async def release(self) -> None:
        await self.run(lambda _: self._opened().commit())

    async def undo(self) -> None:
        await self.run(lambda _: self._opened().rollback())

    def _opened(self) -> NestedTransaction | SessionTransaction:
        assert self._nested is not None, "no savepoint was set"
        return self._nested


class SqlAlchemyDriver(_SqlAlchemy):
    is_async = False

    def __init__(self, target: Connection | Session) -> None:
        super().__init__()
        self._target = target

    async def run(self, step: Callable[[Connection | Session], T]) -> T:
        return step(self._target)


class AsyncSqlAlchemyDriver(_SqlAlchemy):
    is_async = True

    def __init__(self, target: AsyncConnection | AsyncSession) -> None:
        super().__init__()
        self._target = target

    async def run(self, step: Callable[[Connection | Session], T]) -> T:
        return await self._target.run_sync(step)


def _core(target: Connection | Session) -> Connection:
    return target if isinstance(target, Connection) else target.connection()


def _is_autocommit(core: Connection) -> bool:
    # As SQLAlchemy itself decides it: the connection's option, or else the engine's argument.
    level = core.get_execution_options().get("isolation_level")
    return (level or getattr(core.dialect, "_on_connect_isolation_level", None)) == "AUTOCOMMIT"


def _driver_commits_each(core: Connection) -> bool:
    """Say whether the driver was told to (`connect_args`, or a pool of one's own), which SQLAlchemy does not know."""
    for connection in (core.connection.driver_connection, core.connection.dbapi_connection):
        # A method in drivers of MySQL, where it tells what the server has said last; else an attribute.
        said = getattr(connection, "get_autocommit", None)
        if said() if callable(said) else getattr(connection, "autocommit", None) is True:
            return True
    return False


def _begins(target: Connection | Session, core: Connection) -> bool:
    """Say whether SQLAlchemy's begin opens a transaction all the same: an application can have it send one."""
    was_open = target.in_transaction() if target is core else True  # of a session, `_core` has opened it
    if not was_open:
        target.begin()
    driver = find_driver(core.connection.driver_connection)
    # Never suspends, see `Driver.standing`.
    is_open = driver is not None and run_now(driver.standing()) is Standing.OPEN
    if not was_open and not is_open:
        target.rollback()
    return is_open


def _begin_in_sqlite(core: Connection) -> None:
    # The drivers open a transaction at the first insert, not at a savepoint, which would then
    # be a transaction of its own, and its release a commit.
    connection = core.connection.driver_connection
    if connection is not None and not connection.in_transaction:
        core.exec_driver_sql(sqlite.BEGIN)


@lru_cache(maxsize=64)
def _text(statement: str) -> TextClause:
    return text(statement)


def _named(statement: str, values: Sequence[str]) -> dict[str, str]:
    return dict(zip(_bound_names(statement), values, strict=True))


@lru_cache(maxsize=64)
def _bound_names(statement: str) -> tuple[str, ...]:
    # The statements of `txcoord.barrier.tables` hold no colon but those of their marks.
    return tuple(re.findall(r":([a-z_]+)", statement))


def driver(connection: object) -> Driver | None:
    match connection:
        case scoped_session() | async_scoped_session():
            return driver(connection())
        case Connection() | Session():
            return SqlAlchemyDriver(connection)
        case AsyncConnection() | AsyncSession():
            return AsyncSqlAlchemyDriver(connection)
        case _:
            return None
