"""A coordinator that is back at once: forked from a process that has all modules loaded.

To start Python and load them takes most of the time of a start. What runs is `txcoord serve` all the same, in a
process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self

import txcoord.process.server
import txcoord.process.supervisor  # noqa: F401 (the command loads these and the stores when it needs them)
from localservers.processes import free_port
from tests.e2e.harness import QUICK, START_S, answers
from tests.forks import fork_context
from txcoord import cli
from txcoord.store.sql import mysql, postgresql, sqlite  # noqa: F401


class ForkedCoordinator:
    """A coordinator on this store; on a server its schema has to be there. Within `with` it is ended at the end."""

    def __init__(self, store: str, folder: Path, **settings: str) -> None:
        self._port = free_port()
        self._command = ["serve", "--port", str(self._port), "--grpc-port", str(free_port()), "--store", store]
        self._settings = {**QUICK, **settings}
        self._process: BaseProcess | None = None
        self.log = folder / "coordinator.log"
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and return when it answers."""
        self._process = fork_context().Process(target=_serve, args=(self._command, self._settings, self.log))
        self._process.start()
        deadline = time.monotonic() + START_S
        while not answers(self._port, "/readyz"):
            if self._process.exitcode is not None or time.monotonic() > deadline:
                raise AssertionError(f"it does not answer; its log:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()


def _serve(command: Sequence[str], settings: Mapping[str, str], log: Path) -> None:
    threading.Thread(target=_end_with_our_parent, daemon=True).start()
    with log.open("ab") as file:
        for number in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(file.fileno(), number)
    for name in [name for name in os.environ if name.startswith("TXCOORD_")]:
        del os.environ[name]
    os.environ.update(settings)
    with suppress(SystemExit):
        cli.app(command)


def _end_with_our_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
