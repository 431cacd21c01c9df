"""A coordinator, participants over DTM's own clients, and their books; `clients.py` says what the programs are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import httpx
import pymysql
import pytest

from localservers.processes import free_port
from localservers.servers import Server
from tests.e2e.harness import Process
from tests.interop.clients import CLIENTS
from txcoord.barrier.tables import Database, create_statements
from txcoord_sdk import Coordinator
from txcoord_sdk.results import Transaction

Line = tuple[str, str, str]
"""Branch id, operation, account."""


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

    def query(self, statement: str) -> Sequence[Any]:
        return self._execute(statement)

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
        self.grpc = f"127.0.0.1:{free_port()}"
        ports = {"PORT": str(port), "GRPC_PORT": self.grpc.partition(":")[2]}
        super().__init__([], port=port, log=log, probe="/", env={**ports, **books.environment()})
        self._command = list(client.command(folder))
        self.name = name

    def branch(self, account: str, **behaviour: Any) -> dict[str, Any]:
        """A branch at this participant."""
        return {"url": f"{self.url}/branch", "body": {"account": account, "amount": 30, **behaviour}}

    def grpc_branch(self, account: str, **behaviour: Any) -> dict[str, Any]:
        """A branch at this participant, to be called over gRPC."""
        return {**self.branch(account, **behaviour), "url": f"{self.grpc}/interop.Branch/Do"}


@dataclass(frozen=True, slots=True)
class Ran:
    """What an initiator reported."""

    gid: str
    error: str
    result: str = ""
    """What a workflow returned."""


@dataclass(slots=True)
class World:
    """A coordinator, and the participants that were asked for."""

    url: str
    grpc: str
    """host:port"""
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
            "dtm": self.grpc if options.get("protocol") == "grpc" else self.dtm,
            "branches": branches,
            **options,
        }
        answer = httpx.post(f"{self.participant.url}/run", json=order, timeout=30).raise_for_status().json()
        return Ran(answer["gid"], answer["error"], answer.get("result", ""))

    def ended(self, gid: str) -> Transaction:
        """Wait until it is final."""
        return self._coordinator.wait(gid, timeout=30)

    def found(self, gid: str) -> Transaction:
        return self._coordinator.query(gid)


class Over:
    """The protocol by which the coordinator is called, and calls."""

    def __init__(self, world: World, protocol: str) -> None:
        self.options = {"protocol": protocol} if protocol == "grpc" else {}
        self.branch = world.participant.grpc_branch if protocol == "grpc" else world.participant.branch


def needs(world: World, clients: Sequence[str]) -> None:
    """Skip what DTM's client of this language cannot do."""
    if world.participant.name not in clients:
        pytest.skip(f"DTM's {world.participant.name} client cannot do this: docs/interop.md says why")
