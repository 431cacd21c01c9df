"""The rule of the barrier: which rows a branch operation leaves, and whether it is to run.

The coordinator calls at least once, in no guaranteed order, sometimes both at once. The
participant keeps one row per operation in its own database, under a unique key, written in
the transaction that does the work:

- A row that is there already means that the operation ran before: do nothing (duplicate).
- A compensation first writes the row of *its action*. If that succeeds, the action never
  ran: there is nothing to undo (empty compensation), and the action, should it still come,
  finds its row taken and does not run either (suspension).
- Two that run at once meet in the unique key: the second insert waits until the first
  transaction has ended, and then sees one of the above.

The rows, their key and `reason` (the op that wrote the row) are DTM's, so services in other
languages may share the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from txcoord.errors import InvalidRequestError
from txcoord.model import Op

ORIGIN_OPS: Mapping[str, str] = {Op.CANCEL: Op.TRY, Op.COMPENSATE: Op.ACTION, Op.ROLLBACK: Op.ACTION}
"""What each op undoes; the others undo nothing."""

LIMITS: Mapping[str, int] = {"trans_type": 45, "gid": 128, "branch_id": 128, "op": 45, "barrier_id": 45}
"""Characters that the table's columns hold. MySQL's `insert ignore` would cut what is longer."""

CHECK_BACK_BARRIER_ID = "01"


class Passage(StrEnum):
    """What the barrier made of a call. The answer to the coordinator is success in each."""

    RUN = "run"
    DUPLICATE = "duplicate"
    EMPTY = "empty"
    SUSPENDED = "suspended"

    @property
    def runs(self) -> bool:
        return self is Passage.RUN

    @property
    def meaning(self) -> str:
        """One clause for people and logs."""
        return _MEANINGS[self]


_MEANINGS = {
    Passage.RUN: "runs now",
    Passage.DUPLICATE: "left out as a duplicate: it has run before",
    Passage.EMPTY: "left out as an empty compensation: what it would undo has never run",
    Passage.SUSPENDED: "left out as suspended: what undoes it came first",
}


class Row(Struct, frozen=True, kw_only=True):
    """A row of the barrier table; (gid, branch_id, op, barrier_id) is its key."""

    trans_type: str
    gid: str
    branch_id: str
    op: str
    barrier_id: str
    reason: str


class Found(Struct, frozen=True, kw_only=True):
    """What matters of a row that was there already."""

    gid: str
    reason: str


class BarrierCall(Struct, frozen=True, kw_only=True):
    """One call of one barrier: an operation of a branch, and the number of the call within its handler."""

    trans_type: str
    gid: str
    branch_id: str
    op: str
    barrier_id: str

    @property
    def own(self) -> Row:
        """The row that says that this operation ran."""
        return self._row(self.op, reason=self.op)

    @property
    def origin(self) -> Row | None:
        """The row of what this operation undoes; to be inserted before the own one."""
        undoes = ORIGIN_OPS.get(self.op)
        return self._row(undoes, reason=self.op) if undoes else None

    @property
    def check_back(self) -> Row:
        """The row by which a check-back keeps a local transaction that has not committed from committing."""
        return self._row(Op.MSG, reason=Op.ROLLBACK)

    @property
    def refuses_duplicates(self) -> bool:
        """Whether a second run is an error rather than something to leave out.

        The local transaction of a message: either the check-back has already answered "it did not
        commit", or it has committed before. Both times the caller must not commit it now.
        """
        return self.op == Op.MSG

    def _row(self, op: str, *, reason: str) -> Row:
        return Row(
            trans_type=self.trans_type,
            gid=self.gid,
            branch_id=self.branch_id,
            op=op,
            barrier_id=self.barrier_id,
            reason=reason,
        )


def judge(*, origin_inserted: bool, own_inserted: bool) -> Passage | None:
    """Say what to do, from which rows were new.

    None: the own row was there already; `judge_existing` tells why.
    """
    if origin_inserted:
        return Passage.EMPTY
    return Passage.RUN if own_inserted else None


def judge_existing(call: BarrierCall, found: Found) -> Passage:
    """Say why the own row was there: written by the operation itself, or by what undoes it.

    Raises:
        InvalidRequestError: the row belongs to another transaction, whose gid the table's
            collation takes for the same.
    """
    if found.gid != call.gid:
        raise InvalidRequestError(
            f"the barrier table takes the gids {call.gid!r} and {found.gid!r} for the same: "
            "give its column gid a binary collation, or use gids that differ in more than case and trailing blanks"
        )
    return Passage.DUPLICATE if found.reason == call.op else Passage.SUSPENDED


def has_committed(found: Found) -> bool:
    """Say what a check-back found: the local transaction's own row, or the check-back's."""
    return found.reason != Op.ROLLBACK


def barrier_id_of(number: int) -> str:
    """Name the calls within one handler: 01, 02, …, 99, 100."""
    return f"{number:02d}"


def check(field: str, value: str) -> str:
    """Return a value that can stand in its column whole.

    Raises:
        InvalidRequestError: it is missing, or longer than its column, or holds a NUL.
    """
    if not value:
        raise InvalidRequestError(f"{field} is missing: a branch operation needs trans_type, gid, branch_id and op")
    if len(value) > LIMITS[field]:
        raise InvalidRequestError(f"{field} has {len(value)} characters; the barrier table holds {LIMITS[field]}")
    if "\x00" in value:
        raise InvalidRequestError(f"{field} holds a NUL character, which databases do not store")
    return value
