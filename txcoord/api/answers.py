"""What the HTTP API answers: DTM's outcome mapping.

A client of DTM looks at the status and searches the body for the words of
`ResultWord`; a body of status 200 must therefore never contain FAILURE by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from txcoord.api import replies
from txcoord.api.replies import Reply
from txcoord.api.views import encode
from txcoord.protocol import RESULT_KEY, STATUS_FAILURE, STATUS_ONGOING, ResultWord

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Final = b"application/json; charset=utf-8"
TEXT: Final = b"text/plain; charset=utf-8"

_WORDS: Final = {STATUS_FAILURE: ResultWord.FAILURE, STATUS_ONGOING: ResultWord.ONGOING}


class Answer(Struct, frozen=True, gc=False):
    """One HTTP response, ready to be sent."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: Headers = ()


def ok(value: Mapping[str, object]) -> Answer:
    return Answer(200, encode(value))


def ok_with_words(value: Mapping[str, object]) -> Answer:
    """Answer with what participants have said, and the word FAILURE in it written so that no search finds it.

    DTM's Go client takes a workflow whose steps or reason hold it for a request that failed, and would never go on.
    """
    return Answer(200, encode(value).replace(_FAILURE, _FAILURE_ESCAPED))


_FAILURE: Final = ResultWord.FAILURE.encode()
_FAILURE_ESCAPED: Final = b"F\\u0041ILURE"


def text(status: int, body: str) -> Answer:
    return Answer(status, body.encode(), TEXT)


SUCCESS: Final = Answer(200, encode({RESULT_KEY: ResultWord.SUCCESS}))
NOT_FOUND: Final = text(404, "404 page not found")


def of_reply(reply: Reply) -> Answer:
    if reply is replies.SUCCESS:
        return SUCCESS
    word = _WORDS.get(reply.status)
    body = {RESULT_KEY: word, "message": reply.message} if word else {"message": reply.message}
    return Answer(reply.status, encode(body), JSON, headers_of(reply))


def headers_of(reply: Reply) -> Headers:
    return ((b"retry-after", b"%d" % reply.retry_after_s),) if reply.retry_after_s else ()
