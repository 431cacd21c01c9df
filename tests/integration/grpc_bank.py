"""Participants over gRPC: two purses in a database, behind the SDK's interceptor and barrier. Every call is kept."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.wrappers_pb2 import Int64Value
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from sdk.tests.grpc_support import handler_of, serving_async
from txcoord_sdk import AsyncCoordinator
from txcoord_sdk.barrier import create_table
from txcoord_sdk.grpc import (
    QUERY_PREPARED,
    AsyncBranchInterceptor,
    BranchContext,
    BranchFailed,
    add_query_prepared,
    branch_context,
)

BALANCE = 10_000
AMOUNT = Int64Value(value=200)
"""Its bytes are no UTF-8."""
SMALL_AMOUNT = Int64Value(value=30)
"""Its bytes are text, which is all that DTM's HTTP API carries."""
SERVICE = "bank.Purses"

_RESERVE = "update purse set reserved = reserved + :amount where name = :name and balance + reserved + :amount >= 0"
_WORK = {
    "action": "update purse set balance = balance + :amount where name = :name and balance + :amount >= 0",
    "compensate": "update purse set balance = balance - :amount where name = :name",
    "try": _RESERVE,
    "confirm": "update purse set reserved = reserved - :amount, balance = balance + :amount where name = :name",
    "cancel": "update purse set reserved = reserved - :amount where name = :name",
}


@dataclass(frozen=True)
class Received:
    name: str
    branch: BranchContext
    metadata: dict[str, str]


@dataclass
class Bank:
    """Answers `Out` and `In` (money leaves and comes), whatever the operation, and keeps what it was called for."""

    path: Path
    target: str = ""
    received: list[Received] = field(default_factory=list)
    nested: AsyncCoordinator | None = None
    """With it, the try of `Parcel` has a branch of its own for each purse."""
    _script: dict[tuple[str, str], deque[Exception]] = field(default_factory=lambda: defaultdict(deque))

    def __post_init__(self) -> None:
        self.engine = create_async_engine(f"sqlite+aiosqlite:///{self.path}", poolclass=NullPool)

    def url(self, name: str) -> str:
        return f"{self.target}/{SERVICE}/{name}"

    @property
    def query_prepared(self) -> str:
        return f"{self.target}/{QUERY_PREPARED}"

    def script(self, name: str, op: str, *errors: Exception) -> None:
        """Let the next calls of this operation raise these."""
        self._script[name, op].extend(errors)

    def calls(self, gid: str) -> list[str]:
        return [f"{each.name}-{each.branch.op}" for each in self.received if each.branch.gid == gid]

    async def balances(self) -> dict[str, tuple[int, int]]:
        """Balance and reserved amount of each purse."""
        async with self.engine.connect() as connection:
            found = await connection.execute(text("select name, balance, reserved from purse"))
            return {name: (balance, reserved) for name, balance, reserved in found}

    async def answer(self, name: str, request: bytes, context: Any) -> bytes:
        branch = branch_context()
        self.received.append(Received(name, branch, dict(context.invocation_metadata())))
        if script := self._script[name, branch.op]:
            raise script.popleft()
        if name == "Parcel":
            await self._within(branch, request)
            return b""
        amount = Int64Value.FromString(request).value
        async with self.engine.begin() as connection:
            work = partial(self._move, name.lower(), branch.op, -amount if name == "Out" else amount)
            await branch.barrier.call(connection, work)
        return Int64Value(value=amount).SerializeToString()

    async def _within(self, branch: BranchContext, request: bytes) -> None:
        if branch.op == "try":
            assert self.nested is not None
            async with self.nested.nested_tcc(branch) as tcc:
                for name in ("Out", "In"):
                    await tcc.call(self.url(name), self.url(name), self.url(name), request)

    async def _move(self, name: str, op: str, amount: int, connection: AsyncConnection) -> None:
        done = await connection.execute(text(_WORK[op]), {"name": name, "amount": amount})
        if not done.rowcount:
            raise BranchFailed(f"not enough money for {op} of {name}")


@asynccontextmanager
async def bank_at(path: Path) -> AsyncIterator[Bank]:
    """Run a bank on a new SQLite database."""
    bank = Bank(path)
    async with bank.engine.begin() as connection:
        await connection.execute(text("create table purse (name text primary key, balance int, reserved int)"))
        await connection.execute(text("insert into purse values ('out', :b, 0), ('in', :b, 0)"), {"b": BALANCE})
        await create_table(connection)
    handler = handler_of({name: partial(bank.answer, name) for name in ("Out", "In", "Parcel")}, SERVICE)
    async with serving_async(
        handler,
        interceptors=[AsyncBranchInterceptor()],
        add=lambda server: add_query_prepared(server, bank.engine),
    ) as bank.target:
        yield bank
    await bank.engine.dispose()
