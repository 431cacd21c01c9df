"""What is special about the store in a file: it belongs to one process."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from tests.sagas import NOON_US, make_saga
from txcoord.errors import LeaseLostError, SchemaError, StoreUnavailableError
from txcoord.model import MICROSECONDS
from txcoord.store.base import Applied, Create
from txcoord.store.sql import sqlite
from txcoord.store.url import current, open_store, upgrade


async def test_a_second_process_is_refused_until_the_first_has_closed(sqlite_url: str) -> None:
    first, second = open_store(sqlite_url), open_store(sqlite_url)
    await first.open()

    with pytest.raises(StoreUnavailableError, match=r"another process has the store file .* open .*\.lock"):
        await second.open()

    await first.close()
    await second.open()
    await second.close()


async def test_what_a_killed_process_owned_is_free_at_once(sqlite_url: str) -> None:
    killed = open_store(sqlite_url)
    await killed.open()
    node = await killed.join(name="killed", lease_s=3600)
    assert await killed.apply(node, [Create(tx=make_saga(), token=1)]) == [Applied.DONE]
    # All that a killed process does: its files are closed. It neither leaves nor gives up its lease.
    await killed.close()

    restarted = open_store(sqlite_url)
    await restarted.open()

    assert await restarted.release_dead(now_us=NOON_US, limit=9) == 1
    with pytest.raises(LeaseLostError):
        await restarted.apply(node, [])
    await restarted.close()


async def test_leases_are_measured_by_the_clock_it_is_given(sqlite_url: str) -> None:
    now_us = NOON_US
    store = open_store(sqlite_url, now_us=lambda: now_us)
    await store.open()
    node = await store.join(name="a", lease_s=5)

    now_us += 5 * MICROSECONDS - 1
    await store.apply(node, [])
    now_us += 1
    with pytest.raises(LeaseLostError):
        await store.apply(node, [])
    await store.close()


async def test_a_commit_is_on_disk_before_it_is_answered(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    await store.open()

    def settings(connection: object) -> tuple[object, ...]:
        names = ("journal_mode", "synchronous")
        return tuple(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names)  # type: ignore[attr-defined]

    assert await store._write(settings) == ("wal", 2)  # type: ignore[attr-defined]
    await store.close()


async def test_a_file_of_a_newer_version_is_left_alone(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    await store.open()
    await store.close()
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE txcoord_schema SET version_num = '9999'")
    connection.close()

    with pytest.raises(SchemaError, match="version 9999"):
        await open_store(sqlite_url).open()

    assert current(sqlite_url) == "9999"


async def test_a_nodes_own_work_does_not_wait_for_a_slow_listing(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    await store.open()
    node = await store.join(name="a", lease_s=600)
    began, end = threading.Event(), threading.Event()

    def list_slowly(_: object) -> bool:
        began.set()
        return end.wait(30)

    listing = asyncio.create_task(store._read(list_slowly))  # type: ignore[attr-defined]
    assert await asyncio.to_thread(began.wait, 30)

    assert await store.renew(node, lease_s=600)
    assert await store.next_due_us() is None
    assert await store.take_over_due(node, now_us=NOON_US, limit=9) == []
    assert await store.owned(node) == []
    assert await store.release_dead(now_us=NOON_US, limit=9) == 0
    assert not listing.done()
    end.set()
    assert await listing
    await store.close()


async def test_a_library_that_is_too_old_is_refused(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 32, 3))

    with pytest.raises(SchemaError, match=r"3\.33 or newer is needed"):
        await open_store(sqlite_url).open()
    with pytest.raises(SchemaError, match=r"3\.33 or newer is needed"):
        await asyncio.to_thread(upgrade, sqlite_url)


def test_no_statement_needs_a_newer_library() -> None:
    # The operators for JSON came with 3.38, and Ubuntu 22.04 has 3.37.
    assert "->" not in sqlite._BATCH_TRIGGER
