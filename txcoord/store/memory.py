"""A store in the process's memory: for tests, and for trying things out. Nothing survives a restart.

It keeps every promise of the contract but durability, and can be told to fail, so that
the engine's tests can lose a database before or after a batch took effect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from txcoord.errors import LeaseLostError, StoreUnavailableError
from txcoord.model import AT_ONCE, MICROSECONDS, BranchOp, GlobalTransaction, Status
from txcoord.store.base import Applied, Change, Create, KeyValue, KvQuery, ListQuery, Owned, Page, Save, Stored
from txcoord.store.codec import clean_text

PARKED = 0

T = TypeVar("T")


def wall_clock_us() -> int:
    """This machine's time in microseconds since 1970 UTC."""
    return time.time_ns() // 1000


class FailWhen(Enum):
    """Where a failure strikes: before anything was done, or when only the answer was still missing."""

    BEFORE = "before"
    AFTER = "after"


class _Row(Struct, frozen=True):
    id: int
    tx: GlobalTransaction
    owner: int | None
    epoch: int
    token: int

    def stored(self) -> Stored:
        return Stored(id=self.id, tx=self.tx, owner=self.owner, epoch=self.epoch)


class MemoryStore:
    """See `txcoord.store.base.Store`. `now_us` is the clock that leases are measured by."""

    def __init__(self, *, now_us: Callable[[], int] = wall_clock_us) -> None:
        self._now_us = now_us
        self._rows: dict[str, _Row] = {}
        self._last_row_id = 0
        self._leases: dict[int, int] = {}
        """Node id → end of its lease; a node that was fenced is gone from here."""
        self._last_node_id = 0
        self._documents: dict[tuple[str, str], KeyValue] = {}
        self._last_document_id = 0
        self._failures: list[tuple[str | None, FailWhen]] = []
        self.is_down = False
        """While set, every call raises `StoreUnavailableError` and does nothing."""

    def fail_next(self, count: int = 1, *, when: FailWhen = FailWhen.BEFORE, method: str | None = None) -> None:
        """Let the next `count` calls (of `method`, such as "apply", if given) raise `StoreUnavailableError`."""
        self._failures.extend([(method, when)] * count)

    # -- the contract ----------------------------------------------------------------

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def ping(self) -> None:
        self._run("ping", lambda: None)

    async def join(self, *, name: str, lease_s: float) -> int:
        def work() -> int:
            self._last_node_id += 1
            self._leases[self._last_node_id] = self._lease_end(lease_s)
            return self._last_node_id

        return self._run("join", work)

    async def renew(self, node_id: int, *, lease_s: float) -> bool:
        def work() -> bool:
            if not self._holds_lease(node_id):
                return False
            self._leases[node_id] = self._lease_end(lease_s)
            return True

        return self._run("renew", work)

    async def leave(self, node_id: int, *, now_us: int) -> None:
        def work() -> None:
            self._leases.pop(node_id, None)
            for row in self._owned_by(node_id):
                self._park(row, now_us)

        self._run("leave", work)

    async def release_dead(self, *, now_us: int, limit: int) -> int:
        def work() -> int:
            clock = self._now_us()
            self._leases = {node: end for node, end in self._leases.items() if end > clock}
            orphans = [row for row in self._rows.values() if row.owner and row.owner not in self._leases]
            for row in orphans[:limit]:
                self._park(row, now_us)
            return min(len(orphans), limit)

        return self._run("release_dead", work)

    async def apply(self, node_id: int, batch: Sequence[Change], *, patiently: bool = True) -> Sequence[Applied]:
        def work() -> Sequence[Applied]:
            self._check_lease(node_id)
            return [self._apply_one(node_id, change) for change in batch]

        return self._run("apply", work)

    async def take_over_due(self, node_id: int, *, now_us: int, limit: int) -> Sequence[Owned]:
        def work() -> Sequence[Owned]:
            self._check_lease(node_id)
            taken = []
            for row in self._parked()[:limit]:
                if _due(row) > now_us:
                    break
                self._rows[row.tx.gid] = replace(row, owner=node_id, epoch=row.epoch + 1)
                taken.append(Owned(tx=row.tx, epoch=row.epoch + 1))
            return taken

        return self._run("take_over_due", work)

    async def claim_prepared(self, node_id: int, gid: str) -> Owned | None:
        def work() -> Owned | None:
            self._check_lease(node_id)
            row = self._rows.get(gid)
            if row is None or row.tx.status is not Status.PREPARED:
                return None
            self._rows[gid] = replace(row, owner=node_id, epoch=row.epoch + 1)
            return Owned(tx=row.tx, epoch=row.epoch + 1)

        return self._run("claim_prepared", work)

    async def next_due_us(self) -> int | None:
        return self._run("next_due_us", lambda: min(map(_due, self._parked()), default=None))

    async def owned(self, node_id: int) -> Sequence[tuple[str, int]]:
        return self._run("owned", lambda: [(row.tx.gid, row.epoch) for row in self._owned_by(node_id)])

    async def release(self, node_id: int, gids: Sequence[str], *, now_us: int) -> int:
        def work() -> int:
            rows = [row for gid in set(gids) if (row := self._rows.get(gid)) and row.owner == node_id]
            for row in rows:
                self._park(row, now_us)
            return len(rows)

        return self._run("release", work)

    async def find(self, gid: str) -> Stored | None:
        return self._run("find", lambda: row.stored() if (row := self._rows.get(gid)) else None)

    async def list_transactions(self, query: ListQuery) -> Page[Stored]:
        def work() -> Page[Stored]:
            rows = [row for row in reversed(self._rows.values()) if _matches(row, query)][: query.limit]
            found = [row.stored().without_payloads() for row in rows]
            return Page(items=found, has_more=len(found) == query.limit)

        return self._run("list_transactions", work)

    async def count_by_status(self) -> dict[Status, int]:
        def work() -> dict[Status, int]:
            counts: dict[Status, int] = {}
            for row in self._rows.values():
                if row.owner is not None:
                    counts[row.tx.status] = counts.get(row.tx.status, 0) + 1
            return counts

        return self._run("count_by_status", work)

    async def force_stop(self, gid: str, *, now_us: int, reason: str) -> Stored | None:
        def work() -> Stored | None:
            row = self._rows.get(gid)
            if row is None:
                return None
            if row.owner is not None:
                stopped = row.tx.replace(
                    status=Status.FAILED,
                    rollback_reason=clean_text(reason),
                    due_us=None,
                    updated_us=now_us,
                    finished_us=now_us,
                )
                self._rows[gid] = replace(row, tx=stopped, owner=None, epoch=row.epoch + 1)
            return row.stored()

        return self._run("force_stop", work)

    async def make_due(self, gid: str, *, now_us: int) -> Stored | None:
        def work() -> Stored | None:
            row = self._rows.get(gid)
            if row is None:
                return None
            if row.owner is None:
                self._rows[gid] = replace(row, tx=row.tx.replace(due_us=now_us, updated_us=now_us))
            elif row.owner == PARKED:
                self._make_due(row, now_us)
            return row.stored()

        return self._run("make_due", work)

    async def make_far_due(self, *, after_us: int, now_us: int, limit: int) -> int:
        def work() -> int:
            far = [row for row in self._parked() if _due(row) > after_us][:limit]
            for row in far:
                self._make_due(row, now_us)
            return len(far)

        return self._run("make_far_due", work)

    async def find_kv(self, category: str, keys: Sequence[str]) -> Sequence[KeyValue]:
        def work() -> Sequence[KeyValue]:
            return [found for key in set(keys) if (found := self._documents.get((category, key)))]

        return self._run("find_kv", work)

    async def list_kv(self, query: KvQuery) -> Page[KeyValue]:
        def work() -> Page[KeyValue]:
            found = [document for document in self._documents.values() if _is_listed(document, query)]
            found = sorted(found, key=lambda document: -document.id)[: query.limit]
            return Page(items=found, has_more=len(found) == query.limit)

        return self._run("list_kv", work)

    async def put_kv(
        self, category: str, key: str, value: str, *, replaces: KeyValue | None, now_us: int
    ) -> KeyValue | None:
        def work() -> KeyValue | None:
            before = self._documents.get((category, key))
            if before != replaces:
                return None
            if before is None:
                self._last_document_id += 1
                before = KeyValue(
                    id=self._last_document_id,
                    category=category,
                    key=key,
                    value="",
                    version=0,
                    created_us=now_us,
                    updated_us=now_us,
                )
            document = replace(before, value=value, version=before.version + 1, updated_us=now_us)
            self._documents[category, key] = document
            return document

        return self._run("put_kv", work)

    async def delete_kv(self, category: str, key: str) -> bool:
        return self._run("delete_kv", lambda: self._documents.pop((category, key), None) is not None)

    # -- inside ----------------------------------------------------------------------

    def _run(self, method: str, work: Callable[[], T]) -> T:
        when = self._take_failure(method)
        if self.is_down or when is FailWhen.BEFORE:
            raise StoreUnavailableError("the memory store was told to be away")
        result = work()
        if when is FailWhen.AFTER:
            raise StoreUnavailableError("the memory store was told to lose its answer")
        return result

    def _take_failure(self, method: str) -> FailWhen | None:
        for index, (only, when) in enumerate(self._failures):
            if only is None or only == method:
                del self._failures[index]
                return when
        return None

    def _apply_one(self, node_id: int, change: Change) -> Applied:
        row = self._rows.get(change.tx.gid)
        if isinstance(change, Create):
            if row is not None:
                return Applied.DONE if row.token == change.token else Applied.EXISTS
            self._last_row_id += 1
            owner = _owner_after(change.tx, parked=change.parked, node_id=node_id)
            self._rows[change.tx.gid] = _Row(self._last_row_id, change.tx, owner, 1, change.token)
            return Applied.DONE
        if row is None or row.epoch != change.epoch:
            return Applied.LEASE_LOST
        if row.tx.updated_us > change.tx.updated_us:
            return Applied.DONE
        owner = _owner_after(change.tx, parked=change.park, node_id=node_id)
        self._rows[change.tx.gid] = replace(row, tx=_changed(row.tx, change), owner=owner)
        return Applied.DONE

    def _lease_end(self, lease_s: float) -> int:
        return self._now_us() + round(lease_s * MICROSECONDS)

    def _holds_lease(self, node_id: int) -> bool:
        return self._leases.get(node_id, 0) > self._now_us()

    def _check_lease(self, node_id: int) -> None:
        if not self._holds_lease(node_id):
            raise LeaseLostError(f"the lease of node {node_id} has ended")

    def _owned_by(self, node_id: int) -> list[_Row]:
        return [row for row in self._rows.values() if row.owner == node_id]

    def _parked(self) -> list[_Row]:
        return sorted((row for row in self._rows.values() if row.owner == PARKED), key=lambda row: (_due(row), row.id))

    def _park(self, row: _Row, due_us: int) -> None:
        # An operator's wish outlives the node that took it over and wrote nothing since.
        tx = row.tx if row.tx.due_us == AT_ONCE else row.tx.replace(due_us=due_us)
        self._rows[tx.gid] = replace(row, tx=tx, owner=PARKED, epoch=row.epoch + 1)

    def _make_due(self, row: _Row, now_us: int) -> None:
        # The epoch goes up, so that a batch applied a second time does not put the old time back.
        tx = row.tx.replace(due_us=AT_ONCE, updated_us=now_us)
        self._rows[tx.gid] = replace(row, tx=tx, epoch=row.epoch + 1)


def _owner_after(tx: GlobalTransaction, *, parked: bool, node_id: int) -> int | None:
    if tx.status.is_final:
        return None
    if not parked:
        return node_id
    assert tx.due_us is not None, "a parked transaction is due at some time"
    return PARKED


def _changed(old: GlobalTransaction, change: Save) -> GlobalTransaction:
    new = change.tx
    if change.with_definition:
        old = old.replace(
            branches=new.branches,
            options=new.options,
            protocol=new.protocol,
            query_prepared=new.query_prepared,
            custom_data=new.custom_data,
        )
    return old.replace(
        status=new.status,
        branches=tuple(_branch_changed(was, now) for was, now in zip(old.branches, new.branches, strict=True)),
        due_us=new.due_us,
        updated_us=new.updated_us,
        finished_us=new.finished_us,
        rollback_reason=clean_text(new.rollback_reason),
        result=clean_text(new.result),
    )


def _branch_changed(old: BranchOp, new: BranchOp) -> BranchOp:
    return old.replace(
        status=new.status,
        reached=new.reached,
        failures=new.failures,
        refusals=new.refusals,
        in_vain=new.in_vain,
        held_off=new.held_off,
        due_us=new.due_us,
        finished_us=new.finished_us,
        attempts=new.attempts,
    )


def _due(row: _Row) -> int:
    assert row.tx.due_us is not None
    return row.tx.due_us


def _matches(row: _Row, query: ListQuery) -> bool:
    return (
        (query.before_id is None or row.id < query.before_id)
        and (query.status is None or row.tx.status is query.status)
        and (query.pattern is None or row.tx.pattern is query.pattern)
        and (query.created_from_us is None or row.tx.created_us >= query.created_from_us)
        and (query.created_to_us is None or row.tx.created_us <= query.created_to_us)
    )


def _is_listed(document: KeyValue, query: KvQuery) -> bool:
    return (query.before_id is None or document.id < query.before_id) and (
        query.category is None or document.category == query.category
    )
