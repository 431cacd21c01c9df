"""What a saga sends, and what it refuses at the line that is wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pydantic
import pytest

from txcoord.model import Pattern
from txcoord.request import Limits, TransRequest
from txcoord.saga.request import build_saga
from txcoord_sdk import (
    Attempt,
    Branch,
    CoordinatorUnreachableError,
    Op,
    Outcome,
    RequestRefusedError,
    Saga,
    Status,
    Step,
    Transaction,
    TransactionFailedError,
    TransactionNotFoundError,
    TransactionRunningError,
    TryFailedError,
    TxcoordSdkError,
    new_gid,
)
from txcoord_sdk._checks import json_body
from txcoord_sdk._rules import Filter

URL = "http://storage/deduct"


def sent(saga: Saga) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(json_body(saga.request()))
    return body


def test_a_saga_makes_its_own_gid() -> None:
    gids = [Saga().gid for _ in range(100)]

    assert len(set(gids)) == 100
    assert {len(gid) for gid in gids} == {22}


def test_gids_sort_by_the_time_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def made_at(seconds: int) -> str:
        monkeypatch.setattr("time.time_ns", lambda: seconds * 10**9)
        return new_gid()

    assert made_at(1_700_000_000) < made_at(1_700_000_001) < made_at(1_800_000_000)


def test_steps_of_a_graph_become_orders() -> None:
    saga = Saga(concurrent=True)
    order = saga.step("http://order/create")
    stock = saga.step(URL, after=[order])
    payment = saga.step("http://payment/charge", after=[order])
    saga.step("http://mail/send", after=[payment, stock, stock])

    body = sent(saga)

    assert body["concurrent"] is True
    assert json.loads(body["custom_data"]) == {"orders": {"1": [0], "2": [0], "3": [1, 2]}, "concurrent": True}


def test_a_saga_in_sequence_carries_no_orders() -> None:
    saga = Saga()
    saga.step(URL)

    assert sent(saga).keys() == {"gid", "trans_type", "steps", "payloads"}


def test_options_are_sent_as_the_wire_names_them() -> None:
    saga = Saga(
        "order-7",
        wait_result=True,
        timeout_to_fail=timedelta(minutes=2),
        request_timeout=5,
        retry_interval=1,
        retry_limit=3,
        branch_headers={"Authorization": "Bearer x"},
    )
    saga.step("http://order/create", "http://order/undo", {"id": 3})

    assert sent(saga) == {
        "gid": "order-7",
        "trans_type": "saga",
        "steps": [{"action": "http://order/create", "compensate": "http://order/undo"}],
        "payloads": ['{"id":3}'],
        "wait_result": True,
        "timeout_to_fail": 120,
        "request_timeout": 5,
        "retry_interval": 1,
        "retry_limit": 3,
        "branch_headers": {"Authorization": "Bearer x"},
    }


def test_the_coordinator_accepts_what_a_saga_sends() -> None:
    saga = Saga(concurrent=True, timeout_to_fail=60)
    saga.step(URL, "http://storage/undo", "{}", after=[saga.step("http://order/create")])
    body = sent(saga)
    body["payloads"] = tuple(payload.encode() for payload in body["payloads"])
    body["steps"] = tuple(body["steps"])

    stored = build_saga(TransRequest(**body), Limits(), now_us=0)

    assert (stored.gid, stored.pattern, len(stored.branches)) == (saga.gid, Pattern.SAGA, 4)
    assert stored.options.orders == {1: (0,)}
    assert stored.branches[3].branch_id == saga.steps[1].branch_id == "02"


@dataclass
class Deduct:
    id: int
    price: Decimal


class DeductModel(pydantic.BaseModel):
    id: int
    at: datetime


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        pytest.param({"id": 3, "name": "Käse"}, '{"id":3,"name":"Käse"}', id="dict"),
        pytest.param([1, True], "[1,true]", id="list"),
        pytest.param(None, "null", id="nothing"),
        pytest.param(0, "0", id="zero"),
        pytest.param("as it is", "as it is", id="str"),
        pytest.param("", "", id="empty str"),
        pytest.param(b'{"a": 1}', '{"a": 1}', id="bytes"),
        pytest.param(Deduct(3, Decimal("9.90")), '{"id":3,"price":"9.90"}', id="dataclass"),
        pytest.param(
            {"inner": DeductModel(id=3, at=datetime(2025, 1, 2, tzinfo=UTC))},
            '{"inner":{"id":3,"at":"2025-01-02T00:00:00Z"}}',
            id="pydantic",
        ),
    ],
)
def test_a_payload_becomes_the_exact_body_of_the_calls(payload: object, body: str) -> None:
    saga = Saga()
    saga.step(URL, payload=payload)

    assert sent(saga)["payloads"] == [body]


def submitted_saga() -> Saga:
    saga = Saga("g1")
    saga.step(URL)
    saga.request()
    return saga


def foreign_step() -> Step:
    return Saga("g1", concurrent=True).step(URL)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        pytest.param(lambda: Saga(""), "gid is empty", id="empty gid"),
        pytest.param(lambda: Saga("x" * 129), "at most 128", id="long gid"),
        pytest.param(lambda: Saga("a;b"), "semicolon", id="semicolon in the gid"),
        pytest.param(lambda: Saga("a\nb"), "control characters", id="line break in the gid"),
        pytest.param(lambda: Saga(timeout_to_fail=0), "timeout_to_fail must be a whole number", id="no time"),
        pytest.param(lambda: Saga(request_timeout=1.5), "request_timeout must be a whole number", id="half a second"),
        pytest.param(lambda: Saga(retry_interval=timedelta(seconds=-1)), "retry_interval must be", id="backwards"),
        pytest.param(lambda: Saga(retry_interval=float("inf")), "retry_interval must be a finite", id="infinity"),
        pytest.param(lambda: Saga(retry_limit=0), "retry_limit must be 1 or more", id="no retries"),
        pytest.param(lambda: Saga(branch_headers={"A B": "c"}), "not a header name", id="header name"),
        pytest.param(lambda: Saga(branch_headers={"A": "b\r\nC: d"}), "header cannot carry", id="header value"),
        pytest.param(lambda: Saga().request(), "has no steps", id="no steps"),
        pytest.param(lambda: Saga().step("storage/deduct"), "action_url", id="no scheme"),
        pytest.param(lambda: Saga().step(URL, "http://"), "compensate_url", id="no host"),
        pytest.param(lambda: Saga().step("http://[x"), "its IPv6 address is malformed", id="broken URL"),
        pytest.param(lambda: Saga().step(URL, payload=object()), "object has no form in JSON", id="object payload"),
        pytest.param(lambda: Saga().step(URL, after=[foreign_step()]), "concurrent=True", id="order in a sequence"),
        pytest.param(
            lambda: Saga("g1", concurrent=True).step(URL, after=[foreign_step()]),
            "steps of this saga",
            id="foreign step",
        ),
        pytest.param(lambda: submitted_saga().step(URL), "has been submitted", id="step after the submit"),
        pytest.param(lambda: Filter(page_size=0), "page_size must be 1 or more", id="empty pages"),
        pytest.param(lambda: Filter(created_from=datetime(2025, 1, 1)), "time zone", id="no time zone"),
    ],
)
def test_a_mistake_is_named_where_it_is_made(mistake: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mistake()


def test_a_saga_may_be_submitted_again_as_it_is() -> None:
    saga = submitted_saga()

    assert saga.request() == saga.request()
    assert repr(saga) == "<Saga g1: 1 steps>"


def test_a_transaction_says_what_holds_it_up() -> None:
    at = datetime(2025, 1, 2, tzinfo=UTC)
    late, success = Attempt(at=at, outcome=Outcome.ONGOING), Attempt(at=at, outcome=Outcome.SUCCESS, code=200)
    called = Branch(branch_id="01", op=Op.ACTION, attempts=(late, success))
    waiting = Branch(branch_id="02", op=Op.ACTION, attempts=(late,))
    found = Transaction(gid="g1", pattern=Pattern.SAGA, status=Status.SUBMITTED, branches=(called, waiting))

    assert found.waiting_for == "action of branch 02 answered ongoing"
    with pytest.raises(TransactionRunningError, match="branch 02 answered ongoing"):
        found.raise_for_status()


def test_a_branch_that_a_transaction_has_not_is_named() -> None:
    found = Transaction(gid="g1", pattern=Pattern.SAGA, status=Status.SUBMITTED)

    with pytest.raises(KeyError, match="g1 has no action of branch 03"):
        found.branch("03")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (TransactionFailedError("g1", Status.FAILED, "no stock"), "global transaction g1 failed: no stock"),
        (TransactionFailedError("g1", Status.ABORTING, "no stock"), "g1 did not succeed and is being undone: no stock"),
        (TransactionRunningError("g1", Status.SUBMITTED, "busy"), "g1 is still submitted (busy): wait for it"),
        (CoordinatorUnreachableError("g1", None, "refused"), "cannot be reached about g1: refused; the request may"),
        (CoordinatorUnreachableError("", None, "refused"), "the coordinator cannot be reached: refused"),
        (RequestRefusedError("g1", None, "too long"), "refused the request about g1: too long"),
        (RequestRefusedError("", None, "limit"), "the coordinator refused the request: limit"),
        (TransactionNotFoundError("g1", None, "not here"), "refused the request about g1: not here"),
        (TxcoordSdkError("g1", None, "?"), "g1: ?"),
    ],
)
def test_errors_say_what_happened_and_survive_pickling(error: TxcoordSdkError, sentence: str) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert sentence in str(copy)
    assert (type(copy), copy.gid, copy.status, copy.reason) == (type(error), error.gid, error.status, error.reason)


def test_the_four_errors_are_told_apart() -> None:
    kinds = [TransactionFailedError, TransactionRunningError, CoordinatorUnreachableError, RequestRefusedError]

    assert all(issubclass(kind, TxcoordSdkError) for kind in kinds)
    assert not any(issubclass(one, other) for one in kinds for other in kinds if one is not other)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('{"dtm_result":"FAILURE","message":"no stock"}', "no stock"),
        ('{"message":"no\\nstock","dtm_result":"FAILURE"}', "no\nstock"),
        ('{"dtm_result":"FAILURE"}', ""),
        ('{"message":7}', ""),
        ('{"message":"a piece of', ""),
        ("no stock ", "no stock"),
        ("<html>409</html>", ""),
        ("", ""),
    ],
)
def test_a_user_is_told_what_the_participant_said(answer: str, message: str) -> None:
    reason = f"url:http://storage/deduct return failed: {answer} FAILURE"
    assert TransactionFailedError("g1", Status.FAILED, reason).message == message
    assert TryFailedError("g1", Status.ABORTING, answer, "01", "http://s/", Outcome.FAILURE).message == message
    assert TryFailedError("g1", Status.ABORTING, answer, "01", "http://s/", Outcome.UNKNOWN).message == ""


@pytest.mark.parametrize("reason", ["Timeout after 60 seconds", "stopped by an operator (forceStop)", ""])
def test_where_nobody_refused_there_is_nothing_that_a_participant_said(reason: str) -> None:
    assert TransactionFailedError("g1", Status.FAILED, reason).message == ""
