"""The blocks that TCC and XA transactions are: two thin shells around rules, one for asyncio."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from txcoord_sdk._calls import Flow
from txcoord_sdk._two_phase_rules import TwoPhaseRules

T = TypeVar("T")
R = TypeVar("R", bound=TwoPhaseRules)


class Drive(Protocol):
    """Carry out a flow."""

    def __call__(self, flow: Flow[T], /) -> T: ...


class AsyncDrive(Protocol):
    """Carry out a flow, awaited."""

    async def __call__(self, flow: Flow[T], /) -> T: ...


class BlockOperations(ABC, Generic[R]):
    """What can be done with a transaction that is open within its `with` block."""

    def __init__(self, rules: R) -> None:
        self._rules = rules

    @property
    def gid(self) -> str:
        """The transaction's identity, made here unless given."""
        return self._rules.gid

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._rules!r}>"

    @abstractmethod
    def submit(self) -> Awaitable[None] | None:
        """Do now what the end of the block does; or repeat it, after `CoordinatorUnreachableError`.

        Repeating it is safe, also when the block has ended.
        """


class AsyncBlock(BlockOperations[R]):
    def __init__(self, rules: R, drive: AsyncDrive) -> None:
        super().__init__(rules)
        self._drive = drive

    async def submit(self) -> None:
        await self._drive(self._rules.submit())

    async def __aenter__(self) -> Self:
        await self._drive(self._rules.enter())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._drive(self._rules.leave(error))


class Block(BlockOperations[R]):
    def __init__(self, rules: R, drive: Drive) -> None:
        super().__init__(rules)
        self._drive = drive

    def submit(self) -> None:
        self._drive(self._rules.submit())

    def __enter__(self) -> Self:
        self._drive(self._rules.enter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drive(self._rules.leave(error))
