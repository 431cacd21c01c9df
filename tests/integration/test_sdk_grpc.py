"""The SDK over gRPC: against a running coordinator, over its gRPC and its HTTP API, with gRPC participants."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis
from google.protobuf.wrappers_pb2 import Int64Value
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection

from localservers.processes import free_port
from sdk.tests.client_support import unused_url
from sdk.tests.grpc_support import serving_async, serving_threads
from tests.e2e.harness import Process, coordinator
from tests.integration.grpc_bank import AMOUNT, BALANCE, SMALL_AMOUNT, Bank, bank_at
from txcoord import __version__
from txcoord_sdk import (
    AsyncCoordinator,
    AsyncTcc,
    Coordinator,
    CoordinatorUnreachableError,
    Message,
    Outcome,
    Pattern,
    RequestRefusedError,
    Saga,
    Status,
    TransactionFailedError,
    TransactionNotFoundError,
    TransactionRunningError,
    TryFailedError,
    new_gid,
)
from txcoord_sdk._calls import Flow
from txcoord_sdk._rules import Rules
from txcoord_sdk.barrier.redis import Increment
from txcoord_sdk.grpc import (
    QUERY_PREPARED,
    RESUME_WORKFLOW,
    BranchFailed,
    BranchOngoing,
    add_query_prepared,
    add_workflows,
)
from txcoord_sdk.workflow import AsyncWorkflow, AsyncWorkflows, Workflow, WorkflowInterruptedError, Workflows

UNTOUCHED = {"out": (BALANCE, 0), "in": (BALANCE, 0)}
ONGOING = BranchOngoing("not yet")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with coordinator("memory://", tmp_path_factory.mktemp("coordinator"), TXCOORD_RETRY_INTERVAL_S="1") as process:
        yield process


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: Process) -> str:
    return f"grpc://127.0.0.1:{server.grpc_port}" if request.param == "grpc" else server.url


@pytest.fixture
def amount(url: str) -> Int64Value:
    return AMOUNT if url.startswith("grpc") else SMALL_AMOUNT


@pytest.fixture
def moved(amount: Int64Value) -> dict[str, tuple[int, int]]:
    return {"out": (BALANCE - amount.value, 0), "in": (BALANCE + amount.value, 0)}


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncCoordinator]:
    async with AsyncCoordinator(url, attempts=3, backoff=0.01) as client:
        yield client


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Bank]:
    async with bank_at(tmp_path / "bank.db") as bank:
        yield bank


# -- sagas ---------------------------------------------------------------------------------


def transfer(bank: Bank, amount: Int64Value, **options: Any) -> Saga:
    saga = Saga(**options)
    for name in ("Out", "In"):
        saga.step(bank.url(name), bank.url(name), amount)
    return saga


@pytest.mark.parametrize("wait_result", [False, True])
async def test_a_saga_takes_effect_once(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value, moved: dict[str, Any], wait_result: bool
) -> None:
    saga = transfer(bank, amount, wait_result=wait_result)

    await client.submit(saga)
    await client.submit(saga)

    found = await client.wait(saga.gid)
    assert (found.pattern, found.status) == (Pattern.SAGA, Status.SUCCEEDED)
    assert [(each.op, each.status.value) for each in found.branches] == [
        ("compensate", "prepared"),
        ("action", "succeed"),
    ] * 2
    assert bank.calls(saga.gid) == ["Out-action", "In-action"]
    assert found.branch("01").payload == amount.SerializeToString()
    assert await bank.balances() == moved


async def test_a_refused_saga_is_undone_and_says_why(client: AsyncCoordinator, bank: Bank, amount: Int64Value) -> None:
    bank.script("In", "action", BranchFailed("purse closed"))
    bank.script("In", "compensate", ONGOING)
    bank.script("Out", "compensate", LookupError("broken"))
    saga = transfer(bank, amount, retry_interval=1)

    with pytest.raises(TransactionFailedError, match="purse closed"):
        await client.run(saga)

    found = await client.wait(saga.gid)
    assert found.status is Status.FAILED
    assert bank.calls(saga.gid) == [
        "Out-action",
        "In-action",
        "In-compensate",
        "In-compensate",
        "Out-compensate",
        "Out-compensate",
    ]
    assert await bank.balances() == UNTOUCHED


async def test_a_waiting_submit_of_a_refused_saga_raises_its_reason(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value
) -> None:
    bank.script("In", "action", BranchFailed("purse closed"))

    with pytest.raises(TransactionFailedError, match="purse closed") as caught:
        await client.submit(transfer(bank, amount, wait_result=True))

    assert (await client.wait(caught.value.gid)).reason.count("purse closed") == 1


async def test_an_action_that_is_not_ready_is_called_again(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value, moved: dict[str, Any]
) -> None:
    bank.script("Out", "action", ONGOING)
    saga = transfer(bank, amount, wait_result=True, retry_interval=1, branch_headers={"X-Tenant": "t1"})

    with pytest.raises(TransactionRunningError) as caught:
        await client.submit(saga)

    assert caught.value.status is Status.SUBMITTED
    assert (await client.wait(saga.gid)).status is Status.SUCCEEDED
    assert bank.calls(saga.gid) == ["Out-action", "Out-action", "In-action"]
    assert [each.metadata["x-tenant"] for each in bank.received] == ["t1"] * 3
    assert await bank.balances() == moved


@pytest.mark.parametrize("in_order", [False, True])
async def test_concurrent_steps_keep_their_order(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value, moved: dict[str, Any], in_order: bool
) -> None:
    saga = Saga(concurrent=True)
    first = saga.step(bank.url("In"), bank.url("In"), amount)
    saga.step(bank.url("Out"), bank.url("Out"), amount, after=[first] if in_order else [])

    await client.run(saga)

    calls = bank.calls(saga.gid)
    assert calls == ["In-action", "Out-action"] if in_order else sorted(calls) == ["In-action", "Out-action"]
    assert await bank.balances() == moved


async def test_an_empty_url_is_success_and_a_request_timeout_is_passed_on(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value
) -> None:
    saga = Saga(request_timeout=6, wait_result=True)
    saga.step("", "", b"")
    saga.step(bank.url("In"), "", amount)

    await client.submit(saga)

    assert (await client.wait(saga.gid)).status is Status.SUCCEEDED
    assert "x-tenant" not in bank.received[0].metadata


async def test_a_participant_that_cannot_be_reached_is_called_until_the_deadline(client: AsyncCoordinator) -> None:
    with unused_url() as nobody:
        saga = Saga(timeout_to_fail=1)
        saga.step(f"{nobody.removeprefix('http://')}/bank.Purses/Out", "", b"")

        with pytest.raises(TransactionFailedError, match=r"[Tt]imeout"):
            await client.run(saga)


# -- TCC -----------------------------------------------------------------------------------


def opened(client: AsyncCoordinator, **options: Any) -> AsyncTcc:
    return client.tcc(protocol="grpc", **options)


async def reserve(tcc: AsyncTcc, bank: Bank, amount: Int64Value, *names: str) -> list[int]:
    answers = [await tcc.call(bank.url(name), bank.url(name), bank.url(name), amount) for name in names]
    return [Int64Value.FromString(answer.body).value for answer in answers]


async def test_a_tcc_is_tried_then_confirmed(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value, moved: dict[str, Any]
) -> None:
    async with opened(client, wait_result=True, branch_headers={"X-Tenant": "t1"}) as tcc:
        assert await reserve(tcc, bank, amount, "Out", "In") == [amount.value] * 2

    assert (await client.query(tcc.gid)).status is Status.SUCCEEDED
    assert bank.calls(tcc.gid) == ["Out-try", "In-try", "In-confirm", "Out-confirm"]
    assert {each.metadata["x-tenant"] for each in bank.received} == {"t1"}
    assert await bank.balances() == moved


async def test_a_refused_try_has_all_cancelled(client: AsyncCoordinator, bank: Bank, amount: Int64Value) -> None:
    bank.script("In", "try", BranchFailed("purse closed"))
    bank.script("In", "cancel", ONGOING)

    with pytest.raises(TryFailedError, match="purse closed") as caught:
        async with opened(client, retry_interval=1) as tcc:
            await reserve(tcc, bank, amount, "Out", "In")

    assert caught.value.outcome is Outcome.FAILURE
    found = await client.wait(tcc.gid)
    assert (found.status, found.reason) == (Status.FAILED, caught.value.what)
    assert bank.calls(tcc.gid) == ["Out-try", "In-try", "In-cancel", "In-cancel", "Out-cancel"]
    assert await bank.balances() == UNTOUCHED


@pytest.mark.parametrize(
    ("error", "outcome"), [(ONGOING, Outcome.ONGOING), (LookupError("broken"), Outcome.UNKNOWN)], ids=str
)
async def test_a_try_without_a_clear_answer_has_all_cancelled(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value, error: Exception, outcome: Outcome
) -> None:
    bank.script("Out", "try", error)

    with pytest.raises(TryFailedError) as caught:
        async with opened(client) as tcc:
            await reserve(tcc, bank, amount, "Out")

    assert caught.value.outcome is outcome
    assert (await client.wait(tcc.gid)).status is Status.FAILED
    assert await bank.balances() == UNTOUCHED


async def test_a_participant_has_branches_of_its_own(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value, moved: dict[str, Any]
) -> None:
    bank.nested = client
    async with opened(client) as tcc:
        await tcc.call(bank.url("Parcel"), bank.url("Parcel"), bank.url("Parcel"), amount)

    found = await client.wait(tcc.gid)
    assert found.status is Status.SUCCEEDED
    assert [branch.branch_id for branch in found.branches] == ["01", "01", "0101", "0101", "0102", "0102"]
    assert await bank.balances() == moved


async def test_the_try_names_the_coordinator(
    client: AsyncCoordinator, url: str, bank: Bank, amount: Int64Value
) -> None:
    async with opened(client) as tcc:
        await reserve(tcc, bank, amount, "In")

    said = bank.received[0].branch.coordinator_url
    async with AsyncCoordinator(said) as named:
        assert named.url == url
        assert (await named.wait(tcc.gid)).status is Status.SUCCEEDED


async def test_an_error_in_the_block_has_all_cancelled(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value
) -> None:
    tcc = opened(client)

    async def buy() -> None:
        async with tcc:
            await reserve(tcc, bank, amount, "Out")
            raise LookupError("no such customer")

    with pytest.raises(LookupError):
        await buy()

    assert (await client.wait(tcc.gid)).reason == "LookupError: no such customer"
    assert await bank.balances() == UNTOUCHED


async def test_a_try_that_cannot_be_reached_has_all_cancelled(client: AsyncCoordinator) -> None:
    with unused_url() as nobody, pytest.raises(TryFailedError) as caught:
        async with opened(client, timeout_to_fail=2) as tcc:
            await tcc.call(f"{nobody.removeprefix('http://')}/bank.Purses/Out")

    assert caught.value.outcome is Outcome.UNKNOWN
    assert (await client.query(tcc.gid)).status in (Status.ABORTING, Status.FAILED)


# -- messages ------------------------------------------------------------------------------


def credit(bank: Bank, amount: Int64Value, **options: Any) -> Message:
    message = Message(**options)
    message.step(bank.url("In"), amount)
    return message


async def test_a_message_is_delivered_however_often_it_takes(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value
) -> None:
    bank.script("In", "action", ONGOING, LookupError("broken"))
    message = credit(bank, amount, retry_interval=1)
    message.step(bank.url("Parcel"))

    await client.run(message)

    assert bank.calls(message.gid) == ["In-action"] * 3 + ["Parcel-action"]
    assert (await bank.balances())["in"] == (BALANCE + amount.value, 0)


async def test_a_concurrent_message_waits_for_no_step(client: AsyncCoordinator, bank: Bank, amount: Int64Value) -> None:
    bank.script("In", "action", ONGOING)
    message = credit(bank, amount, concurrent=True, wait_result=True, retry_interval=600)
    message.step(bank.url("Parcel"))

    with pytest.raises(TransactionRunningError):
        await client.submit(message)

    assert sorted(bank.calls(message.gid)) == ["In-action", "Parcel-action"]


async def test_a_topic_has_subscribers_over_grpc(client: AsyncCoordinator, bank: Bank, amount: Int64Value) -> None:
    topic = f"registered-{new_gid()}-ä"
    names = ("In", "Out", "Parcel", "In")
    assert [await client.subscribe(topic, bank.url(name)) for name in names] == [True] * 3 + [False]
    assert [await client.unsubscribe(topic, bank.url("Out")) for _ in range(2)] == [True, False]
    message = Message(protocol="grpc")
    message.step(f"topic://{topic}", amount)

    await client.run(message)

    assert sorted(bank.calls(message.gid)) == ["In-action", "Parcel-action"]
    assert [await client.delete_topic(topic) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("commits", [True, False])
async def test_the_check_back_decides_what_was_left_open(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value, commits: bool
) -> None:
    message = credit(bank, amount, timeout_to_fail=3, retry_interval=1)
    await client.prepare(message, bank.query_prepared)
    if commits:
        with closing(sqlite3.connect(bank.path)) as connection:
            connection.execute("insert into barrier (trans_type, gid, branch_id, op, barrier_id, reason)"
                               " values ('msg', ?, '00', 'msg', '01', 'msg')", (message.gid,))  # fmt: skip
            connection.commit()

    found = await client.wait(message.gid)

    assert found.status is (Status.SUCCEEDED if commits else Status.FAILED)
    assert bank.calls(message.gid) == (["In-action"] if commits else [])


def pays(amount: Int64Value, *, error: Exception | None = None) -> Callable[[AsyncConnection], Awaitable[None]]:
    async def pay(connection: AsyncConnection) -> None:
        take = text("update purse set balance = balance - :amount where name = 'out'")
        await connection.execute(take, {"amount": amount.value})
        if error:
            raise error

    return pay


async def test_a_local_transaction_and_its_message_go_together(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value, moved: dict[str, Any]
) -> None:
    sent, refused = credit(bank, amount, wait_result=True), credit(bank, amount)

    async with bank.engine.connect() as connection:
        await client.do_and_submit(sent, bank.query_prepared, connection, pays(amount))
        with pytest.raises(LookupError):
            await client.do_and_submit(
                refused, bank.query_prepared, connection, pays(amount, error=LookupError("no such customer"))
            )

    assert (await client.wait(sent.gid)).status is Status.SUCCEEDED
    assert (await client.wait(refused.gid)).status is Status.FAILED
    assert await bank.balances() == moved


async def test_a_commit_that_failed_for_the_caller_only_is_delivered(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value, moved: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Connection.commit

    def commit_and_fail(self: Connection) -> None:
        commit(self)
        raise ConnectionError("the answer was lost")

    message = credit(bank, amount, timeout_to_fail=3, retry_interval=1)
    async with bank.engine.connect() as connection:
        with monkeypatch.context() as patched:
            patched.setattr(Connection, "commit", commit_and_fail)
            with pytest.raises(ConnectionError):
                await client.do_and_submit(message, bank.query_prepared, connection, pays(amount))

    assert (await client.wait(message.gid)).status is Status.SUCCEEDED
    assert await bank.balances() == moved


@pytest.mark.parametrize("commits", [True, False])
async def test_the_check_back_finds_a_mark_in_redis(
    client: AsyncCoordinator,
    bank: Bank,
    amount: Int64Value,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    commits: bool,
) -> None:
    def lost(_: Rules, work: Message) -> Flow[str]:
        raise CoordinatorUnreachableError(work.gid, None, "the network is down")

    target = f"127.0.0.1:{free_port()}"
    message = credit(bank, amount, timeout_to_fail=3, retry_interval=1)
    async with redis.Redis.from_url(redis_url) as purses:
        await purses.set("purse ü", 100)
        async with serving_async(add=lambda server: add_query_prepared(server, purses), at=target):
            if commits:
                monkeypatch.setattr(Rules, "submit", lost)
                work = Increment("purse ü", -30)
                await client.redis_do_and_submit(message, f"{target}/{QUERY_PREPARED}", purses, work)
            else:
                await client.prepare(message, f"{target}/{QUERY_PREPARED}")
            found = await client.wait(message.gid)
        assert await purses.get("purse ü") == (b"70" if commits else b"100")

    assert found.status is (Status.SUCCEEDED if commits else Status.FAILED)
    assert bank.calls(message.gid) == (["In-action"] if commits else [])


# -- workflows -----------------------------------------------------------------------------


async def test_a_workflow_that_was_interrupted_is_resumed_over_grpc(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value, moved: dict[str, Any]
) -> None:
    bank.script("In", "action", LookupError("broken"))
    target = f"127.0.0.1:{free_port()}"
    workflows = AsyncWorkflows(client, resume_url=f"{target}/{RESUME_WORKFLOW}")

    @workflows.workflow(request_timeout=3, retry_interval=1)
    async def transfer(wf: AsyncWorkflow, given: bytes) -> bytes:
        for name in ("Out", "In"):
            answer = await wf.call(bank.url(name), given)
        return answer.body

    gid = new_gid()
    async with serving_async(add=lambda server: add_workflows(server, workflows), at=target):
        with pytest.raises(WorkflowInterruptedError):
            await transfer.run(amount.SerializeToString(), gid=gid)
        assert (await client.wait(gid)).status is Status.SUCCEEDED

    assert bank.calls(gid) == ["Out-action", "In-action", "In-action"]
    assert await transfer.run(b"", gid=gid) == amount.SerializeToString()
    assert await bank.balances() == moved


@pytest.mark.parametrize("serving", [serving_async, serving_threads])
async def test_workflows_that_block_are_resumed_by_either_server(
    url: str, bank: Bank, amount: Int64Value, moved: dict[str, Any], serving: Any
) -> None:
    bank.script("In", "action", LookupError("broken"))
    target = f"127.0.0.1:{free_port()}"
    with Coordinator(url, attempts=3, backoff=0.01) as client:
        workflows = Workflows(client, resume_url=f"{target}/{RESUME_WORKFLOW}")

        @workflows.workflow(request_timeout=3, retry_interval=1)
        def transfer(wf: Workflow, given: bytes) -> None:
            for name in ("Out", "In"):
                wf.call(bank.url(name), given)

        gid = new_gid()
        async with serving(add=lambda server: add_workflows(server, workflows), at=target):
            with pytest.raises(WorkflowInterruptedError):
                await asyncio.to_thread(transfer.run, amount.SerializeToString(), gid=gid)
            assert (await asyncio.to_thread(client.wait, gid)).status is Status.SUCCEEDED

    assert await bank.balances() == moved


# -- looking and steering, and the client without asyncio ----------------------------------


async def test_all_else_is_the_same_by_the_same_names(
    client: AsyncCoordinator, bank: Bank, amount: Int64Value, server: Process
) -> None:
    bank.script("Out", "action", ONGOING)
    saga = transfer(bank, amount, retry_interval=600)
    await client.ping()
    assert await client.version() == __version__
    with pytest.raises(TransactionNotFoundError):
        await client.wait("nobody-knows-it", timeout=1)
    with pytest.raises(TransactionNotFoundError):
        await client.retry_now("nobody-knows-it")

    await client.submit(saga)
    while not (await client.query(saga.gid)).waiting_for:
        await asyncio.sleep(0.01)
    listed = [each.gid async for each in client.list(status=Status.SUBMITTED, page_size=1)]
    assert saga.gid in listed
    await client.retry_now(saga.gid)
    assert (await client.wait(saga.gid)).status is Status.SUCCEEDED
    with pytest.raises(RequestRefusedError) as caught:
        await client.force_stop(saga.gid)
    assert caught.value.status is Status.SUCCEEDED


async def test_the_same_without_asyncio(url: str, bank: Bank, amount: Int64Value, moved: dict[str, Any]) -> None:
    is_binary = url.startswith("grpc")

    def work() -> None:
        with Coordinator(url) as client:
            client.ping()
            assert client.version() == __version__
            with client.tcc(wait_result=True, protocol="grpc") as tcc:
                for name in ("Out", "In"):
                    tcc.call(bank.url(name), bank.url(name), bank.url(name), amount)
            assert client.query(tcc.gid).status is Status.SUCCEEDED

            back = Saga()
            back.step(bank.url("In"), bank.url("In"), Int64Value(value=0))
            client.run(back)
            assert back.gid in {each.gid for each in client.list(pattern=Pattern.SAGA)}

            refused = Saga()
            refused.step(bank.url("Out"), bank.url("Out"), Int64Value(value=127 + BALANCE * 128))
            if is_binary:
                with pytest.raises(TransactionFailedError, match="not enough money"):
                    client.run(refused)
            else:
                with pytest.raises(ValueError, match="grpc://"):
                    client.run(refused)

            engine = create_engine(f"sqlite:///{bank.path}")
            message = Message(wait_result=True)
            message.step(bank.url("In"), Int64Value(value=0))
            with engine.connect() as connection:
                client.do_and_submit(message, bank.query_prepared, connection, lambda _: None)
            engine.dispose()
            assert client.wait(message.gid).status is Status.SUCCEEDED

    await asyncio.to_thread(work)

    assert await bank.balances() == moved


async def test_a_gid_that_is_not_ascii_means_the_same_over_grpc(client: AsyncCoordinator, bank: Bank) -> None:
    message = Message(f"größe-{client.url.partition(':')[0]}", timeout_to_fail=3, retry_interval=1)
    message.step(bank.url("In"), SMALL_AMOUNT)
    async with bank.engine.connect() as connection:

        async def nothing(_: Any) -> None:
            pass

        await client.do_and_submit(message, bank.query_prepared, connection, nothing)

    assert (await client.wait(message.gid)).status is Status.SUCCEEDED
    assert [each.branch.gid for each in bank.received] == [message.gid]


async def test_a_coordinator_that_is_away_is_said_to_be() -> None:
    saga = Saga("g1")
    saga.step("http://nobody")
    with unused_url() as nobody:
        url = nobody.replace("http", "grpc")
        async with AsyncCoordinator(url, attempts=2, backoff=0.01, timeout=5) as client:
            with pytest.raises(CoordinatorUnreachableError, match="UNAVAILABLE"):
                await client.submit(saga)
        with (
            Coordinator(url, attempts=2, backoff=0.01, timeout=5) as blocking,
            pytest.raises(CoordinatorUnreachableError, match="UNAVAILABLE"),
        ):
            await asyncio.to_thread(blocking.submit, saga)
