"""XA transactions for tests, written short: `make_xa("PSPP")` has two branches, the first of which is committed."""

from __future__ import annotations

from collections.abc import Mapping

from tests.tccs import make_tcc
from txcoord.model import GlobalTransaction, Op, Pattern, Status
from txcoord.request import BranchRegistration


def make_xa(
    letters: str = "PPPP",
    *,
    status: Status = Status.SUBMITTED,
    refusals: Mapping[int, int] | None = None,
    due_us: Mapping[int, int] | None = None,
    **more: object,
) -> GlobalTransaction:
    """An XA transaction whose branches stand as the letters say: rollback and commit of each, as registered."""
    like_tcc = make_tcc(letters, status=status, refusals=refusals, due_us=due_us, **more)  # type: ignore[arg-type]
    branches = tuple(
        op.replace(op=Op.COMMIT if position % 2 else Op.ROLLBACK, payload=b"", url=f"http://p/{position // 2}")
        for position, op in enumerate(like_tcc.branches)
    )
    return like_tcc.replace(pattern=Pattern.XA, branches=branches)


def registration(branch_id: str = "01", *, gid: str = "g1", **more: object) -> BranchRegistration:
    fields: dict[str, object] = {"gid": gid, "trans_type": "xa", "branch_id": branch_id, "url": f"http://p{branch_id}"}
    return BranchRegistration(**(fields | more))  # type: ignore[arg-type]
