"""Workflows for tests, and what their participants report."""

from __future__ import annotations

import json
from base64 import b64encode

from tests.sagas import NOON_US
from txcoord.model import GlobalTransaction
from txcoord.request import BranchRegistration, Limits, TransRequest
from txcoord.workflow.request import build_workflow

NAME = "order"
RESUME_URL = "http://p/resume"
INTERVAL_S = 10.0


def opening(gid: str = "g1", *, name: str = NAME, data: bytes = b"input", **more: object) -> TransRequest:
    """What a participant opens a workflow with."""
    plan = {"name": name, "data": b64encode(data).decode()}
    fields: dict[str, object] = {
        "gid": gid,
        "trans_type": "workflow",
        "query_prepared": RESUME_URL,
        "custom_data": json.dumps(plan),
    }
    return TransRequest(**(fields | more))  # type: ignore[arg-type]


def make_workflow(
    *, limits: Limits | None = None, now_us: int = NOON_US, interval_s: float = INTERVAL_S, **more: object
) -> GlobalTransaction:
    request = opening(**more)  # type: ignore[arg-type]
    return build_workflow(request, limits or Limits(), now_us=now_us, interval_s=interval_s)


def step(branch_id: str = "01", op: str = "action", *, gid: str = "g1", **more: object) -> BranchRegistration:
    """What a participant reports of a step that has succeeded."""
    fields: dict[str, object] = {
        "gid": gid,
        "trans_type": "workflow",
        "branch_id": branch_id,
        "op": op,
        "status": "succeed",
        "data": f"result of {branch_id}".encode(),
    }
    return BranchRegistration(**(fields | more))  # type: ignore[arg-type]


def report(status: str = "succeed", *, gid: str = "g1", result: bytes = b"done", reason: str = "") -> TransRequest:
    """What a participant reports in the end."""
    extra = {"status": status, "result": b64encode(result).decode(), "rollback_reason": reason}
    return TransRequest(gid=gid, trans_type="workflow", req_extra=extra)
