"""The command line as an operator meets it: real processes, their sentences, signals and exit codes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from conftest import MakeDatabase
from localservers.processes import descendants
from sdk.tests.xa_support import Ledger
from tests.e2e.harness import ROOT, upgrade
from tests.integration.scripted import Participant
from txcoord import __version__
from txcoord.settings.table import FIELDS
from txcoord_sdk.xa import XaKey, prepare_sync

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TXCOORD_")}


def txcoord(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "txcoord", *map(str, arguments)],
        cwd=ROOT,
        env={**ENVIRONMENT, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Serving:
    """A coordinator that has said that it is ready."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "txcoord", "serve", "--port", "0", "--grpc-port", "0", *map(str, arguments)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        found = re.search(r"ready on (https?://[^,]+), grpcs?://([^,]+),", self.said)
        if found is None:
            raise AssertionError(f"not ready: {self.said} {self.process.communicate(timeout=10)}")
        self.url, self.grpc = found.groups()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        try:
            self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    process = Serving("--store", f"sqlite:///{tmp_path}/txcoord.db", "--set", "error_backoff_s=0.1")
    try:
        yield process
    finally:
        process.close()


async def submit(url: str, action: str, *, wait: bool) -> httpx.Response:
    body = {
        "gid": uuid4().hex,
        "trans_type": "saga",
        "steps": [{"action": action}],
        "payloads": ["{}"],
        "wait_result": wait,
    }
    async with httpx.AsyncClient(timeout=30) as http:
        return await http.post(f"{url}/api/dtmsvr/submit", json=body)


# -- commands -------------------------------------------------------------------------


def test_version() -> None:
    assert txcoord("version").stdout == txcoord("--version").stdout == f"{__version__}\n"


def test_every_command_has_help() -> None:
    for command in ([], ["serve"], ["settings"], ["version"], ["db"], ["db", "upgrade"], ["db", "current"]):
        shown = txcoord(*command, "-h")
        assert shown.returncode == 0
        assert "Usage" in shown.stdout


def test_the_flags_of_serve_say_what_the_settings_say() -> None:
    shown = txcoord("serve", "-h", COLUMNS="400").stdout

    for name in ("host", "port", "grpc_port", "workers", "store", "log_level", "log_format", "lease_s", "drain_s"):
        assert f"{FIELDS[name].description} Default: {FIELDS[name].default}" in shown


def test_settings_shows_where_each_came_from_and_no_password() -> None:
    shown = txcoord("settings", "--set", "port=5", TXCOORD_STORE="mysql://user:secret@host/db").stdout

    assert re.search(r"^port +5 +the command line ", shown, re.MULTILINE)
    assert re.search(r"^store +mysql://user:\*\*\*@host/db +TXCOORD_STORE ", shown, re.MULTILINE)
    assert re.search(r"^workers +1 +default ", shown, re.MULTILINE)
    assert "secret" not in shown


def test_the_schema_is_made_and_named(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/txcoord.db"

    before = txcoord("db", "current", "--store", store)
    made = txcoord("db", "upgrade", "--store", store)
    after = txcoord("db", "current", "--store", store)

    assert (before.returncode, made.returncode, after.returncode) == (1, 0, 0)
    assert "there is no schema" in before.stderr
    assert "run txcoord db upgrade" in before.stderr
    assert "as this program needs it" in after.stdout


# -- what is wrong is one sentence ----------------------------------------------------


def only_sentence(done: subprocess.CompletedProcess[str]) -> str:
    [line] = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("txcoord: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "x"], "port is 'x' (from the command line): it must be a whole number from 0 to 65535"),
        (["--set", "prot=5"], "prot, from the command line, is not a setting: did you mean port?"),
        (["--set", "port"], "--set port: write it as NAME=VALUE"),
        (["--config", "/none.toml"], "the settings file /none.toml does not exist"),
        (["--workers", "2"], "the sqlite store works for one process only"),
        (["--store", "oracle://x"], "it must be a URL of one of the forms"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_2(arguments: list[str], sentence: str) -> None:
    done = txcoord("serve", *arguments)

    assert done.returncode == 2
    assert sentence in only_sentence(done)


@pytest.mark.parametrize("flag", ["--port", "--grpc-port"])
def test_a_port_in_use_ends_the_start_with_1(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = {"--port": 0, "--grpc-port": 0} | {flag: port}
        done = txcoord("serve", *(str(word) for pair in ports.items() for word in pair), "--store", "memory://")

    assert done.returncode == 1
    sentence = only_sentence(done)
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in sentence
    assert sentence.endswith(f"choose another with --host and {flag}")


def test_two_coordinators_do_not_share_a_port_unnoticed(serving: Serving) -> None:
    done = txcoord("serve", "--port", "0", "--grpc-port", serving.grpc.rpartition(":")[2], "--store", "memory://")

    assert done.returncode == 1
    assert "Address already in use" in only_sentence(done)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("store", ["mysql://root:secret@127.0.0.1:1/db", "postgresql://root:secret@127.0.0.1:1/db"])
def test_a_store_that_is_away_ends_the_start_with_1(store: str, workers: str) -> None:
    done = txcoord("serve", "--port", "0", "--grpc-port", "0", "--store", store, "--workers", workers)

    assert done.returncode == 1
    sentence = only_sentence(done)
    assert "127.0.0.1:1" in sentence
    assert "see that the database server runs" in sentence
    assert "secret" not in sentence


def test_an_address_of_another_machine_ends_the_start_with_1() -> None:
    done = txcoord("serve", "--host", "192.0.2.1", "--store", "memory://")

    assert done.returncode == 1
    assert "Cannot assign requested address; choose another with --host" in only_sentence(done)


def test_a_store_in_memory_has_no_tables_to_make() -> None:
    done = txcoord("db", "upgrade", "--store", "memory://")

    assert done.returncode == 2
    assert "has no tables" in only_sentence(done)


def test_a_database_without_tables_names_the_command(database: str) -> None:
    done = txcoord("serve", "--port", "0", "--grpc-port", "0", "--store", database)

    assert done.returncode == 1
    assert "txcoord db upgrade" in only_sentence(done)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    server = request.getfixturevalue("postgres_server")
    url: str = server.create_database(f"cli_{uuid4().hex[:8]}")
    return url


# -- the end --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_server_in_order(serving: Serving, number: int) -> None:
    assert re.fullmatch(
        rf"txcoord {__version__} ready on http://127\.0\.0\.1:\d+, grpc://127\.0\.0\.1:\d+,"
        r" store sqlite:///\S+, node \d+\n",
        serving.said,
    )

    serving.signal(number)

    assert serving.end() == 0


async def test_a_call_under_way_is_ended_and_its_client_answered(serving: Serving, participant: Participant) -> None:
    gate = participant.hold("slow")
    waiting = asyncio.create_task(submit(serving.url, f"{participant.url}/slow", wait=True))
    async with asyncio.timeout(10):
        while not participant.received:
            await asyncio.sleep(0.01)

    serving.signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        while await accepts(serving.url):
            await asyncio.sleep(0.01)
    gate.set()

    answer = await waiting
    assert answer.status_code == 200
    assert await asyncio.to_thread(serving.end) == 0
    assert len(participant.received) == 1


async def test_a_waiting_client_is_told_to_ask_later(serving: Serving, participant: Participant) -> None:
    gate = participant.hold("never")
    waiting = asyncio.create_task(submit(serving.url, f"{participant.url}/never", wait=True))
    async with asyncio.timeout(10):
        while not participant.received:
            await asyncio.sleep(0.01)

    serving.signal(signal.SIGTERM)
    # The call exceeds its own time limit (3 s), which is within that of the drain (10 s).
    answer = await waiting

    assert answer.status_code == 425
    assert await asyncio.to_thread(serving.end) == 0
    gate.set()


async def test_a_second_signal_does_not_wait(serving: Serving, participant: Participant) -> None:
    gate = participant.hold("never")
    waiting = asyncio.create_task(submit(serving.url, f"{participant.url}/never", wait=True))
    async with asyncio.timeout(10):
        while not participant.received:
            await asyncio.sleep(0.01)

    serving.signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        while await accepts(serving.url):
            await asyncio.sleep(0.01)
    serving.signal(signal.SIGTERM)

    async with asyncio.timeout(2.5):  # less than the call's limit of 3 s
        code = await asyncio.to_thread(serving.end)
    assert code == 1
    gate.set()
    await asyncio.gather(waiting, return_exceptions=True)


async def accepts(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True


# -- several workers ------------------------------------------------------------------


@pytest.fixture
def two_workers(database: str) -> Iterator[Serving]:
    upgrade(database)
    process = Serving("--workers", "2", "--store", database, "--lease", "1")
    try:
        yield process
    finally:
        process.close()


async def test_workers_share_the_port_and_the_dead_are_replaced(two_workers: Serving, participant: Participant) -> None:
    assert re.search(r"nodes \d+, \d+$", two_workers.said.strip())
    for _ in range(20):
        assert (await submit(two_workers.url, f"{participant.url}/step", wait=True)).status_code == 200
    assert await counted(two_workers.url, 'dtm_transaction_process_total{model="saga",status="ok"}') == 20

    before = workers_of(two_workers)
    os.kill(before[0], signal.SIGKILL)
    async with asyncio.timeout(20):
        while len(now := workers_of(two_workers)) < 2 or before[0] in now:
            await asyncio.sleep(0.05)
    # Connections to the dead one's socket were reset; new ones go to those that live.
    async with asyncio.timeout(20):
        while not await answers(two_workers.url):
            await asyncio.sleep(0.05)
    assert (await submit(two_workers.url, f"{participant.url}/step", wait=True)).status_code == 200
    assert await counted(two_workers.url, 'dtm_transaction_process_total{model="saga",status="ok"}') == 21

    two_workers.signal(signal.SIGTERM)
    assert await asyncio.to_thread(two_workers.end) == 0


async def test_workers_end_with_their_supervisor(two_workers: Serving) -> None:
    workers = workers_of(two_workers)

    two_workers.signal(signal.SIGKILL)
    two_workers.process.wait(10)

    async with asyncio.timeout(20):
        while any(map(is_running, workers)):
            await asyncio.sleep(0.05)


def workers_of(serving: Serving) -> list[int]:
    """The processes that serve; the other child is multiprocessing's resource tracker."""
    return [
        pid for pid in descendants(serving.process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").exists()


async def answers(url: str) -> bool:
    try:
        async with httpx.AsyncClient(timeout=2) as http:
            return (await http.get(f"{url}/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def counted(url: str, name: str) -> float:
    async with httpx.AsyncClient() as http:
        lines = (await http.get(f"{url}/api/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


# -- leftovers of XA ---------------------------------------------------------------------------


@pytest.fixture(params=["mysql", "postgres"])
def ledger(request: pytest.FixtureRequest, make_database: MakeDatabase) -> Iterator[Ledger]:
    made = Ledger(make_database(request.param))
    yield made
    made.end_all()


async def leave_prepared(ledger: Ledger, serving: Serving, participant: Participant, decides: str) -> str:
    """Leave a branch whose participant says that it has ended it, and has not; or one of which nobody knows."""
    gid = f"g-{uuid4().hex}"

    def work(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("insert into entry values (%s)", (gid,))

    prepare_sync(ledger.connect, XaKey(gid=gid, branch_id="01"), work, register=lambda: None)
    branch = {"branch_id": "01", "url": f"{participant.url}/branch"}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("prepare", {}),
        ("registerBranch", branch),
        (decides, {"wait_result": True}),
    ]
    async with httpx.AsyncClient(base_url=f"{serving.url}/api/dtmsvr", timeout=20) as http:
        for path, more in calls if decides else ():
            body = {"gid": gid, "trans_type": "xa", **more}
            assert (await http.post(f"/{path}", json=body)).status_code == 200
    return gid


async def test_leftovers_of_xa_are_shown_and_ended(serving: Serving, participant: Participant, ledger: Ledger) -> None:
    succeeded, failed, unknown = [
        await leave_prepared(ledger, serving, participant, decides) for decides in ("submit", "abort", "")
    ]

    async def recover(*more: str) -> tuple[int, dict[str, str]]:
        """Exit code, and what is said of each transaction."""
        arguments = ["xa", "recover", "--url", ledger.url, "--coordinator", serving.url, *more]
        done = await asyncio.to_thread(txcoord, *arguments)
        lines = {line.split()[0].removesuffix("-01"): line.strip() for line in done.stdout.splitlines()[1:]}
        return done.returncode, lines

    code, shown = await recover()
    assert (code, set(shown)) == (1, {succeeded, failed, unknown})
    assert "is to be committed" in shown[succeeded]
    assert "is to be rolled back" in shown[failed]
    assert "the coordinator does not know it" in shown[unknown]
    assert len(ledger.prepared) == 3, "to look changes nothing"

    code, ended = await recover("--end")
    assert code == 1, "to roll back the unknown has to be said"
    assert ended[succeeded].endswith("  committed")
    assert ended[failed].endswith("  rolled back")
    assert ledger.prepared == [f"{unknown}-01"]

    code, ended = await recover("--end", "--unknown")
    assert (code, set(ended)) == (0, {unknown})
    assert await recover() == (0, {})
    assert ledger.prepared == []
    assert [ledger.has(gid) for gid in (succeeded, failed, unknown)] == [True, False, False]


def test_leftovers_cannot_be_shown_without_the_sdk(tmp_path: Path) -> None:
    # A package of this name that has nothing in it stands in for one that is not installed.
    (tmp_path / "txcoord_sdk").mkdir()
    (tmp_path / "txcoord_sdk" / "__init__.py").touch()

    said = txcoord("xa", "recover", "--url", "postgresql://x/y", PYTHONPATH=str(tmp_path))

    assert said.returncode == 1
    assert "this needs the SDK: pip install 'txcoord-sdk[mysql,postgres]'" in said.stderr
