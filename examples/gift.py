"""The gift service: grants each new user 100 points, once.

python -m examples.gift --port 8084 --database sqlite:///gift.db
"""

from __future__ import annotations

import argparse

from fastapi import APIRouter, FastAPI
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from examples.service import BARRIER_TABLE, Branch, Database, NewUser, make_app, make_parser, serve
from txcoord_sdk.barrier import Passage, create_table
from txcoord_sdk.fastapi import BranchRoute

POINTS = 100

metadata = MetaData()

# Without a unique name: it is the barrier that keeps a repeated call from granting twice.
gifts = Table(
    "gifts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(60), nullable=False),
    Column("points", Integer, nullable=False),
)

branches = APIRouter(route_class=BranchRoute)
pages = APIRouter()


@branches.post("/grant")
async def grant(user: NewUser, branch: Branch, database: Database) -> dict[str, Passage]:
    async def work(connection: AsyncConnection) -> None:
        await connection.execute(insert(gifts).values(name=user.name, points=POINTS))

    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, work)}


@pages.get("/gifts/{name}")
async def show(name: str, database: Database) -> list[int]:
    async with database.connect() as connection:
        return list((await connection.execute(select(gifts.c.points).where(gifts.c.name == name))).scalars())


async def prepare(engine: AsyncEngine) -> None:
    """Create the tables that are not there."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await create_table(engine, table=BARRIER_TABLE)


def make_gift_service(database: str) -> FastAPI:
    app = make_app("gift service", database, prepare)
    app.include_router(branches)
    app.include_router(pages)
    return app


def command_line() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, port=8084)
    parser.add_argument("--database", default="sqlite:///gift.db", help="its URL (default: %(default)s)")
    return parser


def main() -> None:
    options = command_line().parse_args()
    serve(make_gift_service(options.database), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
