"""Two banks of the examples on two databases: money moves between them, or stays, with a real coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack

import httpx
import pytest

from examples.bank import FIRST_BALANCE, make_bank, transfer
from tests.e2e.harness import Process, coordinator
from tests.integration.serving import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with coordinator("memory://", tmp_path_factory.mktemp("coordinator")) as process:
        yield process


class TwoBanks:
    def __init__(self, coordinator: str, mariadb: str, postgres: str) -> None:
        self._coordinator = coordinator
        self.mariadb, self.postgres = mariadb, postgres

    async def move(self, from_bank: str, to_bank: str, amount: int) -> str:
        return await asyncio.to_thread(transfer, from_bank, to_bank, amount, coordinator=self._coordinator)

    async def balances(self) -> list[int]:
        async with httpx.AsyncClient() as http:
            return [(await http.get(f"{bank}/balance")).json()["balance"] for bank in (self.mariadb, self.postgres)]


@pytest.fixture
async def banks(make_database: Callable[[str], str], server: Process) -> AsyncIterator[TwoBanks]:
    async with AsyncExitStack() as stack:
        urls = [
            await stack.enter_async_context(serving(make_bank(make_database(kind)), lifespan="on"))
            for kind in ("mysql", "postgres")
        ]
        yield TwoBanks(server.url, *urls)


async def test_money_moves_or_stays(banks: TwoBanks) -> None:
    assert await banks.balances() == [FIRST_BALANCE, FIRST_BALANCE]

    assert (await banks.move(banks.mariadb, banks.postgres, 30)).startswith("moved 30")
    assert await banks.balances() == [FIRST_BALANCE - 30, FIRST_BALANCE + 30]
    assert (await banks.move(banks.postgres, banks.mariadb, 100)).startswith("moved 100")
    assert await banks.balances() == [FIRST_BALANCE + 70, FIRST_BALANCE - 70]

    assert await banks.move(banks.postgres, banks.mariadb, 31) == "not moved: not enough money"
    assert await banks.balances() == [FIRST_BALANCE + 70, FIRST_BALANCE - 70]


async def test_a_bank_that_is_away_moves_nothing(banks: TwoBanks) -> None:
    said = await banks.move(banks.mariadb, "http://127.0.0.1:1", 30)

    assert said.startswith("not moved: no answer")
    async with asyncio.timeout(10):
        while (await banks.move(banks.mariadb, banks.postgres, 100)).startswith("not moved"):
            await asyncio.sleep(0.05)
    assert await banks.balances() == [0, FIRST_BALANCE + 100], "nothing was taken, and nothing stays locked"


def test_a_bank_on_sqlite_is_refused() -> None:
    with pytest.raises(SystemExit, match="SQLite cannot prepare"):
        make_bank("sqlite:///bank.db")
