"""What the example services share: their database, their start, and the order as it travels."""

from __future__ import annotations

import argparse
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.types import ASGIApp

from txcoord_sdk.fastapi import BranchContext, branch_in

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "mysql": "mysql+aiomysql",
    "mariadb": "mysql+aiomysql",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
MOST_AT_ONCE = 1_000_000

BARRIER_TABLE = "barrier"
"""In the service's own database, so that a service needs rights on nothing else."""


class OrderLine(BaseModel):
    """So many of one product, for one order: the body of every branch call."""

    id: int
    """The product's."""
    quantity: int = Field(gt=0, le=MOST_AT_ONCE)
    tx_id: str = Field(min_length=1, max_length=128)
    """The gid of the global transaction; it names the order, too."""


class NewUser(BaseModel):
    """A user who registers, and the body of what follows from it."""

    name: str = Field(min_length=1, max_length=60)


def open_engine(database: str) -> AsyncEngine:
    """Make the engine for a database URL such as sqlite:///order.db or mysql://user:password@host/orders."""
    url = make_url(database)
    kind = url.get_backend_name()
    if kind not in DRIVERS:
        raise SystemExit(f"the database URL begins with {kind!r}: use one of {', '.join(DRIVERS)}")
    return create_async_engine(url.set(drivername=DRIVERS[kind]), pool_pre_ping=kind != "sqlite")


def make_app(title: str, database: str, prepare: Callable[[AsyncEngine], Awaitable[None]]) -> FastAPI:
    """Make a service on one database; `prepare` creates its tables when it starts."""
    engine = open_engine(database)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await prepare(engine)
        yield
        await engine.dispose()

    app = FastAPI(title=title, lifespan=lifespan)
    app.state.engine = engine

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))
        return {"status": "ok"}

    return app


def _engine_of(request: Request) -> AsyncEngine:
    engine: AsyncEngine = request.app.state.engine
    return engine


Database = Annotated[AsyncEngine, Depends(_engine_of)]
Branch = Annotated[BranchContext, Depends(branch_in(BARRIER_TABLE))]


def make_parser(description: str | None, *, port: int) -> argparse.ArgumentParser:
    """Make the command line that all services have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=port, help="port to listen on (default: %(default)s)")
    return parser


def serve(app: ASGIApp, *, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    uvicorn.run(app, host=host, port=port, log_config=None)
