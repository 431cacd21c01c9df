"""Processes that are there at once: forked from one that has our modules loaded, and neither threads nor connections.

Of such a process there is one in a run, whoever asks.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOADED = ("sdk.tests.xa_victim", "tests.e2e.forked")


def fork_context() -> ForkServerContext:
    """What makes such processes; they import what is not preloaded."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(list(PRELOADED))
    return made
