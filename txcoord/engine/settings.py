"""What the engine can be told."""

from __future__ import annotations

from msgspec import Struct


class EngineSettings(Struct, frozen=True, kw_only=True):
    """Durations in seconds; the meaning of each stands in docs/settings.md."""

    lease_s: float = 10.0
    drain_s: float = 10.0
    request_timeout_s: float = 3.0
    retry_interval_s: float = 10.0
    error_backoff_s: float = 1.0
    backoff_cap_s: float = 300.0
    max_live: int = 10_000
    max_wait_s: float = 60.0
    attempts_kept: int = 5
    alert_retry_limit: int = 3
    accept_wait_s: float = 5.0
    """Longest wait of a submit for the store before it is answered with 503."""
    lazy_write_s: float = 0.1
    """Oldest that a branch result may get before it is stored on its own."""
    short_wait_s: float = 0.25
    """Waits up to this long are spent in memory; longer ones are parked."""
    linger_s: float = 2.0
    """How long a prepared transaction stays in memory after its latest change."""
    poll_s: float = 1.0
    """How often to look for parked transactions that other nodes left due."""
    take_over_batch: int = 256
    max_recovering: int = 1024
    """Taken-over transactions driven at once, so that a backlog leaves room for new ones."""
    max_batch: int = 512
    """Changes in one database transaction."""
