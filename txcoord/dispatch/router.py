"""Which dispatcher makes a call: the protocol of the transaction decides, and the URL."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable
from random import Random
from typing import Any

from txcoord import metrics
from txcoord.dispatch.base import BranchRequest, CallResult
from txcoord.dispatch.client import HttpClient
from txcoord.dispatch.grpc import GrpcDispatcher
from txcoord.dispatch.http import HttpDispatcher
from txcoord.dispatch.jsonrpc import JsonRpcDispatcher
from txcoord.dispatch.limited import LimitedEndpoint
from txcoord.dispatch.settings import DispatchSettings
from txcoord.dispatch.tls import ParticipantTls
from txcoord.jsonrpc import method_of
from txcoord.protocol import GRPC, HTTP, JSON_RPC
from txcoord.request import is_grpc


class RoutingDispatcher:
    """The dispatcher of a coordinator (see `base.Dispatcher`), with one set of limits for each endpoint.

    Raises:
        ValueError: on construction, when a file on TLS cannot be read.
    """

    def __init__(
        self,
        settings: DispatchSettings = DispatchSettings(),  # noqa: B008 - frozen
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
    ) -> None:
        random = random or Random()
        tls = ParticipantTls(settings)
        self._client = HttpClient(settings, clock=clock, random=random, tls=tls, watch=_watch(HTTP))
        self._http = HttpDispatcher(settings, clock=clock, client=self._client)
        self._json_rpc = JsonRpcDispatcher(settings, clock=clock, client=self._client)
        self._grpc = GrpcDispatcher(settings, clock=clock, random=random, tls=tls, watch=_watch(GRPC))

    # Not async itself: the hottest path pays for a comparison, not for a coroutine.
    def call(self, request: BranchRequest) -> Coroutine[Any, Any, CallResult]:
        """Call one branch operation (see `base.Dispatcher.call`)."""
        if request.protocol == HTTP:
            return self._http.call(request)
        if is_grpc(request.url, request.protocol):
            return self._grpc.call(request)
        return self._json_rpc.call(request) if _is_json_rpc(request) else self._http.call(request)

    async def close(self) -> None:
        """Close all connections. Calls under way end as unknown."""
        await self._grpc.close()
        await self._client.close()


def _is_json_rpc(request: BranchRequest) -> bool:
    return request.protocol == JSON_RPC and bool(method_of(request.url))


def _watch(protocol: str) -> Callable[[Iterable[LimitedEndpoint[Any, Any]]], None]:
    gauges = metrics.EndpointGauges(protocol)

    def watch(endpoints: Iterable[LimitedEndpoint[Any, Any]]) -> None:
        known = tuple(endpoints)
        gauges.set(
            endpoints=len(known),
            held_off=sum(endpoint.breaker.is_open for endpoint in known),
            under_way=sum(endpoint.in_flight for endpoint in known),
            waiting=sum(endpoint.waiting for endpoint in known),
        )

    return watch
