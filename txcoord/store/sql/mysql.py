"""The store on MariaDB 10.6 or newer and MySQL 8.0.1 or newer, by aiomysql.

A batch is sent as one packet of several statements: the fence, one INSERT of many rows, one keyed UPDATE for
each save, COMMIT. When a statement fails, the server does not run those after it, so nothing is committed.
Measured in batches of 64 against one UPDATE that joins all saves (with UNION ALL or JSON_TABLE): the single ones are
a third faster, since the server makes temporary tables on disk for the join; and INSERT … ON DUPLICATE KEY UPDATE for
saves, as fast, locks gaps that other coordinators insert into. What single ones cost is 32 short answers to
read, which aiomysql does in 25 µs each; `JournalConnection` does it in one.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from typing import Any, ClassVar

import aiomysql
import pymysql
from pymysql.constants import CLIENT, COMMAND
from sqlalchemy import BigInteger, ColumnElement, literal_column
from sqlalchemy.ext.asyncio import AsyncConnection

from txcoord.errors import LeaseLostError, SchemaError
from txcoord.store import codec
from txcoord.store.base import Applied, Change, Create, Save
from txcoord.store.sql.rows import is_done, owner_after
from txcoord.store.sql.server import ServerStore

OLDEST_MARIADB = (10, 6, 0)
OLDEST_MYSQL = (8, 0, 1)

_CLOCK_US = "CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)"
"""SYSDATE is the moment it is evaluated at, NOW that of the statement's start, which may have waited for a lock. The
session's zone is UTC, so no hour comes twice."""

# A node whose lease has ended makes this overflow: the error keeps the server from running the rest of
# the packet. The row's shared lock keeps `release_dead` waiting until the COMMIT.
_FENCE = (
    b"SELECT 9223372036854775807 + (COUNT(*) = 0) INTO @txcoord_fence FROM node WHERE id = %d AND expires_us > "
    + _CLOCK_US.encode()
    + b" LOCK IN SHARE MODE"
)

# Relies on: the unique key on gid; a row that is there already is left as it is and does not count as affected.
_INSERT = (
    b"INSERT INTO global_transaction (gid, pattern, status, owner, epoch, token, created_us, updated_us, due_us,"
    b" deadline_us, finished_us, definition, progress, rollback_reason, result) VALUES "
)
_INSERT_ROW = b"(%b,'%b','%b',%b,1,%d,%d,%d,%b,%b,%b,%b,%b,%b,%b)"
_UNLESS_THERE = b" ON DUPLICATE KEY UPDATE gid = global_transaction.gid"

# Relies on: the unique key on gid; counts as affected if anything is different.
_UPDATE = (
    b"UPDATE global_transaction SET status='%b',owner=%b,updated_us=%d,due_us=%b,finished_us=%b,progress=%b,"
    b"rollback_reason=%b,result=%b%b WHERE gid=%b AND epoch=%d AND updated_us<=%d"
)
_WITH_DEFINITION = b",definition=%b"

# Relies on: the unique key on gid.
_LOOK = b"SELECT gid, token, epoch FROM global_transaction WHERE gid IN (%b)"

# READ UNCOMMITTED, for the one transaction after it, shows what is just being created as well.
_ALSO_UNCOMMITTED = b"SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED"
_THERE = b"SELECT gid FROM global_transaction WHERE gid IN (%b)"
_UNLOCKED = _THERE + b" FOR UPDATE SKIP LOCKED"

_COMMIT = b"COMMIT"
_ROLLBACK = b"ROLLBACK"

_OUT_OF_RANGE = 1690
_LOCK_TIME_OUTS = (1205, 3572)
_LOCK_CONFLICTS = (*_LOCK_TIME_OUTS, 1213)

_JOURNAL_LOCK_WAIT = "innodb_lock_wait_timeout = 1"
"""How long a batch waits for a locked row: longer than another's commit takes, and the least that MySQL knows."""
_NO_LOCK_WAIT = "innodb_lock_wait_timeout = 1 /*M! , innodb_lock_wait_timeout = 0 */"
"""MariaDB does without any, in all of its statements."""
_FAULTS = (
    pymysql.err.ProgrammingError,
    pymysql.err.DataError,
    pymysql.err.IntegrityError,
    pymysql.err.NotSupportedError,
)
"""What is wrong with a statement of ours. All other errors say how the server or the connection is."""

_TOO_LARGE = (1118, 1153)
"""More than a row or a packet may have: a fault of the statement, though the driver takes it for the server's state."""

_LARGEST_PACKET = 8 * 1024 * 1024
"""A batch that is larger goes in several packets, still in one transaction; also a server that takes more is not
kept from other work for long."""
_PACKET_ROOM = 512
"""What a packet holds besides the text of a change: the rest of an INSERT, a semicolon, the command."""


class MysqlStore(ServerStore["JournalConnection"]):
    """See `txcoord.store.base.Store`."""

    driver_errors: ClassVar = (pymysql.err.MySQLError,)

    def _clock_us(self) -> ColumnElement[int]:
        return literal_column(_CLOCK_US, BigInteger)

    def _session(self, *, lock_wait: str | None = None) -> str:
        if lock_wait is None:
            lock_wait = f"innodb_lock_wait_timeout = {max(1, round(self._timeout_s / 2))}"
        timeout_s = max(1, round(self._timeout_s))
        return (
            "SET SESSION time_zone = '+00:00',"
            " collation_connection = 'utf8mb4_bin',"
            " sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO',"
            # Shorter than our own patience, so that the server says what is in the way.
            f" {lock_wait},"
            # A process that hangs in the middle of a transaction must not hold its locks for long. (Connections that
            # nobody uses end by the first too, and are replaced when they are needed. Only MariaDB has the second.)
            f" wait_timeout = {3 * timeout_s + 30} /*M! , idle_transaction_timeout = {timeout_s} */"
        )

    def _connect_args(self, *, waits: bool = True) -> dict[str, Any]:
        return {
            "charset": "utf8mb4",
            "connect_timeout": self._timeout_s,
            "init_command": self._session(lock_wait=None if waits else _NO_LOCK_WAIT),
            "ssl": self._tls(),
        }

    def _tls(self) -> ssl.SSLContext | None:
        mode = self._url.query.get("ssl", "disable")
        if mode == "disable":
            return None
        context = ssl.create_default_context()
        if mode == "require":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    async def _check_server(self, connection: AsyncConnection) -> None:
        text = str((await connection.exec_driver_sql("SELECT VERSION()")).scalar_one())
        is_mariadb = "mariadb" in text.lower()
        version = tuple(int(part) for part in re.findall(r"\d+", text)[:3])
        name, oldest = ("MariaDB", OLDEST_MARIADB) if is_mariadb else ("MySQL", OLDEST_MYSQL)
        if version < oldest:
            needed = ".".join(map(str, oldest))
            raise SchemaError(f"the store {self._label} is {name} {text}: {needed} or newer is needed")

    async def _connect_journal(self) -> JournalConnection:
        connection = JournalConnection(
            host=self._url.host or "localhost",
            port=self._url.port or 3306,
            user=self._url.username,
            password=self._url.password or "",
            db=self._url.database,
            charset="utf8mb4",
            connect_timeout=self._timeout_s,
            client_flag=CLIENT.MULTI_STATEMENTS,
            init_command=self._session(lock_wait=_JOURNAL_LOCK_WAIT),
            ssl=self._tls(),
            autocommit=False,
        )
        try:
            await connection.open()
        except BaseException:
            connection.close()
            raise
        return connection

    def _drop_journal(self, connection: JournalConnection) -> None:
        connection.close()

    async def _apply(self, connection: JournalConnection, node_id: int, batch: Sequence[Change]) -> Sequence[Applied]:
        saves = [change for change in batch if isinstance(change, Save)]
        saves.sort(key=_gid)
        creates = [
            connection.checked(_insert_row(change, node_id), change) for change in batch if isinstance(change, Create)
        ]
        updates = [connection.checked(_update(change, node_id), change) for change in saves]
        inserts = [_INSERT + b",".join(rows) + _UNLESS_THERE for rows in connection.in_packets(creates)]
        try:
            affected = await connection.run([_FENCE % node_id, *inserts, *updates, _COMMIT])
        except pymysql.err.MySQLError as error:
            if connection.is_open:
                await connection.run([_ROLLBACK])
            if error.args and error.args[0] == _OUT_OF_RANGE:
                raise LeaseLostError(f"the lease of node {node_id} has ended") from None
            raise
        if sum(affected[1:-1]) == len(batch):
            return [Applied.DONE] * len(batch)
        gids = b",".join(_text(change.tx.gid) for change in batch)
        found = {row[0]: row for row in await connection.select(_LOOK % gids)}
        return [is_done(change, found.get(change.tx.gid)) for change in batch]

    async def _locked(self, connection: JournalConnection, gids: Sequence[str]) -> Sequence[str]:
        names = b",".join(map(_text, gids))
        await connection.run([_ALSO_UNCOMMITTED])
        there = {row[0] for row in await connection.select(_THERE % names)}
        unlocked = {row[0] for row in await connection.select(_UNLOCKED % names)}
        return [gid for gid in gids if gid in there and gid not in unlocked]

    def _is_lock_time_out(self, error: BaseException) -> bool:
        return _number_of(error) in _LOCK_TIME_OUTS

    def _is_lock_conflict(self, error: BaseException) -> bool:
        return _number_of(error) in _LOCK_CONFLICTS

    def _is_unavailable(self, error: BaseException) -> bool:
        if not isinstance(error, pymysql.err.MySQLError) or isinstance(error, _FAULTS):
            return False
        return _number_of(error) not in _TOO_LARGE


class JournalConnection(aiomysql.Connection):  # type: ignore[misc]  # aiomysql has no types
    """A connection that reads the answers to a packet of statements in one go."""

    largest_change = _LARGEST_PACKET
    """Bytes of text that one statement may have on this server."""

    async def open(self) -> None:
        await self._connect()
        # The server cuts the connection in the middle of a larger packet, and nobody hears why.
        [[largest]] = await self.select(b"SELECT @@max_allowed_packet")
        self.largest_change = largest - _PACKET_ROOM
        # Not with the session's other settings: the variable's name is different on MySQL and MariaDB.
        await self.query("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def checked(self, statement: bytes, change: Change) -> bytes:
        """Return the statement.

        Raises:
            ValueError: it is larger than the server takes.
        """
        if len(statement) <= self.largest_change:
            return statement
        raise ValueError(
            f"{change.tx.gid} has {len(statement)} bytes, more than the database server takes at once "
            f"(max_allowed_packet is {self.largest_change + _PACKET_ROOM}): make it smaller, or raise that"
        )

    def in_packets(self, pieces: Sequence[bytes]) -> Sequence[Sequence[bytes]]:
        """Group pieces so that each group fits into a packet."""
        largest = min(_LARGEST_PACKET, self.largest_change)
        if sum(map(len, pieces)) + len(pieces) <= largest:
            return [pieces] if pieces else []
        groups: list[list[bytes]] = [[]]
        size = 0
        for piece in pieces:
            if groups[-1] and size + len(piece) > largest:
                groups.append([])
                size = 0
            groups[-1].append(piece)
            size += len(piece) + 1
        return groups

    @property
    def is_open(self) -> bool:
        return self._writer is not None

    async def run(self, statements: Sequence[bytes]) -> list[int]:
        """Run statements that return no rows; return how many rows each affected.

        Raises:
            pymysql.err.MySQLError: a statement failed; those after it did not run.
        """
        affected: list[int] = []
        for packet in self.in_packets(statements):
            await self._execute_command(COMMAND.COM_QUERY, b";".join(packet))
            affected += await self._read_affected()
        return affected

    async def select(self, statement: bytes) -> Sequence[tuple[Any, ...]]:
        """Run one statement that returns rows, outside a transaction."""
        await self.query(statement)
        rows = self._result.rows
        await self.run([_COMMIT])
        return rows or ()

    async def _read_affected(self) -> list[int]:
        affected: list[int] = []
        unread = b""
        while True:
            chunk = await self._reader.read(1 << 16)
            if not chunk:
                self.close()
                raise pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query")
            unread += chunk
            start = 0
            while len(unread) >= start + 4:
                end = start + 4 + int.from_bytes(unread[start : start + 3], "little")
                if len(unread) < end:
                    break
                count, has_more = _read_ok(unread[start + 4 : end])
                affected.append(count)
                if not has_more:
                    assert end == len(unread), "the server sent more than was asked for"
                    return affected
                start = end
            unread = unread[start:]


_MORE_RESULTS = 0x0008


def _read_ok(payload: bytes) -> tuple[int, bool]:
    """Read an OK packet: rows affected, and whether the answer to another statement follows."""
    if payload[0] != 0:
        pymysql.err.raise_mysql_exception(payload)
    affected, position = _read_length(payload, 1)
    _, position = _read_length(payload, position)
    return affected, bool(payload[position] & _MORE_RESULTS)


def _read_length(payload: bytes, position: int) -> tuple[int, int]:
    first = payload[position]
    if first < 0xFB:
        return first, position + 1
    size = {0xFC: 2, 0xFD: 3, 0xFE: 8}[first]
    return int.from_bytes(payload[position + 1 : position + 1 + size], "little"), position + 1 + size


def _insert_row(change: Create, node_id: int) -> bytes:
    tx = change.tx
    return _INSERT_ROW % (
        _text(tx.gid),
        tx.pattern.encode(),
        tx.status.encode(),
        _number(owner_after(change, node_id)),
        change.token,
        tx.created_us,
        tx.updated_us,
        _number(tx.due_us),
        _number(tx.deadline_us),
        _number(tx.finished_us),
        _quoted(codec.encode_definition(tx)),
        _quoted(codec.encode_progress(tx.branches)),
        _text(codec.clean_text(tx.rollback_reason)),
        _text(codec.clean_text(tx.result)),
    )


def _update(change: Save, node_id: int) -> bytes:
    tx = change.tx
    return _UPDATE % (
        tx.status.encode(),
        _number(owner_after(change, node_id)),
        tx.updated_us,
        _number(tx.due_us),
        _number(tx.finished_us),
        _quoted(codec.encode_progress(tx.branches)),
        _text(codec.clean_text(tx.rollback_reason)),
        _text(codec.clean_text(tx.result)),
        _WITH_DEFINITION % _quoted(codec.encode_definition(tx)) if change.with_definition else b"",
        _text(tx.gid),
        change.epoch,
        tx.updated_us,
    )


def _number_of(error: BaseException) -> int | None:
    return error.args[0] if isinstance(error, pymysql.err.MySQLError) and error.args else None


def _gid(change: Change) -> str:
    return change.tx.gid


def _quoted(text: bytes) -> bytes:
    # Enough in UTF-8 with this session's sql_mode, where a backslash escapes: no other byte ends the literal.
    return b"'" + text.replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"


def _text(text: str) -> bytes:
    return _quoted(text.encode()) if text else b"''"


def _number(value: int | None) -> bytes:
    return b"NULL" if value is None else b"%d" % value
