"""How a batch's changes become rows, and what became of those that a batch did not write."""

from __future__ import annotations

from typing import Any

from txcoord.store import codec
from txcoord.store.base import Applied, Change, Create, Save

PARKED = 0
"""The owner of a parked row."""

FENCED = 0
"""The end of the lease of a node that was fenced."""

CREATE_WIDTH = 14
SAVE_WIDTH = 10


def is_done(change: Change, row: tuple[str, int, int] | None) -> Applied:
    """What became of a change that a batch did not write, from the (gid, token, epoch) found after it.

    It may have been written by an earlier run of the same batch: the token tells that of a `Create`; and of a
    `Save` that its epoch is still there, since whatever anybody else does raises it. A later save of the same
    epoch may stand there, which contains this one.
    """
    if isinstance(change, Create):
        assert row is not None, "a create that wrote nothing has met a row"
        return Applied.DONE if row[1] == change.token else Applied.EXISTS
    return Applied.DONE if row is not None and row[2] == change.epoch else Applied.LEASE_LOST


def owner_after(change: Change, node_id: int) -> int | None:
    """Who owns the row once the change is made: nobody for good, nobody for now, or the writing node."""
    if change.tx.status.is_final:
        return None
    parks = change.park if isinstance(change, Save) else change.parked
    if not parks:
        return node_id
    assert change.tx.due_us is not None, f"{change.tx.gid} is parked without saying when it is due"
    return PARKED


def create_row(change: Create, node_id: int) -> tuple[Any, ...]:
    tx = change.tx
    return (
        tx.gid,
        tx.pattern,
        tx.status,
        owner_after(change, node_id),
        change.token,
        tx.created_us,
        tx.updated_us,
        tx.due_us,
        tx.deadline_us,
        tx.finished_us,
        codec.encode_definition(tx).decode(),
        codec.encode_progress(tx.branches).decode(),
        codec.clean_text(tx.rollback_reason),
        codec.clean_text(tx.result),
    )


def save_row(change: Save, node_id: int) -> tuple[Any, ...]:
    tx = change.tx
    return (
        tx.gid,
        change.epoch,
        tx.status,
        owner_after(change, node_id),
        tx.updated_us,
        tx.due_us,
        tx.finished_us,
        codec.encode_progress(tx.branches).decode(),
        codec.clean_text(tx.rollback_reason),
        codec.clean_text(tx.result),
    )


def new_definition(change: Save) -> str | None:
    """The definition to write; None: it is left alone."""
    return codec.encode_definition(change.tx).decode() if change.with_definition else None
