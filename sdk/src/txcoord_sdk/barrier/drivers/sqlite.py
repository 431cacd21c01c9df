"""Connections of sqlite3, and what those of aiosqlite share with them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

from txcoord.barrier.tables import Database, Placeholders
from txcoord_sdk.barrier.drivers.base import Driver, Standing

if TYPE_CHECKING:
    import aiosqlite

# Takes the lock that the barrier's insert is about to need: one that waits for it from the
# start can be served, one that has read before may have to be refused.
BEGIN = "begin immediate"


class Sqlite(Driver):
    database = Database.SQLITE
    placeholders = Placeholders.QMARK

    def __init__(self, connection: sqlite3.Connection | aiosqlite.Connection) -> None:
        # The attribute came with Python 3.12; its default, -1, stands for the way before.
        mode = getattr(connection, "autocommit", None)
        self._is_always_open = mode is False
        self.commits_each = mode is True or (mode is not False and connection.isolation_level is None)
        self._connection = connection

    async def standing(self) -> Standing:
        if self._is_always_open or self._connection.in_transaction:
            return Standing.OPEN
        return Standing.NONE if self.commits_each else Standing.OPENS

    async def begin(self) -> None:
        await self.execute(BEGIN)

    async def savepoint(self) -> None:
        # A savepoint outside a transaction would be one of its own, and its release a commit.
        if not self._connection.in_transaction:
            await self.begin()
        await super().savepoint()


class SqliteDriver(Sqlite):
    is_async = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self.connection = connection

    async def execute(self, statement: str, values: Sequence[str] = ()) -> int:
        return self.connection.execute(statement, values).rowcount

    async def fetch(self, statement: str, values: Sequence[str] = ()) -> Sequence[object] | None:
        cursor = self.connection.cursor()
        cursor.row_factory = None
        row: Sequence[object] | None = cursor.execute(statement, values).fetchone()
        cursor.close()
        return row

    async def commit(self) -> None:
        if self.commits_each:  # then the method may do nothing
            await self.execute("commit")
        else:
            self.connection.commit()

    async def rollback(self) -> None:
        if self.commits_each:
            await self.execute("rollback")
        else:
            self.connection.rollback()


def driver(connection: object) -> Driver | None:
    return SqliteDriver(connection) if isinstance(connection, sqlite3.Connection) else None
