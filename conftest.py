"""Fixtures shared by `tests/` and `sdk/tests/`: real databases, started when first asked for.

Each worker of pytest-xdist starts servers of its own, so a test may kill or pause one.
"""

from __future__ import annotations

import os
import ssl
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from localservers.processes import ProgramMissingError
from localservers.servers import MariaDB, Postgres, Redis, Server, existing_or_private, start_mariadb, start_postgres

MakeDatabase = Callable[[str], str]


@pytest.fixture(scope="session", autouse=True)
def _certificates_are_read_once() -> Iterator[None]:
    """Let HTTP clients share what they trust: to read the system's certificates takes longer than most tests."""
    make, shared = httpx.create_ssl_context, httpx.create_ssl_context()

    def create(verify: ssl.SSLContext | str | bool = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
        return shared if verify is True and cert is None else make(verify, cert, trust_env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", create)
        yield


def _server(start: Callable[[], Server]) -> Iterator[Server]:
    try:
        server = start()
    except ProgramMissingError as error:
        if os.environ.get("CI", "").lower() in {"true", "1"}:
            pytest.fail(f"in CI no server may be missing: {error}", pytrace=False)
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[Server]:
    """A MariaDB for the whole run: private, or the one of TXCOORD_TEST_MYSQL_URL. Leave it running."""
    yield from _server(lambda: existing_or_private(MariaDB.kind))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL for the whole run: private, or the one of TXCOORD_TEST_POSTGRES_URL. Leave it running."""
    yield from _server(lambda: existing_or_private(Postgres.kind))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """A Redis for the whole run: private, or the one of TXCOORD_TEST_REDIS_URL. Leave it running."""
    yield from _server(lambda: existing_or_private(Redis.kind))


@pytest.fixture(scope="session")
def _fragile_mariadb() -> Iterator[Server]:
    yield from _server(start_mariadb)


@pytest.fixture(scope="session")
def _fragile_postgres() -> Iterator[Server]:
    yield from _server(start_postgres)


@pytest.fixture
def fragile_mariadb(_fragile_mariadb: Server) -> Iterator[Server]:
    """A private MariaDB that a test may pause, stop or kill; it runs again for the next one."""
    yield _fragile_mariadb
    _fragile_mariadb.ensure_running()


@pytest.fixture
def fragile_postgres(_fragile_postgres: Server) -> Iterator[Server]:
    """A private PostgreSQL that a test may pause, stop or kill; it runs again for the next one."""
    yield _fragile_postgres
    _fragile_postgres.ensure_running()


@pytest.fixture
def make_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeDatabase]:
    """Make fresh, empty databases: `make_database("sqlite" | "mysql" | "postgres" | "redis")` gives a URL.

    They are dropped after the test; whatever connection is still open to them is cut.
    """
    fixtures = {"mysql": "mariadb_server", "postgres": "postgres_server", "redis": "redis_server"}
    made: list[tuple[Server, str]] = []

    def make(kind: str) -> str:
        name = f"t_{uuid.uuid4().hex[:16]}"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / name}.db"
        server: Server = request.getfixturevalue(fixtures[kind])
        made.append((server, name))
        return server.create_database(name)

    yield make
    for server, name in made:
        server.drop_database(name)


@pytest.fixture
def sqlite_url(make_database: MakeDatabase) -> str:
    """URL of a SQLite file that does not exist yet: sqlite:////tmp/.../x.db."""
    return make_database("sqlite")


@pytest.fixture
def mysql_url(make_database: MakeDatabase) -> str:
    """URL of a fresh, empty MariaDB database."""
    return make_database("mysql")


@pytest.fixture
def postgres_url(make_database: MakeDatabase) -> str:
    """URL of a fresh, empty PostgreSQL database."""
    return make_database("postgres")


@pytest.fixture
def redis_url(make_database: MakeDatabase) -> str:
    """URL of an empty Redis database."""
    return make_database("redis")
