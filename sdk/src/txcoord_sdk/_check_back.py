"""What the ready-made check-back endpoints do: ask the barrier's table on a connection of their own, or Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from txcoord.errors import InvalidRequestError
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
        InvalidRequestError: this is not a check-back.
    """
    _check_op(branch)
    found: Any
    if is_redis(source) and _is_async_client(source):
        found = await branch.barrier.redis_query_prepared(source, branch.redis_key or None)
    else:
        # In a thread from the first: a blocking connection may be opened by the call, and used only there.
        found = await asyncio.to_thread(_ask_or_open, source, branch)
    if not isinstance(found, bool):
        async with found as connection:
            found = await branch.barrier.query_prepared(connection)
    _check_committed(found)


def check_back_sync(source: Source, branch: BranchContext) -> None:
    """Do the same where nothing is awaited.

    Raises:
        BranchFailed, InvalidRequestError: as `check_back`.
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
        return branch.barrier.query_prepared_sync(connection)
