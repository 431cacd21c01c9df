"""DTM's API as a client sees it, and what DTM's tests look at: statuses, rows, times."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx

from tests.integration.scripted import Participant

LETTERS = {"prepared": "P", "succeed": "S", "failed": "F"}


class Dtm:
    """DTM's API as a client sees it."""

    def __init__(self, http: httpx.AsyncClient, participant: Participant) -> None:
        self._http = http
        self._participant = participant
        self.gid = f"g-{uuid4().hex}"

    def beside(self) -> Dtm:
        """The same client with another transaction."""
        return Dtm(self._http, self._participant)

    async def submit(self, **changes: Any) -> httpx.Response:
        """Submit a saga of two steps, `out` and `in`."""
        url = self._participant.url
        body: dict[str, Any] = {
            "gid": self.gid,
            "trans_type": "saga",
            "steps": [
                {"action": f"{url}/out", "compensate": f"{url}/out-revert"},
                {"action": f"{url}/in", "compensate": f"{url}/in-revert"},
            ],
            "payloads": ['{"amount":30}', '{"amount":30}'],
        }
        return await self._http.post("/api/dtmsvr/submit", json=body | changes)

    async def post(self, path: str, **more: Any) -> httpx.Response:
        return await self._http.post(f"/api/dtmsvr/{path}", json={"gid": self.gid} | more)

    async def query(self) -> dict[str, Any]:
        answer = await self._http.get("/api/dtmsvr/query", params={"gid": self.gid})
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    async def transaction(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.query())["transaction"]
        return found

    async def rows(self) -> str:
        return "".join(LETTERS[branch["status"]] for branch in (await self.query())["branches"])

    async def reaches(self, status: str) -> dict[str, Any]:
        """Wait for a status."""
        async with asyncio.timeout(15):
            while (transaction := await self.transaction())["status"] != status:
                await asyncio.sleep(0.02)
        return transaction

    async def ends(self, status: str, rows: str) -> dict[str, Any]:
        """Wait for a status, and check the rows."""
        transaction = await self.reaches(status)
        assert await self.rows() == rows
        return transaction

    async def cron(self) -> None:
        """What a turn of the cron does for this transaction: it becomes due once it is parked."""
        await self.parked()
        assert (await self.post("resetNextCronTime")).status_code == 200

    async def parked(self) -> dict[str, Any]:
        async with asyncio.timeout(15):
            while not (transaction := await self.transaction()).get("next_cron_time"):
                await asyncio.sleep(0.02)
        return transaction


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def seconds_ahead(transaction: dict[str, Any]) -> float:
    return (moment(transaction["next_cron_time"]) - datetime.now(UTC)).total_seconds()
