"""Checks of what the caller hands over, where the coordinator's own rules say what is right.

A mistake is best met at the line that makes it. Bounds of size are left to the
coordinator: they are its settings.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol, runtime_checkable

import msgspec

from txcoord.errors import InvalidRequestError
from txcoord.protocol import API_BASE
from txcoord.request import Limits, TransRequest, check_gid, check_options, check_url

TOPIC_PREFIX = "topic://"

Duration = float | timedelta
"""Seconds, or a timedelta."""

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


def checked_url(url: str, *, name: str) -> str:
    """Return an http(s) URL, or an empty one."""
    try:
        return check_url(url, where=name, limits=_ANY_SIZE)
    except InvalidRequestError as error:
        raise ValueError(str(error)) from error


def checked_topic_or_url(url: str) -> str:
    """Return an http(s) URL, or `topic://` with a name."""
    name = url.removeprefix(TOPIC_PREFIX)
    if name == url:
        return checked_url(url, name="url")
    if not name or not name.isprintable():
        raise ValueError(f"url {url!r} names no topic: it looks like {TOPIC_PREFIX}name")
    return url


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers that can be sent."""
    try:
        return check_options(TransRequest(branch_headers=dict(headers)), _ANY_SIZE).branch_headers
    except InvalidRequestError as error:
        raise ValueError(str(error)) from error


def base_url(url: str) -> str:
    """Bring a coordinator's address to one form; DTM's clients are given it with the path of the API."""
    base = url.rstrip("/").removesuffix(API_BASE).rstrip("/")
    if not base or "?" in base or "#" in base:
        raise ValueError(f"the coordinator's URL looks like http://127.0.0.1:36789, not {url!r}")
    return checked_url(base, name="the coordinator's URL")


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


def _plain(value: object) -> object:
    if isinstance(value, _Model):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def body_text(payload: object) -> str:
    """Return the exact body of the calls that carry a payload."""
    if isinstance(payload, str):
        return payload
    try:
        body = payload if isinstance(payload, bytes) else msgspec.json.encode(payload, enc_hook=_plain)
        return body.decode()
    except UnicodeDecodeError as error:
        raise ValueError("a payload of bytes must be UTF-8 text: the wire carries it as a string") from error
    except (TypeError, msgspec.MsgspecError) as error:
        raise ValueError(f"the payload cannot be written as JSON: {error}") from error
