"""The bounds of the dispatchers, all in one value."""

from __future__ import annotations

from msgspec import Struct


class DispatchSettings(Struct, frozen=True, kw_only=True):
    """What the dispatcher may use up, and when it stops trying. An endpoint is scheme, host and port."""

    max_in_flight: int = 256
    """Calls under way to one endpoint, and so connections to it."""
    max_waiting: int = 10_000
    """Calls waiting for one of an endpoint's places; one more is not made."""
    max_idle: int = 256
    """Kept-alive connections to one endpoint that have nothing to do."""
    keep_alive_idle_s: float = 4.0
    """How long such a connection is kept: less than the 5 s of uvicorn and Node, so that we close first."""
    max_endpoints: int = 1024
    """Endpoints of which state is held; idle ones make room."""
    endpoint_idle_s: float = 300.0
    """How long an endpoint's state is held without a call."""

    connect_timeout_s: float = 3.0
    """For name, TCP and TLS together; the call's own limit holds as well."""
    name_ttl_s: float = 5.0
    """How long the addresses of a host name are kept."""

    max_body_bytes: int = 1024 * 1024
    """Of an answer, as sent and again as decompressed. Reading stops there: what the status alone decides is
    decided, a 200 is unknown."""
    max_header_bytes: int = 16 * 1024
    """About the most that may come before, between and after the pieces of a body."""
    detail_bytes: int = 512
    """What a `CallResult` keeps of an answer, in UTF-8."""
    max_redirects: int = 5

    breaker_failures: int = 10
    """Calls in a row without an answer that open an endpoint's breaker."""
    breaker_hold_s: float = 1.0
    """The first hold; each probe that fails doubles it."""
    breaker_hold_max_s: float = 30.0

    failure_word_anywhere: bool = False
    """DTM's rule: FAILURE or ONGOING anywhere in a body counts, whatever the status."""

    tls_verify: bool = True
    tls_ca_file: str = ""
    """PEM file of the authorities to trust; empty: the system's."""
    participant_tls_file: str = ""
    """TOML file on the participants that need something else (see `tls`)."""

    cached_urls: int = 4096
    """Parsed URLs, and header blocks, that are kept."""
