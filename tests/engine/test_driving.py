"""Driving: decide, act, record; what is durable before what; exact times."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from tests.engine.harness import (
    CALL_S,
    FAILURE,
    ONGOING,
    SUCCESS,
    UNKNOWN,
    Answer,
    Cluster,
    held_off,
    now_s,
    settle,
)
from txcoord.api.views import branch_views
from txcoord.model import Op, OpStatus, Outcome, Status
from txcoord.request import SubmitResult

CONCURRENT = '{"concurrent":true}'
FAILED_2 = "url:http://p1/action return failed: no stock FAILURE"


async def test_a_saga_succeeds_with_two_writes(cluster: Cluster) -> None:
    node = await cluster.start_node()

    result = await node.submit()

    assert result == SubmitResult(waited=True, status=Status.SUCCEEDED)
    assert await cluster.rows() == "PSPS"
    assert cluster.log == ["g1 created", "g1 01 action", "g1 02 action", "g1 succeed"]


async def test_a_failure_is_on_record_before_the_first_compensation(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("02 action", FAILURE)

    result = await node.submit()

    assert result == SubmitResult(waited=True, status=Status.FAILED, reason=FAILED_2)
    assert await cluster.rows() == "SSSF"
    assert cluster.log == [
        "g1 created",
        "g1 01 action",
        "g1 02 action",
        "g1 aborting",
        "g1 02 compensate",
        "g1 01 compensate",
        "g1 failed",
    ]


async def test_a_call_carries_what_the_initiator_chose(cluster: Cluster) -> None:
    node = await cluster.start_node(request_timeout_s=3.0)

    await node.submit("g1", branch_headers={"X-Tenant": "t1"}, request_timeout=7, payloads=(b"one", b"two"))
    await node.submit("g2")

    first, second, third, _ = cluster.participants.requests
    assert (first.gid, first.branch_id, first.op, first.url) == ("g1", "01", Op.ACTION, "http://p0/action")
    assert (first.payload, first.headers, first.timeout_s) == (b"one", {"X-Tenant": "t1"}, 7)
    assert (second.branch_id, second.payload) == ("02", b"two")
    assert (third.headers, third.timeout_s) == ({}, 3.0)


async def test_operations_without_url_are_not_called(cluster: Cluster) -> None:
    node = await cluster.start_node()

    result = await node.submit(
        steps=({"action": ""}, {"action": "http://p1/action"}, {"action": ""}), payloads=(b"",) * 3
    )

    assert result.status is Status.SUCCEEDED
    assert cluster.calls() == ["02 action"]
    assert await cluster.rows() == "PSPSPS"


async def test_a_saga_without_steps_succeeds(cluster: Cluster) -> None:
    node = await cluster.start_node()

    assert (await node.submit(count=0)).status is Status.SUCCEEDED


async def test_concurrent_steps_are_called_at_once(cluster: Cluster) -> None:
    node = await cluster.start_node()

    await node.submit(custom_data=CONCURRENT)

    assert cluster.call_times_s("01 action") == cluster.call_times_s("02 action")


async def test_a_saga_that_may_turn_by_itself_records_a_success_before_the_step_that_builds_on_it(
    cluster: Cluster,
) -> None:
    node = await cluster.start_node()

    await node.submit(timeout_to_fail=60)

    assert cluster.log == ["g1 created", "g1 01 action", "g1 submitted", "g1 02 action", "g1 succeed"]


async def test_what_was_called_before_a_crash_is_compensated_after_the_deadline(cluster: Cluster) -> None:
    node = await cluster.start_node(lease_s=3.0)
    hold = cluster.participants.hold("02 action")
    node.submit_soon(timeout_to_fail=2)
    await hold.began.wait()
    node.kill()  # before any lazy write

    await cluster.start_node(lease_s=3.0)
    saga = await cluster.ended()

    assert saga.status is Status.FAILED
    assert cluster.calls()[2:] == ["02 compensate", "01 compensate"]


async def test_only_what_is_durable_is_shown_as_final(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.store.before_apply = asyncio.Event()
    submit = node.submit_soon()
    await settle()
    cluster.store.before_apply.set()
    cluster.store.before_apply = asyncio.Event()
    await settle()
    assert cluster.calls() == ["01 action", "02 action"]

    shown = await node.service.query("g1")

    assert shown is not None
    assert shown.tx.status is Status.SUBMITTED, "its success is still on the way to the store"
    cluster.store.before_apply.set()
    assert (await submit).status is Status.SUCCEEDED


# -- the deadline ------------------------------------------------------------------------


async def test_the_deadline_turns_a_saga_at_that_very_instant(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.always("01 action", ONGOING)

    await node.submit(timeout_to_fail=2, retry_interval=100)
    saga = await cluster.ended()

    assert (saga.status, saga.rollback_reason) == (Status.FAILED, "Timeout after 2 seconds")
    assert await cluster.rows() == "SPPP"
    assert saga.deadline_us is not None
    [compensated_s] = cluster.call_times_s("01 compensate")
    assert 2.0 <= compensated_s <= 2.01


async def test_the_deadline_turns_a_saga_while_a_call_is_under_way_and_its_compensation_waits(cluster: Cluster) -> None:
    node = await cluster.start_node()
    hold = cluster.participants.hold("01 action")
    submit = node.submit_soon(timeout_to_fail=2, request_timeout=10)
    await hold.began.wait()

    await asyncio.sleep(2.0)
    assert (await cluster.saga()).status is Status.ABORTING
    await asyncio.sleep(1.0)
    assert cluster.calls() == ["01 action"], "compensated before its action had ended"
    hold.end(SUCCESS)

    assert await submit == SubmitResult(waited=True, status=Status.FAILED, reason="Timeout after 2 seconds")
    assert cluster.calls() == ["01 action", "01 compensate"]
    assert await cluster.rows() == "SSPP"


async def test_a_success_just_before_the_deadline_counts(cluster: Cluster) -> None:
    node = await cluster.start_node()
    hold = cluster.participants.hold("02 action")
    submit = node.submit_soon(timeout_to_fail=2)
    await hold.began.wait()
    await asyncio.sleep(1.999 - now_s())
    hold.end(SUCCESS)

    assert (await submit).status is Status.SUCCEEDED


# -- retries -----------------------------------------------------------------------------


async def test_errors_are_repeated_with_growing_delays(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", *[UNKNOWN] * 4)

    node.submit_soon(retry_interval=1)
    await cluster.ended()

    times = cluster.call_times_s("01 action")
    gaps = [later - earlier for earlier, later in pairwise(times)]
    for gap, delay in zip(gaps, [2, 4, 8, 16], strict=True):
        assert 0.75 * delay <= gap <= delay + 0.1


async def test_steps_that_fail_side_by_side_do_not_multiply_their_delays(cluster: Cluster) -> None:
    node = await cluster.start_node()
    steps = ["01 action", "02 action", "03 action"]
    for step in steps:
        cluster.participants.script(step, *[UNKNOWN] * 3)

    node.submit_soon(count=3, custom_data=CONCURRENT, retry_interval=1)
    await cluster.ended()

    for step in steps:
        gaps = [later - earlier for earlier, later in pairwise(cluster.call_times_s(step))]
        for gap, delay in zip(gaps, [2, 4, 8], strict=True):
            assert 0.75 * delay <= gap <= delay + 0.1, "each as if it were alone"


async def test_ongoing_is_asked_again_after_the_interval(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", *[ONGOING] * 3)

    node.submit_soon(retry_interval=2)
    await cluster.ended()

    times = cluster.call_times_s("01 action")
    assert len(times) == 4
    assert all(1.5 <= later - earlier <= 2.1 for earlier, later in pairwise(times))


async def test_a_step_behind_a_repeated_one_waits(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", UNKNOWN, ONGOING)

    await node.submit()
    await cluster.ended()

    assert cluster.calls() == ["01 action"] * 3 + ["02 action"]


async def test_a_short_wait_is_spent_in_memory_and_its_due_time_is_stored(cluster: Cluster) -> None:
    node = await cluster.start_node(error_backoff_s=0.2, short_wait_s=0.25)
    cluster.participants.script("01 action", UNKNOWN)

    result = await node.submit()

    assert result.status is Status.SUBMITTED
    assert "01" in result.reason
    assert cluster.log == ["g1 created", "g1 01 action", "g1 submitted"]
    assert (await cluster.saga()).branches[1].due_us > cluster.clock.now_us()
    await cluster.ended()
    assert "g1 parked" not in cluster.log


async def test_a_long_wait_is_parked_and_leaves_nothing_in_memory(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", ONGOING)

    result = await node.submit(retry_interval=600)

    assert result.status is Status.SUBMITTED
    assert node.engine.live_count == 0
    stored = await cluster.stored()
    assert stored.owner == 0
    assert stored.tx.due_us is not None
    assert stored.tx.due_us == stored.tx.branches[1].due_us
    assert stored.tx.due_us - cluster.clock.now_us() > 400_000_000
    due_us = stored.tx.due_us
    await cluster.ended()
    [_, second_s] = cluster.call_times_s("01 action")
    assert second_s == pytest.approx((due_us - cluster.clock.now_us()) / 1e6 + now_s(), abs=0.01)


async def test_the_backoff_survives_a_restart(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", *[UNKNOWN] * 3)
    await node.submit(retry_interval=50)
    due_us = (await cluster.parked()).due_us
    node.kill()

    await cluster.start_node()
    await cluster.ended()

    assert due_us is not None
    times = cluster.call_times_s("01 action")
    assert times[1] == pytest.approx((due_us - cluster.clock.now_us()) / 1e6 + now_s(), abs=0.01)
    assert 150 <= times[2] - times[1] <= 201, "the second delay is twice the first, over the restart"


async def test_a_retry_limit_leaves_one_more_call_than_it_says(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.always("02 action", UNKNOWN)

    node.submit_soon(retry_limit=1)
    saga = await cluster.ended()

    assert cluster.calls() == ["01 action", "02 action", "02 action", "02 compensate", "01 compensate"]
    assert saga.rollback_reason == "RetryCount is greater than RetryLimit, RetryLimit: 1"
    assert await cluster.rows() == "SSSP"


@pytest.mark.parametrize("answer", [UNKNOWN, ONGOING, FAILURE], ids=lambda answer: answer.outcome)
async def test_a_compensation_is_repeated_until_it_succeeds(cluster: Cluster, answer: Answer) -> None:
    node = await cluster.start_node(retry_interval_s=1.0)
    cluster.participants.script("02 action", FAILURE)
    cluster.participants.script("02 compensate", *[answer] * 3)

    result = await node.submit()
    saga = await cluster.ended()

    assert result == SubmitResult(waited=True, status=Status.ABORTING, reason=FAILED_2)
    assert (saga.status, await cluster.rows()) == (Status.FAILED, "SSSF")
    assert cluster.calls()[2:] == ["02 compensate"] * 4 + ["01 compensate"]


async def test_a_sibling_under_way_is_awaited_before_anything_is_compensated(cluster: Cluster) -> None:
    node = await cluster.start_node()
    hold = cluster.participants.hold("01 action")
    cluster.participants.script("02 action", FAILURE)
    submit = node.submit_soon(custom_data=CONCURRENT)
    await settle()

    assert (await cluster.saga()).status is Status.ABORTING
    assert cluster.calls() == ["01 action", "02 action"]
    hold.end(SUCCESS)

    assert (await submit).status is Status.FAILED
    assert sorted(cluster.calls()[2:]) == ["01 compensate", "02 compensate"]


async def test_calls_held_off_are_no_failures(cluster: Cluster) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", *[held_off(2.0)] * 5)

    node.submit_soon(retry_limit=1)
    saga = await cluster.ended()

    assert saga.status is Status.SUCCEEDED
    assert [attempt.outcome for attempt in saga.branches[1].attempts] == [Outcome.SUCCESS]
    [called_s] = cluster.call_times_s("01 action")
    assert 7.5 <= called_s <= 10.1


@pytest.mark.parametrize("wait_s", [0.5, 60.0], ids=["live", "parked"])
async def test_what_is_held_off_says_so_until_it_is_called(cluster: Cluster, wait_s: float) -> None:
    node = await cluster.start_node()
    cluster.participants.script("01 action", held_off(wait_s), UNKNOWN)

    result = await node.submit()

    assert result.reason == "action of branch 01 of g1 is put off (held off)"
    stored = await node.service.query("g1")
    assert stored is not None
    assert [view.get("held_off") for view in branch_views(stored.tx)] == [None, "held off", None, None]
    assert [view.get("held_off") for view in branch_views(await cluster.ended())] == [None] * 4


async def test_attempts_are_kept_with_their_times_and_are_bounded(cluster: Cluster) -> None:
    node = await cluster.start_node(attempts_kept=2, error_backoff_s=0.1)
    cluster.participants.script("01 action", UNKNOWN, UNKNOWN)

    await node.submit()
    action = (await cluster.ended()).branches[1]

    assert action.status is OpStatus.SUCCEEDED
    assert [(attempt.outcome, attempt.code) for attempt in action.attempts] == [
        (Outcome.UNKNOWN, 500),
        (Outcome.SUCCESS, 200),
    ]
    assert all(attempt.duration_us == round(CALL_S * 1e6) for attempt in action.attempts)


# -- what should never happen --------------------------------------------------------------


@pytest.mark.parametrize("custom_data", ["", CONCURRENT], ids=["sequential", "concurrent"])
async def test_a_dispatcher_that_breaks_its_contract_delays_a_saga_but_does_not_lose_it(
    cluster: Cluster, custom_data: str
) -> None:
    cluster.may_break = True
    node = await cluster.start_node(lease_s=3.0)
    cluster.participants.script("02 action", ZeroDivisionError("a bug"))

    submit = node.submit_soon(custom_data=custom_data)
    saga = await cluster.ended(within_s=10)

    assert saga.status is Status.SUCCEEDED
    with pytest.raises(Exception, match="driving g1 was interrupted"):
        await submit
