"""The server under test: our coordinator on a private, durable store, or any that speaks DTM's protocol."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import httpx

from bench.errors import BenchError
from localservers.processes import end, free_port, remove_folder, spawn, temporary_folder
from localservers.servers import KINDS, Server

READY_S = 60.0


class StoreKind(StrEnum):
    """Where the coordinator keeps its transactions."""

    SQLITE = "sqlite"
    MARIADB = "mariadb"
    POSTGRES = "postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStore:
    """A store that is there, its URL and, if it is a server, that server."""

    url: str
    folder: Path
    server: Server | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where sagas are posted; `pid` when we can see its processes."""

    url: str
    pid: int | None
    grpc: str = ""
    """host:port; empty: it is not known."""


@contextlib.contextmanager
def running_store(kind: StoreKind, *, folder: Path | None, settings: Mapping[str, str]) -> Iterator[RunningStore]:
    """Provide an empty store; it goes afterwards, unless a folder was named.

    Settings are the database server's own, added to the durable ones of `localservers.servers`.
    """
    if kind is StoreKind.SQLITE:
        place = folder or temporary_folder("txcoord-sqlite-")
        place.mkdir(parents=True, exist_ok=True)
        try:
            yield RunningStore(url=f"sqlite:///{place.absolute()}/txcoord.db", folder=place, server=None)
        finally:
            if folder is None:
                remove_folder(place)
        return
    with KINDS[kind.value](folder, settings=settings) as server:
        yield RunningStore(url=server.create_database("txcoord"), folder=server.folder, server=server)


def prepare_schema(store: RunningStore) -> None:
    """Make the coordinator's tables, as an operator would."""
    command: list[str | Path] = [_txcoord(), "db", "upgrade", "--store", store.url]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise BenchError(f"`txcoord db upgrade` failed: {(result.stdout + result.stderr).strip()[-1000:]}")


@contextlib.contextmanager
def running_coordinator(store: RunningStore, *, processes: int) -> Iterator[Target]:
    """Run `txcoord serve` on a store until the block ends. TXCOORD_* variables of ours reach it."""
    port, grpc_port = free_port(), free_port()
    folder = temporary_folder("txcoord-serve-")
    log = folder / "coordinator.log"
    command: list[str | Path] = [
        _txcoord(),
        "serve",
        "--port",
        str(port),
        "--grpc-port",
        str(grpc_port),
        "--store",
        store.url,
        "--workers",
        str(processes),
    ]
    process = spawn(command, log=log, cwd=folder, env=os.environ)
    try:
        url = f"http://127.0.0.1:{port}"
        give_up = time.monotonic() + READY_S
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > give_up:
                raise BenchError(f"the coordinator did not start: {log.read_text().strip()[-1500:]}")
            time.sleep(0.05)
        yield Target(url=url, pid=process.pid, grpc=f"127.0.0.1:{grpc_port}")
        if process.poll() is not None:
            raise BenchError(f"the coordinator ended ({process.returncode}): {log.read_text().strip()[-1500:]}")
    finally:
        end(process, patience_s=40.0)
        remove_folder(folder)


def other_server(url: str, *, pid: int | None) -> Target:
    """Take a server that runs already.

    Raises:
        BenchError: nothing that speaks DTM's protocol answers there.
    """
    base = url.rstrip("/").removesuffix("/api/dtmsvr")
    try:
        answer = httpx.get(f"{base}/api/dtmsvr/newGid", trust_env=False, timeout=10)
    except httpx.HTTPError as error:
        raise BenchError(f"nothing answers at {base}: {error}") from error
    if answer.status_code != 200 or "dtm_result" not in answer.text:
        raise BenchError(f"{base}/api/dtmsvr/newGid answers {answer.status_code}: not a DTM-compatible server")
    return Target(url=base, pid=pid)


def _txcoord() -> Path:
    return Path(sys.executable).with_name("txcoord")


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
