"""From what came in to a TCC transaction, and what a request does to one that is prepared.

The functions that change one are pure: they take the transaction as it stands and return
it as it is to be, the same object if nothing changes, or raise what the caller is told.
"""

from __future__ import annotations

from txcoord.errors import InvalidRequestError, RequestTooLargeError, StatusConflictError
from txcoord.model import MICROSECONDS, BranchOp, GlobalTransaction, Op, Pattern, Status
from txcoord.request import (
    BranchRegistration,
    Limits,
    TransRequest,
    check_gid,
    check_options,
    check_params,
    check_protocol,
    check_url,
)

MAX_BRANCH_ID_LENGTH = 128
_PAYLOADS_AT_MOST = 4


def build_tcc(
    request: TransRequest, limits: Limits, *, now_us: int, status: Status, default_timeout_s: float
) -> GlobalTransaction:
    """Return the TCC transaction that a prepare asks for, or a submit without one before it.

    Raises:
        InvalidRequestError, RequestTooLargeError: with a sentence that says what to change.
    """
    options = check_options(request, limits)
    timeout_s = options.timeout_to_fail_s or default_timeout_s
    return GlobalTransaction(
        gid=check_gid(request.gid),
        pattern=Pattern.TCC,
        status=status,
        options=options,
        protocol=check_protocol(request.protocol),
        custom_data=request.custom_data,
        created_us=now_us,
        updated_us=now_us,
        deadline_us=now_us + int(timeout_s * MICROSECONDS),
    )


def registered(tcc: GlobalTransaction, branch: BranchRegistration, limits: Limits, *, now_us: int) -> GlobalTransaction:
    """Return it with one more branch. The same registration again changes nothing.

    Raises:
        StatusConflictError: it is not prepared any more (`wanted="register"`).
        InvalidRequestError: the branch cannot be called, or its id has been taken.
    """
    ops = _ops(branch, limits)
    if tcc.pattern is not Pattern.TCC:
        raise InvalidRequestError(f"{tcc.gid} is a {tcc.pattern}: branches are registered for a tcc")
    if tcc.status is not Status.PREPARED:
        raise StatusConflictError(tcc.gid, status=tcc.status, wanted="register", pattern=tcc.pattern)
    for op in ops:
        check_params(op.payload, url=op.url, protocol=tcc.protocol, where=f"data of branch {branch.branch_id}")
    same_id = [op for op in tcc.branches if op.branch_id == branch.branch_id]
    if same_id:
        if [(op.op, op.url, op.payload) for op in same_id] == [(op.op, op.url, op.payload) for op in ops]:
            return tcc
        raise InvalidRequestError(
            f"branch {branch.branch_id} of {tcc.gid} is registered with other URLs or data: give this one another id"
        )
    if len(tcc.branches) // 2 >= limits.max_branches:
        raise RequestTooLargeError(f"{tcc.gid} has {limits.max_branches} branches, which is the most (max_branches)")
    # They are kept in one row: together they may not be larger than a request that brings all of them at once.
    size = sum(len(op.payload) for op in tcc.branches[::2]) + len(branch.data)
    if size > _PAYLOADS_AT_MOST * limits.max_payload_bytes:
        raise RequestTooLargeError(
            f"the data of all branches of {tcc.gid} would have {size} bytes:"
            f" at most {_PAYLOADS_AT_MOST} times max_payload_bytes are allowed"
        )
    return tcc.replace(branches=(*tcc.branches, *ops), updated_us=tcc.updated_at(now_us))


def _ops(branch: BranchRegistration, limits: Limits) -> tuple[BranchOp, BranchOp]:
    branch_id = branch.branch_id
    if not branch_id or len(branch_id) > MAX_BRANCH_ID_LENGTH or not branch_id.isprintable():
        raise InvalidRequestError(
            f"branch_id {branch_id[:40]!r} must have 1 to {MAX_BRANCH_ID_LENGTH} printable characters"
        )
    if len(branch.data) > limits.max_payload_bytes:
        raise RequestTooLargeError(
            f"data has {len(branch.data)} bytes: at most {limits.max_payload_bytes} (max_payload_bytes) are allowed"
        )
    confirm = check_url(branch.confirm, where="the confirm URL", limits=limits)
    cancel = check_url(branch.cancel, where="the cancel URL", limits=limits)
    return (
        BranchOp(branch_id=branch_id, op=Op.CANCEL, url=cancel, payload=branch.data),
        BranchOp(branch_id=branch_id, op=Op.CONFIRM, url=confirm, payload=branch.data),
    )


def submitted(tcc: GlobalTransaction, *, now_us: int) -> GlobalTransaction:
    """Return it decided forward; submitted again it is the same.

    Raises:
        StatusConflictError: it was cancelled or has ended (`wanted="submit"`).
    """
    if tcc.status is Status.SUBMITTED:
        return tcc
    if tcc.status is not Status.PREPARED:
        raise StatusConflictError(tcc.gid, status=tcc.status, wanted="submit", pattern=tcc.pattern)
    return tcc.replace(status=Status.SUBMITTED, updated_us=tcc.updated_at(now_us))


def aborted(tx: GlobalTransaction, reason: str, *, now_us: int) -> GlobalTransaction:
    """Return it decided back; aborted again it is the same.

    Raises:
        StatusConflictError: it is submitted, or has ended, or is of a pattern that turns
            round by itself (`wanted="abort"`).
    """
    if tx.pattern is Pattern.TCC:
        if tx.status is Status.ABORTING:
            return tx
        if tx.status is Status.PREPARED:
            return tx.replace(status=Status.ABORTING, rollback_reason=reason, updated_us=tx.updated_at(now_us))
    raise StatusConflictError(tx.gid, status=tx.status, wanted="abort", pattern=tx.pattern)
