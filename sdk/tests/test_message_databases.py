"""A message and its local transaction, on every database through every driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from sdk.tests.barrier_support import BENCHES, Asyncpg, Bench, Caller
from sdk.tests.client_support import Answer, ScriptedCoordinator
from txcoord_sdk import AsyncCoordinator, Coordinator, Message
from txcoord_sdk.barrier import BranchBarrier, DuplicatedError
from txcoord_sdk.barrier.drivers.base import Driver
from txcoord_sdk.barrier.drivers.registry import driver_of

CHECK = "http://users/query-prepared"
OK = Answer()
BUSY = Answer(503, {"message": "busy"})


_TAKEN = r"(?i)unique|duplicate"


class Lost(Exception):
    pass


class Sender:
    """A service that registers a user and sends a message, with one connection for each request."""

    def __init__(self, bench: Bench, url: str) -> None:
        self.bench = bench
        self.url = url
        self.owner = uuid4().hex
        self.gid = f"gid-{self.owner}"

    async def send(self, caller: Caller, *, error: BaseException | None = None, twice: bool = False) -> str:
        """Register and send.

        Args:
            twice: have the work try it once more, and think nothing of it that it is registered already.
        """
        sent = Message(self.gid)
        sent.step("http://gift/grant")
        insert = "insert into purse (owner, balance) values (?, ?)"

        def blocking_work(_: Any) -> None:
            caller.execute_now(insert, self.owner, 1)
            if twice:
                with pytest.raises(Exception, match=_TAKEN):
                    caller.execute_now(insert, self.owner, 1)
            if error is not None:
                raise error

        async def work(_: Any) -> None:
            await caller.execute(insert, self.owner, 1)
            if twice:
                with pytest.raises(Exception, match=_TAKEN):
                    await caller.execute(insert, self.owner, 1)
            if error is not None:
                raise error

        def send_now() -> str:
            with Coordinator(self.url, attempts=1) as coordinator:
                return coordinator.do_and_submit(sent, CHECK, caller.connection, blocking_work)

        if not caller.is_async:
            return await asyncio.to_thread(send_now)
        async with AsyncCoordinator(self.url, attempts=1) as coordinator:
            return await coordinator.do_and_submit(sent, CHECK, caller.connection, work)

    async def check_back(self) -> bool:
        caller = await self.bench.connect()
        answer = await caller.query_prepared(BranchBarrier("msg", self.gid, "00", "msg"))
        await caller.close()
        return answer

    async def is_registered(self) -> bool:
        caller = await self.bench.begun()
        found = await caller.execute("select balance from purse where owner = ?", self.owner)
        await caller.rollback()
        return bool(found)


def name(param: tuple[str, type[Bench]]) -> str:
    database, kind = param
    return f"{database}-{kind.__name__}"


@pytest.fixture(params=BENCHES, ids=name)
async def sender(request: pytest.FixtureRequest, served: tuple[ScriptedCoordinator, str]) -> AsyncIterator[Sender]:
    database, kind = request.param
    bench = kind(request.getfixturevalue(f"shared_{database}_url"))
    await bench.prepare()
    yield Sender(bench, served[1])
    await bench.close()


async def test_local_transaction_and_message_happen_both(server: ScriptedCoordinator, sender: Sender) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", OK)
    assert await sender.send(await sender.bench.connect()) == sender.gid
    assert server.paths == ["/prepare", "/submit"]
    assert await sender.is_registered()


async def test_what_work_raises_undoes_both(server: ScriptedCoordinator, sender: Sender) -> None:
    server.answers("/prepare", OK)
    server.answers("/abort", OK)
    with pytest.raises(Lost):
        await sender.send(await sender.bench.connect(), error=Lost())
    assert not await sender.is_registered()
    assert not await sender.check_back()


async def test_what_was_written_before_in_the_transaction_goes_with_it(
    server: ScriptedCoordinator, sender: Sender
) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", OK)
    caller, other = await sender.bench.connect(), uuid4().hex
    if isinstance(sender.bench, Asyncpg):
        # By a statement: its own transaction objects want to commit themselves.
        await caller.execute("begin")
    await caller.execute("insert into purse (owner, balance) values (?, ?)", other, 1)
    await sender.send(caller)
    sender.owner = other
    assert await sender.is_registered()


async def test_after_a_crash_between_commit_and_submit_the_check_back_says_success(
    server: ScriptedCoordinator, sender: Sender
) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", BUSY)
    await sender.send(await sender.bench.connect())
    assert await sender.is_registered()
    assert await sender.check_back()


async def test_a_commit_that_fails_wrote_nothing_and_the_check_back_says_so(
    server: ScriptedCoordinator, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers("/prepare", OK)
    caller = await sender.bench.connect()

    def driver_that_cannot_commit(connection: object, *, is_async: bool) -> Driver:
        async def commit() -> None:
            raise Lost("the connection went away")

        driver = driver_of(connection, is_async=is_async)
        monkeypatch.setattr(driver, "commit_own", commit)
        return driver

    with monkeypatch.context() as patched:
        patched.setattr("txcoord_sdk.barrier.barrier.driver_of", driver_that_cannot_commit)
        with pytest.raises(Lost) as raised:
            await sender.send(caller)
    assert "not known" in raised.value.__notes__[-1]
    assert server.paths == ["/prepare"]
    await caller.close()
    assert not await sender.is_registered()
    assert not await sender.check_back()


async def test_a_message_is_sent_only_if_the_commit_was_one(server: ScriptedCoordinator, sender: Sender) -> None:
    server.answers("/prepare", OK)
    if sender.bench.database == "postgresql":  # rolls back, and calls it a success
        with pytest.raises(Exception, match="aborted"):
            await sender.send(await sender.bench.connect(), twice=True)
        assert server.paths == ["/prepare"]
    else:
        server.answers("/submit", OK)
        await sender.send(await sender.bench.connect(), twice=True)
    assert await sender.is_registered() is await sender.check_back()


async def test_a_check_back_that_comes_first_wins(server: ScriptedCoordinator, sender: Sender) -> None:
    server.answers("/prepare", OK)
    assert not await sender.check_back()
    with pytest.raises(DuplicatedError, match=sender.gid):
        await sender.send(await sender.bench.connect())
    assert server.paths == ["/prepare"]
    assert not await sender.is_registered()
    assert not await sender.check_back()
