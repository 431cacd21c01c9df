"""The `store` fixture: one after the other of all stores, each on an empty database."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from localservers.servers import Server
from tests.store.databases import run_sql
from txcoord.store.base import Store
from txcoord.store.url import open_store, upgrade

ALL = ("memory", "sqlite", "mysql", "postgres")
SERVERS = ("mysql", "postgres")


def _one_database(server: Server) -> Iterator[str]:
    """One database with our tables, emptied for each test: to make hundreds would take a minute."""
    name = f"store_{uuid.uuid4().hex[:16]}"
    url = server.create_database(name)
    upgrade(url)
    yield url
    server.drop_database(name)


@pytest.fixture(scope="session")
def shared_mysql_url(mariadb_server: Server) -> Iterator[str]:
    yield from _one_database(mariadb_server)


@pytest.fixture(scope="session")
def shared_postgres_url(postgres_server: Server) -> Iterator[str]:
    yield from _one_database(postgres_server)


@pytest.fixture(params=ALL)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store_url(kind: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database with our tables."""
    if kind == "memory":
        return "memory://"
    if kind == "sqlite":
        return str(request.getfixturevalue("sqlite_url"))
    url: str = request.getfixturevalue(f"shared_{kind}_url")
    asyncio.run(run_sql(url, "DELETE FROM global_transaction", "DELETE FROM node", "DELETE FROM txcoord_kv"))
    return url


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    store = open_store(store_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def second_store(kind: str, store: Store, store_url: str) -> AsyncIterator[Store]:
    """Another process's view of the same database; of a store that belongs to one process, the same view."""
    if kind not in SERVERS:
        yield store
        return
    second = open_store(store_url)
    await second.open()
    yield second
    await second.close()
