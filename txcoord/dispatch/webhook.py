"""Alerts as POSTs to one URL: from a bounded queue, one at a time, beside everything else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final

import msgspec

from txcoord import metrics
from txcoord.alert import Alert
from txcoord.dispatch.client import HttpClient
from txcoord.dispatch.headers import make_headers
from txcoord.dispatch.limited import NoAnswer
from txcoord.dispatch.settings import DispatchSettings
from txcoord.url import BadUrlError

_logger = logging.getLogger(__name__)

MOST_WAITING: Final = 1000
TIMEOUT_S: Final = 3.0

_encode = msgspec.json.Encoder().encode


class Webhook:
    """Sends alerts (see `txcoord.alert.Alerts`), each once: whatever becomes of it, no transaction is touched.

    Raises:
        ValueError: on construction, when the URL cannot be called or a file on TLS cannot be read.
    """

    def __init__(
        self,
        url: str,
        settings: DispatchSettings = DispatchSettings(),  # noqa: B008 - frozen
        *,
        clock: Callable[[], float] = time.monotonic,
        most_waiting: int = MOST_WAITING,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._clock = clock
        self._client = HttpClient(settings, clock=clock, random=Random())
        try:
            self._url = self._client.url(url)
        except BadUrlError as error:
            raise ValueError(f"alert_webhook: {error}") from error
        self._headers = make_headers((), self._url.authorization)
        self._most_waiting = most_waiting
        self._timeout_s = timeout_s
        self._waiting: deque[Alert] = deque()
        self._dropped = 0
        self._sender: asyncio.Task[None] | None = None
        self._is_closed = False

    def raised(self, alert: Alert) -> None:
        """Send it soon, or drop it if too many wait already."""
        if len(self._waiting) >= self._most_waiting or self._is_closed:
            # One line when it begins and one when it is over: what floods the queue would flood the log as well.
            if not self._dropped:
                _logger.warning("alert of %s dropped: %d others wait to be sent", alert.gid, len(self._waiting))
            self._dropped += 1
            metrics.ALERTS_DROPPED.inc()
            return
        self._waiting.append(alert)
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send_all())

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await self._send(self._waiting.popleft())
        finally:
            self._sender = None
        if self._dropped:
            _logger.warning("%d alerts were dropped: they came faster than they could be sent", self._dropped)
            self._dropped = 0

    async def _send(self, alert: Alert) -> None:
        now = self._clock()
        answer = await self._client.fetch(
            "POST", self._url, self._url.target, self._headers, _encode(alert), now + self._timeout_s, now
        )
        if isinstance(answer, NoAnswer):
            flaw = answer.detail
        elif 200 <= answer.status < 300:
            metrics.ALERTS_SENT.inc()
            return
        else:
            flaw = f"{self._url.origin} answered HTTP {answer.status}"
        metrics.ALERTS_FAILED.inc()
        _logger.warning("alert of %s was not delivered: %s", alert.gid, flaw)

    async def close(self) -> None:
        """Send nothing more. What waits is dropped."""
        self._is_closed = True
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])
        if self._waiting:
            _logger.warning("%d alerts were not sent: the coordinator is stopping", len(self._waiting))
            self._waiting.clear()
        await self._client.close()
