"""Puts the parts of one coordinator process together."""

from __future__ import annotations

import os
import socket

from txcoord.api.http import AsgiApp, HttpApi
from txcoord.dispatch.base import Dispatcher
from txcoord.dispatch.router import RoutingDispatcher
from txcoord.dispatch.settings import DispatchSettings
from txcoord.dispatch.webhook import Webhook
from txcoord.engine.engine import Engine
from txcoord.engine.settings import EngineSettings
from txcoord.request import Limits
from txcoord.service import Service
from txcoord.settings.table import Settings
from txcoord.store.base import Store
from txcoord.store.url import open_store


class App:
    """A coordinator, from its HTTP API down to its store. Start it, serve `asgi`, stop it."""

    def __init__(
        self,
        *,
        asgi: AsgiApp,
        service: Service,
        engine: Engine,
        dispatcher: Dispatcher,
        webhook: Webhook | None,
        store: Store,
    ) -> None:
        self.asgi = asgi
        self.service = service
        self.engine = engine
        self._dispatcher = dispatcher
        self._webhook = webhook
        self._store = store

    async def start(self) -> None:
        """Open the store, join the nodes, begin to recover what is due.

        Raises:
            StoreUnavailableError, SchemaError: it could not start; nothing is left open.
        """
        try:
            await self._store.open()
            await self.engine.start()
        except BaseException:
            await self._store.close()
            raise

    def begin_drain(self) -> None:
        """Take no more work and let calls under way end; `/readyz` says so from now on."""
        self.engine.begin_drain()

    async def stop_engine(self) -> None:
        """Drain, for a bounded time, and give up what is owned. Queries are still answered."""
        await self.engine.stop()

    async def close(self) -> None:
        """Close all connections to participants and to the store. Comes last."""
        await self._dispatcher.close()
        if self._webhook is not None:
            await self._webhook.close()
        await self._store.close()


def build(settings: Settings) -> App:
    """Make a coordinator; nothing is connected before `App.start`.

    Raises:
        ValueError: a setting cannot be used (the store's URL, the webhook's, a file on TLS).
    """
    store = open_store(settings.store, timeout_s=settings.store_timeout_s, pool_size=settings.store_pool)
    dispatcher = RoutingDispatcher(dispatch_settings(settings))
    webhook = Webhook(settings.alert_webhook, dispatch_settings(settings)) if settings.alert_webhook else None
    engine = Engine(
        store=store,
        dispatcher=dispatcher,
        settings=engine_settings(settings),
        node_name=node_name(),
        alerts=webhook,
    )
    service = Service(
        engine=engine,
        store=store,
        limits=limits(settings),
        default_timeout_s=settings.timeout_to_fail_s,
        retry_interval_s=settings.retry_interval_s,
    )
    asgi = HttpApi(service, max_body_bytes=settings.max_body_bytes)
    return App(asgi=asgi, service=service, engine=engine, dispatcher=dispatcher, webhook=webhook, store=store)


def node_name() -> str:
    """Name this process for people; ids, not names, tell nodes apart."""
    return f"{socket.gethostname()}:{os.getpid()}"


def engine_settings(settings: Settings) -> EngineSettings:
    return EngineSettings(
        lease_s=settings.lease_s,
        drain_s=settings.drain_s,
        request_timeout_s=settings.request_timeout_s,
        retry_interval_s=settings.retry_interval_s,
        error_backoff_s=settings.error_backoff_s,
        backoff_cap_s=settings.backoff_cap_s,
        max_live=settings.max_live,
        max_wait_s=settings.max_wait_s,
        alert_retry_limit=settings.alert_retry_limit,
    )


def dispatch_settings(settings: Settings) -> DispatchSettings:
    return DispatchSettings(
        max_in_flight=settings.endpoint_connections,
        max_idle=settings.endpoint_connections,
        max_waiting=settings.max_live,
        connect_timeout_s=settings.connect_timeout_s,
        max_body_bytes=settings.max_response_bytes,
        breaker_failures=settings.breaker_failures,
        breaker_hold_s=settings.breaker_hold_s,
        breaker_hold_max_s=settings.breaker_hold_max_s,
        failure_word_anywhere=settings.failure_word_anywhere,
        tls_verify=settings.tls_verify,
        tls_ca_file=settings.tls_ca_file,
        participant_tls_file=settings.participant_tls_file,
    )


def limits(settings: Settings) -> Limits:
    return Limits(
        max_branches=settings.max_branches,
        max_payload_bytes=settings.max_payload_bytes,
        max_url_length=settings.max_url_length,
        max_custom_data_bytes=settings.max_custom_data_bytes,
        max_header_bytes=settings.max_header_bytes,
        max_timeout_s=settings.max_timeout_s,
    )
