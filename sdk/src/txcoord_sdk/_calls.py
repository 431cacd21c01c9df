"""Calls that a client is to make, and what comes of them: what rules, wires and clients say to each other. No I/O.

Each operation is a generator (`Flow`): it yields what is to be done (`HttpCall`, `GrpcCall`, `Pause`), is sent what
came of it, and returns the operation's result or raises its error. How a request to a coordinator and its answer are
written is up to a `Wire`: that of HTTP is here, that of gRPC in `_grpc_wire`, which needs more installed.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from txcoord_sdk._checks import Fields, json_body

PING_PATH = "/api/ping"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCall:
    """To do: send this request."""

    method: str
    url: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcCall:
    """To do: call this method."""

    target: str
    """Host and port."""
    method: str
    """`/package.Service/Method`."""
    message: bytes
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    timeout_s: float
    is_branch: bool = False
    """Whether a participant is called, and not the coordinator: they may have different certificates."""


Call = HttpCall | GrpcCall


@dataclass(frozen=True, slots=True)
class Pause:
    """To do: wait this long."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """What came of a call: an answer, whatever it says."""

    status: int
    body: bytes
    retry_after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """What came of a call: nothing."""

    detail: str
    may_have_arrived: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcAnswer:
    """What came of a call over gRPC. Some codes come from the sender's own side, when nothing was answered."""

    code: int
    name: str
    """Of the status code."""
    message: str = ""
    body: bytes = b""


Reply = HttpAnswer | NoAnswer
AnyReply = HttpAnswer | GrpcAnswer | NoAnswer
Flow = Generator[Call | Pause, AnyReply | None, T]


class Wire(Protocol):
    """How requests to a coordinator are written, and its answers read."""

    def call(self, method: str, path: str, *, query: Mapping[str, str], body: Fields | None, timeout_s: float) -> Call:
        """Write a request; method, path and query are those of the HTTP API.

        Raises:
            ValueError: it holds what this wire cannot carry.
        """

    def answer(self, call: Call, reply: AnyReply) -> Reply:
        """Read what came of a request, as if it had come over HTTP."""


class HttpWire:
    """DTM's HTTP API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def call(self, method: str, path: str, *, query: Mapping[str, str], body: Fields | None, timeout_s: float) -> Call:
        content = None if body is None else json_body(body)
        return HttpCall(method=method, url=f"{self._url}{path}", query=query, body=content, timeout_s=timeout_s)

    def answer(self, call: Call, reply: AnyReply) -> Reply:
        assert not isinstance(reply, GrpcAnswer), f"a call over HTTP ({call}) is not answered over gRPC"
        return reply
