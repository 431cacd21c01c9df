"""What the ready-made check-back endpoints do: ask the barrier's table on a connection of their own, or Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import Any

from txcoord.errors import InvalidRequestError
from txcoord.model import Op
from txcoord_sdk.barrier.drivers.base import Driver, run_now
from txcoord_sdk.barrier.drivers.registry import driver_of, is_redis
from txcoord_sdk.branch import BranchContext, BranchFailed, BranchOngoing

Source = Any
"""A SQLAlchemy engine, or a function that gives a context manager of a connection or session; or a client of Redis.

Blocking or async.
"""

LOCK_WAIT_S = 1
"""How long a local transaction that is under way is waited for; the coordinator's own patience is 3 s by default."""

MAX_THREADS = 8
"""In which blocking connections are asked, at the same time."""


async def check_back(source: Source, branch: BranchContext) -> None:
    """Return if the local transaction of a message has committed.

    Raises:
        BranchFailed: it has not, and now never will.
        BranchOngoing: it is under way.
        InvalidRequestError: this is not a check-back.
    """
    _check_op(branch)
    found: Any
    if is_redis(source) and _is_async_client(source):
        found = await branch.barrier.redis_query_prepared(source, branch.redis_key or None)
    else:
        # In a thread from the first: a blocking connection may be opened by the call, and used only there. Not in one
        # of the loop's own, which look up host names, too: those that wait for locks would hold all of them up.
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(_threads(), copy_context().run, _ask_or_open, source, branch)
    if not isinstance(found, bool):
        async with found as connection:
            found = await _ask(branch, driver_of(connection, is_async=True))
    _check_committed(found)


def check_back_sync(source: Source, branch: BranchContext) -> None:
    """Do the same where nothing is awaited.

    Raises:
        BranchFailed, BranchOngoing, InvalidRequestError: as `check_back`.
        TypeError: the source is an async one.
    """
    _check_op(branch)
    if (is_redis(source) and _is_async_client(source)) or not isinstance(found := _ask_or_open(source, branch), bool):
        raise TypeError(f"a check-back without asyncio needs a source that blocks, not {type(source).__name__}")
    _check_committed(found)


def _check_op(branch: BranchContext) -> None:
    if branch.op != Op.MSG:
        raise InvalidRequestError(f"not a check-back, but the {branch.op} of a {branch.trans_type}")


def _check_committed(found: bool) -> None:
    if not found:
        raise BranchFailed("the local transaction has not committed, and will not")


def _is_async_client(client: Source) -> bool:
    from txcoord_sdk.barrier.redis import is_async_client

    return is_async_client(client)


def _ask_or_open(source: Source, branch: BranchContext) -> Any:
    if is_redis(source):
        return branch.barrier.redis_query_prepared_sync(source, branch.redis_key or None)
    # An engine is recognised by its method: SQLAlchemy need not be installed for a function.
    connect: Callable[[], Any] = source.connect if hasattr(source, "connect") else source
    opened = connect()
    if hasattr(opened, "__aenter__"):
        return opened  # nothing is open yet; the event loop does the rest
    with opened as connection:
        return run_now(_ask(branch, driver_of(connection, is_async=False)))


async def _ask(branch: BranchContext, driver: Driver) -> bool:
    try:
        return await branch.barrier._query_prepared(driver, lock_wait_s=LOCK_WAIT_S)
    except Exception as error:
        # Only now: XA is not everybody's.
        from txcoord_sdk.xa.dialects import Problem, problem_of

        if problem_of(error, driver.database) is not Problem.BUSY:
            raise
        raise BranchOngoing(f"the local transaction of {branch.gid} is under way") from error


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="txcoord-check-back")
