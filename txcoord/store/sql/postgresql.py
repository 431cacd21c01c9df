"""The store on PostgreSQL 12 or newer, by asyncpg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import asyncpg
from sqlalchemy import BigInteger, ColumnElement, literal_column
from sqlalchemy.ext.asyncio import AsyncConnection

from txcoord.errors import LeaseLostError, SchemaError
from txcoord.store.base import Applied, Change, Create, Save
from txcoord.store.sql.rows import CREATE_WIDTH, SAVE_WIDTH, create_row, is_done, new_definition, save_row
from txcoord.store.sql.server import ServerStore

OLDEST = 120000

_CLOCK_US = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

# One statement is one transaction, one round trip, one flush of the log; its text does not depend on the
# batch, so that it is prepared once. The fence comes first, because both writes take their rows from it: a
# node whose lease has ended finds none, and FOR KEY SHARE keeps `release_dead`, but not `renew`, waiting until this
# has committed.
# Rows are updated in the order of the arrays, which is that of the gids. A definition that is not written stays
# where it is: a large one is kept outside the row, and the new row only points to it again.
_APPLY = f"""
WITH fence AS MATERIALIZED (
    SELECT id FROM node WHERE id = $1::bigint AND expires_us > {_CLOCK_US} FOR KEY SHARE
), created AS (
    INSERT INTO global_transaction (gid, pattern, status, owner, epoch, token, created_us, updated_us, due_us,
                                    deadline_us, finished_us, definition, progress, rollback_reason, result)
    SELECT v.gid, v.pattern, v.status, v.owner, 1, v.token, v.created_us, v.updated_us, v.due_us,
           v.deadline_us, v.finished_us, v.definition, v.progress, v.rollback_reason, v.result
    FROM fence, unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
                       $9::bigint[], $10::bigint[], $11::bigint[], $12::text[], $13::text[], $14::text[], $15::text[])
         AS v (gid, pattern, status, owner, token, created_us, updated_us, due_us, deadline_us, finished_us,
               definition, progress, rollback_reason, result)
    ON CONFLICT (gid) DO NOTHING
    RETURNING 1
), saved AS (
    UPDATE global_transaction AS t
    SET status = v.status, owner = v.owner, updated_us = v.updated_us, due_us = v.due_us,
        finished_us = v.finished_us, progress = v.progress, rollback_reason = v.rollback_reason, result = v.result,
        definition = coalesce(v.definition, t.definition)
    FROM fence, unnest($16::text[], $17::int[], $18::text[], $19::bigint[], $20::bigint[], $21::bigint[],
                       $22::bigint[], $23::text[], $24::text[], $25::text[], $26::text[])
         AS v (gid, epoch, status, owner, updated_us, due_us, finished_us, progress, rollback_reason, result,
               definition)
    WHERE t.gid = v.gid AND t.epoch = v.epoch AND t.updated_us <= v.updated_us
    RETURNING 1
)
SELECT (SELECT count(*) FROM fence), (SELECT count(*) FROM created) + (SELECT count(*) FROM saved)
"""  # noqa: S608  (the clock is a constant)

# Relies on: the unique key on gid.
_LOOK = "SELECT gid, token, epoch FROM global_transaction WHERE gid = ANY($1::text[])"

# What the writing statement would wait for.
_THERE = "SELECT gid FROM global_transaction WHERE gid = ANY($1::text[])"
_UNLOCKED = f"{_THERE} FOR NO KEY UPDATE SKIP LOCKED"

# A plan that was made while the table was empty, or without statistics, must not be kept: it would read the whole
# table once that is large. Every row that a batch touches is found by its key, so nothing else is allowed.
# The plan is then made once.
_JOURNAL_SETTINGS = (
    "plan_cache_mode = force_generic_plan",
    "enable_seqscan = off",
    "enable_bitmapscan = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "jit = off",
)

_LARGEST_BATCH = 128 * 1024 * 1024
"""Characters, of at most four bytes each: half of what a message may have. The server cuts the connection at a larger
one, and nobody hears why."""

_UNAVAILABLE = ("08", "25006", "28", "3D", "40", "53", "55P03", "57", "58")
"""SQLSTATEs (or their class) that say how the server is, not what is wrong with a statement: connection, read-only,
log-in, no such database, rollback, resources, lock, intervention and shutdown, system."""

_LOCK_TIME_OUT = "55P03"
_LOCK_CONFLICTS = ("40P01", "40001", _LOCK_TIME_OUT)

_JOURNAL_LOCK_WAIT_MS = 500
"""How long a batch waits for locked rows: longer than another's commit takes, and not so long that it is felt."""


_ROW_LOCK_WAIT_MS = 10
"""An UPDATE cannot be told not to wait at all."""


class PostgresStore(ServerStore["asyncpg.Connection[Any]"]):
    """See `txcoord.store.base.Store`."""

    driver_errors: ClassVar = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

    def _clock_us(self) -> ColumnElement[int]:
        return literal_column(_CLOCK_US, BigInteger)

    def _connect_args(self, *, waits: bool = True) -> dict[str, Any]:
        session = self._session(lock_wait_ms=None if waits else _ROW_LOCK_WAIT_MS)
        return {"timeout": self._timeout_s, "server_settings": session}

    def _session(self, *, lock_wait_ms: int | None = None) -> dict[str, str]:
        wait_ms = round(self._timeout_s * 1000)
        return {
            "application_name": "txcoord",
            "timezone": "UTC",
            # Shorter than our own patience, so that the server says who is in the way.
            "lock_timeout": str(lock_wait_ms or wait_ms // 2),
            # A process that hangs in the middle of a transaction must not hold its locks for long.
            "idle_in_transaction_session_timeout": str(wait_ms),
        }

    async def _check_server(self, connection: AsyncConnection) -> None:
        number = int((await connection.exec_driver_sql("SHOW server_version_num")).scalar_one())
        if number < OLDEST:
            raise SchemaError(f"the store {self._label} is PostgreSQL {number // 10000}: 12 or newer is needed")

    async def _connect_journal(self) -> asyncpg.Connection[Any]:
        connection = await asyncpg.connect(
            host=self._url.host,
            port=self._url.port or 5432,
            user=self._url.username,
            password=self._url.password,
            database=self._url.database,
            timeout=self._timeout_s,
            server_settings=self._session(lock_wait_ms=min(_JOURNAL_LOCK_WAIT_MS, round(self._timeout_s * 500))),
            **self._url.query,
        )
        try:
            await connection.execute(";".join(f"SET {setting}" for setting in _JOURNAL_SETTINGS))
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _drop_journal(self, connection: asyncpg.Connection[Any]) -> None:
        connection.terminate()

    async def _apply(
        self, connection: asyncpg.Connection[Any], node_id: int, batch: Sequence[Change]
    ) -> Sequence[Applied]:
        creates = [create_row(change, node_id) for change in batch if isinstance(change, Create)]
        saves = [change for change in batch if isinstance(change, Save)]
        saves.sort(key=_gid)
        saved = [save_row(change, node_id) for change in saves]
        # unnest fills up the shorter array: 64 times NULL sent cost 3 % of a batch, an empty array costs nothing.
        definitions = (
            [new_definition(change) for change in saves] if any(change.with_definition for change in saves) else []
        )
        _check_size(batch, creates, saved, definitions)
        fenced, done = await connection.fetchrow(
            _APPLY,
            node_id,
            *_columns(creates, CREATE_WIDTH),
            *_columns(saved, SAVE_WIDTH),
            definitions,
        )
        if not fenced:
            raise LeaseLostError(f"the lease of node {node_id} has ended")
        if done == len(batch):
            return [Applied.DONE] * done
        found = {row[0]: row for row in await connection.fetch(_LOOK, [change.tx.gid for change in batch])}
        return [is_done(change, found.get(change.tx.gid)) for change in batch]

    async def _locked(self, connection: asyncpg.Connection[Any], gids: Sequence[str]) -> Sequence[str]:
        there = {row[0] for row in await connection.fetch(_THERE, gids)}
        unlocked = {row[0] for row in await connection.fetch(_UNLOCKED, gids)}
        return [gid for gid in gids if gid in there and gid not in unlocked]

    def _is_lock_time_out(self, error: BaseException) -> bool:
        return _sqlstate(error) == _LOCK_TIME_OUT

    def _is_lock_conflict(self, error: BaseException) -> bool:
        return _sqlstate(error) in _LOCK_CONFLICTS

    def _is_unavailable(self, error: BaseException) -> bool:
        state = _sqlstate(error)
        if state is not None:
            return state.startswith(_UNAVAILABLE)
        # A ValueError among them is an argument of ours that does not fit its type.
        return isinstance(error, asyncpg.InterfaceError) and not isinstance(error, ValueError)


def _gid(change: Change) -> str:
    return change.tx.gid


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> Sequence[Sequence[Any]]:
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _check_size(
    batch: Sequence[Change],
    creates: Sequence[tuple[Any, ...]],
    saves: Sequence[tuple[Any, ...]],
    definitions: Sequence[str | None],
) -> None:
    size = sum(map(len, filter(None, definitions)))
    # The texts that are not bounded come last in both.
    for *_, definition, progress, reason, result in creates:
        size += len(definition) + len(progress) + len(reason) + len(result)
    for *_, progress, reason, result in saves:
        size += len(progress) + len(reason) + len(result)
    if size <= _LARGEST_BATCH:
        return
    who = batch[0].tx.gid if len(batch) == 1 else f"a batch of {len(batch)} changes"
    raise ValueError(
        f"{who} has {size} characters, more than is written to PostgreSQL at once ({_LARGEST_BATCH}): make it smaller"
    )


def _sqlstate(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None
