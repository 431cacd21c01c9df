"""An HTTP client for short calls to many endpoints: bounded, and cheap enough for the hottest path.

Measured beside it: httpx costs some hundred times the CPU of the participant's answer. What
is checked against httpx (tests/integration/test_http_dispatch_differential.py) is that both
read the same answer from the same bytes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from random import Random

from txcoord.dispatch.connection import Answer
from txcoord.dispatch.content import ContentError, decode_content
from txcoord.dispatch.deadlines import Deadlines
from txcoord.dispatch.endpoint import Endpoint, NoAnswer, Surroundings
from txcoord.dispatch.headers import HeaderBlock
from txcoord.dispatch.settings import DispatchSettings
from txcoord.dispatch.url import BadUrlError, Url, join_url, parse_url

_TO_GET = frozenset((301, 302, 303))
_REDIRECTS = frozenset((*_TO_GET, 307, 308))
_TIDY_EVERY_S = 1.0
_LONGEST_CACHED = 2048


class HttpClient:
    """Sends requests. Belongs to the event loop of its first use."""

    def __init__(self, settings: DispatchSettings, *, clock: Callable[[], float], random: Random) -> None:
        self._settings = settings
        self._clock = clock
        self._random = random
        self._urls: dict[str, Url] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._surroundings: Surroundings | None = None
        self._tidy_timer: asyncio.TimerHandle | None = None
        # A file that is wrong is to be met at start, not at the first call.
        self._tls = _make_tls(settings) if settings.tls_ca_file else None
        self._is_closed = False

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
        endpoint = self._endpoints.get(url.origin) or self._new_endpoint(url, now)
        if isinstance(endpoint, NoAnswer):
            return endpoint
        endpoint.used_at = now
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
            endpoint = self._endpoints.get(url.origin) or self._new_endpoint(url, now)
            if isinstance(endpoint, NoAnswer):
                return _after_redirect(endpoint)
            endpoint.used_at = now
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

    # ---- endpoints

    def _new_endpoint(self, url: Url, now: float) -> Endpoint | NoAnswer:
        if self._is_closed:
            return NoAnswer(detail=f"{url.origin}: not called, the coordinator is stopping", called=False)
        if len(self._endpoints) >= self._settings.max_endpoints and not self._make_room():
            return NoAnswer(
                detail=f"{url.origin}: not called, {len(self._endpoints)} other endpoints are being called",
                called=False,
                retry_after_s=self._settings.breaker_hold_s,
            )
        if self._surroundings is None:
            self._surroundings = self._start()
        endpoint = self._endpoints[url.origin] = Endpoint(url, self._surroundings)
        if self._tidy_timer is None:
            self._tidy_timer = self._surroundings.loop.call_later(_TIDY_EVERY_S, self._tidy)
        return endpoint

    def _start(self) -> Surroundings:
        loop = asyncio.get_running_loop()
        return Surroundings(
            settings=self._settings,
            loop=loop,
            clock=self._clock,
            random=self._random,
            deadlines=Deadlines(loop, self._clock),
            tls=self._tls_context,
        )

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = _make_tls(self._settings)
        return self._tls

    def _make_room(self) -> bool:
        idle = [endpoint for endpoint in self._endpoints.values() if not endpoint.is_busy]
        if not idle:
            return False
        self._drop(min(idle, key=lambda endpoint: endpoint.used_at))
        return True

    def _drop(self, endpoint: Endpoint) -> None:
        del self._endpoints[endpoint.origin]
        endpoint.end()

    def _tidy(self) -> None:
        assert self._surroundings is not None
        now = self._clock()
        for endpoint in tuple(self._endpoints.values()):
            endpoint.tidy(now)
            if not endpoint.is_busy and endpoint.used_at + self._settings.endpoint_idle_s < now:
                self._drop(endpoint)
        self._tidy_timer = None
        if self._endpoints:
            self._tidy_timer = self._surroundings.loop.call_later(_TIDY_EVERY_S, self._tidy)

    async def close(self) -> None:
        """End everything and wait until the connections are gone; fetches under way end with `NoAnswer`."""
        self._is_closed = True
        endpoints = tuple(self._endpoints.values())
        self._endpoints.clear()
        for endpoint in endpoints:
            endpoint.end()
        for endpoint in endpoints:
            await endpoint.gone()
        if self._tidy_timer is not None:
            self._tidy_timer.cancel()
            self._tidy_timer = None
        if self._surroundings is not None:
            self._surroundings.deadlines.close()


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


def _make_tls(settings: DispatchSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file or None)
    except OSError as error:
        raise ValueError(f"the certificate authorities in {settings.tls_ca_file} cannot be read: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    if not settings.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
