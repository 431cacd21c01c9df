from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sagas import NOON_US
from txcoord.errors import InvalidRequestError, RequestTooLargeError
from txcoord.model import BranchOp, Op, OpStatus, Pattern, Status
from txcoord.request import Limits, TransRequest
from txcoord.saga.graph import find_cycle, predecessors
from txcoord.saga.request import build_saga

LIMITS = Limits(max_custom_data_bytes=500)


def make_request(count: int = 2, /, **more: object) -> TransRequest:
    fields: dict[str, object] = {
        "gid": "g1",
        "trans_type": "saga",
        "steps": tuple({"action": f"http://p{step}/do", "compensate": f"http://p{step}/undo"} for step in range(count)),
        "payloads": tuple(f'{{"step":{step}}}'.encode() for step in range(count)),
    }
    return TransRequest(**(fields | more))  # type: ignore[arg-type]


def test_a_submit_becomes_a_saga_with_dtms_rows() -> None:
    saga = build_saga(make_request(query_prepared="http://q/x"), LIMITS, now_us=NOON_US)

    assert (saga.gid, saga.pattern, saga.status) == ("g1", Pattern.SAGA, Status.SUBMITTED)
    assert saga.branches == (
        BranchOp(branch_id="01", op=Op.COMPENSATE, url="http://p0/undo", payload=b'{"step":0}'),
        BranchOp(branch_id="01", op=Op.ACTION, url="http://p0/do", payload=b'{"step":0}'),
        BranchOp(branch_id="02", op=Op.COMPENSATE, url="http://p1/undo", payload=b'{"step":1}'),
        BranchOp(branch_id="02", op=Op.ACTION, url="http://p1/do", payload=b'{"step":1}'),
    )
    assert (saga.created_us, saga.updated_us, saga.deadline_us) == (NOON_US, NOON_US, None)
    assert (saga.protocol, saga.query_prepared) == ("http", "http://q/x")


def test_a_deadline_is_counted_from_the_submit() -> None:
    assert build_saga(make_request(timeout_to_fail=2), LIMITS, now_us=NOON_US).deadline_us == NOON_US + 2_000_000


def test_missing_urls_are_empty() -> None:
    saga = build_saga(make_request(1, steps=({},)), LIMITS, now_us=NOON_US)

    assert [op.url for op in saga.branches] == ["", ""]


def test_a_saga_may_have_no_steps() -> None:
    assert build_saga(make_request(0), LIMITS, now_us=NOON_US).branches == ()


@pytest.mark.parametrize(
    ("custom_data", "concurrent", "orders"),
    [
        pytest.param("", False, {}, id="none"),
        pytest.param("null", False, {}, id="null"),
        pytest.param("{}", False, {}, id="empty"),
        pytest.param('{"concurrent":true}', True, {}, id="concurrent"),
        pytest.param('{"orders":null,"concurrent":null}', False, {}, id="nulls"),
        pytest.param('{"orders":{"2":[0,1]},"concurrent":true}', True, {2: (0, 1)}, id="orders"),
        pytest.param('{"orders":{"1":[0,0]}}', False, {1: (0,)}, id="named twice"),
        pytest.param('{"orders":{"1":[],"2":null}}', False, {}, id="orders without content"),
        pytest.param('{"orders":[[],[0],[0,1]],"concurrent":true}', True, {1: (0,), 2: (0, 1)}, id="PHP's list"),
        pytest.param('{"orders":[null,[0]],"concurrent":true}', True, {1: (0,)}, id="PHP's list with null"),
        pytest.param('{"other":[1],"concurrent":true}', True, {}, id="unknown keys"),
    ],
)
def test_the_plan_is_read_from_custom_data(
    custom_data: str, concurrent: bool, orders: dict[int, tuple[int, ...]]
) -> None:
    saga = build_saga(make_request(3, custom_data=custom_data), LIMITS, now_us=NOON_US)

    assert (saga.options.concurrent, saga.options.orders) == (concurrent, orders)
    assert saga.custom_data == custom_data


def test_the_outer_flag_makes_no_saga_concurrent() -> None:
    assert not build_saga(make_request(concurrent=True), LIMITS, now_us=NOON_US).options.concurrent


@pytest.mark.parametrize(
    ("custom_data", "complaint"),
    [
        pytest.param("hello", "custom_data of a saga cannot be read", id="no JSON"),
        pytest.param("[1]", "cannot be read", id="a list"),
        pytest.param('"text"', "cannot be read", id="a string"),
        pytest.param('{"concurrent":1}', "cannot be read", id="a number for a flag"),
        pytest.param('{"orders":{"1":0}}', "cannot be read", id="a number for a list"),
        pytest.param('{"orders":{"1":["0"]}}', "cannot be read", id="text for a step"),
        pytest.param("[" * 400, "cannot be read", id="deeply nested"),
        pytest.param('{"concurrent":true}\ud800', "cannot be read", id="lone surrogate"),
        pytest.param(" " * 501, r"custom_data has 501 bytes: at most 500 \(max_custom_data_bytes\)", id="too long"),
        pytest.param('{"orders":{"x":[0]}}', "orders has the key 'x': step numbers are decimal", id="key no number"),
        pytest.param('{"orders":{"-1":[0]}}', "orders has the key '-1'", id="negative key"),
        pytest.param('{"orders":{"²":[0]}}', "orders has the key '²'", id="a digit that is none"),
        pytest.param('{"orders":{"9999999999":[0]}}', "orders has the key '9999999999'", id="very long key"),
        pytest.param('{"orders":{"3":[0]}}', "orders names step 3, but there are 3 steps", id="unknown step"),
        pytest.param('{"orders":{"0":[3]}}', "orders names step 3, but there are 3 steps", id="unknown predecessor"),
        pytest.param('{"orders":{"0":[-1]}}', "orders names step -1", id="negative predecessor"),
        pytest.param(
            '{"orders":{"1":[1]},"concurrent":true}',
            "orders can never be met: step 1 waits for step 1$",
            id="waits for itself",
        ),
        pytest.param(
            '{"orders":{"0":[2],"2":[0]},"concurrent":true}',
            "orders can never be met: step 0 waits for step 2 waits for step 0$",
            id="a ring",
        ),
        pytest.param(
            '{"orders":{"0":[1]}}',
            r"orders can never be met: .*\(a saga that is not concurrent also runs in the order of its steps\)",
            id="against the sequence",
        ),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(custom_data: str, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        build_saga(make_request(3, custom_data=custom_data), LIMITS, now_us=NOON_US)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        pytest.param(make_request(gid=""), "gid is empty", id="no gid"),
        pytest.param(make_request(payloads=()), "payloads has 0 entries for 2 steps", id="no payloads"),
        pytest.param(
            make_request(1, steps=({"action": "p/x"},)),
            "the action URL of branch 01 'p/x' is not a complete",
            id="action URL",
        ),
        pytest.param(
            make_request(1, steps=({"compensate": "p/x"},)), "the compensate URL of branch 01", id="compensate URL"
        ),
        pytest.param(make_request(query_prepared="x"), "query_prepared 'x' is not a complete", id="query_prepared"),
        pytest.param(make_request(protocol="soap"), "protocol 'soap' is not offered", id="protocol"),
        pytest.param(make_request(retry_interval=10**9), "retry_interval is", id="an option"),
    ],
)
def test_what_is_malformed_is_refused(request_: TransRequest, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        build_saga(request_, LIMITS, now_us=NOON_US)


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(RequestTooLargeError):
        build_saga(make_request(3), Limits(max_branches=2), now_us=NOON_US)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["0", "1", "2", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(
    st.text(max_size=30)
    | st.fixed_dictionaries({}, optional={"orders": json_values, "concurrent": st.booleans() | json_values}).map(
        json.dumps
    )
)
def test_whatever_comes_is_refused_or_can_be_run_to_its_end(custom_data: str) -> None:
    try:
        saga = build_saga(make_request(3, custom_data=custom_data), LIMITS, now_us=NOON_US)
    except InvalidRequestError:
        return
    before = predecessors(saga)
    assert not find_cycle(before)
    assert all(0 <= earlier < 3 for step in before for earlier in step)
    assert all(op.status is OpStatus.PREPARED for op in saga.branches)
    assert msgspec.json.encode(saga.options)
