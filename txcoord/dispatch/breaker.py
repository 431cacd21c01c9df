"""The breaker of one endpoint: after too many calls without an answer it is left alone for a while.

Closed: calls pass. After `breaker_failures` failures in a row it opens: no call passes before
the hold is over. Then one call passes as a probe; its success closes the breaker, its failure
opens it again, for twice as long up to a cap. Only calls that bring no
answer, over HTTP or gRPC, are failures: a status, be it 500 or UNAVAILABLE, comes from a
participant that lives, and holding off all its other URLs because one of them is broken would
harm more than it saves.
"""

from __future__ import annotations

from random import Random

from txcoord.dispatch.settings import DispatchSettings


class Breaker:
    """Counts one endpoint's failures. It reads no clock: instants (in seconds) are handed in."""

    __slots__ = ("_hold_s", "_open_until", "_probing", "_random", "_settings", "failures", "is_open")

    def __init__(self, settings: DispatchSettings, random: Random) -> None:
        self._settings = settings
        self._random = random
        self._hold_s = 0.0
        self._open_until = 0.0
        self._probing = False
        self.failures = 0
        """In a row."""
        self.is_open = False

    def admit_probe(self, now: float) -> bool:
        """Say, of an open breaker, whether a call may pass as its probe. If so, its end must be reported."""
        if self._probing or now < self._open_until:
            return False
        self._probing = True
        return True

    def retry_after_s(self, now: float) -> float:
        """When to come again. Spread a little, so that the first to come can find out for the others."""
        left = max(0.0, self._open_until - now)
        return left + self._hold_s * self._random.uniform(0.05, 0.25)

    def succeeded(self) -> bool:
        """An answer came, to whatever call. True: this closed the breaker."""
        closed = self.is_open
        self.failures, self.is_open, self._probing, self._hold_s = 0, False, False, 0.0
        return closed

    def failed(self, now: float, *, probe: bool) -> bool:
        """No answer came. True: this opened the breaker, first or anew.

        Calls made before it opened, and failing after that, tell nothing new.
        """
        self.failures += 1
        if self.is_open and not probe:
            return False
        if not self.is_open and self.failures < self._settings.breaker_failures:
            return False
        hold = self._hold_s * 2 if self.is_open else self._settings.breaker_hold_s
        self._hold_s = min(hold, self._settings.breaker_hold_max_s)
        self._open_until = now + self._hold_s * self._random.uniform(0.75, 1.0)
        self.is_open, self._probing = True, False
        return True

    def withdrawn(self) -> None:
        """The probe ended without telling anything (its caller went away): the next call is one."""
        self._probing = False
