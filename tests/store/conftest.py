"""The `store` fixture: one after the other of all stores, each on an empty database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.store.databases import run_sql
from txcoord.store.base import Store
from txcoord.store.url import open_store, upgrade

ALL = ("memory", "sqlite", "mysql", "postgres")
SERVERS = ("mysql", "postgres")

OpenStore = Callable[[], Awaitable[Store]]

_upgraded: set[str] = set()


@pytest.fixture(params=ALL)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store_url(kind: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database with our tables."""
    if kind == "memory":
        return "memory://"
    url: str = request.getfixturevalue(f"{kind}_url")
    if kind in SERVERS:
        if url not in _upgraded:
            await asyncio.to_thread(upgrade, url)
            _upgraded.add(url)
        await run_sql(url, "DELETE FROM global_transaction", "DELETE FROM node")
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
