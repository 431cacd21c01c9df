"""A running coordinator on each store, a scripted participant, and DTM's API between the two."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.e2e.harness import Process, coordinator, store_for
from tests.integration.dtm import Dtm
from tests.integration.scripted import Participant


@pytest.fixture(scope="module", params=["sqlite", "mysql", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("coordinator")
    with coordinator(store_for(request, folder), folder) as process:
        yield process


@pytest.fixture
async def participant() -> AsyncIterator[Participant]:
    async with Participant() as made:
        yield made


@pytest.fixture
async def dtm(server: Process, participant: Participant) -> AsyncIterator[Dtm]:
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
        yield Dtm(http, participant)
