"""What becomes a TCC transaction, and what registering, submitting and aborting do to one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sagas import NOON_US
from tests.tccs import make_tcc, registration
from txcoord.errors import InvalidRequestError, RequestTooLargeError, StatusConflictError, TxcoordError
from txcoord.model import MICROSECONDS, BranchOp, GlobalTransaction, Op, Options, Pattern, Status
from txcoord.request import MAX_BRANCH_ID_LENGTH, Limits, TransRequest
from txcoord.tcc.request import registered
from txcoord.two_phase.request import aborted, build_two_phase, submitted

LIMITS = Limits(max_branches=3, max_payload_bytes=100, max_url_length=60)
LATER_US = NOON_US + 1

OTHERS = [status for status in Status if status is not Status.PREPARED]


def build(**more: object) -> GlobalTransaction:
    fields: dict[str, object] = {"gid": "g1", "trans_type": "tcc"}
    request = TransRequest(**(fields | more))  # type: ignore[arg-type]
    return build_two_phase(
        request, LIMITS, pattern=Pattern.TCC, now_us=NOON_US, status=Status.PREPARED, default_timeout_s=35.0
    )


def prepared(letters: str = "") -> GlobalTransaction:
    return make_tcc(letters, status=Status.PREPARED)


def test_a_prepare_becomes_a_transaction_without_branches() -> None:
    tcc = build(custom_data="x", branch_headers={"a": "b"}, retry_interval=7)

    assert (tcc.gid, tcc.pattern, tcc.status, tcc.branches) == ("g1", Pattern.TCC, Status.PREPARED, ())
    assert (tcc.protocol, tcc.custom_data) == ("http", "x")
    assert tcc.options == Options(branch_headers={"a": "b"}, retry_interval_s=7)
    assert (tcc.created_us, tcc.updated_us) == (NOON_US, NOON_US)


@pytest.mark.parametrize(("timeout", "expected_s"), [(0, 35), (-1, 35), (1, 1), (90, 90)])
def test_it_has_a_deadline_in_any_case(timeout: int, expected_s: int) -> None:
    assert build(timeout_to_fail=timeout).deadline_us == NOON_US + expected_s * MICROSECONDS


def test_steps_and_payloads_are_nothing_to_it() -> None:
    assert build(steps=({"action": "http://x"},), payloads=(b"",)) == build()


@pytest.mark.parametrize("fields", [{"gid": ""}, {"timeout_to_fail": 10**9}, {"branch_headers": {"a b": ""}}])
def test_what_cannot_be_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        build(**fields)


# -- registering ---------------------------------------------------------------------------


def test_a_registration_adds_dtms_two_rows() -> None:
    tcc = registered(prepared(), registration("01"), LIMITS, now_us=LATER_US)
    tcc = registered(tcc, registration("0201", data=b""), LIMITS, now_us=LATER_US)

    assert tcc.branches == (
        BranchOp(branch_id="01", op=Op.CANCEL, url="http://p01/cancel", payload=b'{"amount":30}'),
        BranchOp(branch_id="01", op=Op.CONFIRM, url="http://p01/confirm", payload=b'{"amount":30}'),
        BranchOp(branch_id="0201", op=Op.CANCEL, url="http://p0201/cancel"),
        BranchOp(branch_id="0201", op=Op.CONFIRM, url="http://p0201/confirm"),
    )
    assert tcc.status is Status.PREPARED
    # Each version is later than the one before, also at the same moment.
    assert tcc.updated_us == LATER_US + 1


def test_the_same_again_changes_nothing() -> None:
    tcc = registered(prepared(), registration("01"), LIMITS, now_us=LATER_US)
    tcc = registered(tcc, registration("02"), LIMITS, now_us=LATER_US)

    assert registered(tcc, registration("01"), LIMITS, now_us=LATER_US + 1) is tcc


@pytest.mark.parametrize("other", [{"confirm": "http://o"}, {"cancel": "http://o"}, {"cancel": ""}, {"data": b"o"}])
def test_another_branch_with_the_same_id_is_refused(other: dict[str, object]) -> None:
    tcc = registered(prepared(), registration("01"), LIMITS, now_us=LATER_US)

    with pytest.raises(InvalidRequestError, match="branch 01 of g1 is registered with other URLs or data"):
        registered(tcc, registration("01", **other), LIMITS, now_us=LATER_US)


@pytest.mark.parametrize("status", OTHERS)
@pytest.mark.parametrize("branch_id", ["01", "02"], ids=["the same again", "a new one"])
def test_nothing_is_registered_after_the_decision(status: Status, branch_id: str) -> None:
    tcc = registered(prepared(), registration("01"), LIMITS, now_us=LATER_US).replace(status=status)

    with pytest.raises(StatusConflictError) as refused:
        registered(tcc, registration(branch_id), LIMITS, now_us=LATER_US)

    assert (refused.value.status, refused.value.wanted) == (status, "register")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"branch_id": ""}, "branch_id '' must have 1 to 128 printable characters"),
        ({"branch_id": "0" * (MAX_BRANCH_ID_LENGTH + 1)}, "branch_id"),
        ({"branch_id": "0\n1"}, "branch_id"),
        ({"confirm": "ftp://x"}, "the confirm URL of branch 01 of g1 'ftp://x' is not a complete"),
        ({"cancel": "nonsense"}, "the cancel URL of branch 01 of g1 'nonsense' is not a complete"),
        ({"confirm": "http://x/" + "y" * 60}, "max_url_length"),
        ({"data": b"x" * 101}, "max_payload_bytes"),
    ],
    ids=str,
)
def test_a_branch_that_cannot_be_called_is_refused(fields: dict[str, object], sentence: str) -> None:
    fields = {"branch_id": "01"} | fields

    with pytest.raises((InvalidRequestError, RequestTooLargeError), match=sentence):
        registered(prepared(), registration(**fields), LIMITS, now_us=LATER_US)  # type: ignore[arg-type]


def test_the_number_of_branches_has_a_bound() -> None:
    tcc = prepared("PPPPPP")

    with pytest.raises(RequestTooLargeError, match="max_branches"):
        registered(tcc, registration("04"), LIMITS, now_us=LATER_US)


# -- submitting and aborting ---------------------------------------------------------------


def test_a_submit_decides_forward_and_again_changes_nothing() -> None:
    tcc = submitted(prepared("PPPP"), now_us=LATER_US)

    assert tcc == prepared("PPPP").replace(status=Status.SUBMITTED, updated_us=LATER_US)
    assert submitted(tcc, now_us=LATER_US + 1) is tcc


@pytest.mark.parametrize("status", [Status.ABORTING, Status.SUCCEEDED, Status.FAILED])
def test_a_submit_of_what_was_decided_otherwise_is_refused(status: Status) -> None:
    with pytest.raises(StatusConflictError) as refused:
        submitted(make_tcc(status=status), now_us=LATER_US)

    assert (refused.value.status, refused.value.wanted) == (status, "submit")


def test_an_abort_decides_back_and_again_changes_nothing() -> None:
    tcc = aborted(prepared("PPPP"), "no stock", now_us=LATER_US)

    expected = {"status": Status.ABORTING, "rollback_reason": "no stock", "updated_us": LATER_US}
    assert tcc == prepared("PPPP").replace(**expected)
    assert aborted(tcc, "another reason", now_us=LATER_US + 1) is tcc


@pytest.mark.parametrize("status", [Status.SUBMITTED, Status.SUCCEEDED, Status.FAILED])
def test_an_abort_of_what_was_decided_otherwise_is_refused(status: Status) -> None:
    with pytest.raises(StatusConflictError) as refused:
        aborted(make_tcc(status=status), "", now_us=LATER_US)

    assert (refused.value.status, refused.value.wanted) == (status, "abort")


REQUESTS = st.lists(st.sampled_from(["submit", "abort", "01", "02", "03"]), max_size=12)


@given(REQUESTS)
def test_whatever_is_asked_for_in_whatever_order_there_is_one_decision(asked: list[str]) -> None:
    tcc = prepared()
    accepted: list[str] = []
    for what in asked:
        before = tcc
        try:
            if what == "submit":
                tcc = submitted(tcc, now_us=LATER_US)
            elif what == "abort":
                tcc = aborted(tcc, "", now_us=LATER_US)
            else:
                tcc = registered(tcc, registration(what), LIMITS, now_us=LATER_US)
        except TxcoordError:
            assert tcc is before
        else:
            accepted.append(what)

    decisions = [what for what in accepted if what in ("submit", "abort")]
    assert len(set(decisions)) <= 1, "decided both ways"
    assert (
        tcc.status
        is {"": Status.PREPARED, "submit": Status.SUBMITTED, "abort": Status.ABORTING}[
            decisions[0] if decisions else ""
        ]
    )
    branches = accepted[: accepted.index(decisions[0])] if decisions else accepted
    assert [op.branch_id for op in tcc.branches[::2]] == list(dict.fromkeys(branches)), "each once, in order"


def test_the_data_of_all_branches_together_is_bounded() -> None:
    tcc = prepared()
    small = Limits(max_payload_bytes=10)
    for number in range(4):
        tcc = registered(tcc, registration(f"0{number}", data=b"x" * 10), small, now_us=LATER_US)

    with pytest.raises(RequestTooLargeError, match="would have 41 bytes: at most 4 times max_payload_bytes"):
        registered(tcc, registration("05", data=b"x"), small, now_us=LATER_US)
