"""The coordinator clients: two thin shells, which drive the same rules over httpx and grpc.

How the pieces hang together, from here inwards:

* `_operations` holds what both clients are made of; `tcc` and `xa_transaction` are the blocks they open.
* `_rules` says for each operation what is sent, and what to do about its answer; `_two_phase_rules`, `_tcc_rules`
  and `_xa_rules` do so for a block. All of them are generators: they yield calls and pauses, and get replies.
* `_exchange` is one request to a coordinator: written, repeated, understood. `_branch_calls` is one to a participant.
* `_calls` has the values that pass between a generator and the client that drives it, and the wire over HTTP;
  `_grpc_wire` is that over gRPC, `_channels` keeps the connections for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import httpx

from txcoord.model import Pattern, Status
from txcoord.protocol import CONNECTION_HEADERS
from txcoord_sdk._calls import AnyReply, Flow, GrpcAnswer, GrpcCall, HttpAnswer, HttpCall, NoAnswer, Pause, Reply
from txcoord_sdk._checks import Duration, seconds
from txcoord_sdk._operations import DEFAULT_TIMEOUT_S, DEFAULT_WAIT_S, Operations
from txcoord_sdk._rules import Filter
from txcoord_sdk._tcc_rules import TccRules
from txcoord_sdk._xa_rules import XaRules
from txcoord_sdk.message import Message
from txcoord_sdk.results import Transaction
from txcoord_sdk.saga import Saga
from txcoord_sdk.tcc import AsyncTcc, Tcc
from txcoord_sdk.xa_transaction import AsyncXa, Xa

if TYPE_CHECKING:
    # An extra, and its import takes a while.
    import grpc

    from txcoord_sdk._channels import AsyncChannels, Channels

    # An initiator needs nothing of the barrier, which this would load.
    from txcoord_sdk.barrier.redis import RedisWork
    from txcoord_sdk.branch import BranchContext

C = TypeVar("C")
T = TypeVar("T")

MAX_CONNECT_S = 10.0
"""A run may wait minutes for its answer, but not for a connection."""

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)


class AsyncCoordinator(Operations):
    """A coordinator, for asyncio. Make one per event loop and share it: it keeps connections open.

    Args:
        url: its address, with or without `/api/dtmsvr`; else the variable TXCOORD_URL, else
            http://127.0.0.1:36789. With `grpc://host:port` all is done over its gRPC API instead, or
            with `grpcs://` so with TLS (needs `txcoord-sdk[grpc]`).
        timeout: how long to wait for one answer. `run` and `wait` have their own.
        attempts: how often a request is sent, at most, while nothing usable comes back.
        backoff: pause after the first attempt; it doubles, up to 2 s.
        http: an httpx client of your own (TLS, proxies, headers); you close it.
        credentials: certificates for `grpcs://`; those of the system if None.
        branch_credentials: for branches that this client calls over gRPC itself; without TLS if None.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: Duration = DEFAULT_TIMEOUT_S,
        attempts: int = 5,
        backoff: Duration = 0.2,
        http: httpx.AsyncClient | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        branch_credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        super().__init__(url, timeout=timeout, attempts=attempts, backoff=backoff)
        self._credentials, self._branch_credentials = credentials, branch_credentials
        self._grpc: AsyncChannels | None = None
        self._http = http or httpx.AsyncClient()
        self._owns_http = http is None

    def tcc(
        self,
        gid: str | None = None,
        *,
        wait_result: bool = False,
        timeout_to_fail: Duration | None = None,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
        protocol: str | None = None,
    ) -> AsyncTcc:
        rules = self._two_phase_rules(
            TccRules,
            gid,
            wait_result=wait_result,
            timeout_to_fail=timeout_to_fail,
            request_timeout=request_timeout,
            retry_interval=retry_interval,
            branch_headers=branch_headers,
            protocol=protocol,
        )
        return AsyncTcc(rules, self._drive)

    def nested_tcc(
        self,
        branch: BranchContext,
        *,
        request_timeout: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
    ) -> AsyncTcc:
        rules = self._nested_tcc_rules(branch, request_timeout=request_timeout, branch_headers=branch_headers)
        return AsyncTcc(rules, self._drive)

    def xa(
        self,
        gid: str | None = None,
        *,
        wait_result: bool = False,
        timeout_to_fail: Duration | None = None,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
        protocol: str | None = None,
    ) -> AsyncXa:
        rules = self._two_phase_rules(
            XaRules,
            gid,
            wait_result=wait_result,
            timeout_to_fail=timeout_to_fail,
            request_timeout=request_timeout,
            retry_interval=retry_interval,
            branch_headers=branch_headers,
            protocol=protocol,
        )
        return AsyncXa(rules, self._drive)

    async def register_xa_branch(self, branch: BranchContext) -> None:
        await self._drive(self._registration(branch))

    async def submit(self, work: Saga | Message) -> str:
        return await self._drive(self._rules.submit(work))

    async def run(self, work: Saga | Message, timeout: Duration = DEFAULT_WAIT_S) -> str:
        return await self._drive(self._rules.run(work, seconds(timeout, name="timeout")))

    async def prepare(self, message: Message, query_prepared: str) -> str:
        return await self._drive(self._rules.prepare_message(message, query_prepared))

    async def abort(self, message: Message, reason: str = "") -> None:
        await self._drive(self._rules.abort_message(message, reason))

    async def do_and_submit(
        self,
        message: Message,
        query_prepared: str,
        connection: C,
        work: Callable[[C], Any],
        *,
        table: str | None = None,
    ) -> str:
        from txcoord_sdk._local import LocalTransaction

        local = LocalTransaction(self._rules, self._drive, message, connection, table=table, is_async=True)
        return await local.run(query_prepared, work)

    async def redis_do_and_submit(
        self,
        message: Message,
        query_prepared: str,
        client: object,
        work: RedisWork,
        *,
        expiry: Duration | None = None,
        dtm_keys: bool = False,
    ) -> str:
        from txcoord_sdk._local_redis import RedisLocalTransaction

        local = RedisLocalTransaction(
            self._rules, self._drive, message, client, work, expiry=expiry, dtm_keys=dtm_keys, is_async=True
        )
        return await local.run(query_prepared)

    async def wait(self, gid: str, timeout: Duration = DEFAULT_WAIT_S) -> Transaction:
        return await self._drive(self._rules.wait(gid, seconds(timeout, name="timeout")))

    async def query(self, gid: str) -> Transaction:
        return await self._drive(self._rules.query(gid))

    async def list(
        self,
        *,
        status: Status | None = None,
        pattern: Pattern | None = None,
        created_from: datetime | None = None,
        created_to: datetime | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[Transaction]:
        chosen = Filter(
            status=status, pattern=pattern, created_from=created_from, created_to=created_to, page_size=page_size
        )
        page = await self._drive(self._rules.list_page(chosen, None))
        while page is not None:
            for transaction in page.transactions or ():
                yield transaction
            page = await self._drive(self._rules.list_page(chosen, page))

    async def force_stop(self, gid: str) -> None:
        await self._drive(self._rules.force_stop(gid))

    async def retry_now(self, gid: str) -> None:
        await self._drive(self._rules.retry_now(gid))

    async def subscribe(self, topic: str, url: str, remark: str = "") -> bool:
        return await self._drive(self._rules.subscribe(topic, url, remark))

    async def unsubscribe(self, topic: str, url: str) -> bool:
        return await self._drive(self._rules.unsubscribe(topic, url))

    async def delete_topic(self, topic: str) -> bool:
        return await self._drive(self._rules.delete_topic(topic))

    async def version(self) -> str:
        return await self._drive(self._rules.version())

    async def ping(self) -> None:
        await self._drive(self._rules.ping())

    async def close(self) -> None:
        if self._grpc is not None:
            await self._grpc.close()
        if self._owns_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _drive(self, flow: Flow[T]) -> T:
        reply: AnyReply | None = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration as end:
                return cast(T, end.value)
            match step:
                case HttpCall():
                    reply = await self._send(step)
                case GrpcCall():
                    reply = await self._send_grpc(step)
                case Pause():
                    await asyncio.sleep(step.seconds)
                    reply = None

    async def _send(self, call: HttpCall) -> Reply:
        try:
            return _answer(await self._http.request(**_request(call)))
        # What httpx lets through from anyio and uvloop, of a connection that breaks just when it is made.
        except (httpx.RequestError, AttributeError) as error:
            return _no_answer(error)

    async def _send_grpc(self, call: GrpcCall) -> GrpcAnswer:
        if self._grpc is None:
            from txcoord_sdk._channels import AsyncChannels, tls

            self._grpc = AsyncChannels(coordinator=tls(self._credentials, self.url), branches=self._branch_credentials)
        return await self._grpc.call(call)


class Coordinator(Operations):
    """A coordinator, for synchronous code; threads may share it. The arguments are `AsyncCoordinator`'s."""

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: Duration = DEFAULT_TIMEOUT_S,
        attempts: int = 5,
        backoff: Duration = 0.2,
        http: httpx.Client | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        branch_credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        super().__init__(url, timeout=timeout, attempts=attempts, backoff=backoff)
        self._credentials, self._branch_credentials = credentials, branch_credentials
        self._grpc: Channels | None = None
        self._http = http or httpx.Client()
        self._owns_http = http is None

    def tcc(
        self,
        gid: str | None = None,
        *,
        wait_result: bool = False,
        timeout_to_fail: Duration | None = None,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
        protocol: str | None = None,
    ) -> Tcc:
        rules = self._two_phase_rules(
            TccRules,
            gid,
            wait_result=wait_result,
            timeout_to_fail=timeout_to_fail,
            request_timeout=request_timeout,
            retry_interval=retry_interval,
            branch_headers=branch_headers,
            protocol=protocol,
        )
        return Tcc(rules, self._drive)

    def nested_tcc(
        self,
        branch: BranchContext,
        *,
        request_timeout: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
    ) -> Tcc:
        rules = self._nested_tcc_rules(branch, request_timeout=request_timeout, branch_headers=branch_headers)
        return Tcc(rules, self._drive)

    def xa(
        self,
        gid: str | None = None,
        *,
        wait_result: bool = False,
        timeout_to_fail: Duration | None = None,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
        protocol: str | None = None,
    ) -> Xa:
        rules = self._two_phase_rules(
            XaRules,
            gid,
            wait_result=wait_result,
            timeout_to_fail=timeout_to_fail,
            request_timeout=request_timeout,
            retry_interval=retry_interval,
            branch_headers=branch_headers,
            protocol=protocol,
        )
        return Xa(rules, self._drive)

    def register_xa_branch(self, branch: BranchContext) -> None:
        self._drive(self._registration(branch))

    def submit(self, work: Saga | Message) -> str:
        return self._drive(self._rules.submit(work))

    def run(self, work: Saga | Message, timeout: Duration = DEFAULT_WAIT_S) -> str:
        return self._drive(self._rules.run(work, seconds(timeout, name="timeout")))

    def prepare(self, message: Message, query_prepared: str) -> str:
        return self._drive(self._rules.prepare_message(message, query_prepared))

    def abort(self, message: Message, reason: str = "") -> None:
        self._drive(self._rules.abort_message(message, reason))

    def do_and_submit(
        self,
        message: Message,
        query_prepared: str,
        connection: C,
        work: Callable[[C], Any],
        *,
        table: str | None = None,
    ) -> str:
        from txcoord_sdk._local import LocalTransaction
        from txcoord_sdk.barrier.drivers.base import run_now

        async def drive_now(flow: Flow[T]) -> T:
            return self._drive(flow)

        local = LocalTransaction(self._rules, drive_now, message, connection, table=table, is_async=False)
        return run_now(local.run(query_prepared, work))

    def redis_do_and_submit(
        self,
        message: Message,
        query_prepared: str,
        client: object,
        work: RedisWork,
        *,
        expiry: Duration | None = None,
        dtm_keys: bool = False,
    ) -> str:
        from txcoord_sdk._local_redis import RedisLocalTransaction
        from txcoord_sdk.barrier.drivers.base import run_now

        async def drive_now(flow: Flow[T]) -> T:
            return self._drive(flow)

        local = RedisLocalTransaction(
            self._rules, drive_now, message, client, work, expiry=expiry, dtm_keys=dtm_keys, is_async=False
        )
        return run_now(local.run(query_prepared))

    def wait(self, gid: str, timeout: Duration = DEFAULT_WAIT_S) -> Transaction:
        return self._drive(self._rules.wait(gid, seconds(timeout, name="timeout")))

    def query(self, gid: str) -> Transaction:
        return self._drive(self._rules.query(gid))

    def list(
        self,
        *,
        status: Status | None = None,
        pattern: Pattern | None = None,
        created_from: datetime | None = None,
        created_to: datetime | None = None,
        page_size: int = 100,
    ) -> Iterator[Transaction]:
        chosen = Filter(
            status=status, pattern=pattern, created_from=created_from, created_to=created_to, page_size=page_size
        )
        page = self._drive(self._rules.list_page(chosen, None))
        while page is not None:
            yield from page.transactions or ()
            page = self._drive(self._rules.list_page(chosen, page))

    def force_stop(self, gid: str) -> None:
        self._drive(self._rules.force_stop(gid))

    def retry_now(self, gid: str) -> None:
        self._drive(self._rules.retry_now(gid))

    def subscribe(self, topic: str, url: str, remark: str = "") -> bool:
        return self._drive(self._rules.subscribe(topic, url, remark))

    def unsubscribe(self, topic: str, url: str) -> bool:
        return self._drive(self._rules.unsubscribe(topic, url))

    def delete_topic(self, topic: str) -> bool:
        return self._drive(self._rules.delete_topic(topic))

    def version(self) -> str:
        return self._drive(self._rules.version())

    def ping(self) -> None:
        self._drive(self._rules.ping())

    def close(self) -> None:
        if self._grpc is not None:
            self._grpc.close()
        if self._owns_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _drive(self, flow: Flow[T]) -> T:
        reply: AnyReply | None = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration as end:
                return cast(T, end.value)
            match step:
                case HttpCall():
                    reply = self._send(step)
                case GrpcCall():
                    reply = self._send_grpc(step)
                case Pause():
                    time.sleep(step.seconds)
                    reply = None

    def _send(self, call: HttpCall) -> Reply:
        try:
            return _answer(self._http.request(**_request(call)))
        except httpx.RequestError as error:
            return _no_answer(error)

    def _send_grpc(self, call: GrpcCall) -> GrpcAnswer:
        if self._grpc is None:
            from txcoord_sdk._channels import Channels, tls

            self._grpc = Channels(coordinator=tls(self._credentials, self.url), branches=self._branch_credentials)
        return self._grpc.call(call)


def _request(call: HttpCall) -> dict[str, Any]:
    """Name a call's parts as both httpx clients take them."""
    return {
        "method": call.method,
        "url": call.url,
        # Empty ones would take away the query that the URL has.
        "params": call.query or None,
        "content": call.body,
        "headers": _headers(call),
        "timeout": httpx.Timeout(call.timeout_s, connect=min(call.timeout_s, MAX_CONNECT_S)),
    }


def _headers(call: HttpCall) -> list[tuple[bytes, bytes]]:
    given = {name.lower(): value for name, value in call.headers.items() if name.lower() not in CONNECTION_HEADERS}
    if call.body is not None:
        given.setdefault("content-type", "application/json")
    # As bytes: httpx takes only ASCII in text, and a header may hold all of Latin-1.
    return [(name.encode(), value.encode("latin-1")) for name, value in given.items()]


def _answer(response: httpx.Response) -> HttpAnswer:
    return HttpAnswer(
        status=response.status_code, body=response.content, retry_after=response.headers.get("Retry-After", "")
    )


def _no_answer(error: Exception) -> NoAnswer:
    return NoAnswer(
        detail=f"{type(error).__name__}: {error}".removesuffix(": "), may_have_arrived=not isinstance(error, _NOT_SENT)
    )
