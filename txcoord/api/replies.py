"""What the coordinator replies to a request, before it is put into the form of a protocol.

Three words decide for every client of DTM: success, failure (definite), ongoing (not
finished, ask again); anything else is an error with a sentence. One table says
which error comes to which reply; each adapter has its column.
"""

from __future__ import annotations

from collections.abc import Mapping
from secrets import token_hex
from typing import Final

from msgspec import Struct

from txcoord.errors import (
    InvalidRequestError,
    LeaseLostError,
    OverloadedError,
    RequestTooLargeError,
    SchemaError,
    StatusConflictError,
    StoreUnavailableError,
    SubscribedAlreadyError,
    TopicBusyError,
    TopicNotFoundError,
    TransactionNotFoundError,
    TransactionsLockedError,
)
from txcoord.logs import get_logger
from txcoord.model import Status
from txcoord.protocol import (
    API_BASE,
    JSON_RPC_FAILURE,
    JSON_RPC_INTERNAL_ERROR,
    JSON_RPC_ONGOING,
    STATUS_FAILURE,
    STATUS_ONGOING,
    GrpcStatus,
    ResultWord,
)
from txcoord.request import SubmitResult

log = get_logger()

RETRY_AFTER_S: Final = 1


class Reply(Struct, frozen=True, gc=False):
    """What is said, in the numbers of each protocol."""

    status: int
    """HTTP; 409 and 425 are the words FAILURE and ONGOING."""
    code: int = 0
    """JSON-RPC; 0: no error."""
    grpc: GrpcStatus = GrpcStatus.OK
    message: str = ""
    retry_after_s: int = 0


SUCCESS: Final = Reply(200)


def failure(message: str) -> Reply:
    """A definite failure, its message ending with the word FAILURE once."""
    return Reply(STATUS_FAILURE, JSON_RPC_FAILURE, GrpcStatus.ABORTED, ending_in_failure(message))


def ongoing(message: str) -> Reply:
    return Reply(STATUS_ONGOING, JSON_RPC_ONGOING, GrpcStatus.FAILED_PRECONDITION, message)


def ending_in_failure(message: str) -> str:
    """Let a message end with FAILURE exactly once, however often it does already."""
    message = message.rstrip()
    while message.endswith(ResultWord.FAILURE):
        message = message.removesuffix(ResultWord.FAILURE).rstrip()
    return f"{message} {ResultWord.FAILURE}".lstrip()


# -- results of submit and abort ------------------------------------------------------


def submitted(gid: str, result: SubmitResult) -> Reply:
    """Say how a submit went. Failure is kept for what is, or is being, rolled back."""
    if not result.waited or result.status is Status.SUCCEEDED:
        return SUCCESS
    if result.status in (Status.ABORTING, Status.FAILED):
        return failure(result.reason or f"{gid} is rolled back")
    return ongoing(_still_running(gid, result))


def aborted(gid: str, result: SubmitResult) -> Reply:
    """Say how an abort went: rolled back is what was asked for."""
    if not result.waited or result.status is Status.FAILED:
        return SUCCESS
    return ongoing(_still_running(gid, result))


def _still_running(gid: str, result: SubmitResult) -> str:
    because = f" ({result.reason})" if result.reason else ""
    return f"{gid} is {result.status} and goes on by itself{because}; ask {API_BASE}/query?gid={gid} how it ends"


def no_prepared(gid: str) -> Reply:
    """Tell whoever registers a branch that there is no transaction to register it for, in DTM's words."""
    return failure(_CONFLICT_TEXTS["register"].format(gid=gid))


# -- errors ---------------------------------------------------------------------------


class ErrorRow(Struct, frozen=True):
    """What an error comes to, in the numbers of each protocol."""

    status: int
    code: int
    grpc: GrpcStatus
    retry_after_s: int = 0


_LATER: Final = ErrorRow(503, JSON_RPC_INTERNAL_ERROR, GrpcStatus.UNAVAILABLE, RETRY_AFTER_S)

# A row for each class of `txcoord.errors` that can be raised; a test compares the two.
ERROR_ROWS: Final[Mapping[type, ErrorRow]] = {
    # For JSON-RPC DTM knows failure and "any other error", and its clients no third.
    InvalidRequestError: ErrorRow(400, JSON_RPC_INTERNAL_ERROR, GrpcStatus.INVALID_ARGUMENT),
    RequestTooLargeError: ErrorRow(413, JSON_RPC_INTERNAL_ERROR, GrpcStatus.RESOURCE_EXHAUSTED),
    TransactionNotFoundError: ErrorRow(404, JSON_RPC_INTERNAL_ERROR, GrpcStatus.NOT_FOUND),
    StatusConflictError: ErrorRow(STATUS_FAILURE, JSON_RPC_FAILURE, GrpcStatus.ABORTED),
    # DTM answers 500 to these three. What repeating does not mend is a failure, the rest is worth another try.
    TopicNotFoundError: ErrorRow(404, JSON_RPC_INTERNAL_ERROR, GrpcStatus.NOT_FOUND),
    SubscribedAlreadyError: ErrorRow(STATUS_FAILURE, JSON_RPC_FAILURE, GrpcStatus.ABORTED),
    TopicBusyError: _LATER,
    StoreUnavailableError: _LATER,
    TransactionsLockedError: _LATER,
    OverloadedError: _LATER,
    # An operator has to act; for the client it is a server that is not ready.
    SchemaError: _LATER,
    # Should never get out of the engine. If it does, another coordinator goes on with it.
    LeaseLostError: _LATER,
}

# DTM's sentences, spelling included: clients compare them.
_CONFLICT_TEXTS: Final[Mapping[str, str]] = {
    "submit": "current status '{status}', cannot sumbmit.",
    "prepare": "current status '{status}', cannot prepare.",
    "register": "no trans with gid: {gid} status: prepared found",
    "abort": "trans type: '{pattern}' current status '{status}', cannot abort.",
    "force stop": "global transaction force stop error. status: {status}. error:",
}


def of_error(error: Exception) -> Reply | None:
    """Reply to an error that callers can meet; None: it is not one of these, but a bug."""
    for kind in type(error).__mro__:
        row = ERROR_ROWS.get(kind)
        if row is not None:
            return Reply(row.status, row.code, row.grpc, _sentence(error), row.retry_after_s)
    return None


def _sentence(error: Exception) -> str:
    if isinstance(error, SubscribedAlreadyError):
        return ending_in_failure(str(error))
    if not isinstance(error, StatusConflictError):
        return str(error)
    text = _CONFLICT_TEXTS.get(error.wanted)
    if text is None:
        return ending_in_failure(str(error))
    return ending_in_failure(text.format(gid=error.gid, status=error.status.value, pattern=error.pattern.value))


def of_bug(error: Exception, *, where: str) -> Reply:
    """The last resort: the client gets a number, the log the story, and the server lives."""
    incident = token_hex(4)
    log.error("unexpected error", incident=incident, path=where[:200], exc_info=error)
    return Reply(
        500,
        JSON_RPC_INTERNAL_ERROR,
        GrpcStatus.INTERNAL,
        f"something unexpected happened here; the server's log has it as incident {incident}",
    )
