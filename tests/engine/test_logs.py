"""One line for each change of status and each failed call, and no word of what was sent or answered."""

from __future__ import annotations

from structlog.testing import capture_logs

from tests.engine.harness import Cluster
from txcoord.dispatch.base import CallResult
from txcoord.model import Outcome


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
