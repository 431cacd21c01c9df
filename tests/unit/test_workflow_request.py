"""What becomes a workflow, and what its participant's reports do to one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sagas import NOON_US
from tests.workflows import INTERVAL_S, NAME, RESUME_URL, make_workflow, opening, report, step
from txcoord.errors import InvalidRequestError, RequestTooLargeError, StatusConflictError, TxcoordError
from txcoord.model import MICROSECONDS, BranchOp, GlobalTransaction, Op, OpStatus, Options, Pattern, Status
from txcoord.request import PAYLOADS_AT_MOST, REASON_LENGTH, BranchRegistration, Limits, TransRequest
from txcoord.workflow.request import MAX_NAME_LENGTH, STEP_OPS, build_workflow, ended, name_of, registered

LIMITS = Limits(max_branches=2, max_payload_bytes=100, max_url_length=60, max_custom_data_bytes=1000)
LATER_US = NOON_US + MICROSECONDS


def register(workflow: GlobalTransaction, result: BranchRegistration, limits: Limits = LIMITS) -> GlobalTransaction:
    return registered(workflow, result, limits, now_us=LATER_US, interval_s=INTERVAL_S)


def end(workflow: GlobalTransaction, request: TransRequest) -> GlobalTransaction:
    return ended(workflow, request, LIMITS, now_us=LATER_US)


# -- opening -------------------------------------------------------------------------------


def test_an_opening_becomes_a_workflow_with_the_request_to_resume_it() -> None:
    workflow = make_workflow(branch_headers={"a": "b"}, retry_interval=7)

    assert (workflow.gid, workflow.pattern, workflow.status) == ("g1", Pattern.WORKFLOW, Status.PREPARED)
    assert workflow.branches == (
        BranchOp(branch_id="00", op=Op.RESUME, url=RESUME_URL, payload=b"input", due_us=NOON_US + 7 * MICROSECONDS),
    )
    assert workflow.options == Options(branch_headers={"a": "b"}, retry_interval_s=7)
    assert (workflow.query_prepared, name_of(workflow), workflow.deadline_us) == (RESUME_URL, NAME, None)


@pytest.mark.parametrize(
    ("custom_data", "name", "data"),
    [
        ('{"name":"n","data":"aGk="}', "n", b"hi"),
        ('{"name":"n","data":null}', "n", b""),
        ('{"name":"n"}', "n", b""),
        ('{"name":"n","data":"","more":[1]}', "n", b""),
        ('{"name":"Bestellung/ü ?&=#","data":""}', "Bestellung/ü ?&=#", b""),
        (json.dumps({"name": "n" * MAX_NAME_LENGTH}), "n" * MAX_NAME_LENGTH, b""),
    ],
)
def test_what_custom_data_says(custom_data: str, name: str, data: bytes) -> None:
    workflow = make_workflow(custom_data=custom_data)

    assert (name_of(workflow), workflow.branches[0].payload) == (name, data)


@pytest.mark.parametrize(
    ("custom_data", "sentence"),
    [
        ("", "has no name"),
        ("{}", "has no name"),
        ("null", "has no name"),
        ('{"name":null}', "has no name"),
        ("nonsense", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"name":5}', "cannot be read"),
        ('{"name":"n","data":"not base64"}', "cannot be read"),
        ('{"name":"n","data":"ü"}', "cannot be read"),
        ('{"name":"n","data":[1]}', "cannot be read"),
        ("[" * 100_000, "max_custom_data_bytes"),
        ("[" * 900, "cannot be read"),
        ('{"name":"a\\nb"}', "printable"),
        (json.dumps({"name": "n" * (MAX_NAME_LENGTH + 1)}), "printable"),
        ("\ud800", "cannot be read"),
    ],
    ids=lambda text: text[:30].encode(errors="replace").decode(),
)
def test_custom_data_that_says_nothing_of_use_is_refused(custom_data: str, sentence: str) -> None:
    with pytest.raises((InvalidRequestError, RequestTooLargeError), match=sentence):
        make_workflow(limits=LIMITS, custom_data=custom_data)


@pytest.mark.parametrize("custom_data", ["", "{}", '{"data":"aGk="}'])
def test_one_that_nobody_resumes_needs_no_name(custom_data: str) -> None:
    assert name_of(make_workflow(query_prepared="", custom_data=custom_data)) == ""


@pytest.mark.parametrize(
    "fields",
    [
        {"gid": ""},
        {"query_prepared": "nonsense"},
        {"query_prepared": "http://x/" + "y" * 60},
        {"protocol": "carrier pigeon"},
        {"query_prepared": "localhost:1/no-method", "protocol": "grpc"},
        {"query_prepared": "http://x/?method=go", "protocol": "json-rpc", "data": b"no object"},
        {"retry_interval": 10**9},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        make_workflow(limits=LIMITS, **fields)


# -- steps ---------------------------------------------------------------------------------


def test_results_are_kept_in_the_order_in_which_they_came() -> None:
    workflow = register(make_workflow(), step("01"))
    workflow = register(workflow, step("02", status="failed", data=b"no stock"))
    workflow = register(workflow, step("01", "rollback", data=b""))

    assert workflow.branches[1:] == (
        BranchOp(
            branch_id="01",
            op=Op.ACTION,
            url="",
            payload=b"result of 01",
            status=OpStatus.SUCCEEDED,
            finished_us=LATER_US,
        ),
        BranchOp(
            branch_id="02", op=Op.ACTION, url="", payload=b"no stock", status=OpStatus.FAILED, finished_us=LATER_US
        ),
        BranchOp(branch_id="01", op=Op.ROLLBACK, url="", status=OpStatus.SUCCEEDED, finished_us=LATER_US),
    )
    assert workflow.status is Status.PREPARED
    assert workflow.updated_us == LATER_US + 2, "each version is later than the one before"


@pytest.mark.parametrize("op", STEP_OPS)
@pytest.mark.parametrize("status", ["succeed", "failed"])
def test_the_same_result_again_changes_nothing(op: str, status: str) -> None:
    workflow = register(register(make_workflow(), step("01", op, status=status)), step("02"))

    assert register(workflow, step("01", op, status=status)) is workflow


@pytest.mark.parametrize("other", [{"data": b"other"}, {"data": b""}, {"status": "failed"}])
def test_another_result_of_the_same_step_is_refused_and_the_first_stands(other: dict[str, object]) -> None:
    workflow = register(make_workflow(), step("01"))

    with pytest.raises(InvalidRequestError, match="action of branch 01 of g1 is stored with another result"):
        register(workflow, step("01", **other))
    assert workflow.branches[1].payload == b"result of 01"


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_no_result_comes_after_the_end(status: Status) -> None:
    workflow = register(make_workflow(), step("01")).replace(status=status)

    for branch_id in ("01", "02"):
        with pytest.raises(StatusConflictError) as refused:
            register(workflow, step(branch_id))
        assert refused.value.wanted == "register"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"branch_id": ""}, "branch_id ''"),
        ({"branch_id": "0\n1"}, "branch_id"),
        ({"op": ""}, "op '' of branch 01 of g1: use one of action, commit, rollback, business"),
        ({"op": "resume"}, "op 'resume'"),
        ({"op": "x" * 10_000}, "op 'x"),
        ({"status": ""}, "status of branch 01 of g1 is '': say 'succeed' or 'failed'"),
        ({"status": "prepared"}, "status of branch 01 of g1 is 'prepared'"),
        ({"status": "SUCCEED"}, "status of branch 01"),
        ({"data": b"x" * 101}, "max_payload_bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_result_that_cannot_be_kept_is_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises((InvalidRequestError, RequestTooLargeError), match=sentence):
        register(make_workflow(), step(**fields))  # type: ignore[arg-type]


def test_the_number_of_results_has_a_bound() -> None:
    workflow = make_workflow()
    for number in range(3 * LIMITS.max_branches):
        workflow = register(workflow, step(f"{number:02d}", data=b""))

    with pytest.raises(RequestTooLargeError, match="3 times max_branches"):
        register(workflow, step("99", data=b""))


def test_the_results_of_all_steps_together_have_a_bound() -> None:
    limits = Limits(max_branches=100, max_payload_bytes=100)
    workflow = make_workflow(limits=limits, data=b"")
    for number in range(PAYLOADS_AT_MOST):
        workflow = register(workflow, step(f"{number:02d}", data=b"x" * 100), limits)

    with pytest.raises(RequestTooLargeError, match="the results of all steps of g1 would have 401 bytes"):
        register(workflow, step("99", data=b"x"), limits)


# -- the end -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["succeed", "failed"])
def test_only_its_participant_ends_it(status: str) -> None:
    workflow = end(register(make_workflow(), step("01")), report(status, result=b"out", reason="no stock"))

    assert (workflow.status, workflow.result, workflow.rollback_reason) == (status, "b3V0", "no stock")
    assert (workflow.finished_us, workflow.due_us) == (LATER_US, None)
    assert workflow.branches[1].payload == b"result of 01", "its steps stay"


@pytest.mark.parametrize(("first", "second"), [("succeed", "failed"), ("failed", "succeed")])
def test_an_end_stands(first: str, second: str) -> None:
    workflow = end(make_workflow(), report(first))

    assert end(workflow, report(first)) is workflow
    with pytest.raises(StatusConflictError) as refused:
        end(workflow, report(second))
    assert (refused.value.wanted, refused.value.status) == ("submit", first)


def test_a_long_reason_is_cut() -> None:
    assert end(make_workflow(), report("failed", reason="x" * 10_000)).rollback_reason == "x" * REASON_LENGTH


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({}, "req_extra.status of a workflow's submit is ''"),
        ({"status": "submitted"}, "req_extra.status of a workflow's submit is 'submitted'"),
        ({"status": "succeed", "result": "no base64!"}, "req_extra.result of a workflow's submit is not base64"),
        ({"status": "succeed", "result": "ü"}, "is not base64"),
        ({"status": "succeed", "result": "AAAA" * 101}, "the result of g1 has 404 characters"),
    ],
    ids=str,
)
@pytest.mark.parametrize("status", [Status.PREPARED, Status.SUCCEEDED])
def test_an_end_that_cannot_be_read_is_refused(extra: dict[str, str], sentence: str, status: Status) -> None:
    request = TransRequest(gid="g1", trans_type="workflow", req_extra=extra)

    with pytest.raises((InvalidRequestError, RequestTooLargeError), match=sentence):
        end(make_workflow().replace(status=status), request)


# -- whatever comes in ---------------------------------------------------------------------

_texts = st.text(max_size=20)


@given(custom_data=_texts | st.binary(max_size=30).map(lambda raw: raw.decode("latin-1")), url=_texts, protocol=_texts)
def test_whatever_is_opened_is_a_workflow_or_refused(custom_data: str, url: str, protocol: str) -> None:
    request = opening(custom_data=custom_data, query_prepared=url, protocol=protocol)
    try:
        workflow = build_workflow(request, LIMITS, now_us=NOON_US, interval_s=INTERVAL_S)
    except TxcoordError:
        return
    assert workflow.branches[0].op is Op.RESUME
    assert len(name_of(workflow)) <= MAX_NAME_LENGTH


@given(st.lists(st.tuples(st.sampled_from(["01", "02"]), st.sampled_from(STEP_OPS), st.booleans(), _texts), max_size=8))
def test_whatever_is_reported_the_first_result_of_a_step_stands(reports: list[tuple[str, Op, bool, str]]) -> None:
    limits = Limits()
    workflow, first = make_workflow(), {}
    for branch_id, op, is_success, text in reports:
        said = ("succeed" if is_success else "failed", text.encode(errors="replace"))
        first.setdefault((branch_id, op), said)
        try:
            workflow = register(workflow, step(branch_id, op, status=said[0], data=said[1]), limits)
        except InvalidRequestError:
            assert first[branch_id, op] != said

    assert {(op.branch_id, op.op): (op.status.value, op.payload) for op in workflow.branches[1:]} == first
