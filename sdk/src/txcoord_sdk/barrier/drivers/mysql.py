"""Connections of PyMySQL, and what those of aiomysql share with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pymysql
from pymysql.constants import SERVER_STATUS
from pymysql.cursors import Cursor

from txcoord.barrier.tables import Database, Placeholders
from txcoord_sdk.barrier.drivers.base import Driver, Standing


class MySQL(Driver):
    database = Database.MYSQL
    placeholders = Placeholders.FORMAT

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._commits_each = False

    async def standing(self) -> Standing:
        # The flags of the server's latest answer. They come before what the client
        # believes, since `begin` may have been sent as a statement.
        status: int = self.connection.server_status
        if status & SERVER_STATUS.SERVER_STATUS_IN_TRANS:
            return Standing.OPEN
        return Standing.NONE if status & SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT else Standing.OPENS

    async def begin_own(self, standing: Standing) -> None:
        self._commits_each = bool(self.connection.server_status & SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT)
        if self._commits_each:
            # Not `begin`: when a deadlock has ended that, what the work does next would commit statement by statement.
            await self.execute("set autocommit = 0")
        await self.savepoint()

    async def commit_own(self) -> None:
        await self.release()
        # Setting it commits.
        await (self.execute("set autocommit = 1") if self._commits_each else self.commit())

    async def rollback_own(self) -> None:
        await self.rollback()
        if self._commits_each:
            await self.execute("set autocommit = 1")


class PyMySQLDriver(MySQL):
    is_async = False

    async def execute(self, statement: str, values: Sequence[str] = ()) -> int:
        # A cursor of our own class: the caller's may be one of dicts.
        with self.connection.cursor(Cursor) as cursor:
            affected: int = cursor.execute(statement, values or None)
            return affected

    async def fetch(self, statement: str, values: Sequence[str] = ()) -> Sequence[object] | None:
        with self.connection.cursor(Cursor) as cursor:
            cursor.execute(statement, values or None)
            row: Sequence[object] | None = cursor.fetchone()
            return row

    async def commit(self) -> None:
        self.connection.commit()

    async def rollback(self) -> None:
        self.connection.rollback()


def driver(connection: object) -> Driver | None:
    return PyMySQLDriver(connection) if isinstance(connection, pymysql.connections.Connection) else None
