from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.sagas import NOON_US
from txcoord.gid import make_gid
from txcoord.request import check_gid

instants = st.integers(0, 2**52 - 1)


class Highest(Random):
    def getrandbits(self, k: int) -> int:
        return 2**k - 1


@given(instants, st.integers())
def test_a_gid_is_short_and_plain_and_acceptable(now_us: int, seed: int) -> None:
    gid = make_gid(now_us, Random(seed))

    assert len(gid) == 22
    assert gid.isalnum()
    assert gid.isascii()
    assert not set(gid) & set("01IOl")
    assert check_gid(gid) == gid


@given(instants, instants)
def test_later_gids_sort_later(one_us: int, other_us: int) -> None:
    earlier_us, later_us = sorted((one_us, other_us))
    if earlier_us < later_us:
        assert make_gid(earlier_us, Highest()) < make_gid(later_us, Random(1))


def test_gids_of_one_instant_differ() -> None:
    random = Random(1)

    assert len({make_gid(NOON_US, random) for _ in range(10_000)}) == 10_000


def test_the_last_instant_that_fits_uses_all_digits() -> None:
    assert len(make_gid(2**52 - 1, Highest())) == 22
    assert make_gid(2**52, Random(1)) == make_gid(0, Random(1))
