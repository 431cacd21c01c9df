"""Connections of psycopg 3, blocking and async."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from txcoord.barrier.tables import Database, Placeholders
from txcoord_sdk.barrier.drivers.base import Driver, Standing


class _Psycopg(Driver):
    database = Database.POSTGRESQL
    placeholders = Placeholders.FORMAT

    def __init__(self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def standing(self) -> Standing:
        if self._connection.info.transaction_status is not TransactionStatus.IDLE:
            return Standing.OPEN
        return Standing.NONE if self._connection.autocommit else Standing.OPENS

    async def begin_own(self, standing: Standing) -> None:
        # Statements without values may be sent together.
        begin = "begin; " if standing is Standing.NONE else ""
        await self.execute(f"{begin}{self._new_savepoint()}")


class PsycopgDriver(_Psycopg):
    is_async = False

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection)
        self.connection = connection

    async def execute(self, statement: str, values: Sequence[str] = ()) -> int:
        with self.connection.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(statement.encode(), values or None).rowcount

    async def fetch(self, statement: str, values: Sequence[str] = ()) -> Sequence[object] | None:
        with self.connection.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(statement.encode(), values or None).fetchone()

    async def commit(self) -> None:
        self.connection.commit()

    async def rollback(self) -> None:
        self.connection.rollback()


class AsyncPsycopgDriver(_Psycopg):
    is_async = True

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(connection)
        self.connection = connection

    async def execute(self, statement: str, values: Sequence[str] = ()) -> int:
        async with self.connection.cursor(row_factory=tuple_row) as cursor:
            return (await cursor.execute(statement.encode(), values or None)).rowcount

    async def fetch(self, statement: str, values: Sequence[str] = ()) -> Sequence[object] | None:
        async with self.connection.cursor(row_factory=tuple_row) as cursor:
            return await (await cursor.execute(statement.encode(), values or None)).fetchone()

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()


def driver(connection: object) -> Driver | None:
    if isinstance(connection, psycopg.Connection):
        return PsycopgDriver(connection)
    return AsyncPsycopgDriver(connection) if isinstance(connection, psycopg.AsyncConnection) else None
