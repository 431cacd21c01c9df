"""What all SQL stores do alike: each method of the contract is one piece of work in one database transaction."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection

from txcoord.errors import SchemaError
from txcoord.model import MICROSECONDS, Status
from txcoord.store.base import ORPHANS_S, Applied, Change, KeyValue, KvQuery, ListQuery, Owned, Page, Stored
from txcoord.store.migrations import HEAD, runs_on, version_of
from txcoord.store.sql import statements

T = TypeVar("T")
Work = Callable[[Connection], T]


_MOST_SKIPPED = 1000
"""Rows in a row that cannot be read, before a listing gives up."""


class SqlStore(ABC):
    """The cold part of a store; `apply`, connections and errors are what each database does in its own way."""

    def __init__(self, *, label: str, timeout_s: float) -> None:
        self._label = label
        """How messages name this store: its URL without the password."""
        self._timeout_s = timeout_s
        self._next_orphans_s = -math.inf
        self._first_portion = statements.FIRST_PORTION
        """How many of those that were taken over last may be read at once."""

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def apply(self, node_id: int, batch: Sequence[Change], *, patiently: bool = True) -> Sequence[Applied]: ...

    @abstractmethod
    async def _read(self, work: Work[T], *, own: bool = False) -> T:
        """Do it in one transaction that writes nothing; raise StoreUnavailableError within the time-out.

        The node's `own` work does not wait for what clients ask for: with enough slow listings at once the
        lease would end.
        """

    @abstractmethod
    async def _write(self, work: Work[T], *, own: bool = False) -> T:
        """Do it in one transaction and commit; after a deadlock or lock time-out again, a few times."""

    @abstractmethod
    async def _change_one(self, gid: str, work: Work[T], *, patiently: bool) -> T:
        """Do it with each statement on its own, so that no row is locked for longer than one takes.

        Raises:
            TransactionsLockedError: somebody else's transaction holds the row; at once unless `patiently`.
        """

    @abstractmethod
    def _clock_us(self) -> ColumnElement[int]:
        """The clock that leases are measured by."""

    async def ping(self) -> None:
        await self._read(statements.ping)

    async def join(self, *, name: str, lease_s: float) -> int:
        clock, lease = self._clock_us(), _lease_us(lease_s)
        return await self._write(lambda c: statements.join(c, clock, name=name, lease_us=lease), own=True)

    async def renew(self, node_id: int, *, lease_s: float) -> bool:
        clock, lease = self._clock_us(), _lease_us(lease_s)
        return await self._write(lambda c: statements.renew(c, clock, node_id=node_id, lease_us=lease), own=True)

    async def leave(self, node_id: int, *, now_us: int) -> None:
        # Committed first: no batch of this node takes effect after its transactions were parked.
        await self._write(lambda c: statements.fence(c, node_id=node_id), own=True)
        await self._park_all_of(node_id, now_us=now_us, limit=None)

    async def release_dead(self, *, now_us: int, limit: int) -> int:
        clock = self._clock_us()
        dead = list(await self._write(lambda c: statements.fence_dead(c, clock), own=True))
        looks_for_orphans = time.monotonic() >= self._next_orphans_s
        if looks_for_orphans:
            dead += await self._read(statements.owners_without_node, own=True)
        parked = 0
        for node_id in dead:
            if parked < limit:
                parked += await self._park_all_of(node_id, now_us=now_us, limit=limit - parked)
        if looks_for_orphans and parked < limit:
            self._next_orphans_s = time.monotonic() + ORPHANS_S
        return parked

    async def take_over_due(self, node_id: int, *, now_us: int, limit: int) -> Sequence[Owned]:
        # A backlog is mostly of one kind. Few again if this fails: they may have been too large.
        first, self._first_portion = self._first_portion, statements.FIRST_PORTION
        take = partial(statements.take_over_due, clock_us=self._clock_us(), node_id=node_id, now_us=now_us)
        taken, self._first_portion = await self._write(partial(take, limit=limit, first=first), own=True)
        return taken

    async def claim_prepared(self, node_id: int, gid: str) -> Owned | None:
        clock = self._clock_us()
        claim = partial(statements.claim_prepared, clock_us=clock, node_id=node_id, gid=gid)
        return await self._change_one(gid, claim, patiently=False)

    async def next_due_us(self) -> int | None:
        return await self._read(statements.next_due_us, own=True)

    async def owned(self, node_id: int) -> Sequence[tuple[str, int]]:
        return await self._read(lambda c: statements.owned(c, node_id=node_id), own=True)

    async def release(self, node_id: int, gids: Sequence[str], *, now_us: int) -> int:
        return await self._write(lambda c: statements.release(c, node_id=node_id, gids=gids, now_us=now_us), own=True)

    async def find(self, gid: str) -> Stored | None:
        return await self._read(lambda c: statements.find(c, gid=gid))

    async def list_transactions(self, query: ListQuery) -> Page[Stored]:
        """In portions, each of them a transaction: payloads, which are not shown, are never all in memory.

        A page is filled up behind rows that cannot be read: a short one would end the listing.
        """
        limit, until_s = query.limit, time.monotonic() + self._timeout_s / 2
        found: list[Stored] = []
        size = skipped = 0
        while True:
            ids = await self._read(partial(statements.listed_ids, query=query))
            is_last = len(ids) < query.limit
            while ids:
                if found and (size >= statements.ENOUGH_BYTES or time.monotonic() >= until_s):
                    return Page(items=found, has_more=True)
                part = await self._read(partial(statements.read_listed, ids=ids))
                found += part.found
                size += part.size
                skipped += part.unreadable
                query = replace(query, before_id=ids[part.looked_at - 1])
                ids = ids[part.looked_at :]
            if is_last or len(found) == limit:
                return Page(items=found, has_more=not is_last and bool(found))
            if skipped > _MOST_SKIPPED:
                raise SchemaError(
                    f"{skipped} stored transactions cannot be read, such as that with the id {query.before_id}: "
                    "they were written by a newer version of txcoord; start that version"
                )
            query = replace(query, limit=limit - len(found))

    async def count_by_status(self) -> dict[Status, int]:
        return await self._read(statements.count_by_status)

    async def force_stop(self, gid: str, *, now_us: int, reason: str) -> Stored | None:
        stop = partial(statements.force_stop, gid=gid, now_us=now_us, reason=reason)
        return await self._change_one(gid, stop, patiently=True)

    async def make_due(self, gid: str, *, now_us: int) -> Stored | None:
        return await self._change_one(gid, partial(statements.make_due, gid=gid, now_us=now_us), patiently=True)

    async def make_far_due(self, *, after_us: int, now_us: int, limit: int) -> int:
        return await self._write(lambda c: statements.make_far_due(c, after_us=after_us, now_us=now_us, limit=limit))

    async def find_kv(self, category: str, keys: Sequence[str]) -> Sequence[KeyValue]:
        return await self._read(lambda c: statements.find_kv(c, category=category, keys=keys))

    async def list_kv(self, query: KvQuery) -> Page[KeyValue]:
        return await self._read(lambda c: statements.list_kv(c, query))

    async def put_kv(
        self, category: str, key: str, value: str, *, replaces: KeyValue | None, now_us: int
    ) -> KeyValue | None:
        if replaces is None:
            make = partial(statements.make_kv, category=category, key=key, value=value, now_us=now_us)
            return await self._write(make)
        return await self._write(lambda c: statements.replace_kv(c, replaces, value=value, now_us=now_us))

    async def delete_kv(self, category: str, key: str) -> bool:
        return await self._write(lambda c: statements.delete_kv(c, category=category, key=key))

    async def _park_all_of(self, node_id: int, *, now_us: int, limit: int | None) -> int:
        """Park what a fenced node owns, in transactions of a bounded size; forget the node when it owns nothing."""
        parked = 0
        while limit is None or parked < limit:
            chunk = statements.CHUNK if limit is None else min(statements.CHUNK, limit - parked)
            park = partial(statements.park_all_of, node_id=node_id, now_us=now_us, limit=chunk)
            count = await self._write(park, own=True)
            parked += count
            if count < chunk:
                await self._write(lambda c: statements.forget_node(c, node_id=node_id), own=True)
                break
        return parked


def check_schema(connection: Connection, *, label: str) -> None:
    """Raise SchemaError unless this program runs on the tables as they are."""
    found = version_of(connection)
    if found is not None and runs_on(found):
        return
    if found is not None and found > HEAD:
        raise SchemaError(
            f"the store {label} has schema version {found}, this program knows {HEAD}: install a newer one"
        )
    what = f"has schema version {found}, not {HEAD}" if found else "has no txcoord tables"
    raise SchemaError(f"the store {label} {what}: run `txcoord db upgrade` with this store's URL, then start again")


def _lease_us(lease_s: float) -> int:
    return round(lease_s * MICROSECONDS)
