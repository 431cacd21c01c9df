"""What is scraped of a coordinator on a real store, with several workers where the store allows them."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from tests.e2e.harness import Process, coordinator, store_for
from tests.integration.scripted import ONGOING, Participant

DTM = "/api/dtmsvr"


@pytest.fixture(params=["sqlite", "mysql", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("coordinator")
    workers = "1" if request.param == "sqlite" else "2"
    with coordinator(store_for(request, folder), folder, TXCOORD_WORKERS=workers) as process:
        yield process


async def test_what_is_unfinished_is_shown_once_however_many_workers_there_are(server: Process) -> None:
    async with Participant() as participant, httpx.AsyncClient(base_url=server.url, timeout=20) as http:
        participant.script("busy", *[ONGOING] * 100)
        for path in ("", f"{participant.url}/busy", f"{participant.url}/busy"):
            saga = {"gid": uuid4().hex, "trans_type": "saga", "steps": [{"action": path}], "payloads": [""]}
            await http.post(f"{DTM}/submit", json={**saga, "wait_result": True})
        await http.post(f"{DTM}/prepare", json={"gid": uuid4().hex, "trans_type": "tcc"})

        for _ in range(4):
            answer = await http.get("/api/metrics", headers={"connection": "close"})

            assert [line for line in answer.text.splitlines() if line.startswith("txcoord_unfinished")] == [
                'txcoord_unfinished{status="prepared"} 1.0',
                'txcoord_unfinished{status="submitted"} 2.0',
                'txcoord_unfinished{status="aborting"} 0.0',
            ]
