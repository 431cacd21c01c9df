"""The sweeper: what it shows of what is prepared, what it ends, and what it never touches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiomysql
import asyncpg
import psycopg
import pytest

from sdk.tests.client_support import Answer, ScriptedCoordinator, scripted_coordinator
from sdk.tests.xa_support import Ledger, account
from txcoord_sdk import AsyncCoordinator, Coordinator, CoordinatorUnreachableError
from txcoord_sdk.xa import Fate, Leftover, XaError, XaKey, prepare_sync, recover, recover_sync, recovery
from txcoord_sdk.xa.cli import main

NOTHING = Answer(200, {"transaction": None, "branches": None})


@pytest.fixture(params=["mysql", "postgres"])
def ledger(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> Iterator[Ledger]:
    made = Ledger(make_database(request.param))
    made.end_all()
    yield made
    made.end_all()


@pytest.fixture
def served() -> Iterator[tuple[ScriptedCoordinator, str]]:
    with scripted_coordinator() as (server, url):
        yield server, url
        assert not server.unused, "it was to be asked this, too"


class Sweeper:
    """A database with leftovers, and the coordinator that is asked about them."""

    def __init__(self, ledger: Ledger, coordinator: ScriptedCoordinator, url: str) -> None:
        self.ledger = ledger
        self.coordinator = coordinator
        self.url = url

    def leave(self, gid: str, branch_id: str = "01") -> None:
        """Leave a branch prepared."""

        def work(connection: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute("insert into entry values (%s)", (gid,))

        prepare_sync(self.ledger.connect, XaKey(gid=gid, branch_id=branch_id), work, register=lambda: None)

    def knows(self, gid: str, status: str | None, *branch_ids: str, pattern: str = "xa") -> None:
        branches = [{"branch_id": id_, "op": "commit", "status": "prepared"} for id_ in branch_ids or ("01",)]
        transaction = {"gid": gid, "trans_type": pattern, "status": status}
        answer = Answer(200, {"transaction": transaction, "branches": branches}) if status else NOTHING
        self.coordinator.answers("/query", answer)

    def sweep(self, **options: Any) -> dict[str, Leftover]:
        with Coordinator(self.url) as client:
            found = recover_sync(self.ledger.connect, client, **options)
        return {leftover.xid: leftover for leftover in found}

    def sweep_one(self, **options: Any) -> Leftover:
        [leftover] = self.sweep(**options).values()
        return leftover


@pytest.fixture
def sweeper(ledger: Ledger, served: tuple[ScriptedCoordinator, str]) -> Sweeper:
    return Sweeper(ledger, *served)


@pytest.fixture
def gid() -> str:
    return f"gid-{uuid4().hex}"


FATES = [
    pytest.param("succeed", {}, Fate.COMMIT, "commit", id="succeeded"),
    pytest.param("failed", {}, Fate.ROLLBACK, "rollback", id="failed"),
    pytest.param("prepared", {"unknown": True}, Fate.WAIT, None, id="prepared"),
    pytest.param("submitted", {"unknown": True}, Fate.WAIT, None, id="submitted"),
    pytest.param("aborting", {"unknown": True}, Fate.WAIT, None, id="aborting"),
    pytest.param(None, {}, Fate.UNKNOWN, None, id="unknown"),
    pytest.param(None, {"unknown": True}, Fate.UNKNOWN, "rollback", id="unknown, and said so"),
]


@pytest.mark.parametrize(("status", "options", "fate", "ended"), FATES)
def test_each_is_shown_first_and_ended_on_request(
    sweeper: Sweeper, gid: str, status: str | None, options: dict[str, bool], fate: Fate, ended: str | None
) -> None:
    sweeper.leave(gid)
    sweeper.knows(gid, status)

    shown = sweeper.sweep_one(**options)
    assert (shown.xid, shown.key, shown.fate, shown.ended) == (f"{gid}-01", XaKey(gid=gid, branch_id="01"), fate, None)
    assert sweeper.ledger.prepared == [f"{gid}-01"], "to show it changes nothing"

    sweeper.knows(gid, status)
    done = sweeper.sweep_one(end=True, **options)

    assert (done.fate, done.ended, done.problem) == (fate, ended, "")
    assert done.is_settled is (ended is not None or fate is Fate.WAIT)
    assert sweeper.ledger.prepared == ([] if ended else [f"{gid}-01"])
    assert sweeper.ledger.has(gid) is (ended == "commit")


@pytest.mark.parametrize(
    ("status", "branch_id", "pattern"), [("succeed", "02", "xa"), ("succeed", "01", "saga"), ("failed", "01", "saga")]
)
def test_what_ended_without_this_branch_is_no_reason_to_end_it(
    sweeper: Sweeper, gid: str, status: str, branch_id: str, pattern: str
) -> None:
    sweeper.leave(gid)
    sweeper.knows(gid, status, branch_id, pattern=pattern)

    assert sweeper.sweep_one(end=True).fate is Fate.UNKNOWN
    assert sweeper.ledger.prepared == [f"{gid}-01"]


ENDED = [
    pytest.param("failed", "xa", [("02", "commit", "succeed")], Fate.COMMIT, id="stopped between the commits"),
    pytest.param("failed", "workflow", [("02", "commit", "succeed")], Fate.COMMIT, id="a workflow stopped likewise"),
    pytest.param("failed", "xa", [("02", "rollback", "succeed")], Fate.ROLLBACK, id="stopped between the rollbacks"),
    pytest.param("succeed", "workflow", [("01", "action", "failed")], Fate.ROLLBACK, id="a step that was refused"),
    pytest.param("succeed", "workflow", [("01", "action", "succeed")], Fate.COMMIT, id="a step that was taken"),
]


@pytest.mark.parametrize(("status", "pattern", "results", "fate"), ENDED)
def test_what_was_decided_counts(
    sweeper: Sweeper, gid: str, status: str, pattern: str, results: list[tuple[str, str, str]], fate: Fate
) -> None:
    # By hand, a transaction can be made failed while the others of its branches are being committed.
    sweeper.leave(gid)
    branches = [{"branch_id": id_, "op": op, "status": how} for id_, op, how in results]
    transaction = {"gid": gid, "trans_type": pattern, "status": status}
    sweeper.coordinator.answers("/query", Answer(200, {"transaction": transaction, "branches": branches}))

    assert sweeper.sweep_one(end=True).ended == fate.value
    assert sweeper.ledger.has(gid) is (fate is Fate.COMMIT)


def test_what_is_not_ours_is_neither_shown_nor_ended(sweeper: Sweeper, gid: str) -> None:
    names = ["backup", "nightly-2024", f"{gid}-07"]
    for name in names:
        prepare_by_hand(sweeper.ledger, name)

    assert sweeper.sweep(end=True, unknown=True) == {}

    assert sorted(sweeper.ledger.prepared) == sorted(names)


def prepare_by_hand(ledger: Ledger, name: str) -> None:
    """Prepare a transaction as anybody might, without a barrier's row."""
    connection = ledger.connect()
    with connection.cursor() as cursor:
        start, end, prepare = (
            (f"xa start '{name}'", f"xa end '{name}'", f"xa prepare '{name}'")
            if ledger.is_mysql
            else ("begin", "select 1", f"prepare transaction '{name}'")
        )
        cursor.execute(start)
        cursor.execute("insert into entry values (%s)", (name,))
        cursor.execute(end)
        cursor.execute(prepare)
    connection.close()


def test_a_gid_that_its_name_does_not_tell(sweeper: Sweeper) -> None:
    gid = f"order:{uuid4().hex}"
    sweeper.leave(gid)

    if sweeper.ledger.is_mysql:
        # The row of what is prepared can be read there.
        sweeper.knows(gid, "failed")
        found = sweeper.sweep_one()
    else:
        unnamed = sweeper.sweep_one(end=True, unknown=True)
        assert (unnamed.key, unnamed.fate, unnamed.is_settled) == (None, Fate.UNNAMED, False)
        for _ in range(2):
            sweeper.knows(gid, "failed")
        found = sweeper.sweep_one(gids=[gid])
    assert (found.key, found.fate) == (XaKey(gid=gid, branch_id="01"), Fate.ROLLBACK)

    for _ in range(2):
        sweeper.knows(gid, "failed")
    assert sweeper.sweep_one(end=True, gids=[gid]).ended == "rollback"
    assert sweeper.ledger.prepared == []


def test_what_was_named_and_is_unknown_stays(sweeper: Sweeper) -> None:
    gid = f"'{uuid4().hex}"
    sweeper.leave(gid)
    sweeper.knows(gid, None)

    found = sweeper.sweep_one(end=True, unknown=True, gids=[gid])

    assert found.fate is Fate.UNNAMED, "an empty beginning tells nothing, and an unknown gid has no branches"
    assert len(sweeper.ledger.prepared) == 1


def test_one_that_cannot_be_ended_says_why(sweeper: Sweeper, gid: str) -> None:
    sweeper.leave(gid)
    name, verb = (f"{gid}-01", "xa commit" if sweeper.ledger.is_mysql else "commit prepared")
    sweeper.knows(gid, "failed")
    # Somebody commits it in the moment between looking and ending.
    original, calls = sweeper.ledger.connect, []

    def connect() -> Any:
        calls.append(None)
        if len(calls) == 2:
            with original() as connection, connection.cursor() as cursor:
                cursor.execute(f"{verb} '{name}'")
        return original()

    with Coordinator(sweeper.url) as client:
        [found] = recover_sync(connect, client, end=True)

    assert (found.ended, found.is_settled) == (None, False)
    assert "it was committed before" in found.problem


def test_a_coordinator_that_is_away_ends_nothing(sweeper: Sweeper, gid: str) -> None:
    sweeper.leave(gid)

    with (
        Coordinator("http://127.0.0.1:1", attempts=1) as nobody,
        pytest.raises(CoordinatorUnreachableError),
    ):
        recover_sync(sweeper.ledger.connect, nobody, end=True, unknown=True)

    assert sweeper.ledger.prepared == [f"{gid}-01"]


async def test_the_same_with_asyncio(sweeper: Sweeper, gid: str) -> None:
    ledger = sweeper.ledger
    await asyncio.to_thread(sweeper.leave, gid)
    sweeper.knows(gid, "succeed")

    def source() -> Any:
        if ledger.is_mysql:
            return aiomysql.connect(**account(ledger.url), db=ledger.name)
        return asyncpg.connect(ledger.url)

    async with AsyncCoordinator(sweeper.url) as client:
        [found] = await recover(source, client, end=True)

    assert found.ended == "commit"
    assert await asyncio.to_thread(ledger.has, gid)


@pytest.mark.parametrize("kind", ["mariadb", "postgres"])
def test_what_outlived_its_server_is_found(
    request: pytest.FixtureRequest, served: tuple[ScriptedCoordinator, str], gid: str, kind: str
) -> None:
    server = request.getfixturevalue(f"fragile_{kind}")
    sweeper = Sweeper(Ledger(server.create_database(f"xa_{uuid4().hex[:12]}")), *served)
    sweeper.leave(gid)
    server.kill()
    server.start()
    sweeper.knows(gid, "succeed")

    assert sweeper.sweep_one(end=True).ended == "commit"
    assert sweeper.ledger.has(gid)


# -- the command -----------------------------------------------------------------------------


def test_the_command_shows_and_ends(sweeper: Sweeper, gid: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recover", "--url", sweeper.ledger.url, "--coordinator", sweeper.url]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "no prepared transaction of ours\n"
    sweeper.leave(gid)

    sweeper.knows(gid, "succeed")
    assert main(arguments) == 1
    title, line = capsys.readouterr().out.splitlines()
    assert title.split() == ["xid", "gid", "branch", "global", "transaction", "what", "about", "it"]
    assert line.split() == [f"{gid}-01", gid, "01", "succeed", "is", "to", "be", "committed", "(--end)"]

    sweeper.knows(gid, "succeed")
    assert main([*arguments, "--end"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("committed")
    assert sweeper.ledger.has(gid)


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["sqlite:////tmp/x.db"], "SQLite has no prepared transactions"),
        (["mysql://root@127.0.0.1:1/x"], "the database cannot be used"),
        (["nonsense"], "not a database URL"),
        (["mysql://root@127.0.0.1:1/x", "--coordinator", "ftp://x"], "ftp://x"),
    ):
        assert main(["recover", "--url", *arguments]) == 1
        assert words in capsys.readouterr().err


def test_the_source_of_the_sweeper_has_to_be_a_server(served: tuple[ScriptedCoordinator, str]) -> None:
    with Coordinator(served[1]) as client, pytest.raises(XaError):
        recover_sync(None, client)


@pytest.mark.parametrize("ending", [LookupError, asyncio.CancelledError])
async def test_a_look_that_is_broken_off_leaves_no_connection_that_commits_each_statement(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    async def broken_off(*_: object) -> None:
        raise ending

    for name in ("_ours_in_mysql", "_ours_in_postgresql"):
        monkeypatch.setattr(recovery, name, broken_off)
    lent: Any
    if ledger.is_mysql:
        lent = await aiomysql.connect(**account(ledger.url), db=ledger.name)
    else:
        lent = await psycopg.AsyncConnection.connect(ledger.url)

    @asynccontextmanager
    async def lend() -> AsyncIterator[Any]:
        yield lent

    async with AsyncCoordinator() as coordinator:
        with pytest.raises(ending):
            await recover(lend, coordinator)
    assert lent.closed
