"""Workflows of both clients, against the coordinator's rules within the process; and crashes at every point."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import threading
from base64 import b64decode
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from sdk.tests.workflow_support import BROKEN, OK, PATIENCE, REFUSED, RESUME_URL, SHOP, Crash, World
from sdk.tests.xa_support import Ledger
from txcoord.model import Outcome, Status
from txcoord_sdk import (
    Coordinator,
    CoordinatorUnreachableError,
    RequestRefusedError,
    TransactionFailedError,
    TransactionRunningError,
)
from txcoord_sdk.workflow import (
    AsyncWorkflow,
    BranchContext,
    BranchFailed,
    BranchOngoing,
    StepFailed,
    Workflow,
    WorkflowChangedError,
    WorkflowInterruptedError,
    Workflows,
)
from txcoord_sdk.xa import XaKey, prepare_sync


@dataclass(frozen=True)
class Order:
    product: int
    quantity: int


class Receipt(BaseModel):
    number: int
    of: Order


ORDER = Order(3, 20)
PAGE = Path(__file__).parents[2] / "docs" / "workflow.md"
_numbers = count(1)


@pytest.fixture
def world() -> World:
    return World()


def numbered(branch: BranchContext, order: Order) -> Receipt:
    return Receipt(number=next(_numbers), of=order)


# -- what it comes to ----------------------------------------------------------------------


def test_a_result_is_returned_again_without_running_again(world: World) -> None:
    runs = []

    def register(workflows: Workflows) -> Callable[[], Receipt]:
        @workflows.workflow
        def buy(wf: Workflow, order: Order) -> Receipt:
            runs.append(wf.gid)
            wf.call(f"{SHOP}/deduct", order)
            return wf.step(numbered, order)

        return lambda: buy.run(ORDER, gid="g1")

    first = register(world.workflows())()
    again = register(world.workflows())()

    assert first == again
    assert (type(first), first.of) == (Receipt, ORDER)
    assert (runs, world.calls) == (["g1"], ["/deduct action"])
    assert world.reports == [("01", "action", "succeed"), ("02", "action", "succeed"), ("succeed",)]


async def test_the_same_for_asyncio(world: World) -> None:
    workflows = world.async_workflows()

    async def paid(branch: BranchContext, amount: int) -> bytes:
        assert (branch.gid, branch.branch_id, branch.op, branch.trans_type) == ("g1", "02", "action", "workflow")
        return b"\xff%d" % amount

    @workflows.workflow("purchase")
    async def buy(wf: AsyncWorkflow, order: Order) -> bytes:
        answer = await wf.call(f"{SHOP}/deduct?x=1", order)
        assert answer.json() == {"dtm_result": "SUCCESS"}
        return await wf.step(paid, order.quantity)

    assert await buy.run(ORDER, gid="g1") == b"\xff20"
    assert await workflows.run("purchase", ORDER, gid="g1") == b"\xff20"
    [call] = world.requests
    assert dict(call.url.params) == {"x": "1", "gid": "g1", "trans_type": "workflow", "branch_id": "01", "op": "action"}
    assert (call.method, json.loads(call.content)) == ("POST", {"product": 3, "quantity": 20})
    tx = world.stored["g1"]
    assert (b64decode(tx.result), tx.query_prepared) == (b"\xff20", RESUME_URL)
    assert json.loads(tx.custom_data)["name"] == "purchase"


def test_what_is_recorded_can_be_read_by_people(world: World) -> None:
    workflows = world.workflows()
    world.answer("/deduct", (200, '{"left": 88}'))
    world.answer("/pay", REFUSED)

    @workflows.workflow
    def buy(wf: Workflow, order: Order) -> None:
        wf.call(f"{SHOP}/deduct", order)
        wf.step(lambda branch: branch.op)
        wf.branch("payment").call(f"{SHOP}/pay")

    with pytest.raises(TransactionFailedError):
        buy.run(ORDER, gid="g1")

    assert [json.loads(branch.payload) for branch in world.stored["g1"].branches[1:]] == [
        {"kind": "call", "name": "/deduct", "result": {"body": '{"left": 88}'}, "order": 1, "asked_after": ""},
        {"kind": "step", "name": "<lambda>", "result": "action", "order": 2, "asked_after": "01"},
        {"kind": "call", "name": "payment", "reason": "sold out", "order": 3, "asked_after": "02"},
    ]


def test_a_body_that_is_no_text_is_kept_as_it_is(world: World) -> None:
    workflows = world.workflows()

    @workflows.workflow
    def fetch(wf: Workflow, given: None) -> bytes:
        raw = wf.step(raw_bytes)
        return raw + wf.call("").body

    assert fetch.run(None, gid="g1") == b"\x00\xfe"
    assert workflows.run("fetch", gid="g1") == b"\x00\xfe"


def raw_bytes(branch: BranchContext) -> bytes:
    return b"\x00\xfe"


# -- failure -------------------------------------------------------------------------------


def saga(workflows: Workflows) -> Any:
    @workflows.workflow
    def buy(wf: Workflow, order: Order) -> str:
        wf.call(f"{SHOP}/order", order, on_rollback=f"{SHOP}/order-undo")
        wf.branch().on_commit(noted, "mail").on_rollback(noted, "refund").step(noted, "pay")
        wf.call(f"{SHOP}/deduct", order, on_commit=f"{SHOP}/deduct-confirm", on_rollback=f"{SHOP}/deduct-undo")
        return "bought"

    return buy


notes: list[str] = []


def noted(branch: BranchContext, what: str) -> None:
    notes.append(f"{what} {branch.branch_id} {branch.op}")


def test_commits_are_called_last_branch_first(world: World) -> None:
    notes.clear()

    assert saga(world.workflows()).run(ORDER, gid="g1") == "bought"

    assert world.calls == ["/order action", "/deduct action", "/deduct-confirm commit"]
    assert notes == ["pay 02 action", "mail 02 commit"]
    assert world.reports[3:] == [("03", "commit", "succeed"), ("02", "commit", "succeed"), ("succeed",)]


def test_a_refused_step_has_the_others_rolled_back_last_first(world: World) -> None:
    notes.clear()
    world.answer("/deduct", REFUSED)

    with pytest.raises(TransactionFailedError, match=r"step 03 \(/deduct\) failed: sold out") as caught:
        saga(world.workflows()).run(ORDER, gid="g1")

    assert isinstance(caught.value.__cause__, StepFailed)
    assert world.calls == ["/order action", "/deduct action", "/order-undo rollback"]
    assert notes == ["pay 02 action", "refund 02 rollback"]
    assert (caught.value.status, world.stored["g1"].rollback_reason) == (Status.FAILED, caught.value.reason)
    with pytest.raises(TransactionFailedError, match="sold out"):
        saga(world.workflows()).run(ORDER, gid="g1")
    assert len(world.calls) == 3


def test_a_refused_step_is_rolled_back_itself_if_asked(world: World) -> None:
    workflows = world.workflows()
    world.answer("/deduct", REFUSED)

    @workflows.workflow
    def buy(wf: Workflow, order: Order) -> None:
        wf.branch(rollback_if_failed=True).on_rollback(f"{SHOP}/undo").call(f"{SHOP}/deduct")

    with pytest.raises(TransactionFailedError):
        buy.run(ORDER)
    assert world.calls == ["/deduct action", "/undo rollback"]


def test_a_refusal_that_is_caught_leads_another_way(world: World) -> None:
    workflows = world.workflows()
    world.answer("/hotel-a", REFUSED)
    refusals: list[StepFailed] = []

    @workflows.workflow
    def travel(wf: Workflow, order: Order) -> str:
        for hotel in ("a", "b"):
            try:
                wf.call(f"{SHOP}/hotel-{hotel}", on_commit=f"{SHOP}/confirm-{hotel}")
            except StepFailed as refusal:
                refusals.append(refusal)
            else:
                return hotel
        raise BranchFailed("no room")

    assert travel.run(ORDER, gid="g1") == "b"
    assert world.calls == ["/hotel-a action", "/hotel-b action", "/confirm-b commit"]
    [refusal] = refusals
    assert (refusal.gid, refusal.branch_id, refusal.step, refusal.reason) == ("g1", "01", "/hotel-a", "sold out")


def test_a_result_of_a_step_can_be_what_is_rolled_back(world: World) -> None:
    workflows = world.workflows()
    world.answer("/pay", (200, '{"payment": 7}'))

    @workflows.workflow
    def buy(wf: Workflow, order: Order) -> None:
        branch = wf.branch()
        payment = branch.call(f"{SHOP}/pay").json()["payment"]
        branch.on_rollback(f"{SHOP}/refund", {"payment": payment})
        raise BranchFailed("changed my mind")

    with pytest.raises(TransactionFailedError, match="changed my mind"):
        buy.run(ORDER)
    assert json.loads(world.requests[-1].content) == {"payment": 7}


# -- interruption --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "outcome", "status"), [(BROKEN, Outcome.UNKNOWN, 500), (PATIENCE, Outcome.ONGOING, 425)]
)
def test_a_step_without_a_clear_answer_is_taken_again_later(
    world: World, answer: tuple[int, str], outcome: Outcome, status: int
) -> None:
    notes.clear()
    world.answer("/deduct", answer, answer)
    workflows = world.workflows()
    buy = saga(workflows)

    with pytest.raises(WorkflowInterruptedError, match=r"action of 03 \(/deduct\)") as caught:
        buy.run(ORDER, gid="g1")

    assert (caught.value.outcome, caught.value.status) == (outcome, Status.PREPARED)
    assert isinstance(caught.value, TransactionRunningError)
    assert pickle.loads(pickle.dumps(caught.value)).outcome is outcome
    assert workflows.resume(*world.request_to_resume("g1")).status == status
    assert workflows.resume(*world.request_to_resume("g1")).status == 200
    assert buy.run(ORDER, gid="g1") == "bought"
    assert Counter(world.calls) == {"/order action": 1, "/deduct action": 3, "/deduct-confirm commit": 1}
    assert notes == ["pay 02 action", "mail 02 commit"]


def test_an_interruption_that_is_caught_still_stops_it(world: World) -> None:
    workflows = world.workflows()
    world.answer("/deduct", BROKEN)

    @workflows.workflow
    def buy(wf: Workflow, order: Order) -> str:
        # As careless code has it.
        with suppress(Exception):
            wf.call(f"{SHOP}/deduct")
        with pytest.raises(WorkflowInterruptedError, match="it has stopped before"):
            wf.call(f"{SHOP}/instead")
        return "bought"

    with pytest.raises(WorkflowInterruptedError, match="/deduct"):
        buy.run(ORDER, gid="g1")
    assert (world.calls, world.reports) == (["/deduct action"], [])


def test_what_a_commit_refuses_is_called_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    workflows = world.workflows()
    world.answer("/deduct-confirm", REFUSED)
    buy = saga(workflows)

    with pytest.raises(WorkflowInterruptedError, match="refused, which it cannot be"):
        buy.run(ORDER, gid="g1")

    assert workflows.resume(*world.request_to_resume("g1")).status == 200
    assert world.calls[2:] == ["/deduct-confirm commit"] * 2


def test_a_fault_of_the_function_decides_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    workflows = world.workflows()
    faults = [LookupError("no such customer")] * 2

    @workflows.workflow
    def buy(wf: Workflow, order: Order) -> str:
        wf.call(f"{SHOP}/deduct", on_rollback=f"{SHOP}/undo")
        if faults:
            raise faults.pop()
        return "bought"

    with pytest.raises(LookupError) as caught:
        buy.run(ORDER, gid="g1")
    assert caught.value.__notes__ == ["workflow buy g1 is not ended: it is resumed when the coordinator asks"]
    answer = workflows.resume(*world.request_to_resume("g1"))
    assert answer.status == 500
    assert "customer" not in str(answer.body)
    assert "no such customer" in caplog.text
    assert buy.run(ORDER, gid="g1") == "bought"
    assert world.calls == ["/deduct action"]


def test_a_function_may_ask_for_patience_before_any_step(world: World) -> None:
    workflows = world.workflows()
    ready = [False, False, True]

    @workflows.workflow
    def buy(wf: Workflow, order: Order) -> str:
        if not ready.pop(0):
            raise BranchOngoing("the shop is closed")
        return "bought"

    with pytest.raises(WorkflowInterruptedError, match="the shop is closed"):
        buy.run(ORDER, gid="g1")
    assert [workflows.resume(*world.request_to_resume("g1")).status for _ in range(2)] == [425, 200]


def test_a_step_raises_what_it_likes_and_runs_again(world: World) -> None:
    workflows = world.workflows()
    faults = [OSError("disk full")]

    def write(branch: BranchContext) -> int:
        if faults:
            raise faults.pop()
        return 1

    @workflows.workflow
    def save(wf: Workflow, given: None) -> int:
        return wf.step(write)

    with pytest.raises(OSError, match="disk full"):
        save.run(None, gid="g1")
    assert save.run(None, gid="g1") == 1


# -- the coordinator is away, or ahead -----------------------------------------------------


def test_a_result_that_cannot_be_stored_stops_it(world: World) -> None:
    workflows = world.workflows()
    buy = saga(workflows)
    world.away("/registerBranch", 2)

    with pytest.raises(CoordinatorUnreachableError):
        buy.run(ORDER, gid="g1")
    assert (world.calls, world.reports) == (["/order action"], [])

    assert buy.run(ORDER, gid="g1") == "bought"
    assert world.calls[:2] == ["/order action"] * 2


def test_a_lost_answer_to_a_report_is_looked_up(world: World) -> None:
    workflows = world.workflows()
    handle, lost = world.handle, ["/registerBranch", "/submit"]
    stored = world._served

    def served(operation: str, request: Any) -> dict[str, Any]:
        answer = stored(operation, request)
        if f"/{operation}" in lost:
            lost.remove(f"/{operation}")
            raise OSError
        return answer

    world._served = served  # type: ignore[method-assign]

    def handle_or_500(request: Any) -> Any:
        try:
            return handle(request)
        except OSError:
            return httpx.Response(500, text="storage: UniqueKeyConflict")

    world.handle = handle_or_500  # type: ignore[method-assign]
    workflows = world.workflows()

    assert saga(workflows).run(ORDER, gid="g1") == "bought"
    assert Counter(world.reports).most_common(1)[0][1] == 1
    assert lost == []


def test_who_is_overtaken_gives_way(world: World) -> None:
    ours, theirs = world.workflows(), world.workflows()
    results = iter(["first", "second"])

    def chosen(branch: BranchContext) -> str:
        result = next(results)
        if result == "first":
            # While we are at work, somebody else resumes it, and is done before us.
            assert theirs.resume(*world.request_to_resume("g1")).status == 200
        return result

    for workflows in (ours, theirs):
        workflows.workflow("choose")(lambda wf, given: wf.step(chosen))

    assert ours.run("choose", gid="g1") == "second"


def test_who_is_overtaken_by_one_who_is_not_done_stops(world: World) -> None:
    ours, theirs = world.workflows(), world.workflows()
    results = iter(["first", "second"])
    world.answer("/deduct", PATIENCE)

    def chosen(branch: BranchContext) -> str:
        result = next(results)
        if result == "first":
            assert theirs.resume(*world.request_to_resume("g1")).status == 425
        return result

    def choose(wf: Workflow, given: None) -> str:
        result = wf.step(chosen)
        wf.call(f"{SHOP}/deduct")
        return result

    for workflows in (ours, theirs):
        workflows.workflow(choose)

    with pytest.raises(WorkflowInterruptedError, match="another execution is ahead"):
        ours.run("choose", gid="g1")
    assert ours.run("choose", gid="g1") == "second"


def test_a_workflow_that_was_stopped_by_an_operator_has_failed(world: World) -> None:
    workflows = world.workflows()

    def stop(branch: BranchContext) -> None:
        tx = world.stored[branch.gid]
        world.stored[branch.gid] = tx.replace(status=Status.FAILED, rollback_reason="by hand")

    @workflows.workflow
    def buy(wf: Workflow, order: Order) -> None:
        wf.step(stop)

    with pytest.raises(TransactionFailedError, match="by hand"):
        buy.run(ORDER, gid="g1")


# -- resuming ------------------------------------------------------------------------------


def test_a_resume_goes_on_with_the_first_input(world: World) -> None:
    workflows = world.workflows()
    world.answer("/deduct", PATIENCE)

    @workflows.workflow
    def buy(wf: Workflow, order: Order) -> Order:
        wf.call(f"{SHOP}/deduct", order)
        return order

    with pytest.raises(WorkflowInterruptedError):
        buy.run(ORDER, gid="g1")
    query, _ = world.request_to_resume("g1")
    assert workflows.resume(query, b'{"product":0,"quantity":0}').status == 200
    assert buy.run(Order(9, 9), gid="g1") == ORDER


def test_nobody_can_start_a_workflow_by_a_resume(world: World) -> None:
    workflows = world.workflows()
    saga(workflows)
    query = {"gid": "made-up", "trans_type": "workflow", "branch_id": "00", "op": "buy"}

    assert workflows.resume(query, b"{}").status == 404
    assert (world.stored, world.calls) == ({}, [])


@pytest.mark.parametrize("lacks", ["gid", "op", "branch_id", "trans_type"])
def test_what_is_no_resume_is_refused(world: World, lacks: str) -> None:
    query = {"gid": "g1", "trans_type": "workflow", "branch_id": "00", "op": "buy"}

    assert world.workflows().resume({**query, lacks: ""}).status == 400


def test_a_workflow_that_is_not_known_here_is_named_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    workflows = world.workflows()
    query = {"gid": "g1", "trans_type": "workflow", "branch_id": "00", "op": "sell"}

    assert workflows.resume(query).status == 500
    assert "workflow g1 cannot be resumed: no workflow is registered as 'sell' here; registered: none" in caplog.text
    with pytest.raises(LookupError, match="'sell'"):
        workflows.run("sell")


def test_a_gid_belongs_to_one_workflow(world: World) -> None:
    workflows = world.workflows()
    saga(workflows).run(ORDER, gid="g1")
    workflows.workflow("sell")(lambda wf, given: None)

    with pytest.raises(RequestRefusedError, match="of the workflow 'buy', not 'sell'"):
        workflows.run("sell", gid="g1")


async def test_a_workflow_runs_once_at_a_time(world: World) -> None:
    workflows = world.async_workflows()
    entered, leave = asyncio.Event(), asyncio.Event()
    runs = count(1)

    async def wait(branch: BranchContext) -> int:
        entered.set()
        await leave.wait()
        return next(runs)

    @workflows.workflow
    async def slow(wf: AsyncWorkflow, given: None) -> int:
        return await wf.step(wait)

    first = asyncio.create_task(slow.run(None, gid="g1"))
    await entered.wait()
    second = asyncio.create_task(slow.run(None, gid="g1"))
    assert (await workflows.resume(*world.request_to_resume("g1"))).status == 425
    leave.set()

    assert [await first, await second, await slow.run(None, gid="g1")] == [1, 1, 1]


async def test_who_waits_is_not_given_the_result_of_another_workflow(world: World) -> None:
    workflows = world.async_workflows()
    entered, leave = asyncio.Event(), asyncio.Event()

    @workflows.workflow
    async def slow(wf: AsyncWorkflow, given: None) -> int:
        entered.set()
        await leave.wait()
        return 5

    @workflows.workflow
    async def other(wf: AsyncWorkflow, given: None) -> int:
        return 7

    first = asyncio.create_task(slow.run(None, gid="g1"))
    await entered.wait()
    with pytest.raises(RequestRefusedError, match="of the workflow 'slow', not 'other'"):
        await other.run(None, gid="g1")
    leave.set()

    assert await first == 5


def test_threads_run_a_workflow_once_at_a_time(world: World) -> None:
    workflows = world.workflows()
    entered, leave = threading.Event(), threading.Event()
    runs = count(1)

    def wait(branch: BranchContext) -> int:
        entered.set()
        leave.wait(10)
        return next(runs)

    @workflows.workflow
    def slow(wf: Workflow, given: None) -> int:
        return wf.step(wait)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(slow.run, None, gid="g1")
        entered.wait(10)
        second = threads.submit(slow.run, None, gid="g1")
        assert workflows.resume(*world.request_to_resume("g1")).status == 425
        leave.set()
        assert (first.result(10), second.result(10)) == (1, 1)


async def test_who_waits_for_another_is_told_when_that_is_cancelled(world: World) -> None:
    workflows = world.async_workflows()
    entered = asyncio.Event()

    async def wait(branch: BranchContext) -> None:
        entered.set()
        await asyncio.Event().wait()

    @workflows.workflow
    async def slow(wf: AsyncWorkflow, given: None) -> None:
        await wf.step(wait)

    first = asyncio.create_task(slow.run(None, gid="g1"))
    await entered.wait()
    second = asyncio.create_task(slow.run(None, gid="g1"))
    await asyncio.sleep(0)
    first.cancel()

    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(WorkflowInterruptedError, match="broken off"):
        await second
    assert world.reports == []


# -- steps of XA ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mysql", "postgres"])
def test_a_refused_step_of_xa_is_not_prepared_later_though_the_workflow_succeeds(
    request: pytest.FixtureRequest, world: World, kind: str
) -> None:
    ledger = Ledger(request.getfixturevalue(f"shared_{kind}_url"))

    def refuse(connection: Any) -> None:
        raise BranchFailed("no")

    def register(workflows: Workflows) -> Callable[[], str]:
        @workflows.workflow
        def choose(wf: Workflow, given: None) -> str:
            try:
                wf.xa(ledger.connect, refuse)
            except StepFailed:
                return "another way"
            return "this way"

        return lambda: choose.run(None, gid=gid)

    gid = f"gid-{uuid4().hex}"
    world.away("/submit", 2)
    with pytest.raises(CoordinatorUnreachableError):
        register(world.workflows())()

    assert register(world.workflows())() == "another way"
    assert world.reports == [("01", "action", "failed"), ("01", "rollback", "succeed"), ("succeed",)]
    slower = XaKey(gid=gid, branch_id="01", trans_type="workflow")
    with pytest.raises(BranchFailed, match="was rolled back before its action came"):
        prepare_sync(ledger.connect, slower, lambda _: None, register=lambda: None)


# -- steps that run at once ----------------------------------------------------------------


async def test_steps_taken_together_keep_their_numbers(world: World) -> None:
    workflows = world.async_workflows()
    gates = [asyncio.Event() for _ in range(3)]

    async def wait(branch: BranchContext, number: int) -> str:
        await gates[number].wait()
        if number:
            gates[number - 1].set()
        return f"{number} is {branch.branch_id}"

    @workflows.workflow
    async def fan_out(wf: AsyncWorkflow, given: None) -> list[str]:
        return list(await asyncio.gather(*(wf.step(wait, number) for number in range(3))))

    gates[2].set()
    assert await fan_out.run(None, gid="g1") == ["0 is 01", "1 is 02", "2 is 03"]
    assert [report[0] for report in world.reports[:-1]] == ["03", "02", "01"]


async def test_a_step_that_is_under_way_when_another_is_refused_is_rolled_back(world: World) -> None:
    workflows = world.async_workflows()
    begun = asyncio.Event()

    async def slow(branch: BranchContext) -> None:
        begun.set()
        await asyncio.sleep(0.02)

    async def refuse(branch: BranchContext) -> None:
        await begun.wait()
        raise BranchFailed("no")

    async def undo(branch: BranchContext) -> None:
        undone.append(branch.branch_id)

    undone: list[str] = []

    @workflows.workflow
    async def both(wf: AsyncWorkflow, given: None) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(wf.branch().on_rollback(undo).step(slow))
            group.create_task(wf.branch().on_rollback(undo).step(refuse))

    with pytest.raises(TransactionFailedError, match=r"step 02 \(refuse\) failed: no"):
        await both.run(None, gid="g1")
    assert undone == ["01"]
    assert ("01", "action", "succeed") in world.reports


async def test_a_step_that_nobody_awaits_keeps_it_from_ending(world: World) -> None:
    workflows = world.async_workflows()
    late: list[asyncio.Task[None]] = []

    async def pay(branch: BranchContext) -> None:
        raise AssertionError("its time is over")

    @workflows.workflow
    async def forgets(wf: AsyncWorkflow, given: None) -> None:
        await wf.call(f"{SHOP}/deduct")
        late.append(asyncio.create_task(wf.step(pay)))

    with pytest.raises(WorkflowInterruptedError, match=r"step 02 \(pay\) was not awaited"):
        await forgets.run(None, gid="g1")
    with pytest.raises(ValueError, match="is over"):
        await late[0]
    assert world.reports == [("01", "action", "succeed")]


async def test_a_step_that_begins_after_the_end_is_not_taken(world: World) -> None:
    workflows = world.async_workflows()
    late: list[asyncio.Task[None]] = []

    async def pay(branch: BranchContext) -> None:
        raise AssertionError("its time is over")

    @workflows.workflow
    async def refuses(wf: AsyncWorkflow, given: None) -> None:
        late.append(asyncio.create_task(wf.step(pay)))
        raise BranchFailed("no")

    with pytest.raises(TransactionFailedError):
        await refuses.run(None, gid="g1")
    with pytest.raises(ValueError, match="is over"):
        await late[0]
    assert world.reports == [("failed",)]


async def test_steps_do_not_outlive_a_cancelled_execution(world: World) -> None:
    workflows = world.async_workflows()
    begun = asyncio.Event()
    ended: list[bool] = []

    async def slow(branch: BranchContext) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    @workflows.workflow
    async def leaves_it(wf: AsyncWorkflow, given: None) -> None:
        step = asyncio.create_task(wf.step(slow))
        await begun.wait()
        step.cancel()

    run = asyncio.create_task(leaves_it.run(None, gid="g1"))
    await begun.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert ended == [True]


async def test_sequences_at_once_have_numbers_of_their_own(world: World) -> None:
    workflows = world.async_workflows()
    orders: list[list[str]] = [[], []]

    async def note(branch: BranchContext, run: int, pause: int) -> str:
        for _ in range(pause):
            await asyncio.sleep(0)
        orders[run].append(branch.branch_id)
        return branch.branch_id

    @workflows.workflow
    async def lanes(wf: AsyncWorkflow, run: int) -> list[list[str]]:
        async def one(lane: AsyncWorkflow, pause: int) -> list[str]:
            return [await lane.step(note, run, pause), await lane.step(note, run, pause)]

        # In one run the first is the slower one, in the other the second.
        pauses = (20, 0) if run else (0, 20)
        return list(await asyncio.gather(*(one(wf.lane(), pause) for pause in pauses)))

    expected = [["01.01", "01.02"], ["02.01", "02.02"]]
    assert [await lanes.run(run, gid=f"g{run}") for run in range(2)] == [expected, expected]
    assert orders[0] != orders[1]


def test_more_than_99_branches(world: World) -> None:
    workflows = world.workflows()

    @workflows.workflow
    def many(wf: Workflow, given: None) -> list[str]:
        return [wf.step(lambda branch: branch.branch_id) for _ in range(120)]

    assert many.run(None, gid="g1")[97:102] == ["98", "99", "100", "101", "102"]
    assert len({report[0] for report in world.reports}) == 121


# -- what must not be mixed up -------------------------------------------------------------


def versions(world: World, first: Callable[[Workflow], Any], second: Callable[[Workflow], Any]) -> None:
    """Let one version of a workflow be interrupted at its end, and resume it with the other."""
    workflows = world.workflows()

    @workflows.workflow("buy")
    def before(wf: Workflow, given: None) -> None:
        first(wf)
        raise BranchOngoing("for now")

    with pytest.raises(WorkflowInterruptedError):
        before.run(None, gid="g1")
    workflows = world.workflows()
    workflows.workflow("buy")(lambda wf, given: second(wf))
    workflows.run("buy", gid="g1")


def pay(branch: BranchContext) -> int:
    return 1


def ship(branch: BranchContext) -> str:
    return "x"


CHANGES = [
    pytest.param(lambda wf: wf.step(pay), lambda wf: wf.step(ship), r"action of 01 .* 'pay', .* 'ship'", id="function"),
    pytest.param(lambda wf: wf.call(f"{SHOP}/a"), lambda wf: wf.call(f"{SHOP}/b"), "'/a', .* call '/b'", id="path"),
    pytest.param(lambda wf: wf.step(pay), lambda wf: wf.call(f"{SHOP}/a"), "step 'pay', .* call '/a'", id="kind"),
    pytest.param(lambda wf: wf.step(pay), lambda wf: None, "01 is recorded, and was not asked for", id="left out"),
    pytest.param(
        lambda wf: wf.branch("x").step(pay), lambda wf: wf.branch("x").step(ship), "01 .* cannot be read", id="type"
    ),
]


@pytest.mark.parametrize(("first", "second", "says"), CHANGES)
def test_a_function_that_does_something_else_is_stopped(world: World, first: Any, second: Any, says: str) -> None:
    with pytest.raises(WorkflowChangedError, match=f"workflow g1 does something else than is recorded of it: .*{says}"):
        versions(world, first, second)
    assert world.stored["g1"].status is Status.PREPARED


def test_what_may_differ_between_versions(world: World) -> None:
    versions(
        world,
        lambda wf: (wf.branch("pay").step(pay), wf.call(f"{SHOP}/a?x=1")),
        lambda wf: (wf.branch("pay").step(lambda branch: 2), wf.call("http://elsewhere/a"), wf.step(ship)),
    )
    assert world.calls == ["/a action"]


def test_who_has_begun_to_commit_does_not_roll_back(world: World) -> None:
    workflows = world.workflows()
    world.answer("/confirm", PATIENCE)
    refuse = iter([False, True])

    @workflows.workflow
    def fickle(wf: Workflow, given: None) -> None:
        wf.branch().on_commit(f"{SHOP}/confirm").step(pay)
        wf.branch().on_commit(noted, "mail").step(pay)
        if next(refuse):
            raise BranchFailed("by chance")

    with pytest.raises(WorkflowInterruptedError):
        fickle.run(None, gid="g1")
    with pytest.raises(WorkflowChangedError, match="begun to commit, and is now to rollback"):
        fickle.run(None, gid="g1")


def test_what_another_sdk_recorded_is_not_guessed(world: World) -> None:
    workflows = world.workflows()
    world.away("/registerBranch", 2)
    buy = saga(workflows)
    with pytest.raises(CoordinatorUnreachableError):
        buy.run(ORDER, gid="g1")
    rules = world.workflows()._rules
    body = {"gid": "g1", "trans_type": "workflow", "branch_id": "01", "op": "action", "status": "succeed"}
    world.handle(httpx_request(rules, {**body, "data": "hello"}))

    with pytest.raises(WorkflowChangedError, match="not recorded by this SDK"):
        buy.run(ORDER, gid="g1")


def httpx_request(rules: Any, body: dict[str, str]) -> Any:
    return httpx.Request("POST", f"{rules.url}/api/dtmsvr/registerBranch", json=body)


# -- mistakes at the line that makes them --------------------------------------------------


def test_what_cannot_work_is_refused_where_it_is_written(world: World) -> None:
    workflows = world.workflows()
    saga(workflows)
    with pytest.raises(ValueError, match="there is a workflow 'buy' already"):
        saga(workflows)
    with pytest.raises(TypeError, match="the workflow and its input"):
        workflows.workflow("one")(lambda wf: None)  # type: ignore[arg-type, misc]
    with pytest.raises(ValueError, match="resume_url"):
        Workflows(Coordinator("http://txcoord"), resume_url="")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="http://"):
        saga(workflows_with(world, "me"))


def workflows_with(world: World, url: str) -> Workflows:
    return Workflows(Coordinator("http://txcoord"), resume_url=url)


def test_a_branch_has_one_step_and_one_of_each_ending(world: World) -> None:
    workflows = world.workflows()
    kept: list[Workflow] = []

    @workflows.workflow
    def mistakes(wf: Workflow, given: None) -> None:
        branch = wf.branch().on_commit(noted, "mail")
        with pytest.raises(ValueError, match="has its commit already"):
            branch.on_commit(noted, "again")
        branch.step(pay)
        with pytest.raises(ValueError, match="has its step already"):
            branch.call(f"{SHOP}/a")
        with pytest.raises(ValueError, match="shop"):
            wf.call("shop")
        kept.append(wf)

    mistakes.run(None)
    with pytest.raises(ValueError, match="is over"):
        kept[0].step(pay)


def test_a_result_without_a_form_in_json_is_named(world: World) -> None:
    workflows = world.workflows()

    @workflows.workflow
    def odd(wf: Workflow, given: None) -> None:
        wf.step(lambda branch: object())

    with pytest.raises(TypeError, match=r"the result of step 01 \(<lambda>\) of g1 cannot be stored as JSON"):
        odd.run(None, gid="g1")
    with pytest.raises(TypeError, match="the input of workflow odd"):
        workflows.run("odd", object())


def test_an_input_of_another_type_opens_nothing(world: World) -> None:
    workflows = world.workflows()

    @workflows.workflow
    def buy(wf: Workflow, order: Order) -> int:
        return order.quantity

    wrong: Any = {"product": "seven", "quantity": 1}
    with pytest.raises(ValueError, match=r"product") as caught:
        buy.run(wrong, gid="g1")
    assert caught.value.__notes__ == ["this is no input of workflow buy"]
    assert world.stored == {}

    buy.run(ORDER, gid="g1")
    assert workflows.run("buy", gid="g1") == buy.run(wrong, gid="g1") == ORDER.quantity


async def test_an_input_of_another_type_opens_nothing_for_asyncio(world: World) -> None:
    @world.async_workflows().workflow
    async def buy(wf: AsyncWorkflow, order: Order) -> int:
        return order.quantity

    wrong: Any = {"product": "seven", "quantity": 1}
    with pytest.raises(ValueError, match=r"product"):
        await buy.run(wrong, gid="g1")
    assert world.stored == {}


def test_bytes_are_what_they_are_declared_as(world: World) -> None:
    workflows = world.workflows()

    @workflows.workflow
    def perhaps(wf: Workflow, given: bytes | None) -> bytes | None:
        return given

    @workflows.workflow
    def undeclared(wf, given):  # type: ignore[no-untyped-def]
        return given

    @workflows.workflow
    def wrong(wf: Workflow, given: Any) -> bytes:
        result: Any = "text"
        return result

    assert [perhaps.run(given) for given in (b"1", b"\xff", None)] == [b"1", b"\xff", None]
    with pytest.raises(TypeError, match="input of workflow undeclared is bytes: declare it as bytes"):
        undeclared.run(b"1", gid="g1")
    assert "g1" not in world.stored
    with pytest.raises(TypeError, match="result of workflow wrong is declared as bytes, and is str"):
        wrong.run(None)
    with pytest.raises(TypeError, match="the input of workflow either cannot be read from JSON"):

        @workflows.workflow
        def either(wf: Workflow, given: bytes | str) -> None:
            pass


async def test_a_step_is_of_the_workflows_kind(world: World) -> None:
    workflows = world.async_workflows()

    async def later(branch: BranchContext) -> None:
        return None

    @workflows.workflow
    async def odd(wf: AsyncWorkflow, given: None) -> None:
        await wf.step(pay)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="pay is not a coroutine function"):
        await odd.run(None)
    blocking = world.workflows()
    blocking.workflow("odd")(lambda wf, given: wf.step(later))  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="later is a coroutine function: use AsyncWorkflows"):
        blocking.run("odd")


# -- the page ------------------------------------------------------------------------------


async def test_the_page_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_URL", "http://txcoord")
    client, transport = httpx.AsyncClient, httpx.MockTransport(world.handle)
    monkeypatch.setattr("txcoord_sdk.coordinator.httpx.AsyncClient", lambda: client(transport=transport))
    world.answer("/paris", (200, '"room 1"'))
    world.answer("/rome", REFUSED)
    names: dict[str, Any] = {}

    for source in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(source, str(PAGE), "exec"), names)

    async with client(transport=httpx.ASGITransport(names["app"]), base_url="http://shop") as shop:
        answers = [await shop.put("/purchases/g1", json={"id": 3, "quantity": 20}) for _ in range(2)]
        query, body = world.request_to_resume("g1")
        resumed = await shop.post("/workflow/resume", params=query, content=body)
    assert [answer.json() for answer in answers] == [1980, 1980]
    assert resumed.status_code == 200
    assert world.calls == ["/order-create action", "/deduct-try action", "/deduct-confirm commit"]
    assert await names["settle"].run(5) == "paid 5"
    with pytest.raises(TransactionFailedError, match="/rome"):
        await names["travel"].run(["paris", "rome"])
    assert world.calls[-1] == "/paris/cancel rollback"


# -- crashes -------------------------------------------------------------------------------

Plan = list[tuple[str, bool]]
"""For each step its kind, and whether it is refused."""

plans = st.lists(
    st.tuples(st.sampled_from(["call", "step", "tcc"]), st.sampled_from([False, False, False, True])), max_size=5
)


def planned(world: World, plan: Plan, done: Counter[str]) -> Any:
    """A participant that has just started, with a workflow that takes the steps of a plan."""
    workflows = world.workflows()

    def local(branch: BranchContext, refused: bool) -> str:
        world.event()
        done[f"{branch.branch_id} {branch.op}"] += 1
        world.event()
        if refused:
            raise BranchFailed("no")
        return f"{branch.branch_id} {branch.op} {done.total()}"

    @workflows.workflow
    def follow(wf: Workflow, given: Plan) -> list[str]:
        results = []
        for kind, refused in given:
            if kind == "step":
                results.append(wf.branch().on_commit(local, False).on_rollback(local, False).step(local, refused))
            else:
                path = f"{SHOP}/{kind}-{'refuse' if refused else 'go'}"
                commit = f"{path}-commit" if kind == "tcc" else ""
                answer = wf.call(path, on_commit=commit, on_rollback=f"{path}-rollback")
                results.append(answer.body.decode())
        return results

    return follow


def outcome_of(run: Callable[[], list[str]]) -> tuple[str, int]:
    try:
        return "done", len(run())
    except TransactionFailedError as error:
        return error.reason, 0


@given(plan=plans, crashes=st.lists(st.integers(1, 40), max_size=4))
def test_crashes_change_neither_the_end_nor_what_is_recorded(plan: Plan, crashes: list[int]) -> None:
    calm, stormy = Refusing(), Refusing()
    calm_done, stormy_done = Counter[str](), Counter[str]()
    expected = outcome_of(lambda: planned(calm, plan, calm_done).run(plan, gid="g1"))

    died = 0
    for crash_at in crashes:
        stormy.restart(crash_at)
        try:
            planned(stormy, plan, stormy_done).run(plan, gid="g1")
        except Crash:
            died += 1
        except TransactionFailedError:
            pass
    stormy.restart()
    found = outcome_of(lambda: planned(stormy, plan, stormy_done).run(plan, gid="g1"))

    assert found == expected
    assert stormy.reports == calm.reports
    # Effects happened at least once, and more often only where something died between effect and record.
    for ours, theirs in ((calm_done, stormy_done), (Counter(calm.calls), Counter(stormy.calls))):
        assert ours.keys() == theirs.keys()
        assert theirs.total() <= ours.total() + died


class Refusing(World):
    """A world whose participants refuse what says so in its path."""

    def _participant(self, request: Any) -> Any:
        path = request.url.path
        self.answer(path, REFUSED if path.endswith("-refuse") else OK)
        return super()._participant(request)
