"""What becomes an XA branch. What XA shares with TCC is in `test_tcc_request`."""

from __future__ import annotations

import pytest

from tests.sagas import NOON_US
from tests.xas import make_xa, registration
from txcoord.errors import InvalidRequestError, RequestTooLargeError, StatusConflictError
from txcoord.model import BranchOp, Op, Pattern, Status
from txcoord.patterns import aborted
from txcoord.request import Limits, TransRequest
from txcoord.two_phase.request import build_two_phase
from txcoord.xa.request import registered

LIMITS = Limits(max_branches=2, max_url_length=60, max_custom_data_bytes=10)
PREPARED = make_xa("", status=Status.PREPARED)


def test_a_registration_adds_dtms_two_rows_without_a_body() -> None:
    xa = registered(PREPARED, registration("01", data=b"of no use"), LIMITS, now_us=NOON_US + 1)

    assert xa.branches == (
        BranchOp(branch_id="01", op=Op.ROLLBACK, url="http://p01"),
        BranchOp(branch_id="01", op=Op.COMMIT, url="http://p01"),
    )
    assert (xa.status, xa.updated_us) == (Status.PREPARED, NOON_US + 1)


def test_the_same_again_changes_nothing_and_another_url_is_refused() -> None:
    xa = registered(PREPARED, registration("01"), LIMITS, now_us=NOON_US + 1)

    assert registered(xa, registration("01"), LIMITS, now_us=NOON_US + 2) is xa
    with pytest.raises(InvalidRequestError, match="branch 01 of g1 is registered with other URLs"):
        registered(xa, registration("01", url="http://other"), LIMITS, now_us=NOON_US + 2)


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PREPARED])
def test_nothing_is_registered_after_the_decision(status: Status) -> None:
    # A participant that is refused here has not prepared yet, and can roll back by itself.
    with pytest.raises(StatusConflictError) as refused:
        registered(make_xa("PP", status=status), registration("02"), LIMITS, now_us=NOON_US)

    assert refused.value.wanted == "register"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"branch_id": ""}, "branch_id ''"),
        ({"url": ""}, "url of branch 01 of g1 is empty: name where its commit or rollback is to be sent"),
        ({"url": "nonsense"}, "url of branch 01 of g1 'nonsense' is not a complete"),
        ({"url": "http://x/" + "y" * 60}, "max_url_length"),
    ],
    ids=str,
)
def test_a_branch_that_could_never_be_ended_is_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        registered(PREPARED, registration(**({"branch_id": "01"} | fields)), LIMITS, now_us=NOON_US)  # type: ignore[arg-type]


def test_the_number_of_branches_has_a_bound() -> None:
    with pytest.raises(RequestTooLargeError, match="max_branches"):
        registered(make_xa("PPPP", status=Status.PREPARED), registration("03"), LIMITS, now_us=NOON_US)


def test_what_custom_data_holds_has_a_bound() -> None:
    request = TransRequest(gid="g1", trans_type="xa", custom_data="x" * 11)

    with pytest.raises(RequestTooLargeError, match="max_custom_data_bytes"):
        build_two_phase(
            request, LIMITS, pattern=Pattern.XA, now_us=NOON_US, status=Status.PREPARED, default_timeout_s=35.0
        )


def test_it_is_aborted_like_a_tcc() -> None:
    assert aborted(make_xa(status=Status.PREPARED), "no", now_us=NOON_US + 1).status is Status.ABORTING
    with pytest.raises(StatusConflictError):
        aborted(make_xa(status=Status.SUBMITTED), "no", now_us=NOON_US + 1)
