"""TCC transactions for tests, written short: `make_tcc("PSPP")` has two branches, the first of which is confirmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.sagas import NOON_US
from txcoord.model import MICROSECONDS, BranchOp, GlobalTransaction, Op, OpStatus, Options, Pattern, Status
from txcoord.protocol import branch_id_of
from txcoord.request import BranchRegistration

_LETTERS = {"P": OpStatus.PREPARED, "S": OpStatus.SUCCEEDED}

TIMEOUT_S = 35


def make_tcc(
    letters: str = "PPPP",
    *,
    gid: str = "g1",
    status: Status = Status.SUBMITTED,
    refusals: Mapping[int, int] | None = None,
    due_us: Mapping[int, int] | None = None,
    without_url: Sequence[int] = (),
    options: Options | None = None,
    deadline_us: int | None = NOON_US + TIMEOUT_S * MICROSECONDS,
    rollback_reason: str = "",
) -> GlobalTransaction:
    """A TCC whose branches stand as the letters say: cancel and confirm of each, in the order of registration."""
    branches = tuple(
        BranchOp(
            branch_id=branch_id_of(position // 2),
            op=Op.CONFIRM if position % 2 else Op.CANCEL,
            url="" if position in without_url else f"http://p/{position}",
            payload=b"{}",
            status=_LETTERS[letter],
            refusals=(refusals or {}).get(position, 0),
            due_us=(due_us or {}).get(position, 0),
        )
        for position, letter in enumerate(letters)
    )
    return GlobalTransaction(
        gid=gid,
        pattern=Pattern.TCC,
        status=status,
        branches=branches,
        options=options or Options(),
        created_us=NOON_US,
        updated_us=NOON_US,
        deadline_us=deadline_us,
        rollback_reason=rollback_reason,
    )


def registration(branch_id: str = "01", *, gid: str = "g1", **more: object) -> BranchRegistration:
    fields: dict[str, object] = {
        "gid": gid,
        "trans_type": "tcc",
        "branch_id": branch_id,
        "data": b'{"amount":30}',
        "confirm": f"http://p{branch_id}/confirm",
        "cancel": f"http://p{branch_id}/cancel",
    }
    return BranchRegistration(**(fields | more))  # type: ignore[arg-type]
