"""The contract of a store: what every implementation guarantees.

A row belongs to one of: a *node* (the process that drives it), nobody (*parked*, with
`due_us` in an index), or it is final. Each take-over raises the row's *epoch*; whoever
writes says which epoch it holds. A node itself holds a *lease*; every batch checks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Generic, Protocol, TypeVar

from msgspec import Struct

from txcoord.model import MICROSECONDS, GlobalTransaction, Pattern, Status

T = TypeVar("T")


class Create(Struct, frozen=True, kw_only=True):
    """Store a new transaction.

    With `parked` it belongs to nobody and `tx.due_us` says when it is due; otherwise it
    belongs to the writing node. Its epoch is 1. `token` is a random non-zero 63-bit number that
    tells this creation from another one of the same gid, so that a batch can be applied
    twice.
    """

    tx: GlobalTransaction
    token: int
    parked: bool = False


class Save(Struct, frozen=True, kw_only=True):
    """Store the changeable part of a transaction that the writing node owns at `epoch`.

    `tx.updated_us` orders the saves of one transaction: whoever drives it sees to it that a
    save with other content has a greater one than every save before, whatever the clock
    says. Nothing older than what is stored is ever written, because a database may run a batch
    late: after its connection was given up, the batch repeated and others written after it.

    Written: status, branch results, `due_us`, `updated_us`, `finished_us`,
    `rollback_reason`, `result`. With `park` the node gives it up and it is due at
    `tx.due_us` (never None then). A final status gives it up for good.

    The definition (branches as they were asked for, options, custom data) is written too
    if `with_definition`: a branch was registered, or a submit brought other options. It
    is left alone otherwise: most transactions never change it.
    """

    tx: GlobalTransaction
    epoch: int
    park: bool = False
    with_definition: bool = False


Change = Create | Save

UNREADABLE_US = 5 * 60 * MICROSECONDS
"""How long a parked transaction that cannot be read is put off."""

ORPHANS_S = 60.0
"""How often a process looks for transactions of nodes that are not there."""


class Applied(Enum):
    """What became of one change."""

    DONE = "done"
    """It is stored; or, of a save, a later one of the same epoch is, which contains it."""
    EXISTS = "exists"
    """Create: another transaction has this gid. Nothing was written."""
    LEASE_LOST = "lease lost"
    """Save: the epoch is not this one any more (or the row is gone). Nothing was written."""


class Owned(Struct, frozen=True, kw_only=True):
    """A transaction that was just taken over, with the epoch to write it under."""

    tx: GlobalTransaction
    epoch: int


class Stored(Struct, frozen=True, kw_only=True):
    """A transaction as it is found."""

    id: int
    tx: GlobalTransaction
    owner: int | None
    """Node that drives it; 0: parked; None: final."""
    epoch: int

    def without_payloads(self) -> Stored:
        """It as a listing has it."""
        branches = tuple(branch.replace(payload=b"") for branch in self.tx.branches)
        return Stored(id=self.id, tx=self.tx.replace(branches=branches), owner=self.owner, epoch=self.epoch)


class ListQuery(Struct, frozen=True, kw_only=True):
    """Which transactions to list: newest first, after `before_id`. Times are inclusive."""

    limit: int
    before_id: int | None = None
    status: Status | None = None
    pattern: Pattern | None = None
    created_from_us: int | None = None
    created_to_us: int | None = None


class KeyValue(Struct, frozen=True, kw_only=True):
    """A small document that all coordinators on one database share, such as a topic."""

    id: int
    category: str
    key: str
    value: str
    version: int
    """1 when it is made, one more with each change."""
    created_us: int
    updated_us: int


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """A part of what matches a query."""

    items: Sequence[T]
    has_more: bool
    """Whether more may match behind the last of these. There is at least one item then."""


class KvQuery(Struct, frozen=True, kw_only=True):
    """Which documents to list: newest (highest id) first, after `before_id`."""

    limit: int
    before_id: int | None = None
    category: str | None = None


class Store(Protocol):
    """One database. Every method is one database transaction unless it says otherwise.

    Raises (all methods):
        StoreUnavailableError: the database cannot be reached or gave up (deadlock and
            lock time-out retries included); nothing is known to be applied.
    """

    async def open(self) -> None:
        """Connect and check the schema.

        Raises:
            SchemaError: tables are missing or of another version; the sentence names
                the command that mends it. (SQLite and memory make their own.)
        """

    async def close(self) -> None:
        """Close all connections. Idempotent."""

    async def ping(self) -> None:
        """Return if the database answers a trivial statement."""

    # -- nodes and leases; the database's clock decides, not a node's ----------------

    async def join(self, *, name: str, lease_s: float) -> int:
        """Register this process as a node with a fresh lease; return its id (> 0, never reused)."""

    async def renew(self, node_id: int, *, lease_s: float) -> bool:
        """Prolong the lease. False: it had ended, or the node is gone; it is not revived.

        That is compared, and the new end reckoned, when nothing is left to wait for.
        """

    async def leave(self, node_id: int, *, now_us: int) -> None:
        """Give up the lease and park, due at `now_us`, whatever the node still owns. Idempotent."""

    async def release_dead(self, *, now_us: int, limit: int) -> int:
        """Park what belongs to nodes whose lease has ended: due at `now_us`, epoch raised.

        First the dead node is fenced for good, so that none of its batches takes effect
        after. One that has a batch under way just now is left for a later call. At most
        `limit` transactions per call; a dead node's row goes when it owns none. Several
        nodes may do this at once. What belongs to nodes that are not there any more (a backup
        was put back, a row deleted by hand) is released too, within `ORPHANS_S`.

        Returns:
            How many were parked; call again while it is `limit`.
        """

    # -- the journal -----------------------------------------------------------------

    async def apply(self, node_id: int, batch: Sequence[Change], *, patiently: bool = True) -> Sequence[Applied]:
        """Apply a batch in one database transaction; answer for each change, in order.

        The node's lease is checked in the same transaction and held against
        `release_dead` until it commits. Each `Save` compares the epoch, and that the row's
        `updated_us` is not greater than its own, in the statement that writes. A change that
        finds something else takes no effect and says so; the rest of the batch stands. A
        batch holds each gid at most once.

        Applying a batch a second time is harmless and answers the same: the first
        commit may have happened although its answer was lost. So is a first try that the
        database runs only after later batches: a `Save` that finds a later one of its
        epoch writes nothing and is DONE, a `Create` is told from others by its token.

        Raises:
            LeaseLostError: the node's lease has ended; nothing was written.
            ValueError: it is larger than the database takes at once; nothing was written.
                A part of the batch may do; a single change is refused for good.
            TransactionsLockedError: other transactions of the database hold the rows that it
                names; nothing was written. Without those the batch may be applied at once.
                The batch has waited a moment for them; one that is not applied `patiently`
                has not, if they were locked before it came.
            StoreUnavailableError: nothing is known to be applied; try again later.
        """

    # -- recovery --------------------------------------------------------------------

    async def take_over_due(self, node_id: int, *, now_us: int, limit: int) -> Sequence[Owned]:
        """Make parked transactions that are due this node's, earliest first; raise their epochs.

        Several nodes calling this at once get different ones and do not wait for each
        other, where the database can do that. What cannot be read (a row of a newer version, or
        changed by hand) is logged with its gid and put off by `UNREADABLE_US`, so that the
        others go on. Of large ones so many are taken as can be read in a moment. So fewer than
        `limit` does not mean that no more are due.

        Raises:
            LeaseLostError: the node's lease has ended; nothing was taken.
        """

    async def claim_prepared(self, node_id: int, gid: str) -> Owned | None:
        """Make a prepared transaction this node's, whoever has it; raise its epoch.

        Nothing is called for a transaction that is prepared, so it may change hands at any
        moment: a node that had it finds out with its next write.

        Returns:
            It with its new epoch; None: there is no such gid, or it is not prepared.

        Raises:
            LeaseLostError: the node's lease has ended; nothing was taken.
            TransactionsLockedError: another transaction of the database holds its row; nothing
                was taken. Nothing waits for that: neither this, nor what needs the node's lease.
        """

    async def next_due_us(self) -> int | None:
        """The earliest due time of all parked transactions.

        It may be in the past, also right after a `take_over_due` that took nothing:
        another transaction holds the row just then. Look again in a while, not at once.
        """

    async def owned(self, node_id: int) -> Sequence[tuple[str, int]]:
        """gid and epoch of all transactions that belong to this node."""

    async def release(self, node_id: int, gids: Sequence[str], *, now_us: int) -> int:
        """Park those of `gids` that belong to this node, due at `now_us`, epochs raised.

        Those whose rows are locked just now are left alone: call again.
        What was taken over due `AT_ONCE`, and not written since, is due so again; in
        `release_dead` and `leave` as well.

        Returns:
            How many.
        """

    # -- queries and operators -------------------------------------------------------

    async def find(self, gid: str) -> Stored | None:
        """One transaction with its branches, or None.

        Raises:
            SchemaError: its row cannot be read, nor can any other method that returns it;
                the sentence names the gid.
        """

    async def list_transactions(self, query: ListQuery) -> Page[Stored]:
        """Transactions that match, newest (highest id) first, their branches without payloads:
        `limit` of them, or all there are; fewer if they are so large that they would fill the
        memory, or reading them would last too long.

        What cannot be read is logged with its gid and left out.

        Raises:
            SchemaError: more than a thousand in a row cannot be read.
        """

    async def count_by_status(self) -> dict[Status, int]:
        """How many unfinished transactions there are in each status (for metrics and operators)."""

    async def force_stop(self, gid: str, *, now_us: int, reason: str) -> Stored | None:
        """Make an unfinished transaction failed, whoever owns it; raise its epoch.

        Whoever drives it loses it with its next write.

        Returns:
            It as it was before (final: nothing was changed); None: no such gid.

        Raises:
            TransactionsLockedError: another transaction of the database holds its row, and has
                for a while; nothing was changed.
        """

    async def make_due(self, gid: str, *, now_us: int) -> Stored | None:
        """Make a parked transaction due `AT_ONCE`. On a final one the time is only noted
        (`due_us`, `updated_us`); an owned one is left alone: it is being driven.

        Returns:
            It as it was before; None: no such gid.

        Raises:
            TransactionsLockedError: as `force_stop`.
        """

    async def make_far_due(self, *, after_us: int, now_us: int, limit: int) -> int:
        """Make parked transactions that are due later than `after_us` due `AT_ONCE`.

        Returns:
            How many, `limit` at most.
        """

    # -- documents that all coordinators share ---------------------------------------

    async def find_kv(self, category: str, keys: Sequence[str]) -> Sequence[KeyValue]:
        """Those of a category that have one of these keys, in no particular order."""

    async def list_kv(self, query: KvQuery) -> Page[KeyValue]:
        """Documents that match, newest first: `limit` of them, or all there are; fewer if they are large."""

    async def put_kv(
        self, category: str, key: str, value: str, *, replaces: KeyValue | None, now_us: int
    ) -> KeyValue | None:
        """Make a document, or put a new value in the place of the one that `replaces` is.

        `id` and `version` of what is replaced are compared in the statement that writes: a change of somebody else is
        never overwritten, and neither is what was made anew after it had been deleted.

        Returns:
            It as it is stored now; None: another one is there, or none any more, and nothing was written.
        """

    async def delete_kv(self, category: str, key: str) -> bool:
        """Delete a document, whatever its version. False: there was none."""
