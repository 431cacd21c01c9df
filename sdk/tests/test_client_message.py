"""Messages of both clients, against a coordinator of the test's own: one list of scenarios."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from sdk.tests.client_support import Answer, Client, Drop, ScriptedCoordinator
from txcoord_sdk import (
    AsyncCoordinator,
    Coordinator,
    CoordinatorUnreachableError,
    Message,
    RequestRefusedError,
    Status,
    TransactionFailedError,
    TransactionNotFoundError,
    TransactionRunningError,
)
from txcoord_sdk._rules import MAX_REASON
from txcoord_sdk.barrier import BarrierError, BranchBarrier, DuplicatedError, create_table_sync

OK = Answer()
BUSY = Answer(503, {"message": "busy"})
CHECK = "http://users/query-prepared"
WRONG_STATE = Answer(409, {"dtm_result": "FAILURE", "message": "cannot do this to g1 FAILURE"})


def standing(status: str, reason: str = "") -> Answer:
    transaction = {"gid": "g1", "trans_type": "msg", "status": status, "rollback_reason": reason}
    return Answer(200, {"branches": [], "transaction": transaction})


NOT_FOUND = Answer(200, {"branches": [], "transaction": None})


def message(**options: Any) -> Message:
    made = Message("g1", **options)
    made.step("http://gift/grant", {"user": 7})
    return made


@pytest.fixture(params=[Coordinator, AsyncCoordinator], ids=["sync", "async"])
def client(request: pytest.FixtureRequest, served: tuple[ScriptedCoordinator, str]) -> Iterator[Client]:
    client = Client(request.param, served[1], backoff=0.001, attempts=3, timeout=5)
    yield client
    client.close()


# -- what is sent ------------------------------------------------------------------------


def test_a_message_is_submitted_as_the_wire_names_it(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/submit", OK)
    sent = client.do("message", "g1", concurrent=True, delay=timedelta(minutes=1), timeout_to_fail=20, max_attempts=3)
    sent.step("http://gift/grant", {"user": 7})
    sent.step("topic://registered")

    assert client.do("submit", sent) == "g1"

    assert server.requests[0].body == {
        "gid": "g1",
        "trans_type": "msg",
        "steps": [{"action": "http://gift/grant"}, {"action": "topic://registered"}],
        "payloads": ['{"user":7}', "null"],
        "timeout_to_fail": 20,
        "concurrent": True,
        "custom_data": '{"delay":60,"max_attempts":3}',
    }


def test_best_effort_is_a_number_of_attempts_a_time_or_both() -> None:
    body = message(max_attempts=5, give_up_after=timedelta(hours=1)).request()
    assert json.loads(body["custom_data"]) == {"max_attempts": 5, "deadline": 3600}
    assert "custom_data" not in message().request()


def test_a_message_is_prepared_then_submitted_with_the_same_steps(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", OK)
    sent = message(wait_result=True)

    assert client.do("prepare", sent, query_prepared=CHECK) == "g1"
    client.do("submit", sent)

    prepare, submit = (request.body for request in server.requests)
    assert prepare["query_prepared"] == CHECK
    assert "wait_result" not in prepare
    assert submit == {**prepare, "wait_result": True}


def test_run_returns_when_all_is_delivered(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/submit", Answer(425, {"dtm_result": "ONGOING", "message": "later"}))
    server.answers("/query", standing("submitted"), standing("succeed"))
    assert client.do("run", message()) == "g1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay": 0.5}, "delay must be a whole number"),
        ({"max_attempts": 0}, "max_attempts must be 1 or more"),
        ({"give_up_after": 0}, "give_up_after must be"),
        ({"gid": "a;b"}, "semicolon"),
    ],
)
def test_what_cannot_mean_anything_is_refused_where_it_stands(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Message(**options)


@pytest.mark.parametrize("url", ["", "gift/grant", "topic://", "topic://a\nb"])
def test_a_step_needs_a_url_or_a_topic(url: str) -> None:
    with pytest.raises(ValueError, match=r"url|URL"):
        Message().step(url)


def test_steps_come_before_it_is_handed_over(server: ScriptedCoordinator, client: Client) -> None:
    with pytest.raises(ValueError, match="no steps"):
        client.do("submit", Message())
    with pytest.raises(ValueError, match="needs query_prepared"):
        client.do("prepare", message(), query_prepared="")
    server.answers("/prepare", OK)
    sent = message()
    client.do("prepare", sent, query_prepared=CHECK)
    with pytest.raises(ValueError, match="open a new one"):
        sent.step("http://mail/send")


# -- what comes back ---------------------------------------------------------------------


@pytest.mark.parametrize(("status", "error"), [("failed", TransactionFailedError), ("submitted", RequestRefusedError)])
def test_a_gid_that_has_been_used_is_not_prepared(
    server: ScriptedCoordinator, client: Client, status: str, error: type[Exception]
) -> None:
    server.answers("/prepare", WRONG_STATE)
    server.answers("/query", standing(status))
    with pytest.raises(error) as raised:
        client.do("prepare", message(), query_prepared=CHECK)
    assert raised.value.status == Status(status)  # type: ignore[attr-defined]


def test_a_lost_answer_to_the_submit_is_looked_up(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/submit", Drop())
    server.answers("/query", standing("succeed"))
    assert client.do("submit", message()) == "g1"


def test_a_prepared_message_that_is_gone_is_not_made_anew(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", Drop())
    server.answers("/query", NOT_FOUND)
    sent = message()
    client.do("prepare", sent, query_prepared=CHECK)
    with pytest.raises(TransactionNotFoundError):
        client.do("submit", sent)
    assert server.paths.count("/submit") == 1


def test_an_abort_may_be_repeated_but_comes_too_late_after_a_submit(
    server: ScriptedCoordinator, client: Client
) -> None:
    server.answers("/abort", BUSY, OK, WRONG_STATE, WRONG_STATE)
    server.answers("/query", standing("failed"), standing("submitted"))
    sent = message()
    client.do("abort", sent, "changed\nmy mind" + "!" * 2000)
    client.do("abort", sent)
    with pytest.raises(RequestRefusedError):
        client.do("abort", sent)
    assert server.requests[0].body["trans_type"] == "msg"
    assert len(server.requests[0].body["rollback_reason"]) <= MAX_REASON


# -- with a local transaction ------------------------------------------------------------


class Users:
    """A service's database, reached as the client at hand does: blocking or async."""

    def __init__(self, client: Client, path: Path) -> None:
        self.client = client
        self.path = path
        self.is_async = isinstance(client.coordinator, AsyncCoordinator)
        with sqlite3.connect(path) as connection:
            connection.execute("create table users (name text primary key)")
            connection.execute("create table pets (owner text references users (name) deferrable initially deferred)")
        create_table_sync(connection)
        connection.close()

    def register(self, sent: Message, *, error: BaseException | None = None, statement: str = "") -> Any:
        """Register a user, and send the message with it."""
        insert = statement or "insert into users values ('ada')"
        if not self.is_async:
            connection = sqlite3.connect(self.path)
            connection.execute("pragma foreign_keys = on")

            def work(given: sqlite3.Connection) -> None:
                given.execute(insert)
                if error is not None:
                    raise error

            try:
                return self.client.do("do_and_submit", sent, CHECK, connection, work)
            finally:
                connection.close()

        async def register() -> Any:
            async with aiosqlite.connect(self.path) as connection:
                await connection.execute("pragma foreign_keys = on")

                async def work(given: aiosqlite.Connection) -> None:
                    await given.execute(insert)
                    if error is not None:
                        raise error

                coordinator = self.client.coordinator
                assert isinstance(coordinator, AsyncCoordinator)
                return await coordinator.do_and_submit(sent, CHECK, connection, work)

        return self.client._runner.run(register())

    def names(self) -> list[str]:
        connection = sqlite3.connect(self.path)
        found = [name for (name,) in connection.execute("select name from users")]
        connection.close()
        return found

    def check_back(self) -> bool:
        connection = sqlite3.connect(self.path)
        try:
            return BranchBarrier("msg", "g1", "00", "msg").query_prepared_sync(connection)
        finally:
            connection.close()


@pytest.fixture
def users(client: Client, tmp_path: Path) -> Users:
    return Users(client, tmp_path / "users.db")


def test_the_message_is_prepared_before_and_submitted_after_the_commit(
    server: ScriptedCoordinator, users: Users
) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", OK)

    assert users.register(message()) == "g1"

    assert server.paths == ["/prepare", "/submit"]
    assert users.names() == ["ada"]
    assert users.check_back()


def test_without_a_prepared_message_nothing_is_written(server: ScriptedCoordinator, users: Users) -> None:
    server.answers("/prepare", BUSY, BUSY, BUSY)
    with pytest.raises(CoordinatorUnreachableError):
        users.register(message())
    assert users.names() == []


def test_what_work_raises_is_rolled_back_aborted_and_goes_on(server: ScriptedCoordinator, users: Users) -> None:
    server.answers("/prepare", OK)
    server.answers("/abort", OK)
    error = LookupError("no such country")

    with pytest.raises(LookupError) as raised:
        users.register(message(), error=error)

    assert raised.value is error
    assert server.requests[-1].body["rollback_reason"] == "LookupError: no such country"
    assert users.names() == []
    assert not users.check_back()


def test_after_an_abort_no_second_attempt_with_the_gid_commits(server: ScriptedCoordinator, users: Users) -> None:
    server.answers("/prepare", OK, OK)
    server.answers("/abort", OK)
    with pytest.raises(LookupError):
        users.register(message(), error=LookupError())
    # As though it had been prepared before the abort arrived.
    with pytest.raises(DuplicatedError):
        users.register(message())
    assert users.names() == []


def test_an_abort_that_does_not_get_through_leaves_it_to_the_check_back(
    server: ScriptedCoordinator, users: Users
) -> None:
    server.answers("/prepare", OK)
    server.answers("/abort", BUSY, BUSY, BUSY)
    with pytest.raises(LookupError) as raised:
        users.register(message(), error=LookupError())
    assert "could not be aborted" in raised.value.__notes__[0]
    assert "check-back" in raised.value.__notes__[1]
    assert not users.check_back()


def test_who_is_broken_off_leaves_it_to_the_check_back(server: ScriptedCoordinator, users: Users) -> None:
    server.answers("/prepare", OK)

    class Stopped(BaseException):
        pass

    with pytest.raises(Stopped) as raised:
        users.register(message(), error=Stopped())
    assert server.paths == ["/prepare"]
    assert "check-back" in raised.value.__notes__[-1]
    assert users.names() == []


def test_a_commit_that_fails_is_left_to_the_check_back(server: ScriptedCoordinator, users: Users) -> None:
    server.answers("/prepare", OK)
    with pytest.raises(sqlite3.IntegrityError) as raised:
        users.register(message(), statement="insert into pets values ('nobody')")
    assert server.paths == ["/prepare"]
    assert "whether the local transaction has committed is not known" in raised.value.__notes__[-1]
    assert not users.check_back()


def test_a_check_back_that_came_first_keeps_it_from_being_written(server: ScriptedCoordinator, users: Users) -> None:
    server.answers("/prepare", OK)
    assert not users.check_back()
    with pytest.raises(DuplicatedError):
        users.register(message())
    assert server.paths == ["/prepare"]
    assert users.names() == []


def test_a_second_run_of_what_has_committed_aborts_nothing(server: ScriptedCoordinator, users: Users) -> None:
    server.answers("/prepare", OK, OK)
    server.answers("/submit", BUSY, BUSY, BUSY)
    users.register(message())
    with pytest.raises(DuplicatedError):
        users.register(message())
    assert "/abort" not in server.paths
    assert users.check_back()


def test_a_submit_that_does_not_get_through_is_no_failure(
    server: ScriptedCoordinator, users: Users, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", BUSY, BUSY, BUSY)
    caplog.set_level(logging.WARNING, "txcoord_sdk.message")

    assert users.register(message()) == "g1"

    assert "message g1: committed, but not submitted" in caplog.text
    assert users.check_back()


@pytest.mark.parametrize(
    ("status", "wait_result", "error"),
    [
        ("failed", False, TransactionFailedError),
        ("submitted", True, TransactionRunningError),
    ],
)
def test_what_goes_wrong_after_the_commit_says_that_it_has_committed(
    server: ScriptedCoordinator, users: Users, status: str, wait_result: bool, error: type[Exception]
) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", WRONG_STATE)
    server.answers("/query", standing(status))
    with pytest.raises(error) as raised:
        users.register(message(wait_result=wait_result))
    assert raised.value.__notes__ == ["the local transaction has committed"]
    assert users.names() == ["ada"]


def test_who_waits_is_told_that_the_submit_did_not_get_through(server: ScriptedCoordinator, users: Users) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", BUSY, BUSY, BUSY)
    with pytest.raises(CoordinatorUnreachableError) as raised:
        users.register(message(wait_result=True))
    assert raised.value.__notes__ == ["the local transaction has committed"]


def test_a_connection_or_work_of_the_wrong_kind_is_refused(server: ScriptedCoordinator, users: Users) -> None:
    with pytest.raises(BarrierError, match="cannot work on"):
        users.client.do("do_and_submit", message(), CHECK, object(), print)
    assert server.paths == [], "nothing is sent for what cannot be done"

    server.answers("/prepare", OK)
    server.answers("/abort", OK)

    async def coroutine(_: object) -> None:
        raise AssertionError("must not run")

    async def wrong_async(coordinator: AsyncCoordinator) -> None:
        async with aiosqlite.connect(users.path) as connection:
            await coordinator.do_and_submit(message(), CHECK, connection, lambda _: None)

    coordinator = users.client.coordinator

    def send() -> None:
        if isinstance(coordinator, AsyncCoordinator):
            users.client._runner.run(wrong_async(coordinator))
        else:
            coordinator.do_and_submit(message(), CHECK, sqlite3.connect(users.path), coroutine)

    with pytest.raises(TypeError, match="coroutine function"):
        send()
    assert not users.check_back()


def test_a_cancelled_task_writes_nothing(served: tuple[ScriptedCoordinator, str], tmp_path: Path) -> None:
    server, url = served
    server.answers("/prepare", OK)

    async def run() -> BaseException | None:
        entered = asyncio.Event()
        async with AsyncCoordinator(url) as coordinator, aiosqlite.connect(users.path) as connection:

            async def work(given: aiosqlite.Connection) -> None:
                await given.execute("insert into users values ('ada')")
                entered.set()
                await asyncio.Event().wait()

            task = asyncio.create_task(coordinator.do_and_submit(message(), CHECK, connection, work))
            await entered.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        return None

    client = Client(AsyncCoordinator, url)
    users = Users(client, tmp_path / "users.db")
    asyncio.run(run())
    client.close()
    assert users.names() == []
    assert not users.check_back()
