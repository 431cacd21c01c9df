"""A small world in one process: coordinators that die and freeze, a store that goes away, a network that lies.

Everything that happens is drawn from one seed and runs in virtual time, so a seed is a
whole story and tells it the same way every time. What is not simulated is the code under
test: service, engine, journal and rules are the real ones.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.virtual_time import VirtualClock
from txcoord.dispatch.base import BranchRequest, CallResult
from txcoord.engine.engine import Engine
from txcoord.engine.settings import EngineSettings
from txcoord.errors import OverloadedError, StatusConflictError, StoreUnavailableError
from txcoord.model import Op, Outcome, Status
from txcoord.protocol import branch_id_of
from txcoord.request import Limits, TransRequest
from txcoord.service import Service
from txcoord.store.base import Applied, Change, Stored
from txcoord.store.memory import FailWhen, MemoryStore

CHAOS_S = 30.0
"""So long things go wrong; then everything heals."""

LEASE_S = 3.0
ACCOUNTS = 6
SAGAS = 10
START_BALANCE = 100


class UnreliableStore(MemoryStore):
    """A database some milliseconds away, which now and then fails before or after it did what was asked."""

    def __init__(self, random: Random) -> None:
        super().__init__(now_us=VirtualClock().now_us)
        self._random = random
        self.failure_rate = 0.03

    async def apply(self, node_id: int, batch: Sequence[Change], *, patiently: bool = True) -> Sequence[Applied]:
        await asyncio.sleep(self._random.uniform(0.0005, 0.01))
        if self._random.random() < self.failure_rate:
            self.fail_next(when=self._random.choice(list(FailWhen)), method="apply")
        applied = await super().apply(node_id, batch, patiently=patiently)
        await asyncio.sleep(self._random.uniform(0.0, 0.005))
        return applied

    async def take_over_due(self, node_id: int, *, now_us: int, limit: int) -> Any:
        if self._random.random() < self.failure_rate:
            self.fail_next(when=self._random.choice(list(FailWhen)), method="take_over_due")
        return await super().take_over_due(node_id, now_us=now_us, limit=limit)


@dataclass(kw_only=True)
class Transfer:
    """What one branch does: change one account's balance, which may not fall below zero."""

    account: int
    amount: int


@dataclass
class Bank:
    """The participants: accounts, each change of which stands behind a barrier, as DTM's protocol has it."""

    balances: list[int] = field(default_factory=lambda: [START_BALANCE] * ACCOUNTS)
    rows: dict[tuple[str, str, str], str] = field(default_factory=dict)
    runs: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """(gid, branch, op) → how often its business part ran."""
    refuses: set[tuple[str, str]] = field(default_factory=set)
    """Branches whose action is refused for good, as by a closed account."""

    def execute(self, request: BranchRequest) -> CallResult:
        transfer = Transfer(**json.loads(request.payload))
        key = (request.gid, request.branch_id, str(request.op))
        action_key = (request.gid, request.branch_id, str(Op.ACTION))
        is_compensation = request.op is Op.COMPENSATE
        is_empty = is_compensation and action_key not in self.rows
        if is_empty:
            self.rows[action_key] = key[2]
        is_duplicate = key in self.rows
        self.rows.setdefault(key, key[2])
        if is_empty or is_duplicate:
            return CallResult(outcome=Outcome.SUCCESS, code=200)
        after = self.balances[transfer.account] + (-transfer.amount if is_compensation else transfer.amount)
        if not is_compensation and (after < 0 or key[:2] in self.refuses):
            del self.rows[key]
            return CallResult(outcome=Outcome.FAILURE, code=409, detail="refused")
        self.balances[transfer.account] = after
        self.runs[key] = self.runs.get(key, 0) + 1
        return CallResult(outcome=Outcome.SUCCESS, code=200)


class Network:
    """Between coordinators and participants: slow, and while there is chaos, calls get lost, doubled, and late."""

    def __init__(self, bank: Bank, random: Random) -> None:
        self._bank = bank
        self._random = random
        self.is_lying = True
        self._on_the_way: set[asyncio.Task[None]] = set()

    async def call(self, request: BranchRequest) -> CallResult:
        random = self._random
        await asyncio.sleep(random.uniform(0.001, 0.05))
        fault = random.choices(_FAULTS, _WEIGHTS)[0] if self.is_lying else ""
        if fault == "held off":
            return CallResult(outcome=Outcome.UNKNOWN, called=False, retry_after_s=random.uniform(0.1, 2.0))
        if fault in ("lost", "late"):
            if fault == "late":
                self._execute_later(request, random.uniform(0.0, 15.0))
            await asyncio.sleep(request.timeout_s)
            return CallResult(outcome=Outcome.UNKNOWN, detail="no answer")
        if fault in ("ongoing", "broken"):
            outcome = Outcome.ONGOING if fault == "ongoing" else Outcome.UNKNOWN
            return CallResult(outcome=outcome, code=425 if fault == "ongoing" else 500)
        if fault == "doubled":
            self._execute_later(request, random.uniform(0.0, 15.0))
        if fault == "slow":
            await asyncio.sleep(random.uniform(0.0, request.timeout_s))
        # The coordinator may die meanwhile: what is with the participant happens all the same.
        result = self._bank.execute(request)
        await asyncio.sleep(random.uniform(0.001, 0.05))
        return CallResult(outcome=Outcome.UNKNOWN, detail="answer lost") if fault == "answer lost" else result

    async def close(self) -> None:
        pass

    def _execute_later(self, request: BranchRequest, delay_s: float) -> None:
        async def execute() -> None:
            await asyncio.sleep(delay_s)
            self._bank.execute(request)

        task = asyncio.create_task(execute())
        self._on_the_way.add(task)
        task.add_done_callback(self._on_the_way.discard)

    async def deliver_all(self) -> None:
        """Wait until the last late call has come."""
        while self._on_the_way:
            await asyncio.wait(self._on_the_way)


_FAULTS = ("", "slow", "lost", "late", "answer lost", "doubled", "ongoing", "broken", "held off")
_WEIGHTS = (60, 8, 4, 4, 6, 6, 4, 4, 4)


class Line:
    """What connects one process with the rest of the world. A dead one never hears again; a frozen one later."""

    def __init__(self, target: object, process: Process) -> None:
        self._target = target
        self._process = process

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._target, name)

        async def through(*args: object, **kwargs: object) -> Any:
            await self._process.runs()
            try:
                result = await method(*args, **kwargs)
            except Exception:
                await self._process.runs()
                raise
            await self._process.runs()
            return result

        return through


class Process:
    """One coordinator process."""

    def __init__(self, store: MemoryStore, network: Network, random: Random, number: int) -> None:
        self.is_dead = False
        self._is_awake = asyncio.Event()
        self._is_awake.set()
        store_line, network_line = Line(store, self), Line(network, self)
        settings = EngineSettings(
            lease_s=LEASE_S,
            request_timeout_s=1.0,
            retry_interval_s=1.0,
            error_backoff_s=0.1,
            backoff_cap_s=3.0,
            accept_wait_s=2.0,
            max_wait_s=4.0,
            drain_s=2.0,
            poll_s=0.5,
            max_live=random.choice([3, 1000]),
            max_recovering=random.choice([2, 1000]),
            max_batch=random.choice([2, 512]),
        )
        self.engine = Engine(
            store=store_line,  # type: ignore[arg-type]
            dispatcher=network_line,  # type: ignore[arg-type]
            settings=settings,
            node_name=f"node-{number}",
            clock=VirtualClock(),
            random=Random(random.getrandbits(64)),
        )
        self.service = Service(
            engine=self.engine,
            store=store_line,  # type: ignore[arg-type]
            limits=Limits(),
            clock=VirtualClock(),
            random=Random(random.getrandbits(64)),
        )

    async def runs(self) -> None:
        if self.is_dead:
            await asyncio.get_running_loop().create_future()
        await self._is_awake.wait()

    def freeze(self) -> None:
        self._is_awake.clear()

    def resume(self) -> None:
        self._is_awake.set()

    @property
    def is_usable(self) -> bool:
        return not self.is_dead and self._is_awake.is_set() and not self.engine.is_draining


@dataclass
class Told:
    """What a client was told about a transaction; each of it has to be true at the end."""

    accepted: bool = False
    statuses: set[Status] = field(default_factory=set)


class World:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.bank = Bank()
        self.store = UnreliableStore(Random(self.random.getrandbits(64)))
        self.network = Network(self.bank, Random(self.random.getrandbits(64)))
        self.processes: list[Process] = []
        self.told: dict[str, Told] = {}
        self.stops: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        for _ in range(self.random.randint(1, 3)):
            await self.start_process()
        clients = [asyncio.create_task(self.client(f"g{number}")) for number in range(SAGAS)]
        chaos = asyncio.create_task(self.chaos())
        await chaos
        await self.heal()
        await asyncio.gather(*clients, *self.stops)
        await self.network.deliver_all()
        await self.all_ended()
        for process in self.processes:
            if not process.is_dead:
                await process.engine.stop()

    # -- those who want something --------------------------------------------------------

    async def client(self, gid: str) -> None:
        random = Random(self.random.getrandbits(64))
        await asyncio.sleep(random.uniform(0.0, CHAOS_S * 0.8))
        request = self.make_saga(gid, random)
        told = self.told[gid] = Told()
        for _ in range(random.choice([1, 3, 10])):
            process = await self.some_process(random)
            try:
                # A client has a time-out of its own: it may talk to a process that dies.
                async with asyncio.timeout(random.choice([0.01, 0.5, 10.0])):
                    result = await process.service.submit(request)
            except (StoreUnavailableError, OverloadedError, TimeoutError):
                await asyncio.sleep(random.uniform(0.01, 2.0))
                continue
            except StatusConflictError as conflict:
                told.accepted = True
                told.statuses.add(conflict.status)
                return
            told.accepted = True
            told.statuses.add(result.status)
            if result.status.is_final or random.random() < 0.7:
                return

    def make_saga(self, gid: str, random: Random) -> TransRequest:
        steps = random.randint(1, 4)
        amounts = [random.randint(-60, 60) for _ in range(steps - 1)]
        amounts.append(-sum(amounts))
        if random.random() < 0.3:
            self.bank.refuses.add((gid, branch_id_of(random.randrange(steps))))
        orders = {
            str(step): random.sample(range(step), random.randint(1, min(2, step)))
            for step in range(1, steps)
            if random.random() < 0.5
        }
        return TransRequest(
            gid=gid,
            trans_type="saga",
            steps=tuple(
                {"action": f"http://bank/{step}/do", "compensate": f"http://bank/{step}/undo"} for step in range(steps)
            ),
            payloads=tuple(
                json.dumps({"account": random.randrange(ACCOUNTS), "amount": amount}).encode() for amount in amounts
            ),
            custom_data=random.choice(["", '{"concurrent":true}', json.dumps({"concurrent": True, "orders": orders})]),
            wait_result=random.random() < 0.7,
            timeout_to_fail=random.choice([0, 0, 1, 3, 10]),
            retry_limit=random.choice([0, 0, 1, 3]),
            retry_interval=random.choice([0, 0, 1]),
        )

    async def some_process(self, random: Random) -> Process:
        while not (usable := [process for process in self.processes if process.is_usable]):
            await asyncio.sleep(0.1)
        return random.choice(usable)

    # -- what goes wrong -----------------------------------------------------------------

    async def start_process(self) -> None:
        process = Process(self.store, self.network, self.random, len(self.processes))
        try:
            await process.engine.start()
        except StoreUnavailableError:
            return  # whoever starts it tries again
        self.processes.append(process)

    async def chaos(self) -> None:
        end_s = now_s() + CHAOS_S
        while now_s() < end_s:
            await asyncio.sleep(self.random.expovariate(0.8))
            match self.random.choice(["kill", "kill", "kill", "freeze", "freeze", "drain", "store", "start"]):
                case "kill":
                    for process in self.some_of_the_living():
                        process.is_dead = True
                case "freeze":
                    for process in self.some_of_the_living():
                        process.freeze()
                        delay_s = self.random.choice([0.1, LEASE_S * 0.9, LEASE_S * 1.5])
                        asyncio.get_running_loop().call_later(delay_s, process.resume)
                case "drain":
                    for process in self.some_of_the_living():
                        self.stops.add(asyncio.create_task(self.stop(process)))
                case "store":
                    self.store.is_down = True
                    await asyncio.sleep(self.random.choice([0.05, 0.5, LEASE_S * 1.5]))
                    self.store.is_down = False
            if not any(process.is_usable for process in self.processes):
                await asyncio.sleep(self.random.uniform(0.0, 1.0))
            if sum(process.is_usable for process in self.processes) < 2:
                await self.start_process()

    def some_of_the_living(self) -> Collection[Process]:
        living = [process for process in self.processes if process.is_usable]
        return self.random.sample(living, min(len(living), 1))

    async def stop(self, process: Process) -> None:
        stop = asyncio.ensure_future(process.engine.stop())
        await asyncio.wait([stop], timeout=60.0)  # it may be killed meanwhile

    async def heal(self) -> None:
        self.store.is_down = False
        self.store.failure_rate = 0.0
        self.network.is_lying = False
        for process in self.processes:
            process.resume()
        await self.start_process()

    # -- how it ends ---------------------------------------------------------------------

    async def stored(self) -> dict[str, Stored]:
        found = {gid: await self.store.find(gid) for gid in self.told}
        return {gid: stored for gid, stored in found.items() if stored is not None}

    async def all_ended(self) -> None:
        async with asyncio.timeout(600.0):
            while any(not stored.tx.status.is_final for stored in (await self.stored()).values()):
                await asyncio.sleep(0.5)


def now_s() -> float:
    return asyncio.get_running_loop().time()
