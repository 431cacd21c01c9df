"""DTM's own message tests, as ours, against a running server on every store.

Where DTM's tests turn a cron by hand, these make the message due now (an operator's call),
or give it a short timeout, and wait for its status. Status lists are those of the actions:
P prepared, S succeed, F failed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.e2e.harness import Process
from tests.integration.dtm import Dtm
from tests.integration.scripted import ERROR, ONGOING, Participant, failure

SUCCESS = {"dtm_result": "SUCCESS"}


class Message(Dtm):
    """One message of two actions, `out` and `in`, as a client of DTM writes it."""

    async def post(self, path: str, **changes: Any) -> httpx.Response:
        url = self._participant.url
        body: dict[str, Any] = {
            "trans_type": "msg",
            "steps": [{"action": f"{url}/out"}, {"action": f"{url}/in"}],
            "payloads": ['{"amount":30}', '{"amount":30}'],
            "query_prepared": f"{url}/query",
        }
        return await super().post(path, **(body | changes))

    async def accepted(self, path: str, **changes: Any) -> None:
        answer = await self.post(path, **changes)
        assert (answer.status_code, answer.json()) == (200, SUCCESS)

    async def rows(self) -> str:
        assert {branch["op"] for branch in (await self.query())["branches"]} <= {"action"}
        return await super().rows()


@pytest.fixture
async def dtm(server: Process, participant: Participant) -> AsyncIterator[Message]:
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
        yield Message(http, participant)


async def test_normal(dtm: Message, participant: Participant) -> None:
    await dtm.accepted("prepare")
    assert (await dtm.transaction())["status"] == "prepared"
    await dtm.accepted("submit")
    await dtm.ends("succeed", "SS")
    assert participant.calls(dtm.gid) == ["out", "in"]
    out = next(call for call in participant.received if call.gid == dtm.gid)
    assert (out.method, out.body) == ("POST", b'{"amount":30}')
    assert out.query == {"branch_id": "01", "gid": dtm.gid, "op": "action", "trans_type": "msg"}


async def test_submitted_without_a_prepare(dtm: Message) -> None:
    await dtm.accepted("submit", wait_result=True)
    await dtm.ends("succeed", "SS")


async def test_timeout_success(dtm: Message, participant: Participant) -> None:
    participant.script("query", ONGOING)
    participant.script("in", ONGOING)
    await dtm.accepted("prepare", timeout_to_fail=1, retry_interval=60)
    await participant.called("query", dtm.gid)
    assert (await dtm.transaction())["status"] == "prepared"
    await dtm.cron()
    await participant.called("in", dtm.gid)
    assert (await dtm.transaction())["status"] == "submitted"
    await dtm.cron()
    transaction = await dtm.ends("succeed", "SS")
    assert [attempt["outcome"] for attempt in transaction["check_back"]["attempts"]] == ["ongoing", "success"]
    question = next(call for call in participant.received if call.path == "query")
    assert (question.method, question.body) == ("GET", b"")
    assert question.query == {"branch_id": "00", "gid": dtm.gid, "op": "msg", "trans_type": "msg"}


async def test_timeout_failed(dtm: Message, participant: Participant) -> None:
    participant.script("query", ONGOING, failure("never committed"))
    await dtm.accepted("prepare", timeout_to_fail=1, retry_interval=60)
    await participant.called("query", dtm.gid)
    await dtm.cron()
    transaction = await dtm.ends("failed", "PP")
    assert transaction["rollback_reason"].endswith("/query return failed: never committed FAILURE")
    assert participant.calls(dtm.gid) == ["query", "query"]


async def test_a_check_back_in_error_is_repeated(dtm: Message, participant: Participant) -> None:
    participant.script("query", ERROR)
    await dtm.accepted("prepare", timeout_to_fail=1)
    await dtm.ends("succeed", "SS")
    assert participant.calls(dtm.gid) == ["query", "query", "out", "in"]


async def test_options_timeout(dtm: Message, participant: Participant) -> None:
    await dtm.accepted("prepare", timeout_to_fail=120)
    await dtm.cron()
    await dtm.accepted("prepare")
    assert (await dtm.transaction())["status"] == "prepared"
    assert participant.calls(dtm.gid) == [], "a cron before the deadline asks nobody"
    await dtm.accepted("abort")


async def test_a_prepared_one_without_query_prepared_is_never_submitted(dtm: Message, participant: Participant) -> None:
    await dtm.accepted("prepare", timeout_to_fail=1, query_prepared="")
    async with asyncio.timeout(15):
        while "has no query_prepared" not in (await dtm.transaction()).get("needs_operator", ""):
            await asyncio.sleep(0.02)
    assert participant.calls(dtm.gid) == []
    await dtm.accepted("submit", wait_result=True)
    await dtm.ends("succeed", "SS")


async def test_abnormal(dtm: Message) -> None:
    await dtm.accepted("prepare")
    await dtm.accepted("prepare")
    await dtm.accepted("submit")
    await dtm.ends("succeed", "SS")
    for path, message in [
        ("prepare", "current status 'succeed', cannot prepare. FAILURE"),
        ("submit", "current status 'succeed', cannot sumbmit. FAILURE"),
        ("abort", "trans type: 'msg' current status 'succeed', cannot abort. FAILURE"),
    ]:
        answer = await dtm.post(path)
        assert (answer.status_code, answer.json()) == (409, {"dtm_result": "FAILURE", "message": message})


async def test_abort(dtm: Message, participant: Participant) -> None:
    await dtm.accepted("prepare")
    await dtm.accepted("abort", rollback_reason="no")
    assert (await dtm.ends("failed", "PP"))["rollback_reason"] == "no"
    assert (await dtm.post("submit")).status_code == 409
    assert participant.calls(dtm.gid) == []


async def test_a_submitted_one_cannot_be_aborted(dtm: Message, participant: Participant) -> None:
    gate = participant.hold("out")
    await dtm.accepted("submit")
    await participant.called("out", dtm.gid)
    answer = await dtm.post("abort")
    assert answer.status_code == 409
    assert answer.json()["message"] == "trans type: 'msg' current status 'submitted', cannot abort. FAILURE"
    await dtm.accepted("submit")
    gate.set()
    await dtm.ends("succeed", "SS")
    assert participant.calls(dtm.gid) == ["out", "in"]


async def test_topic_not_found(dtm: Message) -> None:
    for path in ("prepare", "submit"):
        answer = await dtm.post(path, steps=[{"action": "topic://news"}], payloads=["{}"])
        assert answer.status_code == 400
        assert "topic not found" in answer.json()["message"]
    assert (await dtm.query())["transaction"] is None


@pytest.mark.parametrize("prepared", [False, True])
async def test_delay(dtm: Message, participant: Participant, prepared: bool) -> None:
    if prepared:
        await dtm.accepted("prepare")
    answer = await dtm.post("submit", custom_data=json.dumps({"delay": 1000}), wait_result=True)
    assert (answer.status_code, answer.json()["dtm_result"]) == (425, "ONGOING")
    assert await dtm.rows() == "PP"
    assert (await dtm.transaction())["status"] == "submitted"
    assert participant.calls(dtm.gid) == []
    await dtm.cron()
    await dtm.ends("succeed", "SS")


async def test_delay_that_elapses(dtm: Message, participant: Participant) -> None:
    before = time.time()
    await dtm.accepted("submit", custom_data=json.dumps({"delay": 1}))

    await participant.called("out", dtm.gid)

    assert time.time() - before >= 1
    await dtm.ends("succeed", "SS")


async def test_concurrent(dtm: Message, participant: Participant) -> None:
    gates = [participant.hold("out"), participant.hold("in")]
    await dtm.accepted("submit", concurrent=True)
    await participant.called("out", dtm.gid)
    await participant.called("in", dtm.gid)
    for gate in gates:
        gate.set()
    await dtm.ends("succeed", "SS")


@pytest.mark.parametrize("answer", [ONGOING, ERROR, failure("no")])
async def test_whatever_an_action_answers_it_is_repeated(
    dtm: Message, participant: Participant, answer: tuple[int, str]
) -> None:
    participant.script("in", answer)
    submitted = await dtm.post("submit", wait_result=True, retry_interval=60)
    assert (submitted.status_code, submitted.json()["dtm_result"]) == (425, "ONGOING")
    assert (await dtm.transaction())["status"] == "submitted"
    assert await dtm.rows() == "SP"
    await dtm.cron()
    await dtm.ends("succeed", "SS")


async def test_json_rpc_participants(dtm: Message, participant: Participant) -> None:
    steps = [{"action": f"{participant.url}/out"}, {"action": f"{participant.url}/rpc?method=in"}]
    await dtm.accepted("submit", protocol="json-rpc", steps=steps)
    await dtm.ends("succeed", "SS")


async def test_best_effort(dtm: Message, participant: Participant) -> None:
    participant.script("out", ERROR, ERROR)
    await dtm.accepted("prepare")
    await dtm.accepted("submit", custom_data=json.dumps({"max_attempts": 2}))
    transaction = await dtm.ends("failed", "FS")
    assert transaction["rollback_reason"] == "gave up branch 01 (called 2 times in vain)"
    assert participant.calls(dtm.gid) == ["out", "out", "in"]


async def test_best_effort_with_a_deadline(dtm: Message, participant: Participant) -> None:
    participant.script("out", ERROR, ERROR, ERROR, ERROR, ERROR)
    await dtm.accepted("submit", custom_data=json.dumps({"deadline": 1}), retry_interval=60)
    transaction = await dtm.ends("failed", "FS")
    assert transaction["rollback_reason"] == "gave up branch 01 (not done within 1 seconds)"
