"""How a branch operation is called over gRPC: the form of its URL, and what its metadata can carry.

For those that check it, for the coordinator that calls, and for initiators that call themselves.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from urllib.parse import quote

from msgspec import Struct

from txcoord.outcome import clean
from txcoord.protocol import CONNECTION_HEADERS

GRPC_FORM = "host:port/package.Service/Method"

Metadata = tuple[tuple[str, str | bytes], ...]

_URL = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?(/[A-Za-z_][\w.]*/[A-Za-z_]\w*)", re.ASCII)
_DEFAULT_PORT = 443  # as gRPC has it, with TLS or without

_KEY = re.compile(r"[0-9a-z_.-]+")
_LEFT_OUT = CONNECTION_HEADERS | {"content-type", "user-agent"}


class GrpcUrl(Struct, frozen=True):
    """What a URL of the form `GRPC_FORM` says."""

    host: str
    """In lower case; that of an IPv6 address has brackets."""
    port: int
    method: str
    """With the slash before it."""


def read_url(url: str) -> GrpcUrl:
    """Read a URL.

    Raises:
        ValueError: it cannot be called over gRPC; the text goes on from the URL.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"cannot be called over gRPC: it must be of the form {GRPC_FORM}")
    port = int(match[2] or _DEFAULT_PORT)
    if not 0 < port < 65_536:
        raise ValueError("cannot be called over gRPC: its port is not one from 1 to 65535")
    return GrpcUrl(match[1].lower(), port, match[3])


def fault_of_metadata(key: str, value: str) -> str:
    """Say why a name (in lower case) and a value cannot be metadata of a call; "" if they can."""
    if not _KEY.fullmatch(key):
        return "is not a name of metadata (letters, digits, hyphens, dots and underscores)"
    # What a "-bin" name has is sent as bytes.
    return "" if key.endswith("-bin") or _is_plain(value) else "has a value that is not printable ASCII"


def metadata_of(headers: Iterable[tuple[str, str]], *, ours: Collection[str]) -> Metadata:
    """Turn branch headers into metadata; names in lower case, values of `-bin` names as bytes.

    What describes the connection is left out, and what the caller says itself.

    Args:
        ours: the names of the latter.

    Raises:
        ValueError: a name or value cannot be metadata; the sentence names the header.
    """
    found: dict[str, str | bytes] = {}
    for name, value in headers:
        key = name.lower()
        if key in _LEFT_OUT or key in ours or key.startswith("grpc-"):
            continue
        if fault := fault_of_metadata(key, value):
            raise ValueError(f"the branch header {clean(name, 80)!a} cannot be sent over gRPC: it {fault}")
        found[key] = value.encode("utf-8", "replace") if key.endswith("-bin") else value
    return tuple(found.items())


def as_ascii(text: str) -> str:
    """Write any text as metadata: what is not printable ASCII is percent-encoded as a whole, as in a query."""
    return text if _is_plain(text) else quote(text, safe="", errors="replace")


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()
