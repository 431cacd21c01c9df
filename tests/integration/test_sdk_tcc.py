"""TCC of the SDK against a running coordinator and real participants; both clients, both web frameworks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from localservers.processes import free_port
from tests.e2e.harness import Process, coordinator
from tests.integration.scripted import ERROR, ONGOING, Participant, failure
from tests.integration.serving import serving
from txcoord_sdk import (
    AsyncCoordinator,
    AsyncTcc,
    Coordinator,
    CoordinatorUnreachableError,
    Outcome,
    Pattern,
    RequestRefusedError,
    Status,
    TransactionFailedError,
    TransactionRunningError,
    TryFailedError,
)
from txcoord_sdk.fastapi import Branch, BranchContext, BranchRoute
from txcoord_sdk.starlette import branch_endpoint


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with coordinator("memory://", tmp_path_factory.mktemp("coordinator"), TXCOORD_RETRY_INTERVAL_S="1") as process:
        yield process


@pytest.fixture
async def client(server: Process) -> AsyncIterator[AsyncCoordinator]:
    async with AsyncCoordinator(server.url, attempts=2, backoff=0.01) as client:
        yield client


async def reserve(tcc: AsyncTcc, participant: Participant, *names: str) -> None:
    for name in names:
        await tcc.call(*(f"{participant.url}/{name}-{op}" for op in ("try", "confirm", "cancel")), {"id": 3})


async def test_all_is_tried_then_confirmed_last_branch_first(
    client: AsyncCoordinator, participant: Participant
) -> None:
    async with client.tcc(branch_headers={"X-Tenant": "t1"}) as tcc:
        await reserve(tcc, participant, "order", "stock")

    found = await client.wait(tcc.gid)
    assert (found.pattern, found.status) == (Pattern.TCC, Status.SUCCEEDED)
    assert participant.calls(tcc.gid) == ["order-try", "stock-try", "stock-confirm", "order-confirm"]
    assert {(call.method, call.body, call.headers["x-tenant"]) for call in participant.received} == {
        ("POST", b'{"id":3}', "t1")
    }
    assert [call.query["op"] for call in participant.received] == ["try", "try", "confirm", "confirm"]


async def test_the_same_without_asyncio(server: Process, participant: Participant) -> None:
    def buy() -> str:
        with Coordinator(server.url) as client:
            with client.tcc(wait_result=True) as tcc:
                tcc.call(f"{participant.url}/try", f"{participant.url}/confirm", f"{participant.url}/cancel")
            assert client.query(tcc.gid).status is Status.SUCCEEDED

            with pytest.raises(LookupError), client.tcc() as other:
                raise LookupError("no such customer")
            assert client.wait(other.gid).reason == "LookupError: no such customer"
            return tcc.gid

    gid = await asyncio.to_thread(buy)

    assert participant.calls(gid) == ["try", "confirm"]


async def test_a_refused_try_has_all_cancelled(client: AsyncCoordinator, participant: Participant) -> None:
    participant.script("stock-try", failure('{"message": "no stock"}'))

    with pytest.raises(TryFailedError, match="no stock") as caught:
        async with client.tcc() as tcc:
            await reserve(tcc, participant, "order", "stock")

    found = await client.wait(tcc.gid)
    assert (found.status, found.reason) == (Status.FAILED, caught.value.what)
    assert participant.calls(tcc.gid) == ["order-try", "stock-try", "stock-cancel", "order-cancel"]


async def test_a_try_without_a_clear_answer_has_all_cancelled(
    client: AsyncCoordinator, participant: Participant
) -> None:
    participant.script("order-try", ERROR)

    with pytest.raises(TryFailedError) as caught:
        async with client.tcc() as tcc:
            await reserve(tcc, participant, "order")

    assert caught.value.outcome is Outcome.UNKNOWN
    assert (await client.wait(tcc.gid)).status is Status.FAILED
    assert participant.calls(tcc.gid) == ["order-try", "order-cancel"]


async def test_an_error_in_the_block_has_all_cancelled(client: AsyncCoordinator, participant: Participant) -> None:
    tcc = client.tcc()

    async def buy() -> None:
        async with tcc:
            await reserve(tcc, participant, "order")
            raise LookupError("no such customer")

    with pytest.raises(LookupError):
        await buy()

    found = await client.wait(tcc.gid)
    assert (found.status, found.reason) == (Status.FAILED, "LookupError: no such customer")
    assert participant.calls(tcc.gid) == ["order-try", "order-cancel"]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_without_a_coordinator_the_block_is_not_entered(scheme: str) -> None:
    async with AsyncCoordinator(f"{scheme}://127.0.0.1:{free_port()}", attempts=2, backoff=0.01) as nobody:
        with pytest.raises(CoordinatorUnreachableError):
            async with nobody.tcc():
                raise AssertionError("it was not opened")


async def test_a_cancelled_task_has_all_cancelled(client: AsyncCoordinator, participant: Participant) -> None:
    participant.hold("stock-try")
    tcc = client.tcc()

    async def buy() -> None:
        async with tcc:
            await reserve(tcc, participant, "order", "stock")

    buying = asyncio.create_task(buy())
    await participant.called("stock-try", tcc.gid)
    buying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await buying

    found = await client.wait(tcc.gid)
    assert (found.status, found.reason) == (Status.FAILED, "CancelledError")


async def test_after_the_deadline_nothing_is_registered_or_submitted(
    client: AsyncCoordinator, participant: Participant
) -> None:
    async def too_late(work: Callable[[AsyncTcc], Any]) -> str:
        async with client.tcc(timeout_to_fail=3) as tcc:
            await reserve(tcc, participant, "order")
            await client.wait(tcc.gid)
            await work(tcc)
        return tcc.gid

    async def nothing(_: AsyncTcc) -> None:
        pass

    for work in (nothing, lambda tcc: reserve(tcc, participant, "stock")):
        with pytest.raises(TransactionFailedError, match="Timeout after 3 seconds") as caught:
            await too_late(work)
        assert caught.value.status is Status.FAILED
        assert participant.calls(caught.value.gid) == ["order-try", "order-cancel"]


async def test_a_confirm_that_is_not_ready_is_called_again(client: AsyncCoordinator, participant: Participant) -> None:
    participant.script("order-confirm", ONGOING, ERROR)

    with pytest.raises(TransactionRunningError) as caught:
        async with client.tcc(wait_result=True, retry_interval=1) as tcc:
            await reserve(tcc, participant, "order")

    assert caught.value.status is Status.SUBMITTED
    assert (await client.wait(tcc.gid)).status is Status.SUCCEEDED
    assert participant.calls(tcc.gid) == ["order-try", *["order-confirm"] * 3]


async def test_a_submit_may_be_repeated_at_any_time(client: AsyncCoordinator, participant: Participant) -> None:
    gate = participant.hold("order-confirm")
    async with client.tcc() as tcc:
        await reserve(tcc, participant, "order")
        await tcc.submit()
        await tcc.submit()
    await participant.called("order-confirm", tcc.gid)

    await tcc.submit()
    gate.set()
    await client.wait(tcc.gid)
    await tcc.submit()

    assert participant.calls(tcc.gid) == ["order-try", "order-confirm"]


async def test_a_gid_is_used_once(client: AsyncCoordinator) -> None:
    async with client.tcc() as tcc:
        pass
    await client.wait(tcc.gid)

    with pytest.raises(RequestRefusedError) as caught:
        async with client.tcc(tcc.gid):
            raise AssertionError("it has been run")
    assert caught.value.status is Status.SUCCEEDED


# -- branches within a branch ---------------------------------------------------------------


def fastapi_app(client: AsyncCoordinator, participant: Participant) -> FastAPI:
    router = APIRouter(route_class=BranchRoute)

    @router.post("/parcel-try")
    async def parcel_try(branch: Branch) -> None:
        async with client.nested_tcc(branch) as tcc:
            await reserve(tcc, participant, "courier")

    @router.post("/parcel-{op}")
    async def parcel(branch: Branch, op: str) -> None:
        assert branch.op == op

    app = FastAPI()
    app.include_router(router)
    return app


def starlette_app(client: AsyncCoordinator, participant: Participant) -> Starlette:
    @branch_endpoint
    async def parcel_try(request: Request, branch: BranchContext) -> None:
        async with client.nested_tcc(branch) as tcc:
            await reserve(tcc, participant, "courier")

    @branch_endpoint
    async def parcel(request: Request, branch: BranchContext) -> None:
        assert branch.op == request.path_params["op"]

    routes = [("/parcel-try", parcel_try), ("/parcel-{op}", parcel)]
    return Starlette(routes=[Route(path, endpoint, methods=["POST"]) for path, endpoint in routes])


@pytest.mark.parametrize("make_app", [fastapi_app, starlette_app])
@pytest.mark.parametrize("refuses", [False, True], ids=["reserved", "refused"])
async def test_a_participant_has_branches_of_its_own(
    client: AsyncCoordinator, participant: Participant, make_app: Callable[..., Any], refuses: bool
) -> None:
    if refuses:
        participant.script("courier-try", failure('{"message": "no courier today"}'))
    tcc = client.tcc()

    async def send(parcels: str) -> None:
        async with tcc:
            await tcc.call(f"{parcels}/parcel-try", f"{parcels}/parcel-confirm", f"{parcels}/parcel-cancel")
            await reserve(tcc, participant, "order")

    async with serving(make_app(client, participant)) as parcels:
        if refuses:
            with pytest.raises(TryFailedError, match="no courier today") as caught:
                await send(parcels)
            assert (caught.value.branch_id, caught.value.outcome) == ("01", Outcome.FAILURE)
        else:
            await send(parcels)
        found = await client.wait(tcc.gid)

    assert found.status is (Status.FAILED if refuses else Status.SUCCEEDED)
    branch_ids = ["01", "0101"] if refuses else ["01", "0101", "02"]
    assert [branch.branch_id for branch in found.branches] == [id_ for id_ in branch_ids for _ in range(2)]
    assert participant.calls(tcc.gid) == (
        ["courier-try", "courier-cancel"]
        if refuses
        else ["courier-try", "order-try", "order-confirm", "courier-confirm"]
    )
