"""A step that is a branch of XA: done in a database that prepares it, and ends it when the workflow does.

Two records stand for its beginning. `business`, with the result, is made when the work is done and not yet
prepared; `action` when it is prepared. A workflow that was broken off between the two asks the database: what is
prepared is kept, with the result of the first record; what is not has been rolled back with its connection, and
the step has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from msgspec import Raw

from txcoord.model import Op, Outcome, Pattern
from txcoord.xa.xid import XaKey
from txcoord_sdk.barrier import Passage
from txcoord_sdk.barrier.drivers.base import run_now
from txcoord_sdk.branch import BranchFailed
from txcoord_sdk.workflow import _codec
from txcoord_sdk.workflow._works import NOTHING, Turn, Unanswered, Work, called
from txcoord_sdk.xa.phases import finish, finish_sync, prepare, prepare_sync

T = TypeVar("T")

KIND = "xa"


class XaWork(Work[T]):
    """Phase 1."""

    kind = KIND

    def __init__(
        self,
        source: Any,
        function: Callable[..., Any],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> None:
        self.name = _codec.name_of(function)
        self._source, self._function, self._args, self._kwargs = source, function, args, kwargs
        self._result_type = _codec.result_type(function)

    async def do(self, turn: Turn) -> Raw:
        begun = turn.recorded(Op.BUSINESS)
        if begun is None:
            return await self._prepared(turn)
        try:
            passage = await _prepare(self._source, turn, _not_again, _nothing_to_register)
        except _NotPrepared as nothing:
            raise BranchFailed(
                "it was broken off before it was prepared, and the database has rolled it back"
            ) from nothing
        assert passage is Passage.DUPLICATE, "the work was left out, or it has raised"
        return begun.result

    async def _prepared(self, turn: Turn) -> Raw:
        made: list[Raw] = []

        async def work(connection: Any) -> None:
            value = await called(self._function, connection, *self._args, is_async=turn.is_async, **self._kwargs)
            what = f"the result of step {turn.branch_id} ({self.name}) of {turn.gid}"
            made.append(Raw(_codec.encode(value, what=what)))

        async def register() -> None:
            await turn.record(Op.BUSINESS, made[0])

        passage = await _prepare(self._source, turn, work, register)
        if passage is not Passage.RUN:
            raise Unanswered(Outcome.ONGOING, "another execution has prepared it just now")
        return made[0]

    def read(self, branch_id: str, result: Raw) -> T:
        value: T = _codec.decode(bytes(result), self._result_type)
        return value


class XaEnding(Work[None]):
    """Phase 2."""

    kind = KIND

    def __init__(self, source: Any, name: str) -> None:
        self.name = name
        self._source = source

    async def do(self, turn: Turn) -> Raw:
        if turn.is_async:
            await finish(self._source, _key_of(turn), turn.op, table=turn.table)
        else:
            finish_sync(self._source, _key_of(turn), turn.op, table=turn.table)
        return NOTHING

    def read(self, branch_id: str, result: Raw) -> None:
        return None


class _NotPrepared(Exception):
    """Raised in place of the work: it runs only if nothing is prepared."""


async def _not_again(connection: Any) -> None:
    raise _NotPrepared


async def _nothing_to_register() -> None:
    raise AssertionError("what raises is not registered")


async def _prepare(source: Any, turn: Turn, work: Callable[[Any], Any], register: Callable[[], Any]) -> Passage:
    if turn.is_async:
        return (await prepare(source, _key_of(turn), work, register=register, table=turn.table)).passage

    def work_now(connection: Any) -> None:
        run_now(work(connection))

    def register_now() -> None:
        run_now(register())

    return prepare_sync(source, _key_of(turn), work_now, register=register_now, table=turn.table).passage


def _key_of(turn: Turn) -> XaKey:
    return XaKey(gid=turn.gid, branch_id=turn.branch_id, trans_type=Pattern.WORKFLOW)
