"""From a store's URL to the store, and to its schema's version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from txcoord.errors import StoreUnavailableError
from txcoord.store.base import Store
from txcoord.store.memory import MemoryStore, wall_clock_us
from txcoord.store.sql.server import ServerStore
from txcoord.store.sql.sqlite import SqliteStore

ALLOWED = (
    "memory://, sqlite:///relative.db, sqlite:////absolute.db, mysql://user:password@host:3306/database, "
    "mariadb://user:password@host:3306/database, postgresql://user:password@host:5432/database"
)

_SERVERS = {
    "mysql": "mysql+aiomysql",
    "mysql+aiomysql": "mysql+aiomysql",
    "mariadb": "mysql+aiomysql",
    "mariadb+aiomysql": "mysql+aiomysql",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "postgres+asyncpg": "postgresql+asyncpg",
}

_SSL_MODES = ("disable", "require", "verify-full")


def open_store(
    url: str, *, timeout_s: float = 10.0, pool_size: int = 4, now_us: Callable[[], int] = wall_clock_us
) -> Store:
    """Make the store that `url` names. It connects in its `open()`.

    Args:
        timeout_s: bound of each call of the database.
        pool_size: connections to a database server for what clients ask; the journal has its own, the node's
            leases and take-overs have two, and what changes a single transaction has four.
        now_us: the clock that leases are measured by where the store has none of its own (memory, SQLite).

    Raises:
        ValueError: the URL is not one of those allowed, which the sentence names; or the driver is not installed.
    """
    if url == "memory://":
        return MemoryStore(now_us=now_us)
    parsed = _parse(url)
    if parsed.drivername == "sqlite":
        assert parsed.database
        return SqliteStore(path=parsed.database, timeout_s=timeout_s, now_us=now_us)
    return _server(parsed, timeout_s=timeout_s, pool_size=pool_size)


def upgrade(url: str, *, timeout_s: float = 600.0) -> None:
    """Bring the schema of a database to what this program needs; harmless where it is there already.

    It must not be called from within an event loop.

    Raises:
        ValueError: as `open_store`.
        SchemaError: the server is too old.
        StoreUnavailableError: the database cannot be reached.
    """
    parsed = _parse(url)
    if parsed.drivername == "sqlite":
        assert parsed.database
        SqliteStore(path=parsed.database, timeout_s=timeout_s).upgrade()
    else:
        asyncio.run(_server(parsed, timeout_s=timeout_s, pool_size=1).upgrade())


def current(url: str, *, timeout_s: float = 10.0) -> str | None:
    """The version of the schema in a database, None if it has none. Raises as `upgrade`."""
    parsed = _parse(url)
    if parsed.drivername == "sqlite":
        assert parsed.database
        return SqliteStore(path=parsed.database, timeout_s=timeout_s).version()
    return asyncio.run(_server(parsed, timeout_s=timeout_s, pool_size=1).version())


def cannot_be_used(url: str, error: StoreUnavailableError) -> str:
    """Say why a store cannot be used at start, and what to look at; of a file the error says both."""
    if url.startswith("sqlite"):
        return str(error)
    return (
        f"{error}: see that the database server runs, "
        "and that host, database, user and password of the store's URL are right"
    )


def _server(url: URL, *, timeout_s: float, pool_size: int) -> ServerStore[Any]:
    # Imported here, since each driver is an extra that the others do without.
    try:
        if url.drivername.startswith("mysql"):
            from txcoord.store.sql.mysql import MysqlStore

            return MysqlStore(url=url, timeout_s=timeout_s, pool_size=pool_size)
        from txcoord.store.sql.postgresql import PostgresStore

        return PostgresStore(url=url, timeout_s=timeout_s, pool_size=pool_size)
    except ImportError as error:
        extra = "mysql" if url.drivername.startswith("mysql") else "postgres"
        raise ValueError(f"the driver for this store is missing: install txcoord[server,{extra}]") from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"the store URL cannot be read; allowed are: {ALLOWED}") from error
    if parsed.drivername == "sqlite":
        if parsed.host or parsed.query or not parsed.database or parsed.database == ":memory:":
            raise ValueError(f"a SQLite store needs a file and takes no options; allowed are: {ALLOWED}")
        return parsed
    driver = _SERVERS.get(parsed.drivername)
    if driver is None:
        raise ValueError(f"there is no store of the kind {parsed.drivername}; allowed are: {ALLOWED}")
    if not parsed.database:
        raise ValueError(f"the store URL {parsed.render_as_string()} names no database; allowed are: {ALLOWED}")
    unknown = set(parsed.query) - {"ssl"}
    if unknown or parsed.query.get("ssl", "disable") not in _SSL_MODES:
        raise ValueError(f"the only option of a store URL is ssl, one of {', '.join(_SSL_MODES)}")
    return parsed.set(drivername=driver)
