"""Processes that are back at once: forked from one that has all modules loaded.

To start Python and load them takes most of the time of a start, and where processes are killed again and again most
of the test's. What runs is the same command, in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

# What the commands load when they need it, and themselves.
import psycopg  # noqa: F401
import pymysql  # noqa: F401

from tests.e2e import bank, transfers  # noqa: F401
from tests.e2e.harness import ROOT, START_S, Process, answers
from tests.forks import fork_context
from txcoord import cli  # noqa: F401
from txcoord.process import server, supervisor  # noqa: F401
from txcoord.store.sql import mysql, postgresql, sqlite  # noqa: F401


class ForkedProcess(Process):
    """A `Process` that can be started and killed; it is ended by that, too."""

    _forked: BaseProcess | None = None

    def start(self) -> None:
        command = [str(word) for word in self._command[2:]]
        forked = self._forked = fork_context().Process(target=_run, args=(command, self._env, self.log))
        forked.start()
        deadline = time.monotonic() + START_S
        while not answers(self.port, self._probe):
            if forked.exitcode is not None or time.monotonic() > deadline:
                raise AssertionError(f"{command} does not answer; its log:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        assert self._forked is not None
        self._forked.kill()
        self._forked.join()

    def close(self) -> None:
        if self._forked is not None:
            self.kill()


def _run(command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
    threading.Thread(target=_end_with_our_parent, daemon=True).start()
    with log.open("ab") as file:
        for number in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv = list(command)
    # As `python -m` does, which knows nothing of the module that has been loaded.
    sys.modules.pop(command[0], None)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def _end_with_our_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
