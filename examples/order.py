"""The order service: creates an order, and confirms it once everything else is done.

An order is `confirming` while its global transaction is under way. A saga's last step makes
it `confirmed`, its compensation `not confirmed`, for good: a confirmation that comes late finds
an order that is no longer `confirming`, and fails. In a TCC transaction the try makes the
order, and confirm or cancel end it.

    python -m examples.order --port 8081 --database sqlite:///order.db
"""

from __future__ import annotations

import argparse
from functools import partial

from fastapi import APIRouter, FastAPI, HTTPException
from sqlalchemy import CheckConstraint, Column, ForeignKey, Integer, MetaData, String, Table, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from examples.service import BARRIER_TABLE, Branch, Database, OrderLine, make_app, make_parser, serve
from txcoord_sdk.barrier import Passage, create_table
from txcoord_sdk.fastapi import BranchFailed, BranchRoute

TOTAL = 1024
PRICE = 99

CONFIRMING = "confirming"
CONFIRMED = "confirmed"
NOT_CONFIRMED = "not confirmed"

metadata = MetaData()

orders = Table(
    "orders",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tx_id", String(128), nullable=False, unique=True),
    Column("status", String(16), nullable=False),
    Column("total", Integer, nullable=False),
    CheckConstraint(f"status in ('{CONFIRMING}', '{CONFIRMED}', '{NOT_CONFIRMED}')", name="orders_status"),
)

order_products = Table(
    "order_products",
    metadata,
    Column("order_id", Integer, ForeignKey("orders.id"), primary_key=True),
    Column("product_id", Integer, primary_key=True, autoincrement=False),
    Column("quantity", Integer, nullable=False),
    Column("price", Integer, nullable=False),
)

branches = APIRouter(route_class=BranchRoute)
pages = APIRouter()


@branches.post("/order-create")
async def create(line: OrderLine, branch: Branch, database: Database) -> dict[str, Passage]:
    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, partial(_create, line))}


@branches.post("/order-create-compensate")
async def create_compensate(line: OrderLine, branch: Branch, database: Database) -> dict[str, Passage]:
    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, partial(_end, line, NOT_CONFIRMED))}


@branches.post("/order-confirm")
async def confirm(line: OrderLine, branch: Branch, database: Database) -> dict[str, Passage]:
    async def work(connection: AsyncConnection) -> None:
        is_open = (orders.c.tx_id == line.tx_id) & (orders.c.status == CONFIRMING)
        changed = await connection.execute(update(orders).where(is_open).values(status=CONFIRMED))
        if changed.rowcount == 0:
            raise BranchFailed(f"there is no order {line.tx_id} to be confirmed")

    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, work)}


@branches.post("/order-create-try")
async def create_try(line: OrderLine, branch: Branch, database: Database) -> dict[str, Passage]:
    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, partial(_create, line))}


@branches.post("/order-create-confirm")
async def create_confirm(line: OrderLine, branch: Branch, database: Database) -> dict[str, Passage]:
    # Cannot fail: the try has made the order, and only a cancel could have ended it.
    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, partial(_end, line, CONFIRMED))}


@branches.post("/order-create-cancel")
async def create_cancel(line: OrderLine, branch: Branch, database: Database) -> dict[str, Passage]:
    async with database.begin() as connection:
        return {"barrier": await branch.barrier.call(connection, partial(_end, line, NOT_CONFIRMED))}


async def _create(line: OrderLine, connection: AsyncConnection) -> None:
    created = await connection.execute(insert(orders).values(tx_id=line.tx_id, status=CONFIRMING, total=TOTAL))
    assert created.inserted_primary_key is not None, "an insert of one row has a key"
    order_id = created.inserted_primary_key.id
    await connection.execute(
        insert(order_products).values(order_id=order_id, product_id=line.id, quantity=line.quantity, price=PRICE)
    )


async def _end(line: OrderLine, status: str, connection: AsyncConnection) -> None:
    await connection.execute(update(orders).where(orders.c.tx_id == line.tx_id).values(status=status))


@pages.get("/orders/{tx_id}")
async def show(tx_id: str, database: Database) -> dict[str, object]:
    columns = (orders.c.id, orders.c.tx_id, orders.c.status, orders.c.total)
    lines = (order_products.c.product_id, order_products.c.quantity, order_products.c.price)
    async with database.connect() as connection:
        order = (await connection.execute(select(*columns).where(orders.c.tx_id == tx_id))).mappings().first()
        if order is None:
            raise HTTPException(404, f"there is no order {tx_id}")
        products = await connection.execute(select(*lines).where(order_products.c.order_id == order["id"]))
        return {**order, "products": [dict(line) for line in products.mappings()]}


async def prepare(engine: AsyncEngine) -> None:
    """Create the tables that are not there."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await create_table(engine, table=BARRIER_TABLE)


def make_order_service(database: str) -> FastAPI:
    app = make_app("order service", database, prepare)
    app.include_router(branches)
    app.include_router(pages)
    return app


def command_line() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, port=8081)
    parser.add_argument("--database", default="sqlite:///order.db", help="its URL (default: %(default)s)")
    return parser


def main() -> None:
    options = command_line().parse_args()
    serve(make_order_service(options.database), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
