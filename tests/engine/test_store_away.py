"""A store that is away, or whose answer is lost: nothing is lost or done twice, and all goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.engine.harness import FAILURE, ONGOING, Cluster, now_s, settle
from txcoord.errors import StoreUnavailableError
from txcoord.model import Status
from txcoord.request import SubmitResult
from txcoord.store.base import Owned
from txcoord.store.memory import FailWhen

SUCCEEDED = SubmitResult(waited=True, status=Status.SUCCEEDED)


@pytest.mark.parametrize("when", list(FailWhen))
async def test_a_create_is_repeated_and_creates_one(cluster: Cluster, when: FailWhen) -> None:
    node = await cluster.start_node()
    cluster.store.fail_next(3, when=when, method="apply")

    assert await node.submit() == SUCCEEDED

    assert cluster.calls() == ["01 action", "02 action"]


@pytest.mark.parametrize("when", list(FailWhen))
@pytest.mark.parametrize("failing_batch", range(1, 4))
async def test_a_change_of_status_is_repeated_and_happens_once(
    cluster: Cluster, when: FailWhen, failing_batch: int
) -> None:
    node = await cluster.start_node()
    cluster.participants.script("02 action", FAILURE)
    submit = node.submit_soon()
    while len(cluster.store.batches) < failing_batch:
        await asyncio.sleep(0.0005)
    cluster.store.fail_next(2, when=when, method="apply")

    assert (await submit).status is Status.FAILED
    assert await cluster.rows() == "SSSF"
    assert cluster.calls() == ["01 action", "02 action", "02 compensate", "01 compensate"]


async def test_a_submit_waits_for_the_store_as_long_as_it_may_and_is_accepted_all_the_same(cluster: Cluster) -> None:
    node = await cluster.start_node(accept_wait_s=5.0)
    cluster.store.is_down = True

    with pytest.raises(StoreUnavailableError, match="whether g1 was accepted is not known: submit it again"):
        await node.submit()
    assert now_s() == pytest.approx(5.0, abs=0.01)

    cluster.store.is_down = False
    assert (await cluster.ended(within_s=2.0)).status is Status.SUCCEEDED


async def test_submitting_again_while_the_store_is_away_waits_as_long(cluster: Cluster) -> None:
    node = await cluster.start_node(accept_wait_s=5.0)
    cluster.store.is_down = True
    first = node.submit_soon()
    await asyncio.sleep(1.0)

    with pytest.raises(StoreUnavailableError, match="whether g1 was accepted is not known"):
        await node.submit()

    assert now_s() == pytest.approx(6.0, abs=0.01)
    assert isinstance(await asyncio.gather(first, return_exceptions=True), list)
    again = node.submit_soon()
    await settle()
    cluster.store.is_down = False
    assert await again == SUCCEEDED
    assert cluster.calls() == ["01 action", "02 action"]


async def test_the_queue_for_an_absent_store_is_bounded(cluster: Cluster) -> None:
    node = await cluster.start_node(max_live=2, accept_wait_s=1.0)
    cluster.store.is_down = True
    results = await asyncio.gather(*[node.submit(gid) for gid in ("g1", "g2")], return_exceptions=True)
    assert all(isinstance(result, StoreUnavailableError) for result in results)

    before_s = now_s()
    with pytest.raises(StoreUnavailableError, match="the queue is full: g3 was not accepted"):
        await node.submit("g3")

    assert now_s() == before_s, "refused at once"


async def test_driving_goes_on_where_it_was_when_the_store_is_back(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=60.0)
    hold = cluster.participants.hold("02 action")
    submit = node.submit_soon()
    await hold.began.wait()
    cluster.store.is_down = True
    hold.end()
    await asyncio.sleep(10.0)
    assert not submit.done()

    cluster.store.is_down = False

    assert await submit == SUCCEEDED
    assert cluster.calls() == ["01 action", "02 action"]


async def test_no_compensation_is_called_while_the_turn_cannot_be_stored(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=60.0)
    hold = cluster.participants.hold("02 action")
    submit = node.submit_soon()
    await hold.began.wait()
    cluster.store.is_down = True
    hold.end(FAILURE)
    await asyncio.sleep(10.0)
    assert cluster.calls() == ["01 action", "02 action"]

    cluster.store.is_down = False

    assert (await submit).status is Status.FAILED


async def test_what_falls_due_while_the_store_is_away_is_driven_when_it_is_back(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=600.0, poll_s=1.0)
    cluster.participants.script("01 action", ONGOING)
    await node.submit(retry_interval=10)
    cluster.store.is_down = True
    await asyncio.sleep(60.0)

    cluster.store.is_down = False

    assert (await cluster.ended(within_s=1.1)).status is Status.SUCCEEDED


@pytest.mark.parametrize("also_fails", ["", "owned", "release"])
async def test_a_take_over_whose_answer_was_lost_is_found_and_driven(cluster: Cluster, also_fails: str) -> None:
    node = await cluster.start_node(lease_s=9.0, poll_s=1.0)
    cluster.participants.script("01 action", ONGOING)
    await node.submit(retry_interval=10)
    await asyncio.sleep(5.0)
    cluster.store.fail_next(1, when=FailWhen.AFTER, method="take_over_due")
    if also_fails:
        cluster.store.fail_next(1, method=also_fails)
    due_s = ((await cluster.saga()).due_us or 0) / 1e6

    saga = await cluster.ended(within_s=30.0)

    assert saga.status is Status.SUCCEEDED
    assert cluster.clock.now_us() / 1e6 - due_s < 3 * 9.0 / 3


async def test_a_take_over_that_is_too_much_for_the_store_is_tried_with_less(cluster: Cluster) -> None:
    node = await cluster.start_node(poll_s=1.0)
    gids = [f"g{number}" for number in range(40)]
    for gid in gids:
        cluster.participants.script("01 action", ONGOING, gid=gid)
    await asyncio.gather(*[node.submit(gid, retry_interval=10) for gid in gids])
    take_over_due, limits = cluster.store.take_over_due, []

    async def take_over_few(node_id: int, *, now_us: int, limit: int) -> Sequence[Owned]:
        limits.append(limit)
        if limit > 10:
            raise StoreUnavailableError("the store did not answer in 10 s")
        return await take_over_due(node_id, now_us=now_us, limit=limit)

    cluster.store.take_over_due = take_over_few  # type: ignore[method-assign]

    for gid in gids:
        assert (await cluster.ended(gid, within_s=60.0)).status is Status.SUCCEEDED
    assert limits[:9] == [256, 128, 64, 32, 16, 8, 9, 10, 11]


async def test_a_lease_outlives_a_short_absence_of_the_store(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=9.0)
    node_id = node.engine.node_id
    hold = cluster.participants.hold("01 action")
    submit = node.submit_soon(request_timeout=100)
    await hold.began.wait()
    await asyncio.sleep(2.0)
    cluster.store.is_down = True
    await asyncio.sleep(5.0)
    cluster.store.is_down = False
    await asyncio.sleep(20.0)
    hold.end()

    assert await submit == SUCCEEDED
    assert node.engine.node_id == node_id


@pytest.mark.parametrize("when", list(FailWhen))
@pytest.mark.parametrize("method", ["take_over_due", "next_due_us", "release_dead", "renew", "apply"])
async def test_a_failure_of_any_statement_leaves_nothing_behind(cluster: Cluster, method: str, when: FailWhen) -> None:
    node = await cluster.start_node(lease_s=3.0)
    cluster.participants.script("01 action", ONGOING)
    cluster.participants.script("02 action", FAILURE)
    submit = node.submit_soon(retry_interval=2)
    await asyncio.sleep(0.5)
    cluster.store.fail_next(2, when=when, method=method)
    await submit

    saga = await cluster.ended(within_s=30.0)

    assert (saga.status, await cluster.rows()) == (Status.FAILED, "SSSF")
    await asyncio.sleep(10.0)
    assert node.engine.live_count == 0
    assert node.engine.store_is_available
