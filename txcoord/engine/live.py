"""A transaction that this process is driving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from txcoord.dispatch.base import CallResult
from txcoord.model import GlobalTransaction, Status
from txcoord.request import SubmitResult
from txcoord.store.base import Applied, Owned


class ChangeRequest:
    """A wish to change a prepared transaction, and who is to be told when it is durable.

    `change` is pure: it takes the transaction as it stands and the time, and returns it as
    it is to be, or raises what the caller is told.
    """

    __slots__ = ("answer", "change")

    def __init__(
        self, change: Callable[[GlobalTransaction, int], GlobalTransaction], answer: asyncio.Future[GlobalTransaction]
    ) -> None:
        self.change = change
        self.answer = answer

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class LiveTransaction:
    """One transaction in memory: its state, the epoch to write it under, and who waits for it.

    Only its drive task changes `tx`. Call tasks leave their results in `ended`.
    """

    __slots__ = (
        "answer_of_creator",
        "call_error",
        "calls",
        "creation",
        "ended",
        "epoch",
        "has_unsaved_results",
        "in_flight",
        "is_recovered",
        "requests",
        "successor",
        "task",
        "timer",
        "tx",
        "waiters",
        "wake",
    )

    def __init__(self, tx: GlobalTransaction, *, epoch: int, is_recovered: bool = False) -> None:
        self.tx = tx
        self.epoch = epoch
        self.is_recovered = is_recovered
        self.has_unsaved_results = False
        """Results were recorded since the last save that was waited for."""
        self.in_flight: set[int] = set()
        self.ended: dict[int, tuple[int, CallResult]] = {}
        """Position → when the call began, and what it came to; not yet recorded."""
        self.wake = asyncio.Event()
        """Set when a call has ended or the drive loop has to look up."""
        self.calls: set[asyncio.Task[None]] = set()
        self.call_error: Exception | None = None
        """What a call raised, which none should; or that the transaction is somebody else's."""
        self.task: asyncio.Task[None] | None = None
        self.creation: asyncio.Future[Applied] | None = None
        """Ends when it is durable; None for one that was taken over, which is."""
        self.answer_of_creator: asyncio.Future[SubmitResult | None] | None = None
        self.requests: list[ChangeRequest] = []
        """What callers want changed; the drive task carries it out."""
        self.successor: Owned | None = None
        """Of a creation under way: what was taken over under its gid, to be driven when it has turned out to exist."""
        self.timer: asyncio.TimerHandle | None = None
        """Bounds the wait of the submit that created it."""
        self.waiters: dict[asyncio.Future[SubmitResult], None] = {}
        """Those that wait for the end of this pass, in their order. Whoever does not wait any more takes itself out: a
        pass can last for hours, and any number may come meanwhile."""

    @property
    def is_durable(self) -> bool:
        """Whether the store has it: what is still being created may yet turn out to exist already."""
        creation = self.creation
        return creation is None or (
            creation.done()
            and not creation.cancelled()
            and creation.exception() is None
            and creation.result() is Applied.DONE
        )

    def take_ended(self) -> Mapping[int, tuple[int, CallResult]]:
        ended, self.ended = self.ended, {}
        self.in_flight.difference_update(ended)
        return ended

    def drop_calls(self) -> None:
        """End the calls under way: what they come to does not matter any more."""
        for call in self.calls:
            call.cancel()
        self.in_flight.clear()
        self.ended.clear()

    def end_pass(self, reason: str = "") -> None:
        """Tell all that wait for this pass of processing how far it came."""
        if self.waiters:
            self.answer(SubmitResult(waited=True, status=self.tx.status, reason=reason or self.tx.rollback_reason))

    def stopped_by_operator(self, reason: str) -> None:
        self.answer(SubmitResult(waited=True, status=Status.FAILED, reason=reason))

    def answer(self, result: SubmitResult) -> None:
        waiters, self.waiters = self.waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(result)

    def fail_waiters(self, error: BaseException) -> None:
        waiters, self.waiters = self.waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
