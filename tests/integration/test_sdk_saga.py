"""The SDK's clients against a running coordinator and real participants: one list of scenarios for both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.e2e.harness import Process, coordinator
from tests.integration.scripted import ERROR, ONGOING, SUCCESS, Participant, failure
from txcoord_sdk import (
    AsyncCoordinator,
    Coordinator,
    CoordinatorUnreachableError,
    Op,
    OpStatus,
    Outcome,
    RequestRefusedError,
    Saga,
    Status,
    TransactionFailedError,
    TransactionNotFoundError,
    TransactionRunningError,
    new_gid,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with coordinator("memory://", tmp_path_factory.mktemp("coordinator"), TXCOORD_RETRY_INTERVAL_S="1") as process:
        yield process


class Client:
    """Either client: `await client.do("submit", saga)`."""

    def __init__(self, kind: type[Coordinator] | type[AsyncCoordinator], url: str) -> None:
        self._coordinator = kind(url, attempts=2, backoff=0.01)

    async def do(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self._coordinator, operation)
        if isinstance(self._coordinator, Coordinator):
            return await asyncio.to_thread(lambda: _all(method(*args, **kwargs)))
        result = method(*args, **kwargs)
        if inspect.isasyncgen(result):
            return [item async for item in result]
        return await result


def _all(result: Any) -> Any:
    return list(result) if isinstance(result, Iterator) else result


@pytest.fixture(params=[Coordinator, AsyncCoordinator], ids=["sync", "async"])
async def client(request: pytest.FixtureRequest, server: Process) -> AsyncIterator[Client]:
    client = Client(request.param, server.url)
    yield client
    await client.do("close")


def purchase(participant: Participant, **options: Any) -> Saga:
    saga = Saga(**options)
    saga.step(f"{participant.url}/order", f"{participant.url}/order-undo", {"id": 3, "tx_id": saga.gid})
    saga.step(f"{participant.url}/deduct", f"{participant.url}/deduct-undo", {"id": 3, "tx_id": saga.gid})
    return saga


async def test_a_saga_that_runs_through(client: Client, participant: Participant) -> None:
    saga = purchase(participant, branch_headers={"X-Tenant": "t1"})

    assert await client.do("run", saga) == saga.gid

    assert participant.calls(saga.gid) == ["order", "deduct"]
    [order, _] = participant.received
    assert (order.method, order.body) == ("POST", f'{{"id":3,"tx_id":"{saga.gid}"}}'.encode())
    assert order.headers["x-tenant"] == "t1"
    found = await client.do("query", saga.gid)
    assert found.raise_for_status().gid == saga.gid
    action = found.branch(saga.steps[0].branch_id)
    assert (action.status, action.payload) == (OpStatus.SUCCEEDED, order.body)
    assert [(attempt.outcome, attempt.code) for attempt in action.attempts] == [(Outcome.SUCCESS, 200)]
    assert abs(datetime.now(UTC) - found.succeeded_at) < timedelta(minutes=5)


async def test_a_saga_that_fails_is_undone_and_says_why(client: Client, participant: Participant) -> None:
    participant.script("deduct", failure("no stock"))
    saga = purchase(participant)

    with pytest.raises(TransactionFailedError, match="no stock") as caught:
        await client.do("run", saga)

    assert (caught.value.gid, caught.value.status) == (saga.gid, Status.FAILED)
    assert participant.calls(saga.gid) == ["order", "deduct", "deduct-undo", "order-undo"]


async def test_a_saga_is_waited_for_through_errors_and_retried_at_once_on_request(
    client: Client, participant: Participant
) -> None:
    participant.script("order", ERROR, ONGOING)
    saga = purchase(participant, retry_interval=3600)

    await client.do("submit", saga)
    for calls in (1, 2):
        await parked(client, saga.gid, after_calls=calls)
        await client.do("retry_now", saga.gid)
    found = await client.do("wait", saga.gid)

    assert found.status is Status.SUCCEEDED
    assert [attempt.outcome for attempt in found.branch("01").attempts] == [
        Outcome.UNKNOWN,
        Outcome.ONGOING,
        Outcome.SUCCESS,
    ]


async def parked(client: Client, gid: str, *, after_calls: int) -> None:
    """Wait until this many calls are on record and the next one is due much later."""
    async with asyncio.timeout(10):
        while True:
            found = await client.do("query", gid)
            is_waiting = found.due_at is not None and found.due_at > datetime.now(UTC) + timedelta(minutes=1)
            if is_waiting and len(found.branch("01").attempts) == after_calls:
                return
            await asyncio.sleep(0.01)


async def test_a_waiting_submit_tells_a_running_saga_from_a_failed_one(
    client: Client, participant: Participant
) -> None:
    participant.script("order", ONGOING)
    saga = purchase(participant, wait_result=True, retry_interval=3600)

    with pytest.raises(TransactionRunningError) as caught:
        await client.do("submit", saga)

    assert (caught.value.gid, caught.value.status) == (saga.gid, Status.SUBMITTED)
    assert "ongoing" in caught.value.reason
    with pytest.raises(TransactionRunningError, match="still submitted"):
        await client.do("wait", saga.gid, timeout=0)


async def test_a_submit_may_be_repeated_at_any_time(client: Client, participant: Participant) -> None:
    gate = participant.hold("order")
    saga = purchase(participant)

    await client.do("submit", saga)
    await participant.called("order", saga.gid)
    await client.do("submit", saga)
    gate.set()
    await client.do("wait", saga.gid)
    await client.do("submit", saga)
    await client.do("run", saga)

    assert participant.calls(saga.gid) == ["order", "deduct"]


async def test_a_repeated_submit_of_a_failed_saga_says_so(client: Client, participant: Participant) -> None:
    participant.script("order", failure("no such customer"))
    saga = purchase(participant)
    await client.do("submit", saga)
    await client.do("wait", saga.gid)

    with pytest.raises(TransactionFailedError, match="no such customer"):
        await client.do("submit", saga)


async def test_a_graph_runs_in_its_order(client: Client, participant: Participant) -> None:
    saga = Saga(concurrent=True)
    order = saga.step(f"{participant.url}/order")
    stock = saga.step(f"{participant.url}/stock", after=[order])
    payment = saga.step(f"{participant.url}/payment", after=[order])
    saga.step(f"{participant.url}/mail", after=[stock, payment])

    await client.do("run", saga)

    first, *middle, last = participant.calls(saga.gid)
    assert (first, sorted(middle), last) == ("order", ["payment", "stock"], "mail")


async def test_a_request_that_cannot_work_is_refused_with_a_sentence(client: Client, participant: Participant) -> None:
    saga = Saga()
    saga.step(participant.url + "/" + "x" * 5000)

    with pytest.raises(RequestRefusedError, match="max_url_length") as caught:
        await client.do("submit", saga)

    assert caught.value.gid == saga.gid
    with pytest.raises(TransactionNotFoundError):
        await client.do("query", saga.gid)


@pytest.mark.parametrize("operation", ["query", "wait", "force_stop", "retry_now"])
async def test_a_gid_that_nobody_submitted(client: Client, operation: str) -> None:
    gid = new_gid()

    with pytest.raises(TransactionNotFoundError, match=gid):
        await client.do(operation, gid)


async def test_a_saga_stopped_by_hand(client: Client, participant: Participant) -> None:
    participant.script("order", ONGOING)
    saga = purchase(participant, retry_interval=3600)
    await client.do("submit", saga)
    await participant.called("order", saga.gid)

    await client.do("force_stop", saga.gid)
    await client.do("force_stop", saga.gid)

    assert (await client.do("query", saga.gid)).status is Status.FAILED
    assert "order-undo" not in participant.calls(saga.gid)


async def test_a_saga_that_succeeded_cannot_be_stopped(client: Client, participant: Participant) -> None:
    saga = purchase(participant)
    await client.do("run", saga)

    with pytest.raises(RequestRefusedError) as caught:
        await client.do("force_stop", saga.gid)

    assert caught.value.status is Status.SUCCEEDED


async def test_a_list_finds_what_matches_on_all_pages(client: Client, participant: Participant) -> None:
    began = datetime.now(UTC)
    sagas = [purchase(participant) for _ in range(5)]
    participant.script("order", failure("sold out"))
    for saga in sagas:
        await client.do("submit", saga)
        await client.do("wait", saga.gid)

    succeeded = await client.do("list", status=Status.SUCCEEDED, created_from=began, page_size=2)
    failed = await client.do("list", status=Status.FAILED, created_from=began, page_size=2)

    assert [found.gid for found in succeeded] == [saga.gid for saga in reversed(sagas[1:])]
    assert [found.gid for found in failed] == [sagas[0].gid]


async def test_a_coordinator_is_recognised(client: Client) -> None:
    await client.do("ping")

    assert await client.do("version")


async def test_a_server_that_is_none_is_not_taken_for_a_coordinator(participant: Participant) -> None:
    async with AsyncCoordinator(participant.url) as coordinator:
        participant.script("api/dtmsvr/query", SUCCESS)
        participant.script("api/dtmsvr/version", (200, "<html>"))

        with pytest.raises(CoordinatorUnreachableError, match="not as a coordinator does"):
            await coordinator.version()


async def test_a_compensation_is_shown_in_a_query(client: Client, participant: Participant) -> None:
    participant.script("deduct", failure("no stock"))
    participant.script("order-undo", ERROR)
    saga = purchase(participant, retry_interval=1)

    await client.do("submit", saga)
    found = await client.do("wait", saga.gid)

    assert found.status is Status.FAILED
    assert found.failed_at is not None
    assert found.branch("02").status is OpStatus.FAILED
    undone = found.branch("01", Op.COMPENSATE)
    assert [attempt.outcome for attempt in undone.attempts] == [Outcome.UNKNOWN, Outcome.SUCCESS]
