"""Checks of what the caller hands over, where the coordinator's own rules say what is right.

A mistake is best met at the line that makes it. Bounds of size are left to the
coordinator: they are its settings.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

import msgspec

from txcoord.errors import InvalidRequestError
from txcoord.grpc_call import GRPC_FORM
from txcoord.msg.topics import check_topic
from txcoord.protocol import API_BASE, DEFAULT_GRPC_PORT, GRPC, HTTP, TOPIC_SCHEME
from txcoord.request import Limits, TransRequest, check_gid, check_options, check_url

GRPC_SCHEMES = ("grpc://", "grpcs://")
"""Of a coordinator's address, if it is spoken to over gRPC; the latter with TLS."""

Duration = float | timedelta
"""Seconds, or a timedelta."""

Fields = Mapping[str, object]
"""The body of a request by the names of DTM's JSON, with payloads in bytes."""

_ANY_SIZE = Limits(max_url_length=sys.maxsize, max_header_bytes=sys.maxsize)


def checked_gid(gid: str) -> str:
    """Return a gid that every coordinator takes as it is; DTM's deletes semicolons."""
    try:
        check_gid(gid)
    except InvalidRequestError as error:
        raise ValueError(str(error)) from error
    if ";" in gid:
        raise ValueError(f"gid {gid!r} has a semicolon, which coordinators delete: leave it out")
    return gid


def is_grpc_url(url: str) -> bool:
    """Whether a branch with this URL is called over gRPC: it has no scheme."""
    return bool(url) and "://" not in url


def checked_url(url: str, *, name: str) -> str:
    """Return the URL of a branch, http(s) or `host:port/package.Service/Method`; or an empty one."""
    try:
        return check_url(url, where=name, limits=_ANY_SIZE, protocol=GRPC if is_grpc_url(url) else HTTP)
    except InvalidRequestError as error:
        hint = "; a URL of HTTP begins with http:// or https://" if is_grpc_url(url) else ""
        raise ValueError(f"{error}{hint}") from error


def protocol_for(chosen: str | None, urls: Iterable[str]) -> str:
    """Return the protocol of a transaction with these URLs; "" is the coordinator's own, HTTP.

    Raises:
        ValueError: the one that was chosen is not known, or cannot call them all.
    """
    needs_grpc = any(is_grpc_url(url) for url in urls)
    if chosen is None:
        return GRPC if needs_grpc else ""
    if chosen not in (HTTP, GRPC):
        raise ValueError(f"protocol {chosen!r} is not offered: say {HTTP!r} or {GRPC!r}")
    if needs_grpc and chosen != GRPC:
        raise ValueError(f"a URL of the form {GRPC_FORM} needs protocol={GRPC!r}")
    return chosen


def checked_topic_or_url(url: str) -> str:
    """Return the URL of a branch, or `topic://` with a name."""
    if not url.startswith(TOPIC_SCHEME):
        return checked_url(url, name="url")
    try:
        checked_topic(url.removeprefix(TOPIC_SCHEME))
    except ValueError as error:
        raise ValueError(f"url {url!r} names no topic, as {TOPIC_SCHEME}name would: {error}") from error
    return url


def checked_topic(topic: str) -> str:
    """Return the name of a topic."""
    try:
        return check_topic(topic)
    except InvalidRequestError as error:
        raise ValueError(str(error)) from error


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers that can be sent."""
    try:
        return check_options(TransRequest(branch_headers=dict(headers)), _ANY_SIZE).branch_headers
    except InvalidRequestError as error:
        raise ValueError(str(error)) from error


def base_url(url: str) -> str:
    """Bring a coordinator's address to one form; DTM's clients are given it with the path of the API."""
    if url.startswith(GRPC_SCHEMES):
        return _base_of_grpc(url)
    base = url.rstrip("/").removesuffix(API_BASE).rstrip("/")
    if not base or "?" in base or "#" in base:
        raise ValueError(f"the coordinator's URL looks like http://127.0.0.1:36789, not {url!r}")
    try:
        return check_url(base, where="the coordinator's URL", limits=_ANY_SIZE)
    except InvalidRequestError as error:
        raise ValueError(str(error)) from error


def _base_of_grpc(url: str) -> str:
    parts = urlsplit(url.rstrip("/"))
    try:
        is_complete = bool(parts.hostname) and parts.port != 0 and not (parts.path or parts.query or parts.fragment)
    except ValueError:
        is_complete = False
    if not is_complete or "@" in parts.netloc:
        raise ValueError(
            f"the coordinator's URL over gRPC looks like grpc://127.0.0.1:{DEFAULT_GRPC_PORT}, not {url!r}"
        )
    port = "" if parts.port else f":{DEFAULT_GRPC_PORT}"
    return f"{parts.scheme}://{parts.netloc}{port}"


def seconds(value: Duration, *, name: str) -> float:
    """Convert to seconds; it must be finite and not negative."""
    result = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not math.isfinite(result) or result < 0:
        raise ValueError(f"{name} must be a finite time of 0 seconds or more, not {value!r}")
    return result


def whole_seconds(value: Duration, *, name: str) -> int:
    """Convert to the whole seconds that the wire can carry; there 0 means "not set", so 1 is the least."""
    result = seconds(value, name=name)
    if result < 1 or result != int(result):
        raise ValueError(f"{name} must be a whole number of seconds, 1 or more, not {value!r}")
    return int(result)


def wire_options(
    *,
    timeout_to_fail: Duration | None,
    request_timeout: Duration | None,
    retry_interval: Duration | None,
    branch_headers: Mapping[str, str] | None,
) -> dict[str, object]:
    """Return the options that all patterns share, as the wire names them; what is None is left out."""
    options: dict[str, object] = {}
    for name, duration in (
        ("timeout_to_fail", timeout_to_fail),
        ("request_timeout", request_timeout),
        ("retry_interval", retry_interval),
    ):
        if duration is not None:
            options[name] = whole_seconds(duration, name=name)
    if branch_headers:
        options["branch_headers"] = checked_headers(branch_headers)
    return options


@runtime_checkable
class _Model(Protocol):
    # What the SDK needs to know of Pydantic, without depending on it.
    def model_dump(self, *, mode: str) -> object: ...


def plain(value: object) -> object:
    """Return what msgspec knows how to write, for a value that it does not know: `enc_hook`."""
    if isinstance(value, _Model):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no form in JSON")


@runtime_checkable
class _Protobuf(Protocol):
    # What the SDK needs to know of protobuf messages, without depending on them.
    def SerializeToString(self) -> bytes: ...


def payload_of(payload: object, *urls: str) -> bytes:
    """Return the exact body of the calls of these URLs that carry a payload.

    Raises:
        ValueError: it has no such form.
    """
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, _Protobuf):
        return payload.SerializeToString()
    if any(is_grpc_url(url) for url in urls):
        if payload is None:
            return b""
        raise ValueError(f"what is called over gRPC takes a protobuf message or bytes, not {type(payload).__name__}")
    if isinstance(payload, str):
        return payload.encode()
    try:
        return msgspec.json.encode(payload, enc_hook=plain)
    except (TypeError, msgspec.MsgspecError) as error:
        raise ValueError(f"the payload cannot be written as JSON: {error}") from error


def json_body(fields: Fields) -> bytes:
    """Write a request to the coordinator's HTTP API, which carries payloads as strings."""
    return msgspec.json.encode({name: _with_text(value) for name, value in fields.items()})


def _with_text(value: object) -> object:
    match value:
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    "a payload of bytes must be UTF-8 text: the coordinator's HTTP API carries it as a string."
                    " Over its gRPC API (grpc://host:port) any bytes can be sent"
                ) from error
        case list() | tuple():
            return [_with_text(each) for each in value]
        case _:
            return value
