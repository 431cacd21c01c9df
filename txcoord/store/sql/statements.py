"""The statements that all SQL stores share, in SQLAlchemy Core: everything but the journal's batches.

Each function runs inside a transaction of its caller, at READ COMMITTED (SQLite: alone); those that change a single
row may also run with each statement on its own. Every statement that writes compares what it relies on in its own
WHERE. Rows of others are locked with SKIP LOCKED, so that several coordinators share the work and do not wait for each
other. The node's lease comes last, when nothing is left to wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Connection,
    Insert,
    Select,
    Update,
    any_,
    case,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from txcoord.errors import LeaseLostError, SchemaError
from txcoord.logs import get_logger
from txcoord.model import AT_ONCE, GlobalTransaction, Pattern, Status
from txcoord.store import codec
from txcoord.store.base import UNREADABLE_US, KeyValue, KvQuery, ListQuery, Owned, Page, Stored
from txcoord.store.sql.rows import FENCED, PARKED
from txcoord.store.sql.tables import global_transaction as gt
from txcoord.store.sql.tables import kv, node

log = get_logger()

T = TypeVar("T")

_PATTERNS = {str(pattern): pattern for pattern in Pattern}
_STATUSES = {str(status): status for status in Status}


# -- rows ----------------------------------------------------------------------------

_COLUMNS = (
    gt.c.id,
    gt.c.owner,
    gt.c.epoch,
    gt.c.gid,
    gt.c.pattern,
    gt.c.status,
    gt.c.created_us,
    gt.c.updated_us,
    gt.c.due_us,
    gt.c.deadline_us,
    gt.c.finished_us,
    gt.c.rollback_reason,
    gt.c.result,
    gt.c.definition,
    gt.c.progress,
)


_UNREADABLE = (msgspec.MsgspecError, ValueError, LookupError, TypeError, RecursionError)
"""What is raised for a row with a word or a document that we do not know."""


def stored_from(row: Sequence[Any]) -> Stored:
    """Read one row of `_COLUMNS`.

    Raises:
        SchemaError: it was changed by hand, or written by a newer version.
    """
    try:
        return _stored_from(row)
    except _UNREADABLE as error:
        raise SchemaError(
            f"the stored transaction {row[3]} cannot be read ({str(error)[:200]}): "
            "its row was changed by hand or written by a newer version of txcoord; mend the row, or start that version"
        ) from error


def _readable(rows: Sequence[Sequence[Any]]) -> tuple[Sequence[Stored], Sequence[int]]:
    """Those that can be read, and the ids of the others, which are logged."""
    found, unreadable = [], []
    for row in rows:
        try:
            found.append(stored_from(row))
        except SchemaError as error:
            log.error("transaction cannot be read", gid=row[3], error=str(error))
            unreadable.append(row[0])
    return found, unreadable


def _stored_from(row: Sequence[Any]) -> Stored:
    (
        row_id,
        owner,
        epoch,
        gid,
        pattern,
        status,
        created,
        updated,
        due,
        deadline,
        finished,
        reason,
        result,
        *documents,
    ) = row
    definition, branches = codec.decode(*documents)
    return Stored(
        id=row_id,
        owner=owner,
        epoch=epoch,
        tx=GlobalTransaction(
            gid=gid,
            pattern=_PATTERNS[pattern],
            status=_STATUSES[status],
            branches=branches,
            options=definition.options,
            protocol=definition.protocol,
            query_prepared=definition.query_prepared,
            custom_data=definition.custom_data,
            created_us=created,
            updated_us=updated,
            deadline_us=deadline,
            due_us=due,
            finished_us=finished,
            rollback_reason=reason,
            result=result,
        ),
    )


def ping(connection: Connection) -> None:
    connection.execute(select(1))


# -- nodes and leases ----------------------------------------------------------------


def join(connection: Connection, clock_us: ColumnElement[int], *, name: str, lease_us: int) -> int:
    """Relies on: auto-increment ids, which are not given out again after a row is deleted."""
    result = connection.execute(insert(node).values(name=name, expires_us=clock_us + lease_us))
    key = result.inserted_primary_key
    assert key is not None, "an insert of one row tells its key"
    return int(key[0])


def renew(connection: Connection, clock_us: ColumnElement[int], *, node_id: int, lease_us: int) -> bool:
    """Relies on: the row count. A lease that has ended, or was fenced (0), is not greater than now.

    Locked first: PostgreSQL compares before it waits for a lock, and not again if nothing was changed meanwhile.
    """
    connection.execute(select(node.c.id).where(node.c.id == node_id).with_for_update(key_share=True))
    statement = (
        update(node).where(node.c.id == node_id, node.c.expires_us > clock_us).values(expires_us=clock_us + lease_us)
    )
    return connection.execute(statement).rowcount == 1


def check_lease(connection: Connection, clock_us: ColumnElement[int], *, node_id: int) -> None:
    """Hold the node's lease until the transaction ends: whoever wants to fence it waits for this row's lock.

    To renew it has to wait too on MySQL, so nothing that may take long comes after this. On PostgreSQL it has not
    (KEY SHARE), as those that share a lock there let others join them, though somebody waits.
    """
    statement = select(node.c.id).where(node.c.id == node_id, node.c.expires_us > clock_us)
    if connection.execute(statement.with_for_update(read=True, key_share=True)).first() is None:
        raise LeaseLostError(f"the lease of node {node_id} has ended")


def fence(connection: Connection, *, node_id: int) -> None:
    """Waits for a batch of this node that is under way. Relies on: the row lock of `check_lease`."""
    # An UPDATE alone would not wait for a KEY SHARE of PostgreSQL.
    connection.execute(select(node.c.id).where(node.c.id == node_id).with_for_update())
    connection.execute(update(node).where(node.c.id == node_id).values(expires_us=FENCED))


def fence_dead(connection: Connection, clock_us: ColumnElement[int]) -> Sequence[int]:
    """Fence all nodes whose lease has ended; return the ids of all fenced ones. The table has few rows.

    A node whose batch is under way, which locks its row, is left for the next call: a process that hangs in the
    middle of a transaction must not keep the others from being released.
    """
    late = select(node.c.id).where(node.c.expires_us <= clock_us, node.c.expires_us != FENCED)
    for node_id in _lock(connection, late):
        connection.execute(update(node).where(node.c.id == node_id).values(expires_us=FENCED))
    return connection.scalars(select(node.c.id).where(node.c.expires_us == FENCED).order_by(node.c.id)).all()


def park_all_of(connection: Connection, *, node_id: int, now_us: int, limit: int) -> int:
    """Park what a fenced node owns. Relies on: index (owner, due_us)."""
    ids = _lock(connection, select(gt.c.id).where(gt.c.owner == node_id).limit(limit))
    return _park(connection, ids, due_us=_due_again(now_us))


def owners_without_node(connection: Connection) -> Sequence[int]:
    """Who owns transactions and has no row. Relies on: index (owner, due_us), all that is owned in it.

    A node has its row before it owns anything, and until it owns nothing; without one it cannot write.
    """
    orphans = select(gt.c.owner).distinct().where(gt.c.owner > PARKED, gt.c.owner.not_in(select(node.c.id)))
    return connection.scalars(orphans).all()


def forget_node(connection: Connection, *, node_id: int) -> None:
    """Delete a fenced node's row, once it owns nothing; a row that somebody is parking just now still counts."""
    owns_some = select(gt.c.id).where(gt.c.owner == node_id).exists()
    connection.execute(delete(node).where(node.c.id == node_id, node.c.expires_us == FENCED, ~owns_some))


# -- recovery ------------------------------------------------------------------------


def take_over_due(
    connection: Connection, clock_us: ColumnElement[int], *, node_id: int, now_us: int, limit: int, first: int
) -> tuple[Sequence[Owned], int]:
    """Relies on: index (owner, due_us), read in its order; SKIP LOCKED, so that each row goes to one node.

    What cannot be read comes first each time: it is put off, or nothing behind it would ever be taken.

    Args:
        first: rows in the first portion; as many as may be expected to fit.

    Returns:
        What was taken, and how many of that kind may be read at once.
    """
    due = select(*_COLUMNS).where(gt.c.owner == PARKED, gt.c.due_us <= now_us).order_by(gt.c.due_us)
    due = due.with_for_update(skip_locked=True)
    rows: list[Sequence[Any]] = []
    taken: list[Owned] = []
    for portion in _portions(limit, rows, _size, first=first):
        some = connection.execute(due.limit(portion)).all()
        found, unreadable = _readable(some)
        # At once, so that the next portion begins behind these.
        if found:
            mine = update(gt).where(among(connection, gt.c.id, [stored.id for stored in found]))
            connection.execute(mine.values(owner=node_id, epoch=gt.c.epoch + 1))
        _park(connection, unreadable, due_us=now_us + UNREADABLE_US)
        taken += [Owned(tx=stored.tx, epoch=stored.epoch + 1) for stored in found]
        rows += some
    check_lease(connection, clock_us, node_id=node_id)
    return taken, ENOUGH_BYTES * len(rows) // max(sum(map(_size, rows)), 1) if rows else first


ENOUGH_BYTES = 16 * 1024 * 1024
"""Having read so much, nothing more is read in one transaction: it would last too long, and memory is bounded."""

FIRST_PORTION = 4
_GROWTH = 8
_LARGEST_PORTION = 128


def _portions(
    limit: int, rows: Sequence[Sequence[Any]], size_of: Callable[[Sequence[Any]], int], *, first: int = FIRST_PORTION
) -> Iterator[int]:
    """How many rows to read next, until `limit` are read, or `ENOUGH_BYTES`, or there are no more.

    What a row holds is only known when it has been read: MariaDB and SQLite read all of a text to tell its length. So
    the first portion is small, and each is as large as it may be if the rows go on like those before.
    """
    size = counted = 0
    portion = min(max(first, FIRST_PORTION), limit, _LARGEST_PORTION)
    while portion > 0:
        yield portion
        if len(rows) < counted + portion:
            return
        size += sum(map(size_of, rows[counted:]))
        counted = len(rows)
        fits = (ENOUGH_BYTES - size) * counted // max(size, 1)
        portion = min(limit - counted, _GROWTH * counted, _LARGEST_PORTION, fits)


def _size(row: Sequence[Any]) -> int:
    # The texts without a bound of their own: reason, result, definition, progress.
    return sum(map(len, row[-4:]))


def claim_prepared(connection: Connection, clock_us: ColumnElement[int], *, node_id: int, gid: str) -> Owned | None:
    """Relies on: the unique key on gid; what `_still_as` compares."""
    has_lease = select(node.c.id).where(node.c.id == node_id, node.c.expires_us > clock_us)
    while True:
        stored = find(connection, gid=gid)
        if stored is not None and stored.tx.status is Status.PREPARED:
            # The lease is held by the statement that relies on it, and so against whoever fences the node.
            mine = _still_as(stored).where(has_lease.with_for_update(read=True, key_share=True).exists())
            if connection.execute(mine.values(owner=node_id, epoch=gt.c.epoch + 1)).rowcount == 1:
                return Owned(tx=stored.tx, epoch=stored.epoch + 1)
        if connection.execute(has_lease).first() is None:
            raise LeaseLostError(f"the lease of node {node_id} has ended")
        if stored is None or stored.tx.status is not Status.PREPARED:
            return None


def _still_as(stored: Stored) -> Update:
    """An update of a transaction as it was found; of none if anything has been written to it since.

    So it need not be locked from reading it to writing it. Each statement may be a transaction of its own, and a
    process that hangs between the two holds nothing.
    """
    tx = stored.tx
    same_owner = gt.c.owner.is_(None) if stored.owner is None else gt.c.owner == stored.owner
    same_save = (gt.c.epoch == stored.epoch) & (gt.c.updated_us == tx.updated_us) & (gt.c.status == tx.status.value)
    return update(gt).where(gt.c.id == stored.id, same_owner, same_save)


def next_due_us(connection: Connection) -> int | None:
    """Relies on: index (owner, due_us); its first entry is the answer."""
    due: int | None = connection.scalar(select(func.min(gt.c.due_us)).where(gt.c.owner == PARKED))
    return due


def owned(connection: Connection, *, node_id: int) -> Sequence[tuple[str, int]]:
    rows = connection.execute(select(gt.c.gid, gt.c.epoch).where(gt.c.owner == node_id))
    return [(gid, epoch) for gid, epoch in rows]


def release(connection: Connection, *, node_id: int, gids: Sequence[str], now_us: int) -> int:
    """What is locked just now is left for another time: a gate is closed while this runs."""
    total = 0
    for start in range(0, len(gids), CHUNK):
        mine = select(gt.c.id).where(among(connection, gt.c.gid, gids[start : start + CHUNK]), gt.c.owner == node_id)
        ids = _lock(connection, mine.order_by(gt.c.id))
        total += _park(connection, ids, due_us=_due_again(now_us))
    return total


CHUNK = 500
"""Rows that one statement names, and that one transaction parks."""


def _due_again(now_us: int) -> ColumnElement[int]:
    """An operator's wish outlives the node that took it over and wrote nothing since."""
    return case((gt.c.due_us == AT_ONCE, AT_ONCE), else_=now_us)


def _park(connection: Connection, ids: Sequence[int], *, due_us: int | ColumnElement[int]) -> int:
    if ids:
        # The rows are locked by this transaction, so nothing has to be compared again.
        parked = (
            update(gt).where(among(connection, gt.c.id, ids)).values(owner=PARKED, due_us=due_us, epoch=gt.c.epoch + 1)
        )
        connection.execute(parked)
    return len(ids)


def _lock(connection: Connection, statement: Select[Any]) -> Sequence[int]:
    return connection.scalars(statement.with_for_update(skip_locked=True)).all()


# -- queries and operators -----------------------------------------------------------


def find(connection: Connection, *, gid: str) -> Stored | None:
    """Relies on: the unique key on gid."""
    if not _can_be_stored(gid):
        return None
    row = connection.execute(select(*_COLUMNS).where(gt.c.gid == gid)).first()
    # MySQL compares as if the shorter text were filled up with spaces.
    return stored_from(row) if row is not None and row[3] == gid else None


def listed_ids(connection: Connection, query: ListQuery) -> Sequence[int]:
    """Relies on: the primary key, read backwards; for an unfinished status on index (owner, due_us).

    Of a million finished rows none is looked at to find the few unfinished: the sum in ORDER BY keeps the planner from
    reading the primary key backwards for those.
    """
    ids = select(gt.c.id).limit(query.limit)
    if query.before_id is not None:
        ids = ids.where(gt.c.id < query.before_id)
    if query.pattern is not None:
        ids = ids.where(gt.c.pattern == query.pattern)
    if query.created_from_us is not None:
        ids = ids.where(gt.c.created_us >= query.created_from_us)
    if query.created_to_us is not None:
        ids = ids.where(gt.c.created_us <= query.created_to_us)
    if query.status is not None:
        ids = ids.where(gt.c.status == query.status)
    if query.status is None or query.status.is_final:
        ids = ids.order_by(gt.c.id.desc())
    else:
        ids = ids.where(gt.c.owner.is_not(None)).order_by((gt.c.id + 0).desc())
        ids = ids.with_hint(gt, f"FORCE INDEX ({OWNER_DUE_INDEX})", "mysql")
    return connection.scalars(ids).all()


class Listed(Struct, frozen=True):
    """The first of some transactions, as a listing shows them."""

    found: Sequence[Stored]
    looked_at: int
    """How many they are of those asked for, with those that are not there any more, or cannot be read."""
    unreadable: int
    size: int
    """Bytes of text that are left without the payloads."""


def read_listed(connection: Connection, *, ids: Sequence[int]) -> Listed:
    """Read as many as may be read at once. Relies on: the primary key."""
    rows: list[Sequence[Any]] = []
    looked_at = 0
    for portion in _portions(len(ids), rows, _size):
        some = among(connection, gt.c.id, ids[looked_at : looked_at + portion])
        rows += connection.execute(select(*_COLUMNS).where(some).order_by(gt.c.id.desc())).all()
        looked_at += portion
    readable, unreadable = _readable(rows)
    payloads = sum(len(branch.payload) for stored in readable for branch in stored.tx.branches)
    return Listed(
        [stored.without_payloads() for stored in readable],
        looked_at,
        len(unreadable),
        max(sum(map(_size, rows)) - payloads, 0),
    )


OWNER_DUE_INDEX = "ix_global_transaction_owner_due"


def count_by_status(connection: Connection) -> dict[Status, int]:
    """Relies on: index (owner, due_us), which alone says what is unfinished."""
    counts = select(gt.c.status, func.count()).where(gt.c.owner.is_not(None)).group_by(gt.c.status)
    counts = counts.with_hint(gt, f"FORCE INDEX ({OWNER_DUE_INDEX})", "mysql")
    # A word that we do not know is a row's that cannot be read.
    return {_STATUSES[status]: count for status, count in connection.execute(counts) if status in _STATUSES}


def force_stop(connection: Connection, *, gid: str, now_us: int, reason: str) -> Stored | None:
    """Relies on: the unique key on gid; what `_still_as` compares."""
    while True:
        before = find(connection, gid=gid)
        if before is None or before.owner is None:
            return before
        stopped = _still_as(before).values(
            status=Status.FAILED.value,
            owner=None,
            epoch=gt.c.epoch + 1,
            updated_us=now_us,
            due_us=None,
            finished_us=now_us,
            rollback_reason=codec.clean_text(reason),
        )
        if connection.execute(stopped).rowcount == 1:
            return before


def make_due(connection: Connection, *, gid: str, now_us: int) -> Stored | None:
    """Relies on: as `force_stop`."""
    while True:
        before = find(connection, gid=gid)
        if before is None or before.owner:
            return before
        # The epoch of a parked one goes up, so that a batch applied a second time does not put the old time back.
        due_us, raised = (now_us, 0) if before.owner is None else (AT_ONCE, 1)
        due = _still_as(before).values(due_us=due_us, updated_us=now_us, epoch=gt.c.epoch + raised)
        if connection.execute(due).rowcount == 1:
            return before


def make_far_due(connection: Connection, *, after_us: int, now_us: int, limit: int) -> int:
    """Relies on: index (owner, due_us)."""
    far = select(gt.c.id).where(gt.c.owner == PARKED, gt.c.due_us > after_us).order_by(gt.c.due_us).limit(limit)
    ids = _lock(connection, far)
    for start in range(0, len(ids), CHUNK):
        due = update(gt).where(among(connection, gt.c.id, ids[start : start + CHUNK]))
        connection.execute(due.values(due_us=AT_ONCE, updated_us=now_us, epoch=gt.c.epoch + 1))
    return len(ids)


# -- documents that all coordinators share -------------------------------------------


def find_kv(connection: Connection, *, category: str, keys: Sequence[str]) -> Sequence[KeyValue]:
    """Relies on: the unique key on (cat, k)."""
    wanted = {key for key in keys if _can_be_stored(key)}
    if not wanted or not _can_be_stored(category):
        return ()
    rows = connection.execute(select(*_KV_COLUMNS).where(kv.c.cat == category, among(connection, kv.c.k, [*wanted])))
    # MySQL compares as if the shorter text were filled up with spaces.
    return [found for found in map(_key_value, rows) if found.key in wanted and found.category == category]


def list_kv(connection: Connection, query: KvQuery) -> Page[KeyValue]:
    """Relies on: the primary key, read backwards."""
    page = select(*_KV_COLUMNS).order_by(kv.c.id.desc())
    if query.category is not None:
        if not _can_be_stored(query.category):
            return Page(items=(), has_more=False)
        page = page.where(kv.c.cat == query.category)
    rows: list[Sequence[Any]] = []
    asked = 0
    for portion in _portions(query.limit, rows, _value_size):
        before_id = rows[-1][0] if rows else query.before_id
        behind = page if before_id is None else page.where(kv.c.id < before_id)
        rows += connection.execute(behind.limit(portion)).all()
        asked += portion
    return Page(items=[_key_value(row) for row in rows], has_more=len(rows) == asked)


def _value_size(row: Sequence[Any]) -> int:
    return len(row[3])


def make_kv(connection: Connection, *, category: str, key: str, value: str, now_us: int) -> KeyValue | None:
    """Relies on: the unique key on (cat, k), which lets one of several through and costs the others no error."""
    values = {"cat": category, "k": key, "v": value, "version": 1, "created_us": now_us, "updated_us": now_us}
    if connection.dialect.name == "postgresql":
        statement: Insert = postgresql.insert(kv).values(values).on_conflict_do_nothing()
    else:
        # MySQL's IGNORE would also cut off what is too long: whoever calls has checked the lengths.
        statement = insert(kv).values(values).prefix_with("IGNORE", dialect="mysql")
        statement = statement.prefix_with("OR IGNORE", dialect="sqlite")
    if connection.execute(statement).rowcount != 1:
        return None
    [made] = find_kv(connection, category=category, keys=[key])
    return made


def replace_kv(connection: Connection, before: KeyValue, *, value: str, now_us: int) -> KeyValue | None:
    """Relies on: the primary key; the row count."""
    after = replace(before, value=value, version=before.version + 1, updated_us=now_us)
    same = update(kv).where(kv.c.id == before.id, kv.c.version == before.version)
    changed = connection.execute(same.values(v=value, version=after.version, updated_us=now_us))
    return after if changed.rowcount == 1 else None


def delete_kv(connection: Connection, *, category: str, key: str) -> bool:
    """Relies on: the unique key on (cat, k), then the primary key."""
    found = find_kv(connection, category=category, keys=[key])
    return bool(found) and connection.execute(delete(kv).where(kv.c.id == found[0].id)).rowcount == 1


_KV_COLUMNS = (kv.c.id, kv.c.cat, kv.c.k, kv.c.v, kv.c.version, kv.c.created_us, kv.c.updated_us)


def _key_value(row: Sequence[Any]) -> KeyValue:
    row_id, category, key, value, version, created, updated = row
    return KeyValue(
        id=row_id,
        category=category,
        key=key,
        value=value,
        version=version,
        created_us=created,
        updated_us=updated,
    )


def among(connection: Connection, column: Column[T], values: Sequence[T]) -> ColumnElement[bool]:
    """Whether the column is one of these: on PostgreSQL as one array, so that the statement's text, and with it
    its preparation, does not depend on how many there are."""
    if connection.dialect.name == "postgresql":
        return column == any_(literal(list(values), ARRAY(column.type)))
    return column.in_(values)


def _can_be_stored(gid: str) -> bool:
    return codec.clean_text(gid) == gid
