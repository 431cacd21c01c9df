"""Messages on the engine: the check-back racing submit and abort, restarts, delays, giving up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from tests.engine.harness import (
    COMMIT_S,
    FAILURE,
    LINGER_S,
    ONGOING,
    SUCCESS,
    UNKNOWN,
    Cluster,
    LoggedStore,
    Node,
    now_s,
    settle,
)
from tests.msgs import QUERY_PREPARED, msg_request
from txcoord.api.views import branch_views, stored_view
from txcoord.errors import InvalidRequestError, StatusConflictError, TransactionNotFoundError
from txcoord.model import MICROSECONDS, NEVER_US, Op, Status
from txcoord.request import SubmitResult, TransRequest
from txcoord.store.base import Store
from txcoord.two_phase.decide import MOST_REFUSALS

SUCCEEDED = SubmitResult(waited=True, status=Status.SUCCEEDED)
ACCEPTED = SubmitResult(waited=False, status=Status.SUBMITTED)

DELIVERED = ["01 action", "02 action"]


@dataclass
class Msg:
    """One message as its initiator handles it, through one node."""

    node: Node
    gid: str = "g1"

    async def prepare(self, **more: Any) -> None:
        await self.node.service.prepare(msg_request(self.gid, **more))

    async def submit(self, *, wait: bool = True, **more: Any) -> SubmitResult:
        return await self.node.service.submit(msg_request(self.gid, wait_result=wait, **more))

    async def abort(self, *, wait: bool = False) -> SubmitResult:
        request = TransRequest(gid=self.gid, trans_type="msg", wait_result=wait, rollback_reason="changed my mind")
        return await self.node.service.abort(request)


@pytest.fixture
def msg(node: Node) -> Msg:
    return Msg(node)


@pytest.fixture(autouse=True)
async def nothing_left_behind(cluster: Cluster) -> AsyncIterator[None]:
    yield
    await cluster.check_nothing_is_left(after_s=2 * LINGER_S)


async def refusal(act: Any) -> str:
    """What a call is refused for; "" if it is not."""
    try:
        await act
    except StatusConflictError as error:
        return error.wanted
    return ""


async def rows(cluster: Cluster) -> str:
    views = branch_views(await cluster.saga())
    return "".join(view["status"][0].upper() for view in views)


# -- its course ----------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [False, True])
async def test_a_submit_delivers_in_order(cluster: Cluster, msg: Msg, prepared: bool) -> None:
    if prepared:
        await msg.prepare()

    assert await msg.submit() == SUCCEEDED

    assert cluster.calls() == DELIVERED
    assert await rows(cluster) == "SS"
    assert await refusal(msg.submit()) == "submit"
    assert await refusal(msg.prepare()) == "prepare"
    assert await refusal(msg.abort()) == "abort"


async def test_what_was_prepared_is_delivered_not_what_the_submit_says(cluster: Cluster, msg: Msg) -> None:
    await msg.prepare(branch_headers={"x-test": "yes"}, request_timeout=7)
    await msg.prepare(count=1)

    await msg.submit(count=1)

    assert [request.url for request in cluster.participants.requests] == ["http://p/0", "http://p/1"]
    assert cluster.participants.requests[0].headers == {"x-test": "yes"}


async def test_what_was_prepared_is_delivered_whatever_the_submit_leaves_out(cluster: Cluster, msg: Msg) -> None:
    with pytest.raises(InvalidRequestError, match="payloads"):
        await msg.submit(payloads=())
    await msg.prepare()
    await msg.prepare(payloads=())

    assert await msg.submit(payloads=()) == SUCCEEDED

    assert cluster.calls() == DELIVERED
    assert await refusal(msg.submit(payloads=())) == "submit"
    assert await refusal(msg.prepare(payloads=())) == "prepare"


async def test_submitted_twice_it_is_delivered_once(cluster: Cluster, msg: Msg) -> None:
    await msg.prepare()
    hold = cluster.participants.hold("01 action")
    assert await msg.submit(wait=False) == await msg.submit(wait=False, count=1) == ACCEPTED
    assert await refusal(msg.abort()) == "abort"
    hold.end()

    await cluster.ended()

    assert cluster.calls() == DELIVERED


async def test_an_abort_calls_nobody(cluster: Cluster, msg: Msg) -> None:
    await msg.prepare()

    assert (await msg.abort(wait=True)).status is Status.FAILED

    tx = await cluster.saga()
    assert (tx.status, tx.rollback_reason, cluster.calls()) == (Status.FAILED, "changed my mind", [])
    assert await refusal(msg.submit()) == "submit"
    with pytest.raises(TransactionNotFoundError):
        await Msg(msg.node, "g2").abort()


async def test_all_at_once(cluster: Cluster, msg: Msg) -> None:
    holds = [cluster.participants.hold(call) for call in DELIVERED]
    submit = asyncio.ensure_future(msg.submit(concurrent=True))
    await asyncio.gather(*[hold.began.wait() for hold in holds])
    for hold in holds:
        hold.end()

    assert await submit == SUCCEEDED


async def test_an_action_is_repeated_until_it_succeeds(cluster: Cluster, msg: Msg) -> None:
    cluster.participants.script("01 action", UNKNOWN, ONGOING, *[FAILURE] * (MOST_REFUSALS + 2))

    result = await msg.submit()

    assert result.status is Status.SUBMITTED
    assert "action of branch 01 of g1 is to be repeated" in result.reason
    assert (await cluster.ended()).status is Status.SUCCEEDED
    assert cluster.calls() == ["01 action"] * (MOST_REFUSALS + 5) + ["02 action"]


async def test_another_pattern_with_its_gid_is_refused(cluster: Cluster, msg: Msg) -> None:
    await msg.node.submit()
    for call in (msg.submit(), msg.prepare()):
        with pytest.raises(InvalidRequestError, match="g1 is a saga"):
            await call
    assert (await cluster.ended()).pattern == "saga"


# -- the check-back ------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [1, 5], ids=["while it lingers", "when it is parked"])
async def test_the_initiator_is_asked_at_the_deadline_exactly(cluster: Cluster, msg: Msg, timeout_s: int) -> None:
    await msg.prepare(timeout_to_fail=timeout_s)

    assert (await cluster.ended()).status is Status.SUCCEEDED

    assert cluster.calls() == ["00 msg", *DELIVERED]
    [asked_s] = cluster.call_times_s("00 msg")
    assert timeout_s <= asked_s < timeout_s + 0.02
    question = cluster.participants.requests[0]
    assert (question.url, question.payload, question.op) == (QUERY_PREPARED, b"", Op.MSG)


async def test_a_message_without_a_timeout_has_the_default_one(cluster: Cluster, msg: Msg) -> None:
    cluster.participants.script("00 msg", FAILURE)
    await msg.prepare()

    tx = await cluster.ended()

    assert cluster.call_times_s("00 msg") == [pytest.approx(35.0, abs=0.02)]
    assert (tx.status, cluster.calls(), await rows(cluster)) == (Status.FAILED, ["00 msg"], "PP")
    assert tx.rollback_reason == f"url:{QUERY_PREPARED} return failed: no stock FAILURE"


async def test_the_question_is_repeated_with_a_backoff_and_shown(cluster: Cluster, msg: Msg) -> None:
    cluster.participants.script("00 msg", UNKNOWN, UNKNOWN, UNKNOWN, ONGOING)
    await msg.prepare(timeout_to_fail=30)

    await cluster.ended()

    times = cluster.call_times_s("00 msg")
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    for pause, longest in zip(pauses, [1, 2, 4, 10], strict=True):
        assert longest * 0.74 < pause < longest + 0.05
    view = stored_view(await cluster.stored())
    assert view["check_back"]["status"] == "succeed"
    assert [attempt["outcome"] for attempt in view["check_back"]["attempts"]] == [
        *["unknown"] * 3,
        "ongoing",
        "success",
    ]
    assert [branch["branch_id"] for branch in branch_views(await cluster.saga())] == ["01", "02"]


async def test_without_an_address_it_waits_for_its_initiator(cluster: Cluster, msg: Msg) -> None:
    await msg.prepare(timeout_to_fail=5, query_prepared="")
    tx = await cluster.store.wait_until(lambda stored: stored.tx.due_us == NEVER_US, "g1", within_s=60.0)
    assert 5.0 <= now_s() < 10.0
    assert "has no query_prepared" in stored_view(await cluster.stored())["needs_operator"]

    await asyncio.sleep(100_000.0)
    assert await cluster.saga() == tx

    assert await msg.submit() == SUCCEEDED
    assert "needs_operator" not in stored_view(await cluster.stored())


@pytest.mark.parametrize("where", ["under way", "in backoff", "parked in backoff"])
@pytest.mark.parametrize("act", ["submit", "abort"])
async def test_nobody_waits_for_a_slow_check_back(cluster: Cluster, msg: Msg, act: str, where: str) -> None:
    await msg.prepare(timeout_to_fail=1)
    hold = None
    if where == "under way":
        hold = cluster.participants.hold("00 msg")
        await hold.began.wait()
    else:
        cluster.participants.always("00 msg", UNKNOWN)
        await settle(30.0 if where == "parked in backoff" else 1.2)
        assert "00 msg" in cluster.calls()
    asked, began_s = cluster.calls(), now_s()

    result = await (msg.submit() if act == "submit" else msg.abort(wait=True))

    assert now_s() - began_s < 0.2
    assert result.status is (Status.SUCCEEDED if act == "submit" else Status.FAILED)
    assert cluster.calls() == asked + (DELIVERED if act == "submit" else [])
    if hold is not None:
        await settle()
        assert hold.was_cancelled
    assert await rows(cluster) == ("SS" if act == "submit" else "PP")


async def test_a_change_that_is_refused_leaves_the_check_back_alone(cluster: Cluster, msg: Msg) -> None:
    hold = cluster.participants.hold("00 msg")
    await msg.prepare(timeout_to_fail=1)
    await hold.began.wait()

    with pytest.raises(InvalidRequestError):
        await msg.node.service.submit(TransRequest(gid="g1", trans_type="tcc"))
    await msg.prepare()
    hold.end(FAILURE)

    assert (await cluster.ended()).status is Status.FAILED
    assert cluster.calls() == ["00 msg"]


async def test_a_waiting_submit_hears_of_its_pass_though_the_check_back_hangs(cluster: Cluster, msg: Msg) -> None:
    hold = cluster.participants.hold("00 msg")
    cluster.participants.script("01 action", ONGOING)
    await msg.prepare(timeout_to_fail=1)
    await hold.began.wait()

    result = await msg.submit()

    assert result.status is Status.SUBMITTED
    assert "action of branch 01 of g1 is to be repeated" in result.reason
    assert (await cluster.ended()).status is Status.SUCCEEDED


@pytest.mark.parametrize("answer", [SUCCESS, FAILURE, ONGOING], ids=["success", "failure", "ongoing"])
@pytest.mark.parametrize("late_us", range(-4000, 16001, 1000))
@pytest.mark.parametrize("act", ["submit", "abort"])
async def test_a_change_at_the_deadline_wins_or_is_refused(
    cluster: Cluster, msg: Msg, act: str, late_us: int, answer: Any
) -> None:
    cluster.participants.script("00 msg", answer)
    await msg.prepare(timeout_to_fail=3)
    await asyncio.sleep(3 + late_us / MICROSECONDS - now_s())

    refused = await refusal(msg.submit(wait=False) if act == "submit" else msg.abort())

    tx = await cluster.ended()
    if refused:
        assert "00 msg" in cluster.calls()
        assert refused == act
        # Also an abort of what has failed already.
        assert tx.status is (Status.FAILED if answer is FAILURE else Status.SUCCEEDED)
    else:
        assert tx.status is (Status.SUCCEEDED if act == "submit" else Status.FAILED)
    delivered = [call for call in cluster.calls() if call != "00 msg"]
    assert delivered == (DELIVERED if tx.status is Status.SUCCEEDED else [])


async def test_another_node_may_submit_it_while_its_initiator_is_asked(cluster: Cluster, msg: Msg) -> None:
    other = Msg(await cluster.start_node())
    cluster.participants.script("00 msg", *[UNKNOWN] * 4)
    await msg.prepare(timeout_to_fail=1)
    await asyncio.sleep(12.0)

    assert await other.submit() == SUCCEEDED

    assert [call for call in cluster.calls() if call != "00 msg"] == DELIVERED


# -- restarts ------------------------------------------------------------------------------


@pytest.mark.parametrize("kill_s", [0.5, 2.5, 5.002, 5.006, 5.009, 5.012, 5.018])
async def test_a_restart_at_any_time_changes_nothing(cluster: Cluster, msg: Msg, kill_s: float) -> None:
    await msg.prepare(timeout_to_fail=5)
    await asyncio.sleep(kill_s - now_s())
    msg.node.kill()
    await cluster.start_node()

    assert (await cluster.ended()).status is Status.SUCCEEDED

    calls = cluster.calls()
    assert list(dict.fromkeys(calls)) == ["00 msg", *DELIVERED]
    assert cluster.call_times_s("00 msg")[0] >= 5.0


async def test_an_answer_of_failure_survives(cluster: Cluster, msg: Msg) -> None:
    cluster.participants.script("00 msg", FAILURE)
    await msg.prepare(timeout_to_fail=1)
    await cluster.ended()
    msg.node.kill()
    other = Msg(await cluster.start_node())

    assert await refusal(other.submit()) == "submit"
    assert cluster.calls() == ["00 msg"]


# -- delay ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["submitted at once", "prepared, the submit says it", "prepared, the prepare says it"])
@pytest.mark.parametrize("delay_s", [0.1, 10])
async def test_the_delay_is_exact(cluster: Cluster, msg: Msg, how: str, delay_s: float) -> None:
    delay = {"custom_data": f'{{"delay":{delay_s}}}'}
    if "prepared" in how:
        await msg.prepare(**(delay if "prepare says" in how else {}))
    await asyncio.sleep(1.0 - now_s())

    result = await msg.submit(**({} if "prepare says" in how else delay))

    assert result.status is Status.SUBMITTED
    assert now_s() < 1.1 or delay_s < 1
    assert (await cluster.ended()).status is Status.SUCCEEDED
    [called_s] = cluster.call_times_s("01 action")
    assert 1 + delay_s <= called_s < 1 + delay_s + 0.02


async def test_the_delay_counts_from_the_check_backs_answer(cluster: Cluster, msg: Msg) -> None:
    await msg.prepare(timeout_to_fail=5, custom_data='{"delay":10}')
    await cluster.ended()
    assert cluster.call_times_s("01 action") == [pytest.approx(15.0, abs=0.03)]


async def test_the_delay_survives_a_restart(cluster: Cluster, msg: Msg) -> None:
    await msg.prepare()
    await msg.submit(wait=False, custom_data='{"delay":60}')
    msg.node.kill()
    await asyncio.sleep(20.0)
    await cluster.start_node()

    await cluster.ended()

    assert cluster.call_times_s("01 action") == [pytest.approx(60.0, abs=0.1)]


async def test_an_operator_may_cut_the_delay_short(cluster: Cluster, msg: Msg) -> None:
    await msg.submit(custom_data='{"delay":1000}')
    assert cluster.calls() == []

    assert await msg.node.service.reset_cron_time(timeout_s=500, limit=10) == 1

    await cluster.ended()
    assert now_s() < 2.0


# -- best effort ---------------------------------------------------------------------------


@pytest.mark.parametrize("concurrent", [False, True])
async def test_attempts_are_used_up_and_the_others_go_on(cluster: Cluster, msg: Msg, concurrent: bool) -> None:
    cluster.participants.script("01 action", UNKNOWN, ONGOING, FAILURE)
    await msg.prepare()

    await msg.submit(wait=False, concurrent=concurrent, custom_data='{"max_attempts":3}')

    tx = await cluster.ended()
    assert (tx.status, tx.rollback_reason) == (Status.FAILED, "gave up branch 01 (called 3 times in vain)")
    assert sorted(cluster.calls()) == ["01 action"] * 3 + ["02 action"]
    assert await rows(cluster) == "FS"


async def test_a_waiting_submit_is_told_what_was_given_up(cluster: Cluster, msg: Msg) -> None:
    cluster.participants.always("02 action", FAILURE)
    result = await msg.submit(custom_data='{"max_attempts":1}')
    assert result == SubmitResult(
        waited=True, status=Status.FAILED, reason="gave up branch 02 (called 1 times in vain)"
    )


async def test_attempts_are_counted_over_restarts(cluster: Cluster, msg: Msg) -> None:
    cluster.participants.always("01 action", UNKNOWN)
    await msg.submit(wait=False, custom_data='{"max_attempts":8}')
    await asyncio.sleep(5.0)
    before = len(cluster.calls())
    assert 0 < before < 8
    msg.node.kill()
    await cluster.start_node()

    await cluster.ended()

    assert cluster.calls().count("01 action") == 8
    assert await rows(cluster) == "FS"


@pytest.mark.parametrize("prepared", ["no", "submitted", "checked back"])
async def test_each_action_has_its_time_from_when_its_turn_comes(cluster: Cluster, msg: Msg, prepared: str) -> None:
    cluster.participants.always("01 action", UNKNOWN)
    cluster.participants.always("02 action", UNKNOWN)
    custom_data = '{"deadline":20}'
    if prepared != "no":
        await msg.prepare(timeout_to_fail=5, custom_data=custom_data)
    if prepared != "checked back":
        await msg.submit(wait=False, custom_data=custom_data)
    before = 5.0 if prepared == "checked back" else 0.0

    tx = await cluster.ended()

    assert cluster.call_times_s("02 action")[0] == pytest.approx(before + 20.0, abs=0.05)
    assert now_s() == pytest.approx(before + 40.0, abs=0.05)
    late = "branch 01 (not done within 20 seconds), branch 02 (not done within 20 seconds)"
    assert (tx.status, tx.rollback_reason) == (Status.FAILED, f"gave up {late}")
    assert await rows(cluster) == "FF"


async def test_one_that_is_given_up_costs_the_next_none_of_its_time(cluster: Cluster, msg: Msg) -> None:
    cluster.participants.always("01 action", UNKNOWN)
    cluster.participants.script("02 action", UNKNOWN)
    await msg.submit(wait=False, custom_data='{"deadline":20,"delay":3}')

    tx = await cluster.ended()

    assert (tx.status, tx.rollback_reason) == (Status.FAILED, "gave up branch 01 (not done within 20 seconds)")
    assert cluster.call_times_s("02 action")[0] == pytest.approx(23.0, abs=0.05)
    assert await rows(cluster) == "FS"


@pytest.mark.parametrize("concurrent", [False, True])
async def test_each_has_its_time_over_restarts(cluster: Cluster, msg: Msg, concurrent: bool) -> None:
    cluster.participants.always("01 action", UNKNOWN)
    await msg.submit(wait=False, concurrent=concurrent, custom_data='{"deadline":20}')
    await asyncio.sleep(10.0)
    msg.node.kill()
    await cluster.start_node()

    tx = await cluster.ended()

    assert now_s() == pytest.approx(20.0, abs=0.5)
    assert tx.rollback_reason == "gave up branch 01 (not done within 20 seconds)"
    assert await rows(cluster) == "FS"


@pytest.mark.parametrize("concurrent", [False, True])
async def test_a_call_under_way_at_its_deadline_may_still_succeed(cluster: Cluster, msg: Msg, concurrent: bool) -> None:
    hold = cluster.participants.hold("01 action")
    submit = asyncio.ensure_future(msg.submit(count=1, concurrent=concurrent, custom_data='{"deadline":2}'))
    await asyncio.sleep(2.5)
    assert not submit.done()
    hold.end()
    assert await submit == SUCCEEDED


# -- prepared once more while it changes hands -----------------------------------------------


class SlowClaims:
    """A store whose claims are answered a while after they took effect."""

    def __init__(self, store: LoggedStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def claim_prepared(self, *arguments: Any) -> Any:
        owned = await self._store.claim_prepared(*arguments)
        await asyncio.sleep(0.005)
        return owned


async def test_a_claim_waits_for_a_prepare_of_the_same_gid_that_is_being_written(cluster: Cluster) -> None:
    msg = Msg(await cluster.start_node(store=cast("Store", SlowClaims(cluster.store))))
    await msg.prepare(timeout_to_fail=5)
    await cluster.parked("g1")
    cluster.store.before_apply = asyncio.Event()
    msg.node.submit_soon("other", wait=False)
    await asyncio.sleep(COMMIT_S)

    with capture_logs() as lines:
        abort = asyncio.create_task(msg.abort())
        await asyncio.sleep(0.001)
        again = asyncio.create_task(msg.prepare(timeout_to_fail=5))
        await asyncio.sleep(0.05)
        cluster.store.before_apply.set()
        await asyncio.gather(abort, again, return_exceptions=True)

    assert (await cluster.ended("g1")).status is Status.FAILED
    assert [line["event"] for line in lines if line["log_level"] in ("error", "warning")] == []


async def test_a_prepare_of_the_same_gid_does_not_put_off_what_is_due(cluster: Cluster, msg: Msg) -> None:
    await msg.prepare(timeout_to_fail=5)
    await cluster.parked("g1")
    await asyncio.sleep(4.999 - now_s())
    cluster.store.before_apply = asyncio.Event()
    again = asyncio.create_task(msg.prepare(timeout_to_fail=5))
    await asyncio.sleep(0.1)
    cluster.store.before_apply.set()
    await again

    await cluster.ended("g1")

    assert cluster.call_times_s("00 msg")[0] == pytest.approx(5.1, abs=0.05)
