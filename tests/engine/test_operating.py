"""What operators and onlookers can do: force a stop, make due, query, list; and what cannot be asked of a saga."""

from __future__ import annotations

import asyncio

import pytest

from tests.engine.harness import ONGOING, UNKNOWN, Cluster, saga_request, settle
from txcoord.errors import InvalidRequestError, StatusConflictError, StoreUnavailableError, TransactionNotFoundError
from txcoord.model import OpStatus, Outcome, Status
from txcoord.request import SubmitResult, TransRequest
from txcoord.service import FORCE_STOPPED
from txcoord.store.base import ListQuery
from txcoord.store.memory import MemoryStore
from txcoord.unfinished import COUNTED_EVERY_S, PATIENCE_S, UnfinishedCount

STOPPED = SubmitResult(waited=True, status=Status.FAILED, reason=FORCE_STOPPED)


# -- force stop ----------------------------------------------------------------------------


async def test_a_forced_stop_cuts_the_call_under_way_and_nothing_more_is_called(cluster: Cluster) -> None:
    node = await cluster.start_node()
    hold = cluster.participants.hold("01 action")
    submit = node.submit_soon()
    await hold.began.wait()

    await node.service.force_stop("g1")

    assert await submit == STOPPED
    assert hold.was_cancelled
    await asyncio.sleep(60.0)
    assert cluster.calls() == ["01 action"]
    saga = await cluster.saga()
    assert (saga.status, saga.rollback_reason) == (Status.FAILED, FORCE_STOPPED)
    assert node.engine.live_count == 0


async def test_a_forced_stop_cuts_concurrent_calls_too(cluster: Cluster) -> None:
    node = await cluster.start_node()
    holds = [cluster.participants.hold(f"0{step} action") for step in (1, 2)]
    submit = node.submit_soon(custom_data='{"concurrent":true}')
    await holds[1].began.wait()

    await node.service.force_stop("g1")

    assert await submit == STOPPED
    await settle()
    assert all(hold.was_cancelled for hold in holds)


async def test_a_forced_stop_elsewhere_is_noticed_with_the_next_write(cluster: Cluster) -> None:
    driving, other = [await cluster.start_node() for _ in range(2)]
    hold = cluster.participants.hold("02 action")
    submit = driving.submit_soon()
    await hold.began.wait()
    await other.service.force_stop("g1")
    before = await cluster.stored()
    hold.end()

    with pytest.raises(StoreUnavailableError, match="g1 is driven by another coordinator now: query it"):
        await submit

    assert await cluster.stored() == before


async def test_a_forced_stop_between_a_turn_and_its_compensation_wins(cluster: Cluster) -> None:
    node = await cluster.start_node()
    hold = cluster.participants.hold("01 action")
    node.submit_soon(timeout_to_fail=1, request_timeout=60)
    await hold.began.wait()
    await asyncio.sleep(2.0)
    assert (await cluster.saga()).status is Status.ABORTING

    await node.service.force_stop("g1")
    hold.end()
    await asyncio.sleep(60.0)

    assert cluster.calls() == ["01 action"]
    assert (await cluster.saga()).status is Status.FAILED


async def test_a_forced_stop_while_the_end_is_being_stored_changes_nothing_or_all(cluster: Cluster) -> None:
    node = await cluster.start_node()
    submit = node.submit_soon()
    await settle(0.004)
    cluster.store.before_apply = asyncio.Event()
    await settle()
    await node.service.force_stop("g1")
    cluster.store.before_apply.set()
    await settle()

    assert await submit == STOPPED
    assert (await cluster.saga()).rollback_reason == FORCE_STOPPED


async def test_a_parked_transaction_can_be_stopped(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", ONGOING)
    await node.submit()

    await node.service.force_stop("g1")
    await asyncio.sleep(60.0)

    assert cluster.calls() == ["01 action"]
    assert (await cluster.saga()).status is Status.FAILED


async def test_what_has_ended_or_is_unknown_cannot_be_stopped(cluster: Cluster) -> None:
    node = await cluster.start_node()
    await node.submit()

    with pytest.raises(StatusConflictError) as refused:
        await node.service.force_stop("g1")
    assert (refused.value.status, refused.value.wanted) == (Status.SUCCEEDED, "force stop")
    with pytest.raises(TransactionNotFoundError):
        await node.service.force_stop("g2")


# -- making due ----------------------------------------------------------------------------


async def test_a_parked_transaction_made_due_is_driven_at_once(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", ONGOING)
    await node.submit(retry_interval=600)

    await node.service.reset_next_cron_time("g1")

    assert (await cluster.ended(within_s=0.1)).status is Status.SUCCEEDED


async def test_another_nodes_parked_transaction_made_due_is_driven_at_once_too(cluster: Cluster) -> None:
    one, other = [await cluster.start_node() for _ in range(2)]
    cluster.participants.script("01 action", UNKNOWN)
    await one.submit(retry_interval=600)

    await other.service.reset_next_cron_time("g1")

    assert (await cluster.ended(within_s=0.1)).status is Status.SUCCEEDED


async def test_making_due_what_is_being_driven_or_has_ended_changes_no_outcome(cluster: Cluster) -> None:
    node = await cluster.start_node()
    hold = cluster.participants.hold("01 action")
    submit = node.submit_soon()
    await hold.began.wait()
    await node.service.reset_next_cron_time("g1")
    hold.end()

    assert (await submit).status is Status.SUCCEEDED
    await node.service.reset_next_cron_time("g1")
    await asyncio.sleep(10.0)
    assert cluster.calls() == ["01 action", "02 action"]
    with pytest.raises(TransactionNotFoundError):
        await node.service.reset_next_cron_time("g2")


async def test_only_what_is_far_off_is_made_due_and_no_more_than_asked_for(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.always("01 action", ONGOING)
    for gid, interval in [("g1", 60), ("g2", 600), ("g3", 600), ("g4", 600)]:
        await node.submit(gid, retry_interval=interval)

    assert await node.service.reset_cron_time(timeout_s=None, limit=2) == 2
    await settle()
    assert sum(len(cluster.calls(gid)) for gid in ("g2", "g3", "g4")) == 5
    assert len(cluster.calls("g1")) == 1

    assert await node.service.reset_cron_time(timeout_s=0, limit=100) == 4
    await settle()
    assert len(cluster.calls("g1")) == 2


# -- looking -------------------------------------------------------------------------------


async def test_a_query_shows_a_live_transaction_as_it_stands(cluster: Cluster) -> None:
    node = await cluster.start_node()
    hold = cluster.participants.hold("02 action")
    node.submit_soon()
    await hold.began.wait()

    shown = await node.service.query("g1")

    assert shown is not None
    action = shown.tx.branches[1]
    assert action.status is OpStatus.SUCCEEDED
    assert [attempt.outcome for attempt in action.attempts] == [Outcome.SUCCESS]
    assert shown.owner == node.engine.node_id


async def test_a_query_elsewhere_shows_what_is_stored(cluster: Cluster) -> None:
    driving, other = [await cluster.start_node() for _ in range(2)]
    hold = cluster.participants.hold("02 action")
    driving.submit_soon()
    await hold.began.wait()
    await asyncio.sleep(0.5)

    assert await other.service.query("g1") == await cluster.stored()
    assert await cluster.rows() == "PSPP", "stored by now, though nobody waited for it"
    assert await other.service.query("g2") is None


async def test_transactions_are_listed(cluster: Cluster) -> None:
    node = await cluster.start_node()
    await node.submit("g1")
    cluster.participants.always("01 action", ONGOING)
    await node.submit("g2")

    listed = await node.service.list_transactions(ListQuery(limit=10))

    assert [stored.tx.gid for stored in listed.items] == ["g2", "g1"]


async def test_what_is_unfinished_is_counted_and_the_count_holds_for_a_while(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.always("01 action", ONGOING)
    await node.submit("g1")
    first = await node.service.unfinished.by_status()
    await node.submit("g2")

    assert first == {Status.PREPARED: 0, Status.SUBMITTED: 1, Status.ABORTING: 0}
    assert await node.service.unfinished.by_status() == first
    await asyncio.sleep(COUNTED_EVERY_S)
    assert await node.service.unfinished.by_status() == {**first, Status.SUBMITTED: 2}


async def test_a_store_that_is_away_is_not_asked_again_at_once(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.store.is_down = True
    assert await node.service.unfinished.by_status() is None
    cluster.store.is_down = False

    assert await node.service.unfinished.by_status() is None
    await asyncio.sleep(COUNTED_EVERY_S)
    assert await node.service.unfinished.by_status() is not None


class SlowStore(MemoryStore):
    """Takes its time to count."""

    takes_s = 2.0
    asked = 0

    async def count_by_status(self) -> dict[Status, int]:
        self.asked += 1
        await asyncio.sleep(self.takes_s)
        return await super().count_by_status()


async def test_a_count_that_took_long_holds_for_long(cluster: Cluster) -> None:
    store = SlowStore()
    count = UnfinishedCount(store)

    await asyncio.gather(count.by_status(), count.by_status())
    await asyncio.sleep(30.0)
    assert await count.by_status() is not None
    assert store.asked == 1
    await asyncio.sleep(10.0)
    await count.by_status()
    assert store.asked == 2


async def test_a_count_that_takes_too_long_is_not_waited_for(cluster: Cluster) -> None:
    store = SlowStore()
    store.takes_s = 3600.0

    async with asyncio.timeout(PATIENCE_S + 0.1):
        assert await UnfinishedCount(store).by_status() is None


async def test_ready_means_that_the_store_answers(cluster: Cluster) -> None:
    node = await cluster.start_node()
    await node.service.check_ready()
    cluster.store.is_down = True

    with pytest.raises(StoreUnavailableError):
        await node.service.check_ready()


async def test_new_gids_differ_and_sort_by_time(cluster: Cluster) -> None:
    node = await cluster.start_node()
    gids = []
    for _ in range(100):
        gids.append(node.service.new_gid())
        await asyncio.sleep(0.001)

    assert sorted(set(gids)) == gids


# -- what a saga is never asked ------------------------------------------------------------


async def test_a_saga_is_not_prepared(cluster: Cluster) -> None:
    node = await cluster.start_node()

    with pytest.raises(InvalidRequestError, match="a saga is not prepared: send it whole to submit"):
        await node.service.prepare(saga_request())
    with pytest.raises(InvalidRequestError, match="trans_type '' is not known"):
        await node.service.prepare(TransRequest(gid="g1"))


async def test_a_saga_is_not_aborted_whatever_the_request_says_it_is(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.always("01 action", ONGOING)
    await node.submit()

    with pytest.raises(StatusConflictError) as refused:
        await node.service.abort(TransRequest(gid="g1", trans_type="tcc"))

    assert (refused.value.wanted, refused.value.pattern) == ("abort", "saga")
    assert (await cluster.saga()).status is Status.SUBMITTED
    with pytest.raises(TransactionNotFoundError, match="no global transaction has the gid g2"):
        await node.service.abort(TransRequest(gid="g2", trans_type="tcc"))
