"""What happened to one order, in order: every call, every change of status, everything the demo did."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.text import Text

from txcoord_sdk import Attempt, Branch, Outcome, Pattern, Status, Transaction
from txcoord_sdk.barrier import Passage

WIDTH = 100

_STYLES = {
    Outcome.SUCCESS: "green",
    Outcome.FAILURE: "red",
    Outcome.ONGOING: "cyan",
    Outcome.UNKNOWN: "yellow",
    Status.PREPARED: "bold",
    Status.SUBMITTED: "bold",
    Status.ABORTING: "bold red",
    Status.SUCCEEDED: "bold green",
    Status.FAILED: "bold red",
}

_MEANINGS = {
    Status.PREPARED: "open, and on disk: now the tries",
    Status.SUBMITTED: "accepted, and on disk",
    Status.ABORTING: "it turns round, and undoes what was done",
    Status.SUCCEEDED: "all is done",
    Status.FAILED: "all is undone",
}

_PASSAGES = {
    Passage.RUN: "done",
    Passage.DUPLICATE: "skipped: done before",
    Passage.EMPTY: "nothing to undo",
    Passage.SUSPENDED: "skipped: too late",
}

# Columns, with the gap to the next one.
_TIME = 11
_WHO = 12
_OP = 11
_PATH = 25
_OUTCOME = 8
_CODE = 5
_TOOK = 8
_NOTE = WIDTH - _TIME - _WHO - _OP - _PATH - _OUTCOME - _CODE - _TOOK


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that is not a call: the customer's part, a status, what the demo did."""

    at: datetime
    who: str
    text: str
    style: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEvent:
    """One call of a branch operation, as the coordinator has recorded it."""

    at: datetime
    who: str
    branch: Branch
    attempt: Attempt


def lines(
    transaction: Transaction,
    *,
    happened: Sequence[Event],
    turned_round_at: datetime | None,
    service_at: Callable[[str], str],
) -> Iterator[Text]:
    """Show all of it, times relative to what came first."""
    events: list[Event | CallEvent] = [
        *happened,
        *_statuses(transaction, turned_round_at),
        *(
            CallEvent(at=attempt.at, who=service_at(branch.url), branch=branch, attempt=attempt)
            for branch in transaction.branches
            for attempt in branch.attempts
        ),
    ]
    events.sort(key=lambda event: event.at)
    yield _header()
    for event in events:
        time = Text(f"{(event.at - events[0].at).total_seconds():+.3f}s".rjust(_TIME - 2) + "  ", style="dim")
        match event:
            case Event():
                yield from _shown(time, event)
            case CallEvent():
                yield from _shown_call(time, event)


def _statuses(transaction: Transaction, turned_round_at: datetime | None) -> Iterator[Event]:
    opened = Status.PREPARED if transaction.pattern is Pattern.TCC else Status.SUBMITTED
    moments = {
        opened: transaction.created_at,
        Status.ABORTING: turned_round_at,
        Status.SUCCEEDED: transaction.succeeded_at,
        Status.FAILED: transaction.failed_at,
    }
    for status, at in moments.items():
        if at is not None:
            text = f"{status}: {_MEANINGS[status]}"
            if status is Status.ABORTING and transaction.pattern is Pattern.TCC:
                # What went wrong is a try, which is not among the coordinator's calls.
                text += f", for {transaction.reason}"
            yield Event(at=at, who="coordinator", text=text, style=_STYLES[status])


def _header() -> Text:
    return Text(
        "time".rjust(_TIME - 2)
        + "  "
        + "who".ljust(_WHO)
        + "operation".ljust(_OP)
        + "called".ljust(_PATH)
        + "outcome".ljust(_OUTCOME)
        + "HTTP".ljust(_CODE)
        + "took".rjust(_TOOK - 2)
        + "  "
        + "at the barrier",
        style="dim",
    )


def _shown(time: Text, event: Event) -> Iterator[Text]:
    first, *others = textwrap.wrap(event.text, WIDTH - _TIME - _WHO)
    yield Text.assemble(time, (event.who.ljust(_WHO), "dim"), (first, event.style))
    for other in others:
        yield Text.assemble(" " * (_TIME + _WHO), (other, event.style))


def _shown_call(time: Text, event: CallEvent) -> Iterator[Text]:
    attempt = event.attempt
    note = _note(attempt)
    path = "/" + event.branch.url.split("/", 3)[-1]
    line = Text.assemble(
        time,
        (event.who.ljust(_WHO), "dim"),
        event.branch.op.ljust(_OP),
        path.ljust(_PATH),
        (attempt.outcome.value.ljust(_OUTCOME), _STYLES[attempt.outcome]),
        str(attempt.code or "-").ljust(_CODE),
        f"{attempt.duration_ms:.0f} ms".rjust(_TOOK - 2) + "  ",
        note if len(note) <= _NOTE else "",
    )
    line.rstrip()
    yield line
    if len(note) > _NOTE:
        for piece in textwrap.wrap(note, WIDTH - _TIME - _WHO):
            yield Text(" " * (_TIME + _WHO) + piece, style="dim")


def _note(attempt: Attempt) -> str:
    """What the answer says, without its JSON."""
    try:
        answer = json.loads(attempt.detail)
    except ValueError:
        return attempt.detail
    if not isinstance(answer, dict):
        return attempt.detail
    if "barrier" in answer:
        return _PASSAGES[Passage(answer["barrier"])]
    return str(answer.get("message", attempt.detail))
