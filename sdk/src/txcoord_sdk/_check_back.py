"""What the ready-made check-back endpoints do: ask the barrier's table on a connection of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from txcoord.model import Op
from txcoord_sdk.barrier.drivers.registry import is_redis
from txcoord_sdk.branch import BranchContext, BranchFailed

Source = Any
"""A SQLAlchemy engine, or a function that gives a context manager of a connection or session; or a client of Redis.

Blocking or async.
"""


async def check_back(source: Source, branch: BranchContext) -> None:
    """Return if the local transaction of a message has committed.

    Raises:
        BranchFailed: it has not, and now never will.
        HTTPException: this is not a check-back.
    """
    if branch.op != Op.MSG:
        raise HTTPException(400, f"not a check-back, but the {branch.op} of a {branch.trans_type}")
    if not await (_ask_redis(source, branch) if is_redis(source) else _ask(source, branch)):
        raise BranchFailed("the local transaction has not committed, and will not")


async def _ask_redis(client: Source, branch: BranchContext) -> bool:
    from txcoord_sdk.barrier.redis import is_async_client

    key = branch.redis_key or None
    if is_async_client(client):
        return await branch.barrier.redis_query_prepared(client, key)
    return await run_in_threadpool(branch.barrier.redis_query_prepared_sync, client, key)


async def _ask(source: Source, branch: BranchContext) -> bool:
    # An engine is told by its method: SQLAlchemy need not be installed for a function.
    connect: Callable[[], Any] = source.connect if hasattr(source, "connect") else source
    found = await run_in_threadpool(_ask_or_open, connect, branch)
    if isinstance(found, bool):
        return found
    async with found as connection:
        return await branch.barrier.query_prepared(connection)


def _ask_or_open(connect: Callable[[], Any], branch: BranchContext) -> Any:
    # In a thread from the first: a blocking connection may be opened by the call, and used only there.
    opened = connect()
    if hasattr(opened, "__aenter__"):
        return opened  # nothing is open yet; the event loop does the rest
    with opened as connection:
        return branch.barrier.query_prepared_sync(connection)
