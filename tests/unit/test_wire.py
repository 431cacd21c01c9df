"""Bodies are read as Go's `encoding/json` reads them into typed structs."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.api.wire import clean_gid, decode_trans
from txcoord.errors import InvalidRequestError
from txcoord.request import TransRequest

PLAIN = {
    "gid": "g1",
    "trans_type": "saga",
    "steps": [{"action": "http://a/1", "compensate": "http://a/2"}, {"action": "http://b/1"}],
    "payloads": ['{"amount":30}', ""],
    "custom_data": '{"concurrent":true}',
    "wait_result": True,
    "timeout_to_fail": 35,
    "request_timeout": 3,
    "retry_interval": 10,
    "retry_limit": 2,
    "branch_headers": {"x-a": "b"},
    "concurrent": True,
    "query_prepared": "http://a/q",
    "protocol": "http",
    "rollback_reason": "because",
    "req_extra": {"status": "succeed"},
}
READ = TransRequest(
    gid="g1",
    trans_type="saga",
    steps=({"action": "http://a/1", "compensate": "http://a/2"}, {"action": "http://b/1"}),
    payloads=(b'{"amount":30}', b""),
    custom_data='{"concurrent":true}',
    wait_result=True,
    timeout_to_fail=35,
    request_timeout=3,
    retry_interval=10,
    retry_limit=2,
    branch_headers={"x-a": "b"},
    concurrent=True,
    query_prepared="http://a/q",
    protocol="http",
    rollback_reason="because",
    req_extra={"status": "succeed"},
)


def test_a_documented_body_is_read() -> None:
    assert decode_trans(json.dumps(PLAIN).encode()) == READ


def test_the_slow_reading_agrees_with_the_fast_one() -> None:
    unknown_key = {**PLAIN, "subType": "x"}
    upper_case = {name.upper(): value for name, value in PLAIN.items()}

    assert decode_trans(json.dumps(unknown_key).encode()) == READ
    assert decode_trans(json.dumps(upper_case).encode()) == READ


@pytest.mark.parametrize("extra", [{}, {"unknown": 1}], ids=["fast", "slow"])
def test_null_stands_for_absent(extra: dict[str, int]) -> None:
    nulls = dict.fromkeys(PLAIN)

    assert decode_trans(json.dumps({**nulls, **extra}).encode()) == TransRequest()


@pytest.mark.parametrize(
    ("body", "gid"),
    [
        pytest.param('{"gid":"a","gid":"b"}', "b", id="duplicate"),
        pytest.param('{"gid":"a","GID":"b"}', "b", id="duplicate in another case"),
        pytest.param('{"gid":"a","Gid":null}', "a", id="null leaves what stands"),
        pytest.param('{"gid":"\\u0061"}', "a", id="escapes"),
        pytest.param('{"gid":"a\\nb\\r;c"}', "abc", id="line breaks and semicolons are deleted"),
        pytest.param("null", "", id="null body"),
        pytest.param("{}", "", id="empty object"),
        pytest.param(' {"gid" : "a"} \n', "a", id="white space"),
    ],
)
def test_the_gid_is_read_as_go_reads_it(body: str, gid: str) -> None:
    assert decode_trans(body.encode()).gid == gid


def test_payloads_in_the_steps_come_after_the_others() -> None:
    body = {"steps": [{"action": "http://a", "data": "old 1"}, {"data": "old 2"}], "payloads": ["new"]}

    assert decode_trans(json.dumps(body).encode()).payloads == (b"new", b"old 1", b"old 2")


def test_nulls_within_arrays_and_maps_are_empty() -> None:
    body = {"steps": [{"action": None}, None], "payloads": ["x", None], "branch_headers": {"a": None}}

    request = decode_trans(json.dumps(body).encode())

    assert request.steps == ({"action": ""}, {})
    assert request.payloads == (b"x", b"")
    assert request.branch_headers == {"a": ""}


def test_columns_of_the_stored_record_are_ignored() -> None:
    body = {"gid": "g", "owner": "me", "id": 7, "status": "succeed", "finish_time": 5, "context": {}, "options": []}

    assert decode_trans(json.dumps(body).encode()) == TransRequest(gid="g")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        pytest.param(b"", "the body is empty", id="empty"),
        pytest.param(b" \n", "the body is empty", id="blank"),
        pytest.param(b"hello", "the body is not JSON", id="not JSON"),
        pytest.param(b'{"gid":"a"', "the body is not JSON", id="cut off"),
        pytest.param(b'{"gid":"a"}x', "the body is not JSON", id="more behind it"),
        pytest.param(b'{"gid":"\xff"}', "the body is not UTF-8", id="not UTF-8"),
        pytest.param(b'{"gid":"\\ud800"}', "the body is not JSON", id="half a surrogate"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="deep"),
        pytest.param(b'{"x":' * 100_000, "nested too deeply", id="deep objects"),
        pytest.param(b"[]", "must be a JSON object, not an array", id="array"),
        pytest.param(b'"gid"', "must be a JSON object, not a string", id="string"),
        pytest.param(b"7", "must be a JSON object, not a number", id="number"),
        pytest.param(b'{"gid":5}', "gid must be a string, not a number", id="number for a string"),
        pytest.param(b'{"timeout_to_fail":"5"}', "timeout_to_fail must be a whole number, not a string", id="text"),
        pytest.param(
            b'{"timeout_to_fail":5.0}', "timeout_to_fail must be a whole number, not the number 5.0", id="5.0"
        ),
        pytest.param(b'{"retry_limit":true}', "retry_limit must be a whole number, not the boolean true", id="bool"),
        pytest.param(b'{"retry_limit":9223372036854775808}', "retry_limit must fit into 64 bits", id="big"),
        pytest.param(b'{"retry_limit":1' + b"0" * 400 + b"}", "", id="bigger"),
        pytest.param(b'{"wait_result":"true"}', "wait_result must be true or false, not a string", id="text for bool"),
        pytest.param(b'{"wait_result":1}', "wait_result must be true or false, not a number", id="1 for bool"),
        pytest.param(b'{"branch_headers":[]}', "branch_headers must be an object", id="array for a map"),
        pytest.param(b'{"branch_headers":{"a":1}}', "branch_headers.a must be a string", id="number in a map"),
        pytest.param(b'{"steps":{}}', "steps must be an array", id="object for steps"),
        pytest.param(b'{"steps":["x"]}', "steps[0] must be an object", id="string for a step"),
        pytest.param(b'{"steps":[{},{"action":{}}]}', "steps[1].action must be a string, not an object", id="url"),
        pytest.param(b'{"payloads":[{}]}', "payloads[0] must be a string, not an object", id="object for a payload"),
        pytest.param(b'{"payloads":"x"}', "payloads must be an array", id="string for payloads"),
    ],
)
def test_what_cannot_be_read_is_named(body: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode_trans(body)

    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 300


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from([*PLAIN, *(name.upper() for name in PLAIN), "id", "owner"]) | st.text(max_size=10)


@given(st.dictionaries(KEYS, JSON_VALUES, max_size=6))
def test_any_object_is_read_or_refused(body: dict[str, object]) -> None:
    with suppress(InvalidRequestError):
        request = decode_trans(json.dumps(body).encode())
        assert -(2**63) <= request.retry_limit < 2**63
        assert all(isinstance(payload, bytes) for payload in request.payloads)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with suppress(InvalidRequestError):
        assert isinstance(decode_trans(body), TransRequest)


def test_cleaning_leaves_the_rest_alone() -> None:
    assert clean_gid("a b\té\n;\r") == "a b\té"
