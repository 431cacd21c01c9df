"""The checkout: orders as a workflow, which takes each service as it is: like a saga, like TCC, and by XA.

python -m examples.checkout --port 8086 --database mysql://user:password@127.0.0.1:3306/checkout

The order is made, and withdrawn if anything fails (as in a saga). The goods are frozen, then taken or freed (as
in TCC). The money is taken from the customer's purse in this service's own database, which prepares that and
commits it with the rest (XA). SQLite cannot prepare: there the money is taken at once, and given back if it fails.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import CheckConstraint, Column, Integer, MetaData, String, Table, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from examples.order import PRICE
from examples.service import BARRIER_TABLE, MOST_AT_ONCE, Database, OrderLine, make_app, make_parser, serve
from txcoord_sdk import (
    AsyncCoordinator,
    CoordinatorUnreachableError,
    TransactionFailedError,
    TransactionRunningError,
    new_gid,
)
from txcoord_sdk.barrier import create_table
from txcoord_sdk.fastapi import BranchContext, BranchFailed, workflow_router
from txcoord_sdk.workflow import AsyncWorkflow, AsyncWorkflows

RESUME = "/workflow/resume"
PURSES = {"ada": 10_000, "bob": 100}

metadata = MetaData()

purses = Table(
    "purses",
    metadata,
    Column("customer", String(60), primary_key=True),
    Column("balance", Integer, nullable=False),
    CheckConstraint("balance >= 0", name="purses_balance"),
)


class Purchase(BaseModel):
    """What a customer asks for."""

    customer: str = Field(min_length=1, max_length=60)
    id: int
    """The product's."""
    quantity: int = Field(gt=0, le=MOST_AT_ONCE)


class Receipt(BaseModel):
    """What a customer gets, whatever happened on the way."""

    paid: int
    left: int


async def pay(connection: AsyncConnection, customer: str, amount: int) -> int:
    """Take money from a purse; return what is left in it."""
    has_enough = (purses.c.customer == customer) & (purses.c.balance >= amount)
    changed = await connection.execute(update(purses).where(has_enough).values(balance=purses.c.balance - amount))
    if changed.rowcount == 0:
        raise BranchFailed(f"{customer} has not got {amount}")
    return int(await connection.scalar(select(purses.c.balance).where(purses.c.customer == customer)) or 0)


class Till:
    """Takes the money, by the means that its database has."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def take(self, wf: AsyncWorkflow, customer: str, amount: int) -> int:
        if self._engine.dialect.name != "sqlite":
            return await wf.xa(self._engine, pay, customer, amount)
        return await wf.branch().on_rollback(self._give_back, customer, amount).step(self._take, customer, amount)

    async def _take(self, branch: BranchContext, customer: str, amount: int) -> int:
        async with self._engine.begin() as connection:
            await branch.barrier.call(connection, partial(pay, customer=customer, amount=amount))
            # Read apart from the work: a repeated step pays only once, and still tells.
            return int(await connection.scalar(select(purses.c.balance).where(purses.c.customer == customer)) or 0)

    async def _give_back(self, branch: BranchContext, customer: str, amount: int) -> None:
        async with self._engine.begin() as connection:
            await branch.barrier.call(connection, partial(pay, customer=customer, amount=-amount))


async def prepare(engine: AsyncEngine) -> None:
    """Create the tables that are not there, and the purses."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await create_table(engine, table=BARRIER_TABLE)
    for customer, balance in PURSES.items():
        try:
            async with engine.begin() as connection:
                await connection.execute(insert(purses).values(customer=customer, balance=balance))
        except IntegrityError:
            continue  # It is there, with what is left in it.


def make_checkout_service(
    database: str, *, coordinator: str | None, own_url: str, order_url: str, storage_url: str
) -> FastAPI:
    client = AsyncCoordinator(coordinator)
    workflows = AsyncWorkflows(client, resume_url=own_url + RESUME, table=BARRIER_TABLE)
    app = make_app("checkout", database, prepare)
    till = Till(app.state.engine)

    @workflows.workflow(retry_interval=1)
    async def buy(wf: AsyncWorkflow, purchase: Purchase) -> Receipt:
        line = OrderLine(id=purchase.id, quantity=purchase.quantity, tx_id=wf.gid)
        order, goods = f"{order_url}/order-create", f"{storage_url}/deduct"
        # Called at the end, too, this one cannot fail: the order is there, and only this workflow would withdraw it.
        await wf.call(order, line, on_commit=f"{order}-confirm", on_rollback=f"{order}-compensate")
        await wf.call(f"{goods}-try", line, on_commit=f"{goods}-confirm", on_rollback=f"{goods}-cancel")
        # Last, because its locks are held from here to the end.
        price = PRICE * purchase.quantity
        return Receipt(paid=price, left=await till.take(wf, purchase.customer, price))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    pages = APIRouter(lifespan=lifespan)

    @pages.post("/checkouts")
    async def check_out(purchase: Purchase) -> JSONResponse:
        """200 with the receipt; 409 not possible and undone; 202 under way: ask with the gid."""
        return await answer(new_gid(), purchase)

    @pages.put("/checkouts/{gid}")
    async def check_out_as(gid: str, purchase: Purchase) -> JSONResponse:
        """The same with a name of the customer's own: repeated, it is the same purchase, and the same receipt."""
        return await answer(gid, purchase)

    async def answer(gid: str, purchase: Purchase) -> JSONResponse:
        try:
            receipt = await buy.run(purchase, gid=gid)
        except TransactionFailedError as error:
            return JSONResponse({"gid": gid, "status": error.status, "reason": error.message or error.reason}, 409)
        except TransactionRunningError as error:
            return JSONResponse({"gid": gid, "status": error.status, "reason": error.reason}, 202)
        except CoordinatorUnreachableError as error:
            return JSONResponse({"gid": gid, "status": None, "reason": error.reason}, 503)
        return JSONResponse({"gid": gid, **receipt.model_dump()})

    @pages.get("/purses/{customer}")
    async def show(customer: str, database: Database) -> dict[str, object]:
        async with database.connect() as connection:
            found = (await connection.execute(select(purses).where(purses.c.customer == customer))).mappings().first()
        if found is None:
            raise HTTPException(404, f"there is no purse of {customer}")
        return dict(found)

    app.include_router(pages)
    app.include_router(workflow_router(workflows, path=RESUME))
    return app


def command_line() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, port=8086)
    parser.add_argument("--database", default="sqlite:///checkout.db", help="its URL (default: %(default)s)")
    parser.add_argument("--coordinator", help="its URL (default: $TXCOORD_URL, else http://127.0.0.1:36789)")
    parser.add_argument("--own-url", help="where the coordinator finds this service (default: this host and port)")
    parser.add_argument("--order", default="http://127.0.0.1:8081", help="the order service (default: %(default)s)")
    parser.add_argument("--storage", default="http://127.0.0.1:8082", help="the storage service (default: %(default)s)")
    return parser


def main() -> None:
    options = command_line().parse_args()
    app = make_checkout_service(
        options.database,
        coordinator=options.coordinator,
        own_url=options.own_url or f"http://{options.host}:{options.port}",
        order_url=options.order,
        storage_url=options.storage,
    )
    serve(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
