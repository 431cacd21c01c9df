"""The header lines of a branch call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord import __version__
from txcoord.dispatch.headers import DEFAULT_HEADERS, BadHeaderError, make_headers


def lines(text: str) -> dict[str, str]:
    assert text.endswith("\r\n")
    return dict(line.split(": ", 1) for line in text.removesuffix("\r\n").split("\r\n"))


def test_without_more_they_are_json_in_and_out() -> None:
    assert lines(DEFAULT_HEADERS.text) == {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": f"txcoord/{__version__}",
    }


def test_the_initiator_may_override_them_whatever_the_case() -> None:
    block = make_headers([("content-TYPE", "text/plain"), ("X-Tenant", "ü"), ("x-tenant", " 2 ")])

    assert lines(block.text) == {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "content-TYPE": "text/plain",
        "User-Agent": f"txcoord/{__version__}",
        "x-tenant": "2",
    }


@pytest.mark.parametrize(
    "name", ["Host", "content-length", "Transfer-Encoding", "CONNECTION", "Upgrade", "Expect", "TE"]
)
def test_what_belongs_to_the_connection_is_left_out(name: str) -> None:
    assert make_headers([(name, "x")]) == DEFAULT_HEADERS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nY: b"),
        ("X", "a\nb"),
        ("X", "a\x00"),
        ("X\r\nY", "a"),
        ("X Y", "a"),
        ("", "a"),
        ("X:", "a"),
        ("X", "\ud800"),
    ],
    ids=ascii,
)
def test_what_cannot_be_a_header_is_refused(name: str, value: str) -> None:
    with pytest.raises(BadHeaderError, match=r"^the branch header .* cannot be sent"):
        make_headers([(name, value)])


@given(st.dictionaries(st.text(max_size=6), st.text(max_size=12), max_size=3))
def test_no_header_can_add_a_line(headers: dict[str, str]) -> None:
    try:
        block = make_headers(headers.items())
    except BadHeaderError:
        return

    assert block.text.encode().count(b"\n") == block.text.count("\r\n") == len(block.pairs)


def test_credentials_of_the_url_give_way_to_those_of_the_initiator_and_stay_with_their_origin() -> None:
    block = make_headers([("authorization", "Bearer x"), ("Cookie", "a=b")], "Basic y")

    assert lines(block.text)["authorization"] == "Bearer x"
    assert block.without_credentials() == DEFAULT_HEADERS
