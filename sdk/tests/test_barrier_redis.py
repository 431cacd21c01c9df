"""The barrier's promises in a real Redis and a real cluster, through every kind of client."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from random import Random
from typing import Any
from uuid import uuid4

import pytest
import redis
import redis.asyncio as aredis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from localservers.servers import Server
from sdk.tests.barrier_support import (
    DUPLICATE,
    EMPTY,
    ORDERS_OF_ARRIVAL,
    RUN,
    STRANGE_GIDS,
    SUSPENDED,
)
from sdk.tests.redis_support import DESKS, Async, Blocking, Desk, LossyWay
from txcoord.barrier.redis import DEFAULT_EXPIRY_S, keys_of, mark
from txcoord.barrier.rule import BarrierCall
from txcoord.errors import InvalidRequestError
from txcoord_sdk.barrier import BarrierError, BranchBarrier, DuplicatedError, Passage
from txcoord_sdk.barrier.redis import Increment, LuaWork, Passed
from txcoord_sdk.branch import BranchFailed

OPENING = 100
AMOUNT = 30


class Shop:
    """One counter, and one branch that changes it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.key = f"purse:{uuid4().hex}"
        self.gid = f"gid-{uuid4().hex}"

    async def open_account(self) -> None:
        await self.desk.say("SET", self.key, OPENING)

    def barrier(self, op: str, *, gid: str | None = None) -> BranchBarrier:
        return BranchBarrier("saga", gid or self.gid, "01", op)

    async def deliver(self, op: str, *, gid: str | None = None, **options: Any) -> Passage:
        return (await self.desk.call(self.barrier(op, gid=gid), self.effect(op), **options)).passage

    def effect(self, op: str) -> Increment:
        return Increment(self.key, -AMOUNT if op in ("compensate", "cancel", "rollback") else AMOUNT)

    async def effects(self) -> float:
        return (int(await self.desk.say("GET", self.key)) - OPENING) / AMOUNT

    def mark(self, op: str, *, gid: str | None = None, branch_id: str = "01", barrier_id: str = "01") -> str:
        call = BarrierCall(trans_type="saga", gid=gid or self.gid, branch_id=branch_id, op=op, barrier_id=barrier_id)
        return mark(call.own, beside=self.key)

    async def value(self, key: str) -> str | None:
        found = await self.desk.say("GET", key)
        return found.decode() if isinstance(found, bytes) else found


@pytest.fixture(params=DESKS, ids=lambda kind: kind.__name__)
async def desk(request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    kind: type[Desk] = request.param
    server = request.getfixturevalue("redis_cluster" if kind.is_cluster else "redis_server")
    desk = kind(server.url)
    yield desk
    await desk.close()


@pytest.fixture
async def shop(desk: Desk) -> Shop:
    shop = Shop(desk)
    await shop.open_account()
    return shop


# -- orders of arrival -----------------------------------------------------------------------


@pytest.mark.parametrize(("deliveries", "effects", "rows"), ORDERS_OF_ARRIVAL)
async def test_each_order_of_arrival_has_its_effect(
    shop: Shop, deliveries: list[tuple[str, Passage]], effects: int, rows: list[tuple[str, str]]
) -> None:
    for op, passage in deliveries:
        assert await shop.deliver(op) is passage

    assert await shop.effects() == effects
    assert {op: await shop.value(shop.mark(op)) for op, _ in rows} == dict(rows)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    pair=st.sampled_from([("action", "compensate"), ("try", "cancel"), ("action", "rollback")]),
    deliveries=st.lists(st.tuples(st.booleans(), st.sampled_from(["fits", "refused", "forgotten"])), max_size=10),
)
async def test_any_sequence_of_deliveries_keeps_the_balance_exact(
    desk: Desk, pair: tuple[str, str], deliveries: list[tuple[bool, str]]
) -> None:
    shop = Shop(desk)
    await shop.open_account()
    acted = undone = False
    for is_back, kind in deliveries:
        op = pair[is_back]
        if is_back:
            expected = DUPLICATE if undone else RUN if acted else EMPTY
        else:
            expected = SUSPENDED if undone and not acted else DUPLICATE if acted else RUN
        if kind == "forgotten":
            await desk.forget_scripts()
        if kind == "refused" and expected is RUN:
            with pytest.raises(BranchFailed):
                await desk.call(shop.barrier(op), Increment(shop.key, 0, floor=10**6))
            continue
        assert await shop.deliver(op) is expected
        acted |= not is_back and expected is RUN
        undone |= is_back

    assert await shop.effects() == (acted and not undone)


async def test_a_storm_of_calls_ends_with_everything_taken_back(shop: Shop) -> None:
    calls = ["action", "compensate"] * 8
    Random(7).shuffle(calls)

    passages = await asyncio.gather(*(shop.deliver(op) for op in calls))

    assert await shop.effects() == 0
    ran = [op for op, passage in zip(calls, passages, strict=True) if passage is RUN]
    assert sorted(ran) in ([], ["action", "compensate"])


async def test_branches_and_transactions_do_not_meet(shop: Shop) -> None:
    # With DTM's names the last two would be one: g-01-02-action-01.
    for gid, branch_id in [("", "01"), ("", "02"), ("x", "01"), ("-01", "02"), ("", "01-02")]:
        barrier = BranchBarrier("saga", shop.gid + gid, branch_id, "action")
        assert (await shop.desk.call(barrier, Increment(shop.key, AMOUNT))).passage is RUN

    assert await shop.effects() == 5


async def test_calls_within_one_handler_are_counted_and_may_be_named(shop: Shop) -> None:
    barrier, again = shop.barrier("action"), shop.barrier("action")
    work = shop.effect("action")

    assert [(await shop.desk.call(barrier, work)).passage for _ in range(2)] == [RUN, RUN]
    assert [(await shop.desk.call(again, work)).passage for _ in range(2)] == [DUPLICATE, DUPLICATE]
    assert (await shop.desk.call(again, work, barrier_id="stock")).passage is RUN
    assert await shop.effects() == 3
    assert await shop.value(shop.mark("action", barrier_id="02")) == "action"


async def test_values_are_data(shop: Shop) -> None:
    for gid in (f"{strange}{uuid4().hex}" for strange in (*STRANGE_GIDS, "{a}", "}{", ":::", "%3A")):
        assert await shop.deliver("compensate", gid=gid) is EMPTY
        assert await shop.deliver("action", gid=gid) is SUSPENDED
        assert await shop.value(shop.mark("action", gid=gid)) == "compensate"

    assert await shop.effects() == 0


# -- the balance -----------------------------------------------------------------------------


async def test_a_deduction_is_refused_when_there_is_less_and_leaves_no_mark(shop: Shop) -> None:
    with pytest.raises(BranchFailed, match=f"{shop.key} is 100: adding -101 would bring it below 0"):
        await shop.desk.call(shop.barrier("action"), Increment(shop.key, -101))

    assert await shop.effects() == 0
    assert await shop.value(shop.mark("action")) is None
    assert await shop.deliver("compensate") is EMPTY
    assert await shop.deliver("action") is SUSPENDED


async def test_the_repetition_of_a_deduction_that_took_the_last_is_a_duplicate(shop: Shop) -> None:
    work = Increment(shop.key, -OPENING)

    assert await shop.desk.call(shop.barrier("action"), work) == Passed(RUN, 0)
    assert await shop.desk.call(shop.barrier("action"), work) == Passed(DUPLICATE, None)


async def test_a_counter_that_is_not_there_is_refused_unless_there_is_no_floor(desk: Desk) -> None:
    shop = Shop(desk)
    with pytest.raises(BranchFailed, match="is not there"):
        await desk.call(shop.barrier("action"), Increment(shop.key, 5))

    assert await desk.call(shop.barrier("action"), Increment(shop.key, -5, floor=None)) == Passed(RUN, -5)


async def test_the_floor_may_be_another(shop: Shop) -> None:
    with pytest.raises(BranchFailed, match="below 71"):
        await shop.desk.call(shop.barrier("action"), Increment(shop.key, -30, floor=71))

    assert await shop.desk.call(shop.barrier("action"), Increment(shop.key, -30, floor=70)) == Passed(RUN, 70)


async def test_great_balances_are_exact(shop: Shop) -> None:
    await shop.desk.say("SET", shop.key, 2**62 + 1)
    await shop.desk.call(shop.barrier("action"), Increment(shop.key, -(2**52) + 1))

    assert int(await shop.desk.say("GET", shop.key)) == 2**62 + 2 - 2**52


@pytest.mark.parametrize("numbers", [(2**52,), (-(2**52),), (1, 2**52)])
def test_what_lua_cannot_count_exactly_is_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"2\*\*52"):
        Increment("k", *numbers)


async def test_what_is_no_number_is_redis_error_and_leaves_no_mark(shop: Shop) -> None:
    await shop.desk.say("SET", shop.key, "many")
    with pytest.raises(ResponseError, match="not an integer"):
        await shop.deliver("action")

    assert await shop.value(shop.mark("action")) is None


# -- scripts ---------------------------------------------------------------------------------

MOVE = """\
local left = tonumber(redis.call('HGET', KEYS[1], 'free'))
if left < tonumber(ARGV[1]) then refuse('only ' .. left .. ' left') end
redis.call('HINCRBY', KEYS[1], 'free', -ARGV[1])
redis.call('RPUSH', KEYS[2], ARGV[2])
return {left - ARGV[1], ARGV[2]} -- a comment at the end"""


async def test_a_script_runs_once_and_says_what_it_returns(shop: Shop) -> None:
    stock, log = f"{{{shop.key}}}:stock", f"{{{shop.key}}}:log"
    await shop.desk.say("HSET", stock, "free", 7)
    work = LuaWork(MOVE, [stock, log], [5, 'it\'s 100% "öl" ]] %s'])

    passage, value = await shop.desk.call(shop.barrier("try"), work)
    again = await shop.desk.call(shop.barrier("try"), work)

    assert (passage, value[0]) == (RUN, 2)
    assert again == Passed(DUPLICATE, None)
    assert await shop.desk.say("LLEN", log) == 1
    with pytest.raises(BranchFailed, match="only 2 left"):
        await shop.desk.call(shop.barrier("try", gid=shop.gid + "x"), work)
    assert await shop.desk.say("LLEN", log) == 1


@pytest.mark.parametrize(
    ("script", "says"),
    [
        pytest.param("redis.call('HSET', KEYS[1], 'a', 1)", "WRONGTYPE", id="of a command"),
        pytest.param("return redis.pcall('HSET', KEYS[1], 'a', 1)", "WRONGTYPE", id="returned"),
        pytest.param("return nothing.here", "nothing", id="of Lua"),
        pytest.param("error('broken')", "broken", id="raised"),
        pytest.param("this is no Lua", "compiling", id="of syntax"),
    ],
)
async def test_an_error_in_a_script_comes_through_and_leaves_no_mark(shop: Shop, script: str, says: str) -> None:
    with pytest.raises(ResponseError, match=says):
        await shop.desk.call(shop.barrier("action"), LuaWork(script, [shop.key]))

    assert await shop.deliver("action") is RUN


@pytest.mark.parametrize(("script", "value"), [("", None), ("return false", None), ("return 1", 1)])
async def test_a_script_may_return_nothing(shop: Shop, script: str, value: object) -> None:
    assert await shop.desk.call(shop.barrier("action"), LuaWork(script, [shop.key])) == Passed(RUN, value)


def test_a_script_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        LuaWork("return 1", [])


# -- what Redis forgets ----------------------------------------------------------------------


async def test_marks_last_for_as_long_as_they_are_asked_to(shop: Shop) -> None:
    await shop.deliver("action")
    left = await shop.desk.say("TTL", shop.mark("action"))
    assert DEFAULT_EXPIRY_S - 60 <= left <= DEFAULT_EXPIRY_S == 7 * 24 * 3600

    await shop.deliver("compensate", gid=shop.gid + "x", expiry=timedelta(hours=2))
    for op in ("action", "compensate"):
        assert 7140 <= await shop.desk.say("TTL", shop.mark(op, gid=shop.gid + "x")) <= 7200


async def test_each_call_that_comes_again_prolongs_the_marks_and_none_shortens_them(shop: Shop) -> None:
    await shop.deliver("action", expiry=1000)
    await shop.deliver("compensate", expiry=2000)
    assert await shop.desk.say("TTL", shop.mark("action")) > 1900

    await shop.deliver("compensate", expiry=3000)
    for op in ("action", "compensate"):
        assert await shop.desk.say("TTL", shop.mark(op)) > 2900

    await shop.deliver("action", expiry=10)
    assert await shop.desk.say("TTL", shop.mark("action")) > 2900


async def test_a_repeated_compensation_keeps_a_late_action_out_though_its_mark_was_lost(shop: Shop) -> None:
    await shop.deliver("compensate")
    await shop.desk.say("DEL", shop.mark("action"))

    assert await shop.deliver("compensate") is DUPLICATE
    assert await shop.deliver("action") is SUSPENDED
    assert await shop.effects() == 0


@pytest.mark.parametrize("expiry", [0, -1, 0.5, float("inf")])
async def test_an_expiry_that_means_nothing_is_refused(shop: Shop, expiry: float) -> None:
    with pytest.raises(ValueError, match="expiry"):
        await shop.deliver("action", expiry=expiry)


async def test_scripts_that_redis_forgot_are_sent_again(shop: Shop) -> None:
    assert await shop.deliver("action") is RUN
    await shop.desk.forget_scripts()

    assert await shop.deliver("action") is DUPLICATE
    await shop.desk.forget_scripts()
    assert await shop.deliver("compensate") is RUN
    assert await shop.effects() == 0


# -- a connection that breaks ----------------------------------------------------------------


@pytest.fixture
async def way(redis_server: Server) -> AsyncIterator[LossyWay]:
    async with LossyWay(redis_server.url) as way:
        yield way


class Impatient(Async):
    def connect(self, url: str) -> Any:
        return aredis.Redis.from_url(url, retry=AsyncRetry(NoBackoff(), 0))


class ImpatientBlocking(Blocking):
    def connect(self, url: str) -> Any:
        return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))


class Patient(Async):
    def connect(self, url: str) -> Any:
        return aredis.Redis.from_url(url, retry=AsyncRetry(NoBackoff(), 3))


@pytest.mark.parametrize("kind", [Impatient, ImpatientBlocking], ids=["async", "blocking"])
async def test_after_a_lost_answer_the_repetition_is_a_duplicate(way: LossyWay, kind: type[Desk]) -> None:
    shop = Shop(kind(way.url))
    await shop.open_account()
    await shop.deliver("compensate", gid=shop.gid + "x")  # Redis knows the script from now on
    way.loses = 1
    with pytest.raises(redis.ConnectionError):
        await shop.deliver("action")
    assert way.lost == 1

    assert await shop.deliver("action") is DUPLICATE
    assert await shop.effects() == 1
    await shop.desk.close()


async def test_a_client_that_sends_again_by_itself_has_no_second_effect(way: LossyWay) -> None:
    desk = Patient(way.url)
    shop = Shop(desk)
    await shop.open_account()
    await shop.deliver("compensate", gid=shop.gid + "x")
    way.loses = 1

    assert await shop.deliver("action") is DUPLICATE
    assert way.lost == 1
    assert await shop.effects() == 1

    # The local transaction of a message has to know its own mark from that of another.
    way.loses = 1
    message = BranchBarrier("msg", shop.gid, "00", "msg")
    assert (await desk.call(message, Increment(shop.key, AMOUNT))).passage is RUN
    assert way.lost == 2
    assert await shop.effects() == 2
    await desk.close()


# -- messages --------------------------------------------------------------------------------


def message(shop: Shop) -> BranchBarrier:
    return BranchBarrier("msg", shop.gid, "00", "msg")


@pytest.mark.parametrize("dtm_keys", [False, True], ids=["ours", "dtm"])
async def test_a_check_back_finds_the_local_transaction_that_took_effect(shop: Shop, dtm_keys: bool) -> None:
    if dtm_keys and shop.desk.is_cluster:
        return
    passed = await shop.desk.call(message(shop), shop.effect("action"), dtm_keys=dtm_keys)
    assert passed.passage is RUN

    key = None if dtm_keys else shop.key
    assert await shop.desk.query_prepared(message(shop), key)
    with pytest.raises(DuplicatedError, match=shop.gid):
        await shop.desk.call(message(shop), shop.effect("action"), dtm_keys=dtm_keys)
    assert await shop.effects() == 1


async def test_a_check_back_keeps_a_late_local_transaction_from_taking_effect(shop: Shop) -> None:
    assert not await shop.desk.query_prepared(message(shop), shop.key)
    with pytest.raises(DuplicatedError, match=shop.gid):
        await shop.desk.call(message(shop), shop.effect("action"))

    assert await shop.effects() == 0
    assert not await shop.desk.query_prepared(message(shop), shop.key)


async def test_a_check_back_prolongs_what_it_finds(shop: Shop) -> None:
    await shop.desk.call(message(shop), shop.effect("action"), expiry=100)
    assert await shop.desk.query_prepared(message(shop), shop.key, expiry=1000)

    assert await shop.desk.say("TTL", shop.mark("msg", branch_id="00")) > 900


# -- names, slots, DTM -----------------------------------------------------------------------

KEYS = ("stock:3", "{stock}:3", "a{b}c}", "}{a}b", "{{x}", "x{y", "ключ", "a b", "x" * 300)


@pytest.mark.parametrize("kind", [kind for kind in DESKS if kind.is_cluster])
async def test_the_marks_are_in_the_slot_of_their_key(kind: type[Desk], request: pytest.FixtureRequest) -> None:
    desk = kind(request.getfixturevalue("redis_cluster").url)
    for key in KEYS:
        call = BarrierCall(trans_type="saga", gid="{g}", branch_id="}", op="compensate", barrier_id="01")
        for name in keys_of(call, beside=key):
            assert await desk.say("CLUSTER KEYSLOT", name) == await desk.say("CLUSTER KEYSLOT", key)
    await desk.close()


@pytest.mark.parametrize("kind", [kind for kind in DESKS if kind.is_cluster])
async def test_keys_all_over_the_cluster_are_kept_exact(kind: type[Desk], request: pytest.FixtureRequest) -> None:
    desk = kind(request.getfixturevalue("redis_cluster").url)

    for _ in range(30):
        shop = Shop(desk)
        await shop.open_account()
        passages = [await shop.deliver(op) for op in ("action", "action", "compensate", "action")]
        assert passages == [RUN, DUPLICATE, RUN, DUPLICATE]
        assert await shop.effects() == 0
    await desk.close()


@pytest.mark.parametrize("key", ["", "a}", "{}a", "{}x{y}"])
def test_a_key_that_cannot_name_its_slot_is_refused(key: str) -> None:
    call = BarrierCall(trans_type="saga", gid="g", branch_id="01", op="action", barrier_id="01")
    with pytest.raises(InvalidRequestError, match="hash tag"):
        mark(call.own, beside=key)


async def test_with_dtm_keys_marks_are_shared_with_services_in_other_languages(redis_server: Server) -> None:
    desk = Async(redis_server.url)
    shop = Shop(desk)
    await shop.open_account()
    assert await shop.deliver("action", dtm_keys=True) is RUN
    assert await shop.value(f"{shop.gid}-01-action-01") == "action"
    assert await shop.deliver("compensate", dtm_keys=True) is RUN
    assert await shop.value(f"{shop.gid}-01-compensate-01") == "compensate"

    # As DTM's script leaves an empty compensation.
    gid = shop.gid + "x"
    await desk.say("SET", f"{gid}-01-compensate-01", "compensate")
    await desk.say("SET", f"{gid}-01-action-01", "rollback")
    assert await shop.deliver("action", gid=gid, dtm_keys=True) is SUSPENDED
    assert await shop.deliver("compensate", gid=gid, dtm_keys=True) is DUPLICATE

    # And a check-back that said no.
    await desk.say("SET", f"{shop.gid}-00-msg-01", "rollback")
    with pytest.raises(DuplicatedError):
        await desk.call(message(shop), shop.effect("action"), dtm_keys=True)
    await desk.close()


# -- the wrong client ------------------------------------------------------------------------


async def test_a_client_of_the_other_kind_is_refused(shop: Shop) -> None:
    barrier, work, client = shop.barrier("action"), shop.effect("action"), shop.desk.client
    if shop.desk.is_async:
        with pytest.raises(BarrierError, match="is async"):
            barrier.redis_call_sync(client, work)
    else:
        with pytest.raises(BarrierError, match="_sync"):
            await barrier.redis_call(client, work)
    assert await shop.effects() == 0


async def test_a_pipeline_and_what_is_no_redis_are_refused(shop: Shop) -> None:
    with pytest.raises(BarrierError, match="later"):
        await shop.barrier("action").redis_call(shop.desk.client.pipeline(), shop.effect("action"))
    with pytest.raises(BarrierError, match="not a client"):
        await shop.barrier("action").redis_call(object(), shop.effect("action"))


async def test_the_way_for_databases_points_to_the_one_for_redis(shop: Shop) -> None:
    with pytest.raises(BarrierError, match="redis_call"):
        await shop.barrier("action").call(shop.desk.client, lambda _: asyncio.sleep(0))


async def test_the_log_says_what_was_left_out_and_why(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "txcoord_sdk.barrier")
    await shop.deliver("compensate")

    assert [record.getMessage() for record in caplog.records if record.name == "txcoord_sdk.barrier"] == [
        f"barrier 01 of saga {shop.gid}, branch 01, compensate: left out as an empty compensation: "
        "what it would undo has never run"
    ]


def test_the_barrier_of_a_database_does_not_need_redis() -> None:
    source = "import sys; sys.modules['redis'] = None; import txcoord_sdk.barrier, txcoord_sdk.fastapi, txcoord_sdk"
    subprocess.run([sys.executable, "-c", source], check=True, env=dict(os.environ))
