"""The command that makes the barrier table."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from txcoord_sdk.barrier.cli import main


def test_it_makes_the_table_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"

    assert main(["create", url]) == 0
    assert capsys.readouterr().out == "created the barrier table barrier\n"
    assert main(["create", url]) == 0
    assert capsys.readouterr().out == "the barrier table barrier is there\n"
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        assert connection.execute("select count(*) from barrier").fetchall() == [(0,)]


@pytest.mark.parametrize("driver", ["", "+asyncmy"])
def test_it_reaches_the_servers_by_url(mysql_url: str, capsys: pytest.CaptureFixture[str], driver: str) -> None:
    assert main(["create", mysql_url.replace("mysql://", f"mysql{driver}://")]) == 0
    assert "dtm_barrier.barrier" in capsys.readouterr().out


def test_it_takes_another_name(postgres_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = postgres_url.replace("postgresql://", "postgresql+asyncpg://")

    assert main(["create", url, "--table", "shop.barrier"]) == 0
    assert "shop.barrier" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("oracle://localhost/shop", "not a database URL: use sqlite"),
        ("shop.db", "not a database URL: use sqlite"),
        ("sqlite://", "not a database URL: use sqlite"),
        ("sqlite:///", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("sqlite:////no/such/folder/shop.db", "unable to open database file"),
        ("mysql://root@127.0.0.1:1/shop", "Can't connect"),
        ("mysql://root@127.0.0.1:1/shop?color=blue", "unknown option color"),
        ("postgresql://root@127.0.0.1:1/shop", "refused"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_exit_code_1(
    url: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["create", url]) == 1
    assert sentence in capsys.readouterr().err


def test_a_wrong_table_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", f"sqlite:///{tmp_path}/shop.db", "--table", "a b"]) == 1
    assert "cannot name the barrier table" in capsys.readouterr().err


def test_the_barrier_needs_no_driver_but_the_one_in_use(tmp_path: Path) -> None:
    script = f"""
import sys
from txcoord_sdk.barrier import BranchBarrier
from txcoord_sdk.barrier.cli import main
assert main(["create", "sqlite:///{tmp_path}/shop.db"]) == 0
absent = {{"sqlalchemy", "aiomysql", "pymysql", "asyncpg", "psycopg", "aiosqlite", "fastapi", "starlette"}}
sys.exit(", ".join(absent & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
