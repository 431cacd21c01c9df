"""The storage service: knows how much there is of each product, and gives nothing away that is not there.

A saga takes goods at once, and puts them back if it fails. A TCC transaction freezes them
first: they are still there, but nobody else gets them. Free is what is not frozen.

    python -m examples.storage --port 8082 --database sqlite:///storage.db
"""

from __future__ import annotations

import argparse

from fastapi import APIRouter, FastAPI, HTTPException
from sqlalchemy import CheckConstraint, Column, ColumnElement, Integer, MetaData, Table, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from examples.service import BARRIER_TABLE, Branch, Database, OrderLine, make_app, make_parser, serve
from txcoord_sdk.barrier import Passage, create_table
from txcoord_sdk.fastapi import BranchFailed, BranchRoute

FIRST_STOCK = {3: 108, 8: 10}

metadata = MetaData()

storages = Table(
    "storages",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("inventory", Integer, nullable=False),
    Column("frozen_inventory", Integer, nullable=False, server_default="0"),
    CheckConstraint("inventory >= frozen_inventory and frozen_inventory >= 0", name="storages_inventory"),
)

branches = APIRouter(route_class=BranchRoute)
pages = APIRouter()


@branches.post("/deduct")
async def deduct(line: OrderLine, branch: Branch, database: Database) -> dict[str, Passage]:
    async def work(connection: AsyncConnection) -> None:
        await _change_if_free(connection, line, inventory=storages.c.inventory - line.quantity)

    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, work)}


@branches.post("/deduct-compensate")
async def deduct_compensate(line: OrderLine, branch: Branch, database: Database) -> dict[str, Passage]:
    async def work(connection: AsyncConnection) -> None:
        more = storages.c.inventory + line.quantity
        await connection.execute(update(storages).where(storages.c.id == line.id).values(inventory=more))

    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, work)}


@branches.post("/deduct-try")
async def deduct_try(line: OrderLine, branch: Branch, database: Database) -> dict[str, Passage]:
    async def work(connection: AsyncConnection) -> None:
        await _change_if_free(connection, line, frozen_inventory=storages.c.frozen_inventory + line.quantity)

    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, work)}


@branches.post("/deduct-confirm")
async def deduct_confirm(line: OrderLine, branch: Branch, database: Database) -> dict[str, Passage]:
    async def work(connection: AsyncConnection) -> None:
        # Cannot fail: the try has frozen as many, and nobody else takes what is frozen.
        taken = {
            "inventory": storages.c.inventory - line.quantity,
            "frozen_inventory": storages.c.frozen_inventory - line.quantity,
        }
        await connection.execute(update(storages).where(storages.c.id == line.id).values(taken))

    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, work)}


@branches.post("/deduct-cancel")
async def deduct_cancel(line: OrderLine, branch: Branch, database: Database) -> dict[str, Passage]:
    async def work(connection: AsyncConnection) -> None:
        less = storages.c.frozen_inventory - line.quantity
        await connection.execute(update(storages).where(storages.c.id == line.id).values(frozen_inventory=less))

    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, work)}


async def _change_if_free(connection: AsyncConnection, line: OrderLine, **values: ColumnElement[int]) -> None:
    # Compared in the statement that writes: two orders for the last piece cannot both get it.
    free = storages.c.inventory - storages.c.frozen_inventory
    has_enough = (storages.c.id == line.id) & (free >= line.quantity)
    changed = await connection.execute(update(storages).where(has_enough).values(values))
    if changed.rowcount == 0:
        raise BranchFailed(f"no stock: there are not {line.quantity} of product {line.id}")


@pages.get("/storages/{product_id}")
async def show(product_id: int, database: Database) -> dict[str, int]:
    async with database.connect() as connection:
        found = (await connection.execute(select(storages).where(storages.c.id == product_id))).mappings().first()
    if found is None:
        raise HTTPException(404, f"there is no product {product_id}")
    return dict(found)


async def prepare(engine: AsyncEngine) -> None:
    """Create the tables that are not there, and the products."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await create_table(engine, table=BARRIER_TABLE)
    for product_id, inventory in FIRST_STOCK.items():
        try:
            async with engine.begin() as connection:
                await connection.execute(insert(storages).values(id=product_id, inventory=inventory))
        except IntegrityError:
            continue  # It is there, with what is left of it.


def make_storage_service(database: str) -> FastAPI:
    app = make_app("storage service", database, prepare)
    app.include_router(branches)
    app.include_router(pages)
    return app


def command_line() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, port=8082)
    parser.add_argument("--database", default="sqlite:///storage.db", help="its URL (default: %(default)s)")
    return parser


def main() -> None:
    options = command_line().parse_args()
    serve(make_storage_service(options.database), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
