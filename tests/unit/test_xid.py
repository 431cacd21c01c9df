"""The names of XA branches in their databases: safe between quotes, short enough, no two alike."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.barrier.tables import Database
from txcoord.errors import InvalidRequestError
from txcoord.xa.xid import LONGEST, HashedXid, XaKey, read_xid, xid_of

DATABASES = st.sampled_from(sorted(LONGEST))
GIDS = st.text(min_size=1, max_size=128) | st.text("ab-01.", min_size=1, max_size=128)
BRANCH_IDS = st.from_regex(r"([0-9]{2}){1,4}", fullmatch=True) | GIDS
KEYS = st.builds(lambda gid, branch_id: XaKey(gid=gid, branch_id=branch_id), GIDS, BRANCH_IDS)
HARMLESS = re.compile(r"[A-Za-z0-9_.@/+=#-]+")


@pytest.mark.parametrize(
    ("gid", "branch_id", "xid"),
    [
        pytest.param("7hvFRe1rwBsYmCrXBWzvGB", "01", "7hvFRe1rwBsYmCrXBWzvGB-01", id="as DTM's"),
        pytest.param("order-17", "0102", "order-17-0102", id="a hyphen in the gid"),
        pytest.param("a" * 61, "01", f"{'a' * 61}-01", id="as long as MySQL takes it"),
    ],
)
@pytest.mark.parametrize("database", LONGEST)
def test_plain_gids_are_named_as_dtm_names_them(gid: str, branch_id: str, xid: str, database: Database) -> None:
    key = XaKey(gid=gid, branch_id=branch_id)

    assert xid_of(key, database) == xid
    assert read_xid(xid) == key


@pytest.mark.parametrize(
    ("gid", "branch_id", "prefix"),
    [
        pytest.param("it's", "01", "it", id="a quote"),
        pytest.param("a\\", "01", "a", id="a backslash"),
        pytest.param("a b", "01", "a", id="a blank"),
        pytest.param("order:17", "01", "order", id="what SQLAlchemy takes for a mark"),
        pytest.param("50%", "01", "50", id="what drivers take for a mark"),
        pytest.param("bestellung-größe", "01", "bestellung", id="not ASCII"),
        pytest.param("x" * 62, "01", "x" * 23, id="too long for MySQL"),
        pytest.param("a", "01-02", "a", id="a hyphen in the branch id"),
    ],
)
def test_others_show_how_their_gid_begins(gid: str, branch_id: str, prefix: str) -> None:
    xid = xid_of(XaKey(gid=gid, branch_id=branch_id), Database.MYSQL)

    assert read_xid(xid) == HashedXid(prefix=prefix)


def test_the_same_branch_has_the_same_name_for_ever() -> None:
    key = XaKey(gid="it's", branch_id="01")

    assert xid_of(key, Database.MYSQL) == xid_of(key, Database.POSTGRESQL)
    assert xid_of(key, Database.MYSQL) == "txcoord.it.3voyp4mwawwv6fs7dxgsn3x5kit6qtih"
    assert xid_of(XaKey(gid="it's", branch_id="01", trans_type="workflow"), Database.MYSQL) == xid_of(
        key, Database.MYSQL
    )


@given(KEYS, DATABASES)
def test_a_name_fits_and_needs_no_escaping(key: XaKey, database: Database) -> None:
    xid = xid_of(key, database)

    assert HARMLESS.fullmatch(xid)
    assert len(xid) <= LONGEST[database]
    read = read_xid(xid)
    assert read == key if isinstance(read, XaKey) else isinstance(read, HashedXid)


@given(st.lists(KEYS, min_size=2, max_size=30, unique=True), DATABASES)
def test_two_branches_never_have_the_same_name(keys: list[XaKey], database: Database) -> None:
    assert len({xid_of(key, database) for key in keys}) == len(keys)


@given(st.text("ab-0", min_size=1, max_size=6), st.text("ab-0", min_size=1, max_size=6), DATABASES)
def test_where_the_gid_ends_makes_a_difference(gid: str, branch_id: str, database: Database) -> None:
    whole = f"{gid}-{branch_id}"
    others = [
        XaKey(gid=whole[:at], branch_id=whole[at + 1 :])
        for at, character in enumerate(whole)
        if character == "-" and 0 < at < len(whole) - 1
    ]

    assert len({xid_of(key, database) for key in others}) == len(others)


@given(KEYS, DATABASES)
def test_a_gid_cannot_pose_as_the_hash_of_another(key: XaKey, database: Database) -> None:
    xid = xid_of(key, database)

    assert xid_of(XaKey(gid=xid, branch_id="01"), database) != xid
    assert ("-" in xid) == isinstance(read_xid(xid), XaKey)


@pytest.mark.parametrize("xid", ["", "backup", "-01", "a-", "a b-01", "txcoord.a.short", "\x00\x01", "ä-01"])
def test_names_of_other_forms_are_none_of_ours(xid: str) -> None:
    assert read_xid(xid) is None


def test_sqlite_has_no_prepared_transactions() -> None:
    with pytest.raises(InvalidRequestError, match="XA works on MySQL, MariaDB and PostgreSQL"):
        xid_of(XaKey(gid="g", branch_id="01"), Database.SQLITE)
