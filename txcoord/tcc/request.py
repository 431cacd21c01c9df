"""What a TCC branch is: a confirm and a cancel, with the data that both get."""

from __future__ import annotations

from txcoord.errors import RequestTooLargeError
from txcoord.model import BranchOp, GlobalTransaction, Op
from txcoord.request import BranchRegistration, Limits, check_branch_id, check_url
from txcoord.two_phase.request import with_branch


def registered(tcc: GlobalTransaction, branch: BranchRegistration, limits: Limits, *, now_us: int) -> GlobalTransaction:
    """Return it with one more branch; raises as `txcoord.two_phase.request.with_branch`."""
    branch_id = check_branch_id(branch.branch_id)
    if len(branch.data) > limits.max_payload_bytes:
        raise RequestTooLargeError(
            f"data of branch {branch_id} of {tcc.gid} has {len(branch.data)} bytes:"
            f" at most {limits.max_payload_bytes} (max_payload_bytes) are allowed"
        )
    for op, url in ((Op.CONFIRM, branch.confirm), (Op.CANCEL, branch.cancel)):
        check_url(
            url,
            where=f"the {op} URL of branch {branch_id} of {tcc.gid}",
            limits=limits,
            protocol=tcc.protocol,
            headers=tcc.options.branch_headers,
        )
    ops = (
        BranchOp(branch_id=branch_id, op=Op.CANCEL, url=branch.cancel, payload=branch.data),
        BranchOp(branch_id=branch_id, op=Op.CONFIRM, url=branch.confirm, payload=branch.data),
    )
    return with_branch(tcc, branch, ops, limits, now_us=now_us)
