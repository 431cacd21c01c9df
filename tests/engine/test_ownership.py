"""Ownership: crashes, leases, take-overs, draining. One transaction is driven by one node, or written by none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.engine.harness import FAILURE, ONGOING, SUCCESS, Cluster, Node, now_s, settle
from txcoord.errors import StoreUnavailableError
from txcoord.model import Status
from txcoord.request import SubmitResult
from txcoord.store.base import Create, Owned

LEASE_S = 9.0


async def make_late(node: Node, cluster: Cluster) -> None:
    """Let a node's lease end without its knowing, as if it had slept; its transactions are parked."""
    cluster.store._leases.pop(node.engine.node_id)
    await cluster.store.release_dead(now_us=cluster.clock.now_us(), limit=1000)


# -- crashes -------------------------------------------------------------------------------


async def test_what_a_dead_node_drove_is_taken_over_when_its_lease_has_ended(cluster: Cluster) -> None:
    dead = await cluster.start_node(lease_s=LEASE_S)
    hold = cluster.participants.hold("02 action")
    dead.submit_soon()
    await hold.began.wait()
    await asyncio.sleep(1.0)
    dead.kill()
    await cluster.start_node(lease_s=LEASE_S)

    saga = await cluster.ended()

    assert saga.status is Status.SUCCEEDED
    assert cluster.calls() == ["01 action", "02 action", "02 action"], "what was stored is not called again"
    assert LEASE_S <= now_s() <= LEASE_S * 5 / 3 + 0.5


async def test_a_turn_that_was_stored_is_gone_on_with(cluster: Cluster) -> None:
    dead = await cluster.start_node(lease_s=LEASE_S)
    cluster.participants.script("02 action", FAILURE)
    hold = cluster.participants.hold("02 compensate")
    dead.submit_soon()
    await hold.began.wait()
    dead.kill()
    await cluster.start_node(lease_s=LEASE_S)

    saga = await cluster.ended()

    assert (saga.status, await cluster.rows()) == (Status.FAILED, "SSSF")
    assert saga.rollback_reason == "url:http://p1/action return failed: no stock FAILURE"
    assert cluster.calls()[2:] == ["02 compensate", "02 compensate", "01 compensate"]


async def test_what_was_never_stored_never_happened(cluster: Cluster) -> None:
    dead = await cluster.start_node(lease_s=LEASE_S)
    cluster.store.before_apply = asyncio.Event()
    dead.submit_soon()
    await settle()
    dead.kill()
    cluster.store.before_apply = None
    await cluster.start_node(lease_s=LEASE_S)
    await asyncio.sleep(60.0)

    assert cluster.calls() == []
    assert await cluster.store.find("g1") is None


async def test_a_node_that_died_while_creating_leaves_it_to_others(cluster: Cluster) -> None:
    dead = await cluster.start_node(lease_s=LEASE_S)
    dead.submit_soon()
    await settle(0.0015)
    dead.kill()
    assert cluster.log == ["g1 created"]
    await cluster.start_node(lease_s=LEASE_S)

    assert (await cluster.ended()).status is Status.SUCCEEDED


async def test_a_parked_transaction_does_not_wait_for_the_end_of_a_lease(cluster: Cluster) -> None:
    dead = await cluster.start_node(lease_s=1000.0)
    cluster.participants.script("01 action", ONGOING)
    await dead.submit(retry_interval=10)
    due_us = (await cluster.saga()).due_us
    dead.kill()
    await cluster.start_node(poll_s=1.0)

    await cluster.ended()

    assert due_us is not None
    assert 0 <= cluster.clock.now_us() - due_us <= 1_100_000


# -- two nodes -----------------------------------------------------------------------------


async def test_two_nodes_on_one_store_drive_each_transaction_once(cluster: Cluster) -> None:
    nodes = [await cluster.start_node(poll_s=0.1) for _ in range(2)]
    cluster.participants.always("01 action", ONGOING)
    gids = [f"g{number}" for number in range(40)]
    await asyncio.gather(*[nodes[index % 2].submit(gid, retry_interval=5) for index, gid in enumerate(gids)])
    cluster.participants.always("01 action", SUCCESS)
    seen: list[set[str]] = []
    ends = asyncio.gather(*[cluster.ended(gid) for gid in gids])
    while not ends.done():
        seen.append({gid for gid in gids if all(node.engine.find_live(gid) for node in nodes)})
        await asyncio.sleep(0.001)

    assert not any(seen), "driven by both at once"
    for gid in gids:
        assert cluster.calls(gid) == ["01 action", "01 action", "02 action"]


# -- a lost lease --------------------------------------------------------------------------


async def test_a_node_that_slept_past_its_lease_writes_nothing(cluster: Cluster) -> None:
    late = await cluster.start_node(lease_s=LEASE_S)
    hold = cluster.participants.hold("02 action")
    submit = late.submit_soon()
    await hold.began.wait()
    await make_late(late, cluster)
    before = await cluster.stored()
    hold.end(FAILURE)

    with pytest.raises(StoreUnavailableError, match="query"):
        await submit

    assert await cluster.stored() == before
    assert cluster.calls() == ["01 action", "02 action"], "no compensation by who may not decide"


async def test_a_node_that_lost_its_lease_joins_again_and_goes_on(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=LEASE_S)
    first_id = node.engine.node_id
    hold = cluster.participants.hold("01 action")
    submit = node.submit_soon()
    await hold.began.wait()
    await make_late(node, cluster)

    with pytest.raises(StoreUnavailableError, match="lost its lease: query the gid"):
        await submit
    assert hold.was_cancelled
    assert now_s() <= LEASE_S / 3 + 0.1, "found with the next renewal"

    assert (await cluster.ended(within_s=2.0)).status is Status.SUCCEEDED
    assert node.engine.node_id > first_id
    assert (await node.submit("g2")).status is Status.SUCCEEDED


async def test_a_node_without_a_lease_tries_to_join_until_it_can(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=LEASE_S)
    cluster.store._leases.clear()
    cluster.store.fail_next(5, method="join")
    await asyncio.sleep(LEASE_S)

    assert (await node.submit()).status is Status.SUCCEEDED


async def test_a_bug_in_the_background_ends_nothing(cluster: Cluster) -> None:
    cluster.may_break = True
    node = await cluster.start_node(lease_s=LEASE_S)
    renew, broken = cluster.store.renew, [ZeroDivisionError("a bug")]

    async def renew_at_last(node_id: int, *, lease_s: float) -> bool:
        if broken:
            raise broken.pop()
        return await renew(node_id, lease_s=lease_s)

    cluster.store.renew = renew_at_last  # type: ignore[method-assign]
    node_id = node.engine.node_id
    await asyncio.sleep(3 * LEASE_S)

    assert broken == []
    assert (await node.submit()).status is Status.SUCCEEDED
    assert node.engine.node_id == node_id


async def test_what_was_queued_under_a_lost_lease_is_not_written_under_the_next(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=LEASE_S)
    cluster.store.is_down = True
    submit = node.submit_soon(wait=False)
    await asyncio.sleep(2.0)
    cluster.store._leases.clear()
    renew = cluster.store.renew

    async def renew_first(node_id: int, *, lease_s: float) -> bool:
        # The keeper gets through to the store before the journal does.
        cluster.store.is_down = False
        return await renew(node_id, lease_s=lease_s)

    cluster.store.renew = renew_first  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError, match="whether g1 was accepted is not known"):
        await submit
    await asyncio.sleep(60.0)

    stored = await cluster.store.find("g1")
    assert stored is None or stored.tx.status.is_final, "stored, and driven by nobody"
    assert (await node.submit()).status is Status.SUCCEEDED


async def test_submitting_again_is_answered_when_the_lease_is_lost(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=LEASE_S)
    cluster.store.before_apply = asyncio.Event()
    submits = [node.submit_soon() for _ in range(2)]
    await settle()
    cluster.store._leases.clear()

    results = await asyncio.gather(*submits, return_exceptions=True)

    assert [type(result) for result in results] == [StoreUnavailableError] * 2
    assert all("whether g1 was accepted is not known" in str(result) for result in results)


async def test_one_transaction_lost_to_another_node_is_dropped_and_the_others_go_on(cluster: Cluster) -> None:
    node = await cluster.start_node()
    hold = cluster.participants.hold("01 action")
    lost = node.submit_soon()
    await hold.began.wait()
    other = await cluster.store.join(name="other", lease_s=1000.0)
    await cluster.store.release(node.engine.node_id, ["g1"], now_us=0)
    await cluster.store.take_over_due(other, now_us=cluster.clock.now_us(), limit=1)
    before = await cluster.stored()
    kept = node.submit_soon("g2")
    hold.end()

    with pytest.raises(StoreUnavailableError, match="g1 is driven by another coordinator now: query it"):
        await lost
    assert (await kept).status is Status.SUCCEEDED
    assert await cluster.stored() == before


async def test_a_drive_that_is_cancelled_before_it_began_leaves_nothing_behind(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", ONGOING)
    await node.submit(retry_interval=1)
    taken = asyncio.Event()
    take_over_due = cluster.store.take_over_due

    async def take_over(*args: object, **kwargs: object) -> Sequence[Owned]:
        owned = await take_over_due(*args, **kwargs)  # type: ignore[arg-type]
        if owned:
            taken.set()  # whoever waits for this goes on before the new task does
        return owned

    cluster.store.take_over_due = take_over  # type: ignore[method-assign]
    await taken.wait()
    assert node.engine.live_count == 1

    await node.engine.stop_live("g1", "stopped", below_epoch=3)

    assert node.engine.live_count == 0
    assert cluster.calls() == ["01 action"]


async def test_what_is_ours_but_driven_by_nobody_is_released_and_driven(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=LEASE_S)
    cluster.store.refuses = lambda change: not isinstance(change, Create)

    with pytest.raises(StoreUnavailableError, match="driving g1 was interrupted"):
        await node.submit()
    assert (await cluster.stored()).owner == node.engine.node_id
    cluster.store.refuses = lambda change: False

    assert (await cluster.ended(within_s=2 * LEASE_S / 3)).status is Status.SUCCEEDED


# -- draining ------------------------------------------------------------------------------


async def test_a_drain_lets_calls_end_and_begins_no_others(cluster: Cluster) -> None:
    node = await cluster.start_node(drain_s=10.0)
    hold = cluster.participants.hold("01 action")
    submit = node.submit_soon()
    await hold.began.wait()
    stop = asyncio.create_task(node.stop())
    await asyncio.sleep(2.0)
    assert not stop.done()
    hold.end()
    await stop

    assert (await submit).status is Status.SUBMITTED
    assert cluster.calls() == ["01 action"]
    assert await cluster.rows() == "PSPP", "its result is stored"
    stored = await cluster.stored()
    assert stored.owner == 0
    assert stored.tx.due_us is not None
    assert stored.tx.due_us <= cluster.clock.now_us(), "due at once for somebody else"
    await cluster.start_node()
    await cluster.ended(within_s=1.0)
    assert cluster.calls() == ["01 action", "02 action"]


async def test_a_drain_waits_for_concurrent_calls_too(cluster: Cluster) -> None:
    node = await cluster.start_node(drain_s=10.0)
    holds = [cluster.participants.hold(f"0{step} action") for step in (1, 2)]
    submit = node.submit_soon(custom_data='{"concurrent":true,"orders":{"2":[0,1]}}', count=3)
    await holds[1].began.wait()
    stop = asyncio.create_task(node.stop())
    for hold in holds:
        await asyncio.sleep(1.0)
        hold.end()
    await stop

    assert (await submit).status is Status.SUBMITTED
    assert await cluster.rows() == "PSPSPP"
    assert sorted(cluster.calls()) == ["01 action", "02 action"]


async def test_a_draining_node_leaves_what_is_due_to_others_and_does_not_spin(cluster: Cluster) -> None:
    node = await cluster.start_node(drain_s=10.0)
    cluster.participants.script("01 action", ONGOING)
    await node.submit(retry_interval=1)
    hold = cluster.participants.hold("01 action", gid="g2")
    node.submit_soon("g2")
    await hold.began.wait()
    stop = asyncio.create_task(node.stop())
    await asyncio.sleep(5.0)
    hold.end()
    await stop

    assert cluster.calls("g1") == ["01 action"]


async def test_a_drain_stores_what_waits_in_memory(cluster: Cluster) -> None:
    node = await cluster.start_node(retry_interval_s=0.2, short_wait_s=0.25)
    cluster.participants.always("01 action", ONGOING)
    node.submit_soon()
    await asyncio.sleep(1.0)
    await node.stop()

    stored = await cluster.stored()
    assert (stored.owner, stored.tx.status) == (0, Status.SUBMITTED)


async def test_a_drain_is_bounded_and_leaves_what_is_left_to_others(cluster: Cluster) -> None:
    node = await cluster.start_node(drain_s=5.0)
    hold = cluster.participants.hold("01 action")
    submit = node.submit_soon()
    await hold.began.wait()
    await node.stop()

    assert now_s() == pytest.approx(5.0, abs=0.1)
    assert hold.was_cancelled
    assert isinstance((await asyncio.gather(submit, return_exceptions=True))[0], Exception)
    assert (await cluster.stored()).owner == 0
    await cluster.start_node()
    assert (await cluster.ended(within_s=1.0)).status is Status.SUCCEEDED


async def test_a_drain_ends_though_the_store_is_away(cluster: Cluster) -> None:
    node = await cluster.start_node(drain_s=5.0, lease_s=LEASE_S)
    hold = cluster.participants.hold("02 action")
    node.submit_soon()
    await hold.began.wait()
    cluster.store.is_down = True
    hold.end()

    await node.stop()

    cluster.store.is_down = False
    await cluster.start_node()
    assert (await cluster.ended(within_s=2 * LEASE_S)).status is Status.SUCCEEDED


async def test_nothing_is_left_behind_by_a_stop(cluster: Cluster) -> None:
    before = asyncio.all_tasks()
    node = await cluster.start_node()
    assert await node.submit() == SubmitResult(waited=True, status=Status.SUCCEEDED)

    await node.stop()

    assert asyncio.all_tasks() == before
    assert cluster.store._leases == {}
