"""What a figure depends on: the machine, its disk, and the versions of everything involved."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.coordinator import RunningStore
from localservers.processes import program

PACKAGES = ("txcoord", "uvicorn", "uvloop", "httptools", "msgspec", "SQLAlchemy", "aiomysql", "PyMySQL", "asyncpg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A description that goes beside every figure."""

    measured_at: str
    commit: str
    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    system: str
    python: str
    file_system: str | None
    """Of the folder in which the store lies; None: the store is not ours."""
    versions: dict[str, str]

    @property
    def durable(self) -> bool:
        """Whether a sync there reaches anything that outlives the power."""
        return self.file_system not in {"tmpfs", "ramfs"}


def describe_machine(store: RunningStore | None) -> Machine:
    """Describe this machine, and the store if it is ours."""
    return Machine(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_output(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]),
        cpu=_first_match(Path("/proc/cpuinfo"), r"model name\s*:\s*(.+)") or platform.processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=platform.release(),
        system=_first_match(Path("/etc/os-release"), r'PRETTY_NAME="(.+)"') or platform.system(),
        python=platform.python_version(),
        file_system=_output(["stat", "--file-system", "--format", "%T", str(store.folder)]) if store else None,
        versions=dict(_versions(store)),
    )


def _versions(store: RunningStore | None) -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        yield package, importlib.metadata.version(package)
    if store is not None and store.server is not None:
        yield store.server.kind, store.server.version()
    elif store is not None:
        yield "sqlite", sqlite3.sqlite_version
    yield "nginx", _version_in(_output([str(program("nginx", package="nginx")), "-v"]))
    yield "wrk", _version_in(_output([str(program("wrk", package="wrk")), "-v"]))


def _first_match(file: Path, pattern: str) -> str:
    found = re.search(pattern, file.read_text()) if file.exists() else None
    return found[1] if found else ""


def _version_in(text: str) -> str:
    found = re.search(r"\d+\.\d+(\.\d+)?\S*", text)
    return found[0] if found else text


def _output(command: Sequence[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return (result.stdout or result.stderr).strip().partition("\n")[0]
