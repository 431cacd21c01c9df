"""What becomes a message, and what submitting and aborting do to one."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.msgs import QUERY_PREPARED, make_msg, msg_request
from tests.sagas import NOON_US
from txcoord.errors import InvalidRequestError, RequestTooLargeError, StatusConflictError
from txcoord.model import MICROSECONDS, BranchOp, GlobalTransaction, Op, OpStatus, Options, Pattern, Status
from txcoord.msg.request import aborted, build_msg, submitted
from txcoord.request import Limits

LIMITS = Limits(max_branches=3, max_payload_bytes=100, max_url_length=60, max_custom_data_bytes=200, max_timeout_s=1000)
LATER_US = NOON_US + 1


def build(status: Status = Status.PREPARED, **more: object) -> GlobalTransaction:
    return build_msg(msg_request(**more), LIMITS, now_us=NOON_US, status=status, default_timeout_s=35.0)  # type: ignore[arg-type]


def test_a_prepare_becomes_the_actions_and_the_check_back() -> None:
    msg = build(concurrent=True, custom_data='{"other":1}')

    assert (msg.gid, msg.pattern, msg.status, msg.query_prepared) == (
        "g1",
        Pattern.MSG,
        Status.PREPARED,
        QUERY_PREPARED,
    )
    assert msg.branches == (
        BranchOp(branch_id="01", op=Op.ACTION, url="http://p/0", payload=b"{}"),
        BranchOp(branch_id="02", op=Op.ACTION, url="http://p/1", payload=b"{}"),
        BranchOp(branch_id="00", op=Op.MSG, url=QUERY_PREPARED),
    )
    assert (msg.options, msg.custom_data) == (Options(concurrent=True), '{"other":1}')
    assert [op.op for op in build(query_prepared="").branches] == [Op.ACTION, Op.ACTION]


@pytest.mark.parametrize(("timeout", "expected_s"), [(0, 35), (-1, 35), (1, 1), (90, 90)])
def test_it_has_a_deadline_in_any_case(timeout: int, expected_s: int) -> None:
    assert build(timeout_to_fail=timeout).deadline_us == NOON_US + expected_s * MICROSECONDS


@pytest.mark.parametrize(
    ("custom_data", "expected"),
    [
        ("", Options()),
        ("null", Options()),
        ("{}", Options()),
        ('{"delay":null,"max_attempts":null,"deadline":null}', Options()),
        ('{"delay":-1,"max_attempts":-1,"deadline":-1}', Options()),
        ('{"delay":10}', Options(delay_us=10_000_000)),
        ('{"concurrent":true}', Options(concurrent=True)),
        ('{"concurrent":null}', Options()),
        ('{"delay":0.5}', Options(delay_us=500_000)),
        ('{"max_attempts":3}', Options(max_attempts=3)),
        ('{"deadline":60}', Options(give_up_after_us=60_000_000)),
        ('{"deadline":1e-9}', Options(give_up_after_us=1)),
    ],
)
def test_how_to_deliver(custom_data: str, expected: Options) -> None:
    assert build(custom_data=custom_data).options == expected


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"gid": ""}, "gid is empty"),
        ({"steps": ({"action": "topic://news"},)}, "topic not found: 'news'"),
        ({"steps": ({"action": "ftp://x"},)}, "the action URL of branch 01"),
        ({"query_prepared": "nonsense"}, "query_prepared"),
        ({"payloads": ()}, "payloads has 0 entries for 2 steps"),
        (
            {"protocol": "json-rpc", "steps": ({"action": "http://x/?method=m"},), "payloads": (b"1",)},
            "payload of branch",
        ),
        ({"custom_data": "[]"}, "custom_data of a msg cannot be read"),
        ({"custom_data": "no JSON"}, "custom_data of a msg cannot be read"),
        ({"custom_data": '{"delay":"10"}'}, "custom_data of a msg cannot be read"),
        ({"custom_data": '{"concurrent":1}'}, "custom_data of a msg cannot be read"),
        ({"custom_data": '{"delay":true}'}, "custom_data of a msg cannot be read"),
        ({"custom_data": '{"max_attempts":1.5}'}, "custom_data of a msg cannot be read"),
        ({"custom_data": '{"delay":1001}'}, "delay in custom_data is 1001 seconds: at most 1000"),
        ({"custom_data": '{"deadline":1e300}'}, "deadline in custom_data"),
        ({"custom_data": " " * 201}, "max_custom_data_bytes"),
        ({"timeout_to_fail": 1001}, "timeout_to_fail"),
    ],
)
@pytest.mark.parametrize("status", [Status.PREPARED, Status.SUBMITTED])
def test_what_cannot_be_is_refused(fields: dict[str, object], sentence: str, status: Status) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        build(status, **fields)


def test_what_is_too_large_is_refused() -> None:
    with pytest.raises(RequestTooLargeError, match="max_branches"):
        build(count=4)


@given(custom_data=st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_any_custom_data_is_read_or_refused(custom_data: str) -> None:
    with suppress(InvalidRequestError):
        assert build(custom_data=custom_data).custom_data == custom_data


# -- submit and abort ----------------------------------------------------------------------


@pytest.mark.parametrize("status", Status)
def test_submit(status: Status) -> None:
    msg = make_msg(status=status)
    if status is Status.PREPARED:
        forward = submitted(msg, build(), now_us=LATER_US)
        assert forward == msg.replace(status=Status.SUBMITTED, updated_us=LATER_US)
        assert forward.branches is msg.branches, "nothing that would have to be written again"
        assert forward.options is msg.options
    elif status is Status.SUBMITTED:
        assert submitted(msg, build(custom_data='{"delay":9}'), now_us=LATER_US) is msg
    else:
        with pytest.raises(StatusConflictError) as caught:
            submitted(msg, build(), now_us=LATER_US)
        assert (caught.value.wanted, caught.value.status) == ("submit", status)


def test_the_submit_says_how_to_deliver_and_the_prepare_what() -> None:
    msg = build(timeout_to_fail=9, custom_data='{"max_attempts":3}')
    wish = build(count=1, concurrent=True, custom_data='{"delay":2,"deadline":8}')

    forward = submitted(msg, wish, now_us=LATER_US)

    assert [op.url for op in forward.branches] == ["http://p/0", "http://p/1", QUERY_PREPARED]
    assert [op.due_us for op in forward.branches] == [LATER_US + 2_000_000] * 2 + [0]
    assert forward.custom_data == wish.custom_data
    assert forward.options == Options(
        timeout_to_fail_s=9, delay_us=2_000_000, give_up_after_us=8_000_000, give_up_at_us=LATER_US + 10_000_000
    )


@pytest.mark.parametrize(
    ("prepared", "said", "is_concurrent"),
    [(False, '{"concurrent":true}', True), (True, '{"concurrent":false}', False), (True, '{"delay":1}', True)],
)
def test_the_submit_may_say_whether_all_at_once(prepared: bool, said: str, is_concurrent: bool) -> None:
    forward = submitted(build(concurrent=prepared), build(custom_data=said), now_us=LATER_US)

    assert forward.options.concurrent is is_concurrent


def test_what_the_prepare_said_holds_if_the_submit_says_nothing() -> None:
    forward = submitted(build(custom_data='{"delay":2}'), build(), now_us=LATER_US)

    assert forward.branches[0].due_us == LATER_US + 2_000_000
    assert forward.custom_data == '{"delay":2}'


def test_without_a_prepare_the_delay_counts_from_the_submit_and_the_deadline_from_its_end() -> None:
    msg = build(Status.SUBMITTED, custom_data='{"delay":2,"deadline":8}')

    assert msg.status is Status.SUBMITTED
    assert [op.due_us for op in msg.branches] == [NOON_US + 2_000_000] * 2 + [0]
    assert msg.options.give_up_at_us == NOON_US + 10_000_000


@pytest.mark.parametrize("status", Status)
def test_abort(status: Status) -> None:
    msg = make_msg(status=status)
    if status is Status.PREPARED:
        failed = aborted(msg, "no", now_us=LATER_US)
        assert (failed.status, failed.rollback_reason, failed.finished_us) == (Status.FAILED, "no", LATER_US)
        assert {op.status for op in failed.branches} == {OpStatus.PREPARED}
    else:
        with pytest.raises(StatusConflictError) as caught:
            aborted(msg, "no", now_us=LATER_US)
        assert (caught.value.wanted, caught.value.status) == ("abort", status)
