"""The servers that the other tests rely on: they last as long as they must, and no longer."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pymysql
import pytest

from localservers.processes import ProgramMissingError, descendants, end, free_port, program, spawn
from localservers.servers import MariaDB, Server, ServerFailedError

PARENT = """
import sys, time
from localservers.processes import spawn, temporary_folder
folder = temporary_folder("txcoord-test-")
child = spawn(["sh", "-c", "sleep 600 & echo $! > pid; mv pid ready; wait"], cwd=folder)
while not (folder / "ready").exists():
    time.sleep(0.01)
print(child.pid, (folder / "ready").read_text().strip(), folder, flush=True)
time.sleep(600)
"""


def _wait_for_end(pidfd: int) -> None:
    with contextlib.closing(os.fdopen(pidfd)):
        assert select.select([pidfd], [], [], 60)[0], "a child outlived its parent"


def test_children_of_children_and_folders_go_when_the_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    *pids, folder = parent.stdout.readline().split()
    pidfds = [os.pidfd_open(int(pid)) for pid in pids]
    parent.kill()
    parent.communicate()

    for pidfd in pidfds:
        _wait_for_end(pidfd)
    # The watchdog removes folders last, and then ends: there is no event of its own to wait for.
    while Path(folder).exists():
        os.sched_yield()


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    stubborn = spawn(["sh", "-c", "trap '' TERM; sleep 600 & : > ready; while :; do wait; done"], cwd=tmp_path)
    while not (tmp_path / "ready").exists():
        os.sched_yield()
    [child] = descendants(stubborn.pid)
    pidfd = os.pidfd_open(child)

    assert end(stubborn, patience_s=0.1) == -9
    _wait_for_end(pidfd)


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_NO_APT", "1")

    with pytest.raises(
        ProgramMissingError, match=r"`no-such-db` is missing: install it .*apt-get install some-db\), or"
    ):
        program("no-such-db", package="some-db", instead=", or name an existing server")


def test_who_may_not_install_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TXCOORD_NO_APT", raising=False)

    with pytest.raises(ProgramMissingError, match="`no-such-db` is missing: install it"):
        program("no-such-db", package="no-such-package", may_install=False)


def test_an_existing_server_is_used_and_never_stopped(mariadb_server: Server) -> None:
    existing = MariaDB(existing_url=mariadb_server.database_url(""))

    url = existing.create_database("borrowed")
    try:
        assert _mysql_value(url, "SELECT DATABASE()") == "borrowed"
        with pytest.raises(ServerFailedError, match="TXCOORD_TEST_MYSQL_URL is not ours to stop"):
            existing.stop()
    finally:
        existing.drop_database("borrowed")


def test_a_wrong_url_of_an_existing_server_is_refused_with_the_variable() -> None:
    with pytest.raises(ServerFailedError, match="TXCOORD_TEST_MYSQL_URL is to look like mysql://"):
        MariaDB(existing_url="postgresql://localhost/")


def test_a_database_is_dropped_while_a_transaction_is_open_in_it(
    mariadb_server: Server, postgres_server: Server
) -> None:
    with _mysql(mariadb_server.create_database("held")) as held, held.cursor() as cursor:
        cursor.execute("CREATE TABLE t (id INT)")
        cursor.execute("INSERT INTO t VALUES (1)")
        mariadb_server.drop_database("held")
        held._force_close()  # its server side is gone; a polite goodbye would raise
    with psycopg.connect(postgres_server.create_database("held")) as connection:
        connection.execute("CREATE TABLE t (id INT)")
        postgres_server.drop_database("held")
        connection.close()


@pytest.mark.parametrize("kind", ["mariadb", "postgres"])
def test_what_was_committed_is_there_after_a_kill(kind: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(f"fragile_{kind}")
    connect, value = (_mysql, _mysql_value) if kind == "mariadb" else (psycopg.connect, _postgres_value)
    url = server.create_database("killed")
    with contextlib.closing(connect(url)) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE t (id INT)")
        cursor.execute("INSERT INTO t VALUES (42)")
        connection.commit()
        server.kill()

    server.restart()

    assert value(url, "SELECT id FROM t") == 42
    server.drop_database("killed")


def test_a_paused_server_says_nothing_until_it_is_resumed(fragile_postgres: Server) -> None:
    url = fragile_postgres.create_database("paused")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT 1")
        fragile_postgres.pause()
        # A signal takes effect when its process is next scheduled.
        give_up_at = time.monotonic() + 20
        while {_state(pid) for pid in [fragile_postgres.pid, *descendants(fragile_postgres.pid)]} != {"T"}:
            assert time.monotonic() < give_up_at, "not all of its processes stop"
            time.sleep(0.01)
        fragile_postgres.resume()
        assert connection.execute("SELECT 2").fetchone() == (2,)
    fragile_postgres.drop_database("paused")


@pytest.mark.parametrize("settings", ["innodb_flush_log_at_trx_commit", "innodb_doublewrite"])
def test_mariadb_is_durable(settings: str, mariadb_server: Server) -> None:
    if not mariadb_server.private:
        pytest.skip("durability of an existing server is its owner's choice")
    assert _mysql_value(mariadb_server.url, f"SELECT @@{settings}") in {1, "ON"}


def test_postgres_is_durable_and_prepares_transactions(postgres_server: Server) -> None:
    if not postgres_server.private:
        pytest.skip("durability of an existing server is its owner's choice")
    shown = {
        name: _postgres_value(postgres_server.url, f"SHOW {name}")
        for name in ("fsync", "synchronous_commit", "full_page_writes", "max_prepared_transactions")
    }
    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "max_prepared_transactions": "64",
    }


def test_each_database_is_fresh(make_database: Callable[[str], str]) -> None:
    for kind in ("sqlite", "mysql", "postgres"):
        assert make_database(kind) != make_database(kind)


def test_free_ports_stay_clear_of_outgoing_connections() -> None:
    assert free_port() < 32_768


def _mysql(url: str) -> pymysql.Connection:
    parts = urlsplit(url)
    return pymysql.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=parts.username,
        password=parts.password or "",
        database=parts.path.removeprefix("/"),
    )


def _mysql_value(url: str, query: str) -> object:
    with contextlib.closing(_mysql(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
        assert row is not None
        return row[0]


def _postgres_value(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
