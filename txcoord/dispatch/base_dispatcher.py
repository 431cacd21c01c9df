"""What all dispatchers share: the results of calls without an answer that can be understood."""

from __future__ import annotations

from collections.abc import Callable

from txcoord.dispatch.base import CallResult
from txcoord.dispatch.limited import NoAnswer
from txcoord.dispatch.settings import DispatchSettings
from txcoord.model import MICROSECONDS, Outcome
from txcoord.outcome import clean


class BaseDispatcher:
    """Base of those that implement `base.Dispatcher`."""

    def __init__(self, settings: DispatchSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock

    def _without_answer(self, result: NoAnswer, started: float) -> CallResult:
        return CallResult(
            outcome=Outcome.UNKNOWN,
            detail=clean(result.detail, self._settings.detail_bytes),
            duration_us=self._elapsed_us(started),
            called=result.called,
            retry_after_s=result.retry_after_s,
        )

    def _unknown(self, detail: str, started: float) -> CallResult:
        return CallResult(
            outcome=Outcome.UNKNOWN,
            detail=clean(f"{detail}; the call is repeated all the same", self._settings.detail_bytes),
            duration_us=self._elapsed_us(started),
        )

    def _elapsed_us(self, started: float) -> int:
        return int((self._clock() - started) * MICROSECONDS)
