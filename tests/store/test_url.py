"""Which URLs name a store, and what is said about the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from txcoord.errors import SchemaError, StoreUnavailableError
from txcoord.store.memory import MemoryStore
from txcoord.store.sql.mysql import MysqlStore
from txcoord.store.sql.postgresql import PostgresStore
from txcoord.store.sql.sqlite import SqliteStore
from txcoord.store.url import open_store


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory://", MemoryStore),
        ("sqlite:///store.db", SqliteStore),
        ("sqlite:////var/lib/txcoord/store.db", SqliteStore),
        ("mysql://user:pw@host:3306/db", MysqlStore),
        ("mysql+aiomysql://user:pw@host/db", MysqlStore),
        ("mariadb://user:pw@host/db?ssl=require", MysqlStore),
        ("mariadb+aiomysql://user@host/db", MysqlStore),
        ("postgresql://user:pw@host:5432/db", PostgresStore),
        ("postgresql+asyncpg://user:pw@host/db?ssl=verify-full", PostgresStore),
        ("postgres://user:p%40w@host/db", PostgresStore),
    ],
)
def test_a_url_names_a_store(url: str, kind: type) -> None:
    assert type(open_store(url)) is kind


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "cannot be read"),
        ("store.db", "cannot be read"),
        ("redis://host/0", "no store of the kind redis"),
        ("mysql+pymysql://user:secret@host/db", r"no store of the kind mysql\+pymysql"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:///store.db?mode=ro", "needs a file"),
        ("mysql://user:secret@host", "names no database"),
        ("postgresql://user:secret@host/db?sslmode=require", "only option of a store URL is ssl"),
        ("postgresql://user:secret@host/db?ssl=maybe", "disable, require, verify-full"),
    ],
)
def test_another_url_is_refused_with_what_is_allowed(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["mysql", "postgresql"])
async def test_a_database_that_is_not_there_is_named_without_its_password(scheme: str) -> None:
    # Port 1 is nobody's.
    store = open_store(f"{scheme}://user:secret@127.0.0.1:1/db", timeout_s=5)

    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1/db cannot be") as caught:
        await store.open()

    assert "secret" not in str(caught.value)


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/nowhere/store.db")

    with pytest.raises(StoreUnavailableError, match=r"nowhere/store\.db cannot be opened"):
        await store.open()


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear customer, " * 100)
    store = open_store(f"sqlite:///{file}")

    with pytest.raises(SchemaError, match="is not a SQLite database"):
        await store.open()

    assert file.read_text() == "Dear customer, " * 100
