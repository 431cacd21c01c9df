"""What the ready-made endpoints of XA do: read the payload of an action, and take part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import iscoroutinefunction
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from txcoord.errors import InvalidRequestError
from txcoord.model import Op
from txcoord_sdk.branch import BranchContext
from txcoord_sdk.coordinator import AsyncCoordinator, Coordinator
from txcoord_sdk.xa.links import Source
from txcoord_sdk.xa.participant import take_part, take_part_sync

XaWork = Callable[[Any, Any], Any]
"""Takes the connection and the action's payload; a coroutine function with an async source, else a plain one."""

AnyCoordinator = AsyncCoordinator | Coordinator


class XaEndpoint:
    """One URL of a participant: action, commit and rollback."""

    def __init__(
        self, source: Source, work: XaWork, *, coordinator: AnyCoordinator | None = None, table: str | None = None
    ) -> None:
        self._is_async = iscoroutinefunction(work)
        if coordinator is not None and isinstance(coordinator, AsyncCoordinator) is not self._is_async:
            kinds = "a coroutine function and an AsyncCoordinator, or a plain function and a Coordinator"
            raise ValueError(f"work and coordinator do not go together: give {kinds}")
        self._source = source
        self._work = work
        self._coordinator: Any = coordinator
        self._table = table

    async def answer(self, request: Request, branch: BranchContext) -> object:
        payload = await _payload(request) if branch.op == Op.ACTION else None

        def work(connection: Any) -> Any:
            return self._work(connection, payload)

        try:
            if self._is_async:
                return await take_part(branch, self._source, work, coordinator=self._coordinator, table=self._table)
            blocking = partial(take_part_sync, coordinator=self._coordinator, table=self._table)
            return await run_in_threadpool(blocking, branch, self._source, work)
        except InvalidRequestError as error:
            raise HTTPException(400, str(error)) from error


async def _payload(request: Request) -> object:
    body = await request.body()
    try:
        return msgspec.json.decode(body) if body else None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"the body of the action is not JSON: {error}") from error
