"""Participants and coordinators that die under a load of workflows: each ends, once, as it has to."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from random import Random

import httpx
import pytest

from localservers.processes import free_port
from tests.e2e.bank import OPENING_BALANCE, is_refused
from tests.e2e.forked import ForkedProcess
from tests.e2e.harness import Bank, all_ended, coordinator, store_for
from tests.e2e.transfers import AMOUNT
from txcoord_sdk import Status

KILLS = {"sqlite": 18, "mysql": 16, "postgres": 16}
"""50 in all."""
ACCOUNTS = ("out", "in")


def fate(gid: str) -> Status:
    """How a transfer has to end."""
    return Status.FAILED if any(is_refused(gid, account) for account in ACCOUNTS) else Status.SUCCEEDED


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    made = Bank(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(params=list(KILLS))
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return store_for(request, tmp_path)


@pytest.fixture
def kills(store_url: str, request: pytest.FixtureRequest) -> int:
    return KILLS[request.node.callspec.params["store_url"]]


class Transfers:
    """The participant's process, and clients that have it make transfers until they are told to stop."""

    def __init__(self, folder: Path, bank: Bank, coordinator_url: str, *, clients: int = 8) -> None:
        self._file = folder / "transfers.sqlite"
        port = free_port()
        banks = [part for name, service in bank.services.items() for part in (f"--{name}", service.url)]
        self.process = ForkedProcess(
            ["tests.e2e.transfers", self._file, "--port", str(port), "--coordinator", coordinator_url, *banks],
            port=port,
            log=folder / "transfers.log",
            probe="/",
        )
        self._clients = clients
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.asked_for: list[str] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(self._clients)]

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def ask(self, gid: str) -> httpx.Response:
        """Ask for a transfer until that is answered with its end."""
        async with httpx.AsyncClient(base_url=self.process.url, timeout=30) as http:
            while True:
                try:
                    answer = await http.post(f"/transfers/{gid}")
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
                    continue
                if answer.status_code in (200, 409):
                    return answer
                assert answer.status_code == 503, self.process.log.read_text()[-4000:]
                await asyncio.sleep(0.05)

    async def _run(self, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            gid = f"t{number}-{turn}"
            await self.ask(gid)
            self.asked_for.append(gid)
            turn += 1

    def ledger(self) -> dict[str, Counter[str]]:
        found: dict[str, Counter[str]] = {}
        with closing(sqlite3.connect(self._file)) as connection:
            for gid, op in connection.execute("select gid, op from effects"):
                found.setdefault(gid, Counter())[op] += 1
        return found


def check(bank: Bank, transfers: Transfers, ended: Mapping[str, Status]) -> None:
    """Compare the participants' own tables with how the workflows ended."""
    books, ledger = bank.effects(), transfers.ledger()
    wrong: list[str] = []
    for gid, status in ended.items():
        if status is not fate(gid):
            wrong.append(f"{gid} ended {status}, and not {fate(gid)}")
        undone = int(status is Status.FAILED)
        if ledger.pop(gid, Counter()) != +Counter(action=1, rollback=undone):
            wrong.append(f"{gid} {status}: the ledger is wrong")
        book = books.pop(gid, Counter())
        for number, account in enumerate(ACCOUNTS):
            comes_to = not any(is_refused(gid, each) for each in ACCOUNTS[: number + 1])
            found = (book[account, "action"], book[account, "rollback"])
            if found != (int(comes_to), int(comes_to) * undone):
                wrong.append(f"{gid} {status}: the books of {account} say {dict(book)}")
    wrong += [f"{gid} has effects, but nobody asked for it" for gid in {*books, *ledger}]
    assert not wrong, "\n".join(wrong[:20])
    moved = AMOUNT * sum(status is Status.SUCCEEDED for status in ended.values())
    assert bank.balances() == {"out": (OPENING_BALANCE - moved, 0), "in": (OPENING_BALANCE + moved, 0)}


async def test_a_participant_that_was_killed_is_resumed_by_the_coordinator(bank: Bank, tmp_path: Path) -> None:
    process = coordinator(f"sqlite:///{tmp_path}/txcoord.db", tmp_path, TXCOORD_RETRY_INTERVAL_S="1")
    transfers = Transfers(tmp_path, bank, process.url)
    gid = next(f"s{number}" for number in range(1000) if fate(f"s{number}") is Status.SUCCEEDED)
    try:
        process.start()
        transfers.process.start()
        # The first bank is out of reach, so the workflow waits in the middle, its first step recorded.
        bank.services["out"].pause()
        asking = asyncio.create_task(transfers.ask(gid))
        async with asyncio.timeout(20):
            while not transfers.ledger().get(gid):
                await asyncio.sleep(0.01)
        transfers.process.kill()
        bank.services["out"].resume()
        asking.cancel()
        await asyncio.to_thread(transfers.process.start)

        # Nobody runs it again: the coordinator has it resumed.
        ended = await all_ended(process.url, [gid])
        again = await transfers.ask(gid)
    finally:
        bank.services["out"].resume()
        transfers.process.close()
        process.close()

    assert (again.status_code, again.json()) == (200, {"result": gid})
    check(bank, transfers, ended)


@pytest.mark.slow
async def test_kill_at_random_moments(bank: Bank, store_url: str, kills: int, tmp_path: Path) -> None:
    random = Random(20261120)
    process = coordinator(store_url, tmp_path, kind=ForkedProcess, TXCOORD_RETRY_INTERVAL_S="1")
    transfers = Transfers(tmp_path, bank, process.url)
    try:
        process.start()
        transfers.process.start()
        transfers.start()
        for number in range(kills):
            await asyncio.sleep(random.uniform(0.02, 0.3))
            victim = process if number % 3 == 2 else transfers.process
            victim.kill()
            await asyncio.to_thread(victim.start)
        while len(transfers.asked_for) < 2 * kills:
            await asyncio.sleep(0.1)
        await transfers.stop()
        ended = await all_ended(process.url, transfers.asked_for)
    finally:
        transfers.process.close()
        process.close()

    check(bank, transfers, ended)
    assert set(ended.values()) == {Status.SUCCEEDED, Status.FAILED}
