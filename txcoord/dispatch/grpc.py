"""Calls branch operations over gRPC: one unary call each, the payload as the message, the rest as metadata.

Bytes go out and come in as they are: nothing here knows a participant's messages. Most of what a call
costs is spent in gRPC's own core; so this module keeps what it can from one call to the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from random import Random

import grpc
import grpc.aio
from msgspec import Struct

from txcoord import __version__
from txcoord.dispatch.base import BranchRequest, CallResult
from txcoord.dispatch.base_dispatcher import BaseDispatcher
from txcoord.dispatch.deadlines import End
from txcoord.dispatch.endpoints import Endpoints
from txcoord.dispatch.headers import BadHeaderError
from txcoord.dispatch.limited import LimitedEndpoint, NoAnswer, Surroundings
from txcoord.dispatch.settings import DispatchSettings
from txcoord.dispatch.tls import ClientTls, ParticipantTls
from txcoord.grpc_call import Metadata, as_ascii, metadata_of, read_url
from txcoord.model import Outcome, Pattern
from txcoord.outcome import clean, understand_grpc
from txcoord.proto.workflow_pb2 import WorkflowData
from txcoord.protocol import METADATA_PREFIX
from txcoord.url import BadUrlError

_Method = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

_OURS = _GID, _TRANS_TYPE, _BRANCH_ID, _OP, _DTM = tuple(
    f"{METADATA_PREFIX}{name}" for name in ("gid", "trans_type", "branch_id", "op", "dtm")
)

_CACHED_METHODS = 256
_LONGEST_CACHED = 4096


class GrpcTarget(Struct, frozen=True, kw_only=True):
    """A URL that can be called over gRPC."""

    host: str
    """Without brackets."""
    port: int
    method: str
    """With the slash before it."""
    origin: str
    """Of the endpoint, as it is shown."""
    address: str
    """Of the endpoint, as gRPC resolves it."""


class GrpcJob(Struct, frozen=True):
    """One call as it goes out."""

    method: str
    message: bytes
    metadata: Metadata


class GrpcAnswer(Struct, frozen=True):
    """A status that the participant has sent."""

    code: int
    name: str
    message: str


_OK = GrpcAnswer(0, "OK", "")


class GrpcDispatcher(BaseDispatcher):
    """The gRPC dispatcher (see `base.Dispatcher`). Belongs to the event loop of its first call.

    Raises:
        ValueError: on construction, when a file on TLS cannot be read.
    """

    def __init__(
        self,
        settings: DispatchSettings = DispatchSettings(),  # noqa: B008 - frozen
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        tls: ParticipantTls | None = None,
        watch: Callable[[Iterable[GrpcEndpoint]], None] | None = None,
    ) -> None:
        super().__init__(settings, clock)
        self._tls = tls or ParticipantTls(settings)
        self._endpoints = Endpoints[GrpcEndpoint](settings, clock=clock, random=random or Random(), watch=watch)
        self._targets: dict[str, GrpcTarget] = {}
        self._headers: dict[tuple[tuple[str, str], ...], Metadata] = {}

    async def call(self, request: BranchRequest) -> CallResult:
        """Call one branch operation (see `base.Dispatcher.call`)."""
        now = self._clock()
        try:
            target = self._target(request.url)
            metadata = self._metadata(request)
        except (BadUrlError, BadHeaderError) as error:
            return self._unknown(str(error), now)

        endpoint = self._endpoints.find(target.origin) or self._endpoints.make(
            target.origin,
            lambda surroundings: GrpcEndpoint(target, surroundings, self._tls.of_grpc(target.host, target.port)),
        )
        if isinstance(endpoint, NoAnswer):
            return self._without_answer(endpoint, now)
        endpoint.used_at = now
        message = request.payload
        if request.pattern is Pattern.WORKFLOW:
            # The only one of these messages that is the coordinator's own; the input is a field of it.
            message = WorkflowData(Data=message).SerializeToString()
        answer = await endpoint.exchange(GrpcJob(target.method, message, metadata), now + request.timeout_s, now)

        if isinstance(answer, NoAnswer):
            return self._without_answer(answer, now)
        outcome = understand_grpc(answer.code, answer.message)
        return CallResult(
            outcome=outcome,
            code=answer.code,
            detail=_describe(answer, outcome, limit=self._settings.detail_bytes),
            duration_us=self._elapsed_us(now),
        )

    async def close(self) -> None:
        """Close all channels. Calls under way end as unknown."""
        await self._endpoints.close()

    def _target(self, url: str) -> GrpcTarget:
        target = self._targets.get(url)
        if target is None:
            target = parse_target(url)
            if len(self._targets) >= self._settings.cached_urls:
                del self._targets[next(iter(self._targets))]
            self._targets[url] = target
        return target

    def _metadata(self, request: BranchRequest) -> Metadata:
        """Raises `BadHeaderError`."""
        context = (
            (_GID, as_ascii(request.gid)),
            (_TRANS_TYPE, request.pattern.value),
            (_BRANCH_ID, as_ascii(request.branch_id)),
            (_OP, as_ascii(request.op)),
            (_DTM, ""),
        )
        return context + self._cached_headers(request.headers) if request.headers else context

    def _cached_headers(self, headers: Mapping[str, str]) -> Metadata:
        key = tuple(headers.items())
        metadata = self._headers.get(key)
        if metadata is None:
            metadata = make_metadata(key)
            if sum(len(name) + len(value) for name, value in key) > _LONGEST_CACHED:
                return metadata
            if len(self._headers) >= self._settings.cached_urls:
                del self._headers[next(iter(self._headers))]
            self._headers[key] = metadata
        return metadata


class GrpcEndpoint(LimitedEndpoint[GrpcJob, GrpcAnswer]):
    """Makes calls of one endpoint, over one channel."""

    def __init__(self, target: GrpcTarget, surroundings: Surroundings, tls: ClientTls | None) -> None:
        super().__init__(target.origin, surroundings)
        self._address = target.address
        self._options, self._credentials = _channel_options(self._settings, tls), _credentials(tls)
        self._channel: _Channel | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def _perform(self, job: GrpcJob, at: float, now: float) -> GrpcAnswer | NoAnswer:
        if self._has_ended():
            return self._closed()
        channel = self._channel
        if channel is None:
            channel = self._channel = _Channel(self._address, self._options, self._credentials)
        channel.calls += 1
        try:
            await channel.method(job.method)(job.message, timeout=at - self._clock(), metadata=job.metadata)
        except grpc.aio.AioRpcError as error:
            return self._read(error, channel, at, now)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._has_ended() or (task is not None and task.cancelling()):
                raise
            # It is the channel that was closed under the call; the caller was not cancelled.
            return self._closed()
        finally:
            channel.calls -= 1
            if channel is not self._channel:
                self._close_if_unused(channel)
        return _OK

    def _read(self, error: grpc.aio.AioRpcError, channel: _Channel, at: float, now: float) -> GrpcAnswer | NoAnswer:
        """Tell what the participant has answered from what gRPC says in its place."""
        code, message = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and self._clock() >= at:
            return NoAnswer(detail=f"{self.origin}: no answer came within {at - now:.3g} s")
        if code is grpc.StatusCode.UNAVAILABLE and not channel.is_connected:
            # A participant that says so itself is connected.
            return NoAnswer(detail=f"{self.origin}: {message}")
        number: int = code.value[0]
        return GrpcAnswer(number, code.name, message)

    def _has_ended(self) -> bool:
        # Asked for, because it changes while a call is under way.
        return self._is_closed

    # ---- channels

    def _note_failure(self, probe: bool, detail: str) -> None:
        was_open = self.breaker.is_open
        super()._note_failure(probe, detail)
        has_opened = self.breaker.is_open and (probe or not was_open)
        if has_opened and self._channel is not None:
            # Probed over a new one: the old one may wait for its own next attempt to connect, or
            # hold a connection whose other end is gone without a word.
            channel, self._channel = self._channel, None
            self._close_if_unused(channel)

    def _close_if_unused(self, channel: _Channel) -> None:
        if not channel.calls:
            self._close(channel)

    def _close(self, channel: _Channel) -> None:
        task = self._loop.create_task(channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def end(self) -> None:
        """End everything at once; exchanges under way end with `NoAnswer`."""
        self._is_closed = True
        self._dismiss_waiters(End.CLOSED)
        if self._channel is not None:
            channel, self._channel = self._channel, None
            self._close(channel)

    async def gone(self) -> None:
        """After `end`: wait until the channels are closed."""
        while self._closing:
            await asyncio.wait(self._closing)


class _Channel:
    """A channel, its methods, and how many calls it has under way."""

    __slots__ = ("_channel", "_methods", "calls")

    def __init__(
        self, address: str, options: list[tuple[str, object]], credentials: grpc.ChannelCredentials | None
    ) -> None:
        self._channel = (
            grpc.aio.insecure_channel(address, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=options)
        )
        self._methods: dict[str, _Method] = {}
        self.calls = 0

    def method(self, name: str) -> _Method:
        method = self._methods.get(name)
        if method is None:
            if len(self._methods) >= _CACHED_METHODS:
                del self._methods[next(iter(self._methods))]
            # Without serializers: bytes as they are.
            method = self._methods[name] = self._channel.unary_unary(name)
        return method

    @property
    def is_connected(self) -> bool:
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def close(self) -> None:
        await self._channel.close()


def parse_target(url: str) -> GrpcTarget:
    """Parse `host:port/package.Service/Method`.

    Raises:
        BadUrlError: with a sentence that shows the URL.
    """
    try:
        read = read_url(url)
    except ValueError as error:
        raise BadUrlError(f"{clean(ascii(url), 300)} {error}") from error
    return GrpcTarget(
        host=read.host.strip("[]"),
        port=read.port,
        method=read.method,
        origin=f"grpc://{read.host}:{read.port}",
        # With the scheme of its resolver, so that no host is taken for one.
        address=f"dns:///{read.host}:{read.port}",
    )


def make_metadata(headers: Iterable[tuple[str, str]]) -> Metadata:
    """Turn branch headers into metadata, without what the coordinator says itself.

    Raises:
        BadHeaderError: a name or value cannot be metadata.
    """
    try:
        return metadata_of(headers, ours=_OURS)
    except ValueError as error:
        raise BadHeaderError(str(error)) from error


def _describe(answer: GrpcAnswer, outcome: Outcome, *, limit: int) -> str:
    if outcome is not Outcome.UNKNOWN:
        return clean(answer.message, limit) if answer.message else ""
    return clean(f"gRPC {answer.name}: {answer.message}" if answer.message else f"gRPC {answer.name}", limit)


def _channel_options(settings: DispatchSettings, tls: ClientTls | None) -> list[tuple[str, object]]:
    options: list[tuple[str, object]] = [
        ("grpc.primary_user_agent", f"txcoord/{__version__}"),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", 2 * settings.max_header_bytes),
        # Nothing but the URL and our settings decides how a participant is called.
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.use_local_subchannel_pool", 1),
        # How long an attempt to connect may take, and how soon the next one follows.
        ("grpc.min_reconnect_backoff_ms", int(settings.connect_timeout_s * 1000)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", max(100, int(settings.breaker_hold_s * 1000))),
    ]
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _credentials(tls: ClientTls | None) -> grpc.ChannelCredentials | None:
    if tls is None:
        return None
    key, certificate = tls.grpc_certificate
    return grpc.ssl_channel_credentials(tls.grpc_roots, key, certificate)
