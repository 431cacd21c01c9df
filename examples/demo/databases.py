"""The services' databases: SQLite files, except where a service prepares (XA), which SQLite cannot.

Those are made on a server of our own if MariaDB or PostgreSQL is installed, or on one that was named.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pymysql
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from localservers.processes import ProgramMissingError
from localservers.servers import MariaDB, Postgres, Server, ServerFailedError

BANKS = ("bank-a", "bank-b")
PREPARING = (*BANKS, "checkout")
"""Services whose databases prepare; the checkout has another way without."""

_KINDS: tuple[type[Server], ...] = (Postgres, MariaDB)
_SYNC_DRIVERS = {"mysql": "mysql+pymysql", "postgresql": "postgresql+psycopg"}

HOW_TO_SEE_XA = (
    "install PostgreSQL or MariaDB (Debian, Ubuntu: apt-get install postgresql), whose server program the demo starts "
    "by itself, or name a server: --xa-server mysql://root:password@127.0.0.1:3306/"
)


class DatabaseError(Exception):
    """A database cannot be had; the sentence says why."""


class Databases:
    """Where each service keeps its data. Use it with `with`.

    Args:
        folder: for SQLite files.
        with_server: look for a server for those that prepare, at once.
        server: URL of a server on which databases may be made, and are dropped in the end; None: one of our own.
        must_prepare: take it for an error if there is no server.
    """

    def __init__(
        self, folder: Path, *, with_server: bool = False, server: str | None = None, must_prepare: bool = False
    ) -> None:
        self._folder = folder
        self._must_prepare = must_prepare
        self._prefix = f"txcoord_demo_{secrets.token_hex(4)}"
        self._made: dict[str, str] = {}
        self._thread = ThreadPoolExecutor(max_workers=1)
        # It takes some seconds, which the first scenarios need as well.
        self._server: Future[Server | None] = self._thread.submit(self._find if with_server else _none, server)

    def __enter__(self) -> Databases:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        if self._server.exception() is None and (server := self._server.result()) is not None:
            if not server.private:
                for name in self._made.keys() & set(PREPARING):
                    server.drop_database(self._name(name))
            server.close()

    @property
    def is_settled(self) -> bool:
        """Whether `can_prepare` answers at once."""
        return self._server.done()

    @property
    def can_prepare(self) -> bool:
        """Whether there is a server for XA; waits until it runs.

        Raises:
            DatabaseError: there has to be one, or the one that was named is of no use.
        """
        return self._server.result() is not None

    def url(self, name: str) -> str:
        """The database of a service, which is made if it has none yet."""
        if name not in self._made:
            server = self._server.result() if name in PREPARING else None
            if server is None:
                self._made[name] = f"sqlite:///{self._folder / f'{name}.db'}"
            else:
                try:
                    self._made[name] = server.create_database(self._name(name))
                except (psycopg.Error, pymysql.MySQLError) as error:
                    raise DatabaseError(f"no database can be made on the server for XA: {error}") from error
        return self._made[name]

    def rows(self, name: str, query: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """Look into a service's database, past the service."""
        return _rows(make_url(self.url(name)), query, values)

    def is_prepared(self, name: str, xid: str) -> bool:
        """Tell whether the service's database holds this branch prepared: neither committed nor rolled back."""
        if isinstance(self._server.result(), Postgres):
            query = "select gid from pg_prepared_xacts where database = current_database() and gid = :xid"
            return bool(self.rows(name, query, {"xid": xid}))
        # MariaDB gives names as bytes, MySQL as text.
        return any(row[-1] in (xid, xid.encode()) for row in self.rows(name, "xa recover", {}))

    def _name(self, name: str) -> str:
        return f"{self._prefix}_{name.replace('-', '_')}"

    def _find(self, named: str | None) -> Server | None:
        if named is not None:
            return _named(named)
        missing = []
        for kind in _KINDS:
            try:
                return kind(may_install=False)
            except (ProgramMissingError, ServerFailedError) as error:
                missing.append(str(error))
        if self._must_prepare:
            raise DatabaseError("there is no server for XA, and in CI nothing may be left out: " + "; ".join(missing))
        return None


def may_leave_out() -> bool:
    """In CI nothing may."""
    return os.environ.get("CI", "").lower() not in {"true", "1"}


def _none(_: str | None) -> Server | None:
    return None


def _named(url: str) -> Server:
    scheme = url.partition(":")[0].partition("+")[0]
    for kind in _KINDS:
        if scheme in kind.schemes:
            try:
                server = kind(existing_url=url)
            except ServerFailedError:
                break
            _must_prepare(server)
            return server
    raise DatabaseError("--xa-server is to look like mysql://user:password@host:port/ or postgresql://…")


def _must_prepare(server: Server) -> None:
    if not isinstance(server, Postgres):
        return
    url = make_url(server.database_url("postgres"))
    try:
        [(most,)] = _rows(url, "select current_setting('max_prepared_transactions')", {})
    except DBAPIError as error:
        raise DatabaseError(f"the server for XA cannot be used: {error.orig}") from error
    if most == "0":
        raise DatabaseError(
            "the server for XA allows no prepared transactions: ALTER SYSTEM SET max_prepared_transactions = 100, "
            "and restart it"
        )


def _rows(url: URL, query: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
    backend = url.get_backend_name()
    if backend == "sqlite":
        url = url.set(database=f"file:{url.database}", query={"mode": "ro", "uri": "true", "timeout": "10"})
    else:
        url = url.set(drivername=_SYNC_DRIVERS[backend])
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return [tuple(row) for row in connection.execute(text(query), values)]
