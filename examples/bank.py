"""A bank: takes money from accounts and puts it there, in XA transactions with other banks.

    python -m examples.bank --port 8091 --database mysql://user:password@localhost/bank_a
    python -m examples.bank --port 8092 --database postgresql://user:password@localhost/bank_b
    python -m examples.bank transfer http://127.0.0.1:8091 http://127.0.0.1:8092 30

Its database has to be one that can prepare: MariaDB, MySQL, or PostgreSQL with max_prepared_transactions set.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Column, Integer, MetaData, Table, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from examples.service import BARRIER_TABLE, Database, make_app, make_parser, serve
from txcoord_sdk import Coordinator, TransactionFailedError
from txcoord_sdk.barrier import create_table
from txcoord_sdk.branch import BranchFailed
from txcoord_sdk.fastapi import xa_router

ACCOUNT, FIRST_BALANCE = 1, 100

metadata = MetaData()
accounts = Table("accounts", metadata, Column("id", Integer, primary_key=True), Column("balance", Integer))


async def withdraw(connection: AsyncConnection, transfer: dict[str, Any]) -> None:
    amount = int(transfer["amount"])
    enough = (accounts.c.id == ACCOUNT) & (accounts.c.balance >= amount)
    changed = await connection.execute(update(accounts).where(enough).values(balance=accounts.c.balance - amount))
    if not changed.rowcount:
        raise BranchFailed("not enough money")


async def deposit(connection: AsyncConnection, transfer: dict[str, Any]) -> None:
    more = {"balance": accounts.c.balance + int(transfer["amount"])}
    await connection.execute(update(accounts).where(accounts.c.id == ACCOUNT).values(more))


async def balance(database: Database) -> dict[str, int]:
    async with database.connect() as connection:
        found = await connection.execute(select(accounts.c.balance).where(accounts.c.id == ACCOUNT))
        return {"balance": found.scalar_one()}


async def prepare(engine: AsyncEngine) -> None:
    """Create the tables that are not there, and the account with its money."""
    await create_table(engine, table=BARRIER_TABLE)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        if not (await connection.execute(select(accounts))).first():
            await connection.execute(insert(accounts).values(id=ACCOUNT, balance=FIRST_BALANCE))


def make_bank(database: str) -> FastAPI:
    if database.startswith("sqlite"):
        raise SystemExit("SQLite cannot prepare transactions: give the bank a MariaDB, MySQL or PostgreSQL database")
    app = make_app("bank", database, prepare)
    for path, work in (("/withdraw", withdraw), ("/deposit", deposit)):
        app.include_router(xa_router(path, app.state.engine, work, table=BARRIER_TABLE))
    app.get("/balance")(balance)
    return app


def transfer(from_bank: str, to_bank: str, amount: int, *, coordinator: str | None = None) -> str:
    """Move money from one bank to another; say what came of it."""
    with Coordinator(coordinator) as client:
        try:
            with client.xa(wait_result=True) as xa:
                xa.call(f"{from_bank}/withdraw", {"amount": amount})
                xa.call(f"{to_bank}/deposit", {"amount": amount})
        except TransactionFailedError as error:
            return f"not moved: {error.message or error.reason}"
    return f"moved {amount}, in the global transaction {xa.gid}"


def command_line() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, port=8091)
    parser.add_argument("--database", help="its URL: mysql://… or postgresql://…")
    commands = parser.add_subparsers(dest="command", metavar="command")
    moving = commands.add_parser("transfer", help="move money between two banks, instead of being one")
    moving.add_argument("from_bank", metavar="FROM", help="URL of the bank that pays")
    moving.add_argument("to_bank", metavar="TO", help="URL of the bank that is paid")
    moving.add_argument("amount", type=int)
    moving.add_argument("--coordinator", help="its URL (default: TXCOORD_URL, or this machine)")
    return parser


def main() -> None:
    options = command_line().parse_args()
    if options.command == "transfer":
        print(transfer(options.from_bank, options.to_bank, options.amount, coordinator=options.coordinator))
        return
    if not options.database:
        sys.exit("say where the bank keeps its accounts: --database mysql://… or postgresql://…")
    serve(make_bank(options.database), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
