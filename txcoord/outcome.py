"""What an answer means. HTTP: the status first, then one word at one place of a 200's body. gRPC: the status.

DTM takes FAILURE or ONGOING anywhere in the text of any answer (`anywhere`): there a 500
that shows a stack trace with the word is a definite failure, and so is a success whose
note quotes it. Here nothing is guessed from text.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

from txcoord.model import Outcome
from txcoord.protocol import STATUS_FAILURE, STATUS_ONGOING, GrpcStatus, ResultWord

_BY_WORD = {ResultWord.FAILURE.value: Outcome.FAILURE, ResultWord.ONGOING.value: Outcome.ONGOING}
_FAILURE = ResultWord.FAILURE.value.encode()
_ONGOING = ResultWord.ONGOING.value.encode()
_BOM = b"\xef\xbb\xbf"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _Answer(Struct):
    dtm_result: object = None


_decode_object = msgspec.json.Decoder(_Answer).decode
_decode_text = msgspec.json.Decoder(str).decode


def understand(status: int, body: bytes, *, anywhere: bool = False) -> Outcome:
    """Say what a whole answer means; `UNKNOWN` is retried.

    409 is failure and 425 is ongoing, whatever the body. 200 is success unless its body is
    the word FAILURE or ONGOING (bare, or as a JSON string), or a JSON object whose own
    `dtm_result` is that word. Everything else is unknown.
    """
    if anywhere:
        return _understand_as_dtm(status, body)
    if status == 200:
        # Almost every body is passed here. An escape could spell the word, or its key.
        if _FAILURE not in body and _ONGOING not in body and b"\\u00" not in body:
            return Outcome.SUCCESS
        return _understand_body(body)
    if status == STATUS_FAILURE:
        return Outcome.FAILURE
    if status == STATUS_ONGOING:
        return Outcome.ONGOING
    return Outcome.UNKNOWN


def _understand_body(body: bytes) -> Outcome:
    body = body.removeprefix(_BOM).strip()
    if body == _FAILURE:
        return Outcome.FAILURE
    if body == _ONGOING:
        return Outcome.ONGOING
    try:
        if body.startswith(b"{"):
            word = _decode_object(body).dtm_result
        elif body.startswith(b'"'):
            word = _decode_text(body)
        else:
            return Outcome.SUCCESS
    except msgspec.DecodeError:
        return Outcome.SUCCESS
    except RecursionError:
        # Valid for all we know, but too deeply nested to be looked at.
        return Outcome.UNKNOWN
    return _BY_WORD.get(word, Outcome.SUCCESS) if isinstance(word, str) else Outcome.SUCCESS


def _understand_as_dtm(status: int, body: bytes) -> Outcome:
    if status == STATUS_ONGOING or _ONGOING in body:
        return Outcome.ONGOING
    if status == STATUS_FAILURE or _FAILURE in body:
        return Outcome.FAILURE
    return Outcome.SUCCESS if status == 200 else Outcome.UNKNOWN


def understand_grpc(code: int, message: str) -> Outcome:
    """Say what a gRPC status means; `UNKNOWN` is retried.

    OK is success; ABORTED is failure, unless its message is the word ONGOING (DTM's old clients); FAILED_PRECONDITION
    is ongoing. Everything else is unknown, whatever its message says.
    """
    if code == GrpcStatus.OK:
        return Outcome.SUCCESS
    if code == GrpcStatus.FAILED_PRECONDITION or (code == GrpcStatus.ABORTED and message == ResultWord.ONGOING):
        return Outcome.ONGOING
    return Outcome.FAILURE if code == GrpcStatus.ABORTED else Outcome.UNKNOWN


def describe(status: int, body: bytes, outcome: Outcome, *, limit: int) -> str:
    """The `detail` of an answer: the start of the body as sent, after `HTTP 503: ` where it is unknown."""
    if outcome is not Outcome.UNKNOWN:
        return clean(body, limit) if body else ""
    return clean(f"HTTP {status}: ".encode() + body if body else f"HTTP {status}".encode(), limit)


def clean(text: bytes | str, limit: int) -> str:
    """Make valid text of at most `limit` bytes in UTF-8, control characters as spaces."""
    if isinstance(text, str):
        text = text.encode("utf-8", "replace")
    piece = text if len(text) <= limit else text[:limit]
    result = piece.decode("utf-8", "replace")
    if not result.isprintable():
        result = _CONTROL.sub(" ", result)
    if piece.isascii():
        return result
    # A character cut in two, or invalid bytes (which grow to three when replaced).
    if piece is not text and _is_valid_but_cut(piece):
        result = _CONTROL.sub(" ", piece.decode("utf-8", "ignore"))
    return result.encode()[:limit].decode("utf-8", "ignore")


def _is_valid_but_cut(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True
