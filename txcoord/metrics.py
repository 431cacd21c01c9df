"""What can be measured from outside: Prometheus metrics, scraped at `/api/metrics`.

Names that start with `dtm_` are DTM's, for dashboards that exist; `txcoord_` ones are
ours. Every label has a closed set of values: nothing that a client or a participant
sends becomes a label. (DTM's `branchid` is left out for that reason, and its `api` holds
no query string.)

The children of labelled metrics are made once, here, because looking them up costs more
than counting. With several worker processes each writes to files in
`PROMETHEUS_MULTIPROC_DIR`, which has to be set before this module is imported; whichever
process is scraped adds them all up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import disable_created_metrics as _disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from txcoord import __version__
from txcoord.model import Op, Outcome, Pattern, Status

_disable_created_metrics()  # type: ignore[no-untyped-call]

MULTIPROCESS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# -- the API --------------------------------------------------------------------------

_SERVER_INFO = Gauge(
    "dtm_server_info", "Always 1; the version is in the label.", ["version"], multiprocess_mode="livemax"
)
_SERVER_INFO.labels(__version__).set(1)

_REQUESTS = Counter(
    "dtm_server_process", "Requests answered; fail: with a status of 400 or more.", ["type", "api", "status"]
)
_REQUEST_SECONDS = Histogram(
    "dtm_server_response_duration", "Time from request to answer.", ["type", "api"], buckets=_SECONDS
)


class ApiMetrics:
    """The metrics of one API path, resolved."""

    __slots__ = ("_fail", "_ok", "_seconds")

    def __init__(self, api: str, *, kind: str = "http") -> None:
        self._ok = _REQUESTS.labels(kind, api, "ok")
        self._fail = _REQUESTS.labels(kind, api, "fail")
        self._seconds = _REQUEST_SECONDS.labels(kind, api)

    def answered(self, status: int, seconds: float) -> None:
        (self._ok if status < 400 else self._fail).inc()
        self._seconds.observe(seconds)


# -- transactions and branch calls ----------------------------------------------------

_TRANSACTIONS = Counter(
    "dtm_transaction_process", "Transactions ended; fail: rolled back or stopped by hand.", ["model", "status"]
)
_TRANSACTION_SECONDS = Histogram(
    "dtm_transaction_handled_duration", "Time from creation to the end.", ["model"], buckets=_LONG_SECONDS
)
_BRANCH_CALLS = Counter(
    "dtm_branch_process", "Branch operations called; fail: anything but success.", ["model", "branchtype", "status"]
)
_OUTCOMES = Counter("txcoord_branch_calls", "Branch operations called, by what they answered.", ["outcome"])

_ended: Final = {
    (pattern, status): (
        _TRANSACTIONS.labels(pattern.value, "ok" if status is Status.SUCCEEDED else "fail"),
        _TRANSACTION_SECONDS.labels(pattern.value),
    )
    for pattern in Pattern
    for status in (Status.SUCCEEDED, Status.FAILED)
}
_called: Final = {
    (pattern, op, outcome): (
        _BRANCH_CALLS.labels(pattern.value, op.value, "ok" if outcome is Outcome.SUCCESS else "fail"),
        _OUTCOMES.labels(outcome.value),
    )
    for pattern, ops in {
        Pattern.SAGA: (Op.ACTION, Op.COMPENSATE),
        Pattern.TCC: (Op.CONFIRM, Op.CANCEL),
        Pattern.XA: (Op.COMMIT, Op.ROLLBACK),
        Pattern.MSG: (Op.ACTION, Op.MSG),
        Pattern.WORKFLOW: (Op.RESUME,),
    }.items()
    for op in ops
    for outcome in Outcome
}


def transaction_ended(pattern: Pattern, status: Status, seconds: float) -> None:
    """Count a transaction that became final, `seconds` after it was created."""
    count, duration = _ended[pattern, status]
    count.inc()
    duration.observe(seconds)


def branch_called(pattern: Pattern, op: Op, outcome: Outcome) -> None:
    """Count one call of a branch operation."""
    by_op, by_outcome = _called[pattern, op, outcome]
    by_op.inc()
    by_outcome.inc()


# -- participants -----------------------------------------------------------------------

_ENDPOINTS = Gauge(
    "txcoord_endpoints", "Participants of which state is held.", ["protocol"], multiprocess_mode="livesum"
)
_HELD_OFF = Gauge(
    "txcoord_endpoints_held_off",
    "Participants that are left alone because they do not answer (open breakers).",
    ["protocol"],
    multiprocess_mode="livesum",
)
_UNDER_WAY = Gauge(
    "txcoord_endpoint_calls", "Calls of participants under way.", ["protocol"], multiprocess_mode="livesum"
)
_WAITING = Gauge(
    "txcoord_endpoint_waiting",
    "Calls that wait until their participant has fewer under way.",
    ["protocol"],
    multiprocess_mode="livesum",
)
CALLS_NOT_MADE: Final = Counter(
    "txcoord_calls_not_made", "Calls put off because their participant is held off, or has too many already."
)


class EndpointGauges:
    """How the participants stand that are called over one protocol. (Which they are stands in the log: their
    names are what clients send.)"""

    __slots__ = ("_endpoints", "_held_off", "_under_way", "_waiting")

    def __init__(self, protocol: str) -> None:
        self._endpoints = _ENDPOINTS.labels(protocol)
        self._held_off = _HELD_OFF.labels(protocol)
        self._under_way = _UNDER_WAY.labels(protocol)
        self._waiting = _WAITING.labels(protocol)

    def set(self, *, endpoints: int, held_off: int, under_way: int, waiting: int) -> None:
        self._endpoints.set(endpoints)
        self._held_off.set(held_off)
        self._under_way.set(under_way)
        self._waiting.set(waiting)


# -- alerts ---------------------------------------------------------------------------

_ALERTS = Counter("txcoord_alerts", "Alerts for the webhook, by what became of them.", ["result"])
ALERTS_SENT: Final = _ALERTS.labels("sent")
ALERTS_FAILED: Final = _ALERTS.labels("failed")
ALERTS_DROPPED: Final = _ALERTS.labels("dropped")

# -- journal, ownership ---------------------------------------------------------------

_JOURNAL_BATCHES: Final = Counter("txcoord_journal_batches", "Batches written, each one database transaction.")
_JOURNAL_CHANGES: Final = Counter("txcoord_journal_changes", "Changes written in these batches.")
_JOURNAL_BATCH_SIZE: Final = Histogram("txcoord_journal_batch_size", "Changes in one batch.", buckets=_BATCHES)
_JOURNAL_FLUSH_SECONDS: Final = Histogram(
    "txcoord_journal_flush_seconds", "Time to write one batch durably.", buckets=_SECONDS
)
JOURNAL_RETRIES: Final = Counter("txcoord_journal_retries", "Batches that had to be written again.")
LIVE: Final = Gauge("txcoord_live_transactions", "Transactions driven at this moment.", multiprocess_mode="livesum")
PARKED: Final = Counter("txcoord_parked", "Transactions put aside until they are due.")
TAKEOVERS: Final = Counter("txcoord_takeovers", "Due transactions taken over by this node.")
LEASE_LOST: Final = Counter("txcoord_lease_lost", "Times that a node found its lease ended or a transaction taken.")
CLAIMED_BY_OTHERS: Final = Counter(
    "txcoord_claimed_by_others", "Prepared transactions that another node claimed, since its initiator asked there."
)


def journal_flushed(*, changes: int, seconds: float) -> None:
    """Count a batch that is on disk."""
    _JOURNAL_BATCHES.inc()
    _JOURNAL_CHANGES.inc(changes)
    _JOURNAL_BATCH_SIZE.observe(changes)
    _JOURNAL_FLUSH_SECONDS.observe(seconds)


# -- exposition -----------------------------------------------------------------------


def exposition(unfinished: Mapping[Status, int] | None = None) -> bytes:
    """All metrics in Prometheus' text format; with several workers, those of all of them.

    Args:
        unfinished: what the store counts, which is no process's own; None: it is not known, and left out.
    """
    registry = REGISTRY
    if MULTIPROCESS_DIR in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry) + (b"" if unfinished is None else generate_latest(_Unfinished(unfinished)))


class _Unfinished(Collector):
    """Not a gauge: that would be kept, and added up over the workers."""

    def __init__(self, counts: Mapping[Status, int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gauge = GaugeMetricFamily(
            "txcoord_unfinished", "Transactions in the store that have not ended.", labels=["status"]
        )
        for status, count in self._counts.items():
            gauge.add_metric([status.value], count)
        yield gauge


def forget_process(pid: int) -> None:
    """Drop the gauges of a worker that ended; its counters stay, so that sums never fall."""
    if Path(os.environ.get(MULTIPROCESS_DIR, "/nonexistent")).is_dir():
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
