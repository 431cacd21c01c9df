"""An HTTP client for short calls to many endpoints: bounded, and cheap enough for the hottest path.

Measured beside it: httpx costs some hundred times the CPU of the participant's answer. What
is checked against httpx (tests/integration/test_http_dispatch_differential.py) is that both
read the same answer from the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from txcoord.dispatch.connection import Answer
from txcoord.dispatch.content import ContentError, decode_content
from txcoord.dispatch.endpoint import Endpoint
from txcoord.dispatch.endpoints import Endpoints
from txcoord.dispatch.headers import HeaderBlock
from txcoord.dispatch.limited import NoAnswer
from txcoord.dispatch.settings import DispatchSettings
from txcoord.dispatch.tls import ParticipantTls
from txcoord.url import BadUrlError, Url, join_url, parse_url

_TO_GET = frozenset((301, 302, 303))
_REDIRECTS = frozenset((*_TO_GET, 307, 308))
_LONGEST_CACHED = 2048


class HttpClient:
    """Sends requests. Belongs to the event loop of its first use."""

    def __init__(
        self,
        settings: DispatchSettings,
        *,
        clock: Callable[[], float],
        random: Random,
        tls: ParticipantTls | None = None,
        watch: Callable[[Iterable[Endpoint]], None] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._urls: dict[str, Url] = {}
        self._endpoints = Endpoints[Endpoint](settings, clock=clock, random=random, watch=watch)
        self._tls = tls or ParticipantTls(settings)

    def url(self, text: str) -> Url:
        """Parse a URL, or take it from the cache. Raises `BadUrlError`."""
        url = self._urls.get(text)
        if url is None:
            url = parse_url(text)
            if len(text) > _LONGEST_CACHED:
                return url
            if len(self._urls) >= self._settings.cached_urls:
                # The oldest goes; one that is still in use is parsed again, which is cheaper
                # than noting each use.
                del self._urls[next(iter(self._urls))]
            self._urls[text] = url
        return url

    async def fetch(
        self, method: str, url: Url, target: str, headers: HeaderBlock, body: bytes, at: float, now: float
    ) -> Answer | NoAnswer:
        """Send one request, follow redirects, and bring the answer until `at` at the latest.

        `target` is the URL's with what the call adds to it. Raises nothing but the
        cancellation of its caller, which closes the connection.
        """
        endpoint = self._endpoint(url, now)
        if isinstance(endpoint, NoAnswer):
            return endpoint
        result = await endpoint.exchange(_compose(method, url, target, headers, body), at, now)
        if isinstance(result, NoAnswer):
            return result
        if result.location and result.status in _REDIRECTS:
            return await self._follow(method, url, headers, body, result, at)
        return self._decoded(result) if result.encoding else result

    async def _follow(
        self, method: str, url: Url, headers: HeaderBlock, body: bytes, answer: Answer, at: float
    ) -> Answer | NoAnswer:
        for _ in range(self._settings.max_redirects):
            try:
                next_url = join_url(url, answer.location)
            except BadUrlError as error:
                return NoAnswer(detail=f"{url.origin} redirects, but {error}")
            if answer.status in _TO_GET and method != "GET":
                method, body = "GET", b""
            if next_url.origin != url.origin and not _is_upgrade(url, next_url):
                headers = headers.without_credentials()
            url = next_url
            now = self._clock()
            endpoint = self._endpoint(url, now)
            if isinstance(endpoint, NoAnswer):
                return _after_redirect(endpoint)
            result = await endpoint.exchange(_compose(method, url, url.target, headers, body), at, now)
            if isinstance(result, NoAnswer):
                return _after_redirect(result)
            answer = result
            if not (answer.location and answer.status in _REDIRECTS):
                return self._decoded(answer) if answer.encoding else answer
        return NoAnswer(detail=f"{url.origin}: more than {self._settings.max_redirects} redirects")

    def _decoded(self, answer: Answer) -> Answer:
        try:
            if answer.flaw:
                raise ContentError("is compressed, and longer than can be read")
            body = decode_content(answer.body, answer.encoding, limit=self._settings.max_body_bytes)
        except ContentError as error:
            return Answer(answer.status, b"", flaw=f"the body {error}")
        return Answer(answer.status, body)

    def _endpoint(self, url: Url, now: float) -> Endpoint | NoAnswer:
        endpoint = self._endpoints.find(url.origin) or self._endpoints.make(
            url.origin,
            lambda surroundings: Endpoint(
                url, surroundings, self._tls.of(url.host, url.port) if url.scheme == "https" else None
            ),
        )
        if not isinstance(endpoint, NoAnswer):
            endpoint.used_at = now
        return endpoint

    async def close(self) -> None:
        """End everything and wait until the connections are gone; fetches under way end with `NoAnswer`."""
        await self._endpoints.close()


def _compose(method: str, url: Url, target: str, headers: HeaderBlock, body: bytes) -> bytes:
    if method == "GET":
        length = "\r\n"
    else:
        length = f"Content-Length: {len(body)}\r\n\r\n"
    head = f"{method} {target} HTTP/1.1\r\nHost: {url.host_header}\r\n{headers.text}{length}".encode()
    return head + body if body else head


def _is_upgrade(url: Url, to: Url) -> bool:
    return (url.scheme, url.port, to.scheme, to.port) == ("http", 80, "https", 443) and url.host == to.host


def _after_redirect(refusal: NoAnswer) -> NoAnswer:
    # The redirecting endpoint has been called, and may have done its work.
    return NoAnswer(detail=f"after a redirect, {refusal.detail}", counts=refusal.counts)
