"""URLs of branches: encoded as httpx encodes them, and never dangerous."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from txcoord.url import BadUrlError, join_url, parse_url


@pytest.mark.parametrize(
    ("text", "origin", "host_header", "target"),
    [
        pytest.param("http://a/b", "http://a:80", "a", "/b", id="default port"),
        pytest.param("HTTPS://A.example:443", "https://a.example:443", "a.example", "/", id="no path, upper case"),
        pytest.param("http://a:8080/b?c=d#e", "http://a:8080", "a:8080", "/b?c=d", id="query and fragment"),
        pytest.param("http://[::1]:81/", "http://[::1]:81", "[::1]:81", "/", id="IPv6"),
        pytest.param("http://a/ä b/../%2f?q= x&é%", "http://a:80", "a", "/%2f?q=%20x&%C3%A9%", id="to be escaped"),
        pytest.param(
            "http://bücher.example/", "http://xn--bcher-kva.example:80", "xn--bcher-kva.example", "/", id="IDNA"
        ),
        pytest.param("http://u:p@a/", "http://a:80", "a", "/", id="credentials stay out"),
    ],
)
def test_parts(text: str, origin: str, host_header: str, target: str) -> None:
    url = parse_url(text)

    assert (url.origin, url.host_header, url.target) == (origin, host_header, target)


def test_credentials_become_basic_authorization() -> None:
    assert parse_url("http://user:p%40ss@a/").authorization == "Basic dXNlcjpwQHNz"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a/b",
        "localhost:8080/b",
        "ftp://a/b",
        "http:/a",
        "http://",
        "http:///b",
        "http://a:b/",
        "http://a:65536/",
        "http://a:\uff18\uff10/",
        "http://1.2.3.400/",
        "http://[::1/",
        "http://[fe80::1%25 x]/",
        "http://a/\r\nX: y",
        "http://a/\x00",
        "http://a\n/",
        "http://a/\x7f",
        "http://a/\ud800",
        "http://\ud800/",
        "http://xn--\u2028/",
        "http://a/" + "b" * 70_000,
    ],
    ids=ascii,
)
def test_what_cannot_be_called_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(BadUrlError, match=r"^the URL .* cannot be called: ") as caught:
        parse_url(text)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


def test_a_refusal_does_not_show_credentials() -> None:
    with pytest.raises(BadUrlError) as caught:
        parse_url("http://user:secret@a:bad/")

    assert "secret" not in str(caught.value)


URLS = st.one_of(
    st.builds(
        "{}://{}{}{}{}".format,
        st.sampled_from(["http", "https"]),
        st.sampled_from(
            ["a", "a.b-c_d", "127.0.0.1", "[::1]", "[2001:DB8::1]", "bücher.de", "u:p@h", "u@h", "A B", "a%41"]
        ),
        st.sampled_from(["", ":80", ":443", ":8080", ":"]),
        st.text(max_size=12).map(lambda path: "/" + path)
        | st.sampled_from(["", "/a/./b/../c", "/..", "//x", "/%zz%41"]),
        st.text(max_size=12).map(lambda query: "?" + query) | st.sampled_from(["", "?", "?a=b&c", "#f"]),
    ),
    st.text(max_size=30).map(lambda rest: "http://" + rest),
)


@given(URLS)
@example("http://a/?#")
@example("http://a/%")
def test_it_is_read_as_httpx_reads_it(text: str) -> None:
    try:
        ours = parse_url(text)
    except BadUrlError:
        return  # Stricter where httpx lets something through: ports, zones, hosts that are empty.
    theirs = httpx.URL(text)

    assert ours.scheme == theirs.scheme
    assert ours.host_header.lower() == theirs.netloc.decode().lower()
    assert ours.target == theirs.raw_path.decode()
    assert ours.port == (theirs.port or {"http": 80, "https": 443}[theirs.scheme])


@given(URLS)
def test_nothing_that_could_end_a_line_gets_through(text: str) -> None:
    try:
        url = parse_url(text)
    except BadUrlError:
        return

    for part in (url.target, url.host_header, url.origin):
        assert all(0x20 < ord(character) < 0x7F for character in part)
    assert all(0x20 <= ord(character) < 0x7F for character in url.authorization)


@given(st.text(max_size=30))
def test_whatever_comes_in_a_location_is_a_url_or_refused(location: str) -> None:
    try:
        url = join_url(parse_url("http://a:81/b/c?d"), location)
    except BadUrlError:
        return

    assert all(0x20 < ord(character) < 0x7F for character in url.text)


@pytest.mark.parametrize(
    ("location", "text"),
    [("/x", "http://a:81/x"), ("x?y", "http://a:81/b/x?y"), ("https://c/", "https://c/"), ("//c/x", "http://c/x")],
)
def test_a_location_is_resolved(location: str, text: str) -> None:
    assert join_url(parse_url("http://a:81/b/c?d"), location).text == text
