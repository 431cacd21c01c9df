"""Real processes for end-to-end tests: coordinators, the bank, and a load of transfers."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random
from typing import Self
from uuid import uuid4

import pytest
from sqlalchemy import text

from localservers.processes import end, free_port, freeze, kill, spawn, thaw
from tests.e2e.bank import OPENING_BALANCE, open_xa_account, xa_engine
from txcoord.store.url import upgrade as upgrade_schema
from txcoord_sdk import AsyncCoordinator, CoordinatorUnreachableError, Saga, Status, TransactionFailedError
from txcoord_sdk.results import Transaction

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0

QUICK = {
    "TXCOORD_LEASE_S": "2",
    "TXCOORD_ERROR_BACKOFF_S": "0.1",
    "TXCOORD_BACKOFF_CAP_S": "1",
    "TXCOORD_LOG_FORMAT": "json",
}
"""Settings that make crashes and repeats quick enough for a test."""


class Process:
    """A child process that answers over HTTP; within `with` it runs."""

    def __init__(
        self, command: Sequence[str | Path], *, port: int, log: Path, probe: str, env: Mapping[str, str] | None = None
    ) -> None:
        self._command = [sys.executable, "-m", *command]
        self._env = {**_clean_environment(), **(env or {})}
        self._probe = probe
        self.port = port
        self.grpc_port: int | None = None
        """Of a coordinator: where its gRPC API is."""
        self.log = log
        self.url = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        self.process = spawn(self._command, log=self.log, cwd=ROOT, env=self._env)
        deadline = time.monotonic() + START_S
        while not answers(self.port, self._probe):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self._command} does not answer; its log:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        kill(self.process)

    def terminate(self) -> int:
        """Ask it to end; return its exit code."""
        assert self.process is not None
        return end(self.process)

    def pause(self) -> None:
        assert self.process is not None
        freeze(self.process.pid)

    def resume(self) -> None:
        assert self.process is not None
        thaw(self.process.pid)

    def close(self) -> None:
        if self.process is not None:
            end(self.process)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answers(port: int, path: str) -> bool:
    """Whether a server on this machine answers a GET."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
        try:
            connection.request("GET", path)
            # Any answer will do: the participants have no page of their own.
            return connection.getresponse().status < 500
        except (OSError, HTTPException):
            return False


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TXCOORD_")}


def coordinator(
    store: str,
    folder: Path,
    *,
    port: int | None = None,
    name: str = "coordinator",
    kind: type[Process] = Process,
    **settings: str,
) -> Process:
    """A coordinator on this store; on a server its schema has to be there."""
    port, grpc_port = port or free_port(), free_port()
    process = kind(
        ["txcoord.cli", "serve", "--port", str(port), "--grpc-port", str(grpc_port), "--store", store],
        port=port,
        log=folder / f"{name}.log",
        probe="/readyz",
        env={**QUICK, **settings},
    )
    process.grpc_port = grpc_port
    return process


def upgrade(store: str) -> None:
    """Make the schema of a store on a server."""
    # In a thread, since a test may have a loop running; not in a process, which takes seconds to load it all.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(upgrade_schema, store).result()


def store_for(request: pytest.FixtureRequest, folder: Path) -> str:
    """The URL of a fresh store of the kind `request.param`, with its schema."""
    if request.param == "memory":
        return "memory://"
    if request.param == "sqlite":
        return f"sqlite:///{folder}/txcoord.db"
    fixture = {"mysql": "mariadb_server", "postgres": "postgres_server"}[request.param]
    url: str = request.getfixturevalue(fixture).create_database(f"store_{uuid4().hex[:8]}")
    upgrade(url)
    return url


class Bank:
    """Two accounts services, `out` and `in`, each with a database of its own."""

    AMOUNT = 30

    def __init__(self, folder: Path, *, coordinator: str = "", kind: type[Process] = Process) -> None:
        """
        Args:
            coordinator: where `out` sends messages to.
            kind: of their processes.
        """
        self._files = {name: folder / f"{name}.sqlite" for name in ("out", "in")}
        begins = {"out": ["--coordinator", coordinator]} if coordinator else {}
        self.services = {
            name: _service(kind, name, file, folder, *begins.get(name, [])) for name, file in self._files.items()
        }

    def start(self) -> None:
        for service in self.services.values():
            service.start()

    def close(self) -> None:
        for service in self.services.values():
            service.close()

    def branch_url(self, account: str) -> str:
        return f"{self.services[account].url}/branch"

    def amount(self, account: str) -> int:
        """What a transfer adds to an account."""
        return -self.AMOUNT if account == "out" else self.AMOUNT

    def transfer(self, gid: str, *, concurrent: bool = False) -> Saga:
        """A transfer from one account to the other."""
        saga = Saga(gid, concurrent=concurrent)
        for account in self.services:
            url = self.branch_url(account)
            saga.step(url, url, {"amount": self.amount(account)})
        return saga

    def balances(self) -> dict[str, tuple[int, int]]:
        """account → its balance, and what is frozen."""
        found = {}
        for account, file in self._files.items():
            with closing(sqlite3.connect(file)) as connection:
                [(balance, frozen)] = connection.execute("select balance, frozen from account")
                found[account] = (balance, frozen)
        return found

    def effects(self) -> dict[str, Counter[tuple[str, str]]]:
        """gid → how often each (account, op) took effect."""
        found: dict[str, Counter[tuple[str, str]]] = {}
        for account, file in self._files.items():
            with closing(sqlite3.connect(file)) as connection:
                for gid, op in connection.execute("select gid, op from effects"):
                    found.setdefault(gid, Counter())[account, op] += 1
        return found

    def check(self, ended: Mapping[str, Status]) -> None:
        """Compare the books with how the transactions ended; any difference is money lost or made."""
        books = self.effects()
        wrong: list[str] = []
        for gid, status in ended.items():
            book = books.pop(gid, Counter())
            if any(times > 1 for times in book.values()):
                wrong.append(f"{gid} {status}: an effect happened twice: {dict(book)}")
            for account in self.services:
                done, undone, tried, confirmed, cancelled = (
                    sum(book[account, op] for op in ops)
                    for ops in (["action", "confirm"], ["compensate", "rollback"], ["try"], ["confirm"], ["cancel"])
                )
                moved = 1 if status is Status.SUCCEEDED else 0
                if done - undone != moved or tried != confirmed + cancelled:
                    wrong.append(f"{gid} {status}: the books of {account} say {dict(book)}")
        wrong += [f"{gid} has effects, but nobody accepted it: {dict(book)}" for gid, book in books.items()]
        assert not wrong, "\n".join(wrong[:20])
        moved = self.AMOUNT * sum(status is Status.SUCCEEDED for status in ended.values())
        assert self.balances() == {"out": (OPENING_BALANCE - moved, 0), "in": (OPENING_BALANCE + moved, 0)}


class XaBank(Bank):
    """The same on two database servers, whose transactions are prepared: `out` on MariaDB, `in` on PostgreSQL."""

    def __init__(self, folder: Path, *, out_url: str, in_url: str, kind: type[Process] = Process) -> None:
        self._urls = {"out": out_url, "in": in_url}
        for url in self._urls.values():
            open_xa_account(url)
        self._engines = {name: xa_engine(url) for name, url in self._urls.items()}
        self.services = {name: _service(kind, name, url, folder) for name, url in self._urls.items()}

    def close(self) -> None:
        super().close()
        for engine in self._engines.values():
            engine.dispose()

    def balances(self) -> dict[str, tuple[int, int]]:
        found = {}
        for account, engine in self._engines.items():
            with engine.connect() as connection:
                found[account] = (int(connection.scalar(text("select sum(balance) from account")) or 0), 0)
        return found

    def effects(self) -> dict[str, Counter[tuple[str, str]]]:
        found: dict[str, Counter[tuple[str, str]]] = {}
        for account, engine in self._engines.items():
            with engine.connect() as connection:
                for gid, op in connection.execute(text("select gid, op from effects")):
                    found.setdefault(gid, Counter())[account, op] += 1
        return found

    def prepared(self) -> list[str]:
        """Names of the transactions that are left prepared in the databases."""
        with self._engines["out"].connect() as connection:
            found = [str(row[3]) for row in connection.execute(text("xa recover"))]
        with self._engines["in"].connect() as connection:
            mine = "select gid from pg_prepared_xacts where database = current_database()"
            return found + [str(row[0]) for row in connection.execute(text(mine))]


def _service(kind: type[Process], name: str, database: str | Path, folder: Path, *more: str) -> Process:
    port = free_port()
    command = ["tests.e2e.bank", name, database, "--port", str(port), *more]
    return kind(command, port=port, log=folder / f"bank-{name}.log", probe="/")


class Load:
    """Clients that submit transfers until told to stop; each submit is repeated until it is accepted."""

    def __init__(self, bank: Bank, urls: Sequence[str], *, seed: int, clients: int = 8) -> None:
        self._bank = bank
        self._urls = urls
        self._random = Random(seed)
        self._clients = clients
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.accepted: list[str] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(self._clients)]

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _run(self, number: int) -> None:
        url = self._urls[number % len(self._urls)]
        async with AsyncCoordinator(url, timeout=10, backoff=0.02) as coordinator:
            for turn in self._turns():
                gid = f"t{number}-{turn}"
                saga = self._bank.transfer(gid, concurrent=chance_of(self._random, 30))
                while True:
                    try:
                        await coordinator.submit(saga)
                    except CoordinatorUnreachableError:
                        continue  # whether it was accepted is not known: the same submit again is safe
                    except TransactionFailedError:
                        pass  # an earlier submit of ours was accepted, and has turned round since
                    break
                self.accepted.append(gid)

    def _turns(self) -> Iterator[int]:
        turn = 0
        while not self._stop.is_set():
            yield turn
            turn += 1


def chance_of(random: Random, percent: int) -> bool:
    return random.randrange(100) < percent


async def all_ended(url: str, gids: Sequence[str], *, within_s: float = 60.0) -> dict[str, Status]:
    """Wait until all of these are final; return how they ended."""
    ended: dict[str, Status] = {}
    async with AsyncCoordinator(url, timeout=10) as coordinator:
        try:
            async with asyncio.timeout(within_s):
                for gid in gids:
                    ended[gid] = (await _final(coordinator, gid)).status
        except TimeoutError:
            stuck = [await coordinator.query(gid) for gid in gids if gid not in ended][:3]
            raise AssertionError(f"{len(gids) - len(ended)} of {len(gids)} have not ended: {stuck}") from None
    return ended


async def _final(coordinator: AsyncCoordinator, gid: str) -> Transaction:
    return await coordinator.wait(gid, timeout=3600)
