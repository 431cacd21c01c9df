"""What an XA branch is: one URL, called with the op `commit` or `rollback` and no body."""

from __future__ import annotations

from txcoord.errors import InvalidRequestError
from txcoord.model import BranchOp, GlobalTransaction, Op
from txcoord.request import BranchRegistration, Limits, check_branch_id, check_url
from txcoord.two_phase.request import with_branch


def registered(xa: GlobalTransaction, branch: BranchRegistration, limits: Limits, *, now_us: int) -> GlobalTransaction:
    """Return it with one more branch; raises as `txcoord.two_phase.request.with_branch`.

    Raises:
        InvalidRequestError: there is no URL: what the branch prepared could never be ended.
    """
    branch_id = check_branch_id(branch.branch_id)
    if not branch.url:
        raise InvalidRequestError(
            f"url of branch {branch_id} of {xa.gid} is empty: name where its commit or rollback is to be sent"
        )
    url = check_url(
        branch.url,
        where=f"url of branch {branch_id} of {xa.gid}",
        limits=limits,
        protocol=xa.protocol,
        headers=xa.options.branch_headers,
    )
    ops = (
        BranchOp(branch_id=branch_id, op=Op.ROLLBACK, url=url),
        BranchOp(branch_id=branch_id, op=Op.COMMIT, url=url),
    )
    return with_branch(xa, branch, ops, limits, now_us=now_us)
