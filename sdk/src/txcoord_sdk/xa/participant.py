"""A participant's endpoint: one URL for action, commit and rollback."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, TypeVar

import httpx

from txcoord.errors import InvalidRequestError
from txcoord.model import Op
from txcoord.xa.xid import XaKey
from txcoord_sdk.branch import BranchContext, BranchFailed
from txcoord_sdk.coordinator import AsyncCoordinator, Coordinator
from txcoord_sdk.errors import RequestRefusedError, TransactionFailedError
from txcoord_sdk.xa.errors import XaError
from txcoord_sdk.xa.links import Source
from txcoord_sdk.xa.phases import finish, finish_sync, prepare, prepare_sync

T = TypeVar("T")

REGISTER_TIMEOUT_S = 3.0
REGISTER_ATTEMPTS = 2
"""The local transaction holds its locks meanwhile."""


async def take_part(
    branch: BranchContext,
    source: Source,
    work: Callable[[Any], Awaitable[T]],
    *,
    coordinator: AsyncCoordinator | None = None,
    table: str | None = None,
) -> T | None:
    """Do what a request asks of an XA branch: the action with `work`, or its commit or rollback.

        @router.post("/withdraw")
        async def withdraw(branch: Branch, transfer: Transfer | None = None) -> None:
            await take_part(branch, engine, partial(take_money, transfer))

    Commit and rollback have no body, so an endpoint must do without one.

    Args:
        source: where a connection of its own comes from: a SQLAlchemy engine, a pool of aiomysql or
            asyncpg, or a function that opens a connection or lends one.
        work: takes the connection and writes; it must not commit or roll back. To refuse, raise
            `BranchFailed`. It runs for the action only.
        coordinator: where to register the branch. If None, where the action says that it was called from.
        table: the barrier table, if it is not DTM's; it has to exist.

    Returns:
        What `work` returned; None if it did not run.

    Raises:
        BranchFailed, BranchOngoing: to be answered so, as the endpoints of `txcoord_sdk.fastapi` and
            `txcoord_sdk.starlette` do.
        InvalidRequestError: this is not a call of an XA branch.
        XaError: the database, or the source, cannot do XA.
    """
    key = _key(branch)
    if branch.op != Op.ACTION:
        await finish(source, key, branch.op, table=table)
        return None

    async def register() -> None:
        try:
            if coordinator is not None:
                return await coordinator.register_xa_branch(branch)
            async with (
                httpx.AsyncClient(verify=_trust()) as http,
                AsyncCoordinator(
                    branch.coordinator_url, timeout=REGISTER_TIMEOUT_S, attempts=REGISTER_ATTEMPTS, http=http
                ) as own,
            ):
                await own.register_xa_branch(branch)
        except (TransactionFailedError, RequestRefusedError) as error:
            raise _refused(branch, error) from error

    _check_action(branch, coordinator)
    return (await prepare(source, key, work, register=register, table=table)).result


def take_part_sync(
    branch: BranchContext,
    source: Source,
    work: Callable[[Any], T],
    *,
    coordinator: Coordinator | None = None,
    table: str | None = None,
) -> T | None:
    """Do what `take_part` does, on a blocking connection."""
    key = _key(branch)
    if branch.op != Op.ACTION:
        finish_sync(source, key, branch.op, table=table)
        return None

    def register() -> None:
        try:
            if coordinator is not None:
                return coordinator.register_xa_branch(branch)
            with (
                httpx.Client(verify=_trust()) as http,
                Coordinator(
                    branch.coordinator_url, timeout=REGISTER_TIMEOUT_S, attempts=REGISTER_ATTEMPTS, http=http
                ) as own,
            ):
                own.register_xa_branch(branch)
        except (TransactionFailedError, RequestRefusedError) as error:
            raise _refused(branch, error) from error

    _check_action(branch, coordinator)
    return prepare_sync(source, key, work, register=register, table=table).result


def _key(branch: BranchContext) -> XaKey:
    if branch.op not in (Op.ACTION, Op.COMMIT, Op.ROLLBACK):
        raise InvalidRequestError(f"not a call of an XA branch, but the {branch.op} of a {branch.trans_type}")
    return XaKey(gid=branch.gid, branch_id=branch.branch_id, trans_type=branch.trans_type)


def _check_action(branch: BranchContext, coordinator: object) -> None:
    if not branch.phase2_url:
        raise InvalidRequestError("not the action of an XA branch: it does not say its phase2_url")
    if coordinator is None and not branch.coordinator_url:
        raise InvalidRequestError("the action does not say its coordinator (dtm), and none was given to the endpoint")
    # The row of phase 1 has it. A call within the work would find that, and take itself for a duplicate.
    if not branch.barrier.reserve_first():
        raise XaError(
            f"branch {branch.branch_id} of {branch.gid}: its barrier was called before take_part, and so has written "
            "the row that XA needs: call it within the work, or name that call with barrier_id"
        )


def _refused(branch: BranchContext, error: TransactionFailedError | RequestRefusedError) -> BranchFailed:
    return BranchFailed(f"branch {branch.branch_id} of {branch.gid} cannot be registered: {error.reason}")


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    # Reading the system's certificates takes longer than all the rest, and a client is made for each action.
    return httpx.create_ssl_context()
