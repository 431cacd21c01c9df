"""One measured run: what the load generator saw, and what it cost the processes involved."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.coordinator import RunningStore, Target
from bench.errors import BenchError
from bench.flows import Load
from bench.load import LoadResult, run_load
from bench.participants import Participants
from localservers.processes import descendants, end, program, spawn

WARM_UP_S = 2
BATCHES = "txcoord_journal_batches_total"
CHANGES = "txcoord_journal_changes_total"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured run. None: it could not be seen from here."""

    clients: int
    load: LoadResult
    per_s: float
    coordinator_cpu_us: float | None
    """Per transaction, all processes of the coordinator; so are the next two."""
    store_cpu_us: float | None
    participants_cpu_us: float | None
    load_cpu_us: float | None
    memory_bytes: int | None
    """Resident memory of all coordinator processes at the end."""
    database_transactions: float | None
    """Per transaction: below 1 where several share a commit."""
    mean_batch: float | None
    """Changes in one database transaction. (The two writes that a saga waits for are two changes.)"""
    fsync_us: float | None
    """Median of writing 4 KiB where the store lies and syncing it, just before. A commit cannot be faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What takes part."""

    target: Target
    participants: Participants
    store: RunningStore | None
    load: Load = Load.SAGA

    def measure(self, *, clients: int, seconds: int) -> Run:
        """Warm up, then load for some seconds, and look at every process before and after."""
        fsync_us = None if self.store is None else _fsync_us(self.store.folder)
        self._load(clients=clients, seconds=WARM_UP_S)
        before = self._look()
        load = self._load(clients=clients, seconds=seconds)
        after = self._look()

        def per_transaction(part: str) -> float | None:
            start, stop = before.cpu_s.get(part), after.cpu_s.get(part)
            return (
                None
                if start is None or stop is None or not load.transactions
                else (stop - start) / load.transactions * 1e6
            )

        batches = None if after.batches is None or before.batches is None else after.batches - before.batches
        changes = None if after.changes is None or before.changes is None else after.changes - before.changes
        return Run(
            clients=clients,
            load=load,
            per_s=load.transactions / load.seconds,
            coordinator_cpu_us=per_transaction("coordinator"),
            store_cpu_us=per_transaction("store"),
            participants_cpu_us=per_transaction("participants"),
            load_cpu_us=load.cpu_s / load.transactions * 1e6 if load.transactions else None,
            memory_bytes=after.memory_bytes,
            database_transactions=None if batches is None or not load.transactions else batches / load.transactions,
            mean_batch=None if not batches or changes is None else changes / batches,
            fsync_us=fsync_us,
        )

    def profile(self, file: Path, *, clients: int, seconds: int) -> None:
        """Load the coordinator while py-spy samples it; this run is not measured, since sampling slows it."""
        if self.target.pid is None:
            raise BenchError("--profile needs a coordinator that it can see: leave --server out, or add --server-pid")
        self._load(clients=clients, seconds=WARM_UP_S)
        with _py_spy(file, pid=self.target.pid, seconds=seconds):
            self._load(clients=clients, seconds=seconds + 1)

    def _load(self, *, clients: int, seconds: int) -> LoadResult:
        server = self.target.grpc if self.load is Load.GRPC else self.target.url
        return run_load(self.load, server=server, participants=self.participants.url, clients=clients, seconds=seconds)

    def _look(self) -> _Look:
        metrics = _metrics(self.target.url)
        parts = {"participants": self.participants.pid}
        if self.target.pid is not None:
            parts["coordinator"] = self.target.pid
        if self.store is not None and self.store.server is not None:
            parts["store"] = self.store.server.pid
        return _Look(
            cpu_s={part: sum(_cpu_s(each) for each in _family(pid)) for part, pid in parts.items()},
            memory_bytes=None if self.target.pid is None else sum(map(_memory_bytes, _family(self.target.pid))),
            batches=metrics.get(BATCHES),
            changes=metrics.get(CHANGES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    cpu_s: dict[str, float]
    memory_bytes: int | None
    batches: float | None
    changes: float | None


def _metrics(url: str) -> dict[str, float]:
    """Read the metrics without labels; a server without any is not an error."""
    try:
        answer = httpx.get(f"{url}/api/metrics", trust_env=False, timeout=10)
    except httpx.HTTPError:
        return {}
    found: dict[str, float] = {}
    for line in answer.text.splitlines() if answer.status_code == 200 else ():
        name, _, value = line.partition(" ")
        if name in {BATCHES, CHANGES}:
            found[name] = float(value)
    return found


def _family(pid: int) -> list[int]:
    return [pid, *descendants(pid)]


def _cpu_s(pid: int) -> float:
    """User and system time of a process, and of children of it that have ended."""
    try:
        # The command's name stands in parentheses and may hold anything: cut behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS_PER_S


def _memory_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _fsync_us(folder: Path) -> float:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        times = []
        for _ in range(50):
            start = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


@contextlib.contextmanager
def _py_spy(file: Path, *, pid: int, seconds: int) -> Iterator[None]:
    formats = {".svg": "flamegraph", ".json": "speedscope", ".txt": "raw"}
    if file.suffix not in formats:
        raise BenchError(f"--profile {file}: end the name in .svg (flame graph), .json (speedscope) or .txt (stacks)")
    file.parent.mkdir(parents=True, exist_ok=True)
    log = file.with_name(file.name + ".log")
    command: list[str | Path] = [
        program("py-spy", package="py-spy", folders=_beside_python),
        "record",
        "--pid",
        str(pid),
    ]
    options = ["--subprocesses", "--rate", "250", "--duration", str(seconds), "--format", formats[file.suffix]]
    process = spawn([*command, *options, "--output", file], log=log)
    try:
        yield
        process.wait(60)
    except subprocess.TimeoutExpired:
        raise BenchError(f"py-spy did not end: {log.read_text().strip()[-500:]}") from None
    finally:
        end(process)
    if process.returncode != 0:
        raise BenchError(f"py-spy failed (it may need root): {log.read_text().strip()[-500:]}")
    log.unlink()


def _beside_python() -> list[Path]:
    return [Path(sys.executable).parent]
