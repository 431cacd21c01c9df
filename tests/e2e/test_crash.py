"""Coordinators that die, sleep, or lose their database under load: nothing accepted is lost or done twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from localservers.servers import Server
from tests.e2e.harness import Bank, Load, Process, all_ended, coordinator, upgrade

pytestmark = pytest.mark.slow


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    made = Bank(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(params=["sqlite", "mysql", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    if request.param != "sqlite":
        upgrade(url)
    return url


@pytest.fixture(params=["mysql", "postgres"])
def server_url(request: pytest.FixtureRequest) -> str:
    """A store that several coordinators can share."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    upgrade(url)
    return url


@pytest.fixture(params=["mariadb", "postgres"])
def fragile_server(request: pytest.FixtureRequest) -> Server:
    """A database server of this test's own, which it may kill."""
    server: Server = request.getfixturevalue(f"fragile_{request.param}")
    return server


async def test_a_coordinator_paused_past_its_lease_changes_nothing(bank: Bank, server_url: str, tmp_path: Path) -> None:
    late, other = (coordinator(server_url, tmp_path, name=name) for name in ("late", "other"))
    load = Load(bank, [late.url], seed=2, clients=16)
    try:
        late.start()
        other.start()
        load.start()
        await _until(lambda: len(load.accepted) > 100)
        late.pause()
        # All that the late one had accepted is driven to its end by the other one.
        ended = await all_ended(other.url, list(load.accepted))
        before = _rows(server_url)
        late.resume()
        await _until(lambda: _logged(late, "node lease lost"))
        after = _rows(server_url)
        assert {gid: after[gid] for gid in before} == before
        # It has joined again, as a new node, and works on.
        accepted = len(load.accepted)
        await _until(lambda: len(load.accepted) > accepted + 20)
        await load.stop()
        ended |= await all_ended(other.url, load.accepted)
    finally:
        late.resume()
        late.close()
        other.close()

    bank.check(ended)


async def test_the_database_away_for_ten_seconds(bank: Bank, fragile_server: Server, tmp_path: Path) -> None:
    url = fragile_server.create_database("txcoord")
    upgrade(url)
    process = coordinator(url, tmp_path, TXCOORD_LEASE_S="5")
    load = Load(bank, [process.url], seed=3)
    try:
        process.start()
        load.start()
        await _until(lambda: len(load.accepted) > 50)
        await asyncio.to_thread(fragile_server.kill)
        await asyncio.sleep(10)
        await asyncio.to_thread(fragile_server.start)
        accepted = len(load.accepted)
        await _until(lambda: len(load.accepted) > accepted + 50)
        await load.stop()
        ended = await all_ended(process.url, load.accepted)
    finally:
        fragile_server.start()
        process.close()

    bank.check(ended)


async def test_two_coordinators_share_one_database_and_the_work_of_a_dead_one(
    bank: Bank, server_url: str, tmp_path: Path
) -> None:
    dying, other = (coordinator(server_url, tmp_path, name=name) for name in ("dying", "other"))
    load = Load(bank, [dying.url, other.url], seed=4)
    try:
        dying.start()
        other.start()
        load.start()
        for _ in range(3):
            await asyncio.sleep(0.5)
            dying.kill()
            await asyncio.sleep(1.5)
            await asyncio.to_thread(dying.start)
        await load.stop()
        ended = await all_ended(other.url, load.accepted)
    finally:
        dying.close()
        other.close()

    bank.check(ended)


async def test_sigterm_drains_and_loses_nothing(bank: Bank, store_url: str, tmp_path: Path) -> None:
    process = coordinator(store_url, tmp_path)
    load = Load(bank, [process.url], seed=5)
    try:
        process.start()
        load.start()
        for _ in range(5):
            await asyncio.sleep(0.5)
            assert await asyncio.to_thread(process.terminate) == 0
            await asyncio.to_thread(process.start)
        await load.stop()
        ended = await all_ended(process.url, load.accepted)
    finally:
        process.close()

    bank.check(ended)
    assert not _logged(process, "node lease lost")


def _rows(url: str) -> dict[str, tuple[Any, ...]]:
    """Every final transaction as the database has it."""
    driver = {"mysql": "mysql+pymysql", "postgresql": "postgresql+psycopg"}
    scheme, rest = url.split("://", 1)
    engine = sa.create_engine(f"{driver[scheme]}://{rest}")
    try:
        with engine.connect() as connection:
            rows = connection.execute(sa.text("select * from global_transaction where owner is null")).mappings()
            return {row["gid"]: tuple(row.values()) for row in rows}
    finally:
        engine.dispose()


def _logged(process: Process, event: str) -> bool:
    for line in process.log.read_text().splitlines():
        try:
            if json.loads(line).get("event") == event:
                return True
        except (ValueError, AttributeError):
            continue
    return False


async def _until(reached: Any, within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not reached():
            await asyncio.sleep(0.05)
