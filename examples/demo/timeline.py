"""What happened to one global transaction, in order: every call, every change of status, everything the demo did."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from rich.text import Text

from examples.demo.record import Call, Caller, Record
from txcoord_sdk import Outcome, Pattern, Status
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
    Status.PREPARED: "open, and on disk",
    Status.SUBMITTED: "accepted, and on disk",
    Status.ABORTING: "it turns round, and undoes what was done",
    Status.SUCCEEDED: "all is done",
    Status.FAILED: "all is undone",
}

_MEANINGS_OF = {
    (Pattern.TCC, Status.PREPARED): "open, and on disk: now the tries",
    (Pattern.TCC, Status.SUBMITTED): "all tries have succeeded: now the confirms",
    (Pattern.XA, Status.PREPARED): "open, and on disk: now the databases are to prepare",
    (Pattern.XA, Status.SUBMITTED): "all have prepared: now they commit",
    (Pattern.MSG, Status.PREPARED): "the message is on disk: now the local transaction",
    (Pattern.MSG, Status.SUBMITTED): "the message is to be delivered, whatever happens",
    (Pattern.MSG, Status.SUCCEEDED): "all is delivered",
    (Pattern.MSG, Status.FAILED): "nothing more is sent",
    (Pattern.WORKFLOW, Status.PREPARED): "begun, and on disk: now the function runs, step by step",
}

_WITH_REASON = {
    (Pattern.TCC, Status.ABORTING),
    (Pattern.XA, Status.ABORTING),
    (Pattern.MSG, Status.FAILED),
    (Pattern.WORKFLOW, Status.FAILED),
}
"""Where the reason is not among the coordinator's own calls."""

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


def lines(record: Record, *, happened: Sequence[Event], initiator: str) -> Iterator[Text]:
    """Show all of it, times relative to what came first."""
    events: list[Event | Call] = [*happened, *_statuses(record), *record.calls]
    events.sort(key=lambda event: event.at)
    yield _header()
    for event in events:
        time = Text(f"{(event.at - events[0].at).total_seconds():+.3f}s".rjust(_TIME - 2) + "  ", style="dim")
        match event:
            case Event():
                yield from _shown(time, event)
            case Call():
                yield from _shown_call(time, event, initiator)


def _statuses(record: Record) -> Iterator[Event]:
    pattern, reason = record.transaction.pattern, record.transaction.reason
    for status, at in record.statuses.items():
        text = f"{status}: {_MEANINGS_OF.get((pattern, status), _MEANINGS[status])}"
        if (pattern, status) in _WITH_REASON and reason:
            text += f", for {reason}"
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


def _shown_call(time: Text, call: Call, initiator: str) -> Iterator[Text]:
    attempt = call.attempt
    note = _note(call, initiator)
    line = Text.assemble(
        time,
        (call.who.ljust(_WHO), "dim"),
        call.op.ljust(_OP),
        call.path.ljust(_PATH),
        (attempt.outcome.value.ljust(_OUTCOME), _STYLES[attempt.outcome]),
        str(attempt.code or "-").ljust(_CODE),
        (f"{attempt.duration_ms:.0f} ms" if call.caller is Caller.COORDINATOR else "").rjust(_TOOK - 2) + "  ",
        note if len(note) <= _NOTE else "",
    )
    line.rstrip()
    yield line
    if len(note) > _NOTE:
        for piece in textwrap.wrap(note, WIDTH - _TIME - _WHO):
            yield Text(" " * (_TIME + _WHO) + piece, style="dim")


def _note(call: Call, initiator: str) -> str:
    if call.passage is not None:
        return _PASSAGES[call.passage]
    match call.caller:
        case Caller.COORDINATOR:
            return _said(call.attempt.detail)
        case Caller.INITIATOR:
            return f"(by {initiator})"
        case Caller.LOST:
            # A resume that is answered once the workflow has ended is of no interest any more.
            return "" if call.op == "resume" else "(not on record)"
        case Caller.NOBODY:
            return ""
        case unknown:
            assert_never(unknown)


def _said(detail: str) -> str:
    """What the answer says, without its JSON."""
    try:
        answer = json.loads(detail)
    except ValueError:
        return detail
    if not isinstance(answer, dict):
        return detail
    if "barrier" in answer:
        return _PASSAGES[Passage(answer["barrier"])]
    if answer == {"dtm_result": "SUCCESS"}:
        return ""
    return str(answer.get("message", detail))
