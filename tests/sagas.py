"""Sagas for tests, written short: `make_saga("PSPP")` has two steps, the first of which has succeeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from txcoord.model import (
    MICROSECONDS,
    Attempt,
    BranchOp,
    GlobalTransaction,
    Op,
    OpStatus,
    Options,
    Outcome,
    Pattern,
    Status,
)
from txcoord.protocol import branch_id_of

NOON_US = 1_767_268_800 * MICROSECONDS
"""2026-01-01, 12:00 UTC."""

_LETTERS = {"P": OpStatus.PREPARED, "S": OpStatus.SUCCEEDED, "F": OpStatus.FAILED}
_LETTER_OF = {status: letter for letter, status in _LETTERS.items()}


def rows(tx: GlobalTransaction) -> str:
    """The branches' statuses, compensation before action of each step, as DTM lists them: "SSSF"."""
    return "".join(_LETTER_OF[op.status] for op in tx.branches)


def url_of(step: int, op: Op) -> str:
    return f"http://p{step}/{op}"


def make_saga(
    letters: str = "PPPP",
    *,
    gid: str = "g1",
    status: Status = Status.SUBMITTED,
    reached: Sequence[int] = (),
    failures: Mapping[int, int] | None = None,
    due_us: Mapping[int, int] | None = None,
    without_url: Sequence[int] = (),
    concurrent: bool = False,
    orders: Mapping[int, tuple[int, ...]] | None = None,
    options: Options | None = None,
    deadline_us: int | None = None,
    rollback_reason: str = "",
) -> GlobalTransaction:
    """A saga whose branches stand as the letters say.

    `reached` names steps; `failures`, `due_us` and `without_url` name positions of branches.
    """
    branches = []
    for position, letter in enumerate(letters):
        step, is_action = divmod(position, 2)
        op = Op.ACTION if is_action else Op.COMPENSATE
        branches.append(
            BranchOp(
                branch_id=branch_id_of(step),
                op=op,
                url="" if position in without_url else url_of(step, op),
                payload=b"{}",
                status=_LETTERS[letter],
                reached=bool(is_action) and step in reached,
                failures=(failures or {}).get(position, 0),
                due_us=(due_us or {}).get(position, 0),
            )
        )
    return GlobalTransaction(
        gid=gid,
        pattern=Pattern.SAGA,
        status=status,
        branches=tuple(branches),
        options=replace(options or Options(), concurrent=concurrent, orders=dict(orders or {})),
        created_us=NOON_US,
        updated_us=NOON_US,
        deadline_us=deadline_us,
        rollback_reason=rollback_reason,
    )


def attempt(outcome: Outcome, *, detail: str = "", code: int = 200) -> Attempt:
    return Attempt(at_us=NOON_US, duration_us=1000, outcome=outcome, code=code, detail=detail)
