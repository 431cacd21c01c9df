"""What the HTTP API answers: DTM's outcome mapping, and one table for errors.

A client of DTM looks at the status and searches the body for the words of
`ResultWord`; a body of status 200 must therefore never contain FAILURE by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from txcoord.api.views import encode
from txcoord.errors import (
    InvalidRequestError,
    LeaseLostError,
    OverloadedError,
    RequestTooLargeError,
    SchemaError,
    StatusConflictError,
    StoreUnavailableError,
    TransactionNotFoundError,
    TxcoordError,
)
from txcoord.model import Status
from txcoord.protocol import API_BASE, RESULT_KEY, STATUS_FAILURE, STATUS_ONGOING, ResultWord
from txcoord.request import SubmitResult

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Final = b"application/json; charset=utf-8"
TEXT: Final = b"text/plain; charset=utf-8"

RETRY_AFTER_S: Final = 1


class Answer(Struct, frozen=True, gc=False):
    """One HTTP response, ready to be sent."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: Headers = ()


def ok(value: Mapping[str, object]) -> Answer:
    return Answer(200, encode(value))


def text(status: int, body: str) -> Answer:
    return Answer(status, body.encode(), TEXT)


def _message(status: int, message: str, headers: Headers = ()) -> Answer:
    return Answer(status, encode({"message": message}), JSON, headers)


SUCCESS: Final = Answer(200, encode({RESULT_KEY: ResultWord.SUCCESS}))
NOT_FOUND: Final = text(404, "404 page not found")


def failure(message: str) -> Answer:
    """Answer a definite failure: 409, its message ending with the word FAILURE once."""
    return Answer(STATUS_FAILURE, encode({RESULT_KEY: ResultWord.FAILURE, "message": ending_in_failure(message)}))


def ongoing(message: str) -> Answer:
    return Answer(STATUS_ONGOING, encode({RESULT_KEY: ResultWord.ONGOING, "message": message}))


def ending_in_failure(message: str) -> str:
    """Let a message end with FAILURE exactly once, however often it does already."""
    message = message.rstrip()
    while message.endswith(ResultWord.FAILURE):
        message = message.removesuffix(ResultWord.FAILURE).rstrip()
    return f"{message} {ResultWord.FAILURE}".lstrip()


# -- results of submit and abort ------------------------------------------------------


def submitted(gid: str, result: SubmitResult) -> Answer:
    """Say how a submit went. 409 is kept for what is, or is being, rolled back."""
    if not result.waited or result.status is Status.SUCCEEDED:
        return SUCCESS
    if result.status in (Status.ABORTING, Status.FAILED):
        return failure(result.reason or f"{gid} is rolled back")
    return ongoing(_still_running(gid, result))


def aborted(gid: str, result: SubmitResult) -> Answer:
    """Say how an abort went: rolled back is what was asked for."""
    if not result.waited or result.status is Status.FAILED:
        return SUCCESS
    return ongoing(_still_running(gid, result))


def _still_running(gid: str, result: SubmitResult) -> str:
    because = f" ({result.reason})" if result.reason else ""
    return f"{gid} is {result.status} and goes on by itself{because}; ask {API_BASE}/query?gid={gid} how it ends"


# -- errors ---------------------------------------------------------------------------


def _conflict(error: StatusConflictError) -> Answer:
    sentence = _CONFLICT_TEXTS.get(error.wanted)
    if sentence is None:
        return failure(str(error))
    return failure(sentence.format(gid=error.gid, status=error.status.value, pattern=error.pattern.value))


# DTM's sentences, spelling included: clients compare them.
_CONFLICT_TEXTS: Final[Mapping[str, str]] = {
    "submit": "current status '{status}', cannot sumbmit.",
    "prepare": "current status '{status}', cannot prepare.",
    "register": "no trans with gid: {gid} status: prepared found",
    "abort": "trans type: '{pattern}' current status '{status}', cannot abort.",
    "force stop": "global transaction force stop error. status: {status}. error:",
}


def _later(error: TxcoordError) -> Answer:
    return _message(503, str(error), ((b"retry-after", b"%d" % RETRY_AFTER_S),))


def _with_status(status: int) -> Callable[[TxcoordError], Answer]:
    return lambda error: _message(status, str(error))


# A row for each class of `txcoord.errors` that can be raised; a test compares the two.
ERROR_ANSWERS: Final[Mapping[type, Callable[..., Answer]]] = {
    InvalidRequestError: _with_status(400),
    RequestTooLargeError: _with_status(413),
    TransactionNotFoundError: _with_status(404),
    StatusConflictError: _conflict,
    StoreUnavailableError: _later,
    OverloadedError: _later,
    # An operator has to act; for the client it is a server that is not ready.
    SchemaError: _later,
    # Should never get out of the engine. If it does, another coordinator goes on with it.
    LeaseLostError: _later,
}


def of_error(error: Exception) -> Answer | None:
    """Answer an error that callers can meet; None: it is not one of these, but a bug."""
    for kind in type(error).__mro__:
        answer = ERROR_ANSWERS.get(kind)
        if answer is not None:
            return answer(error)
    return None


def of_incident(incident: str) -> Answer:
    return _message(500, f"something unexpected happened here; the server's log has it as incident {incident}")
