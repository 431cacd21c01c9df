"""Parallel sequences of steps: whatever is refused, interrupted or broken off, each execution comes to the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdk.tests.workflow_support import RESUME_URL, SHOP, World
from txcoord.model import Status
from txcoord_sdk import AsyncCoordinator, TransactionFailedError
from txcoord_sdk.workflow import (
    AsyncWorkflow,
    AsyncWorkflowFunction,
    AsyncWorkflows,
    BranchContext,
    BranchFailed,
    StepFailed,
    Workflow,
    WorkflowChangedError,
    WorkflowFunction,
    WorkflowInterruptedError,
    _deliveries,
)

Lane = Callable[[], Awaitable[None]]


async def gathered(*lanes: Lane) -> None:
    await asyncio.gather(*(lane() for lane in lanes))


async def grouped(*lanes: Lane) -> None:
    async with asyncio.TaskGroup() as group:
        for lane in lanes:
            group.create_task(lane())


TOGETHER = [pytest.param(gathered, id="gather"), pytest.param(grouped, id="TaskGroup")]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_deliveries, "PATIENCE_S", 0.05)


# -- a refusal beside other steps ------------------------------------------------------------


@pytest.mark.parametrize("pauses", [0, 3], ids=["", "with pauses"])
@pytest.mark.parametrize("together", TOGETHER)
async def test_an_interrupted_rollback_after_a_refusal_beside_others_goes_on(
    world: World, together: Callable[..., Awaitable[None]], pauses: int
) -> None:
    workflows = world.async_workflows()
    taken = asyncio.Event()
    undone: list[int] = []
    away = [ConnectionError("the database is away")]

    async def take(branch: BranchContext, number: int) -> None:
        if number == 3:
            taken.set()

    async def undo(branch: BranchContext, number: int) -> None:
        if away:
            raise away.pop()
        undone.append(number)

    async def refuse(branch: BranchContext) -> None:
        await taken.wait()
        raise BranchFailed("sold out")

    @workflows.workflow
    async def travel(wf: AsyncWorkflow, given: None) -> None:
        first, second = wf.lane(), wf.lane()

        async def takes() -> None:
            for number in range(4):
                for _ in range(pauses):
                    await asyncio.sleep(0)
                await first.branch().on_rollback(undo, number).step(take, number)

        async def refuses() -> None:
            await second.step(refuse)

        await together(takes, refuses)

    with pytest.raises(ConnectionError):
        await travel.run(None, gid="g1")
    with pytest.raises(TransactionFailedError, match="sold out"):
        await travel.run(None, gid="g1")
    assert undone == [3, 2, 1, 0]


async def test_a_step_under_way_when_the_process_died_is_not_forgotten(world: World) -> None:
    """Its sequence gets to it later than another one to a refusal, which was recorded before the end."""
    undone: list[str] = []
    begun = asyncio.Event()

    def started(*, pause_s: float) -> Callable[[], Awaitable[None]]:
        workflows = world.async_workflows()

        async def take(branch: BranchContext) -> None:
            begun.set()
            if pause_s == 0:
                await asyncio.Event().wait()  # and then the process dies

        async def undo(branch: BranchContext) -> None:
            undone.append(branch.branch_id)

        async def refuse(branch: BranchContext) -> None:
            await begun.wait()
            raise BranchFailed("sold out")

        @workflows.workflow
        async def travel(wf: AsyncWorkflow, given: None) -> None:
            async def takes(lane: AsyncWorkflow) -> None:
                await asyncio.sleep(pause_s)
                await lane.branch().on_rollback(undo).step(take)

            async with asyncio.TaskGroup() as group:
                group.create_task(takes(wf.lane()))
                group.create_task(wf.lane().step(refuse))

        return lambda: travel.run(None, gid="g1")

    first = asyncio.create_task(started(pause_s=0)())
    while not world.reports:
        await asyncio.sleep(0.01)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first

    with pytest.raises(TransactionFailedError, match="sold out"):
        await started(pause_s=0.05)()
    assert undone == ["01.01"]


def test_threads_get_results_in_the_order_of_the_first_execution(world: World) -> None:
    seen: list[str] = []

    def started(pauses_s: dict[str, float]) -> WorkflowFunction[None, None]:
        @world.workflows().workflow
        def travel(wf: Workflow, given: None) -> None:
            def book(lane: Workflow, city: str) -> None:
                for part in ("room", "train"):
                    time.sleep(pauses_s[city])
                    seen.append(f"{city}: asks for {part}")
                    lane.call(f"{SHOP}/{city}/{part}")
                    seen.append(f"{city}: has {part}")

            with ThreadPoolExecutor(2) as pool:
                list(pool.map(book, (wf.lane(), wf.lane()), pauses_s))
            wf.call(f"{SHOP}/pay")

        return travel

    world.answer("/pay", (500, "out of order"))
    with pytest.raises(WorkflowInterruptedError):
        started({"paris": 0.0, "rome": 0.1}).run(None, gid="g1")
    seen.clear()
    started({"paris": 0.1, "rome": 0.0}).run(None, gid="g1")

    assert seen.index("rome: asks for room") < seen.index("paris: asks for train") < seen.index("rome: has room")
    assert len(world.calls) == 6


# -- a function that has changed -------------------------------------------------------------


@pytest.mark.parametrize("together", TOGETHER)
async def test_a_sequence_that_has_lost_a_step_is_noticed(
    world: World, impatient: None, together: Callable[..., Awaitable[None]]
) -> None:
    def started(*, parts: int) -> AsyncWorkflowFunction[None, None]:
        @world.async_workflows().workflow
        async def travel(wf: AsyncWorkflow, given: None) -> None:
            first, second = wf.lane(), wf.lane()

            async def takes() -> None:
                for _ in range(parts):
                    await first.call(f"{SHOP}/take")

            async def pays() -> None:
                while len(world.reports) < 2:
                    await asyncio.sleep(0)
                await second.call(f"{SHOP}/pay")
                await second.call(f"{SHOP}/post")

            await together(takes, pays)

        return travel

    world.answer("/post", (500, "out of order"))
    with pytest.raises(WorkflowInterruptedError):
        await started(parts=2).run(None, gid="g1")
    with pytest.raises(WorkflowChangedError) as caught:
        await started(parts=1).run(None, gid="g1")
    assert caught.value.branch_id == "01.02"
    assert "was not asked for" in str(caught.value)


def test_a_function_whose_steps_have_changed_places_is_noticed(world: World, impatient: None) -> None:
    def started(*, first: int) -> WorkflowFunction[None, None]:
        @world.workflows().workflow
        def travel(wf: Workflow, given: None) -> None:
            branches = [wf.branch(), wf.branch()]
            for number in (first, 1 - first):
                branches[number].call(f"{SHOP}/{number}")
            wf.call(f"{SHOP}/pay")

        return travel

    world.answer("/pay", (500, "out of order"))
    with pytest.raises(WorkflowInterruptedError):
        started(first=0).run(None, gid="g1")
    with pytest.raises(WorkflowChangedError, match="01 is recorded, and was not asked for where it was before"):
        started(first=1).run(None, gid="g1")


async def test_a_sequence_that_the_function_leaves_behind_keeps_it_from_ending(world: World) -> None:
    @world.async_workflows().workflow
    async def travel(wf: AsyncWorkflow, given: None) -> None:
        async def takes() -> None:
            for _ in range(3):
                await wf.call(f"{SHOP}/take")

        left.append(asyncio.create_task(takes()))
        while not world.calls:
            await asyncio.sleep(0)

    left: list[asyncio.Task[None]] = []
    with pytest.raises(WorkflowInterruptedError, match="asked for after the function had returned"):
        await travel.run(None, gid="g1")
    with suppress(ValueError):
        await left[0]


# -- any plan, broken off anywhere -----------------------------------------------------------


class Slow(World):
    """A world whose coordinator takes its time."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random

    async def pause(self, most: int = 12) -> None:
        for _ in range(self.random.randint(0, most)):
            await asyncio.sleep(0)

    async def handle_later(self, request: httpx.Request) -> httpx.Response:
        await self.pause()
        response = self.handle(request)
        await self.pause()
        return response

    def async_workflows(self, **options: Any) -> AsyncWorkflows:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self.handle_later))
        return AsyncWorkflows(AsyncCoordinator("http://txcoord", http=http), resume_url=RESUME_URL, **options)


Plan = list[list[bool]]
"""For each sequence its steps: whether each is refused."""

lane_plans = st.lists(st.lists(st.sampled_from([False] * 5 + [True]), min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    plan=lane_plans,
    seed=st.integers(0, 2**32),
    deaths=st.lists(st.integers(1, 200), max_size=4),
    is_grouped=st.booleans(),
    forgives=st.booleans(),
)
async def test_what_was_taken_stands_or_is_undone(
    plan: Plan, seed: int, deaths: list[int], is_grouped: bool, forgives: bool
) -> None:
    world = Slow(Random(seed))
    taken: set[str] = set()
    undone: set[str] = set()

    def started() -> AsyncWorkflowFunction[Plan, None]:
        """A process that has just started; its pauses are other ones each time."""

        async def take(branch: BranchContext, refused: bool) -> None:
            await world.pause()
            if refused:
                raise BranchFailed("no")
            taken.add(branch.branch_id)
            await world.pause()

        async def undo(branch: BranchContext) -> None:
            await world.pause()
            undone.add(branch.branch_id)

        @world.async_workflows().workflow
        async def travel(wf: AsyncWorkflow, given: Plan) -> None:
            async def follow(lane: AsyncWorkflow, steps: list[bool]) -> None:
                for refused in steps:
                    await world.pause(world.random.choice((0, 40)))
                    try:
                        await lane.branch().on_rollback(undo).step(take, refused)
                    except StepFailed:
                        if not forgives:
                            raise

            lanes = [partial(follow, wf.lane(), steps) for steps in given]
            await (grouped if is_grouped else gathered)(*lanes)

        return travel

    for turns in deaths:
        running = asyncio.create_task(started().run(plan, gid="g1"))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        with suppress(asyncio.CancelledError, TransactionFailedError):
            await running
    with suppress(TransactionFailedError):
        await started().run(plan, gid="g1")

    if forgives or not any(map(any, plan)):
        assert world.stored["g1"].status is Status.SUCCEEDED
        assert len(taken) == sum(not refused for steps in plan for refused in steps)
        assert not undone
    else:
        assert world.stored["g1"].status is Status.FAILED
        assert {report[0] for report in world.reports if report[1:] == ("action", "succeed")} == undone
