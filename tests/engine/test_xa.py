"""XA on the engine. What it shares with TCC, which is all but order and branches, is in `test_tcc`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.engine.harness import FAILURE, ONGOING, UNKNOWN, Cluster, Node, insist, now_s, settle
from tests.xas import registration
from txcoord.errors import StatusConflictError
from txcoord.model import MICROSECONDS, NEVER_US, Pattern, Status
from txcoord.request import SubmitResult, TransRequest
from txcoord.two_phase.decide import MOST_REFUSALS

COMMITS = ["01 commit", "02 commit", "03 commit"]
ROLLBACKS = ["01 rollback", "02 rollback", "03 rollback"]


async def prepare(node: Node, **options: Any) -> None:
    await node.service.prepare(TransRequest(gid="g1", trans_type="xa", **options))


async def register(node: Node, *branch_ids: str) -> None:
    for branch_id in branch_ids:
        await node.service.register_branch(registration(branch_id))


async def decide(node: Node, act: str, *, wait: bool = True) -> SubmitResult:
    service = node.service
    decide = service.submit if act == "submit" else service.abort
    return await decide(TransRequest(gid="g1", trans_type="xa", wait_result=wait, rollback_reason="no stock"))


async def initiate(node: Node, act: str) -> None:
    """Initiate it from its beginning, until each answer is known; refused, it was there before."""
    try:
        await insist(lambda: prepare(node))
        await insist(lambda: register(node, "01"))
        await insist(lambda: register(node, "02"))
        await insist(lambda: decide(node, act, wait=False))
    except StatusConflictError:
        return


@pytest.mark.parametrize(("act", "calls", "rows"), [("submit", COMMITS, "PSPSPS"), ("abort", ROLLBACKS, "SPSPSP")])
async def test_phase_2_goes_in_the_order_of_registration(
    cluster: Cluster, node: Node, act: str, calls: list[str], rows: str
) -> None:
    await prepare(node, branch_headers={"x-test": "yes"})
    await register(node, "01", "02", "03")

    result = await decide(node, act)

    assert result.status is (Status.SUCCEEDED if act == "submit" else Status.FAILED)
    assert (cluster.calls(), await cluster.rows()) == (calls, rows)
    request = cluster.participants.requests[0]
    assert (request.pattern, request.url, request.payload) == (Pattern.XA, "http://p01", b"")
    assert request.headers == {"x-test": "yes"}


@pytest.mark.parametrize(("act", "op"), [("submit", "commit"), ("abort", "rollback")])
async def test_a_branch_that_does_not_answer_is_repeated_and_none_overtakes_it(
    cluster: Cluster, node: Node, act: str, op: str
) -> None:
    cluster.participants.script(f"01 {op}", UNKNOWN, ONGOING, FAILURE)
    await prepare(node)
    await register(node, "01", "02")

    waited = await decide(node, act)

    assert waited.status is (Status.SUBMITTED if act == "submit" else Status.ABORTING)
    await cluster.ended()
    assert cluster.calls() == [f"01 {op}"] * 4 + [f"02 {op}"]


async def test_a_branch_that_refuses_to_commit_needs_an_operator(cluster: Cluster, node: Node) -> None:
    cluster.participants.script("01 commit", *[FAILURE] * MOST_REFUSALS)
    await prepare(node)
    await register(node, "01")
    await decide(node, "submit", wait=False)
    await cluster.store.wait_until(lambda stored: stored.tx.due_us == NEVER_US, "g1", within_s=7200.0)

    await node.service.reset_next_cron_time("g1")

    assert (await cluster.ended()).status is Status.SUCCEEDED


async def test_the_deadline_rolls_back_what_has_registered(cluster: Cluster, node: Node) -> None:
    await prepare(node, timeout_to_fail=5)
    await register(node, "01", "02", "03")

    tx = await cluster.ended()

    assert (tx.status, tx.rollback_reason) == (Status.FAILED, "Timeout after 5 seconds")
    assert cluster.calls() == ROLLBACKS
    assert 5 <= now_s() < 5.1


@pytest.mark.parametrize("decided", ["submit", "abort", "deadline"])
async def test_a_participant_that_registers_too_late_is_told_so(cluster: Cluster, node: Node, decided: str) -> None:
    other = await cluster.start_node()
    hold = cluster.participants.hold("01 commit" if decided == "submit" else "01 rollback")
    await prepare(node, timeout_to_fail=1)
    await register(node, "01")
    if decided != "deadline":
        await decide(node, decided, wait=False)
    await hold.began.wait()

    for late in (node, other):
        with pytest.raises(StatusConflictError) as refused:
            await register(late, "02")
        assert refused.value.wanted == "register"

    hold.end()
    await cluster.ended()
    assert len(cluster.calls()) == 1, "what did not register is not called"


@pytest.mark.parametrize("act", ["submit", "abort"])
@pytest.mark.parametrize("killed_us", range(500, 26_000, 900))
async def test_a_kill_at_any_moment(cluster: Cluster, node: Node, act: str, killed_us: int) -> None:
    initiator = asyncio.create_task(initiate(node, act))
    await asyncio.sleep(killed_us / MICROSECONDS)
    node.kill()
    initiator.cancel()
    await settle()
    next_node = await cluster.start_node()

    await initiate(next_node, act)

    tx = await cluster.ended()
    op = "commit" if act == "submit" else "rollback"
    assert tx.status is (Status.SUCCEEDED if act == "submit" else Status.FAILED)
    assert await cluster.rows() == ("PSPS" if act == "submit" else "SPSP")
    assert set(cluster.calls()) == {f"01 {op}", f"02 {op}"}, "never some of each"
