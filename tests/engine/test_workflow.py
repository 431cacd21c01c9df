"""Workflows on the engine: when a participant is asked to go on, and what its reports come to whoever they go to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.engine.harness import (
    COMMIT_S,
    FAILURE,
    ONGOING,
    SUCCESS,
    UNKNOWN,
    Cluster,
    Hold,
    Node,
    insist,
    now_s,
    settle,
)
from tests.workflows import INTERVAL_S, NAME, RESUME_URL, opening, report, step
from txcoord.dispatch.base import CallResult
from txcoord.errors import (
    InvalidRequestError,
    StatusConflictError,
    TransactionNotFoundError,
)
from txcoord.model import MICROSECONDS, NEVER_US, GlobalTransaction, Outcome, Pattern, Status
from txcoord.request import TransRequest
from txcoord.store.base import ListQuery
from txcoord.store.memory import FailWhen

ALL = ListQuery(limit=1000)
RESUME = f"00 {NAME}"

TIMED_OUT = CallResult(outcome=Outcome.UNKNOWN, detail="no answer within 3 s")


@dataclass
class Workflow:
    """One workflow as its participant handles it, through one node."""

    node: Node
    gid: str = "g1"

    async def open(self, **more: Any) -> GlobalTransaction:
        return await self.node.service.prepare_workflow(opening(self.gid, **more))

    async def did(self, *branch_ids: str, **more: object) -> None:
        for branch_id in branch_ids:
            await self.node.service.register_branch(step(branch_id, gid=self.gid, **more))  # type: ignore[arg-type]

    async def end(self, status: str = "succeed", **more: Any) -> None:
        await self.node.service.submit(report(status, gid=self.gid, **more))


@pytest.fixture
def workflow(node: Node) -> Workflow:
    return Workflow(node)


@pytest.fixture(autouse=True)
async def nothing_left_behind(cluster: Cluster) -> AsyncIterator[None]:
    yield
    for tx in (await cluster.store.list_transactions(ALL)).items:
        if not tx.tx.status.is_final:
            await cluster.store.force_stop(tx.tx.gid, now_us=cluster.clock.now_us(), reason="the test is over")
    await cluster.check_nothing_is_left(after_s=100.0)


async def refusal(call: Awaitable[object]) -> str:
    try:
        await call
    except StatusConflictError as error:
        return error.wanted
    return ""


def steps_of(tx: GlobalTransaction) -> list[tuple[str, str, str, bytes]]:
    return [(op.branch_id, op.op, op.status, op.payload) for op in tx.branches[1:]]


def result(branch_id: str) -> tuple[str, str, str, bytes]:
    return (branch_id, "action", "succeed", f"result of {branch_id}".encode())


# -- its course ----------------------------------------------------------------------------


async def test_one_that_its_participant_ends_is_never_called(cluster: Cluster, workflow: Workflow) -> None:
    opened = await workflow.open()
    assert (opened.status, steps_of(opened)) == (Status.PREPARED, [])
    await workflow.did("01", "02")
    await workflow.end(result=b"out")

    again = await workflow.open()

    assert (again.status, again.result) == (Status.SUCCEEDED, "b3V0")
    assert steps_of(again) == [result("01"), result("02")]
    await asyncio.sleep(1000.0)
    assert cluster.calls() == []


async def test_opened_again_it_comes_with_the_steps_that_are_stored(cluster: Cluster, workflow: Workflow) -> None:
    await workflow.open()
    await workflow.did("01")
    await workflow.did("02", status="failed", data=b"no stock")

    live = await workflow.open()
    await cluster.parked()
    parked = await workflow.open(name="another", data=b"other input")

    assert steps_of(live) == steps_of(parked) == [result("01"), ("02", "action", "failed", b"no stock")]
    assert parked.custom_data == live.custom_data, "what it was opened with stands"


async def test_opening_at_the_same_time_on_two_nodes_creates_one(cluster: Cluster, workflow: Workflow) -> None:
    other = Workflow(await cluster.start_node())

    opened = await asyncio.gather(workflow.open(), other.open(), workflow.open())

    assert {tx.created_us for tx in opened} == {(await cluster.saga()).created_us}
    await other.end()


async def test_after_an_interval_without_a_sign_of_life_it_is_asked_to_go_on(
    cluster: Cluster, workflow: Workflow
) -> None:
    hold = cluster.participants.hold(RESUME)
    await workflow.open(data=b"input", branch_headers={"x-test": "yes"}, request_timeout=7)

    await hold.began.wait()

    assert cluster.call_times_s(RESUME) == [pytest.approx(INTERVAL_S, abs=0.02)]
    [request] = cluster.participants.requests
    assert (request.pattern, request.branch_id, request.op) == (Pattern.WORKFLOW, "00", NAME)
    assert (request.url, request.payload, request.timeout_s) == (RESUME_URL, b"input", 7)
    assert request.headers == {"x-test": "yes"}
    hold.end()


@pytest.mark.parametrize("parked", [False, True], ids=["while it lingers", "when it is parked"])
async def test_a_report_puts_the_asking_off(cluster: Cluster, workflow: Workflow, parked: bool) -> None:
    hold = cluster.participants.hold(RESUME)
    await workflow.open(retry_interval=5)
    reported_s = 4.9 if parked else 1.0
    await asyncio.sleep(reported_s - now_s())
    await workflow.did("01")

    await hold.began.wait()

    assert cluster.call_times_s(RESUME) == [pytest.approx(reported_s + 5, abs=0.02)]
    hold.end()


async def test_the_asking_backs_off(cluster: Cluster, workflow: Workflow) -> None:
    cluster.participants.always(RESUME, UNKNOWN)
    await workflow.open(retry_interval=1)
    await asyncio.sleep(600.0)

    times_s = cluster.call_times_s(RESUME)
    pauses_s = [later - earlier for earlier, later in itertools.pairwise(times_s)]

    assert len(times_s) >= 8
    for number, pause_s in enumerate(pauses_s):
        longest_s = min(2.0 ** (number + 1), 300.0)
        assert 0.74 * longest_s <= pause_s <= longest_s + 0.1, f"pause {number}"
    await workflow.end()


async def test_what_is_answered_changes_nothing(cluster: Cluster, workflow: Workflow) -> None:
    cluster.participants.script(RESUME, SUCCESS, FAILURE, ONGOING, UNKNOWN)
    await workflow.open(retry_interval=1)
    await workflow.did("01")
    await cluster.store.wait_until(lambda stored: len(cluster.calls()) >= 6, "g1", within_s=3600.0)

    tx = await cluster.saga()

    assert (tx.status, steps_of(tx)) == (Status.PREPARED, [result("01")])
    await workflow.end()


async def test_one_that_used_up_the_time_is_left_alone_for_an_interval(cluster: Cluster, workflow: Workflow) -> None:
    hold = cluster.participants.hold(RESUME)
    await workflow.open(request_timeout=3)
    await hold.began.wait()
    await asyncio.sleep(3.0)
    hold.end(TIMED_OUT)
    ended_s = now_s()

    await asyncio.sleep(0.7 * INTERVAL_S)
    assert len(cluster.calls()) == 1
    await asyncio.sleep(0.4 * INTERVAL_S)

    assert len(cluster.calls()) >= 2
    assert cluster.call_times_s(RESUME)[1] - ended_s <= INTERVAL_S + 0.1
    await workflow.end()


async def test_without_a_url_nobody_is_asked_and_its_own_report_ends_it(cluster: Cluster, workflow: Workflow) -> None:
    await workflow.open(query_prepared="", custom_data="")
    parked = await cluster.parked()
    assert parked.due_us == NEVER_US
    await workflow.node.service.reset_next_cron_time("g1")
    await asyncio.sleep(5.0)
    assert (await cluster.saga()).due_us == NEVER_US
    await workflow.did("01")

    await workflow.end("failed", reason="no stock")

    assert (await cluster.saga()).rollback_reason == "no stock"
    assert cluster.calls() == []


async def test_an_operator_asks_at_once(cluster: Cluster, workflow: Workflow) -> None:
    hold = cluster.participants.hold(RESUME)
    await workflow.open(retry_interval=3600)
    await cluster.parked()
    await settle()

    await workflow.node.service.reset_next_cron_time("g1")

    await asyncio.wait_for(hold.began.wait(), 1.0)
    hold.end()


# -- reports within our call ---------------------------------------------------------------


async def resumed(cluster: Cluster, workflow: Workflow) -> Hold:
    """A workflow whose participant is in the middle of our call."""
    hold = cluster.participants.hold(RESUME)
    await workflow.open()
    await hold.began.wait()
    return hold


@pytest.mark.parametrize("status", ["succeed", "failed"])
async def test_its_participant_ends_it_within_our_call_and_is_left_to_finish_that(
    cluster: Cluster, workflow: Workflow, status: str
) -> None:
    hold = await resumed(cluster, workflow)

    await workflow.did("01")
    await workflow.end(status)

    assert (await cluster.saga()).status == status
    await settle(1.0)
    assert not hold.was_cancelled
    again = await workflow.open()
    assert (again.status, steps_of(again)) == (status, [result("01")])
    await workflow.end(status)
    assert await refusal(workflow.end("failed" if status == "succeed" else "succeed")) == "submit"
    hold.end()
    await settle()
    assert cluster.nodes[0].engine.live_count == 0
    await asyncio.sleep(1000.0)
    assert cluster.calls() == [RESUME]


async def test_a_report_within_our_call_is_durable_when_it_is_answered(cluster: Cluster, workflow: Workflow) -> None:
    hold = await resumed(cluster, workflow)
    cluster.store.before_apply = asyncio.Event()
    registering = asyncio.ensure_future(workflow.did("01"))
    await settle()
    assert not registering.done()

    cluster.store.before_apply.set()
    await registering

    assert steps_of(await cluster.saga()) == [result("01")]
    hold.end(UNKNOWN)
    await settle()
    assert steps_of(await cluster.saga()) == [result("01")], "what the call came to does not undo it"
    await workflow.end()


@pytest.mark.parametrize("answer", [SUCCESS, UNKNOWN, ONGOING], ids=lambda answer: str(answer.outcome))
async def test_a_report_within_our_call_by_way_of_another_node(
    cluster: Cluster, workflow: Workflow, answer: CallResult
) -> None:
    hold = await resumed(cluster, workflow)
    other = Workflow(await cluster.start_node())

    assert steps_of(await other.open()) == []
    await other.did("01")
    await workflow.did("02")
    await other.did("02")
    await settle(1.0)
    assert cluster.calls() == [RESUME], "nobody asks while a call is under way"
    hold.end(answer)
    await settle(1.0)

    assert steps_of(await cluster.saga()) == [result("01"), result("02")]
    assert cluster.calls() == [RESUME]
    await other.end()


@pytest.mark.parametrize("act", ["the same again", "another result", "abort"])
async def test_what_changes_nothing_on_another_node_asks_nobody_either(
    cluster: Cluster, workflow: Workflow, act: str
) -> None:
    hold = await resumed(cluster, workflow)
    await workflow.did("01")
    # As late as it may be: the asking was put off by the report above.
    await asyncio.sleep(INTERVAL_S - 0.5)
    other = Workflow(await cluster.start_node())

    if act == "the same again":
        await other.did("01")
    elif act == "another result":
        with pytest.raises(InvalidRequestError, match="stored with another result"):
            await other.did("01", data=b"other")
    else:
        request = TransRequest(gid="g1", trans_type="workflow")
        assert await refusal(other.node.service.abort(request)) == "abort"
    await asyncio.sleep(INTERVAL_S - 1.0)

    assert cluster.calls() == [RESUME]
    hold.end()
    await other.end()


# -- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("parked", [False, True], ids=["live", "parked"])
async def test_the_same_report_again_is_the_same_and_another_is_refused(
    cluster: Cluster, workflow: Workflow, parked: bool
) -> None:
    await workflow.open()
    await workflow.did("01")
    if parked:
        await cluster.parked()
        await settle()
    batches = len(cluster.store.batches)

    await workflow.did("01")

    assert len(cluster.store.batches) == batches, "nothing to write"
    with pytest.raises(InvalidRequestError, match="stored with another result"):
        await workflow.did("01", status="failed")
    assert steps_of(await cluster.saga()) == [result("01")]
    await workflow.end()


async def test_what_was_never_opened_cannot_be_reported(cluster: Cluster, workflow: Workflow) -> None:
    for call in (workflow.did("01"), workflow.end()):
        with pytest.raises(TransactionNotFoundError):
            await call


async def test_it_stays_a_workflow(cluster: Cluster, workflow: Workflow) -> None:
    await workflow.open()
    service = workflow.node.service

    for call in (
        service.submit(TransRequest(gid="g1", trans_type="tcc")),
        service.prepare(TransRequest(gid="g1", trans_type="xa")),
        service.prepare_workflow(TransRequest(gid="g2", trans_type="saga")),
    ):
        with pytest.raises(InvalidRequestError):
            await call
    with pytest.raises(StatusConflictError):
        await service.abort(TransRequest(gid="g1", trans_type="tcc"))
    await workflow.end()


# -- trouble -------------------------------------------------------------------------------


class Function:
    """A workflow's function as a participant runs it: two steps, each of which it does unless its result is stored."""

    def __init__(self) -> None:
        self.did: list[str] = []

    async def run(self, workflow: Workflow) -> None:
        """Run it, insisting on every answer; refused, somebody else has ended it."""
        try:
            opened = await insist(workflow.open)
            if opened.status.is_final:
                return
            stored = {op.branch_id: op.payload for op in opened.branches[1:]}
            for branch_id in ("01", "02"):
                if branch_id not in stored:
                    self.did.append(branch_id)
                    await insist(lambda branch_id=branch_id: workflow.did(branch_id))  # type: ignore[misc]
            await insist(workflow.end)
        except StatusConflictError:
            pass


async def check_end(cluster: Cluster, function: Function) -> None:
    tx = await cluster.ended()
    assert (tx.status, steps_of(tx)) == (Status.SUCCEEDED, [result("01"), result("02")])
    assert set(function.did) == {"01", "02"}


@pytest.mark.parametrize("killed_us", range(500, 20_000, 700))
async def test_a_kill_of_coordinator_and_participant_at_any_moment(
    cluster: Cluster, workflow: Workflow, killed_us: int
) -> None:
    function = Function()
    running = asyncio.create_task(function.run(workflow))
    await asyncio.sleep(killed_us / MICROSECONDS)
    workflow.node.kill()
    running.cancel()
    await settle()
    stored = await cluster.store.find("g1")
    known = steps_of(stored.tx) if stored else []
    next_node = Workflow(await cluster.start_node())
    if stored is None:
        await next_node.open()
    elif stored.tx.status.is_final:
        await check_end(cluster, function)
        return

    # The participant is there again, and is asked to go on.
    hold = cluster.participants.hold(RESUME)
    await hold.began.wait()
    function.did.clear()
    await function.run(next_node)
    hold.end()

    tx = await cluster.ended()
    assert steps_of(tx) == [result("01"), result("02")]
    assert function.did == [branch_id for branch_id in ("01", "02") if result(branch_id) not in known]


@pytest.mark.parametrize("killed_us", range(0, 12_000, 600))
async def test_a_kill_of_the_coordinator_while_it_asks(cluster: Cluster, workflow: Workflow, killed_us: int) -> None:
    await resumed(cluster, workflow)
    function = Function()
    # The participant finds the coordinator gone, and ends with another one what it was asked for by the first.
    other = Workflow(await cluster.start_node())

    async def kill() -> None:
        await asyncio.sleep(killed_us / MICROSECONDS)
        workflow.node.kill()

    await asyncio.gather(function.run(other), kill())

    await check_end(cluster, function)
    assert function.did == ["01", "02"]
    assert cluster.calls() == [RESUME]


@pytest.mark.parametrize("when", list(FailWhen))
@pytest.mark.parametrize("method", ["apply", "claim_prepared", "find", "take_over_due", "release_dead", "renew"])
async def test_a_failure_of_any_statement_harms_nothing(cluster: Cluster, method: str, when: FailWhen) -> None:
    # Parked after each change, so that each change claims it.
    node = await cluster.start_node(linger_s=0.001, lease_s=3.0, accept_wait_s=0.2)
    cluster.store.fail_next(4, when=when, method=method)
    function = Function()

    await function.run(Workflow(node))
    cluster.store._failures.clear()

    await check_end(cluster, function)
    await asyncio.sleep(10.0)
    assert await cluster.store.owned(node.engine.node_id) == []


@pytest.mark.parametrize("down_us", range(500, 12_000, 1000))
async def test_a_store_that_goes_away_and_comes_back(cluster: Cluster, workflow: Workflow, down_us: int) -> None:
    function = Function()
    running = asyncio.create_task(function.run(workflow))
    await asyncio.sleep(down_us / MICROSECONDS)
    cluster.store.is_down = True
    await asyncio.sleep(7.0)
    cluster.store.is_down = False
    await running

    await check_end(cluster, function)


async def test_two_that_run_it_at_once_agree_on_each_result(cluster: Cluster, workflow: Workflow) -> None:
    other = Workflow(await cluster.start_node())
    function = Function()

    await asyncio.gather(function.run(workflow), function.run(other))

    await check_end(cluster, function)


async def test_a_forced_stop_while_it_is_asked(cluster: Cluster, workflow: Workflow) -> None:
    hold = await resumed(cluster, workflow)

    await workflow.node.service.force_stop("g1")

    assert (await cluster.saga()).status is Status.FAILED
    assert hold.was_cancelled
    for call in (workflow.did("01"), workflow.end()):
        assert await refusal(call) in ("register", "submit")
    assert await refusal(workflow.end("failed")) == "", "it has failed, as its participant says"
    assert (await workflow.open()).status is Status.FAILED


async def test_a_draining_node_lets_the_call_end_and_parks_it_for_others(cluster: Cluster, workflow: Workflow) -> None:
    hold = await resumed(cluster, workflow)
    stop = asyncio.ensure_future(workflow.node.stop())
    await settle(1.0)
    assert not stop.done()

    # It is in memory, so that its participant still gets through.
    await workflow.did("01")
    hold.end(UNKNOWN)
    await stop

    stored = await cluster.stored()
    assert (stored.owner, steps_of(stored.tx)) == (0, [result("01")])
    assert cluster.calls() == [RESUME]
    other = Workflow(await cluster.start_node())
    assert steps_of(await other.open()) == [result("01")]
    await other.end()


async def test_a_draining_node_lets_a_call_end_that_brought_the_end(cluster: Cluster, workflow: Workflow) -> None:
    hold = await resumed(cluster, workflow)
    await workflow.end()
    stop = asyncio.ensure_future(workflow.node.stop())
    await settle(1.0)
    assert not stop.done()

    hold.end()
    await stop

    assert not hold.was_cancelled


async def test_a_draining_node_waits_for_nobody_for_ever(cluster: Cluster) -> None:
    workflow = Workflow(await cluster.start_node(drain_s=2.0))
    hold = await resumed(cluster, workflow)
    began_s = now_s()

    await workflow.node.stop()

    assert now_s() - began_s < 3
    assert hold.was_cancelled
    assert (await cluster.stored()).owner == 0


async def test_many_participants_and_nodes(cluster: Cluster) -> None:
    nodes = [await cluster.start_node(linger_s=0.01) for _ in range(3)]

    async def run(number: int) -> None:
        gid = f"g{number}"
        one, other = (Workflow(nodes[(number + shift) % 3], gid) for shift in (0, number % 3))
        await one.open(retry_interval=1)
        await other.did("01")
        await asyncio.sleep(COMMIT_S * (number % 11))
        await one.did("02")
        await other.end("succeed" if number % 2 else "failed")

    await asyncio.gather(*map(run, range(60)))

    for number in range(60):
        tx = await cluster.saga(f"g{number}")
        assert tx.status is (Status.SUCCEEDED if number % 2 else Status.FAILED)
        assert steps_of(tx) == [result("01"), result("02")]
        assert cluster.calls(f"g{number}") == []
