from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txcoord.errors import InvalidRequestError, RequestTooLargeError
from txcoord.model import Options
from txcoord.request import (
    MAX_GID_LENGTH,
    Limits,
    TransRequest,
    check_gid,
    check_options,
    check_payloads,
    check_protocol,
    check_url,
)
from txcoord.url import parse_url

LIMITS = Limits()


# -- gid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gid", ["g", "a" * MAX_GID_LENGTH, "order-1/ü 7", "订单1", "P7o9QCyzSWcEsp97AbCzAD"])
def test_a_gid_that_can_be_kept_everywhere_is_taken_as_it_is(gid: str) -> None:
    assert check_gid(gid) == gid


@pytest.mark.parametrize(
    ("gid", "complaint"),
    [
        pytest.param("", "gid is empty: choose a unique one, or ask newGid", id="empty"),
        pytest.param("a" * 129, "gid has 129 characters: at most 128 fit", id="too long"),
        pytest.param("a\x00b", "control characters", id="NUL"),
        pytest.param("a\tb", "control characters", id="tab"),
        pytest.param("a\u200bb", "control characters", id="zero-width space"),
        pytest.param("a\ud800", "control characters", id="lone surrogate"),
        pytest.param(" a", "outer spaces", id="leading space"),
        pytest.param("a ", "outer spaces", id="trailing space, which MySQL does not compare"),
    ],
)
def test_any_other_gid_is_refused(gid: str, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        check_gid(gid)


@given(st.text(st.characters(), min_size=1, max_size=140))
def test_an_accepted_gid_can_be_written_as_utf_8_and_shown(gid: str) -> None:
    try:
        check_gid(gid)
    except InvalidRequestError:
        return
    assert gid.encode()
    assert gid.isprintable()


# -- options -----------------------------------------------------------------------------


def test_options_are_those_of_the_request() -> None:
    request = TransRequest(
        wait_result=True,
        timeout_to_fail=1,
        request_timeout=2,
        retry_interval=3,
        retry_limit=4,
        branch_headers={"X-Tenant": "tést\t1"},
        concurrent=True,
    )

    assert check_options(request, LIMITS) == Options(
        wait_result=True,
        timeout_to_fail_s=1,
        request_timeout_s=2,
        retry_interval_s=3,
        retry_limit=4,
        branch_headers={"X-Tenant": "tést\t1"},
        concurrent=True,
    )


def test_negative_numbers_mean_as_the_server_is_set() -> None:
    request = TransRequest(timeout_to_fail=-1, request_timeout=-1, retry_interval=-(2**63), retry_limit=-7)

    assert check_options(request, LIMITS) == Options()


def test_a_retry_limit_is_cut_to_what_a_column_holds() -> None:
    assert check_options(TransRequest(retry_limit=2**63 - 1), LIMITS).retry_limit == 2**31 - 1


@pytest.mark.parametrize("field", ["timeout_to_fail", "request_timeout", "retry_interval"])
def test_durations_are_bounded(field: str) -> None:
    limits = Limits(max_timeout_s=60)
    assert check_options(TransRequest(**{field: 60}), limits) == Options(**{f"{field}_s": 60})

    with pytest.raises(InvalidRequestError, match=rf"{field} is 61 seconds: at most 60 \(max_timeout_s\)"):
        check_options(TransRequest(**{field: 61}), limits)


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        pytest.param({"": "x"}, "'' is not a header name", id="no name"),
        pytest.param({"a b": "x"}, "'a b' is not a header name", id="space in the name"),
        pytest.param({"a:": "x"}, "'a:' is not a header name", id="colon in the name"),
        pytest.param({"a\n": "x"}, "not a header name", id="line break in the name"),
        pytest.param({"ä": "x"}, "'ä' is not a header name", id="a name beyond ASCII"),
        pytest.param({"a": "x\r\nHost: evil"}, "the value of 'a'", id="line break in the value"),
        pytest.param({"a": "x\n"}, "the value of 'a'", id="line break at the end"),
        pytest.param({"a": "\x00"}, "the value of 'a'", id="NUL"),
        pytest.param({"a": "订"}, "the value of 'a'", id="beyond Latin-1"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused(headers: dict[str, str], complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"branch_headers: .*{complaint}"):
        check_options(TransRequest(branch_headers=headers), LIMITS)


def test_headers_are_bounded_as_they_stand_on_the_wire() -> None:
    limits = Limits(max_header_bytes=10)
    assert check_options(TransRequest(branch_headers={"abc": "def"}), limits).branch_headers == {"abc": "def"}

    with pytest.raises(RequestTooLargeError, match=r"need 11 bytes: at most 10 \(max_header_bytes\)"):
        check_options(TransRequest(branch_headers={"abc": "defg"}), limits)


# -- protocol, URLs, payloads ------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "taken_for"), [("", "http"), ("http", "http"), ("json-rpc", "json-rpc"), ("grpc", "grpc")]
)
def test_http_is_the_default_of_the_protocols(protocol: str, taken_for: str) -> None:
    assert check_protocol(protocol) == taken_for


@pytest.mark.parametrize("protocol", ["gRPC", "HTTP", "JSON-RPC", "jsonrpc"])
def test_other_protocols_are_refused(protocol: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"protocol '{protocol}' is not offered"):
        check_protocol(protocol)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://h",
        "https://h:8443/a/b?c=d&e=%20f",
        "http://127.0.0.1:1/x",
        "http://[::1]:8081/api",
        "http://h/ä",
        "HTTP://h/x",
    ],
)
def test_urls_that_can_be_called(url: str) -> None:
    assert check_url(url, where="the action URL of branch 01", limits=LIMITS) == url


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        pytest.param("h/path", "is not a complete http:// or https:// URL", id="no scheme"),
        pytest.param("ftp://h/", "is not a complete", id="another scheme"),
        pytest.param("http:///path", "is not a complete", id="no host"),
        pytest.param("http://:80/", "is not a complete", id="only a port"),
        pytest.param("http://h:0/", "is not a complete", id="port 0"),
        pytest.param("http://h:99999/", "its port is not a number from 1 to 65535", id="port too high"),
        pytest.param("http://h:x/", "its port is not a number", id="port no number"),
        pytest.param("http://[::1/", "its IPv6 address is malformed", id="broken address"),
        pytest.param("http://[::1]x:80/", "its port is not a number", id="text behind an address"),
        pytest.param("http://[v1.x]/", "its IPv6 address is malformed", id="an address of the future"),
        pytest.param("http://[fe80::1%25eth0]/", "its IPv6 address has a zone", id="zone"),
        pytest.param("http://1.2.3.999/", "its IPv4 address is malformed", id="number too high"),
        pytest.param("http://ü..com/", "not a valid international name", id="empty label"),
        pytest.param("http://h/a b", "percent-encode", id="space"),
        pytest.param("http://h/\r\nHost:", "percent-encode", id="line break"),
    ],
)
def test_any_other_url_is_refused_and_named(url: str, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"the action URL of branch 01 .*{complaint}"):
        check_url(url, where="the action URL of branch 01", limits=LIMITS)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("aü1.:[]%@/?#-\u00ad\u2024"), max_size=12))
def test_what_is_accepted_can_be_called(rest: str) -> None:
    url = f"http://{rest}"
    try:
        check_url(url, where="the action URL of branch 01", limits=LIMITS)
    except InvalidRequestError:
        return
    parse_url(url)


@pytest.mark.parametrize("protocol", ["http", "json-rpc", "grpc"])
def test_headers_of_what_is_called_over_grpc_have_to_be_metadata(protocol: str) -> None:
    def check(url: str) -> None:
        check_url(url, where="the URL", limits=LIMITS, protocol=protocol, headers={"x-town": "Köln"})

    check("http://h/")
    check("")
    if protocol != "http":
        with pytest.raises(InvalidRequestError, match=r"'x-town' has a value .* and the URL is called over gRPC"):
            check("h:80/package.Service/Method")


def test_urls_are_bounded() -> None:
    limits = Limits(max_url_length=10)
    assert check_url("http://h/x", where="it", limits=limits)

    with pytest.raises(InvalidRequestError, match=r"it has 11 characters: at most 10 \(max_url_length\)"):
        check_url("http://h/xy", where="it", limits=limits)


def payloads_of(steps: int, payloads: tuple[bytes, ...], limits: Limits = LIMITS) -> list[bytes]:
    step: Mapping[str, str] = {"action": "http://h"}
    return list(check_payloads(TransRequest(steps=(dict(step),) * steps, payloads=payloads), limits))


def test_each_step_has_its_payload_and_more_are_left_out() -> None:
    assert payloads_of(2, (b"a", b"", b"c")) == [b"a", b""]
    assert payloads_of(0, ()) == []


def test_a_missing_payload_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="payloads has 1 entries for 2 steps: give one for each"):
        payloads_of(2, (b"a",))


def test_steps_and_payloads_are_bounded() -> None:
    limits = Limits(max_branches=2, max_payload_bytes=3)
    assert payloads_of(2, (b"abc", b""), limits) == [b"abc", b""]

    with pytest.raises(RequestTooLargeError, match=r"3 steps: at most 2 \(max_branches\)"):
        payloads_of(3, (b"",) * 3, limits)
    with pytest.raises(
        RequestTooLargeError, match=r"the payload of branch 02 has 4 bytes: at most 3 \(max_payload_bytes\)"
    ):
        payloads_of(2, (b"", b"abcd"), limits)
