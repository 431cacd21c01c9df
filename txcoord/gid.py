"""Gids of our own making."""

from __future__ import annotations

from random import Random

_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
"""Base 57: no character that is mistaken for another. In ASCII order, so that text order is number order."""

_LENGTH = 22
_RANDOM_BITS = 72


def make_gid(now_us: int, random: Random) -> str:
    """Return a gid of 22 characters, as DTM's are.

    The time comes first (52 bits of microseconds, until the year 2112), then 72 random
    bits: gids that are made about the same time stand close together in an index.
    """
    number = ((now_us & ((1 << 52) - 1)) << _RANDOM_BITS) | random.getrandbits(_RANDOM_BITS)
    digits = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
