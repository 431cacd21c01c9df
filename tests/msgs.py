"""Messages for tests, written short: `make_msg("SP")` has two actions, the first of which has succeeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.sagas import NOON_US
from txcoord.model import MICROSECONDS, BranchOp, GlobalTransaction, Op, OpStatus, Options, Pattern, Status
from txcoord.protocol import CHECK_BACK_BRANCH, branch_id_of
from txcoord.request import TransRequest

_LETTERS = {"P": OpStatus.PREPARED, "S": OpStatus.SUCCEEDED, "F": OpStatus.FAILED}

TIMEOUT_S = 35
QUERY_PREPARED = "http://initiator/query"


def make_msg(
    letters: str = "PP",
    *,
    check_back: str = "P",
    status: Status = Status.SUBMITTED,
    due_us: Mapping[int, int] | None = None,
    in_vain: Mapping[int, int] | None = None,
    without_url: Sequence[int] = (),
    options: Options | None = None,
) -> GlobalTransaction:
    """A message whose actions, and whose check-back behind them, stand as the letters say; `check_back=""`: none."""
    branches = tuple(
        BranchOp(
            branch_id=branch_id_of(position),
            op=Op.ACTION,
            url="" if position in without_url else f"http://p/{position}",
            payload=b"{}",
            status=_LETTERS[letter],
            due_us=(due_us or {}).get(position, 0),
            in_vain=(in_vain or {}).get(position, 0),
            finished_us=None if letter == "P" else NOON_US,
        )
        for position, letter in enumerate(letters)
    )
    if check_back:
        question = BranchOp(
            branch_id=CHECK_BACK_BRANCH,
            op=Op.MSG,
            url=QUERY_PREPARED,
            status=_LETTERS[check_back],
            due_us=(due_us or {}).get(len(letters), 0),
        )
        branches = (*branches, question)
    return GlobalTransaction(
        gid="g1",
        pattern=Pattern.MSG,
        status=status,
        branches=branches,
        options=options or Options(),
        query_prepared=QUERY_PREPARED if check_back else "",
        created_us=NOON_US,
        updated_us=NOON_US,
        deadline_us=NOON_US + TIMEOUT_S * MICROSECONDS,
    )


def msg_request(gid: str = "g1", *, count: int = 2, **more: object) -> TransRequest:
    fields: dict[str, object] = {
        "gid": gid,
        "trans_type": "msg",
        "steps": tuple({"action": f"http://p/{step}"} for step in range(count)),
        "payloads": (b"{}",) * count,
        "query_prepared": QUERY_PREPARED,
    }
    return TransRequest(**(fields | more))  # type: ignore[arg-type]
