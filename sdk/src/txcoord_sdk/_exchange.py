"""One exchange with a coordinator: how it is sent and repeated, and what its answer says. No I/O.

The rules speak of requests and answers as the HTTP API has them; a `Wire` writes and reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import NoReturn, TypeVar

import msgspec

from txcoord.protocol import API_BASE, ResultWord
from txcoord.request import without_credentials
from txcoord_sdk._calls import AnyReply, Call, Flow, HttpAnswer, HttpWire, NoAnswer, Pause, Reply, Wire
from txcoord_sdk._checks import GRPC_SCHEMES, Fields, base_url
from txcoord_sdk.errors import CoordinatorUnreachableError, RequestRefusedError, TransactionNotFoundError
from txcoord_sdk.results import MessageAnswer, ResultAnswer

MAX_PAUSE_S = 2.0
MAX_DOUBLINGS = 20
MAX_RETRY_AFTER_S = 10.0
MIN_CALL_S = 1.0
"""Even at the end of a wait a call gets this long: one cut off at once would tell nothing."""
EXCERPT = 200

T = TypeVar("T")


class Exchanges:
    """Exchanges with one coordinator; the operations are built on them."""

    def __init__(
        self,
        *,
        url: str,
        timeout_s: float,
        attempts: int,
        backoff_s: float,
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be 1 or more, not {attempts}")
        self.url = base_url(url)
        self._shown_url = without_credentials(self.url)
        self.timeout_s = timeout_s
        self._wire = _wire_of(self.url)
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._clock = clock
        self._random = random

    @property
    def speaks_grpc(self) -> bool:
        """Whether the coordinator is spoken to over gRPC: it then takes all URLs without a scheme for gRPC's."""
        return self.url.startswith(GRPC_SCHEMES)

    def _exchange(
        self, gid: str, call: Call, deadline: float | None = None, *, attempts: int | None = None
    ) -> Flow[HttpAnswer]:
        """Send a request that may be repeated, until it is answered.

        What bounds the repetition is the deadline, if there is one, or else the attempts.
        """
        attempt = 0
        while True:
            attempt += 1
            left_s = math.inf if deadline is None else deadline - self._clock()
            reply = yield from self._send(replace(call, timeout_s=min(call.timeout_s, max(left_s, MIN_CALL_S))))
            if isinstance(reply, HttpAnswer) and not is_to_repeat(reply):
                return reply
            if deadline is None:
                if attempt >= (attempts or self._attempts):
                    self._unreachable(gid, reply)
                yield from pause(self._delay(attempt, reply))
            else:
                left_s = deadline - self._clock()
                if left_s <= 0:
                    self._unreachable(gid, reply)
                yield from pause(min(left_s, self._delay(attempt, reply)))

    def _delay(self, attempt: int, reply: Reply) -> float:
        """Grow with each attempt; partly random, so that clients cut off together do not return together."""
        asked_s = 0.0
        if isinstance(reply, HttpAnswer) and reply.retry_after.isascii() and reply.retry_after.isdigit():
            asked_s = min(float(reply.retry_after), MAX_RETRY_AFTER_S)
        own_s = min(self._backoff_s * 2.0 ** min(attempt - 1, MAX_DOUBLINGS), MAX_PAUSE_S)
        return max(asked_s, own_s * self._random.uniform(0.5, 1))

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Fields | None = None,
        timeout_s: float | None = None,
    ) -> Call:
        return self._wire.call(
            method,
            f"{API_BASE}{path}",
            query=query or {},
            body=body,
            timeout_s=self.timeout_s if timeout_s is None else timeout_s,
        )

    def _post(self, path: str, gid: str) -> Call:
        return self._call("POST", path, body={"gid": gid})

    def _send(self, call: Call) -> Flow[Reply]:
        return self._wire.answer(call, (yield from ask(call)))

    def _decode(self, gid: str, answer: HttpAnswer, type_: type[T]) -> T:
        if answer.status != 200:
            self._refused(gid, answer)
        try:
            return msgspec.json.decode(answer.body, type=type_)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            reason = f"{self._shown_url} answered 200, but not as a coordinator does: {error}"
            raise CoordinatorUnreachableError(gid, None, reason) from error

    def _check_success(self, gid: str, answer: HttpAnswer) -> None:
        # Status 200 alone proves nothing: many a web server answers it to anything.
        word = self._decode(gid, answer, ResultAnswer).dtm_result
        if word != ResultWord.SUCCESS:
            raise CoordinatorUnreachableError(gid, None, f"{self._shown_url} answered 200 with the result {word!r}")

    def _refused(self, gid: str, answer: HttpAnswer) -> NoReturn:
        if _says_not_found(answer, gid):
            not_found(gid)
        if answer.status == 404 or not 400 <= answer.status < 500:
            reason = f"{self._shown_url} does not answer as a coordinator: status {answer.status}, {text_of(answer)}"
            raise CoordinatorUnreachableError(gid, None, reason)
        raise RequestRefusedError(gid, None, text_of(answer))

    def _unreachable(self, gid: str, reply: Reply) -> NoReturn:
        if isinstance(reply, NoAnswer):
            reason = f"no answer from {self._shown_url} ({reply.detail})"
        else:
            reason = f"{self._shown_url} answered {reply.status}, {text_of(reply)}"
        raise CoordinatorUnreachableError(gid, None, reason)


def _wire_of(url: str) -> Wire:
    if not url.startswith(GRPC_SCHEMES):
        return HttpWire(url)
    # Only now: whoever speaks HTTP needs no protobuf.
    from txcoord_sdk._grpc_wire import GrpcWire

    return GrpcWire(url)


def ask(call: Call) -> Flow[AnyReply]:
    reply = yield call
    assert reply is not None, "a call is answered with a reply"
    return reply


def pause(seconds: float) -> Flow[None]:
    yield Pause(seconds)


def is_to_repeat(answer: HttpAnswer) -> bool:
    return answer.status == 429 or (answer.status >= 500 and not _is_dtm_not_found(answer))


def may_have_arrived(reply: Reply) -> bool:
    if isinstance(reply, NoAnswer):
        return reply.may_have_arrived
    return reply.status not in (429, 503)


def _says_not_found(answer: HttpAnswer, gid: str) -> bool:
    # A 404 that does not name the gid is another server's: the URL leads elsewhere.
    if answer.status == 404:
        return bool(gid) and gid in (message_of(answer) or "")
    return _is_dtm_not_found(answer)


def _is_dtm_not_found(answer: HttpAnswer) -> bool:
    return answer.status == 500 and (message_of(answer) or "").startswith("no TransGlobal with gid")


def not_found(gid: str) -> NoReturn:
    raise TransactionNotFoundError(gid, None, "no global transaction has this gid")


def message_of(answer: HttpAnswer) -> str | None:
    try:
        return msgspec.json.decode(answer.body, type=MessageAnswer).message
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def text_of(answer: HttpAnswer) -> str:
    """Give an answer's message, or else a piece of it, for people."""
    text = message_of(answer) or answer.body[:EXCERPT].decode(errors="replace")
    return text or "no further word"
