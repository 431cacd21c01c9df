"""DTM's own clients of other languages, as initiators and participants, on a running coordinator.

What happened is read from the participants' books, which their own barriers protect, and from the
coordinator's query. `clients.py` says what the programs are told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import httpx
import pymysql
import pytest

from tests.e2e.harness import Process, coordinator, store_for
from tests.interop.clients import CLIENTS, RegistryUnreachableError, ToolchainMissingError
from tests.processes import free_port
from tests.servers import Server
from txcoord.barrier.tables import Database, create_statements
from txcoord_sdk import Coordinator, Status
from txcoord_sdk.results import Transaction

pytestmark = pytest.mark.slow

Line = tuple[str, str, str]
"""Branch id, operation, account."""

NESTING = ("go", "python")
"""Clients whose participants can add a branch to the TCC that calls them."""
CONCURRENT = ("go", "java")
"""Clients that can submit a concurrent saga; the Python client ends in an AttributeError of its own."""
WITH_OPTIONS = ("go", "python")
"""Clients whose sagas can have options beyond `wait_result`; the Java client's setters call themselves for ever."""

WAITING_TCC = ("go",)
"""Clients whose TCC has options at all."""

JSON_RPC = ("go",)
"""Clients that speak JSON-RPC to the coordinator."""


class Books:
    """The database of the participants: their books, and DTM's barrier tables."""

    def __init__(self, server: Server) -> None:
        self.url = server.create_database(f"interop_{uuid4().hex[:8]}")
        parts = urlsplit(self.url)
        self._where: Mapping[str, Any] = {
            "host": parts.hostname,
            "port": parts.port or 3306,
            "user": unquote(parts.username or "root"),
            "password": unquote(parts.password or ""),
            "database": parts.path.strip("/"),
        }
        # Go and Python look for the one table, Java for the other.
        for table in (None, "barrier"):
            for statement in create_statements(Database.MYSQL, table):
                self._execute(statement)
        self._execute(
            "create table books (id bigint auto_increment primary key, gid varchar(128), branch_id varchar(128),"
            " op varchar(45), account varchar(45), amount integer, note varchar(45) not null default '')"
        )

    def environment(self) -> dict[str, str]:
        """What a participant has to know to find them."""
        names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "database": "DB"}
        return {f"BOOKS_{name}": str(self._where[key]) for key, name in names.items()}

    def lines(self, gid: str) -> list[Line]:
        """What took effect, in the order in which it did."""
        return [
            (branch_id, op, account)
            for branch_id, op, account in self._execute(
                "select branch_id, op, account from books where gid = %s order by id", gid
            )
        ]

    def notes(self, gid: str) -> set[str]:
        return {note for (note,) in self._execute("select note from books where gid = %s", gid)}

    def _execute(self, statement: str, *values: str) -> Sequence[Any]:
        with pymysql.connect(**self._where, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall()


class Participant(Process):
    """A running program over a client; it is the initiator too."""

    def __init__(self, name: str, books: Books, log: Path) -> None:
        port = free_port()
        client = CLIENTS[name]
        folder = client.prepare()
        super().__init__([], port=port, log=log, probe="/", env={"PORT": str(port), **books.environment()})
        self._command = list(client.command(folder))
        self.name = name

    def branch(self, account: str, **behaviour: Any) -> dict[str, Any]:
        """A branch at this participant."""
        return {"url": f"{self.url}/branch", "body": {"account": account, "amount": 30, **behaviour}}


@dataclass(frozen=True, slots=True)
class Ran:
    """What an initiator reported."""

    gid: str
    error: str


@dataclass(slots=True)
class World:
    """A coordinator, and the participants that were asked for."""

    url: str
    books: Books
    participant: Participant
    _coordinator: Coordinator = field(init=False)

    def __post_init__(self) -> None:
        self._coordinator = Coordinator(self.url)

    @property
    def dtm(self) -> str:
        return f"{self.url}/api/dtmsvr"

    def run(self, pattern: str, *branches: Mapping[str, Any], gid: str | None = None, **options: Any) -> Ran:
        """Let the client run a global transaction."""
        order = {
            "pattern": pattern,
            "gid": f"{pattern}-{uuid4().hex[:12]}" if gid is None else gid,
            "dtm": self.dtm,
            "branches": branches,
            **options,
        }
        answer = httpx.post(f"{self.participant.url}/run", json=order, timeout=30).raise_for_status().json()
        return Ran(answer["gid"], answer["error"])

    def ended(self, gid: str) -> Transaction:
        """Wait until it is final."""
        return self._coordinator.wait(gid, timeout=30)

    def found(self, gid: str) -> Transaction:
        return self._coordinator.query(gid)


@pytest.fixture(scope="module")
def books(mariadb_server: Server) -> Iterator[Books]:
    made = Books(mariadb_server)
    yield made
    mariadb_server.drop_database(urlsplit(made.url).path.strip("/"))


def _start(name: str, books: Books, folder: Path) -> Participant:
    try:
        participant = Participant(name, books, folder / f"{name}.log")
    except ToolchainMissingError as error:
        # A toolchain is not a server: CI runs the languages that its machine has.
        pytest.skip(str(error))
    except RegistryUnreachableError as error:
        if os.environ.get("CI", "").lower() in {"true", "1"}:
            # A machine with the toolchain was meant to run this: skipped, it would go unnoticed for months.
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    participant.start()
    return participant


@pytest.fixture(scope="module", params=list(CLIENTS))
def participant(
    request: pytest.FixtureRequest, books: Books, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Participant]:
    started = _start(request.param, books, tmp_path_factory.mktemp(request.param))
    yield started
    started.close()


@pytest.fixture(scope="module", params=["sqlite", "mysql"])
def server_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp(request.param)
    process = coordinator(store_for(request, folder), folder, TXCOORD_RETRY_INTERVAL_S="1")
    process.start()
    yield process.url
    process.close()


@pytest.fixture
def world(server_url: str, books: Books, participant: Participant) -> World:
    return World(server_url, books, participant)


def needs(world: World, clients: Sequence[str]) -> None:
    if world.participant.name not in clients:
        pytest.skip(f"DTM's {world.participant.name} client cannot do this: docs/interop.md says why")


def undone(world: World, *lines: Line) -> set[Line]:
    """What stands in the books after a saga was compensated in which the second action was refused.

    The compensation of that one finds nothing to undo, and the barrier leaves it out. Only that of
    the Java client does not: it knows empty cancels, but no empty compensations.
    """
    return {*lines, *([("02", "compensate", "in")] if world.participant.name == "java" else [])}


# -- sagas -----------------------------------------------------------------------------------


def test_a_saga_runs_its_actions_in_turn(world: World) -> None:
    ran = world.run("saga", world.participant.branch("out"), world.participant.branch("in"))

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    assert world.books.lines(ran.gid) == [("01", "action", "out"), ("02", "action", "in")]


def test_the_coordinator_gives_out_a_gid(world: World) -> None:
    ran = world.run("saga", world.participant.branch("out"), gid="")

    assert ran.gid
    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED


def test_a_refused_saga_is_compensated(world: World) -> None:
    ran = world.run("saga", world.participant.branch("out"), world.participant.branch("in", refuse=["action"]))

    ended = world.ended(ran.gid)
    assert ended.status is Status.FAILED
    assert "in refuses" in ended.reason
    assert set(world.books.lines(ran.gid)) == undone(world, ("01", "action", "out"), ("01", "compensate", "out"))


def test_a_lost_answer_makes_no_second_effect(world: World) -> None:
    ran = world.run(
        "saga",
        world.participant.branch("out", lose=["action", "compensate"]),
        world.participant.branch("in", later=["action"], refuse=["action"]),
    )

    assert world.ended(ran.gid).status is Status.FAILED
    lines = world.books.lines(ran.gid)
    assert set(lines) == undone(world, ("01", "action", "out"), ("01", "compensate", "out"))
    assert len(lines) == len(set(lines))


def test_a_concurrent_saga_keeps_its_orders(world: World) -> None:
    needs(world, CONCURRENT)
    ran = world.run(
        "saga",
        *(world.participant.branch(account) for account in "abcd"),
        concurrent=True,
        orders={"0": [2, 3], "1": [0]},
    )

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    accounts = [account for _, _, account in world.books.lines(ran.gid)]
    assert sorted(accounts[:2]) == ["c", "d"]
    assert accounts[2:] == ["a", "b"]


def test_wait_result_answers_when_the_saga_has_succeeded(world: World) -> None:
    ran = world.run("saga", world.participant.branch("out"), world.participant.branch("in"), wait_result=True)

    assert ran.error == ""
    assert world.found(ran.gid).status is Status.SUCCEEDED


def test_wait_result_is_an_error_when_the_saga_is_refused(world: World) -> None:
    ran = world.run(
        "saga", world.participant.branch("out"), world.participant.branch("in", refuse=["action"]), wait_result=True
    )

    assert ran.error != ""
    assert world.ended(ran.gid).status is Status.FAILED


def test_a_saga_past_its_time_is_compensated(world: World) -> None:
    needs(world, WITH_OPTIONS)
    ran = world.run(
        "saga", world.participant.branch("out"), world.participant.branch("in", never=["action"]), timeout_to_fail=1
    )

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.FAILED
    assert world.books.lines(ran.gid) == [("01", "action", "out"), ("01", "compensate", "out")]


def test_branch_headers_reach_the_participant(world: World) -> None:
    needs(world, WITH_OPTIONS)
    ran = world.run("saga", world.participant.branch("out"), branch_headers={"Interop-Note": "red"})

    assert world.ended(ran.gid).status is Status.SUCCEEDED
    assert world.books.notes(ran.gid) == {"red"}


# -- tcc -------------------------------------------------------------------------------------


def test_a_tcc_is_confirmed(world: World) -> None:
    ran = world.run("tcc", world.participant.branch("out"), world.participant.branch("in"))

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    lines = world.books.lines(ran.gid)
    assert lines[:2] == [("01", "try", "out"), ("02", "try", "in")]
    assert sorted(lines[2:]) == [("01", "confirm", "out"), ("02", "confirm", "in")]


def test_a_refused_tcc_is_cancelled(world: World) -> None:
    ran = world.run("tcc", world.participant.branch("out"), world.participant.branch("in", refuse=["try"]))

    assert ran.error != ""
    assert world.ended(ran.gid).status is Status.FAILED
    assert world.books.lines(ran.gid) == [("01", "try", "out"), ("01", "cancel", "out")]


def test_a_confirm_is_repeated_until_it_succeeds(world: World) -> None:
    ran = world.run(
        "tcc", world.participant.branch("out", later=["confirm"]), world.participant.branch("in", lose=["confirm"])
    )

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    assert sorted(world.books.lines(ran.gid)) == [
        ("01", "confirm", "out"),
        ("01", "try", "out"),
        ("02", "confirm", "in"),
        ("02", "try", "in"),
    ]


def test_a_cancel_is_repeated_until_it_succeeds(world: World) -> None:
    ran = world.run(
        "tcc",
        world.participant.branch("out", later=["cancel"], lose=["cancel"]),
        world.participant.branch("in", refuse=["try"]),
    )

    assert world.ended(ran.gid).status is Status.FAILED
    assert world.books.lines(ran.gid) == [("01", "try", "out"), ("01", "cancel", "out")]


@pytest.mark.parametrize(
    ("refuse", "status"), [([], Status.SUCCEEDED), (["try"], Status.FAILED)], ids=["confirmed", "cancelled"]
)
def test_wait_result_answers_when_the_tcc_has_ended(world: World, refuse: list[str], status: Status) -> None:
    needs(world, WAITING_TCC)
    ran = world.run(
        "tcc", world.participant.branch("out"), world.participant.branch("in", refuse=refuse), wait_result=True
    )

    assert (ran.error == "") is (status is Status.SUCCEEDED)
    assert world.found(ran.gid).status is status


@pytest.mark.parametrize("refuse", [[], ["try"]], ids=["confirmed", "cancelled"])
def test_a_participant_adds_a_branch_to_the_tcc_that_calls_it(world: World, refuse: list[str]) -> None:
    needs(world, NESTING)
    inner = world.participant.branch("in", refuse=refuse)
    ran = world.run(
        "tcc", world.participant.branch("fee"), world.participant.branch("out", nested=inner, dtm=world.dtm)
    )

    ended = world.ended(ran.gid)
    assert {branch.branch_id for branch in ended.branches} == {"01", "02", "0201"}
    lines = world.books.lines(ran.gid)
    if refuse:
        assert ran.error != ""
        assert ended.status is Status.FAILED
        assert lines == [("01", "try", "fee"), ("01", "cancel", "fee")]
    else:
        assert ran.error == ""
        assert ended.status is Status.SUCCEEDED
        assert lines[:3] == [("01", "try", "fee"), ("0201", "try", "in"), ("02", "try", "out")]
        assert sorted(lines[3:]) == [("01", "confirm", "fee"), ("02", "confirm", "out"), ("0201", "confirm", "in")]


# -- json-rpc --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refuse", "status"), [(False, Status.SUCCEEDED), (True, Status.FAILED)], ids=["succeeds", "refused"]
)
@pytest.mark.parametrize(("pattern", "first"), [("saga", "action"), ("tcc", "try")])
def test_the_coordinator_is_called_over_json_rpc(
    world: World, pattern: str, first: str, refuse: bool, status: Status
) -> None:
    needs(world, JSON_RPC)
    last = world.participant.branch("in", refuse=[first] if refuse else [])
    ran = world.run(
        pattern,
        world.participant.branch("out"),
        last,
        dtm=f"{world.url}/api/json-rpc",
        protocol="json-rpc",
        wait_result=True,
    )

    assert (ran.error == "") is not refuse
    assert world.ended(ran.gid).status is status
    assert ("01", first, "out") in world.books.lines(ran.gid)


# -- several languages in one ----------------------------------------------------------------


@pytest.mark.parametrize("refuse", [False, True], ids=["succeeds", "refused"])
@pytest.mark.parametrize(("pattern", "first", "undo"), [("saga", "action", "compensate"), ("tcc", "try", "cancel")])
def test_one_transaction_has_branches_in_every_language(
    world: World, every: Sequence[Participant], pattern: str, first: str, undo: str, refuse: bool
) -> None:
    last = world.participant.branch("last", refuse=[first] if refuse else [])
    ran = world.run(pattern, *(each.branch(each.name) for each in every), last)

    assert world.ended(ran.gid).status is (Status.FAILED if refuse else Status.SUCCEEDED)
    done = {(op, account) for _, op, account in world.books.lines(ran.gid)}
    for each in every:
        assert (first, each.name) in done
        assert ((undo, each.name) in done) is refuse
    assert ((first, "last") in done) is not refuse


@pytest.fixture(scope="module")
def every(books: Books, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Participant]]:
    """A participant in each language that can be had here."""
    folder = tmp_path_factory.mktemp("every")
    started = []
    for name in CLIENTS:
        try:
            one = Participant(name, books, folder / f"{name}.log")
        except (ToolchainMissingError, RegistryUnreachableError):
            continue  # the tests of this language say so
        one.start()
        started.append(one)
    yield started
    for one in started:
        one.close()
