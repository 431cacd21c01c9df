"""What the barrier asks of a connection, whichever driver it is of.

The barrier is written once, as coroutines. Drivers that block implement the same methods as
coroutines that never suspend, and `run_now` runs those to their end in one step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from enum import Enum, auto
from itertools import count
from typing import Any, ClassVar, TypeVar

from txcoord.barrier.tables import Database, Placeholders

T = TypeVar("T")

_savepoint_numbers = count(1)


class Standing(Enum):
    """How a connection stands towards transactions, before the barrier's first statement."""

    OPEN = auto()
    """The caller has a transaction open."""
    OPENS = auto()
    """None is open, but the next statement opens one."""
    NONE = auto()
    """None is open, and none will be: each statement commits by itself."""


class Driver(ABC):
    """One connection, as the barrier uses it. Errors of the driver come through as they are."""

    database: Database
    placeholders: ClassVar[Placeholders]
    is_async: ClassVar[bool]

    @abstractmethod
    async def standing(self) -> Standing:
        """Say how the connection stands, without asking the server. Called first: it may settle `database`."""

    @abstractmethod
    async def execute(self, statement: str, values: Sequence[str] = ()) -> int:
        """Run a statement with bound values; return how many rows it affected."""

    @abstractmethod
    async def fetch(self, statement: str, values: Sequence[str] = ()) -> Sequence[object] | None:
        """Run a query with bound values; return its first row."""

    @abstractmethod
    async def commit(self) -> None: ...

    @abstractmethod
    async def rollback(self) -> None: ...

    async def begin(self) -> None:
        """Open a transaction on a connection that opens none by itself."""
        await self.execute("begin")

    async def savepoint(self) -> None:
        """Mark a point in the transaction, opening that first where the next statement would."""
        await self.execute(self._new_savepoint())

    async def release(self) -> None:
        """Keep what came after the savepoint. Raises if the transaction is no longer the same, or broken."""
        await self.execute(f"release savepoint {self._savepoint}")

    async def undo(self) -> None:
        """Take back what came after the savepoint; the caller's transaction goes on."""
        await self.execute(f"rollback to savepoint {self._savepoint}")

    # A transaction that the barrier ends has a savepoint, too. PostgreSQL answers the commit of one
    # that a failed statement has broken by rolling back, and calls that a success; MySQL ends one at
    # a deadlock, or at a statement such as `create table`, and goes on in another without a word. If the work
    # has caught the error, or there was none, only the savepoint tells.

    async def begin_own(self, standing: Standing) -> None:
        """Open a transaction that `commit_own` or `rollback_own` ends, unless one is open, and mark this point."""
        if standing is Standing.NONE:
            await self.begin()
        await self.savepoint()

    async def commit_own(self) -> None:
        """Commit. Raises, and has not committed what came after the mark, if the transaction was lost meanwhile."""
        await self.release()
        await self.commit()

    async def rollback_own(self) -> None:
        await self.rollback()

    def _new_savepoint(self) -> str:
        # A name of its own: in MySQL, a second one of the same name would take away the first,
        # and a call within the work of another would end that.
        self._savepoint = f"txcoord_barrier_{next(_savepoint_numbers)}"
        return f"savepoint {self._savepoint}"


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over a blocking driver, which has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise AssertionError("a blocking driver suspended")
