"""Find the driver of a connection without importing drivers that are not in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast

from txcoord_sdk.barrier.drivers.base import Driver
from txcoord_sdk.barrier.errors import BarrierError

_MODULES: Mapping[str, str] = {
    "sqlalchemy": "sqlalchemy",
    "sqlite3": "sqlite",
    "aiosqlite": "aiosqlite",
    "pymysql": "mysql",
    "aiomysql": "aiomysql",
    "asyncpg": "asyncpg",
    "psycopg": "psycopg",
}
"""Top package of a connection's class → module here."""


def driver_of(connection: object, *, is_async: bool) -> Driver:
    """Return the driver for a connection or session.

    Raises:
        BarrierError: it is of an unknown kind, or a blocking one where an async one is wanted, or the other way.
    """
    driver = find_driver(connection)
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    if driver is None and is_redis(connection):
        raise BarrierError(f"a {kind} takes its work as a script: use redis_call, redis_query_prepared (or …_sync)")
    if driver is None:
        raise BarrierError(
            f"the barrier cannot work on a {kind}: give it the connection or session that the work uses, "
            "of SQLAlchemy, aiomysql, PyMySQL, asyncpg, psycopg, aiosqlite or sqlite3"
        )
    if driver.is_async and not is_async:
        raise BarrierError(f"a {kind} is async: use the method without _sync, and await it")
    if is_async and not driver.is_async:
        raise BarrierError(f"a {kind} blocks: use the method that ends in _sync, outside the event loop")
    return driver


def is_redis(client: object) -> bool:
    """Tell a client of the package redis, without needing that to be installed."""
    return any(kind.__module__.partition(".")[0] == "redis" for kind in type(client).__mro__)


def find_driver(connection: object) -> Driver | None:
    """Return the driver for a connection or session of either kind; None if there is none."""
    # By the whole line of classes, so that a subclass that an application made is found too.
    for kind in type(connection).__mro__:
        module = _MODULES.get(kind.__module__.partition(".")[0])
        if module is not None:
            factory = import_module(f"txcoord_sdk.barrier.drivers.{module}").driver
            return cast(Callable[[object], Driver | None], factory)(connection)
    return None
