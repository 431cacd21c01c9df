"""Calls over gRPC: a channel for each host and port, opened when it is first needed and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from txcoord_sdk._calls import GrpcAnswer, GrpcCall

Credentials = grpc.ChannelCredentials | None
"""None: without TLS."""

MAX_ANSWER_BYTES = 64 << 20
"""A page of transactions, or one with many large payloads, is longer than gRPC's own 4 MiB."""

_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    # How often to call again is the rules' matter. gRPC's own pauses between connection
    # attempts grow to two minutes, in which calls fail although the server is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class AsyncChannels:
    """Channels of one event loop."""

    def __init__(self, *, coordinator: Credentials, branches: Credentials) -> None:
        self._coordinator, self._branches = coordinator, branches
        self._open: dict[tuple[str, bool], grpc.aio.Channel] = {}

    async def call(self, call: GrpcCall) -> GrpcAnswer:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel(call).unary_unary(call.method)
        try:
            body = await method(call.message, timeout=call.timeout_s, metadata=call.metadata)
        except grpc.aio.AioRpcError as error:
            return _refusal(error)
        return GrpcAnswer(code=0, name="OK", body=body)

    def _channel(self, call: GrpcCall) -> grpc.aio.Channel:
        found = self._open.get((call.target, call.is_branch))
        if found is None:
            credentials = self._branches if call.is_branch else self._coordinator
            if credentials is None:
                found = grpc.aio.insecure_channel(call.target, options=_OPTIONS)
            else:
                found = grpc.aio.secure_channel(call.target, credentials, options=_OPTIONS)
            self._open[call.target, call.is_branch] = found
        return found

    async def close(self) -> None:
        while self._open:
            await self._open.popitem()[1].close()


class Channels:
    """Channels that threads may share."""

    def __init__(self, *, coordinator: Credentials, branches: Credentials) -> None:
        self._coordinator, self._branches = coordinator, branches
        self._open: dict[tuple[str, bool], grpc.Channel] = {}

    def call(self, call: GrpcCall) -> GrpcAnswer:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel(call).unary_unary(call.method)
        try:
            body = method(call.message, timeout=call.timeout_s, metadata=call.metadata)
        except grpc.RpcError as error:
            return _refusal(error)
        return GrpcAnswer(code=0, name="OK", body=body)

    def _channel(self, call: GrpcCall) -> grpc.Channel:
        found = self._open.get((call.target, call.is_branch))
        if found is None:
            credentials = self._branches if call.is_branch else self._coordinator
            if credentials is None:
                made = grpc.insecure_channel(call.target, options=_OPTIONS)
            else:
                made = grpc.secure_channel(call.target, credentials, options=_OPTIONS)
            # Of two threads that open one at once, both use the first.
            found = self._open.setdefault((call.target, call.is_branch), made)
            if found is not made:
                made.close()
        return found

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def _refusal(error: grpc.RpcError) -> GrpcAnswer:
    code = error.code()
    return GrpcAnswer(code=code.value[0], name=code.name, message=error.details() or "")


def tls(credentials: Credentials, url: str) -> Credentials:
    """Return what a coordinator's address asks for: with `grpcs` the system's certificates unless others are given."""
    if not url.startswith("grpcs://"):
        if credentials is not None:
            raise ValueError(f"credentials are for TLS, which {url} is without: say grpcs://")
        return None
    return credentials or grpc.ssl_channel_credentials()
