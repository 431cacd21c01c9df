"""From what came in to a workflow, and what its participant's reports do to it.

The functions that change one are pure, as those of `txcoord.two_phase.request`.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error

import msgspec

from txcoord.errors import InvalidRequestError, RequestTooLargeError, StatusConflictError
from txcoord.model import MICROSECONDS, BranchOp, GlobalTransaction, Op, OpStatus, Pattern, Status
from txcoord.protocol import CHECK_BACK_BRANCH
from txcoord.request import (
    PAYLOADS_AT_MOST,
    REASON_LENGTH,
    BranchRegistration,
    Limits,
    TransRequest,
    check_branch_id,
    check_custom_data,
    check_gid,
    check_options,
    check_params,
    check_protocol,
    check_url,
)
from txcoord.workflow.decide import RESUME

STEP_OPS = (Op.ACTION, Op.COMMIT, Op.ROLLBACK, Op.BUSINESS)

MAX_NAME_LENGTH = 128
"""The name travels in the URL of each request to go on."""


def build_workflow(request: TransRequest, limits: Limits, *, now_us: int, interval_s: float) -> GlobalTransaction:
    """Return the workflow that its participant opens.

    Args:
        interval_s: how long to wait for a sign of life before it is asked to go on, unless the request says so.

    Raises:
        InvalidRequestError, RequestTooLargeError: with a sentence that says what to change.
    """
    options = check_options(request, limits)
    protocol = check_protocol(request.protocol)
    url = check_url(
        request.query_prepared,
        where="query_prepared",
        limits=limits,
        protocol=protocol,
        headers=request.branch_headers,
    )
    custom_data = check_custom_data(request.custom_data, limits)
    plan = _Plan.read(custom_data)
    if url and not plan.name:
        raise InvalidRequestError(
            'custom_data of a workflow has no name: without {"name": …} its participant would not know what to resume'
        )
    check_params(plan.data, url=url, protocol=protocol, where="data in custom_data of a workflow")
    gid = check_gid(request.gid)
    resume = BranchOp(branch_id=CHECK_BACK_BRANCH, op=Op.RESUME, url=url, payload=plan.data)
    workflow = GlobalTransaction(
        gid=gid,
        pattern=Pattern.WORKFLOW,
        status=Status.PREPARED,
        branches=(resume,),
        options=options,
        protocol=protocol,
        query_prepared=url,
        custom_data=custom_data,
        created_us=now_us,
        updated_us=now_us,
    )
    return workflow.replace(branches=_not_asked_soon(workflow, now_us, interval_s))


class _Plan(msgspec.Struct, frozen=True):
    """What a workflow's `custom_data` says: `{"name": "<name>", "data": "<base64 of its input>"}`."""

    name: str = ""
    data: bytes = b""

    @classmethod
    def read(cls, custom_data: str) -> _Plan:
        if not custom_data:
            return cls()
        try:
            raw = msgspec.json.decode(custom_data, type=_RawPlan | None) or _RawPlan()
            plan = cls(raw.name or "", b64decode(raw.data or "", validate=True))
        except (msgspec.MsgspecError, RecursionError, UnicodeError, Base64Error, ValueError) as error:
            raise InvalidRequestError(f"custom_data of a workflow cannot be read: {error}") from error
        if len(plan.name) > MAX_NAME_LENGTH or not plan.name.isprintable():
            raise InvalidRequestError(
                f"the name {plan.name[:40]!r} in custom_data of a workflow must have"
                f" 1 to {MAX_NAME_LENGTH} printable characters"
            )
        return plan


class _RawPlan(msgspec.Struct, frozen=True):
    name: str | None = None
    data: str | None = None


def name_of(workflow: GlobalTransaction) -> str:
    """Return the name by which its participant knows it."""
    return _Plan.read(workflow.custom_data).name


def alive(workflow: GlobalTransaction, *, now_us: int, interval_s: float) -> GlobalTransaction:
    """Return it after a sign of life from its participant: it is not asked to go on before the interval is over."""
    return workflow.replace(
        branches=_not_asked_soon(workflow, now_us, interval_s), updated_us=workflow.updated_at(now_us)
    )


def _not_asked_soon(workflow: GlobalTransaction, now_us: int, interval_s: float) -> tuple[BranchOp, ...]:
    due_us = now_us + int((workflow.options.retry_interval_s or interval_s) * MICROSECONDS)
    resume = workflow.branches[RESUME].replace(due_us=due_us, failures=0)
    return (resume, *workflow.branches[1:])


def registered(
    workflow: GlobalTransaction, step: BranchRegistration, limits: Limits, *, now_us: int, interval_s: float
) -> GlobalTransaction:
    """Return it with the result of one more step. The same again changes nothing: what is stored stands.

    Raises:
        StatusConflictError: it has ended (`wanted="register"`).
        InvalidRequestError: the step has another result already, or cannot be read.
        RequestTooLargeError: its results do not fit.
    """
    branch_id = check_branch_id(step.branch_id)
    if step.op not in STEP_OPS:
        raise InvalidRequestError(
            f"op {step.op[:40]!r} of branch {branch_id} of {workflow.gid}: use one of {', '.join(STEP_OPS)}"
        )
    status = _reported_status(step.status, where=f"status of branch {branch_id} of {workflow.gid}")
    if workflow.status is not Status.PREPARED:
        raise StatusConflictError(workflow.gid, status=workflow.status, wanted="register", pattern=workflow.pattern)
    if len(step.data) > limits.max_payload_bytes:
        raise RequestTooLargeError(
            f"data of branch {branch_id} of {workflow.gid} has {len(step.data)} bytes:"
            f" at most {limits.max_payload_bytes} (max_payload_bytes) are allowed"
        )
    for known in workflow.branches[1:]:
        if known.branch_id == branch_id and known.op == step.op:
            if (known.status.value, known.payload) == (status.value, step.data):
                return workflow
            raise InvalidRequestError(
                f"{step.op} of branch {branch_id} of {workflow.gid} is stored with another result, which stands:"
                " run the workflow again, with what is stored"
            )
    # Each step has an action, perhaps a business, and a commit or a rollback.
    if len(workflow.branches) > 3 * limits.max_branches:
        raise RequestTooLargeError(
            f"{workflow.gid} has {3 * limits.max_branches} results, which is the most (3 times max_branches)"
        )
    size = sum(len(known.payload) for known in workflow.branches) + len(step.data)
    if size > PAYLOADS_AT_MOST * limits.max_payload_bytes:
        raise RequestTooLargeError(
            f"the results of all steps of {workflow.gid} would have {size} bytes:"
            f" at most {PAYLOADS_AT_MOST} times max_payload_bytes are allowed"
        )
    result = BranchOp(
        branch_id=branch_id,
        op=Op(step.op),
        url="",
        payload=step.data,
        status=OpStatus.SUCCEEDED if status is Status.SUCCEEDED else OpStatus.FAILED,
        finished_us=now_us,
    )
    branches = (*_not_asked_soon(workflow, now_us, interval_s), result)
    return workflow.replace(branches=branches, updated_us=workflow.updated_at(now_us))


def ended(workflow: GlobalTransaction, request: TransRequest, limits: Limits, *, now_us: int) -> GlobalTransaction:
    """Return it as its participant reports its end. The same end again changes nothing.

    Raises:
        InvalidRequestError, RequestTooLargeError: the report says neither succeed nor failed, or its result
            cannot be read.
        StatusConflictError: it has ended in another way (`wanted="submit"`).
    """
    report = request.req_extra
    status = _reported_status(report.get("status", ""), where="req_extra.status of a workflow's submit")
    result = report.get("result", "")
    if len(result) > PAYLOADS_AT_MOST * limits.max_payload_bytes:
        raise RequestTooLargeError(
            f"the result of {workflow.gid} has {len(result)} characters:"
            f" at most {PAYLOADS_AT_MOST} times max_payload_bytes are allowed"
        )
    _check_base64(result)
    if workflow.status is status:
        return workflow
    if workflow.status is not Status.PREPARED:
        raise StatusConflictError(workflow.gid, status=workflow.status, wanted="submit", pattern=workflow.pattern)
    return workflow.replace(
        status=status,
        result=result,
        rollback_reason=report.get("rollback_reason", "")[:REASON_LENGTH],
        updated_us=workflow.updated_at(now_us),
        finished_us=now_us,
        due_us=None,
    )


def _check_base64(result: str) -> None:
    """Refuse a result that nobody who asks for it again could read."""
    try:
        b64decode(result, validate=True)
    except ValueError as error:
        raise InvalidRequestError(f"req_extra.result of a workflow's submit is not base64: {error}") from error


def _reported_status(word: str, *, where: str) -> Status:
    if word not in (Status.SUCCEEDED, Status.FAILED):
        raise InvalidRequestError(
            f"{where} is {word[:40]!r}: say {Status.SUCCEEDED.value!r} or {Status.FAILED.value!r}"
        )
    return Status(word)
