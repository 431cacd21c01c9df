"""What people are told of, as the engine drives transactions of each pattern."""

from __future__ import annotations

import asyncio

import pytest

from tests.engine.harness import FAILURE, ONGOING, SUCCESS, UNKNOWN, Cluster, Node, saga_request, settle
from tests.msgs import QUERY_PREPARED, msg_request
from txcoord.alert import Alert
from txcoord.model import NEVER_US, Status
from txcoord.request import BranchRegistration, TransRequest
from txcoord.two_phase.decide import MOST_REFUSALS


def counts(cluster: Cluster) -> list[int]:
    return [alert.retry_count for alert in cluster.alerts]


async def test_an_action_that_fails_again_and_again(cluster: Cluster, node: Node) -> None:
    cluster.participants.script("01 action", *[UNKNOWN] * 4)

    await node.service.submit(saga_request())
    await cluster.ended()

    assert counts(cluster) == [3, 4]
    assert cluster.alerts[0] == Alert(
        gid="g1", status="submitted", branch=cluster.alerts[0].branch, error="broken", retry_count=3
    )
    assert cluster.participants.requests[0].url == cluster.alerts[0].branch


async def test_an_answer_between_them_begins_the_count_anew(cluster: Cluster, node: Node) -> None:
    cluster.participants.script("01 action", UNKNOWN, UNKNOWN, ONGOING, UNKNOWN, UNKNOWN)

    await node.service.submit(saga_request())
    await cluster.ended()

    assert not cluster.alerts


async def test_parallel_failures_do_not_add_up(cluster: Cluster, node: Node) -> None:
    for branch in ("01", "02", "03"):
        cluster.participants.script(f"{branch} action", UNKNOWN, UNKNOWN)

    await node.service.submit(saga_request(count=3, custom_data='{"concurrent":true}'))
    await cluster.ended()

    assert not cluster.alerts


async def test_the_limit_is_a_setting(cluster: Cluster) -> None:
    node = await cluster.start_node(alert_retry_limit=1)
    cluster.participants.script("01 action", UNKNOWN)

    await node.service.submit(saga_request())
    await cluster.ended()

    assert counts(cluster) == [1]


async def test_a_confirm_that_is_refused_until_an_operator_is_needed(cluster: Cluster, node: Node) -> None:
    cluster.participants.always("01 confirm", FAILURE)
    await node.service.prepare(TransRequest(gid="g1", trans_type="tcc"))
    await node.service.register_branch(
        BranchRegistration(gid="g1", trans_type="tcc", branch_id="01", confirm="http://p/c", cancel="http://p/c")
    )

    await node.service.submit(TransRequest(gid="g1", trans_type="tcc"))
    await cluster.store.wait_until(lambda stored: stored.tx.due_us == NEVER_US, "g1", within_s=10_000)
    await settle()

    *calls, last = cluster.alerts
    assert [alert.retry_count for alert in calls] == list(range(3, MOST_REFUSALS + 1))
    assert last == Alert(
        gid="g1",
        status="submitted",
        branch="http://p/c",
        error=f"needs an operator: confirm of branch 01 answered failure {MOST_REFUSALS} times: no stock",
        retry_count=MOST_REFUSALS,
    )


async def test_a_check_back_without_an_answer(cluster: Cluster, node: Node) -> None:
    cluster.participants.script("00 msg", *[UNKNOWN] * 3)

    await node.service.prepare(msg_request())
    await cluster.ended()

    assert [(alert.status, alert.branch, alert.retry_count) for alert in cluster.alerts] == [
        ("prepared", QUERY_PREPARED, 3)
    ]


async def test_a_message_that_nobody_can_be_asked_about(cluster: Cluster, node: Node) -> None:
    await node.service.prepare(msg_request(query_prepared=""))
    await cluster.store.wait_until(lambda stored: stored.tx.due_us == NEVER_US, "g1", within_s=100)
    await settle()

    [alert] = cluster.alerts
    assert (alert.gid, alert.branch, alert.retry_count) == ("g1", "", 0)
    assert "needs an operator: g1 has no query_prepared" in alert.error


@pytest.mark.parametrize("answer", [UNKNOWN, SUCCESS], ids=["unknown", "success although it has not ended"])
async def test_a_workflow_that_does_not_get_on(cluster: Cluster, node: Node, answer: object) -> None:
    cluster.participants.always("00 transfer", answer)  # type: ignore[arg-type]
    request = TransRequest(
        gid="g1", trans_type="workflow", custom_data='{"name":"transfer"}', query_prepared="http://p/resume"
    )
    await node.service.prepare_workflow(request)
    await cluster.store.wait_until(lambda stored: stored.tx.branches[0].failures == 3, "g1", within_s=1000)

    [alert] = cluster.alerts
    assert (alert.status, alert.branch, alert.retry_count) == (Status.PREPARED, "http://p/resume", 3)


async def test_a_workflow_that_nobody_resumes_is_no_news(cluster: Cluster, node: Node) -> None:
    await node.service.prepare_workflow(
        TransRequest(gid="g1", trans_type="workflow", custom_data='{"name":"transfer"}')
    )
    await cluster.store.wait_until(lambda stored: stored.tx.due_us == NEVER_US, "g1", within_s=100)
    await settle()

    assert not cluster.alerts


async def test_a_call_that_ends_while_the_end_is_reported_is_no_news(cluster: Cluster) -> None:
    node = await cluster.start_node(alert_retry_limit=1)
    call = cluster.participants.hold("00 transfer")
    await node.service.prepare_workflow(
        TransRequest(gid="g1", trans_type="workflow", custom_data='{"name":"transfer"}', query_prepared="http://p/r")
    )
    await call.began.wait()
    cluster.store.before_apply = asyncio.Event()
    report = asyncio.create_task(
        node.service.submit(TransRequest(gid="g1", trans_type="workflow", req_extra={"status": "succeed"}))
    )
    await asyncio.sleep(0.1)
    call.end(UNKNOWN)
    await asyncio.sleep(0.1)

    cluster.store.before_apply.set()
    await report
    await settle()

    assert not cluster.alerts
