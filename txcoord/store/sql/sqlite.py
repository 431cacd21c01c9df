"""The store in a SQLite file: one process, one writer thread, one reader thread."""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import msgspec
from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, StaticPool, create_engine, event, literal, update
from sqlalchemy.exc import DBAPIError

from txcoord.errors import LeaseLostError, SchemaError, StoreUnavailableError
from txcoord.store.base import Applied, Change, Create, Save
from txcoord.store.memory import wall_clock_us
from txcoord.store.migrations import migrate, version_of
from txcoord.store.sql.rows import CREATE_WIDTH, FENCED, create_row, is_done, new_definition, save_row
from txcoord.store.sql.store import SqlStore, Work, check_schema
from txcoord.store.sql.tables import node

T = TypeVar("T")

OLDEST = (3, 33, 0)
"""It has UPDATE … FROM."""

# Between any two steps of SQLite, Python's interpreter lock is given up, and it takes up to 5 ms to get it back from
# a busy event loop. A trigger makes fence, inserts and updates of a batch one statement, and so one step with its
# transaction and flush: 6 ms instead of 20 to 190 with a busy loop. It belongs to the connection, not to the file.
# Definitions come apart, since few saves have one: a column for it would make all saves a tenth slower.
_BATCH_VIEW = (
    "CREATE TEMP VIEW batch AS SELECT 0 AS node_id, 0 AS now_us, '' AS creates, '' AS saves, '' AS definitions"
)


def _at(*places: int) -> str:
    """The elements of a row; `->>` says it shorter, from SQLite 3.38 on, at the same price."""
    return ", ".join(f"json_extract(value, '$[{place}]')" for place in places)


_BATCH_TRIGGER = f"""
CREATE TEMP TRIGGER batch_insert INSTEAD OF INSERT ON batch BEGIN
    SELECT raise(ABORT, 'lease lost')
    WHERE NOT EXISTS (SELECT 1 FROM main.node WHERE id = new.node_id AND expires_us > new.now_us);

    INSERT OR IGNORE INTO global_transaction (gid, pattern, status, owner, epoch, token, created_us, updated_us, due_us,
                                              deadline_us, finished_us, definition, progress, rollback_reason, result)
    SELECT {_at(0, 1, 2, 3)}, 1, {_at(*range(4, CREATE_WIDTH))}
    FROM json_each(new.creates);

    UPDATE global_transaction
    SET status = {_at(2)}, owner = {_at(3)}, updated_us = {_at(4)}, due_us = {_at(5)},
        finished_us = {_at(6)}, progress = {_at(7)}, rollback_reason = {_at(8)}, result = {_at(9)}
    FROM json_each(new.saves)
    WHERE gid = {_at(0)} AND epoch = {_at(1)} AND updated_us <= {_at(4)};

    UPDATE global_transaction SET definition = {_at(3)}
    FROM json_each(new.definitions)
    WHERE gid = {_at(0)} AND epoch = {_at(1)} AND updated_us <= {_at(2)};
END
"""  # noqa: S608  (the places are constants)
_APPLY = "INSERT INTO batch (node_id, now_us, creates, saves, definitions) VALUES (?, ?, ?, ?, ?)"
_LEASE_LOST = "lease lost"

# Relies on: the unique key on gid.
_LOOK = "SELECT gid, token, epoch FROM global_transaction WHERE gid IN (SELECT value FROM json_each(?))"

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    # A commit is on disk before it is answered.
    "PRAGMA synchronous = FULL",
    "PRAGMA cache_size = -65536",
    "PRAGMA temp_store = MEMORY",
    # 16 MiB of log before it is moved into the file: each page is then written once for many commits.
    "PRAGMA wal_autocheckpoint = 4000",
    "PRAGMA journal_size_limit = 67108864",
)

_encode = msgspec.json.Encoder().encode


class SqliteStore(SqlStore):
    """See `txcoord.store.base.Store`. Leases are measured by `now_us`, this machine's clock unless told otherwise."""

    def __init__(self, *, path: str, timeout_s: float, now_us: Callable[[], int] = wall_clock_us) -> None:
        super().__init__(label=f"sqlite:///{path}", timeout_s=timeout_s)
        self._path = Path(path).absolute()
        self._now_us = now_us
        self._lock: IO[bytes] | None = None
        self._writer: _Worker | None = None
        self._reader: _Worker | None = None

    def _clock_us(self) -> ColumnElement[int]:
        return literal(self._now_us(), BigInteger)

    async def open(self) -> None:
        self._check_library()
        try:
            self._lock = lock_file(self._path)
            self._writer = _Worker(self._path, name="writer", begin="BEGIN IMMEDIATE")
            await self._bounded(self._writer, self._prepare)
            self._reader = _Worker(self._path, name="reader", begin="BEGIN")
            await self.ping()
        except BaseException:
            await self.close()
            raise

    def _check_library(self) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            needed = ".".join(map(str, OLDEST[:2]))
            raise SchemaError(
                f"the store {self._label} cannot be used: this Python has SQLite {sqlite3.sqlite_version}, "
                f"{needed} or newer is needed"
            )

    def _prepare(self, connection: Connection) -> None:
        migrate(connection)
        check_schema(connection, label=self._label)
        # Nobody else has this file open, so every node that is still in it is dead, whatever its lease says.
        connection.execute(update(node).values(expires_us=FENCED))
        _driver(connection).execute(_BATCH_VIEW)
        _driver(connection).execute(_BATCH_TRIGGER)

    def upgrade(self) -> None:
        """Bring the schema of the file to this program's version, as `open` does."""
        self._check_library()
        with lock_file(self._path), _engine(self._path, "BEGIN IMMEDIATE").begin() as connection:
            migrate(connection)
            check_schema(connection, label=self._label)

    def version(self) -> str | None:
        """The version of the schema; None too if there is no such file."""
        if not self._path.exists():
            return None
        with _engine(self._path, "BEGIN").begin() as connection:
            return version_of(connection)

    async def close(self) -> None:
        reader, self._reader = self._reader, None
        writer, self._writer = self._writer, None
        lock, self._lock = self._lock, None
        for worker in (reader, writer):
            if worker is not None:
                await worker.close()
        if lock is not None:
            lock.close()

    async def apply(self, node_id: int, batch: Sequence[Change], *, patiently: bool = True) -> Sequence[Applied]:
        # Nothing is ever locked here: there is one writer.
        creates = [create_row(change, node_id) for change in batch if isinstance(change, Create)]
        saves = [change for change in batch if isinstance(change, Save)]
        saved = [save_row(change, node_id) for change in saves]
        definitions = [
            (change.tx.gid, change.epoch, change.tx.updated_us, new_definition(change))
            for change in saves
            if change.with_definition
        ]
        arguments = (node_id, self._now_us(), *(_encode(rows).decode() for rows in (creates, saved, definitions)))
        writes = len(batch) + len(definitions)
        return await self._bounded(self._writer, lambda c: _apply(_driver(c), arguments, batch, writes), begin=False)

    async def _read(self, work: Work[T], *, own: bool = False) -> T:
        # A listing may keep the reader for long; the writer has short work only.
        return await self._bounded(self._writer if own else self._reader, work)

    async def _write(self, work: Work[T], *, own: bool = False) -> T:
        return await self._bounded(self._writer, work)

    async def _change_one(self, gid: str, work: Work[T], *, patiently: bool) -> T:
        return await self._bounded(self._writer, work)

    async def _bounded(self, worker: _Worker | None, work: Work[T], *, begin: bool = True) -> T:
        if worker is None:
            raise StoreUnavailableError(f"the store {self._label} is not open")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await worker.run(work, begin=begin)
        except TimeoutError as error:
            raise StoreUnavailableError(f"the store {self._label} did not answer in {self._timeout_s:g} s") from error
        except (DBAPIError, sqlite3.Error, OSError) as error:
            original = error.orig if isinstance(error, DBAPIError) else error
            if "file is not a database" in str(original):
                raise SchemaError(f"{self._path} is not a SQLite database: name another file for the store") from error
            # The last is what a damaged file gives.
            if isinstance(original, (sqlite3.OperationalError, OSError)) or type(original) is sqlite3.DatabaseError:
                raise StoreUnavailableError(f"the store {self._label} cannot be used now: {original}") from error
            raise


class _Worker:
    """A thread with a connection that only it uses."""

    def __init__(self, path: Path, *, name: str, begin: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"txcoord-sqlite-{name}")
        self._engine = _engine(path, begin)
        self._connection: Connection | None = None

    async def run(self, work: Work[T], *, begin: bool) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._run, work, begin)

    def _run(self, work: Work[T], begin: bool) -> T:
        if self._connection is None:
            self._connection = self._engine.connect()
        if not begin:
            return work(self._connection)
        with self._connection.begin():
            return work(self._connection)

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._close)
        self._executor.shutdown(wait=False)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()


def _engine(path: Path, begin: str) -> Engine:
    def connect() -> sqlite3.Connection:
        # Transactions are begun by SQLAlchemy, through `begin_transaction`, and not by the driver.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def lock_file(path: Path) -> IO[bytes]:
    """Hold `<path>.lock` for as long as the returned file is open: a SQLite store belongs to one process.

    Raises:
        StoreUnavailableError: another process has it, or there is no place for the file.
    """
    name = f"{path}.lock"
    try:
        lock = open(name, "ab")  # noqa: SIM115  (it stays open as long as the store)
    except OSError as error:
        raise StoreUnavailableError(
            f"the store file {path} cannot be opened: {error.strerror}: "
            "see that its folder exists, and that this user may write there"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StoreUnavailableError(
            f"another process has the store file {path} open (it holds {name}): stop it, "
            "or keep the store on a database server, which several may share"
        ) from error
    return lock


def _apply(
    driver: sqlite3.Connection, arguments: tuple[Any, ...], batch: Sequence[Change], writes: int
) -> Sequence[Applied]:
    """`writes`: how many rows are written if every change takes effect."""
    before = driver.total_changes
    try:
        driver.execute(_APPLY, arguments)
    except sqlite3.IntegrityError as error:
        if str(error) == _LEASE_LOST:
            raise LeaseLostError(f"the lease of node {arguments[0]} has ended") from None
        raise
    if driver.total_changes - before == writes:
        return [Applied.DONE] * len(batch)
    gids = _encode([change.tx.gid for change in batch]).decode()
    found = {row[0]: row for row in driver.execute(_LOOK, (gids,))}
    return [is_done(change, found.get(change.tx.gid)) for change in batch]


def _driver(connection: Connection) -> sqlite3.Connection:
    return cast(sqlite3.Connection, connection.connection.dbapi_connection)
