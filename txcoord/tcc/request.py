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
            f"data has {len(branch.data)} bytes: at most {limits.max_payload_bytes} (max_payload_bytes) are allowed"
        )
    confirm = check_url(branch.confirm, where="the confirm URL", limits=limits, protocol=tcc.protocol)
    cancel = check_url(branch.cancel, where="the cancel URL", limits=limits, protocol=tcc.protocol)
    ops = (
        BranchOp(branch_id=branch_id, op=Op.CANCEL, url=cancel, payload=branch.data),
        BranchOp(branch_id=branch_id, op=Op.CONFIRM, url=confirm, payload=branch.data),
    )
    return with_branch(tcc, branch, ops, limits, now_us=now_us)
