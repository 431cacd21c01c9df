"""Make the barrier table."""

from __future__ import annotations

from typing import Any

from txcoord.barrier.tables import (
    create_statements,
    exists_statement,
    exists_values,
    table_name,
)
from txcoord_sdk.barrier.connect import connect
from txcoord_sdk.barrier.drivers.base import Driver, Standing, run_now
from txcoord_sdk.barrier.drivers.registry import driver_of


async def create_table(target: Any, *, table: str | None = None) -> bool:
    """Make the barrier table unless it is there. Several processes may do so at once.

    Args:
        target: an async connection or session, or an `AsyncEngine`.
        table: its name, if not DTM's; the same as for `BranchBarrier`.

    Commits, except inside a transaction of yours, which stays yours to commit. (MySQL commits
    in any case: creating a table does that there. Do it at the start of your service.)

    Returns:
        Whether it was made now.
    """
    if _is_engine(target):
        async with target.connect() as connection:
            return await _create(driver_of(connection, is_async=True), table)
    return await _create(driver_of(target, is_async=True), table)


def create_table_sync(target: Any, *, table: str | None = None) -> bool:
    """Do what `create_table` does, on a blocking connection or session, or an `Engine`."""
    if _is_engine(target):
        with target.connect() as connection:
            return run_now(_create(driver_of(connection, is_async=False), table))
    return run_now(_create(driver_of(target, is_async=False), table))


def create_table_at(url: str, *, table: str | None = None) -> tuple[str, bool]:
    """Make the barrier table in the database at a URL, unless it is there.

    Args:
        url: `sqlite:///file.db`, `mysql://user:password@host/database` or
            `postgresql://user:password@host/database`; a driver's name after `+` is ignored.

    Returns:
        The table's name, and whether it was made now.
    """
    database, connection = connect(url)
    try:
        name = table_name(database, table)
        return name, run_now(_create(driver_of(connection, is_async=False), table))
    finally:
        connection.close()


async def _create(driver: Driver, table: str | None) -> bool:
    standing = await driver.standing()
    name = table_name(driver.database, table)
    if standing is Standing.NONE:
        await driver.begin()
    try:
        # Looked for first: whoever may use the table need not be allowed to make schemas.
        created = not await _exists(driver, name)
        if created:
            for statement in create_statements(driver.database, table):
                await driver.execute(statement)
    except BaseException:
        if standing is not Standing.OPEN:
            await driver.rollback()
        raise
    if standing is not Standing.OPEN:
        await driver.commit()
    return created


async def _exists(driver: Driver, name: str) -> bool:
    query = exists_statement(driver.database, driver.placeholders)
    return await driver.fetch(query, exists_values(driver.database, name)) is not None


def _is_engine(target: object) -> bool:
    kind = type(target)
    return kind.__module__.partition(".")[0] == "sqlalchemy" and kind.__name__ in ("Engine", "AsyncEngine")
