"""Stored objects as the JSON that DTM's clients read.

Names, order and what is left out when empty are DTM's. Times are RFC 3339, UTC, to the
microsecond; an absent time has no key (the C# client cannot read a null one). Keys of
our own are `attempts`, the latest calls of a branch operation, oldest first, and
`check_back` and `resume`, the same for the question to a message's initiator and for the
request to go on with a workflow.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from txcoord.alert import what_needs_an_operator
from txcoord.model import AT_ONCE, NEVER_US, Attempt, BranchOp, GlobalTransaction, Op, Options, Status
from txcoord.store.base import KeyValue, Stored

JsonObject = dict[str, Any]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)
_encoder: Final = msgspec.json.Encoder()


def encode(value: Mapping[str, Any]) -> bytes:
    """Encode as Go does, which writes <, > and & as escapes (safe inside a page)."""
    text = _encoder.encode(value)
    # They can only stand inside strings: none is a part of JSON's own syntax.
    return text.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")


def rfc3339(instant_us: int) -> str:
    try:
        moment = _EPOCH + timedelta(microseconds=instant_us)
    except OverflowError:
        moment = _LATEST
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def _next_cron_time(tx: GlobalTransaction) -> str | None:
    if tx.due_us is None or tx.due_us == NEVER_US:
        return None
    return rfc3339(tx.updated_us if tx.due_us == AT_ONCE else tx.due_us)


def stored_view(stored: Stored) -> JsonObject:
    """A transaction as it is found in the store."""
    view = transaction_view(stored.tx)
    view["id"] = stored.id
    return {**view, "owner": str(stored.owner)} if stored.owner else view


def transaction_view(tx: GlobalTransaction) -> JsonObject:
    ended = None if tx.finished_us is None else rfc3339(tx.finished_us)
    view = {
        "id": 0,
        "create_time": rfc3339(tx.created_us),
        "update_time": rfc3339(tx.updated_us),
        "gid": tx.gid,
        "trans_type": tx.pattern.value,
        "status": tx.status.value,
        "query_prepared": tx.query_prepared,
        "protocol": tx.protocol,
        "finish_time": ended if tx.status is Status.SUCCEEDED else None,
        "rollback_time": ended if tx.status is Status.FAILED else None,
        "result": tx.result,
        "rollback_reason": tx.rollback_reason,
        "options": _encoder.encode(options_view(tx.options)).decode(),
        "custom_data": tx.custom_data,
        "next_cron_time": _next_cron_time(tx),
        "needs_operator": what_needs_an_operator(tx),
        **_question_view(tx),
    }
    return {**_without_empty(view), "concurrent": tx.options.concurrent}


def options_view(options: Options) -> JsonObject:
    view = {
        "wait_result": options.wait_result,
        "timeout_to_fail": options.timeout_to_fail_s,
        "request_timeout": options.request_timeout_s,
        "retry_interval": options.retry_interval_s,
        "branch_headers": options.branch_headers,
        "retry_limit": options.retry_limit,
    }
    return {**_without_empty(view), "concurrent": options.concurrent}


def branch_views(tx: GlobalTransaction) -> list[JsonObject]:
    return [_branch_view(tx, number, branch) for number, branch in enumerate(shown_branches(tx), start=1)]


def shown_branches(tx: GlobalTransaction) -> list[BranchOp]:
    # The question to the initiator is not a row of DTM's; it is shown with the transaction.
    return [branch for branch in tx.branches if branch.op not in _QUESTIONS]


_QUESTIONS: Final = {Op.MSG: "check_back", Op.RESUME: "resume"}


def _question_view(tx: GlobalTransaction) -> JsonObject:
    for op in tx.branches:
        if op.op in _QUESTIONS and (op.attempts or op.held_off):
            attempts = [attempt_view(attempt) for attempt in op.attempts]
            held_off = {"held_off": op.held_off} if op.held_off else {}
            return {_QUESTIONS[op.op]: {"status": op.status.value, "attempts": attempts, **held_off}}
    return {}


def _branch_view(tx: GlobalTransaction, number: int, branch: BranchOp) -> JsonObject:
    view = {
        # Branch operations have no row number of their own that means anything; their
        # position is as unique as DTM's clients need it.
        "id": number,
        "create_time": rfc3339(tx.created_us),
        "update_time": rfc3339(_updated_us(tx, branch)),
        "gid": tx.gid,
        "url": branch.url,
        "bin_data": b64encode(branch.payload).decode(),
        "branch_id": branch.branch_id,
        "op": branch.op.value,
        "status": branch.status.value,
        "finish_time": None if branch.finished_us is None else rfc3339(branch.finished_us),
        "attempts": [attempt_view(attempt) for attempt in branch.attempts],
        "held_off": branch.held_off,
    }
    return _without_empty(view)


def _updated_us(tx: GlobalTransaction, branch: BranchOp) -> int:
    if branch.finished_us is not None:
        return branch.finished_us
    if branch.attempts:
        return branch.attempts[-1].at_us + branch.attempts[-1].duration_us
    return tx.created_us


def kv_view(document: KeyValue) -> JsonObject:
    return {
        "id": document.id,
        "create_time": rfc3339(document.created_us),
        "update_time": rfc3339(document.updated_us),
        "cat": document.category,
        "k": document.key,
        "v": document.value,
        "version": document.version,
    }


def attempt_view(attempt: Attempt) -> JsonObject:
    return {
        "at": rfc3339(attempt.at_us),
        "duration_ms": round(attempt.duration_us / 1000, 3),
        "outcome": attempt.outcome.value,
        "code": attempt.code,
        "detail": attempt.detail,
    }


def _without_empty(view: JsonObject) -> JsonObject:
    return {key: value for key, value in view.items() if value not in (None, "", 0, False, [], {}) or key == "id"}
