"""The engine's tests run in virtual time, on a store in memory, with participants that follow a script."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
from structlog.testing import capture_logs

from tests.engine.harness import Cluster, Node
from tests.virtual_time import VirtualLoop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], VirtualLoop]]:
    return {"virtual": VirtualLoop}


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """A store and participants; start nodes with it. In the end, nothing unexpected may have happened inside."""
    # What is there already has nothing to do with this test: its collection, in the end, need not look through it.
    gc.freeze()
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
    cluster = Cluster()
    with capture_logs() as logs:
        yield cluster
        await cluster.close()
    broken = [entry for entry in logs if entry["event"] in ("driving failed", "background work failed")]
    assert cluster.may_break or not broken
    assert not unhandled


@pytest.fixture
async def node(cluster: Cluster) -> Node:
    return await cluster.start_node()
