"""Connections of asyncpg, and those that its pool lends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from txcoord.barrier.tables import Database, Placeholders
from txcoord_sdk.barrier.drivers.base import Driver, Standing


class AsyncpgDriver(Driver):
    database = Database.POSTGRESQL
    placeholders = Placeholders.NUMBERED
    is_async = True

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def standing(self) -> Standing:
        return Standing.OPEN if self.connection.is_in_transaction() else Standing.NONE

    async def execute(self, statement: str, values: Sequence[str] = ()) -> int:
        # The server's tag: "INSERT 0 1", "BEGIN".
        tag: str = await self.connection.execute(statement, *values)
        count = tag.rpartition(" ")[2]
        return int(count) if count.isdecimal() else 0

    async def fetch(self, statement: str, values: Sequence[str] = ()) -> Sequence[object] | None:
        row = await self.connection.fetchrow(statement, *values)
        return None if row is None else tuple(row)

    # Statements without values may be sent together, so the savepoint costs no time.

    async def begin_own(self, standing: Standing) -> None:
        begin = "begin; " if standing is Standing.NONE else ""
        await self.execute(f"{begin}{self._new_savepoint()}")

    async def commit_own(self) -> None:
        await self.execute(f"release savepoint {self._savepoint}; commit")

    async def commit(self) -> None:
        await self.execute("commit")

    async def rollback(self) -> None:
        await self.execute("rollback")


def driver(connection: object) -> Driver | None:
    return AsyncpgDriver(connection) if isinstance(connection, asyncpg.Connection | PoolConnectionProxy) else None
