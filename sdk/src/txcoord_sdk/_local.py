"""A message and a local transaction that happen both or not at all: the order of things, once for both clients.

What decides is the commit of the local transaction, which holds the barrier's row. Everything
else follows from it, or is found out by the check-back, which looks for that row:

- The message is prepared first. A process that dies anywhere after that leaves a message about
  which the coordinator asks back.
- An abort is sent only when it is certain that no commit can come any more: `work` has raised, that is
  rolled back, and the row that a check-back would write is in its place. So not even a second
  attempt with the same gid, made at the same time, can commit what is then aborted.
- What is not certain (a commit without an answer, a connection that is gone) is left to the check-back.
- Once the commit has been answered the message is certain, too, even if the submit does not get through.

Imported when it is needed: an initiator of other patterns needs nothing of the barrier.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from inspect import isawaitable, iscoroutine
from typing import Any, TypeVar

from txcoord.model import Op, Pattern
from txcoord.protocol import CHECK_BACK_BRANCH
from txcoord_sdk._calls import Flow
from txcoord_sdk._rules import Rules
from txcoord_sdk._two_phase_rules import reason_of
from txcoord_sdk.barrier import BranchBarrier, DuplicatedError
from txcoord_sdk.barrier.drivers.base import Standing
from txcoord_sdk.barrier.drivers.registry import driver_of
from txcoord_sdk.errors import CoordinatorUnreachableError, TxcoordSdkError
from txcoord_sdk.message import Message

logger = logging.getLogger("txcoord_sdk.message")

T = TypeVar("T")

Carry = Callable[[Flow[Any]], Awaitable[Any]]
"""Carries out a flow; the sync client's does so without ever suspending."""


class _Stage(Enum):
    ENTERING = auto()
    WORKING = auto()
    REFUSED = auto()
    """`work` has raised."""
    COMMITTING = auto()


class LocalTransaction:
    """One `do_and_submit`."""

    def __init__(
        self,
        rules: Rules,
        carry: Carry,
        message: Message,
        connection: object,
        *,
        table: str | None,
        is_async: bool,
    ) -> None:
        self._rules = rules
        self._carry = carry
        self._message = message
        self._connection = connection
        # Before anything is sent: a connection that cannot be used is the caller's mistake.
        self._driver = driver_of(connection, is_async=is_async)
        self._barrier = BranchBarrier(Pattern.MSG, message.gid, CHECK_BACK_BRANCH, Op.MSG, table=table)
        self._is_async = is_async
        self._stage = _Stage.ENTERING

    async def run(self, query_prepared: str, work: Callable[[Any], object]) -> str:
        await self._carry(self._rules.prepare_message(self._message, query_prepared))
        try:
            await self._commit(work)
        except BaseException as error:
            await self._give_up(error)
            raise
        return await submit_committed(self._rules, self._carry, self._message)

    async def _commit(self, work: Callable[[Any], object]) -> None:
        if self._is_async:
            await self._barrier.call(self._connection, lambda _: self._worked(work), commit=True)
        else:
            self._barrier.call_sync(self._connection, lambda _: self._work_now(work), commit=True)

    async def _worked(self, work: Callable[[Any], object]) -> None:
        self._stage = _Stage.WORKING
        try:
            done = work(self._connection)
            if not isawaitable(done):
                raise TypeError("work is not a coroutine function: await it, or use the synchronous Coordinator")
            await done
        except Exception:
            self._stage = _Stage.REFUSED
            raise
        self._stage = _Stage.COMMITTING

    def _work_now(self, work: Callable[[Any], object]) -> None:
        self._stage = _Stage.WORKING
        try:
            done = work(self._connection)
            if iscoroutine(done):
                done.close()
                raise TypeError("work is a coroutine function: use AsyncCoordinator, with an async connection")
        except Exception:
            self._stage = _Stage.REFUSED
            raise
        self._stage = _Stage.COMMITTING

    async def _give_up(self, error: BaseException) -> None:
        gid = self._message.gid
        if isinstance(error, DuplicatedError) and self._stage is _Stage.ENTERING:
            return  # it says so itself; which of the two it was is what the check-back tells
        if self._stage is _Stage.REFUSED and await self._abort(error):
            return
        said = {
            _Stage.COMMITTING: "whether the local transaction has committed is not known",
            _Stage.ENTERING: "nothing was written",
        }.get(self._stage, "the local transaction is not committed, and the message not aborted")
        error.add_note(f"message {gid}: {said}; the coordinator's check-back finds out, and submits or ends it")

    async def _abort(self, error: BaseException) -> bool:
        try:
            # A rollback that failed may have left it open: asking there would commit it.
            if await self._driver.standing() is Standing.OPEN or await self._has_committed():
                return False
            await self._carry(self._rules.abort_message(self._message, reason_of(error)))
        except Exception as failure:  # noqa: BLE001 (what went wrong first matters more)
            error.add_note(f"message {self._message.gid} could not be aborted ({failure!r})")
            return False
        return True

    async def _has_committed(self) -> bool:
        if self._is_async:
            return await self._barrier.query_prepared(self._connection)
        return self._barrier.query_prepared_sync(self._connection)


async def submit_committed(rules: Rules, carry: Carry, message: Message) -> str:
    """Submit a message whose local transaction has committed; return its gid."""
    gid = message.gid
    try:
        await carry(rules.submit(message))
    except CoordinatorUnreachableError as error:
        if message.wait_result:
            error.add_note(_COMMITTED)
            raise
        # It is certain all the same: raising would tell the caller of a failure that there was not.
        logger.warning("message %s: committed, but not submitted; the check-back does it: %s", gid, error.reason)
    except TxcoordSdkError as error:
        error.add_note(_COMMITTED)
        raise
    return gid


_COMMITTED = "the local transaction has committed"
