"""A coordinator that answers by script; and one database of each kind for the whole run: for tests that are many and
keep to rows of their own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from localservers.servers import RedisCluster, Server
from sdk.tests.client_support import ScriptedCoordinator, scripted_coordinator


@pytest.fixture
def served() -> Iterator[tuple[ScriptedCoordinator, str]]:
    """A scripted coordinator and its URL. In the end, all that was scripted must have been asked for."""
    with scripted_coordinator() as (server, url):
        yield server, url
        assert not server.unused, "the client was to ask for this, too"


@pytest.fixture
def server(served: tuple[ScriptedCoordinator, str]) -> ScriptedCoordinator:
    return served[0]


@pytest.fixture(scope="session")
def shared_sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('shared')}/shared.db"


@pytest.fixture(scope="session")
def shared_mysql_url(mariadb_server: Server) -> Iterator[str]:
    yield from _database(mariadb_server)


@pytest.fixture(scope="session")
def shared_postgres_url(postgres_server: Server) -> Iterator[str]:
    yield from _database(postgres_server)


@pytest.fixture(scope="session")
def redis_cluster(redis_server: Server) -> Iterator[RedisCluster]:
    # The other fixture says what is to be done where the program is missing.
    with RedisCluster() as cluster:
        yield cluster


def _database(server: Server) -> Iterator[str]:
    name = f"shared_{uuid.uuid4().hex[:16]}"
    yield server.create_database(name)
    server.drop_database(name)
