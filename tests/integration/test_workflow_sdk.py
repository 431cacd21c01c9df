"""Workflows of the SDK against a running coordinator: DTM's scenarios, on HTTP, gRPC and databases that prepare."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.applications import Starlette

from localservers.processes import free_port
from sdk.tests.grpc_support import handler_of, serving_async
from tests.e2e.harness import Process, coordinator
from tests.integration.banks import BALANCE, Bank
from tests.integration.scripted import ERROR, ONGOING, Participant, failure
from tests.integration.serving import serving
from txcoord_sdk import (
    AsyncCoordinator,
    Coordinator,
    Pattern,
    RequestRefusedError,
    Status,
    TransactionFailedError,
    new_gid,
)
from txcoord_sdk.fastapi import workflow_router
from txcoord_sdk.grpc import RESUME_WORKFLOW, add_workflows
from txcoord_sdk.results import Transaction
from txcoord_sdk.starlette import workflow_route
from txcoord_sdk.workflow import (
    AsyncWorkflow,
    AsyncWorkflows,
    BranchContext,
    BranchFailed,
    BranchOngoing,
    Workflow,
    WorkflowInterruptedError,
    Workflows,
)


@dataclass(frozen=True)
class Transfer:
    amount: int


TRANSFER = Transfer(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with coordinator("memory://", tmp_path_factory.mktemp("coordinator"), TXCOORD_RETRY_INTERVAL_S="1") as process:
        yield process


@pytest.fixture(params=["http", "grpc"])
async def client(request: pytest.FixtureRequest, server: Process) -> AsyncIterator[AsyncCoordinator]:
    url = server.url if request.param == "http" else f"grpc://127.0.0.1:{server.grpc_port}"
    async with AsyncCoordinator(url, attempts=2, backoff=0.01) as client:
        yield client


@pytest.fixture
async def http_client(server: Process) -> AsyncIterator[AsyncCoordinator]:
    async with AsyncCoordinator(server.url, attempts=2, backoff=0.01) as client:
        yield client


@pytest.fixture
async def workflows(client: AsyncCoordinator) -> AsyncIterator[AsyncWorkflows]:
    async with resumable(client) as workflows:
        yield workflows


class resumable:
    """A registry whose resume endpoint is served."""

    def __init__(self, client: AsyncCoordinator, *, table: str | None = None) -> None:
        port = free_port()
        url = f"http://127.0.0.1:{port}/workflow/resume"
        self._workflows = AsyncWorkflows(client, resume_url=url, table=table)
        self._serving = serving(Starlette(routes=[workflow_route(self._workflows)]), port)

    async def __aenter__(self) -> AsyncWorkflows:
        await self._serving.__aenter__()
        return self._workflows

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._serving.__aexit__(*exc_info)


def rows(found: Transaction) -> list[tuple[str, str, str]]:
    return [(branch.branch_id, branch.op, branch.status.value) for branch in found.branches]


def transfer_between(workflows: AsyncWorkflows, participant: Participant) -> Any:
    """Like TCC: each side reserves, and keeps or gives back at the end."""

    @workflows.workflow
    async def transfer(wf: AsyncWorkflow, given: Transfer) -> str:
        for side in ("out", "in"):
            url = f"{participant.url}/{side}"
            await wf.call(f"{url}-try", given, on_commit=f"{url}-confirm", on_rollback=f"{url}-cancel")
        return f"moved {given.amount}"

    return transfer


# -- ends at once --------------------------------------------------------------------------


async def test_steps_then_commits_then_the_end(
    client: AsyncCoordinator, workflows: AsyncWorkflows, participant: Participant
) -> None:
    transfer = transfer_between(workflows, participant)
    gid = new_gid()

    assert await transfer.run(TRANSFER, gid=gid) == "moved 30"

    found = await client.query(gid)
    assert (found.pattern, found.status) == (Pattern.WORKFLOW, Status.SUCCEEDED)
    assert rows(found) == [
        ("01", "action", "succeed"),
        ("02", "action", "succeed"),
        ("02", "commit", "succeed"),
        ("01", "commit", "succeed"),
    ]
    assert participant.calls(gid) == ["out-try", "in-try", "in-confirm", "out-confirm"]
    assert {(call.method, call.body, call.query["trans_type"]) for call in participant.received} == {
        ("POST", b'{"amount":30}', "workflow")
    }


async def test_the_result_is_returned_on_repeat(workflows: AsyncWorkflows, participant: Participant) -> None:
    transfer = transfer_between(workflows, participant)
    gid = new_gid()

    first = await transfer.run(TRANSFER, gid=gid)
    again = await transfer.run(TRANSFER, gid=gid)

    assert (first, again) == ("moved 30", "moved 30")
    assert len(participant.calls(gid)) == 4


async def test_the_first_input_counts_and_a_gid_is_of_one_workflow(workflows: AsyncWorkflows) -> None:
    seen: list[int] = []
    gid = new_gid()

    async def note(branch: BranchContext, given: Transfer) -> None:
        seen.append(given.amount)
        raise BranchOngoing("not yet")

    @workflows.workflow
    async def first(wf: AsyncWorkflow, given: Transfer) -> None:
        await wf.step(note, given)

    @workflows.workflow
    async def second(wf: AsyncWorkflow, given: Transfer) -> None:
        await wf.step(note, given)

    for amount in (1, 2):
        with pytest.raises(WorkflowInterruptedError):
            await first.run(Transfer(amount), gid=gid)
    with pytest.raises(RequestRefusedError, match="of the workflow 'first', not 'second'"):
        await second.run(Transfer(3), gid=gid)

    assert seen == [1, 1]


async def test_a_refused_step_fails_it_all(
    client: AsyncCoordinator, workflows: AsyncWorkflows, participant: Participant
) -> None:
    transfer = transfer_between(workflows, participant)
    gid = new_gid()
    participant.script("in-try", failure('{"message": "closed"}'))

    for _ in range(2):
        with pytest.raises(TransactionFailedError, match=r"step 02 \(/in-try\) failed: closed"):
            await transfer.run(TRANSFER, gid=gid)

    found = await client.query(gid)
    assert (found.status, found.reason) == (Status.FAILED, "step 02 (/in-try) failed: closed")
    assert rows(found) == [("01", "action", "succeed"), ("02", "action", "failed"), ("01", "rollback", "succeed")]
    assert participant.calls(gid) == ["out-try", "in-try", "out-cancel"]


async def test_a_local_step_is_rolled_back_too(workflows: AsyncWorkflows, participant: Participant) -> None:
    participant.script("in", failure("closed"))
    ops: list[str] = []

    async def note(branch: BranchContext) -> None:
        ops.append(branch.op)

    @workflows.workflow
    async def transfer(wf: AsyncWorkflow, given: Transfer) -> None:
        await wf.branch().on_rollback(note).step(note)
        await wf.call(f"{participant.url}/in", given)

    with pytest.raises(TransactionFailedError, match="closed"):
        await transfer.run(TRANSFER)
    assert ops == ["action", "rollback"]


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
async def test_the_same_without_asyncio(server: Process, participant: Participant, framework: str) -> None:
    port = free_port()
    participant.script("out", ERROR)

    with Coordinator(server.url) as client:
        workflows = Workflows(client, resume_url=f"http://127.0.0.1:{port}/workflow/resume")

        @workflows.workflow
        def transfer(wf: Workflow, given: Transfer) -> int:
            wf.call(f"{participant.url}/out", given)
            return wf.step(lambda branch: given.amount)

        app: Any = Starlette(routes=[workflow_route(workflows)])
        if framework == "fastapi":
            app = FastAPI()
            app.include_router(workflow_router(workflows))
        gid = new_gid()
        async with serving(app, port):
            with pytest.raises(WorkflowInterruptedError):
                await asyncio.to_thread(transfer.run, TRANSFER, gid=gid)
            assert (await asyncio.to_thread(client.wait, gid)).status is Status.SUCCEEDED
        assert await asyncio.to_thread(transfer.run, TRANSFER, gid=gid) == 30

    assert participant.calls(gid) == ["out", "out"]


# -- is resumed ----------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [ERROR, ONGOING], ids=["error", "ongoing"])
async def test_what_is_interrupted_is_resumed_and_what_was_done_is_not_done_again(
    client: AsyncCoordinator, workflows: AsyncWorkflows, participant: Participant, answer: tuple[int, str]
) -> None:
    transfer = transfer_between(workflows, participant)
    gid = new_gid()
    participant.script("in-try", answer)

    with pytest.raises(WorkflowInterruptedError, match="in-try"):
        await transfer.run(TRANSFER, gid=gid)
    found = await client.wait(gid)

    assert found.status is Status.SUCCEEDED
    assert participant.calls(gid) == ["out-try", "in-try", "in-try", "in-confirm", "out-confirm"]
    assert await transfer.run(TRANSFER, gid=gid) == "moved 30"


async def test_a_function_that_asks_for_patience_is_resumed(
    client: AsyncCoordinator, workflows: AsyncWorkflows
) -> None:
    ready = [False, True]

    @workflows.workflow
    async def transfer(wf: AsyncWorkflow, given: None) -> bytes:
        if not ready.pop(0):
            raise BranchOngoing("not yet")
        return b"\xff"

    gid = new_gid()
    with pytest.raises(WorkflowInterruptedError, match="not yet"):
        await transfer.run(None, gid=gid)
    assert (await client.wait(gid)).status is Status.SUCCEEDED
    assert await transfer.run(None, gid=gid) == b"\xff"


@pytest.mark.parametrize("client", ["http"], indirect=True)
async def test_it_goes_on_through_patience_everywhere(
    client: AsyncCoordinator, workflows: AsyncWorkflows, participant: Participant
) -> None:
    paths = ["out", "in", "in-undo", "out-undo"]
    for path in paths:
        participant.script(path, ONGOING)
    participant.script("in", failure("closed"))

    @workflows.workflow(retry_interval=1)
    async def transfer(wf: AsyncWorkflow, given: Transfer) -> None:
        for side in ("out", "in"):
            url = f"{participant.url}/{side}"
            await wf.branch(rollback_if_failed=True).on_rollback(f"{url}-undo", given).call(url, given)

    gid = new_gid()
    with pytest.raises(WorkflowInterruptedError):
        await transfer.run(TRANSFER, gid=gid)
    found = await client.wait(gid)

    assert (found.status, found.reason) == (Status.FAILED, "step 02 (/in) failed: closed")
    assert participant.calls(gid) == [path for path in paths for _ in range(2)]


async def test_a_workflow_under_way_is_left_alone(
    server: Process, workflows: AsyncWorkflows, participant: Participant
) -> None:
    gate = participant.hold("out-try")
    transfer = transfer_between(workflows, participant)
    gid = new_gid()
    running = asyncio.create_task(transfer.run(TRANSFER, gid=gid))
    await participant.called("out-try", gid)

    # Until the coordinator has asked for it, and was told so.
    async with asyncio.timeout(15):
        while not (asked := await resumes_of(server, gid)):
            await asyncio.sleep(0.02)
    gate.set()

    assert asked[0]["code"] == 425
    assert await running == "moved 30"
    assert Counter(participant.calls(gid)).most_common(1)[0][1] == 1


async def resumes_of(server: Process, gid: str) -> list[dict[str, Any]]:
    """The coordinator's requests to go on with a workflow, so far."""
    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.get("/api/dtmsvr/query", params={"gid": gid})
    attempts: list[dict[str, Any]] = answer.json()["transaction"].get("resume", {}).get("attempts", [])
    return attempts


# -- gRPC ----------------------------------------------------------------------------------


class Desk:
    """A participant over gRPC that answers as it is told."""

    def __init__(self) -> None:
        self.answers: dict[str, list[grpc.StatusCode]] = {}
        self.calls: list[tuple[str, str]] = []

    def method(self, name: str) -> Callable[..., Awaitable[bytes]]:
        async def answer(message: bytes, context: Any) -> bytes:
            metadata = dict(context.invocation_metadata())
            self.calls.append((name, metadata["dtm-op"]))
            if code := self.answers.get(name) and self.answers[name].pop(0):
                await context.abort(code, f"{name} says no")
            return message[::-1]

        return answer


async def test_steps_over_grpc(client: AsyncCoordinator, workflows: AsyncWorkflows) -> None:
    desk = Desk()
    desk.answers = {"In": [grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED]}

    async with serving_async(handler_of({name: desk.method(name) for name in ("Out", "In", "Undo")})) as address:

        @workflows.workflow
        async def transfer(wf: AsyncWorkflow, given: bytes) -> bytes:
            answer = await wf.call(f"{address}/shop.Storage/Out", given, on_rollback=f"{address}/shop.Storage/Undo")
            assert answer.body == given[::-1]
            await wf.call(f"{address}/shop.Storage/In", given)
            return answer.body

        gid = new_gid()
        with pytest.raises(WorkflowInterruptedError, match="gRPC INTERNAL: In says no"):
            await transfer.run(b"\x00\xff", gid=gid)
        found = await client.wait(gid)

    assert (found.status, found.reason) == (Status.FAILED, "step 02 (/shop.Storage/In) failed: In says no")
    assert desk.calls == [("Out", "action"), ("In", "action"), ("In", "action"), ("Undo", "rollback")]


@pytest.mark.parametrize("client", ["grpc"], indirect=True)
async def test_it_goes_on_through_patience_everywhere_over_grpc(
    client: AsyncCoordinator, workflows: AsyncWorkflows
) -> None:
    desk = Desk()
    names = ["Out", "In", "InUndo", "OutUndo"]
    desk.answers = {name: [grpc.StatusCode.FAILED_PRECONDITION] for name in names}
    desk.answers["In"].append(grpc.StatusCode.ABORTED)

    async with serving_async(handler_of({name: desk.method(name) for name in names})) as address:

        @workflows.workflow(retry_interval=1)
        async def transfer(wf: AsyncWorkflow, given: bytes) -> None:
            for side in ("Out", "In"):
                url = f"{address}/shop.Storage/{side}"
                await wf.branch(rollback_if_failed=True).on_rollback(f"{url}Undo", given).call(url, given)

        gid = new_gid()
        with pytest.raises(WorkflowInterruptedError):
            await transfer.run(b"\x00\xff", gid=gid)
        found = await client.wait(gid)

    assert (found.status, found.reason) == (Status.FAILED, "step 02 (/shop.Storage/In) failed: In says no")
    assert [name for name, _ in desk.calls] == [name for name in names for _ in range(2)]


async def test_a_workflow_is_resumed_over_grpc(client: AsyncCoordinator, participant: Participant) -> None:
    participant.script("out", ONGOING)
    port = free_port()
    workflows = AsyncWorkflows(client, resume_url=f"127.0.0.1:{port}/{RESUME_WORKFLOW}")

    @workflows.workflow
    async def transfer(wf: AsyncWorkflow, given: bytes) -> bytes:
        await wf.call(f"{participant.url}/out")
        return given

    server = grpc.aio.server()
    add_workflows(server, workflows)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    gid = new_gid()
    try:
        with pytest.raises(WorkflowInterruptedError):
            await transfer.run(b"\x00\xff", gid=gid)
        assert (await client.wait(gid)).status is Status.SUCCEEDED
    finally:
        await server.stop(None)
    assert await transfer.run(b"", gid=gid) == b"\x00\xff"
    assert participant.calls(gid) == ["out", "out"]


# -- XA ------------------------------------------------------------------------------------


@pytest.fixture(params=["mysql", "postgres"])
def banks(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> Iterator[tuple[Bank, Bank]]:
    both = Bank(make_database(request.param)), Bank(make_database(request.param))
    yield both
    for bank in both:
        bank.end_all()


@pytest.fixture
async def xa_workflows(http_client: AsyncCoordinator, banks: tuple[Bank, Bank]) -> AsyncIterator[AsyncWorkflows]:
    async with resumable(http_client, table=banks[0].table) as workflows:
        yield workflows


def moved(banks: tuple[Bank, Bank], amount: int) -> bool:
    """Whether so much was moved, and no prepared transaction is left."""
    left, right = banks
    assert (left.prepared, right.prepared) == ([], [])
    return (left.balance, right.balance) == (BALANCE - amount, BALANCE + amount)


async def change(connection: AsyncConnection, bank: Bank, amount: int) -> int:
    await bank.change(connection, amount)
    return amount


async def test_xa_steps_commit_together(
    http_client: AsyncCoordinator, xa_workflows: AsyncWorkflows, banks: tuple[Bank, Bank]
) -> None:
    @xa_workflows.workflow
    async def transfer(wf: AsyncWorkflow, given: Transfer) -> int:
        out = await wf.xa(banks[0].engine, change, banks[0], -given.amount)
        assert banks[0].balance == BALANCE
        return out + await wf.xa(banks[1].engine, change, banks[1], given.amount * 2)

    gid = new_gid()
    assert await transfer.run(Transfer(0), gid=gid) == 0
    assert rows(await http_client.query(gid)) == [
        ("01", "business", "succeed"),
        ("01", "action", "succeed"),
        ("02", "business", "succeed"),
        ("02", "action", "succeed"),
        ("02", "commit", "succeed"),
        ("01", "commit", "succeed"),
    ]
    assert moved(banks, 0)


async def test_xa_steps_roll_back_together(
    http_client: AsyncCoordinator, xa_workflows: AsyncWorkflows, banks: tuple[Bank, Bank]
) -> None:
    async def refuse(connection: AsyncConnection) -> None:
        await change(connection, banks[1], 30)
        raise BranchFailed("closed")

    @xa_workflows.workflow
    async def transfer(wf: AsyncWorkflow, given: Transfer) -> None:
        await wf.xa(banks[0].engine, change, banks[0], -given.amount)
        await wf.xa(banks[1].engine, refuse)

    with pytest.raises(TransactionFailedError, match="closed"):
        await transfer.run(TRANSFER)
    assert moved(banks, 0)


async def test_xa_steps_go_on_through_patience_everywhere(
    http_client: AsyncCoordinator, xa_workflows: AsyncWorkflows, banks: tuple[Bank, Bank]
) -> None:
    patience = Counter({"before": 1, "within": 1, "after": 1})

    def ask(where: str) -> None:
        if patience[where]:
            patience[where] -= 1
            raise BranchOngoing(where)

    async def deposit(connection: AsyncConnection, amount: int) -> None:
        await change(connection, banks[1], amount)
        ask("within")

    @xa_workflows.workflow
    async def transfer(wf: AsyncWorkflow, given: Transfer) -> None:
        ask("before")
        await wf.xa(banks[0].engine, change, banks[0], -given.amount)
        await wf.xa(banks[1].engine, deposit, given.amount)
        ask("after")

    gid = new_gid()
    with pytest.raises(WorkflowInterruptedError, match="before"):
        await transfer.run(TRANSFER, gid=gid)
    assert (await http_client.wait(gid)).status is Status.SUCCEEDED
    assert moved(banks, 30)
    assert patience.total() == 0


class Crash(BaseException):
    """The participant's process is gone."""


@pytest.mark.parametrize("op", ["business", "action", "commit"])
@pytest.mark.parametrize("stored", [False, True], ids=["before it is stored", "after"])
async def test_an_xa_step_that_dies_around_a_record_ends_right(
    http_client: AsyncCoordinator, banks: tuple[Bank, Bank], op: str, stored: bool
) -> None:
    gid = new_gid()
    port = free_port()

    def participant() -> AsyncWorkflows:
        url = f"http://127.0.0.1:{port}/workflow/resume"
        workflows = AsyncWorkflows(http_client, resume_url=url, table=banks[0].table)

        @workflows.workflow
        async def transfer(wf: AsyncWorkflow, given: Transfer) -> int:
            out = await wf.xa(banks[0].engine, change, banks[0], -given.amount)
            return out + await wf.xa(banks[1].engine, change, banks[1], given.amount)

        return workflows

    first = participant()
    with pytest.raises(Crash):
        await dying(first, op, stored=stored).run("transfer", TRANSFER, gid=gid)
    async with serving(Starlette(routes=[workflow_route(participant())]), port):
        found = await http_client.wait(gid)

    # Between the record and the prepare nothing survives, and nobody can tell the work's result again.
    fails = op == "business" and stored
    assert found.status is (Status.FAILED if fails else Status.SUCCEEDED), found
    assert moved(banks, 0 if fails else 30)


def dying(workflows: AsyncWorkflows, op: str, *, stored: bool) -> AsyncWorkflows:
    """Let its process die when it reports an op of branch 02, before or after that is stored."""
    carry = workflows._carry

    async def dies(flow: Any) -> Any:
        if flow.__name__ == "report":
            body = flow.gi_frame.f_locals["body"]
            if (body.get("branch_id"), body.get("op")) == ("02", op):
                if stored:
                    await carry(flow)
                raise Crash
        return await carry(flow)

    workflows._carry = dies
    return workflows


async def test_saga_tcc_and_xa_in_one(
    http_client: AsyncCoordinator, xa_workflows: AsyncWorkflows, banks: tuple[Bank, Bank], participant: Participant
) -> None:
    transfer = transfer_between(xa_workflows, participant)

    @xa_workflows.workflow
    async def mixed(wf: AsyncWorkflow, given: Transfer) -> str:
        order = f"{participant.url}/order"
        await wf.call(order, given, on_rollback=f"{order}-undo")
        said = await transfer(wf, given)
        await wf.xa(banks[0].engine, change, banks[0], -given.amount)
        await wf.xa(banks[1].engine, change, banks[1], given.amount)
        return said

    gid = new_gid()
    assert await mixed.run(TRANSFER, gid=gid) == "moved 30"
    assert moved(banks, 30)
    assert participant.calls(gid) == ["order", "out-try", "in-try", "in-confirm", "out-confirm"]

    gid = new_gid()
    with pytest.raises(TransactionFailedError, match="not enough money"):
        await mixed.run(Transfer(BALANCE), gid=gid)
    assert moved(banks, 30)
    assert participant.calls(gid) == ["order", "out-try", "in-try", "in-cancel", "out-cancel", "order-undo"]
