from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.errors import InvalidRequestError
from txcoord.jsonrpc import BadParamsError, make_request, method_of, read_params, understand_reply
from txcoord.model import Outcome
from txcoord.request import check_params

SUCCESS, FAILURE, ONGOING, UNKNOWN = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ONGOING, Outcome.UNKNOWN

CALL = {"gid": "g1", "trans_type": "saga", "branch_id": "01", "op": "action"}


# -- the call ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "method"),
    [
        pytest.param("http://p/rpc?method=TransIn", "TransIn", id="the query names it"),
        pytest.param("http://p/rpc?a=1&method=Trans%20In#x", "Trans In", id="escaped, among others"),
        pytest.param("http://p/rpc?method=&method=B", "B", id="the first that has a name"),
        pytest.param("http://p/rpc", "", id="none"),
        pytest.param("http://p/rpc?method=", "", id="an empty one"),
        pytest.param("http://p/payment-methods/charge?id=1", "", id="the letters in the path"),
        pytest.param("http://p/x?methods=a", "", id="another parameter"),
        pytest.param("http://p/x?" + "a=1&" * 200 + "method=B", "", id="too many parameters"),
    ],
)
def test_the_method_stands_in_the_query(url: str, method: str) -> None:
    assert method_of(url) == method


def test_the_params_are_the_payload_and_which_call_it_is() -> None:
    body = make_request("TransIn", read_params(b'{"amount":30,"gid":"mine"}'), call=CALL)

    assert json.loads(body) == {
        "jsonrpc": "2.0",
        "id": "g1/saga/01/action",
        "method": "TransIn",
        "params": {"amount": 30, "gid": "g1", "trans_type": "saga", "branch_id": "01", "op": "action"},
    }


def test_numbers_are_sent_as_they_were_written() -> None:
    body = make_request("M", read_params(b'{"a":1.10,"b":12345678901234567890123,"c":1e400}'), call=CALL)

    assert b'"a":1.10,"b":12345678901234567890123,"c":1e400,' in body


@pytest.mark.parametrize("payload", [b"", b"null", b" null ", b"{}"])
def test_without_a_payload_there_are_only_ours(payload: bytes) -> None:
    assert read_params(payload) == {}


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        pytest.param(b"[1]", "is JSON, but not an object", id="array"),
        pytest.param(b'"x"', "is JSON, but not an object", id="string"),
        pytest.param(b"5", "is JSON, but not an object", id="number"),
        pytest.param(b"amount=30", "is not JSON", id="form"),
        pytest.param(b'{"a":', "is not JSON", id="cut"),
        pytest.param(b'{"a":1} x', "is not JSON", id="more behind it"),
        pytest.param(b'{"a":"\xff"}', "is not UTF-8 text", id="bytes in a value"),
        pytest.param(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "is nested too deeply", id="deep"),
    ],
)
def test_any_other_payload_is_refused(payload: bytes, fault: str) -> None:
    with pytest.raises(BadParamsError, match=rf"^{fault}.*; the params of a JSON-RPC call must be a JSON object$"):
        read_params(payload)


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_whatever_is_not_refused_makes_a_body_that_can_be_read(payload: bytes) -> None:
    try:
        params = read_params(payload)
    except BadParamsError:
        return
    sent = msgspec.json.decode(make_request("M", params, call=CALL))
    assert sent["params"] == (msgspec.json.decode(payload) or {} if payload else {}) | CALL


@pytest.mark.parametrize(
    ("protocol", "url", "payload"),
    [
        pytest.param("json-rpc", "http://p/?method=A", b"{}", id="JSON-RPC with an object"),
        pytest.param("json-rpc", "http://p/a", b"[1]", id="a URL without a method"),
        pytest.param("json-rpc", "", b"[1]", id="nothing to call"),
        pytest.param("http", "http://p/?method=A", b"[1]", id="HTTP"),
    ],
)
def test_only_what_is_called_over_json_rpc_needs_params(protocol: str, url: str, payload: bytes) -> None:
    check_params(payload, url=url, protocol=protocol, where="the payload of branch 03")


def test_what_can_never_be_sent_as_params_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"^the payload of branch 03 is JSON, but not an object; .*method=A"):
        check_params(b"[1]", url="http://p/?method=A", protocol="json-rpc", where="the payload of branch 03")


# -- the answer --------------------------------------------------------------------------


def reply(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": "x", **members}).encode()


def error(code: object, message: object = "no money") -> bytes:
    return reply(error={"code": code, "message": message})


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        pytest.param(200, reply(result=None, error=None), SUCCESS, id="null error"),
        pytest.param(200, reply(result={"a": 1}), SUCCESS, id="no error"),
        pytest.param(200, reply(result={"note": "no FAILURE, not ONGOING"}), SUCCESS, id="words in a result"),
        pytest.param(200, b'{"dtm_result":"SUCCESS"}', SUCCESS, id="HTTP's answer of success"),
        pytest.param(200, error(-32901), FAILURE, id="-32901"),
        pytest.param(200, error(-32902), ONGOING, id="-32902"),
        pytest.param(200, error(-32901.0), FAILURE, id="-32901.0"),
        pytest.param(200, error(-32603), UNKNOWN, id="another code"),
        pytest.param(200, error(-32603, "FAILURE"), UNKNOWN, id="another code, the word as text"),
        pytest.param(200, error(-32901, "ONGOING"), FAILURE, id="the code counts, not the text"),
        pytest.param(200, error("-32901"), UNKNOWN, id="a code that is a string"),
        pytest.param(200, error(None), UNKNOWN, id="a null code"),
        pytest.param(200, reply(error={}), UNKNOWN, id="an empty error"),
        pytest.param(200, reply(error="no money"), UNKNOWN, id="an error that is no object"),
        pytest.param(200, reply(error=False), UNKNOWN, id="a false error"),
        pytest.param(409, error(-32902), FAILURE, id="409 first"),
        pytest.param(425, error(-32901), ONGOING, id="425 first"),
        pytest.param(500, error(-32901), UNKNOWN, id="500 first"),
        pytest.param(201, reply(result=1), UNKNOWN, id="201"),
        pytest.param(200, b'{"dtm_result":"FAILURE"}', FAILURE, id="HTTP's answer of failure"),
        pytest.param(200, reply(result={"dtm_result": "FAILURE"}), FAILURE, id="failure as a result"),
        pytest.param(200, reply(result="ONGOING"), ONGOING, id="the word as a result"),
        pytest.param(200, b"", UNKNOWN, id="empty"),
        pytest.param(200, b"ok", UNKNOWN, id="no JSON"),
        pytest.param(200, b"[]", UNKNOWN, id="a batch"),
        pytest.param(200, b'{"result":' + b"[" * 5000 + b"]" * 5000 + b"}", UNKNOWN, id="deep"),
    ],
)
def test_an_answer_is_understood(status: int, body: bytes, outcome: Outcome) -> None:
    assert understand_reply(status, body, limit=200)[0] is outcome


def test_the_words_count_anywhere_if_that_is_asked_for() -> None:
    assert understand_reply(200, error(-1, "FAILURE"), limit=200, anywhere=True)[0] is FAILURE
    assert understand_reply(200, error(-32901), limit=200, anywhere=True)[0] is FAILURE


@pytest.mark.parametrize(
    ("status", "body", "detail"),
    [
        pytest.param(200, error(-32901, "no\nmoney"), "no money", id="the message of a failure"),
        pytest.param(200, error(-32901, ""), error(-32901, "").decode(), id="without a message the body"),
        pytest.param(200, error(-32603, "boom"), "JSON-RPC error -32603: boom", id="an error's code and message"),
        pytest.param(200, reply(result=7), reply(result=7).decode(), id="the body of a success"),
        pytest.param(200, b"<html>", "HTTP 200, but no JSON-RPC reply: <html>", id="no JSON"),
        pytest.param(503, b"busy", "HTTP 503: busy", id="a status"),
    ],
)
def test_what_is_kept_of_an_answer(status: int, body: bytes, detail: str) -> None:
    assert understand_reply(status, body, limit=200)[1] == detail


@given(
    st.sampled_from([200, 409, 425, 500]),
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.dictionaries(st.sampled_from(["error", "code", "message", "result", "dtm_result"]), inner),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode()),
)
def test_no_answer_is_too_strange(status: int, body: bytes) -> None:
    _, detail = understand_reply(status, body, limit=30)

    assert len(detail.encode()) <= 30
