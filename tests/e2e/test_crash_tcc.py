"""A coordinator that dies under a load of TCC transfers: all confirmed or all cancelled, and nothing stays frozen."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

import httpx
import pytest

from tests.e2e.bank import OPENING_BALANCE, chance, is_refused
from tests.e2e.harness import Bank, all_ended, coordinator, store_for
from txcoord_sdk import Status

pytestmark = pytest.mark.slow

KILLS = 50
VANISHING_PERCENT = 15

BRANCHES = {"01": "out", "02": "in"}


def vanishes_before(gid: str) -> str:
    """The step before which the initiator of this transfer vanishes; "" for most."""
    step = chance(gid, "vanish")
    return ["try 01", "register 02", "try 02", "submit"][step % 4] if step < VANISHING_PERCENT else ""


def fate(gid: str) -> Status:
    """How a transfer has to end."""
    if vanishes_before(gid) or any(is_refused(gid, account) for account in BRANCHES.values()):
        return Status.FAILED
    return Status.SUCCEEDED


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    made = Bank(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(params=["sqlite", "mysql", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return store_for(request, tmp_path)


class Initiators:
    """Make transfers until told to stop; what has no clear answer is repeated."""

    def __init__(self, bank: Bank, url: str, *, clients: int = 8) -> None:
        self._bank = bank
        self._url = url
        self._clients = clients
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.prepared: list[str] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(self._clients)]

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _run(self, number: int) -> None:
        turn = 0
        async with httpx.AsyncClient(timeout=10) as http:
            while not self._stop.is_set():
                await self._transfer(http, f"t{number}-{turn}")
                turn += 1

    async def _transfer(self, http: httpx.AsyncClient, gid: str) -> None:
        vanishing = vanishes_before(gid)
        assert await self._ask(http, "prepare", gid, timeout_to_fail=1 if vanishing else 120) == 200
        self.prepared.append(gid)
        for branch_id, account in BRANCHES.items():
            if vanishing == f"register {branch_id}":
                return
            url = f"{self._bank.services[account].url}/branch"
            data = f'{{"amount":{self._amount(account)}}}'
            branch = {"branch_id": branch_id, "data": data, "confirm": url, "cancel": url}
            if await self._ask(http, "registerBranch", gid, **branch) == 409:
                return  # the deadline came first
            if vanishing == f"try {branch_id}":
                return
            if not await self._try(http, gid, branch_id, url, data):
                # Refused as "it is not prepared", an earlier abort of ours has arrived.
                assert await self._ask(http, "abort", gid, rollback_reason=f"{account} refuses") in (200, 409)
                return
        if vanishing != "submit":
            assert await self._ask(http, "submit", gid) in (200, 409)

    def _amount(self, account: str) -> int:
        return -self._bank.AMOUNT if account == "out" else self._bank.AMOUNT

    async def _ask(self, http: httpx.AsyncClient, path: str, gid: str, **more: object) -> int:
        body = {"gid": gid, "trans_type": "tcc"} | more
        while True:
            try:
                answer = await http.post(f"{self._url}/api/dtmsvr/{path}", json=body)
            except httpx.TransportError:
                await asyncio.sleep(0.02)
                continue
            if answer.status_code != 503:
                assert answer.status_code in (200, 409), answer.text
                return answer.status_code

    async def _try(self, http: httpx.AsyncClient, gid: str, branch_id: str, url: str, data: str) -> bool:
        query = {"gid": gid, "trans_type": "tcc", "branch_id": branch_id, "op": "try"}
        while (answer := await http.post(url, params=query, content=data)).status_code == 500:
            pass  # it may have happened; the same again is safe
        return answer.status_code == 200


def check(bank: Bank, ended: Mapping[str, Status]) -> None:
    """Compare the participants' own tables with how the transactions ended."""
    books = bank.effects()
    wrong: list[str] = []
    for gid, status in ended.items():
        book = books.pop(gid, Counter())
        if status is not fate(gid):
            wrong.append(f"{gid} ended {status}, and not {fate(gid)}")
        for account in BRANCHES.values():
            tried, confirmed, cancelled = (book[account, op] for op in ("try", "confirm", "cancel"))
            expected = (1, 1, 0) if status is Status.SUCCEEDED else (tried, 0, tried)
            if tried > 1 or (tried, confirmed, cancelled) != expected:
                wrong.append(f"{gid} {status}: the books of {account} say {dict(book)}")
    wrong += [f"{gid} has effects, but nobody prepared it: {dict(book)}" for gid, book in books.items()]
    assert not wrong, "\n".join(wrong[:20])
    moved = bank.AMOUNT * sum(status is Status.SUCCEEDED for status in ended.values())
    assert bank.balances() == {"out": (OPENING_BALANCE - moved, 0), "in": (OPENING_BALANCE + moved, 0)}


async def test_kill_at_random_moments(bank: Bank, store_url: str, tmp_path: Path) -> None:
    random = Random(20261120)
    process = coordinator(store_url, tmp_path)
    load = Initiators(bank, process.url)
    try:
        process.start()
        load.start()
        for _ in range(KILLS):
            await asyncio.sleep(random.uniform(0.02, 0.3))
            process.kill()
            await asyncio.to_thread(process.start)
        await load.stop()
        ended = await all_ended(process.url, load.prepared)
    finally:
        process.close()

    check(bank, ended)
    assert len(ended) > 2 * KILLS
    assert set(ended.values()) == {Status.SUCCEEDED, Status.FAILED}
    assert any(vanishes_before(gid) for gid in ended)
