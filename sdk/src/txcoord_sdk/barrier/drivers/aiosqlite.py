"""Connections of aiosqlite, which runs one of sqlite3 in a thread."""

from __future__ import annotations

from collections.abc import Sequence

import aiosqlite

from txcoord_sdk.barrier.drivers.base import Driver
from txcoord_sdk.barrier.drivers.sqlite import Sqlite


class AiosqliteDriver(Sqlite):
    is_async = True

    def __init__(self, connection: aiosqlite.Connection) -> None:
        super().__init__(connection)
        self.connection = connection

    async def execute(self, statement: str, values: Sequence[str] = ()) -> int:
        async with self.connection.execute(statement, values) as cursor:
            return cursor.rowcount

    async def fetch(self, statement: str, values: Sequence[str] = ()) -> Sequence[object] | None:
        async with self.connection.cursor() as cursor:
            cursor.row_factory = None
            await cursor.execute(statement, values)
            return await cursor.fetchone()

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()


def driver(connection: object) -> Driver | None:
    return AiosqliteDriver(connection) if isinstance(connection, aiosqlite.Connection) else None
