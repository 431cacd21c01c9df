"""URLs of branches: parsed once, encoded as httpx encodes them, safe to put into a request.

Those that check a URL and those that call it read it here, so that nothing is accepted that can never be called.
Everything that leaves this module for the wire is printable ASCII without spaces.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from urllib.parse import quote, unquote, urljoin

import idna
from msgspec import Struct

_MAX_LENGTH = 65_536
_PARTS = re.compile(r"(?:([a-zA-Z][a-zA-Z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(?:(.*)@)?(\[.*\]|[^:@]*):?(.*)", re.DOTALL)
_USERINFO_SHOWN = re.compile(r"//[^/?#]*@")
_IPV4_LIKE = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")

# The WHATWG sets, as httpx uses them. A % stays: what is escaped already is not escaped again.
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_QUERY_SAFE = _PRINTABLE.translate(dict.fromkeys(map(ord, '"#<>')))
_PATH_SAFE = _QUERY_SAFE.translate(dict.fromkeys(map(ord, "?`{}")))
_HOST_SAFE = "!$&'()*+,;=\"`{}|\\%"
_DEFAULT_PORTS = {"http": 80, "https": 443}


class BadUrlError(ValueError):
    """The URL cannot be called; the sentence says why."""


class Url(Struct, frozen=True, kw_only=True):
    """A URL that can be called."""

    scheme: str
    host: str
    """A name (IDNA) or an address, without brackets."""
    port: int
    target: str
    """Path and query as they go on the wire."""
    has_query: bool
    authorization: str = ""
    """Basic credentials from the URL's userinfo."""
    origin: str
    """Scheme, host and port as text: the endpoint's name, without credentials."""
    host_header: str
    text: str
    """The whole URL, without credentials and fragment."""


def parse_url(text: str) -> Url:
    """Parse an absolute http or https URL.

    Raises:
        BadUrlError: with a sentence that shows the URL, without its credentials.
    """
    try:
        return _parse(text)
    except BadUrlError as error:
        raise BadUrlError(f"the URL {_shown(text)} cannot be called: {error}") from None
    except UnicodeError:
        raise BadUrlError(f"the URL {_shown(text)} cannot be called: it has no valid encoding") from None


def fault_of_url(text: str) -> str:
    """Say why a URL cannot be called, going on from the URL; "" if it can."""
    if not text.isprintable() or " " in text:
        return "has spaces or control characters: percent-encode them"
    try:
        _parse(text)
    except BadUrlError as error:
        return f"is not a complete http:// or https:// URL: {error}"
    except UnicodeError:
        return "is not a complete http:// or https:// URL: it has no valid encoding"
    return ""


def join_url(base: Url, location: str) -> Url:
    """Resolve a redirect's Location. Raises `BadUrlError`."""
    try:
        joined = urljoin(base.text, location)
    except ValueError:
        raise BadUrlError(f"the URL {_shown(location)} cannot be called: it is malformed") from None
    return parse_url(joined)


def _parse(text: str) -> Url:
    if len(text) > _MAX_LENGTH:
        raise BadUrlError(f"it is longer than {_MAX_LENGTH} characters")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise BadUrlError("it contains control characters")
    match = _PARTS.fullmatch(text)
    assert match is not None, "every part is optional"
    scheme, authority, path, query = match.group(1) or "", match.group(2) or "", match.group(3), match.group(4)
    scheme = scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise BadUrlError(f"its scheme is {scheme!r}, not http or https" if scheme else "it has no http:// or https://")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise BadUrlError("its host is malformed")
    userinfo, host, port_text = match.group(1) or "", _host(match.group(2)), match.group(3)
    if not host:
        raise BadUrlError("it has no host")
    port = _port(port_text, scheme)
    shown_host = f"[{host}]" if ":" in host else host
    host_header = shown_host if port == _DEFAULT_PORTS[scheme] else f"{shown_host}:{port}"
    target = quote(_without_dots(path), _PATH_SAFE) or "/"
    if query is not None:
        target = f"{target}?{quote(query, _QUERY_SAFE)}"
    return Url(
        scheme=scheme,
        host=host,
        port=port,
        target=target,
        has_query=bool(query),
        authorization=_basic(userinfo),
        origin=f"{scheme}://{shown_host}:{port}",
        host_header=host_header,
        text=f"{scheme}://{host_header}{target}",
    )


def _host(host: str) -> str:
    if host.startswith("["):
        try:
            if "%" in host:
                raise BadUrlError("its IPv6 address has a zone")
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ipaddress.AddressValueError:
            raise BadUrlError("its IPv6 address is malformed") from None
    if _IPV4_LIKE.fullmatch(host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ipaddress.AddressValueError:
            raise BadUrlError("its IPv4 address is malformed") from None
    if host.isascii():
        return quote(host.lower(), _HOST_SAFE)
    try:
        return idna.encode(host.lower()).decode("ascii")
    except UnicodeError:
        raise BadUrlError("its host name is not a valid international name") from None


def _port(text: str, scheme: str) -> int:
    if not text:
        return _DEFAULT_PORTS[scheme]
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65_535):
        raise BadUrlError("its port is not a number from 1 to 65535")
    return int(text)


def _basic(userinfo: str) -> str:
    if not userinfo:
        return ""
    user, _, password = userinfo.partition(":")
    return "Basic " + base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode("ascii")


def _without_dots(path: str) -> str:
    parts = path.split("/")
    if "." not in parts and ".." not in parts:
        return path
    kept: list[str] = []
    for part in parts:
        if part == "..":
            if kept and kept != [""]:
                kept.pop()
        elif part != ".":
            kept.append(part)
    return "/".join(kept)


def _shown(text: str) -> str:
    return ascii(_USERINFO_SHOWN.sub("//…@", text[:200]))
