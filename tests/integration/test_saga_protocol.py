"""DTM's own saga tests, as ours, against a running server on every store.

Where DTM's tests turn a cron by hand, these make the transaction due now (an operator's
call) and wait for its status. Status lists are in the order of the rows: compensate and
action of step 1, then of step 2; P prepared, S succeed, F failed.
"""

from __future__ import annotations

import json

from tests.integration.dtm import Dtm, moment, seconds_ahead
from tests.integration.scripted import ERROR, ONGOING, Participant, failure


def concurrent(**orders: list[int]) -> str:
    return json.dumps(
        {"concurrent": True, "orders": {step.removeprefix("s"): before for step, before in orders.items()}}
    )


async def test_normal(dtm: Dtm, participant: Participant) -> None:
    assert (await dtm.submit()).json() == {"dtm_result": "SUCCESS"}
    transaction = await dtm.ends("succeed", "PSPS")
    assert "rollback_reason" not in transaction
    assert participant.calls(dtm.gid) == ["out", "in"]
    [out, _] = [call for call in participant.received if call.query["gid"] == dtm.gid]
    assert out.method == "POST"
    assert out.body == b'{"amount":30}'
    assert out.query == {"branch_id": "01", "gid": dtm.gid, "op": "action", "trans_type": "saga"}
    assert out.headers["content-type"] == "application/json"


async def test_rollback(dtm: Dtm, participant: Participant) -> None:
    participant.script("in", failure("no such account"))
    await dtm.submit()
    transaction = await dtm.ends("failed", "SSSF")
    expected = f"url:{participant.url}/in return failed: no such account FAILURE"
    assert transaction["rollback_reason"] == expected
    assert participant.calls(dtm.gid) == ["out", "in", "in-revert", "out-revert"]


async def test_ongoing_succeed(dtm: Dtm, participant: Participant) -> None:
    participant.script("out", ONGOING)
    await dtm.submit()
    await participant.called("out", dtm.gid)
    await dtm.cron()
    await dtm.ends("succeed", "PSPS")
    assert participant.calls(dtm.gid) == ["out", "out", "in"]


async def test_failed_with_a_compensation_in_error(dtm: Dtm, participant: Participant) -> None:
    participant.script("in", failure("no"))
    participant.script("out-revert", ERROR)
    await dtm.submit(retry_interval=100)
    await participant.called("out-revert", dtm.gid)
    assert (await dtm.parked())["status"] == "aborting"
    assert await dtm.rows() == "PSSF"
    await dtm.cron()
    await dtm.ends("failed", "SSSF")


async def test_a_compensation_that_answers_failure_is_repeated(dtm: Dtm, participant: Participant) -> None:
    participant.script("in", failure("no"))
    participant.script("out-revert", failure("cannot"))
    await dtm.submit(retry_interval=100)
    await dtm.cron()
    await dtm.ends("failed", "SSSF")
    assert participant.calls(dtm.gid).count("out-revert") == 2


async def test_abnormal_submits_again(dtm: Dtm, participant: Participant) -> None:
    participant.script("out", ONGOING)
    assert (await dtm.submit()).status_code == 200
    await participant.called("out", dtm.gid)
    await dtm.parked()
    # Again while submitted: no second pass, not even with other steps.
    assert (await dtm.submit(steps=[], payloads=[])).json() == {"dtm_result": "SUCCESS"}
    assert participant.calls(dtm.gid) == ["out"]
    await dtm.cron()
    await dtm.ends("succeed", "PSPS")
    again = await dtm.submit()
    assert again.status_code == 409
    assert again.json() == {
        "dtm_result": "FAILURE",
        "message": "current status 'succeed', cannot sumbmit. FAILURE",
    }


async def test_submitted_again_while_it_fails(dtm: Dtm, participant: Participant) -> None:
    participant.script("in", failure("no"))
    await dtm.submit()
    await dtm.ends("failed", "SSSF")
    again = await dtm.submit()
    assert (again.status_code, again.json()["message"]) == (409, "current status 'failed', cannot sumbmit. FAILURE")


async def test_empty_urls(dtm: Dtm, participant: Participant) -> None:
    steps = [{"action": f"{participant.url}/out", "compensate": ""}, {"action": "", "compensate": ""}]
    await dtm.submit(steps=steps)
    await dtm.ends("succeed", "PSPS")
    assert participant.calls(dtm.gid) == ["out"]


async def test_compatible_payload_within_the_step(dtm: Dtm, participant: Participant) -> None:
    url = participant.url
    steps = [
        {"action": f"{url}/{name}", "compensate": f"{url}/{name}-revert", "data": '{"amount":7}'}
        for name in ("out", "in")
    ]
    await dtm.submit(steps=steps, payloads=None)
    await dtm.ends("succeed", "PSPS")
    assert {call.body for call in participant.received if call.query["gid"] == dtm.gid} == {b'{"amount":7}'}


async def test_concurrent_normal(dtm: Dtm) -> None:
    await dtm.submit(custom_data=concurrent())
    await dtm.ends("succeed", "PSPS")


async def test_concurrent_rollback(dtm: Dtm, participant: Participant) -> None:
    participant.script("out", failure("no"))
    participant.script("out-revert", ONGOING)
    await dtm.submit(custom_data=concurrent())
    await participant.called("out-revert", dtm.gid)
    assert (await dtm.parked())["status"] == "aborting"
    await dtm.cron()
    await dtm.ends("failed", "SFSS")


async def test_concurrent_compensation_waits_for_actions_in_flight(dtm: Dtm, participant: Participant) -> None:
    gate = participant.hold("in")
    participant.script("out", failure("no"))
    await dtm.submit(custom_data=concurrent())
    await dtm.reaches("aborting")
    assert sorted(participant.calls(dtm.gid)) == ["in", "out"]
    gate.set()
    await dtm.ends("failed", "SFSS")
    assert sorted(participant.calls(dtm.gid)[2:]) == ["in-revert", "out-revert"]


async def test_concurrent_rollback_order(dtm: Dtm, participant: Participant) -> None:
    participant.script("out", failure("no"))
    await dtm.submit(custom_data=concurrent(s1=[0]))
    await dtm.ends("failed", "SFPP")


async def test_concurrent_rollback_order_2(dtm: Dtm, participant: Participant) -> None:
    participant.script("in", failure("no"))
    await dtm.submit(custom_data=concurrent(s1=[0]))
    await dtm.ends("failed", "SSSF")
    assert participant.calls(dtm.gid) == ["out", "in", "in-revert", "out-revert"]


async def test_concurrent_committed_ongoing(dtm: Dtm, participant: Participant) -> None:
    participant.script("out", ONGOING)
    await dtm.submit(custom_data=concurrent())
    await dtm.parked()
    assert await dtm.rows() == "PPPS"
    await dtm.cron()
    await dtm.ends("succeed", "PSPS")


async def test_retry_interval_after_ongoing(dtm: Dtm, participant: Participant) -> None:
    participant.script("out", ONGOING)
    await dtm.submit(retry_interval=150)
    assert 100 < seconds_ahead(await dtm.parked()) <= 150
    await dtm.cron()
    await dtm.ends("succeed", "PSPS")


async def test_retry_interval_after_an_error(dtm: Dtm, participant: Participant) -> None:
    participant.script("out", ERROR)
    await dtm.submit(retry_interval=150)
    assert 180 < seconds_ahead(await dtm.parked()) <= 300
    await dtm.cron()
    await dtm.ends("succeed", "PSPS")


async def test_timeout_to_fail(dtm: Dtm, participant: Participant) -> None:
    participant.script("out", ONGOING)
    await dtm.submit(timeout_to_fail=1, retry_interval=100)
    transaction = await dtm.ends("failed", "SPPP")
    assert transaction["rollback_reason"] == "Timeout after 1 seconds"
    assert participant.calls(dtm.gid) == ["out", "out-revert"]
    # Exact, not on a polling grid: well under the second after the deadline that a poll may take.
    turned_s = (moment(transaction["rollback_time"]) - moment(transaction["create_time"])).total_seconds()
    assert 1 <= turned_s < 5


async def test_request_timeout_and_wait(dtm: Dtm, participant: Participant) -> None:
    steps = [{"action": f"{participant.url}/out"}]
    answer = await dtm.submit(steps=steps, payloads=["null"], request_timeout=6, wait_result=True)
    assert answer.json() == {"dtm_result": "SUCCESS"}
    await dtm.ends("succeed", "PS")


async def test_a_call_that_exceeds_its_timeout_is_repeated(dtm: Dtm, participant: Participant) -> None:
    gate = participant.hold("out")
    await dtm.submit(request_timeout=1, retry_interval=100)
    await dtm.parked()
    gate.set()
    await dtm.cron()
    await dtm.ends("succeed", "PSPS")
    [first, second] = (await dtm.query())["branches"][1]["attempts"]
    assert (first["outcome"], second["outcome"]) == ("unknown", "success")


async def test_wait_normal(dtm: Dtm) -> None:
    answer = await dtm.submit(wait_result=True)
    assert (answer.status_code, answer.json()) == (200, {"dtm_result": "SUCCESS"})
    assert (await dtm.transaction())["status"] == "succeed"
    assert await dtm.rows() == "PSPS"


async def test_wait_ongoing(dtm: Dtm, participant: Participant) -> None:
    participant.script("out", ONGOING)
    answer = await dtm.submit(wait_result=True)
    assert answer.status_code == 425
    assert answer.json()["dtm_result"] == "ONGOING"
    assert await dtm.rows() == "PPPP"
    await dtm.cron()
    await dtm.ends("succeed", "PSPS")


async def test_wait_rollback(dtm: Dtm, participant: Participant) -> None:
    participant.script("in", failure("no money"))
    answer = await dtm.submit(wait_result=True)
    assert answer.status_code == 409
    assert answer.json()["dtm_result"] == "FAILURE"
    assert "no money" in answer.json()["message"]
    assert answer.json()["message"].count("FAILURE") == 1
    await dtm.ends("failed", "SSSF")


async def test_headers(dtm: Dtm, participant: Participant) -> None:
    participant.script("out", ONGOING)
    await dtm.submit(branch_headers={"x-test": "yes", "Authorization": "Bearer t"})
    await dtm.cron()
    await dtm.ends("succeed", "PSPS")
    seen = [call.headers for call in participant.received if call.query["gid"] == dtm.gid]
    assert len(seen) == 3
    assert all((headers["x-test"], headers["authorization"]) == ("yes", "Bearer t") for headers in seen)


async def test_retry_limit_not_reached(dtm: Dtm, participant: Participant) -> None:
    participant.script("in", ERROR, ERROR, ERROR)
    await dtm.submit(retry_limit=3)
    await dtm.ends("succeed", "PSPS")


async def test_retry_limit_exceeded(dtm: Dtm, participant: Participant) -> None:
    participant.script("in", ERROR, ERROR)
    await dtm.submit(retry_limit=1)
    transaction = await dtm.ends("failed", "SSSP")
    assert transaction["rollback_reason"] == "RetryCount is greater than RetryLimit, RetryLimit: 1"
    assert participant.calls(dtm.gid) == ["out", "in", "in", "in-revert", "out-revert"]


async def test_force_stop_calls_nothing_more(dtm: Dtm, participant: Participant) -> None:
    gate = participant.hold("out")
    await dtm.submit()
    await participant.called("out", dtm.gid)
    assert (await dtm.post("forceStop")).json() == {"dtm_result": "SUCCESS"}
    gate.set()
    await dtm.ends("failed", "PPPP")
    again = await dtm.post("forceStop")
    assert again.status_code == 409
    assert again.json()["message"] == "global transaction force stop error. status: failed. error: FAILURE"
    assert participant.calls(dtm.gid) == ["out"]
