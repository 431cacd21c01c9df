"""One line for each change of status and each failed call, and no word of what was sent or answered."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from tests.engine.harness import Cluster
from tests.workflows import opening, report
from txcoord.dispatch.base import CallResult
from txcoord.model import Outcome
from txcoord.request import TransRequest


async def test_statuses_and_failed_calls_are_logged_without_payloads_and_answers(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("02 action", CallResult(outcome=Outcome.FAILURE, code=409, detail="secret answer"))

    with capture_logs() as lines:
        await node.submit("g1")
        await cluster.ended("g1")

    ours = [line for line in lines if line.get("gid") == "g1"]
    assert [line["status"] for line in ours if line["event"] == "status"] == ["submitted", "aborting", "failed"]
    [call] = [line for line in ours if line["event"] == "call"]
    assert (call["branch_id"], call["op"], call["outcome"], call["code"]) == ("02", "action", "failure", 409)
    assert "secret" not in repr(lines)
    assert "amount" not in repr(lines)


async def test_what_an_initiator_or_a_participant_gives_as_a_reason_is_in_the_record_alone(cluster: Cluster) -> None:
    node = await cluster.start_node()
    secret = "card 4111-1111-1111-1111 declined"

    with capture_logs() as lines:
        tcc = TransRequest(gid="t", trans_type="tcc", rollback_reason=secret)
        await node.service.prepare(tcc)
        await node.service.abort(tcc)
        await node.service.prepare_workflow(opening("w"))
        await node.service.submit(report("failed", gid="w", reason=secret))
        for gid in ("t", "w"):
            assert (await cluster.ended(gid)).rollback_reason == secret

    assert [line["status"] for line in lines if line["event"] == "status" and line["gid"] == "w"] == [
        "prepared",
        "failed",
    ]
    assert secret not in repr(lines)


async def test_a_transaction_that_goes_on_at_another_node_is_no_incident(cluster: Cluster) -> None:
    one, other = await cluster.start_node(), await cluster.start_node()
    tcc = TransRequest(gid="t", trans_type="tcc")

    with capture_logs() as lines:
        await one.service.prepare(tcc)
        await other.service.prepare(tcc)
        await other.service.submit(tcc)
        await cluster.ended("t")
        await asyncio.sleep(5.0)

    assert not [line for line in lines if line["log_level"] != "info"]
