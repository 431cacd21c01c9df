"""A participant that is killed at a chosen statement, in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

import psycopg
import pymysql

from sdk.tests.xa_support import account
from txcoord_sdk.xa import XaKey, finish_sync, prepare_sync


@dataclass(frozen=True, slots=True)
class Blow:
    """When the process is to die."""

    number: int
    """At which statement, counted from 0."""
    is_sent: bool
    """Whether the statement still leaves: the server carries it out, and nobody hears the answer."""


class _Fate:
    def __init__(self, blow: Blow) -> None:
        self._blow = blow
        self._statements = 0
        self.dies_with_the_answer = False

    def strike(self) -> None:
        """Called before each statement."""
        if self._statements == self._blow.number:
            if not self._blow.is_sent:
                die()
            self.dies_with_the_answer = True
        self._statements += 1


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _mysql(url: str, database: str, fate: _Fate) -> Any:
    class Doomed(pymysql.connections.Connection):  # type: ignore[misc]  # PyMySQL has no types
        is_open = False

        def query(self, sql: str, unbuffered: bool = False) -> int:
            fate.strike()
            return int(super().query(sql, unbuffered))

        def _read_query_result(self, unbuffered: bool = False) -> int:
            # The statement is in the socket.
            if fate.dies_with_the_answer:
                die()
            return int(super()._read_query_result(unbuffered))

    return Doomed(**account(url), database=database)


def _postgres(url: str, fate: _Fate) -> psycopg.Connection:
    class Doomed(psycopg.Cursor[Any]):
        def execute(self, query: Any, params: Sequence[Any] | None = None, **more: Any) -> Any:
            fate.strike()
            super().execute(query, params, **more)
            if fate.dies_with_the_answer:
                die()
            return self

    return psycopg.connect(url, cursor_factory=Doomed, autocommit=True)


def act(url: str, database: str, key: XaKey, op: str, blow: Blow, said: Pipe) -> None:
    """Carry out one operation of a branch, and die at the blow unless it is over before."""
    fate = _Fate(blow)

    def connect() -> Any:
        return _mysql(url, database, fate) if url.startswith("mysql") else _postgres(url, fate)

    def work(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("insert into entry values (%s)", (key.gid,))

    if op == "action":
        prepare_sync(connect, key, work, register=lambda: said.send("registered"))
    else:
        finish_sync(connect, key, op)
    said.send("done")
