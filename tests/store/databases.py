"""Raw access to a store's database, past the store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import NullPool, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

_DRIVERS = {"mysql": "mysql+aiomysql", "postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction, which is committed unless something is raised."""
    async with _engine(url).begin() as connection:
        yield connection


def _engine(url: str) -> AsyncEngine:
    parsed = make_url(url)
    return create_async_engine(parsed.set(drivername=_DRIVERS[parsed.get_backend_name()]), poolclass=NullPool)


async def run_sql(url: str, *statements: str) -> None:
    async with connected(url) as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def wait_until_somebody_waits_for_a_lock(url: str) -> None:
    """Return when some transaction on this server waits for a row that another one has locked."""
    async with _engine(url).connect() as connection:
        if connection.dialect.name == "mysql":
            waiting = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        else:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while not await connection.scalar(text(waiting)):
            await connection.rollback()
