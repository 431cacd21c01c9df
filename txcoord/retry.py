"""Backoff with jitter.

A call that was answered with "ongoing" is repeated after the transaction's interval. A
call that ended without an answer we understand is repeated after a delay that doubles
with each failure in a row, up to a cap. With a `retry_interval` of its own, the first of
these delays is twice the interval (DTM's rule, which its users tune by); without one it
is the server's `error_backoff_s`, since most errors are short.

Each delay is shortened by a random part of up to a quarter, so that transactions that
failed together do not come back together. Shortened, never lengthened: the interval that
the initiator chose stays an upper bound.
"""

from __future__ import annotations

from random import Random

from msgspec import Struct

from txcoord.model import MICROSECONDS, Options

JITTER = 0.25
_MOST_DOUBLINGS = 40  # 2**40 s is beyond any cap, and far from overflowing a float


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """The delays of one transaction, in seconds, before jitter."""

    ongoing_s: float
    first_error_s: float
    cap_s: float


class RetryDefaults(Struct, frozen=True, kw_only=True):
    """What holds for a transaction that names no interval of its own."""

    retry_interval_s: float = 10.0
    error_backoff_s: float = 1.0
    backoff_cap_s: float = 300.0

    def policy(self, options: Options) -> RetryPolicy:
        if options.retry_interval_s > 0:
            interval = float(options.retry_interval_s)
            return RetryPolicy(
                ongoing_s=interval,
                first_error_s=2 * interval,
                cap_s=max(self.backoff_cap_s, 2 * interval),
            )
        interval = self.retry_interval_s
        if 0 < options.timeout_to_fail_s < interval:
            interval = float(options.timeout_to_fail_s)
        return RetryPolicy(ongoing_s=interval, first_error_s=self.error_backoff_s, cap_s=self.backoff_cap_s)


def error_delay_us(policy: RetryPolicy, failures: int, random: Random) -> int:
    """Say how long to wait after the `failures`-th error in a row (1 for the first)."""
    doublings = min(failures - 1, _MOST_DOUBLINGS)
    return jittered_us(min(policy.first_error_s * 2**doublings, policy.cap_s), random)


def ongoing_delay_us(policy: RetryPolicy, random: Random) -> int:
    """Say how long to wait after an answer of "ongoing"."""
    return jittered_us(policy.ongoing_s, random)


def jittered_us(delay_s: float, random: Random) -> int:
    return int(delay_s * (1 - JITTER * random.random()) * MICROSECONDS)
