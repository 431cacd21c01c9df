"""Submitting: what is durable when it is answered, submitting again, waiting, more than fits."""

from __future__ import annotations

import asyncio

import pytest

from tests.engine.harness import FAILURE, ONGOING, SUCCESS, UNKNOWN, Cluster, now_s, settle
from txcoord.errors import InvalidRequestError, OverloadedError, StatusConflictError, StoreUnavailableError
from txcoord.model import Status
from txcoord.request import SubmitResult

ACCEPTED = SubmitResult(waited=False, status=Status.SUBMITTED)
SUCCEEDED = SubmitResult(waited=True, status=Status.SUCCEEDED)


async def test_a_submit_is_answered_once_it_is_durable_and_before_any_result(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.hold("01 action")
    cluster.store.before_apply = asyncio.Event()
    submit = node.submit_soon(wait=False)
    await settle()
    assert not submit.done()
    assert cluster.calls() == [], "called before it was durable"

    cluster.store.before_apply.set()

    assert await submit == ACCEPTED
    assert (await cluster.saga()).status is Status.SUBMITTED


async def test_a_waiting_submit_is_answered_once_the_end_is_durable(cluster: Cluster) -> None:
    node = await cluster.start_node()
    submit = node.submit_soon()
    await settle(0.004)
    cluster.store.before_apply = asyncio.Event()
    await settle()
    assert cluster.calls() == ["01 action", "02 action"]
    assert not submit.done()

    cluster.store.before_apply.set()

    assert await submit == SUCCEEDED


async def test_a_wait_ends_when_the_pass_does(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("02 action", ONGOING)

    result = await node.submit()

    assert (result.waited, result.status) == (True, Status.SUBMITTED)
    assert result.reason == "action of branch 02 of g1 is to be repeated: it answered ongoing ()"
    assert (await cluster.stored()).owner == 0, "answered before it was parked"


async def test_a_wait_is_bounded_and_the_saga_goes_on(cluster: Cluster) -> None:
    node = await cluster.start_node(max_wait_s=20.0)
    hold = cluster.participants.hold("01 action")

    result = await node.submit()

    assert result == SubmitResult(waited=True, status=Status.SUBMITTED, reason="g1 is still submitted")
    assert now_s() == pytest.approx(20.0, abs=0.1)
    hold.end()
    assert (await cluster.ended()).status is Status.SUCCEEDED


async def test_a_client_that_goes_away_takes_nothing_along(cluster: Cluster) -> None:
    node = await cluster.start_node()
    hold = cluster.participants.hold("01 action")
    submit = node.submit_soon()
    await hold.began.wait()
    submit.cancel()
    hold.end()

    assert (await cluster.ended()).status is Status.SUCCEEDED


async def test_nothing_malformed_is_stored(cluster: Cluster) -> None:
    node = await cluster.start_node()

    with pytest.raises(InvalidRequestError):
        await node.submit(payloads=())
    with pytest.raises(InvalidRequestError, match="trans_type 'barter' is not known"):
        await node.submit(trans_type="barter")

    assert await cluster.store.find("g1") is None


# -- submitting again ----------------------------------------------------------------------


async def test_submitting_again_joins_the_pass_and_starts_no_second_one(cluster: Cluster) -> None:
    node = await cluster.start_node()
    hold = cluster.participants.hold("01 action")
    first = node.submit_soon()
    await hold.began.wait()
    waiting = node.submit_soon(count=7)
    assert await node.submit(wait=False) == ACCEPTED
    await settle()
    assert not waiting.done()
    hold.end()

    assert await first == await waiting == SUCCEEDED
    assert cluster.calls() == ["01 action", "02 action"], "one pass, with the stored steps"


async def test_submitting_at_the_same_time_creates_one(cluster: Cluster) -> None:
    node = await cluster.start_node()

    results = await asyncio.gather(*[node.submit() for _ in range(5)])

    assert results == [SUCCEEDED] * 5
    assert cluster.calls() == ["01 action", "02 action"]


async def test_submitting_to_two_nodes_at_the_same_time_creates_one(cluster: Cluster) -> None:
    nodes = [await cluster.start_node() for _ in range(2)]
    hold = cluster.participants.hold("01 action")

    submits = [node.submit_soon(wait=False) for node in nodes]

    results = [await submit for submit in submits]
    assert [(result.waited, result.status) for result in results] == [(False, Status.SUBMITTED)] * 2
    hold.end()
    await cluster.ended()
    assert cluster.calls() == ["01 action", "02 action"]


async def test_submitting_again_elsewhere_says_where_it_stands(cluster: Cluster) -> None:
    one, other = [await cluster.start_node() for _ in range(2)]
    hold = cluster.participants.hold("01 action")
    one.submit_soon()
    await hold.began.wait()

    result = await other.submit()

    assert (result.waited, result.status) == (True, Status.SUBMITTED)
    assert "g1 was submitted before and is still submitted: query it" in result.reason
    assert cluster.calls() == ["01 action"]


async def test_submitting_again_what_is_parked_changes_nothing(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", ONGOING)
    await node.submit(retry_interval=600)
    before = await cluster.stored()

    result = await node.submit(wait=False)

    assert (result.waited, result.status) == (False, Status.SUBMITTED)
    assert await cluster.stored() == before


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(
    ("answers", "status"),
    [
        pytest.param({}, Status.SUCCEEDED, id="succeeded"),
        pytest.param({"01 action": FAILURE}, Status.FAILED, id="failed"),
        pytest.param({"01 action": FAILURE, "01 compensate": ONGOING}, Status.ABORTING, id="aborting, parked"),
    ],
)
async def test_submitting_again_after_it_turned_or_ended_is_refused(
    cluster: Cluster, answers: dict[str, object], status: Status, wait: bool
) -> None:
    node = await cluster.start_node()
    for what, answer in answers.items():
        cluster.participants.script(what, answer)  # type: ignore[arg-type]
    await node.submit()

    with pytest.raises(StatusConflictError) as refused:
        await node.submit(wait=wait)

    assert (refused.value.status, refused.value.wanted) == (status, "submit")


async def test_submitting_again_while_it_is_being_compensated_is_refused(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", FAILURE)
    hold = cluster.participants.hold("01 compensate")
    node.submit_soon()
    await hold.began.wait()

    with pytest.raises(StatusConflictError) as refused:
        await node.submit()

    assert refused.value.status is Status.ABORTING


# -- more than fits ------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [True, False])
async def test_what_does_not_fit_is_accepted_parked_and_driven_later(cluster: Cluster, wait: bool) -> None:
    node = await cluster.start_node(max_live=1)
    hold = cluster.participants.hold("01 action")
    node.submit_soon()
    await hold.began.wait()

    result = await node.submit("g2", wait=wait)

    assert result == SubmitResult(waited=wait, status=Status.SUBMITTED, reason="accepted; the coordinator is busy")
    assert (await cluster.stored("g2")).owner == 0
    await asyncio.sleep(10.0)
    assert cluster.calls("g2") == []
    hold.end()
    await cluster.ended("g1")
    assert (await cluster.ended("g2", within_s=0.1)).status is Status.SUCCEEDED


async def test_a_full_node_does_not_spin(cluster: Cluster) -> None:
    node = await cluster.start_node(max_live=1, poll_s=1.0)
    hold = cluster.participants.hold("01 action")
    node.submit_soon()
    await hold.began.wait()
    await node.submit("g2")
    timers = 0
    call_at = cluster.clock.call_at

    def count(*args: object) -> object:
        nonlocal timers
        timers += 1
        return call_at(*args)  # type: ignore[arg-type]

    cluster.clock.call_at = count  # type: ignore[method-assign, assignment]
    await asyncio.sleep(30.0)

    assert timers < 60


async def test_what_does_not_fit_may_be_submitted_twice_at_once(cluster: Cluster) -> None:
    node = await cluster.start_node(max_live=1)
    hold = cluster.participants.hold("01 action")
    node.submit_soon()
    await hold.began.wait()

    results = await asyncio.gather(*[node.submit("g2") for _ in range(3)])

    assert [result.status for result in results] == [Status.SUBMITTED] * 3
    hold.end()
    assert (await cluster.ended("g2")).status is Status.SUCCEEDED
    assert cluster.calls("g2") == ["01 action", "02 action"]


async def test_what_does_not_fit_is_refused_when_its_gid_is_taken(cluster: Cluster) -> None:
    node = await cluster.start_node(max_live=1)
    await node.submit("g2")
    hold = cluster.participants.hold("01 action")
    node.submit_soon()
    await hold.began.wait()

    with pytest.raises(StatusConflictError):
        await node.submit("g2")


async def test_a_backlog_is_driven_to_its_end_within_the_bounds(cluster: Cluster) -> None:
    first = await cluster.start_node()
    cluster.participants.always("01 action", ONGOING)
    gids = [f"g{number}" for number in range(50)]
    for gid in gids:
        await first.submit(gid, wait=True, retry_interval=5)
    first.kill()
    cluster.participants.always("01 action", SUCCESS)
    await asyncio.sleep(20.0)
    node = await cluster.start_node(max_recovering=8, take_over_batch=4)
    most = 0
    for _ in range(2000):
        most = max(most, node.engine.live_count)
        await asyncio.sleep(0.001)

    assert [(await cluster.saga(gid)).status for gid in gids] == [Status.SUCCEEDED] * 50
    assert most == 8


# -- a store that does not take it ---------------------------------------------------------


async def test_a_submit_that_the_store_refuses_is_not_accepted(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.store.refuses = lambda change: change.tx.gid == "g1"

    bad, good = await asyncio.gather(node.submit("g1"), node.submit("g2"), return_exceptions=True)

    assert isinstance(bad, StoreUnavailableError)
    assert good == SUCCEEDED
    assert node.engine.live_count == 0


async def test_a_submit_beyond_what_fits_that_the_store_refuses_is_not_accepted(cluster: Cluster) -> None:
    node = await cluster.start_node(max_live=0)
    cluster.store.refuses = lambda change: True

    with pytest.raises(StoreUnavailableError, match="whether g1 was accepted is not known"):
        await node.submit("g1")


async def test_a_draining_node_takes_nothing_new(cluster: Cluster) -> None:
    node = await cluster.start_node()
    node.engine.begin_drain()

    with pytest.raises(OverloadedError, match="stopping: submit again"):
        await node.submit()
    with pytest.raises(OverloadedError, match="draining"):
        await node.service.check_ready()


async def test_an_error_in_a_row_is_named_to_who_waits(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", UNKNOWN)

    assert (await node.submit()).reason == "action of branch 01 of g1 is to be repeated: it answered unknown (broken)"
