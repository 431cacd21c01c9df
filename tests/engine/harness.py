"""Coordinators, a store and participants in one process, and one log of what they did in which order."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from tests.sagas import rows, url_of
from tests.virtual_time import VirtualClock
from txcoord.alert import Alert
from txcoord.dispatch.base import BranchRequest, CallResult
from txcoord.engine.engine import Engine
from txcoord.engine.settings import EngineSettings
from txcoord.errors import OverloadedError, StoreUnavailableError
from txcoord.model import MICROSECONDS, GlobalTransaction, Op, Outcome
from txcoord.request import Limits, SubmitResult, TransRequest
from txcoord.service import Service
from txcoord.store.base import Applied, Change, Create, Store, Stored
from txcoord.store.memory import MemoryStore

T = TypeVar("T")

COMMIT_S = 0.002
"""How long the store takes for a batch: half before it takes effect, half after."""

LINGER_S = EngineSettings().linger_s
"""How long a prepared transaction stays in memory after a change, for the request that is about to come."""

CALL_S = 0.005
"""How long a participant takes, unless it is told otherwise."""

SUCCESS = CallResult(outcome=Outcome.SUCCESS, code=200)
FAILURE = CallResult(outcome=Outcome.FAILURE, code=409, detail="no stock")
ONGOING = CallResult(outcome=Outcome.ONGOING, code=425)
UNKNOWN = CallResult(outcome=Outcome.UNKNOWN, code=500, detail="broken")


def held_off(seconds: float) -> CallResult:
    return CallResult(outcome=Outcome.UNKNOWN, called=False, retry_after_s=seconds, detail="held off")


class LoggedStore(MemoryStore):
    """A store that takes its time, and notes each change that took effect as "gid status" or "gid parked"."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(now_us=VirtualClock().now_us)
        self._log = log
        self.batches: list[Sequence[Change]] = []
        """All that was handed to `apply`, whether it took effect or not."""
        self.refuses: Callable[[Change], bool] = lambda change: False
        """Changes that make a batch fail, as a value does that no column can hold."""
        self.before_apply: asyncio.Event | None = None
        """If set, no batch takes effect before this event."""
        self._changed = asyncio.Event()

    async def apply(self, node_id: int, batch: Sequence[Change], *, patiently: bool = True) -> Sequence[Applied]:
        self.batches.append(batch)
        await asyncio.sleep(COMMIT_S / 2)
        if self.before_apply is not None:
            await self.before_apply.wait()
        if any(map(self.refuses, batch)):
            raise ValueError("a value does not fit its column")
        applied = await super().apply(node_id, batch, patiently=patiently)
        for change, result in zip(batch, applied, strict=True):
            if result is Applied.DONE:
                self._log.append(f"{change.tx.gid} {_what(change)}")
        self._changed.set()
        self._changed = asyncio.Event()
        await asyncio.sleep(COMMIT_S / 2)
        return applied

    async def wait_until(self, holds: Callable[[Stored], bool], gid: str, *, within_s: float) -> GlobalTransaction:
        async with asyncio.timeout(within_s):
            while True:
                stored = await self.find(gid)
                if stored is not None and holds(stored):
                    return stored.tx
                await self._changed.wait()


def _what(change: Change) -> str:
    is_parked = change.parked if isinstance(change, Create) else change.park
    if is_parked:
        return "parked"
    return "created" if isinstance(change, Create) else change.tx.status.value


class Hold:
    """A call that lasts until the test ends it."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self._result: asyncio.Future[CallResult] = asyncio.get_running_loop().create_future()
        self.was_cancelled = False

    def end(self, result: CallResult = SUCCESS) -> None:
        self._result.set_result(result)

    async def run(self) -> CallResult:
        self.began.set()
        try:
            return await asyncio.shield(self._result)
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


Answer = CallResult | Hold | BaseException


class Participants:
    """A dispatcher that answers as scripted, with success where the script has nothing (more)."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self._script: dict[tuple[str, str], list[Answer]] = {}
        self._always: dict[str, CallResult] = {}
        self.requests: list[BranchRequest] = []
        self.times_us: list[int] = []
        """When each of `requests` came."""

    def script(self, what: str, *answers: Answer, gid: str = "g1") -> None:
        """Let the next calls of, say, "01 action" be answered like this."""
        self._script.setdefault((gid, what), []).extend(answers)

    def always(self, what: str, answer: CallResult) -> None:
        """Answer like this whenever the script has nothing, whatever the gid."""
        self._always[what] = answer

    def hold(self, what: str, *, gid: str = "g1") -> Hold:
        hold = Hold()
        self.script(what, hold, gid=gid)
        return hold

    async def call(self, request: BranchRequest) -> CallResult:
        what = f"{request.branch_id} {request.op}"
        answers = self._script.get((request.gid, what))
        answer = answers.pop(0) if answers else self._always.get(what, SUCCESS)
        if isinstance(answer, CallResult) and not answer.called:
            return answer
        self.requests.append(request)
        self.times_us.append(VirtualClock().now_us())
        self._log.append(f"{request.gid} {what}")
        if isinstance(answer, BaseException):
            await asyncio.sleep(CALL_S)
            raise answer
        if isinstance(answer, Hold):
            return await answer.run()
        await asyncio.sleep(CALL_S)
        return answer

    async def close(self) -> None:
        pass


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the answer is known, as a client does."""
    while True:
        try:
            return await call()
        except (StoreUnavailableError, OverloadedError):
            await asyncio.sleep(0.05)


class Link:
    """What connects one coordinator with store and participants, until it is cut: a process that died."""

    def __init__(self, target: object) -> None:
        self._target = target
        self.is_cut = False

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._target, name)

        async def through(*args: object, **kwargs: object) -> Any:
            await self._alive()
            try:
                result = await method(*args, **kwargs)
            except Exception:
                await self._alive()
                raise
            await self._alive()
            return result

        return through

    async def _alive(self) -> None:
        if self.is_cut:
            await asyncio.get_running_loop().create_future()


@dataclass(kw_only=True)
class Node:
    """One coordinator."""

    engine: Engine
    service: Service
    links: tuple[Link, ...]
    is_running: bool = True
    submits: list[asyncio.Task[SubmitResult]] = field(default_factory=list)

    async def submit(self, gid: str = "g1", *, wait: bool = True, **more: Any) -> SubmitResult:
        return await self.service.submit(saga_request(gid, wait_result=wait, **more))

    def submit_soon(self, gid: str = "g1", *, wait: bool = True, **more: Any) -> asyncio.Task[SubmitResult]:
        submit = asyncio.create_task(self.submit(gid, wait=wait, **more))
        self.submits.append(submit)
        return submit

    def kill(self) -> None:
        """Let the process die: whatever it is about to do, does not happen."""
        self.is_running = False
        for link in self.links:
            link.is_cut = True

    async def stop(self) -> None:
        self.is_running = False
        await self.engine.stop()


class Cluster:
    """A store, participants, and any number of coordinators."""

    def __init__(self) -> None:
        self.log: list[str] = []
        """What took effect in the store and which calls began, in order."""
        self.store = LoggedStore(self.log)
        self.participants = Participants(self.log)
        self.clock = VirtualClock()
        self.alerts: list[Alert] = []
        """What people were told, by whichever node."""
        self.nodes: list[Node] = []
        self.may_break = False
        """Set by a test that breaks an invariant itself."""

    async def start_node(self, *, store: Store | None = None, **settings: Any) -> Node:
        links = (Link(store or self.store), Link(self.participants))
        engine = Engine(
            store=links[0],  # type: ignore[arg-type]
            dispatcher=links[1],  # type: ignore[arg-type]
            settings=EngineSettings(**settings),
            node_name=f"node-{len(self.nodes)}",
            alerts=self,
            clock=self.clock,
            random=Random(len(self.nodes)),
        )
        await engine.start()
        service = Service(
            engine=engine,
            store=links[0],  # type: ignore[arg-type]
            limits=Limits(),
            clock=self.clock,
            random=Random(len(self.nodes)),
        )
        node = Node(engine=engine, service=service, links=links)
        self.nodes.append(node)
        return node

    def raised(self, alert: Alert) -> None:
        self.alerts.append(alert)

    async def close(self) -> None:
        for node in self.nodes:
            if node.is_running:
                await node.stop()
            for submit in node.submits:
                submit.cancel()
            await asyncio.gather(*node.submits, return_exceptions=True)

    async def check_nothing_is_left(self, *, after_s: float) -> None:
        """Let time pass: then no transaction stays in memory. The fixture hears of errors that nobody looked at."""
        await asyncio.sleep(after_s)
        assert all(node.engine.live_count == 0 for node in self.nodes if not node.links[0].is_cut)
        gc.collect()

    # -- what a test looks at ----------------------------------------------------------

    async def stored(self, gid: str = "g1") -> Stored:
        stored = await self.store.find(gid)
        assert stored is not None, f"{gid} is not stored"
        return stored

    async def saga(self, gid: str = "g1") -> GlobalTransaction:
        return (await self.stored(gid)).tx

    async def rows(self, gid: str = "g1") -> str:
        return rows(await self.saga(gid))

    async def ended(self, gid: str = "g1", *, within_s: float = 3600.0) -> GlobalTransaction:
        """Wait until a transaction is final in the store."""
        return await self.store.wait_until(lambda stored: stored.tx.status.is_final, gid, within_s=within_s)

    async def parked(self, gid: str = "g1", *, within_s: float = 3600.0) -> GlobalTransaction:
        """Wait until a transaction is parked in the store."""
        return await self.store.wait_until(lambda stored: stored.owner == 0, gid, within_s=within_s)

    def calls(self, gid: str = "g1") -> list[str]:
        """Calls that began, as "01 action", in order."""
        return [f"{request.branch_id} {request.op}" for request in self.participants.requests if request.gid == gid]

    def call_times_s(self, what: str, gid: str = "g1") -> list[float]:
        """When the calls of an operation came, in seconds since the loop began."""
        start_us = self.clock.now_us() - round(asyncio.get_running_loop().time() * MICROSECONDS)
        return [
            (at_us - start_us) / MICROSECONDS
            for request, at_us in zip(self.participants.requests, self.participants.times_us, strict=True)
            if request.gid == gid and f"{request.branch_id} {request.op}" == what
        ]


def saga_request(gid: str = "g1", *, count: int = 2, **more: Any) -> TransRequest:
    fields: dict[str, object] = {
        "gid": gid,
        "trans_type": "saga",
        "steps": tuple(
            {"action": url_of(step, Op.ACTION), "compensate": url_of(step, Op.COMPENSATE)} for step in range(count)
        ),
        "payloads": (b"{}",) * count,
    }
    return TransRequest(**(fields | more))  # type: ignore[arg-type]


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def settle(seconds: float = 0.05) -> None:
    """Let all that can go on now go on."""
    await asyncio.sleep(seconds)
