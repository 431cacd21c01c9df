"""Calls branch operations over HTTP: the form of the request, and the meaning of the answer."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from random import Random
from urllib.parse import quote

from txcoord.dispatch.base import BranchRequest, CallResult
from txcoord.dispatch.client import HttpClient
from txcoord.dispatch.connection import Answer
from txcoord.dispatch.endpoint import NoAnswer
from txcoord.dispatch.headers import DEFAULT_HEADERS, BadHeaderError, HeaderBlock, make_headers
from txcoord.dispatch.settings import DispatchSettings
from txcoord.dispatch.url import BadUrlError
from txcoord.model import MICROSECONDS, Outcome, Pattern
from txcoord.outcome import clean, describe, understand
from txcoord.protocol import QUERY_PARAMETERS

__all__ = ["DispatchSettings", "HttpDispatcher"]

_BRANCH_ID, _GID, _OP, _TRANS_TYPE = (f"{name}=" for name in QUERY_PARAMETERS)
_LONGEST_CACHED = 4096
_is_plain = re.compile(r"[A-Za-z0-9_.~-]*\Z").match


class HttpDispatcher:
    """The HTTP dispatcher (see `base.Dispatcher`). Belongs to the event loop of its first call.

    Raises:
        ValueError: on construction, when `tls_ca_file` cannot be read.
    """

    def __init__(
        self,
        settings: DispatchSettings = DispatchSettings(),  # noqa: B008 - frozen
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._client = HttpClient(settings, clock=clock, random=random or Random())
        self._headers: dict[tuple[object, ...], HeaderBlock] = {}

    async def call(self, request: BranchRequest) -> CallResult:
        """Call one branch operation (see `base.Dispatcher.call`)."""
        now = self._clock()
        try:
            url = self._client.url(request.url)
            if request.headers or url.authorization:
                headers = self._headers_for(request.headers, url.authorization)
            else:
                headers = DEFAULT_HEADERS
        except (BadUrlError, BadHeaderError) as error:
            return self._unknown(f"{error}; the call is repeated all the same", now)

        body = request.payload
        pattern = request.pattern
        gid, branch_id = request.gid, request.branch_id
        target = "".join(
            (
                url.target,
                "&" if url.has_query else "" if url.target[-1] == "?" else "?",
                _BRANCH_ID,
                branch_id if _is_plain(branch_id) else _encode(branch_id),
                "&",
                _GID,
                gid if _is_plain(gid) else _encode(gid),
                "&",
                _OP,
                request.op,
                "&",
                _TRANS_TYPE,
                pattern,
            )
        )
        method = "POST" if body or pattern is Pattern.XA else "GET"
        result = await self._client.fetch(method, url, target, headers, body, now + request.timeout_s, now)

        if isinstance(result, NoAnswer):
            return self._without_answer(result, now)
        status, body = result.status, result.body
        outcome = understand(status, body, anywhere=self._settings.failure_word_anywhere)
        if result.flaw:
            return self._with_flaw(result, outcome, now)
        return CallResult(
            outcome=outcome,
            code=status,
            detail=describe(status, body, outcome, limit=self._settings.detail_bytes),
            duration_us=int((self._clock() - now) * MICROSECONDS),
        )

    async def close(self) -> None:
        """Close all connections. Calls under way end as unknown."""
        await self._client.close()

    def _headers_for(self, headers: Mapping[str, str], authorization: str) -> HeaderBlock:
        key = (authorization, *headers.items())
        block = self._headers.get(key)
        if block is None:
            block = make_headers(headers.items(), authorization)
            if len(block.text) > _LONGEST_CACHED:
                return block
            if len(self._headers) >= self._settings.cached_urls:
                del self._headers[next(iter(self._headers))]
            self._headers[key] = block
        return block

    def _with_flaw(self, answer: Answer, outcome: Outcome, started: float) -> CallResult:
        # A status that decides by itself does so; a success would have to be read whole.
        if outcome is Outcome.SUCCESS:
            outcome = Outcome.UNKNOWN
        if outcome is Outcome.UNKNOWN or not answer.body:
            detail = f"HTTP {answer.status}: {answer.flaw}"
        else:
            detail = describe(answer.status, answer.body, outcome, limit=self._settings.detail_bytes)
        return CallResult(
            outcome=outcome,
            code=answer.status,
            detail=clean(detail, self._settings.detail_bytes),
            duration_us=int((self._clock() - started) * MICROSECONDS),
        )

    def _without_answer(self, result: NoAnswer, started: float) -> CallResult:
        return CallResult(
            outcome=Outcome.UNKNOWN,
            detail=clean(result.detail, self._settings.detail_bytes),
            duration_us=int((self._clock() - started) * MICROSECONDS),
            called=result.called,
            retry_after_s=result.retry_after_s,
        )

    def _unknown(self, detail: str, started: float) -> CallResult:
        return CallResult(
            outcome=Outcome.UNKNOWN,
            detail=clean(detail, self._settings.detail_bytes),
            duration_us=int((self._clock() - started) * MICROSECONDS),
        )


def _encode(value: str) -> str:
    return quote(value, safe="", errors="replace")
