"""What a close reading of the engine found: each was wrong once."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from tests.engine.harness import ONGOING, Cluster, now_s, saga_request, settle
from txcoord.errors import LeaseLostError, OverloadedError, StatusConflictError, StoreUnavailableError
from txcoord.model import Status
from txcoord.service import FORCE_STOPPED
from txcoord.store.base import Applied, Change, Create
from txcoord.store.memory import FailWhen


async def test_a_stop_elsewhere_ends_a_long_saga_after_the_call_under_way(cluster: Cluster) -> None:
    driving, other = [await cluster.start_node() for _ in range(2)]
    holds = [cluster.participants.hold(f"0{step} action") for step in (1, 2)]
    driving.submit_soon(count=5, steps=saga_request(count=5).steps, payloads=(b"{}",) * 5)
    await holds[0].began.wait()

    await other.service.force_stop("g1")
    holds[0].end()
    await holds[1].began.wait()
    await asyncio.sleep(1.0)  # the result of the first, posted, has found a later epoch
    holds[1].end()
    await asyncio.sleep(60.0)

    assert cluster.calls() == ["01 action", "02 action"]
    assert driving.engine.live_count == 0


async def test_a_stop_whose_answer_was_lost_stops_when_it_is_repeated(cluster: Cluster) -> None:
    node = await cluster.start_node()
    hold = cluster.participants.hold("01 action")
    submit = node.submit_soon()
    await hold.began.wait()
    cluster.store.fail_next(1, when=FailWhen.AFTER, method="force_stop")
    with pytest.raises(StoreUnavailableError):
        await node.service.force_stop("g1")

    with pytest.raises(StatusConflictError):
        await node.service.force_stop("g1")

    assert (await submit).reason == FORCE_STOPPED
    assert hold.was_cancelled


async def test_strays_are_found_although_looking_for_them_failed_first(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=3.0)
    cluster.participants.script("01 action", ONGOING)
    await node.submit(retry_interval=1)
    cluster.store.fail_next(1, when=FailWhen.AFTER, method="take_over_due")
    cluster.store.fail_next(1, when=FailWhen.BEFORE, method="owned")

    assert (await cluster.ended(within_s=10.0)).status is Status.SUCCEEDED


async def test_a_fault_in_releasing_the_dead_does_not_cost_the_lease(cluster: Cluster) -> None:
    cluster.may_break = True  # the fault is logged as one
    node = await cluster.start_node(lease_s=3.0)

    async def fail(**_: object) -> int:
        raise RuntimeError("permission denied for table node")

    cluster.store.release_dead = fail  # type: ignore[method-assign]
    node_id = node.engine.node_id
    await asyncio.sleep(30.0)

    assert (await node.submit()).status is Status.SUCCEEDED
    assert node.engine.node_id == node_id


async def test_a_batch_of_an_earlier_lease_does_not_cost_the_present_one(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=3.0)
    apply = cluster.store.apply
    under: list[int] = []

    async def late(node_id: int, batch: list[Change], *, patiently: bool = True) -> list[Applied]:
        under.append(node_id)
        if len(under) == 1:
            await asyncio.sleep(1.0)  # meanwhile the lease is lost, and the node joins again
            raise LeaseLostError("the lease of that node has ended")
        return list(await apply(node_id, batch, patiently=patiently))

    cluster.store.apply = late  # type: ignore[method-assign]
    first = node.submit_soon("g1")
    await settle()
    await cluster.store.renew(node.engine.node_id, lease_s=0)
    await asyncio.sleep(10.0)
    joined_as = node.engine.node_id
    with pytest.raises(StoreUnavailableError):
        await first

    assert (await node.submit("g2")).status is Status.SUCCEEDED
    assert node.engine.node_id == joined_as
    assert set(under) == {under[0], joined_as}


async def test_what_waits_for_room_comes_before_new_ones(cluster: Cluster) -> None:
    node = await cluster.start_node(max_live=4)
    for number in range(4):
        cluster.participants.script("01 action", ONGOING, gid=f"old{number}")
        await node.submit(f"old{number}", retry_interval=1)

    async def keep_it_full(client: int) -> None:
        for turn in count():
            try:
                await node.submit(f"new{client}-{turn}", wait=False)
            except OverloadedError:
                await settle()

    clients = [asyncio.create_task(keep_it_full(client)) for client in range(8)]
    for number in range(4):
        ended = await cluster.ended(f"old{number}", within_s=20.0)
        assert ended.status is Status.SUCCEEDED
    assert not any(client.done() for client in clients)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)


async def test_a_query_shows_the_stored_one_while_another_of_its_gid_is_being_refused(cluster: Cluster) -> None:
    node, other = [await cluster.start_node() for _ in range(2)]
    await other.submit("g1")
    cluster.store.before_apply = asyncio.Event()
    again = node.submit_soon("g1", count=3, steps=saga_request(count=3).steps, payloads=(b"{}",) * 3)
    await settle()

    seen = await node.service.query("g1")

    assert seen is not None
    assert (seen.tx.status, len(seen.tx.branches)) == (Status.SUCCEEDED, 4)
    cluster.store.before_apply.set()
    with pytest.raises(StatusConflictError):
        await again


async def test_joining_what_has_just_left_is_answered_at_once(cluster: Cluster) -> None:
    node = await cluster.start_node(max_wait_s=60.0)
    cluster.participants.script("01 action", ONGOING)
    await node.submit(retry_interval=100)
    await cluster.parked()
    hold = cluster.participants.hold("01 action", gid="g2")
    node.submit_soon("g2")
    await hold.began.wait()
    live = node.engine.find_live("g2")
    assert live is not None
    hold.end()
    await cluster.ended("g2")
    await settle()
    began_s = now_s()

    assert (await node.engine.join_pass(live)).status is Status.SUCCEEDED
    assert now_s() == began_s


async def test_a_long_saga_without_urls_lets_others_go_on(cluster: Cluster) -> None:
    node = await cluster.start_node()
    submit = node.submit_soon(steps=({},) * 300, payloads=(b"",) * 300)
    for _ in range(200):
        await asyncio.sleep(0)
        assert not submit.done()
    assert (await submit).status is Status.SUCCEEDED


async def test_a_due_row_that_somebody_holds_is_not_asked_for_without_end(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", ONGOING)
    await node.submit(retry_interval=1)
    asked = 0

    async def held(*_: object, **__: object) -> list[object]:
        nonlocal asked
        asked += 1
        return []

    take_over_due, cluster.store.take_over_due = cluster.store.take_over_due, held  # type: ignore[method-assign, assignment]
    await asyncio.sleep(5.0)
    assert asked < 150
    cluster.store.take_over_due = take_over_due  # type: ignore[method-assign]
    assert (await cluster.ended(within_s=2.0)).status is Status.SUCCEEDED


async def test_more_than_the_store_takes_is_refused(cluster: Cluster) -> None:
    node = await cluster.start_node(max_live=1, accept_wait_s=5.0)
    cluster.store.before_apply = asyncio.Event()
    submits = [node.submit_soon(f"g{number}") for number in range(3)]
    await settle()
    assert submits[2].done()
    assert "not accepted" in str(submits[2].exception())
    assert not any(
        isinstance(change, Create) and change.tx.gid == "g2" for batch in cluster.store.batches for change in batch
    )
    cluster.store.before_apply.set()
    await asyncio.gather(*submits[:2])
