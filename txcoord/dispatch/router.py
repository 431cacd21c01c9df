"""Which dispatcher makes a call: the protocol of the transaction decides, and the URL."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from txcoord.dispatch.base import BranchRequest, CallResult
from txcoord.dispatch.client import HttpClient
from txcoord.dispatch.http import HttpDispatcher
from txcoord.dispatch.jsonrpc import JsonRpcDispatcher
from txcoord.dispatch.settings import DispatchSettings
from txcoord.jsonrpc import method_of
from txcoord.protocol import HTTP, JSON_RPC


class RoutingDispatcher:
    """The dispatcher of a coordinator (see `base.Dispatcher`), over one client with one set of limits.

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
        self._client = HttpClient(settings, clock=clock, random=random or Random())
        self._http = HttpDispatcher(settings, clock=clock, client=self._client)
        self._json_rpc = JsonRpcDispatcher(settings, clock=clock, client=self._client)

    # Not async itself: the hottest path pays for a comparison, not for a coroutine.
    def call(self, request: BranchRequest) -> Coroutine[Any, Any, CallResult]:
        """Call one branch operation (see `base.Dispatcher.call`)."""
        if request.protocol == HTTP or not _is_json_rpc(request):
            return self._http.call(request)
        return self._json_rpc.call(request)

    async def close(self) -> None:
        """Close all connections. Calls under way end as unknown."""
        await self._client.close()


def _is_json_rpc(request: BranchRequest) -> bool:
    return request.protocol == JSON_RPC and bool(method_of(request.url))
