"""How a database gets its tables."""

from __future__ import annotations

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

import txcoord.store.migrations as migrations
from tests.store.databases import connected, run_sql
from txcoord.errors import SchemaError
from txcoord.store.sql.tables import metadata
from txcoord.store.url import current, open_store, upgrade

SQL = ["sqlite", "mysql", "postgres"]


@pytest.fixture
async def empty_url(kind: str, request: pytest.FixtureRequest) -> str:
    """The URL of a database without tables."""
    url: str = request.getfixturevalue(f"{kind}_url")
    if kind != "sqlite":
        tables = ("global_transaction", "node", "txcoord_kv", migrations.VERSION_TABLE)
        await run_sql(url, *(f"DROP TABLE IF EXISTS {table}" for table in tables))
    return url


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_server_without_tables_is_refused_with_the_command_that_makes_them(empty_url: str) -> None:
    assert await asyncio.to_thread(current, empty_url) is None

    with pytest.raises(SchemaError, match=r"has no txcoord tables: run `txcoord db upgrade`"):
        await open_store(empty_url).open()

    await asyncio.to_thread(upgrade, empty_url)
    store = open_store(empty_url)
    await store.open()
    await store.close()


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_server_of_another_version_is_refused_with_the_command_that_mends_it(empty_url: str) -> None:
    await asyncio.to_thread(upgrade, empty_url)
    await _set_version(empty_url, "0000")

    with pytest.raises(SchemaError, match=r"has schema version 0000, not .*: run `txcoord db upgrade`"):
        await open_store(empty_url).open()


@pytest.mark.parametrize("kind", SQL, indirect=True)
async def test_a_program_runs_on_a_later_step_of_its_generation(empty_url: str) -> None:
    await asyncio.to_thread(upgrade, empty_url)
    later = f"{migrations.HEAD[:2]}99"
    await _set_version(empty_url, later)

    store = open_store(empty_url)
    await store.open()
    await store.close()
    await asyncio.to_thread(upgrade, empty_url)

    assert await asyncio.to_thread(current, empty_url) == later


@pytest.mark.parametrize("kind", SQL, indirect=True)
async def test_a_schema_of_a_later_generation_is_left_alone_and_refused(empty_url: str) -> None:
    await asyncio.to_thread(upgrade, empty_url)
    await _set_version(empty_url, "9901")

    with pytest.raises(SchemaError, match=r"has schema version 9901, this program knows .*: install a newer one"):
        await open_store(empty_url).open()
    with pytest.raises(SchemaError, match="9901"):
        await asyncio.to_thread(upgrade, empty_url)

    assert await asyncio.to_thread(current, empty_url) == "9901"


@pytest.mark.parametrize("kind", SQL, indirect=True)
async def test_what_an_older_step_holds_is_there_after_the_upgrade(empty_url: str) -> None:
    await asyncio.to_thread(upgrade, empty_url)
    old_node = "INSERT INTO node (name, expires_us) VALUES ('old', 9000000000000000000)"
    await run_sql(empty_url, "DROP TABLE txcoord_kv", old_node)
    await _set_version(empty_url, "0001")

    await asyncio.to_thread(upgrade, empty_url)

    assert await asyncio.to_thread(current, empty_url) == migrations.HEAD
    async with connected(empty_url) as connection:
        assert (await connection.execute(text("SELECT name FROM node"))).scalars().all() == ["old"]
        assert (await connection.execute(text("SELECT v FROM txcoord_kv"))).all() == []


@pytest.mark.parametrize("kind", SQL, indirect=True)
async def test_the_database_may_be_one_that_dtm_has_used(empty_url: str) -> None:
    names = ("trans_global", "trans_branch_op", "kv")
    await run_sql(empty_url, *(f"CREATE TABLE IF NOT EXISTS {name} (id integer primary key)" for name in names))

    await asyncio.to_thread(upgrade, empty_url)

    assert await asyncio.to_thread(current, empty_url) == migrations.HEAD
    await run_sql(empty_url, *(f"DROP TABLE {name}" for name in names))


async def _set_version(url: str, version: str) -> None:
    await run_sql(url, f"UPDATE {migrations.VERSION_TABLE} SET version_num = '{version}'")  # noqa: S608  (ours)


@pytest.mark.parametrize("kind", SQL, indirect=True)
async def test_upgrading_makes_the_tables_and_does_no_harm_again(empty_url: str) -> None:
    for _ in range(2):
        await asyncio.to_thread(upgrade, empty_url)
        assert await asyncio.to_thread(current, empty_url) == migrations.HEAD


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_several_processes_may_upgrade_at_once(empty_url: str) -> None:
    await asyncio.gather(*(asyncio.to_thread(upgrade, empty_url) for _ in range(4)))

    assert await asyncio.to_thread(current, empty_url) == migrations.HEAD


@pytest.mark.parametrize("kind", SQL, indirect=True)
async def test_the_migrations_make_the_tables_that_the_store_expects(empty_url: str) -> None:
    await asyncio.to_thread(upgrade, empty_url)

    def differences(connection: Connection) -> object:
        options = {"version_table": migrations.VERSION_TABLE, "compare_type": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    async with connected(empty_url) as connection:
        assert await connection.run_sync(differences) == []


def test_the_version_of_this_program_is_the_newest_migration() -> None:
    assert ScriptDirectory(migrations.__path__[0]).get_current_head() == migrations.HEAD
