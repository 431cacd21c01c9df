"""What all calls that travel over HTTP share: headers, and answers that cannot be read whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from random import Random

from txcoord.dispatch.base import BranchRequest, CallResult
from txcoord.dispatch.base_dispatcher import BaseDispatcher
from txcoord.dispatch.client import HttpClient
from txcoord.dispatch.connection import Answer
from txcoord.dispatch.headers import DEFAULT_HEADERS, HeaderBlock, make_headers
from txcoord.dispatch.settings import DispatchSettings
from txcoord.model import Outcome
from txcoord.outcome import clean, describe
from txcoord.url import Url

_LONGEST_CACHED = 4096


class OverHttp(BaseDispatcher):
    """Base of the dispatchers over HTTP. Belongs to the event loop of its first call.

    Those that are given the same `client` share its connections, limits and breakers.

    Raises:
        ValueError: on construction, when `tls_ca_file` cannot be read.
    """

    def __init__(
        self,
        settings: DispatchSettings = DispatchSettings(),  # noqa: B008 - frozen
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        client: HttpClient | None = None,
    ) -> None:
        super().__init__(settings, clock)
        self._client = client or HttpClient(settings, clock=clock, random=random or Random())
        self._headers: dict[tuple[object, ...], HeaderBlock] = {}

    async def close(self) -> None:
        """Close all connections of the client. Calls under way end as unknown."""
        await self._client.close()

    def _headers_for(self, request: BranchRequest, url: Url) -> HeaderBlock:
        """Raises `BadHeaderError`."""
        if request.headers or url.authorization:
            return self._cached_headers(request.headers, url.authorization)
        return DEFAULT_HEADERS

    def _cached_headers(self, headers: Mapping[str, str], authorization: str) -> HeaderBlock:
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
            duration_us=self._elapsed_us(started),
        )
