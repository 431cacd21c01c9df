"""The mailbox service: sends no mail, but keeps what it would have sent.

python -m examples.mail --port 8085 --database sqlite:///mail.db
"""

from __future__ import annotations

import argparse

from fastapi import APIRouter, FastAPI
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from examples.service import BARRIER_TABLE, Branch, Database, NewUser, make_app, make_parser, serve
from txcoord_sdk.barrier import Passage, create_table
from txcoord_sdk.fastapi import BranchRoute

metadata = MetaData()

mails = Table(
    "mails",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(60), nullable=False),
    Column("subject", String(200), nullable=False),
)

branches = APIRouter(route_class=BranchRoute)
pages = APIRouter()


@branches.post("/send")
async def send(user: NewUser, branch: Branch, database: Database) -> dict[str, Passage]:
    async def work(connection: AsyncConnection) -> None:
        await connection.execute(insert(mails).values(name=user.name, subject=f"Welcome, {user.name}"))

    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, work)}


@pages.get("/mails/{name}")
async def show(name: str, database: Database) -> list[str]:
    async with database.connect() as connection:
        return list((await connection.execute(select(mails.c.subject).where(mails.c.name == name))).scalars())


async def prepare(engine: AsyncEngine) -> None:
    """Create the tables that are not there."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await create_table(engine, table=BARRIER_TABLE)


def make_mail_service(database: str) -> FastAPI:
    app = make_app("mailbox service", database, prepare)
    app.include_router(branches)
    app.include_router(pages)
    return app


def command_line() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, port=8085)
    parser.add_argument("--database", default="sqlite:///mail.db", help="its URL (default: %(default)s)")
    return parser


def main() -> None:
    options = command_line().parse_args()
    serve(make_mail_service(options.database), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
