"""A network that loses, doubles and delays calls at a chosen point, among initiator, coordinator and real participants.

The participants keep balances in a real database or in Redis, behind the SDK's barrier. The network stands
before them and before the coordinator as a server of its own, reads each call and either hands it over or does one
of the things that networks do to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from http import HTTPStatus
from typing import Any, ClassVar, NamedTuple, Self, TypedDict
from urllib.parse import parse_qs, urlencode, urlsplit

import redis.asyncio as aredis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from txcoord_sdk import AsyncCoordinator, Message, Status, TransactionFailedError
from txcoord_sdk.barrier import BranchBarrier, DuplicatedError, create_table
from txcoord_sdk.barrier.redis import Increment, LuaWork, RedisWork
from txcoord_sdk.starlette import (
    BranchContext,
    BranchFailed,
    branch_endpoint,
    query_prepared_route,
    workflow_route,
    xa_route,
)
from txcoord_sdk.workflow import AsyncWorkflow, AsyncWorkflows, WorkflowInterruptedError

LOCK_WAIT_S = 60

COORDINATOR = "/api/dtmsvr/"

PAID_IN = 1000
"""Comes into the purse `out` when all is over: what was refused must not take effect only because it comes late."""


class Fault(StrEnum):
    """What happens to the first call at a point. The caller sees its connection closed where it gets no answer."""

    REQUEST_LOST = "request lost"
    ANSWER_LOST = "answer lost"
    DOUBLED = "doubled"
    TWICE_AT_ONCE = "twice at once"
    PAST_ITS_SUCCESSOR = "past its successor"
    """No answer; it arrives after the next call of another operation of the same transaction."""
    AFTER_THE_END = "after the end"
    """No answer; it arrives when the transaction has long ended."""


class Point(NamedTuple):
    """A point of a transaction: an operation of a branch, or a request to the coordinator."""

    branch_id: str
    """`-` for a request that is of no branch."""
    op: str

    @property
    def is_request(self) -> bool:
        """Whether it is the coordinator that is called."""
        return self.branch_id == "-" or self.op.startswith("registerBranch")


CHECK_BACK = Point("00", "msg")


@dataclass(frozen=True)
class Call:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_for_coordinator(self) -> bool:
        return self.target.startswith(COORDINATOR)

    @property
    def only_asks(self) -> bool:
        return self.is_for_coordinator and self.method == "GET"

    @property
    def gid(self) -> str:
        gid: str = self._fields["gid"]
        return gid

    @property
    def point(self) -> Point:
        if not self.is_for_coordinator:
            return Point(self._fields["branch_id"], self._fields["op"])
        request = urlsplit(self.target).path.removeprefix(COORDINATOR)
        # Of a workflow, each operation of a branch is registered with its result.
        op = f"{request}:{self._fields['op']}" if "op" in self._fields else request
        return Point(self._fields.get("branch_id", "-"), op)

    @cached_property
    def _fields(self) -> Mapping[str, Any]:
        if self.is_for_coordinator and self.body:
            fields: dict[str, Any] = json.loads(self.body)
            return fields
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}


class Answer(NamedTuple):
    status: int
    body: bytes


class Network:
    """Hands calls over to `app` and to a coordinator, with one fault in each transaction that `fails` was told of."""

    def __init__(self, coordinator_url: str) -> None:
        self.app: Any = None
        """The participants."""
        self.incidents: list[str] = []
        """What no answer of a coordinator may be."""
        self._coordinator_url = coordinator_url
        self._faults: dict[str, tuple[Point, Fault]] = {}
        self._calls: dict[str, list[Call]] = defaultdict(list)
        self._held: dict[str, list[Call]] = defaultdict(list)
        self._at_work: dict[str, asyncio.Event] = {}
        self._over: set[str] = set()
        self._broken: set[str] = set()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def fails(self, gid: str, point: Point, fault: Fault) -> None:
        self._faults[gid] = (point, fault)

    @contextlib.contextmanager
    def unquestioned(self, gid: str) -> Iterator[None]:
        """Keep the check-backs of a message waiting, so that on a slow machine none overtakes the local transaction."""
        self._at_work[gid] = asyncio.Event()
        try:
            yield
        finally:
            self._at_work.pop(gid).set()

    def points(self, gid: str) -> list[Point]:
        """The points of a transaction, in the order in which they were first called."""
        return list(dict.fromkeys(call.point for call in self._calls[gid]))

    async def deliver_late(self, gid: str) -> None:
        """Hand over what is still held back, and then every call once more, the last one first."""
        self._over.add(gid)
        await self._release(gid)
        for call in reversed(self._calls[gid]):
            await self._hand_over(call)

    def broke(self, gid: str) -> bool:
        """Whether a participant gave no clear answer: its database ended a deadlock, or another call is under way."""
        return gid in self._broken

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._connections.values():
            writer.close()
        await asyncio.gather(*self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while (answer := await self._deliver(await _read(reader))) is not None:
                head = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
                length = f"content-type: application/json\r\ncontent-length: {len(answer.body)}\r\n\r\n"
                writer.write((head + length).encode() + answer.body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the caller hung up
        finally:
            del self._connections[task]
            writer.close()

    async def _deliver(self, call: Call) -> Answer | None:
        gid = call.gid
        if call.only_asks or gid in self._over:
            return await self._hand_over(call)
        if call.point == CHECK_BACK and gid in self._at_work:
            await self._at_work[gid].wait()
        is_first = call.point not in self.points(gid)
        self._calls[gid].append(call)
        point, fault = self._faults.get(gid, (None, None))
        if not (is_first and call.point == point):
            answer = await self._hand_over(call)
            if call.point != point and fault is Fault.PAST_ITS_SUCCESSOR:
                await self._release(gid)
            return answer
        match fault:
            case Fault.REQUEST_LOST:
                return None
            case Fault.ANSWER_LOST:
                await self._hand_over(call)
                return None
            case Fault.DOUBLED:
                answer = await self._hand_over(call)
                await self._hand_over(call)
                return answer
            case Fault.TWICE_AT_ONCE:
                answers = await asyncio.gather(self._hand_over(call), self._hand_over(call))
                return answers[0]
            case _:
                self._held[gid].append(call)
                return None

    async def _release(self, gid: str) -> None:
        for call in self._held.pop(gid, []):
            await self._hand_over(call)

    async def _hand_over(self, call: Call) -> Answer:
        if call.is_for_coordinator:
            answer = await _send(self._coordinator_url, call)
            if answer.status not in (200, 409):
                self.incidents.append(f"{call.method} {call.target} was answered {answer.status}: {answer.body!r}")
            return answer
        answer = await _ask(self.app, call)
        if answer.status not in (200, 409):
            self._broken.add(call.gid)
        return answer


async def _send(url: str, call: Call) -> Answer:
    """Have a server answer a call."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    headers = {**call.headers, "host": parts.netloc, "content-length": len(call.body), "connection": "close"}
    lines = [f"{call.method} {call.target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + call.body)
        head = await reader.readuntil(b"\r\n\r\n")
        return Answer(int(head.split(b" ")[1]), await reader.read())
    finally:
        writer.close()


async def _ask(app: Any, call: Call) -> Answer:
    """Have an ASGI application answer a call."""
    parts = urlsplit(call.target)
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": parts.path,
        "query_string": parts.query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in call.headers.items()],
    }
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": call.body}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    await app(scope, receive, send)
    return Answer(said[0]["status"], b"".join(message.get("body", b"") for message in said))


async def _read(reader: asyncio.StreamReader) -> Call:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    kept = {name: value for name, value in headers.items() if name == "content-type"}
    return Call(method, target, kept, body)


# -- participants ----------------------------------------------------------------------------

Balances = dict[str, tuple[int, int]]
"""owner → balance, and what is reserved."""


class Purses(ABC):
    """Purses of each transaction, in one database. They take part in every pattern."""

    @abstractmethod
    async def start(self) -> None:
        """Make what has to be there."""

    @abstractmethod
    async def stop(self) -> None: ...

    @abstractmethod
    async def open(self, gid: str, balances: Mapping[str, int]) -> None: ...

    @abstractmethod
    async def pay_in(self, gid: str) -> None:
        """Put `PAID_IN` into the purse `out`, outside any transaction."""

    @abstractmethod
    async def balances(self, gid: str, owners: Sequence[str]) -> Balances: ...

    @abstractmethod
    async def perform(self, branch: BranchContext, change: str, owner: str, amount: int) -> None:
        """Change a purse behind the branch operation's barrier; raise `BranchFailed` where money is missing."""

    @abstractmethod
    async def send(self, coordinator: AsyncCoordinator, message: Message, check_back: str, amount: int) -> None:
        """Take money from the purse `out`, and send a message that follows from it."""

    @abstractmethod
    async def take(self, gid: str, amount: int) -> None:
        """Do the local transaction of a message, and leave the message to the check-back."""

    @property
    @abstractmethod
    def source(self) -> Any:
        """What the ready-made check-back asks."""

    async def prepared(self, gid: str) -> Sequence[str]:
        """Branches of XA that are prepared and not ended."""
        return []

    @property
    def routes(self) -> Sequence[Route]:
        def purse(changes: Mapping[str, str]) -> Callable[[Request], Awaitable[Response]]:
            async def change(request: Request, branch: BranchContext) -> None:
                body = await request.json()
                await self.perform(branch, changes.get(branch.op, branch.op), body["owner"], body["amount"])

            return branch_endpoint(change)

        return [
            Route("/purse", purse({"rollback": "compensate"}), methods=["POST"]),
            Route(
                "/reserving-purse",
                purse({"action": "try", "commit": "confirm", "rollback": "cancel"}),
                methods=["POST"],
            ),
            query_prepared_route(self.source),
            xa_route("/xa-purse", self.source, _change_prepared),
        ]


class Part(TypedDict):
    """What is to be done to one purse."""

    gid: str
    owner: str
    amount: int


async def _change_prepared(connection: AsyncConnection, part: Part) -> None:
    await _changes(part["gid"], "action", part["owner"], part["amount"])(connection)


_UPDATES = {
    "action": "balance = balance + :amount where gid = :gid and owner = :owner and balance + :amount >= 0",
    "compensate": "balance = balance - :amount where gid = :gid and owner = :owner",
    "try": "reserved = reserved + :amount where gid = :gid and owner = :owner and balance + reserved + :amount >= 0",
    "confirm": "reserved = reserved - :amount, balance = balance + :amount where gid = :gid and owner = :owner",
    "cancel": "reserved = reserved - :amount where gid = :gid and owner = :owner",
}


class SqlPurses(Purses):
    _DRIVERS: ClassVar = {"sqlite": "sqlite+aiosqlite", "mysql": "mysql+aiomysql", "postgresql": "postgresql+asyncpg"}

    _PREPARED: ClassVar = {"mysql": "xa recover", "postgresql": "select gid from pg_prepared_xacts"}

    def __init__(self, url: str) -> None:
        scheme, rest = url.split("://", 1)
        options = {"connect_args": {"timeout": LOCK_WAIT_S}} if scheme == "sqlite" else {}
        self._engine = create_async_engine(f"{self._DRIVERS[scheme]}://{rest}", **options)

    async def start(self) -> None:
        await create_table(self._engine)
        async with self._engine.begin() as connection:
            columns = "gid varchar(60), owner varchar(20), balance int, reserved int, primary key (gid, owner)"
            await connection.execute(text(f"create table purses ({columns})"))

    async def stop(self) -> None:
        await self._engine.dispose()

    async def open(self, gid: str, balances: Mapping[str, int]) -> None:
        async with self._engine.begin() as connection:
            for owner, balance in balances.items():
                await connection.execute(
                    text("insert into purses values (:gid, :owner, :balance, 0)"),
                    {"gid": gid, "owner": owner, "balance": balance},
                )

    async def pay_in(self, gid: str) -> None:
        async with self._engine.begin() as connection:
            update = text("update purses set balance = balance + :amount where gid = :gid and owner = 'out'")
            await connection.execute(update, {"gid": gid, "amount": PAID_IN})

    async def balances(self, gid: str, owners: Sequence[str]) -> Balances:
        async with self._engine.connect() as connection:
            query = text("select owner, balance, reserved from purses where gid = :gid")
            found = {
                owner: (balance, reserved) for owner, balance, reserved in await connection.execute(query, {"gid": gid})
            }
        return {owner: found[owner] for owner in owners}

    async def perform(self, branch: BranchContext, change: str, owner: str, amount: int) -> None:
        async with self._engine.begin() as connection:
            await branch.barrier.call(connection, _changes(branch.gid, change, owner, amount))

    async def send(self, coordinator: AsyncCoordinator, message: Message, check_back: str, amount: int) -> None:
        async with self._engine.connect() as connection:
            work = _changes(message.gid, "action", "out", -amount)
            await coordinator.do_and_submit(message, check_back, connection, work)

    async def take(self, gid: str, amount: int) -> None:
        async with self._engine.begin() as connection:
            await BranchBarrier("msg", gid, "00", "msg").call(connection, _changes(gid, "action", "out", -amount))

    async def prepared(self, gid: str) -> Sequence[str]:
        statement = self._PREPARED.get(self._engine.dialect.name)
        if statement is None:
            return []
        async with self._engine.connect() as connection:
            found = [str(row[-1]) for row in await connection.execute(text(statement))]
        return [xid for xid in found if gid in xid]

    @property
    def source(self) -> Any:
        return self._engine


def _changes(gid: str, change: str, owner: str, amount: int) -> Callable[[AsyncConnection], Awaitable[None]]:
    async def apply(connection: AsyncConnection) -> None:
        update = text(f"update purses set {_UPDATES[change]}")  # noqa: S608 (constants)
        done = await connection.execute(update, {"gid": gid, "owner": owner, "amount": amount})
        if not done.rowcount:
            raise BranchFailed(f"{owner} has less than {-amount}")

    return apply


_SCRIPTS = {
    "try": """
if redis.call('GET', KEYS[1]) + redis.call('GET', KEYS[2]) + ARGV[1] < 0 then refuse('too little') end
redis.call('INCRBY', KEYS[2], ARGV[1])""",
    "confirm": """
redis.call('DECRBY', KEYS[2], ARGV[1])
redis.call('INCRBY', KEYS[1], ARGV[1])""",
    "cancel": "redis.call('DECRBY', KEYS[2], ARGV[1])",
}


class RedisPurses(Purses):
    def __init__(self, url: str) -> None:
        self._client = aredis.Redis.from_url(url)

    async def start(self) -> None:
        await self._client.ping()

    async def stop(self) -> None:
        await self._client.aclose()

    async def open(self, gid: str, balances: Mapping[str, int]) -> None:
        for owner, balance in balances.items():
            await self._client.mset(dict(zip(_keys(gid, owner), (balance, 0), strict=True)))

    async def pay_in(self, gid: str) -> None:
        await self._client.incrby(_keys(gid, "out")[0], PAID_IN)

    async def balances(self, gid: str, owners: Sequence[str]) -> Balances:
        found = {owner: await self._client.mget(_keys(gid, owner)) for owner in owners}
        return {owner: (int(balance), int(reserved)) for owner, (balance, reserved) in found.items()}

    async def perform(self, branch: BranchContext, change: str, owner: str, amount: int) -> None:
        keys = _keys(branch.gid, owner)
        work: RedisWork
        match change:
            case "action":
                work = Increment(keys[0], amount)
            case "compensate":
                work = Increment(keys[0], -amount, floor=None)
            case _:
                work = LuaWork(_SCRIPTS[change], keys, [amount])
        await branch.barrier.redis_call(self._client, work)

    async def send(self, coordinator: AsyncCoordinator, message: Message, check_back: str, amount: int) -> None:
        work = Increment(_keys(message.gid, "out")[0], -amount)
        await coordinator.redis_do_and_submit(message, check_back, self._client, work)

    async def take(self, gid: str, amount: int) -> None:
        work = Increment(_keys(gid, "out")[0], -amount)
        await BranchBarrier("msg", gid, "00", "msg").redis_call(self._client, work)

    @property
    def source(self) -> Any:
        return self._client


def _keys(gid: str, owner: str) -> list[str]:
    # One slot for all of a transaction: so the check-back finds the mark beside the gid.
    return [f"{{{gid}}}:{owner}", f"{{{gid}}}:{owner}:reserved"]


# -- initiators ------------------------------------------------------------------------------


class World:
    """Initiators' side: a coordinator and purses that they reach by the network alone.

    Args:
        watch: reaches the coordinator past the network, so that a transaction can be watched undisturbed.
    """

    def __init__(
        self, network: Network, coordinator: AsyncCoordinator, watch: AsyncCoordinator, purses: Purses
    ) -> None:
        self.network = network
        self.coordinator = coordinator
        self.watch = watch
        self.purses = purses
        self.dying: set[str] = set()
        """Workflows whose next execution breaks off after the first step, as if its process had died."""
        self.workflows = AsyncWorkflows(coordinator, resume_url=f"{network.url}/workflow/resume")
        for function in (self._move, self._reserve, self._move_prepared):
            self.workflows.workflow(function.__name__.lstrip("_"))(function)
        network.app = Starlette(routes=[*purses.routes, workflow_route(self.workflows)])

    def purse(self, owner: str, amount: int) -> tuple[str, dict[str, object]]:
        return f"{self.network.url}/purse", {"owner": owner, "amount": amount}

    async def _move(self, wf: AsyncWorkflow, parts: list[Part]) -> None:
        url = f"{self.network.url}/purse"
        for part in parts:
            # As in a saga: taken back even if it was refused, so that it cannot take effect when it comes late.
            await wf.branch(rollback_if_failed=True).on_rollback(url, part).call(url, part)
            if wf.gid in self.dying:
                self.dying.remove(wf.gid)
                raise ProcessDiedError

    async def _reserve(self, wf: AsyncWorkflow, parts: list[Part]) -> None:
        url = f"{self.network.url}/reserving-purse"
        for part in parts:
            await wf.branch(rollback_if_failed=True).on_commit(url, part).on_rollback(url, part).call(url, part)

    async def _move_prepared(self, wf: AsyncWorkflow, parts: list[Part]) -> None:
        for part in parts:
            await wf.xa(self.purses.source, _change_prepared, part)


class ProcessDiedError(Exception):
    pass


AMOUNT = 30
OPENING = {"out": 100, "in": 100}
TOO_LITTLE = {"out": 20, "in": 100}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One way through one pattern: 30 go from the purse `out` to the purse `in`, or nothing happens."""

    initiate: Callable[[World, str], Awaitable[None]]
    """What the initiator does with a gid; how it ends is seen by the transaction."""
    ends: Status
    opening: Mapping[str, int] = field(default_factory=lambda: OPENING)
    first_phase: Collection[str] = ("try",)
    """Operations that the initiator calls, once."""
    comes_late: Callable[[World, str], Awaitable[None]] | None = None
    """What the initiator does when all is over."""

    def expected(self, status: Status, *, paid_in: int = 0) -> Balances:
        moved = AMOUNT if status is Status.SUCCEEDED else 0
        return {"out": (self.opening["out"] + paid_in - moved, 0), "in": (self.opening["in"] + moved, 0)}

    def ends_with(self, point: Point, fault: Fault) -> Status:
        """A first phase without an answer has all taken back; everything else is repeated until it is answered."""
        is_unanswered = fault not in (Fault.DOUBLED, Fault.TWICE_AT_ONCE)
        return Status.FAILED if point.op in self.first_phase and is_unanswered else self.ends


def _saga(*, concurrent: bool) -> Callable[[World, str], Awaitable[None]]:
    async def initiate(world: World, gid: str) -> None:
        saga = world.coordinator.saga(gid, concurrent=concurrent)
        # The one that may be refused comes second: there is something to take back.
        for owner, amount in (("in", AMOUNT), ("out", -AMOUNT)):
            url, payload = world.purse(owner, amount)
            saga.step(url, url, payload)
        # Where it has to look what became of its submit, it may see more than that it is accepted.
        with contextlib.suppress(TransactionFailedError):
            await world.coordinator.submit(saga)

    return initiate


async def _tcc(world: World, gid: str) -> None:
    with contextlib.suppress(TransactionFailedError):
        async with world.coordinator.tcc(gid) as tcc:
            for owner, amount in (("in", AMOUNT), ("out", -AMOUNT)):
                url, payload = world.purse(owner, amount)
                await tcc.call(url, url, url, payload)


async def _abandoned_tcc(world: World, gid: str) -> None:
    with contextlib.suppress(LookupError, TransactionFailedError):
        async with world.coordinator.tcc(gid) as tcc:
            for owner, amount in (("in", AMOUNT), ("out", -AMOUNT)):
                url, payload = world.purse(owner, amount)
                await tcc.call(url, url, url, payload)
            raise LookupError("the customer has gone")


def _xa(*, abandoned: bool) -> Callable[[World, str], Awaitable[None]]:
    async def initiate(world: World, gid: str) -> None:
        url = f"{world.network.url}/xa-purse"
        with contextlib.suppress(LookupError, TransactionFailedError):
            async with world.coordinator.xa(gid) as xa:
                for owner, amount in (("in", AMOUNT), ("out", -AMOUNT)):
                    await xa.call(url, {"gid": gid, "owner": owner, "amount": amount})
                if abandoned:
                    raise LookupError("the customer has gone")

    return initiate


def _workflow(name: str, *, dies: bool = False) -> Callable[[World, str], Awaitable[None]]:
    async def initiate(world: World, gid: str) -> None:
        if dies:
            world.dying.add(gid)
        parts = [Part(gid=gid, owner=owner, amount=amount) for owner, amount in (("in", AMOUNT), ("out", -AMOUNT))]
        # What breaks off is resumed by the coordinator.
        with contextlib.suppress(TransactionFailedError, WorkflowInterruptedError, ProcessDiedError):
            await world.workflows.run(name, parts, gid=gid)

    return initiate


def _message(world: World, gid: str) -> Message:
    message = world.coordinator.message(gid, timeout_to_fail=1)
    for part in (10, AMOUNT - 10):
        message.step(*world.purse("in", part))
    return message


async def _message_sent(world: World, gid: str) -> None:
    check_back = f"{world.network.url}/query-prepared"
    await world.purses.send(world.coordinator, _message(world, gid), check_back, AMOUNT)


async def _message_prepared(world: World, gid: str) -> None:
    # In Redis the mark is beside the purse; the others do not look at this.
    query = urlencode({"redis_key": f"{{{gid}}}"})
    await world.coordinator.prepare(_message(world, gid), f"{world.network.url}/query-prepared?{query}")


async def _message_not_submitted(world: World, gid: str) -> None:
    await _message_prepared(world, gid)
    await world.purses.take(gid, AMOUNT)


async def _takes_in_vain(world: World, gid: str) -> None:
    try:
        await world.purses.take(gid, AMOUNT)
    except DuplicatedError:
        return
    raise AssertionError(f"{gid}: the local transaction took effect after its message had failed")


SCENARIOS: Mapping[str, Scenario] = {
    "saga": Scenario(initiate=_saga(concurrent=False), ends=Status.SUCCEEDED),
    "saga refused": Scenario(initiate=_saga(concurrent=False), ends=Status.FAILED, opening=TOO_LITTLE),
    "concurrent saga": Scenario(initiate=_saga(concurrent=True), ends=Status.SUCCEEDED),
    "concurrent saga refused": Scenario(initiate=_saga(concurrent=True), ends=Status.FAILED, opening=TOO_LITTLE),
    "tcc": Scenario(initiate=_tcc, ends=Status.SUCCEEDED),
    "tcc refused": Scenario(initiate=_tcc, ends=Status.FAILED, opening=TOO_LITTLE),
    "tcc abandoned": Scenario(initiate=_abandoned_tcc, ends=Status.FAILED),
    "xa": Scenario(initiate=_xa(abandoned=False), ends=Status.SUCCEEDED, first_phase=["action"]),
    "xa refused": Scenario(
        initiate=_xa(abandoned=False), ends=Status.FAILED, opening=TOO_LITTLE, first_phase=["action"]
    ),
    "xa abandoned": Scenario(initiate=_xa(abandoned=True), ends=Status.FAILED, first_phase=["action"]),
    "workflow": Scenario(initiate=_workflow("move"), ends=Status.SUCCEEDED),
    "workflow refused": Scenario(initiate=_workflow("move"), ends=Status.FAILED, opening=TOO_LITTLE),
    "workflow broken off": Scenario(initiate=_workflow("move", dies=True), ends=Status.SUCCEEDED),
    "workflow reserving": Scenario(initiate=_workflow("reserve"), ends=Status.SUCCEEDED),
    "workflow reserving refused": Scenario(initiate=_workflow("reserve"), ends=Status.FAILED, opening=TOO_LITTLE),
    "xa workflow": Scenario(initiate=_workflow("move_prepared"), ends=Status.SUCCEEDED),
    "xa workflow refused": Scenario(initiate=_workflow("move_prepared"), ends=Status.FAILED, opening=TOO_LITTLE),
    "message": Scenario(initiate=_message_sent, ends=Status.SUCCEEDED),
    "message not submitted": Scenario(initiate=_message_not_submitted, ends=Status.SUCCEEDED),
    "message not committed": Scenario(initiate=_message_prepared, ends=Status.FAILED, comes_late=_takes_in_vain),
}
