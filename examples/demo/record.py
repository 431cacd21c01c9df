"""Everything that is on record of one global transaction: at the coordinator, and in the services' own logs."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qs, urlsplit

from examples.demo.shop import Shop
from txcoord_sdk import Attempt, Op, OpStatus, Outcome, Pattern, Status, Transaction
from txcoord_sdk.barrier import Passage

_LOG_PATIENCE_S = 5.0

_ACCESS = re.compile(r'^(\S+ \S+) INFO uvicorn\.access: \S+ - "\w+ (\S+) HTTP/1\.1" (\d+)$')
_BARRIER = re.compile(r"barrier \d+ of \w+ (\S+), branch (\S+), (\w+): left out as (?:an? )?([\w ]+)")

_ALWAYS_PREPARED = {Pattern.TCC, Pattern.XA, Pattern.WORKFLOW}

_LEFT_OUT = {
    "duplicate": Passage.DUPLICATE,
    "empty compensation": Passage.EMPTY,
    "suspended": Passage.SUSPENDED,
}
"""The barrier's words in a service's log."""

_OUTCOMES = {200: Outcome.SUCCESS, 409: Outcome.FAILURE, 425: Outcome.ONGOING}

_QUESTIONS = {"check_back": "msg", "resume": "resume"}
"""The coordinator's own calls of the initiator, as the query names them, and their ops."""


class Caller(StrEnum):
    """Who called, and so who has it on record."""

    COORDINATOR = "coordinator"
    INITIATOR = "initiator"
    """Only the log of the service that was called tells."""
    NOBODY = "nobody"
    """A step that the initiator took by itself; the coordinator has its result."""
    LOST = "lost"
    """The coordinator, as the service's log tells; it has nothing of it on record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a branch operation; `attempt` is what came of it."""

    who: str
    """The service that was called."""
    op: str
    branch_id: str
    path: str
    attempt: Attempt
    caller: Caller
    passage: Passage | None = None
    """What the barrier did, where it is only in the service's log."""

    @property
    def at(self) -> datetime:
        return self.attempt.at


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One global transaction, as it has ended."""

    transaction: Transaction
    calls: Sequence[Call]
    statuses: Mapping[Status, datetime]
    """When it became what."""


def record_of(shop: Shop, gid: str, *, initiator: str) -> Record:
    """Gather it, from those who have written it down."""
    transaction = shop.coordinator.query(gid)
    shown = shop.ask("coordinator", "GET", f"/api/dtmsvr/query?gid={gid}").json()["transaction"]
    calls = [*_calls_of(shop, transaction), *_questions(shop, shown)]
    calls += _besides(calls, list(_calls_in_logs(shop, transaction)))
    calls += _own_steps(transaction, calls, initiator)
    was_prepared = transaction.pattern in _ALWAYS_PREPARED or bool(shown.get("query_prepared"))
    return Record(transaction=transaction, calls=calls, statuses=_statuses(shop, transaction, was_prepared))


def _besides(recorded: Sequence[Call], in_logs: Sequence[Call]) -> list[Call]:
    """Those that the coordinator has not on record: not its own, or lost with it, so that they came first."""
    on_record = Counter((call.branch_id, call.op, call.attempt.code) for call in recorded)
    others = []
    for call in sorted(in_logs, key=lambda call: call.at, reverse=True):
        key = (call.branch_id, call.op, call.attempt.code)
        if on_record[key]:
            on_record[key] -= 1
        else:
            others.append(call)
    return others


def _own_steps(transaction: Transaction, calls: Sequence[Call], initiator: str) -> Iterator[Call]:
    """Steps of a workflow for which nobody was called."""
    if transaction.pattern is not Pattern.WORKFLOW:
        return
    called = {(call.branch_id, call.op) for call in calls}
    for branch in transaction.branches:
        if (branch.branch_id, branch.op) not in called and branch.finished_at is not None:
            outcome = Outcome.FAILURE if branch.status is OpStatus.FAILED else Outcome.SUCCESS
            yield Call(
                who=initiator,
                op=branch.op,
                branch_id=branch.branch_id,
                path=f"its own branch {branch.branch_id}",
                attempt=Attempt(at=branch.finished_at, outcome=outcome),
                caller=Caller.NOBODY,
            )


def _calls_of(shop: Shop, transaction: Transaction) -> Iterator[Call]:
    for branch in transaction.branches:
        for attempt in branch.attempts:
            yield Call(
                who=shop.service_at(branch.url),
                op=branch.op,
                branch_id=branch.branch_id,
                path=urlsplit(branch.url).path,
                attempt=attempt,
                caller=Caller.COORDINATOR,
            )


def _questions(shop: Shop, shown: Mapping[str, Any]) -> Iterator[Call]:
    for name, op in _QUESTIONS.items():
        for attempt in shown.get(name, {}).get("attempts", ()):
            yield Call(
                who=shop.service_at(shown["query_prepared"]),
                op=op,
                branch_id="00",
                path=urlsplit(shown["query_prepared"]).path,
                attempt=Attempt(
                    at=datetime.fromisoformat(attempt["at"]),
                    outcome=Outcome(attempt["outcome"]),
                    duration_ms=attempt.get("duration_ms", 0),
                    code=attempt.get("code", 0),
                    detail=attempt.get("detail", ""),
                ),
                caller=Caller.COORDINATOR,
            )


def _calls_in_logs(shop: Shop, transaction: Transaction) -> Iterator[Call]:
    for name in shop.services:
        left_out: dict[tuple[str, ...], Passage] = {}
        for line in shop.log_lines(name):
            if barrier := _BARRIER.search(line):
                gid, branch_id, op, why = barrier.groups()
                left_out[gid, branch_id, op] = _LEFT_OUT[why]
            elif access := _ACCESS.match(line):
                at, target, code = access.groups()
                url = urlsplit(target)
                facts = {key: values[0] for key, values in parse_qs(url.query).items()}
                if facts.get("gid") == transaction.gid and {"branch_id", "op"} <= facts.keys():
                    # A resume names the workflow where others have the op.
                    is_resume = facts["branch_id"] == "00" and transaction.pattern is Pattern.WORKFLOW
                    op = "resume" if is_resume else facts["op"]
                    yield Call(
                        who=name,
                        op=op,
                        branch_id=facts["branch_id"],
                        path=url.path,
                        attempt=Attempt(
                            at=datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").astimezone(),
                            outcome=_OUTCOMES.get(int(code), Outcome.UNKNOWN),
                            code=int(code),
                        ),
                        caller=_caller(transaction.pattern, op),
                        passage=left_out.pop((transaction.gid, facts["branch_id"], op), None),
                    )


def _caller(pattern: Pattern, op: str) -> Caller:
    match pattern, op:
        case (Pattern.TCC, Op.TRY) | (Pattern.XA, Op.ACTION):
            return Caller.INITIATOR
        case (Pattern.WORKFLOW, _) if op != "resume":
            return Caller.INITIATOR
        case _:
            return Caller.LOST


def _statuses(shop: Shop, transaction: Transaction, was_prepared: bool) -> dict[Status, datetime]:
    assert transaction.created_at is not None, "the coordinator tells when each was created"
    found = {
        Status(str(facts["status"])): datetime.fromisoformat(str(facts["time"]))
        for facts in _changes(shop, transaction)
    }
    # Its record is more exact, and a coordinator that was killed has not written all of its log.
    found[Status.PREPARED if was_prepared else Status.SUBMITTED] = transaction.created_at
    for status, at in (
        (Status.SUCCEEDED, transaction.succeeded_at),
        (Status.FAILED, transaction.failed_at),
    ):
        if at is not None:
            found[status] = at
    return found


def _changes(shop: Shop, transaction: Transaction) -> list[dict[str, Any]]:
    give_up_at = time.monotonic() + _LOG_PATIENCE_S
    while True:
        lines = map(_json_object, shop.log_lines("coordinator"))
        changes = [facts for facts in lines if facts.get("event") == "status" and facts.get("gid") == transaction.gid]
        # The log is written a moment later.
        is_whole = any(facts["status"] == transaction.status for facts in changes)
        if is_whole or time.monotonic() > give_up_at:
            return changes
        time.sleep(0.05)


def _json_object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
