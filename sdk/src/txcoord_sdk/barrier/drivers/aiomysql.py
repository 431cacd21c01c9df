"""Connections of aiomysql, and those that its pool lends."""

from __future__ import annotations

from collections.abc import Sequence

import aiomysql
from aiomysql.cursors import Cursor

from txcoord_sdk.barrier.drivers.base import Driver
from txcoord_sdk.barrier.drivers.mysql import MySQL


class _QuietCursor(Cursor):  # type: ignore[misc]  # aiomysql has no types
    # `insert ignore` of a row that is there leaves a warning, which aiomysql would fetch with
    # one more query and print.
    async def _show_warnings(self, conn: object) -> None:
        pass


class AiomysqlDriver(MySQL):
    is_async = True

    async def execute(self, statement: str, values: Sequence[str] = ()) -> int:
        async with self.connection.cursor(_QuietCursor) as cursor:
            affected: int = await cursor.execute(statement, values or None)
            return affected

    async def fetch(self, statement: str, values: Sequence[str] = ()) -> Sequence[object] | None:
        async with self.connection.cursor(_QuietCursor) as cursor:
            await cursor.execute(statement, values or None)
            row: Sequence[object] | None = await cursor.fetchone()
            return row

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()


def driver(connection: object) -> Driver | None:
    return AiomysqlDriver(connection) if isinstance(connection, aiomysql.Connection) else None
