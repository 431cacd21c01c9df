"""The BFF (backend for a frontend): takes an order from a shop's page and has it carried out everywhere or nowhere.

python -m examples.bff --port 8080 --coordinator http://127.0.0.1:36789
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from math import ceil
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from examples.service import MOST_AT_ONCE, OrderLine, make_parser, serve
from txcoord_sdk import (
    AsyncCoordinator,
    CoordinatorUnreachableError,
    Saga,
    Transaction,
    TransactionFailedError,
    TransactionNotFoundError,
    TransactionRunningError,
    new_gid,
)


class Order(BaseModel):
    """What the customer asks for."""

    id: int
    """The product's."""
    quantity: int = Field(gt=0, le=MOST_AT_ONCE)


class OrderPattern(StrEnum):
    """The two ways in which an order can be carried out."""

    SAGA = "saga"
    TCC = "tcc"


class OrderDesk:
    """Has orders carried out, as one global transaction each."""

    def __init__(
        self, coordinator: AsyncCoordinator, *, order_url: str, storage_url: str, wait_s: float, retry_interval_s: int
    ) -> None:
        self._coordinator = coordinator
        self._order_url = order_url.rstrip("/")
        self._storage_url = storage_url.rstrip("/")
        self._wait_s = wait_s
        self._retry_interval_s = retry_interval_s

    async def place(self, order: Order, gid: str, pattern: OrderPattern) -> None:
        """Return when it is carried out; raises what `AsyncCoordinator.run` raises."""
        line = OrderLine(id=order.id, quantity=order.quantity, tx_id=gid)
        match pattern:
            case OrderPattern.SAGA:
                await self._coordinator.run(self.open_saga(line), timeout=self._wait_s)
            case OrderPattern.TCC:
                # If it failed, the reason is on record, too; what is left is to be undone.
                with suppress(TransactionFailedError):
                    await self._reserve(line)
                (await self._coordinator.wait(gid, timeout=self._wait_s)).raise_for_status()

    def open_saga(self, line: OrderLine) -> Saga:
        """Say what makes up an order: create it, take the goods, confirm it."""
        saga = Saga(line.tx_id, retry_interval=self._retry_interval_s)
        saga.step(f"{self._order_url}/order-create", f"{self._order_url}/order-create-compensate", line)
        saga.step(f"{self._storage_url}/deduct", f"{self._storage_url}/deduct-compensate", line)
        # The last step needs no compensation: nothing comes after it that could fail. If time
        # runs out while it is called, the order's own compensation overrules it.
        saga.step(f"{self._order_url}/order-confirm", "", line)
        return saga

    async def _reserve(self, line: OrderLine) -> None:
        """Create the order and freeze the goods; the end of the block has both confirmed, or both cancelled."""
        async with self._coordinator.tcc(
            line.tx_id, timeout_to_fail=max(ceil(self._wait_s), 1), retry_interval=self._retry_interval_s
        ) as tcc:
            for what in (f"{self._order_url}/order-create", f"{self._storage_url}/deduct"):
                await tcc.call(f"{what}-try", f"{what}-confirm", f"{what}-cancel", line)

    async def find(self, gid: str) -> Transaction:
        return await self._coordinator.query(gid)


def _desk_of(request: Request) -> OrderDesk:
    desk: OrderDesk = request.app.state.desk
    return desk


Desk = Annotated[OrderDesk, Depends(_desk_of)]


def make_bff(
    *, coordinator: str | None, order_url: str, storage_url: str, wait_s: float = 30.0, retry_interval_s: int = 1
) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncCoordinator(coordinator) as client:
            app.state.desk = OrderDesk(
                client,
                order_url=order_url,
                storage_url=storage_url,
                wait_s=wait_s,
                retry_interval_s=retry_interval_s,
            )
            yield

    app = FastAPI(title="BFF", lifespan=lifespan)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/orders")
    async def place(order: Order, desk: Desk, pattern: OrderPattern = OrderPattern.SAGA) -> JSONResponse:
        """200 done, 409 not possible and undone, 202 still under way, 503 not known: ask with the gid."""
        gid = new_gid()
        try:
            await desk.place(order, gid, pattern)
        except TransactionFailedError as error:
            return JSONResponse({"gid": gid, "status": error.status, "reason": error.message or error.reason}, 409)
        except TransactionRunningError as error:
            return _ask_later(202, gid, error.status)
        except CoordinatorUnreachableError:
            return _ask_later(503, gid, None)
        return JSONResponse({"gid": gid, "status": "succeed"})

    @app.get("/orders/{gid}")
    async def show(gid: str, desk: Desk) -> JSONResponse:
        try:
            found = await desk.find(gid)
        except TransactionNotFoundError:
            return JSONResponse({"gid": gid, "status": None}, 404)
        except CoordinatorUnreachableError:
            return _ask_later(503, gid, None)
        return JSONResponse(
            {
                "gid": gid,
                "status": found.status,
                "reason": found.reason,
                "branches": [{"branch_id": b.branch_id, "op": b.op, "status": b.status} for b in found.branches],
            }
        )

    return app


def _ask_later(code: int, gid: str, status: str | None) -> JSONResponse:
    return JSONResponse(
        {"gid": gid, "status": status}, code, headers={"Location": f"/orders/{gid}", "Retry-After": "1"}
    )


def command_line() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, port=8080)
    parser.add_argument("--coordinator", help="its URL (default: $TXCOORD_URL, else http://127.0.0.1:36789)")
    parser.add_argument("--order", default="http://127.0.0.1:8081", help="the order service (default: %(default)s)")
    parser.add_argument("--storage", default="http://127.0.0.1:8082", help="the storage service (default: %(default)s)")
    parser.add_argument("--wait", type=float, default=30.0, help="longest wait for an order, in seconds")
    return parser


def main() -> None:
    options = command_line().parse_args()
    app = make_bff(
        coordinator=options.coordinator, order_url=options.order, storage_url=options.storage, wait_s=options.wait
    )
    serve(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
