"""What an answer means, and how it is described."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.model import Outcome
from txcoord.outcome import clean, describe, understand, understand_grpc

SUCCESS, FAILURE, ONGOING, UNKNOWN = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ONGOING, Outcome.UNKNOWN


@pytest.mark.parametrize(
    ("status", "body", "ours", "as_dtm"),
    [
        pytest.param(200, b"", SUCCESS, SUCCESS, id="empty"),
        pytest.param(200, b'{"dtm_result":"SUCCESS"}', SUCCESS, SUCCESS, id="success"),
        pytest.param(200, b'{"dtm_result":"FAILURE"}', FAILURE, FAILURE, id="failure"),
        pytest.param(200, b'{"dtm_result":"ONGOING"}', ONGOING, ONGOING, id="ongoing"),
        pytest.param(200, b' \n{"a":[{}],"dtm_result" : "FAILURE"}\n', FAILURE, FAILURE, id="failure among others"),
        pytest.param(200, b'\xef\xbb\xbf{"dtm_result":"FAILURE"}', FAILURE, FAILURE, id="byte order mark"),
        pytest.param(200, rb'{"dtm_result":"\u0046AILURE"}', FAILURE, SUCCESS, id="escaped word"),
        pytest.param(200, rb'{"dt\u006d_result":"FAILURE"}', FAILURE, FAILURE, id="escaped key"),
        pytest.param(200, b"FAILURE", FAILURE, FAILURE, id="bare word"),
        pytest.param(200, b"ONGOING\n", ONGOING, ONGOING, id="bare word with a line break"),
        pytest.param(200, b'"FAILURE"', FAILURE, FAILURE, id="the word as a JSON string"),
        pytest.param(200, b'"no FAILURE"', SUCCESS, FAILURE, id="a sentence as a JSON string"),
        pytest.param(200, b"failure", SUCCESS, SUCCESS, id="lower case"),
        pytest.param(200, b'{"note":"no FAILURE here"}', SUCCESS, FAILURE, id="word in a note"),
        pytest.param(200, b'{"a":{"dtm_result":"FAILURE"}}', SUCCESS, FAILURE, id="nested result"),
        pytest.param(200, b'[{"dtm_result":"FAILURE"}]', SUCCESS, FAILURE, id="result in a list"),
        pytest.param(200, b'{"dtm_result":["FAILURE"]}', SUCCESS, FAILURE, id="result of another type"),
        pytest.param(200, b'{"dtm_result":"FAILURE"', SUCCESS, FAILURE, id="no JSON"),
        pytest.param(200, b'{"dtm_result":"FAILURE","x":"\xff"}', FAILURE, FAILURE, id="invalid UTF-8 elsewhere"),
        pytest.param(200, b'{"a":' + b"[" * 50_000 + b'"FAILURE"', UNKNOWN, FAILURE, id="too deep"),
        pytest.param(409, b"", FAILURE, FAILURE, id="409"),
        pytest.param(409, b"ONGOING", FAILURE, ONGOING, id="409 ONGOING"),
        pytest.param(425, b"FAILURE", ONGOING, ONGOING, id="425 FAILURE"),
        pytest.param(500, b'{"dtm_result":"FAILURE"}', UNKNOWN, FAILURE, id="500 FAILURE"),
        pytest.param(503, b"ONGOING", UNKNOWN, ONGOING, id="503 ONGOING"),
        pytest.param(201, b'{"dtm_result":"SUCCESS"}', UNKNOWN, UNKNOWN, id="201"),
        pytest.param(204, b"", UNKNOWN, UNKNOWN, id="204"),
        pytest.param(302, b"", UNKNOWN, UNKNOWN, id="302"),
        pytest.param(404, b"not found", UNKNOWN, UNKNOWN, id="404"),
    ],
)
def test_the_rule_and_the_rule_of_dtm(status: int, body: bytes, ours: Outcome, as_dtm: Outcome) -> None:
    assert understand(status, body) is ours
    assert understand(status, body, anywhere=True) is as_dtm


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["FAILURE", "ONGOING", "SUCCESS", "é", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtm_result", "note", "ä"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON, st.booleans(), st.sampled_from([None, 2]))
def test_of_a_json_body_only_its_own_result_counts(value: object, ascii_only: bool, indent: int | None) -> None:
    word = value.get("dtm_result") if isinstance(value, dict) else value
    expected = {"FAILURE": FAILURE, "ONGOING": ONGOING}.get(word, SUCCESS) if isinstance(word, str) else SUCCESS

    assert understand(200, json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()) is expected


@given(st.integers(100, 999), st.binary(max_size=40) | st.sampled_from([b"FAILURE", b'{"dtm_result":"ONGOING"}']))
def test_only_a_200_is_a_success_and_only_three_statuses_mean_anything(status: int, body: bytes) -> None:
    outcome = understand(status, body)

    if status not in (200, 409, 425):
        assert outcome is UNKNOWN
    if status == 409:
        assert outcome is FAILURE
    if status == 425:
        assert outcome is ONGOING


@pytest.mark.parametrize(
    ("status", "body", "outcome", "detail"),
    [
        pytest.param(409, b'{"reason":"no stock"}', FAILURE, '{"reason":"no stock"}', id="failure as sent"),
        pytest.param(425, b"", ONGOING, "", id="nothing sent"),
        pytest.param(503, b"<h1>busy</h1>", UNKNOWN, "HTTP 503: <h1>busy</h1>", id="unknown with status"),
        pytest.param(503, b"", UNKNOWN, "HTTP 503", id="unknown without body"),
    ],
)
def test_the_detail(status: int, body: bytes, outcome: Outcome, detail: str) -> None:
    assert describe(status, body, outcome, limit=100) == detail


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        pytest.param(b"a\r\nb\x00c\x1b[31m", 100, "a  b c [31m", id="control characters"),
        pytest.param("a\u0085b\u2028c".encode(), 100, "a b c", id="line breaks of Unicode"),
        pytest.param("ééé".encode(), 5, "éé", id="cut within a character"),
        pytest.param(b"a\xffb", 100, "a\ufffdb", id="invalid bytes"),
        pytest.param("库存不足", 12, "库存不足", id="not ASCII"),
    ],
)
def test_a_detail_is_readable(text: bytes | str, limit: int, expected: str) -> None:
    assert clean(text, limit) == expected


@given(st.binary(max_size=80) | st.text(max_size=40), st.integers(0, 60))
def test_a_detail_is_bounded_valid_text_without_control_characters(text: bytes | str, limit: int) -> None:
    result = clean(text, limit)

    assert len(result.encode()) <= limit
    assert not any(ord(each) < 0x20 or 0x7F <= ord(each) < 0xA0 for each in result)


@given(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=40))
def test_a_detail_that_fits_is_kept_as_it_is(text: str) -> None:
    assert clean(text.encode(), 1000) == text


@pytest.mark.parametrize("code", range(17))
@pytest.mark.parametrize("message", ["", "FAILURE", "ONGOING", "ONGOING "])
def test_grpc_decides_by_the_status(code: int, message: str) -> None:
    expected = {0: SUCCESS, 9: ONGOING, 10: ONGOING if message == "ONGOING" else FAILURE}

    assert understand_grpc(code, message) is expected.get(code, UNKNOWN)
