"""The header lines of a branch call: our own, then what the initiator asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from txcoord import __version__
from txcoord.outcome import clean
from txcoord.protocol import CONNECTION_HEADERS

_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_FORBIDDEN = re.compile("[\x00-\x08\x0a-\x1f\x7f]")

_CREDENTIALS = frozenset(("authorization", "cookie"))

# Compression is not worth its time on answers of some bytes.
_DEFAULTS = (
    ("Accept", "application/json"),
    ("Accept-Encoding", "identity"),
    ("Content-Type", "application/json"),
    ("User-Agent", f"txcoord/{__version__}"),
)


class BadHeaderError(ValueError):
    """A header cannot be sent; the sentence names it."""


class HeaderBlock(Struct, frozen=True):
    """Header lines ready to be sent, without Host and Content-Length."""

    pairs: tuple[tuple[str, str], ...]
    text: str

    def without_credentials(self) -> HeaderBlock:
        """For another origin than the one they were meant for."""
        return _block(pair for pair in self.pairs if pair[0].lower() not in _CREDENTIALS)


def make_headers(extra: Iterable[tuple[str, str]], authorization: str = "") -> HeaderBlock:
    """Lay `extra` over the defaults; names are compared without case, the last one wins.

    Raises:
        BadHeaderError: a name or value cannot be a header (a line break, say).
    """
    merged = {name.lower(): (name, value) for name, value in _DEFAULTS}
    if authorization:
        merged["authorization"] = ("Authorization", authorization)
    for name, value in extra:
        key = name.lower()
        if key in CONNECTION_HEADERS:
            continue
        if not _TOKEN.fullmatch(name):
            raise BadHeaderError(f"the branch header {_shown(name)} cannot be sent: this is not a header name")
        if _FORBIDDEN.search(value) or not _is_encodable(value):
            raise BadHeaderError(f"the branch header {_shown(name)} cannot be sent: its value has control characters")
        merged[key] = (name, value.strip(" \t"))
    return _block(merged.values())


def _block(pairs: Iterable[tuple[str, str]]) -> HeaderBlock:
    kept = tuple(pairs)
    return HeaderBlock(kept, "".join(f"{name}: {value}\r\n" for name, value in kept))


def _is_encodable(value: str) -> bool:
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in value)


def _shown(name: str) -> str:
    return ascii(clean(name, 80))


DEFAULT_HEADERS = make_headers(())
