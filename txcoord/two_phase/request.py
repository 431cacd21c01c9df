"""From what came in to a transaction of registered branches, and what a request does to one that is prepared.

The functions that change one are pure: they take the transaction as it stands and return
it as it is to be, the same object if nothing changes, or raise what the caller is told.
"""

from __future__ import annotations

from txcoord.errors import InvalidRequestError, RequestTooLargeError, StatusConflictError
from txcoord.model import MICROSECONDS, BranchOp, GlobalTransaction, Pattern, Status
from txcoord.request import (
    PAYLOADS_AT_MOST,
    BranchRegistration,
    Limits,
    TransRequest,
    check_custom_data,
    check_gid,
    check_options,
    check_params,
    check_protocol,
)


def build_two_phase(
    request: TransRequest,
    limits: Limits,
    *,
    pattern: Pattern,
    now_us: int,
    status: Status,
    default_timeout_s: float,
) -> GlobalTransaction:
    """Return the transaction that a prepare asks for, or a submit without one before it.

    Raises:
        InvalidRequestError, RequestTooLargeError: with a sentence that says what to change.
    """
    options = check_options(request, limits)
    timeout_s = options.timeout_to_fail_s or default_timeout_s
    return GlobalTransaction(
        gid=check_gid(request.gid),
        pattern=pattern,
        status=status,
        options=options,
        protocol=check_protocol(request.protocol),
        custom_data=check_custom_data(request.custom_data, limits),
        created_us=now_us,
        updated_us=now_us,
        deadline_us=now_us + int(timeout_s * MICROSECONDS),
    )


def with_branch(
    tx: GlobalTransaction, branch: BranchRegistration, ops: tuple[BranchOp, BranchOp], limits: Limits, *, now_us: int
) -> GlobalTransaction:
    """Return it with one more branch. The same registration again changes nothing.

    Args:
        ops: what undoes the branch, and what completes it.

    Raises:
        StatusConflictError: it is not prepared any more (`wanted="register"`).
        InvalidRequestError: the branch cannot be called, or its id has been taken.
    """
    if tx.status is not Status.PREPARED:
        raise StatusConflictError(tx.gid, status=tx.status, wanted="register", pattern=tx.pattern)
    for op in ops:
        check_params(op.payload, url=op.url, protocol=tx.protocol, where=f"data of branch {branch.branch_id}")
    same_id = [op for op in tx.branches if op.branch_id == branch.branch_id]
    if same_id:
        if [(op.op, op.url, op.payload) for op in same_id] == [(op.op, op.url, op.payload) for op in ops]:
            return tx
        raise InvalidRequestError(
            f"branch {branch.branch_id} of {tx.gid} is registered with other URLs or data: give this one another id"
        )
    if len(tx.branches) // 2 >= limits.max_branches:
        raise RequestTooLargeError(f"{tx.gid} has {limits.max_branches} branches, which is the most (max_branches)")
    size = sum(len(op.payload) for op in tx.branches[::2]) + len(branch.data)
    if size > PAYLOADS_AT_MOST * limits.max_payload_bytes:
        raise RequestTooLargeError(
            f"the data of all branches of {tx.gid} would have {size} bytes:"
            f" at most {PAYLOADS_AT_MOST} times max_payload_bytes are allowed"
        )
    return tx.replace(branches=(*tx.branches, *ops), updated_us=tx.updated_at(now_us))


def submitted(tx: GlobalTransaction, *, now_us: int) -> GlobalTransaction:
    """Return it decided forward; submitted again it is the same.

    Raises:
        StatusConflictError: it was cancelled or has ended (`wanted="submit"`).
    """
    if tx.status is Status.SUBMITTED:
        return tx
    if tx.status is not Status.PREPARED:
        raise StatusConflictError(tx.gid, status=tx.status, wanted="submit", pattern=tx.pattern)
    return tx.replace(status=Status.SUBMITTED, updated_us=tx.updated_at(now_us))


def aborted(tx: GlobalTransaction, reason: str, *, now_us: int) -> GlobalTransaction:
    """Return it decided back; aborted again it is the same.

    Raises:
        StatusConflictError: it is submitted, or has ended (`wanted="abort"`).
    """
    if tx.status is Status.ABORTING:
        return tx
    if tx.status is Status.PREPARED:
        return tx.replace(status=Status.ABORTING, rollback_reason=reason, updated_us=tx.updated_at(now_us))
    raise StatusConflictError(tx.gid, status=tx.status, wanted="abort", pattern=tx.pattern)
