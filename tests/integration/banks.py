"""Two banks on two databases, as participants of XA: `out` on MariaDB, `in` on PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

import psycopg
import pymysql
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from starlette.requests import Request
from starlette.responses import Response

from tests.integration.scripted import Participant
from txcoord_sdk import AsyncCoordinator
from txcoord_sdk.barrier import create_table_at
from txcoord_sdk.branch import BranchContext, BranchFailed
from txcoord_sdk.starlette import branch_endpoint
from txcoord_sdk.xa import take_part

BALANCE = 10_000
_DRIVERS = {"mysql": "mysql+aiomysql", "postgresql": "postgresql+asyncpg"}
_BLOCKING_DRIVERS = {"mysql": "mysql+pymysql", "postgresql": "postgresql+psycopg"}


class Bank:
    """One account in one database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.kind, rest = url.split("://", 1)
        self.engine = create_async_engine(f"{_DRIVERS[self.kind]}://{rest}", poolclass=NullPool)
        self.blocking_engine = create_engine(f"{_BLOCKING_DRIVERS[self.kind]}://{rest}", poolclass=NullPool)
        self.table = "barrier" if self.kind == "mysql" else "xa.barrier"
        create_table_at(url, table=self.table)
        self.run("create table account (id int primary key, balance int not null check (balance >= 0))")
        self.run(f"insert into account values (1, {BALANCE})")  # noqa: S608 (a constant)

    @property
    def balance(self) -> int:
        return int(self.run("select balance from account")[0][0])

    @property
    def prepared(self) -> list[str]:
        """Names of the prepared transactions that are left in this database."""
        if self.kind == "mysql":
            return [row[3].decode() if isinstance(row[3], bytes) else row[3] for row in self.run("xa recover")]
        return [row[0] for row in self.run("select gid from pg_prepared_xacts where database = current_database()")]

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement by hand, on a connection of its own."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def end_all(self) -> None:
        """Roll back whatever is prepared: the database could not be dropped."""
        verb = "xa rollback" if self.kind == "mysql" else "rollback prepared"
        for name in self.prepared:
            self.run(f"{verb} '{name}'")

    def connect(self) -> Any:
        if self.kind == "postgresql":
            return psycopg.connect(self.url, autocommit=True)
        url = make_url(self.url)
        return pymysql.connect(
            host=url.host,
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            database=url.database,
            autocommit=True,
        )

    async def change(self, connection: AsyncConnection, amount: int) -> None:
        await connection.run_sync(self.change_now, amount)

    def change_now(self, connection: Connection, amount: int) -> None:
        changed = connection.execute(
            text("update account set balance = balance + :amount where balance + :amount >= 0"), {"amount": amount}
        )
        if not changed.rowcount:
            raise BranchFailed("not enough money")


class Banks(Participant):
    """Answers at /out and /in with XA, unless a script says otherwise."""

    def __init__(self, mysql_url: str, postgres_url: str) -> None:
        super().__init__()
        self.banks = {"out": Bank(mysql_url), "in": Bank(postgres_url)}
        self.coordinator: AsyncCoordinator | None = None
        """Whom they register with, if not whom an action names."""
        self.breaks: set[str] = set()
        """Ops whose answer is lost: what they did stays."""
        self.gate: asyncio.Event | None = None
        """What actions wait for, their work done and not prepared; `working` tells that one does."""
        self.working = asyncio.Event()

    @property
    def balances(self) -> tuple[int, int]:
        return self.banks["out"].balance, self.banks["in"].balance

    def prepared(self, gid: str) -> list[str]:
        return [name for bank in self.banks.values() for name in bank.prepared if name.startswith(gid)]

    async def _answer(self, request: Request) -> Response:
        scripted = await super()._answer(request)
        if (scripted.status_code, scripted.body) != (200, self.usual[1].encode()):
            return scripted
        answered: Response = await self._take_part(request)
        return Response(status_code=500) if request.query_params["op"] in self.breaks else answered

    async def _take_part(self, request: Request) -> Response:
        bank = self.banks[request.path_params["path"]]

        async def endpoint(request: Request, branch: BranchContext) -> None:
            amount = (await request.json())["amount"] if branch.op == "action" else 0
            sign = -1 if request.path_params["path"] == "out" else 1

            async def work(connection: AsyncConnection) -> None:
                await bank.change(connection, sign * amount)
                if self.gate is not None:
                    self.working.set()
                    await self.gate.wait()

            await take_part(branch, bank.engine, work, coordinator=self.coordinator, table=bank.table)

        return await branch_endpoint(endpoint)(request)

    async def __aexit__(self, *exc_info: object) -> None:
        await super().__aexit__(*exc_info)
        for bank in self.banks.values():
            await bank.engine.dispose()
            await asyncio.to_thread(bank.end_all)
