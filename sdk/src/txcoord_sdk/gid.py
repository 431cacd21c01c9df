"""Gids made by the initiator, so that a submit can be repeated without fear."""

from __future__ import annotations

import time
from random import SystemRandom

from txcoord.gid import make_gid

# The system's randomness: the processes that a server forks must not make the same gids.
_RANDOM = SystemRandom()


def new_gid() -> str:
    """Make a gid: 22 characters, unique without asking anybody, ordered by time."""
    return make_gid(time.time_ns() // 1000, _RANDOM)
