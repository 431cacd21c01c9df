"""Workflows by DTM's HTTP API, with the test as their participant, against a running server on every store."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode
from typing import Any

import httpx
import pytest

from tests.integration.allowed import OK, check_refusal, workflow_calls
from tests.integration.dtm import Dtm, seconds_ahead
from tests.integration.scripted import ERROR, ONGOING, SUCCESS, Answer, Participant, Received, failure

NAME = "wf_saga"
INPUT = b'{"a":1}'
SUCCEEDED = {"dtm_result": "SUCCESS"}


class Workflow:
    """One workflow, as a client of DTM runs it."""

    def __init__(self, dtm: Dtm, participant: Participant, path: str = "resume") -> None:
        self.dtm = dtm
        self.gid = dtm.gid
        self.participant = participant
        self._path = path

    def beside(self, path: str) -> Workflow:
        """Another one, resumed at another path."""
        return Workflow(self.dtm.beside(), self.participant, path)

    def resumed(self) -> list[Received]:
        return [call for call in self.participant.received if call.gid == self.gid]

    async def post(self, path: str, **more: Any) -> httpx.Response:
        return await self.dtm.post(path, **({"trans_type": "workflow"} | more))

    def opening(self, data: bytes | None = INPUT) -> dict[str, Any]:
        plan = {"name": NAME, "data": None if data is None else b64encode(data).decode()}
        return {
            "protocol": "http",
            "query_prepared": f"{self.participant.url}/{self._path}",
            "custom_data": json.dumps(plan),
            "concurrent": False,
        }

    async def open(self, *, data: bytes | None = INPUT, **more: Any) -> dict[str, Any]:
        answer = await self.post("prepareWorkflow", **(self.opening(data) | more))
        assert answer.status_code == 200, answer.text
        assert "FAILURE" not in answer.text, "DTM's Go client would take it for an error"
        found: dict[str, Any] = answer.json()
        return found

    async def did(self, branch_id: str, op: str = "action", **more: Any) -> httpx.Response:
        fields = {"branch_id": branch_id, "op": op, "status": "succeed", "data": f"result {branch_id}"}
        return await self.post("registerBranch", **(fields | more))

    async def end(self, status: str = "succeed", *, result: bytes = b"hi", reason: str = "") -> httpx.Response:
        extra = {"status": status, "rollback_reason": reason, "result": b64encode(result).decode()}
        return await self.post("submit", req_extra=extra)


@pytest.fixture
def workflow(dtm: Dtm, participant: Participant) -> Workflow:
    return Workflow(dtm, participant)


def progress(reply: dict[str, Any]) -> list[tuple[str, str, str, bytes]]:
    return [
        (step["branch_id"], step["op"], step["status"], b64decode(step.get("bin_data", "")))
        for step in reply["progresses"]
    ]


# -- its course ----------------------------------------------------------------------------


async def test_normal(workflow: Workflow) -> None:
    opened = await workflow.open()
    assert opened["progresses"] == []
    transaction = opened["transaction"]
    assert {key: transaction[key] for key in ("gid", "trans_type", "status", "protocol", "options", "concurrent")} == {
        "gid": workflow.gid,
        "trans_type": "workflow",
        "status": "prepared",
        "protocol": "http",
        "options": '{"concurrent":false}',
        "concurrent": False,
    }
    assert transaction["query_prepared"].endswith("/resume")
    assert json.loads(transaction["custom_data"])["name"] == NAME
    assert None not in transaction.values(), "a client cannot read a null time"

    assert (await workflow.did("01", data="hello")).json() == SUCCEEDED
    assert (await workflow.did("02", data="")).json() == SUCCEEDED
    assert (await workflow.end()).json() == SUCCEEDED

    transaction = await workflow.dtm.ends("succeed", "SS")
    assert transaction["result"] == "aGk="
    assert transaction["finish_time"]
    assert workflow.participant.received == []


async def test_opened_again_it_says_what_is_stored(workflow: Workflow) -> None:
    await workflow.open()
    await workflow.did("01", data="hello")
    await workflow.did("02", status="failed", data="no stock. FAILURE")
    await workflow.did("01", "rollback", data="")

    found = progress(await workflow.open(data=b"another input"))

    assert found == [
        ("01", "action", "succeed", b"hello"),
        ("02", "action", "failed", b"no stock. FAILURE"),
        ("01", "rollback", "succeed", b""),
    ]


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("succeed", {"result": "aGk=", "finish_time": True}),
        ("failed", {"rollback_reason": "no stock. FAILURE", "rollback_time": True}),
    ],
)
async def test_its_end_is_returned_on_repeat(workflow: Workflow, status: str, shown: dict[str, Any]) -> None:
    await workflow.open()
    await workflow.did("01")
    reason = "no stock. FAILURE" if status == "failed" else ""
    assert (await workflow.end(status, reason=reason)).json() == SUCCEEDED

    again = await workflow.open()

    assert again["transaction"]["status"] == status
    for key, value in shown.items():
        assert again["transaction"][key] if value is True else again["transaction"][key] == value
    assert progress(again) == [("01", "action", "succeed", b"result 01")]


async def test_resume(workflow: Workflow) -> None:
    gate = workflow.participant.hold("resume")
    await workflow.open(retry_interval=1, branch_headers={"x-test": "yes"})
    await workflow.did("01")

    await workflow.participant.called("resume", workflow.gid)

    [call] = workflow.participant.received
    assert (call.method, call.body, call.headers["x-test"]) == ("POST", INPUT, "yes")
    assert call.query == {"branch_id": "00", "gid": workflow.gid, "op": NAME, "trans_type": "workflow"}
    # It goes on where it was, and ends within our call.
    assert progress(await workflow.open()) == [("01", "action", "succeed", b"result 01")]
    assert (await workflow.did("02")).json() == SUCCEEDED
    assert (await workflow.end()).json() == SUCCEEDED
    gate.set()
    await workflow.dtm.ends("succeed", "SS")
    assert workflow.participant.calls(workflow.gid) == ["resume"]


async def test_resume_posts_the_input_whatever_it_is_and_whatever_the_name(workflow: Workflow) -> None:
    # At once, since each of them has to be parked first.
    async def is_resumed(number: int, name: str, data: bytes) -> None:
        one = workflow.beside(f"resume{number}")
        await one.open(custom_data=json.dumps({"name": name, "data": b64encode(data).decode() if data else None}))
        await one.dtm.cron()
        await one.participant.called(f"resume{number}", one.gid)
        [call] = one.resumed()
        assert (call.method, call.body, call.query["op"]) == ("POST", data, name)
        await one.end()

    plans = [(NAME, b""), (NAME, b"\0\xff"), ("Bestellung/ü ?&=#+%41", b"x")]
    await asyncio.gather(*[is_resumed(number, *plan) for number, plan in enumerate(plans)])


async def test_whatever_is_answered_only_its_own_report_ends_it(workflow: Workflow) -> None:
    async def stays_as_it_is(path: str, answer: Answer) -> None:
        one = workflow.beside(path)
        one.participant.script(path, answer)
        await one.open(retry_interval=100)
        await one.did("01")
        await one.dtm.cron()
        await one.participant.called(path, one.gid)

        parked = await one.dtm.parked()

        assert parked["status"] == "prepared"
        assert 70 < seconds_ahead(parked) <= 200
        [attempt] = parked["resume"]["attempts"]
        assert attempt["code"] == answer[0]
        # What its participant has answered does not keep a client from going on.
        assert progress(await one.open()) == [("01", "action", "succeed", b"result 01")]
        await one.end("failed", reason="given up")
        assert (await one.dtm.ends("failed", "S"))["rollback_reason"] == "given up"

    answers = {"success": SUCCESS, "ongoing": ONGOING, "error": ERROR, "failure": failure("FAILURE")}
    await asyncio.gather(*[stays_as_it_is(path, answer) for path, answer in answers.items()])


async def test_a_report_puts_the_next_asking_off(workflow: Workflow) -> None:
    await workflow.open(retry_interval=100)
    await workflow.did("01")

    assert 95 < seconds_ahead(await workflow.dtm.parked()) <= 100
    await workflow.end()


async def test_without_a_url_it_needs_whoever_runs_it(workflow: Workflow) -> None:
    await workflow.open(query_prepared="", custom_data="")
    async with asyncio.timeout(15):
        while "needs_operator" not in (transaction := await workflow.dtm.transaction()):
            await asyncio.sleep(0.05)

    assert "has no query_prepared" in transaction["needs_operator"]
    await workflow.end()
    assert "needs_operator" not in await workflow.dtm.ends("succeed", "")


# -- repeats -------------------------------------------------------------------------------


async def test_a_registration_again_is_the_same_and_another_result_is_refused(workflow: Workflow) -> None:
    await workflow.open()
    answers = [await workflow.did("01") for _ in range(3)]
    assert [answer.json() for answer in answers] == [SUCCEEDED] * 3

    for other in ({"data": "other"}, {"status": "failed"}):
        refused = await workflow.did("01", **other)
        assert refused.status_code == 400
        assert f"action of branch 01 of {workflow.gid} is stored with another result" in refused.json()["message"]

    assert await workflow.dtm.rows() == "S"
    await workflow.end()


async def test_an_end_again_is_the_same_and_another_is_refused(workflow: Workflow) -> None:
    await workflow.open()
    answers = [await workflow.end(result=b"first") for _ in range(3)]
    assert [answer.json() for answer in answers] == [SUCCEEDED] * 3
    assert (await workflow.end(result=b"second")).json() == SUCCEEDED

    refused = await workflow.end("failed")

    assert refused.status_code == 409
    assert refused.json()["message"] == "current status 'succeed', cannot sumbmit. FAILURE"
    assert b64decode((await workflow.dtm.transaction())["result"]) == b"first"


# -- which call is allowed when ------------------------------------------------------------

ALLOWED = workflow_calls()


@pytest.mark.parametrize(
    ("status", "call"), [(status, call) for status, calls in ALLOWED.items() for call in calls], ids=str
)
async def test_which_call_is_allowed_when(workflow: Workflow, status: str, call: str) -> None:
    if status != "none":
        await workflow.open(retry_interval=1000)
        await workflow.did("01")
    if status in ("succeed", "failed"):
        await workflow.end(status)
    verdict = ALLOWED[status][call]
    bodies: dict[str, dict[str, Any]] = {
        "prepareWorkflow": workflow.opening(),
        "prepare": workflow.opening(),
        "submit": {"req_extra": {"status": "succeed"}},
        "registerBranch": {"branch_id": "02", "op": "action", "status": "succeed", "data": "x"},
    }

    answer = await workflow.post(call, **bodies.get(call, {}))

    if verdict != OK:
        check_refusal(answer, verdict, workflow.gid)
    else:
        assert answer.status_code == 200
        assert call == "prepareWorkflow" or answer.json() == SUCCEEDED


# -- what cannot be ------------------------------------------------------------------------

UNOPENABLE: list[dict[str, Any]] = [
    {"custom_data": "nonsense"},
    {"custom_data": "[]"},
    {"custom_data": '{"name":5}'},
    {"custom_data": '{"name":"n","data":"?"}'},
    {"custom_data": ""},
    {"custom_data": '{"name":"' + "n" * 1000 + '"}'},
    {"query_prepared": "nonsense"},
    {"protocol": "carrier pigeon"},
    {"trans_type": "saga"},
    {"trans_type": "nonsense"},
    {"gid": ""},
    {"req_extra": 5},
    {"branch_headers": {"a b": "c"}},
]
UNREADABLE_ENDS: list[dict[str, Any]] = [
    {"req_extra": None},
    {"req_extra": {}},
    {"req_extra": {"status": ""}},
    {"req_extra": {"status": "submitted"}},
    {"req_extra": {"status": "prepared"}},
    {"req_extra": {"status": "SUCCEED"}},
    {"req_extra": {"status": 5}},
    {"req_extra": {"status": None}},
    {"req_extra": []},
    {"req_extra": "succeed"},
    {"req_extra": {"status": "succeed", "result": "no base64!"}},
    {"req_extra": {"status": "succeed", "result": {"a": 1}}},
    {"req_extra": {"status": "succeed"}, "trans_type": "saga"},
    {"req_extra": {"status": "succeed"}, "trans_type": "tcc"},
]
UNKEEPABLE: list[dict[str, Any]] = [
    {"op": ""},
    {"op": "resume"},
    {"op": "try"},
    {"op": 5},
    {"status": ""},
    {"status": "prepared"},
    {"status": None},
    {"branch_id": ""},
    {"branch_id": "0" * 200},
    {"data": 5},
    {"trans_type": "tcc"},
]


async def test_an_opening_that_cannot_be_is_refused_and_stores_nothing(workflow: Workflow) -> None:
    for fields in UNOPENABLE:
        answer = await workflow.post("prepareWorkflow", **(workflow.opening() | fields))

        assert answer.status_code == 400, fields
        assert answer.json()["message"]
        assert (await workflow.dtm.query())["transaction"] is None, fields


async def test_an_end_that_cannot_be_read_is_refused_and_ends_nothing(workflow: Workflow) -> None:
    await workflow.open()
    await workflow.did("01")

    for fields in UNREADABLE_ENDS:
        answer = await workflow.post("submit", **fields)

        assert answer.status_code == 400, fields
        assert (await workflow.dtm.transaction())["status"] == "prepared", fields
    assert (await workflow.end()).json() == SUCCEEDED


async def test_a_result_that_cannot_be_kept_is_refused(workflow: Workflow) -> None:
    await workflow.open()

    for fields in UNKEEPABLE:
        answer = await workflow.did(**({"branch_id": "01"} | fields))

        assert answer.status_code == 400, fields
    assert (await workflow.dtm.query())["branches"] == []
    await workflow.end()
