"""In which order results of steps reach a workflow's function: in every execution in the same.

Steps that run at once end in any order, and what the function asks for next may depend on it: when one is
refused, others may not be asked for at all any more. If an execution after a crash got a refusal before the
results that the first one got before it, it would end without asking for steps that were taken, and nobody would
know how to undo them. So every record says two things about time, in terms of deliveries, which are the only clock that
all executions share:

- `order`: results are delivered one after another, in the order in which they were reported. The next one waits until
  the function has received the one before.
- `asked_after`: which result the function had received last when it asked for the step. So in a later execution no
  further one is delivered before it has asked again. (Not how many it had received: two processes that execute the
  same workflow for a while, each recording some steps, count differently.) `beside` says the same of steps that were
  under way and not yet recorded: their effect must not be forgotten either.

A function that asks for the same steps after the same results is never kept waiting for good by this. One that
has changed may be: this shows when it ends, or by nothing happening any more.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from itertools import islice
from threading import Event, Lock

from msgspec.structs import replace

from txcoord_sdk.workflow._works import Record

PATIENCE_S = 60.0
"""How long nothing at all may happen, while a result waits for a step that is recorded, until that counts as left out.

A function that pauses for longer between two steps of parallel sequences cannot be told from one that has changed.
"""

SETTLING_TURNS = 10
"""Turns of the loop until an exception has come from one task to those that are cancelled because of it."""

MAX_BESIDE = 50
"""How many steps that are under way a record lists. Each is listed until a record that does is stored, so of a
thousand that end together each would list them all."""


class NotAskedFor(Exception):
    """What is recorded cannot be delivered: the function was to ask for another step before."""

    def __init__(self, branch_id: str) -> None:
        super().__init__(branch_id)
        self.branch_id = branch_id


class Deliveries:
    """The deliveries of one execution. Coroutines here never suspend, but block, unless it is an async one."""

    def __init__(
        self, recorded: Iterable[tuple[str, Record]], under_way: Iterable[tuple[str, Record]], *, is_async: bool
    ):
        """
        Args:
            recorded: branches whose action has a result, in the order of the record.
            under_way: those which have another sign that they were asked for.
        """
        results = sorted(recorded, key=lambda each: each[1].order)
        self._is_async = is_async
        # Taken only for what does not wait; threads may share an execution.
        self._lock = Lock()
        self._queue = [branch_id for branch_id, _ in results]
        self._recorded = frozenset(self._queue)
        self._last_order = max((record.order for _, record in results), default=0)
        self._needed = _needed([*results, *under_way])
        places = {branch_id: place for place, branch_id in enumerate(self._queue, start=1)} | {"": 0}
        # After how many deliveries what is needed; the first comes last.
        self._due = sorted(
            ((places[after], branch_id) for branch_id, after in self._needed.items() if after in places), reverse=True
        )
        self._begun = frozenset(self._needed)
        self._asked: set[str] = set()
        self._unlisted: dict[str, str] = {}
        self._abandoned: set[str] = set()
        self._received = 0
        self._last = ""
        self._passing: str | None = None
        """Whose result is on its way to the function."""
        self._signals: dict[str, _Signal] = {}
        self._running: set[str] = set()
        self._moves = 0
        """Counts whatever happens."""
        self._is_closed = self._is_released = False

    def ask(self, branch_id: str) -> str:
        """Note that the function asks for a step; return whose result it has received last."""
        with self._lock:
            self._asked.add(branch_id)
            if branch_id not in self._recorded:
                self._running.add(branch_id)
            self._moved()
            return self._last

    async def may_begin(self, branch_id: str, asked_after: str) -> bool:
        """Say whether a step is to be taken that was asked for when `ask` said this.

        What is taken has to be asked for in later executions, too. In asyncio, whoever asks may just be about to be
        cancelled because of the latest result, and a slower execution would not ask any more. So a step begins
        when that has settled, if somebody still waits for it.
        """
        if branch_id in self._begun or branch_id in self._recorded:
            return True
        if self._is_async:
            for _ in range(SETTLING_TURNS):
                await asyncio.sleep(0)
        with self._lock:
            if self._is_closed or branch_id in self._abandoned:
                self._running.discard(branch_id)
                return False
            self._unlisted[branch_id] = asked_after
            return True

    def stamp(self, branch_id: str, record: Record) -> Record:
        """Give the result of a step its place, and return the record that is to be reported now."""
        with self._lock:
            self._last_order += 1
            self._queue.append(branch_id)
            self._unlisted.pop(branch_id, None)
            beside = dict(islice(self._unlisted.items(), MAX_BESIDE))
            return replace(record, order=self._last_order, beside=beside)

    def stored(self, record: Record) -> None:
        """Note that a record of `stamp` is stored: what it lists need not be listed again."""
        with self._lock:
            for branch_id in record.beside:
                self._unlisted.pop(branch_id, None)

    async def turn(self, branch_id: str) -> None:
        """Return when it is the turn of a result that is recorded.

        Raises:
            NotAskedFor: it never will be.
        """
        while True:
            with self._lock:
                self._running.discard(branch_id)
                if self._is_released:
                    return
                if self._is_next(branch_id):
                    self._passing = branch_id
                    if branch_id in self._abandoned:
                        self._receive(branch_id)
                    return
                if self._is_closed and (missing := self._missing()):
                    raise NotAskedFor(missing)
                signal: _Signal = _AsyncSignal() if self._is_async else _ThreadSignal()
                self._signals[branch_id] = signal
                moves = self._moves
            is_woken = await signal.wait(PATIENCE_S)
            with self._lock:
                if not is_woken and moves == self._moves and not self._running and (missing := self._missing()):
                    raise NotAskedFor(missing)

    def receive(self, branch_id: str) -> None:
        """Note that who asked for a step goes on: with its result, or without, if it was cancelled."""
        with self._lock:
            self._abandoned.add(branch_id)
            if self._passing == branch_id:
                self._receive(branch_id)

    def close(self) -> None:
        """Note that the function has ended: it asks for nothing any more."""
        with self._lock:
            self._is_closed = True
            self._wake_all()

    def release(self) -> None:
        """Let everything through: the execution has been broken off, and nothing follows from what it gets."""
        with self._lock:
            self._is_released = True
            self._wake_all()

    # -- with the lock held ----------------------------------------------------------------

    def _receive(self, branch_id: str) -> None:
        self._passing, self._last = None, branch_id
        self._received += 1
        self._moved()

    def _moved(self) -> None:
        self._moves += 1
        # Not all of them: of a thousand that wait, one can go on.
        if self._received < len(self._queue) and (signal := self._signals.pop(self._queue[self._received], None)):
            signal.set()

    def _wake_all(self) -> None:
        for signal in self._signals.values():
            signal.set()
        self._signals = {}

    def _is_next(self, branch_id: str) -> bool:
        return self._passing is None and self._queue[self._received] == branch_id and self._missing() is None

    def _missing(self) -> str | None:
        """Return what has to be asked for before the next delivery."""
        while self._due and self._due[-1][0] <= self._received:
            needed = self._due[-1][1]
            if needed not in self._asked:
                return needed
            self._due.pop()
        head = self._queue[self._received] if self._received < len(self._queue) else None
        return head if head is not None and head not in self._asked else None


def _needed(records: Iterable[tuple[str, Record]]) -> Mapping[str, str]:
    """Say what is asked for after whose result at the latest."""
    found: dict[str, str] = {}
    for branch_id, record in records:
        if record.asked_after is not None:
            found[branch_id] = record.asked_after
        for beside, after in record.beside.items():
            found.setdefault(beside, after)
    return found


class _Signal(ABC):
    """Set once; awaited by one."""

    @abstractmethod
    def set(self) -> None: ...

    @abstractmethod
    async def wait(self, patience_s: float) -> bool:
        """Return whether it was set, at the latest after a while."""


class _AsyncSignal(_Signal):
    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, patience_s: float) -> bool:
        try:
            async with asyncio.timeout(patience_s):
                return await self._event.wait()
        except TimeoutError:
            return False


class _ThreadSignal(_Signal):
    def __init__(self) -> None:
        self._event = Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, patience_s: float) -> bool:
        return self._event.wait(patience_s)  # never within a loop: `run_now` runs it
