"""What the stores on database servers share: connections, bounded waits, errors in our words."""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import URL, NullPool
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from txcoord.errors import LeaseLostError, SchemaError, StoreUnavailableError, TransactionsLockedError
from txcoord.store.base import Applied, Change
from txcoord.store.migrations import migrate, version_of
from txcoord.store.sql.store import SqlStore, Work, check_schema

T = TypeVar("T")
DriverConnection = TypeVar("DriverConnection")

OWN_POOL_SIZE = 2
"""Connections for the node's own work: a lease is prolonged also while a take-over is under way."""

ROW_POOL_SIZE = 4
"""Connections for what changes a single row. None of it takes long, and no slow listing is in its way."""

TRIES = 8
"""How often a transaction is tried that loses to deadlocks and lock time-outs."""

ROW_TRIES = 4
PATIENT_ROW_TRIES = 10
"""The same for what changes a single row, which does not wait for its lock: about 0.02 s of pauses, and 1.3 s."""

_DISCONNECTED = (OSError, EOFError, asyncio.IncompleteReadError)
_BACKOFF_S = 0.005


class ServerStore(SqlStore, Generic[DriverConnection]):
    """A store on MySQL or PostgreSQL.

    Batches go over a driver connection of their own: at most one is under way, and it never waits for
    a connection that a query holds. All else goes through SQLAlchemy's pools: one for what clients ask, one
    for the node's own work, which clients cannot exhaust, and one on which each statement is a transaction, and which
    does not wait for locks, for what changes single rows.
    """

    driver_errors: ClassVar[tuple[type[Exception], ...]]
    """What the driver raises."""

    def __init__(self, *, url: URL, timeout_s: float, pool_size: int) -> None:
        plain = url.set(drivername=url.get_backend_name())
        super().__init__(label=plain.render_as_string(hide_password=True), timeout_s=timeout_s)
        self._url = url
        self._pool_size = pool_size
        self._engine: AsyncEngine | None = None
        self._own_engine: AsyncEngine | None = None
        self._row_engine: AsyncEngine | None = None
        self._journal: DriverConnection | None = None
        self._journal_lock = asyncio.Lock()

    # -- what differs ----------------------------------------------------------------

    @abstractmethod
    def _connect_args(self, *, waits: bool = True) -> dict[str, Any]:
        """What the pool's connections are opened with; `waits`: for locks, as long as there is time."""

    @abstractmethod
    async def _check_server(self, connection: AsyncConnection) -> None:
        """Raise SchemaError if the server is too old for our statements."""

    @abstractmethod
    async def _connect_journal(self) -> DriverConnection: ...

    @abstractmethod
    def _drop_journal(self, connection: DriverConnection) -> None:
        """Close it at once, without a word to the server."""

    @abstractmethod
    async def _apply(self, connection: DriverConnection, node_id: int, batch: Sequence[Change]) -> Sequence[Applied]:
        """Apply a batch in one transaction; whatever it raises, the transaction is over or the driver's error says why
        it is not."""

    @abstractmethod
    async def _locked(self, connection: DriverConnection, gids: Sequence[str]) -> Sequence[str]:
        """Those whose rows other transactions have locked just now, found without waiting."""

    @abstractmethod
    def _is_lock_time_out(self, error: BaseException) -> bool:
        """Whether the driver's error is a wait for a lock that was given up."""

    @abstractmethod
    def _is_lock_conflict(self, error: BaseException) -> bool:
        """Whether the driver's error is a deadlock or lock time-out: the same may well work the next time."""

    @abstractmethod
    def _is_unavailable(self, error: BaseException) -> bool:
        """Whether the driver's error is the server's state rather than a fault of ours."""

    # -- opening and closing ---------------------------------------------------------

    async def open(self) -> None:
        self._engine = self._make_engine(self._pool_size)
        self._own_engine = self._make_engine(OWN_POOL_SIZE)
        self._row_engine = self._make_engine(ROW_POOL_SIZE, of_rows=True)
        try:
            async with self._bounded(), self._connection(self._engine) as connection:
                await self._check_server(connection)
                await connection.run_sync(check_schema, label=self._label)
        except BaseException:
            await self.close()
            raise

    def _make_engine(self, pool_size: int, *, of_rows: bool = False) -> AsyncEngine:
        return create_async_engine(
            self._url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=self._timeout_s,
            pool_pre_ping=True,
            pool_recycle=1800,
            isolation_level="AUTOCOMMIT" if of_rows else "READ COMMITTED",
            connect_args=self._connect_args(waits=not of_rows),
        )

    async def upgrade(self) -> None:
        """Bring the schema to this program's version."""

        async def work(connection: AsyncConnection) -> None:
            await self._check_server(connection)
            await connection.run_sync(migrate)
            await connection.run_sync(check_schema, label=self._label)

        await self._maintain(work)

    async def version(self) -> str | None:
        """The version of the schema."""
        return await self._maintain(lambda connection: connection.run_sync(version_of))

    async def _maintain(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        engine = create_async_engine(self._url, poolclass=NullPool, connect_args=self._connect_args())
        try:
            async with self._bounded(), self._connection(engine) as connection, connection.begin():
                return await work(connection)
        finally:
            await engine.dispose()

    async def close(self) -> None:
        engines = (self._engine, self._own_engine, self._row_engine)
        self._engine = self._own_engine = self._row_engine = None
        journal, self._journal = self._journal, None
        if journal is not None:
            self._drop_journal(journal)
        for engine in engines:
            if engine is not None:
                # A server that hangs does not keep us from closing.
                with suppress(TimeoutError, *self.driver_errors):
                    async with asyncio.timeout(self._timeout_s):
                        await engine.dispose()

    # -- the journal -----------------------------------------------------------------

    async def apply(self, node_id: int, batch: Sequence[Change], *, patiently: bool = True) -> Sequence[Applied]:
        async with self._bounded(), self._journal_lock:
            return await self._again_after_conflicts(lambda: self._apply_on_journal(node_id, batch, patiently))

    async def _apply_on_journal(self, node_id: int, batch: Sequence[Change], patiently: bool) -> Sequence[Applied]:
        connection = self._journal
        if connection is not None:
            try:
                return await self._apply_or_drop(connection, node_id, batch, patiently)
            except BaseException as error:
                if not self._is_disconnect(error):
                    raise
        # The connection may have died while nobody used it. To apply the batch again is harmless, even
        # if it was lost between the commit and its answer.
        self._require_open(self._engine)
        self._journal = connection = await self._connect_journal()
        return await self._apply_or_drop(connection, node_id, batch, patiently)

    async def _apply_or_drop(
        self, connection: DriverConnection, node_id: int, batch: Sequence[Change], patiently: bool
    ) -> Sequence[Applied]:
        try:
            if not patiently:
                await self._refuse_locked(connection, batch)
            try:
                return await self._apply(connection, node_id, batch)
            except self.driver_errors as error:
                if self._is_lock_time_out(error):
                    await self._refuse_locked(connection, batch)
                raise
        except (LeaseLostError, TransactionsLockedError):
            raise
        except BaseException as error:
            # In the middle of a conversation nobody can go on with it; cancellation comes this way too.
            if not self._is_lock_conflict(error):
                self._journal = None
                self._drop_journal(connection)
            raise

    async def _refuse_locked(self, connection: DriverConnection, batch: Sequence[Change]) -> None:
        """Raise TransactionsLockedError if others hold rows of the batch: one of them must not hold up the rest."""
        locked = await self._locked(connection, [change.tx.gid for change in batch])
        if locked:
            raise TransactionsLockedError(locked)

    def _is_disconnect(self, error: BaseException) -> bool:
        if isinstance(error, TimeoutError):
            return False
        return isinstance(error, _DISCONNECTED) or (
            isinstance(error, self.driver_errors) and self._is_unavailable(error) and not self._is_lock_conflict(error)
        )

    # -- everything else -------------------------------------------------------------

    async def _read(self, work: Work[T], *, own: bool = False) -> T:
        async with self._bounded():
            return await self._transact(work, self._own_engine if own else self._engine)

    async def _write(self, work: Work[T], *, own: bool = False) -> T:
        async with self._bounded():
            engine = self._own_engine if own else self._engine
            return await self._again_after_conflicts(lambda: self._transact(work, engine))

    async def _change_one(self, gid: str, work: Work[T], *, patiently: bool) -> T:
        tries = PATIENT_ROW_TRIES if patiently else ROW_TRIES
        async with self._bounded():
            try:
                return await self._again_after_conflicts(lambda: self._transact(work, self._row_engine), tries=tries)
            except Exception as error:
                if self._is_lock_conflict(_original(error)):
                    raise TransactionsLockedError([gid]) from error
                raise

    async def _transact(self, work: Work[T], engine: AsyncEngine | None) -> T:
        async with self._connection(self._require_open(engine)) as connection, connection.begin():
            return await connection.run_sync(work)

    @asynccontextmanager
    async def _connection(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        async with engine.connect() as connection:
            try:
                yield connection
            except (LeaseLostError, SchemaError):
                raise
            except BaseException:
                # Cancelled or broken in the middle of a conversation: never to be handed out again.
                await connection.invalidate()
                raise

    def _require_open(self, engine: AsyncEngine | None) -> AsyncEngine:
        if engine is None:
            raise StoreUnavailableError(f"the store {self._label} is not open")
        return engine

    async def _again_after_conflicts(self, transaction: Callable[[], Awaitable[T]], *, tries: int = TRIES) -> T:
        for attempt in range(tries - 1):
            try:
                return await transaction()
            except Exception as error:
                if not self._is_lock_conflict(_original(error)):
                    raise
            await asyncio.sleep(_BACKOFF_S * 2**attempt * random.random())
        return await transaction()

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """Bound the time, and say in our words what the driver says in its own."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except (TimeoutError, PoolTimeoutError) as error:
            raise StoreUnavailableError(f"the store {self._label} did not answer in {self._timeout_s:g} s") from error
        except _DISCONNECTED as error:
            raise StoreUnavailableError(f"the store {self._label} cannot be reached: {error}") from error
        except Exception as error:
            if not isinstance(error, (SQLAlchemyError, *self.driver_errors)):
                raise
            original = _original(error)
            if isinstance(error, DBAPIError) and error.connection_invalidated:
                raise StoreUnavailableError(f"the store {self._label} cannot be reached: {original}") from error
            if isinstance(original, _DISCONNECTED) or self._is_unavailable(original):
                raise StoreUnavailableError(f"the store {self._label} cannot be used now: {original}") from error
            raise


def _original(error: BaseException) -> BaseException:
    """The driver's own error behind what SQLAlchemy made of it."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error
