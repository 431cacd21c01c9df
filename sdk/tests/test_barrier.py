"""One list of promises, kept on every database through every driver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from uuid import uuid4

import aiomysql
import asyncpg
import psycopg
import pymysql
import pytest
import sqlalchemy.exc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdk.tests.barrier_support import (
    BENCHES,
    ORDERS_OF_ARRIVAL,
    OVER_SQLALCHEMY,
    STRANGE_GIDS,
    Bench,
    Caller,
    Rows,
    Statement,
    change,
    until_it_waits,
)
from txcoord.errors import InvalidRequestError
from txcoord_sdk.barrier import (
    BarrierError,
    BranchBarrier,
    DuplicatedError,
    NoTransactionError,
    Passage,
    create_table,
    create_table_sync,
)

RUN, DUPLICATE, EMPTY, SUSPENDED = Passage.RUN, Passage.DUPLICATE, Passage.EMPTY, Passage.SUSPENDED

OPENING = 100
AMOUNT = 30


LOCK_ERRORS = (aiomysql.Error, pymysql.Error, asyncpg.PostgresError, psycopg.Error, sqlalchemy.exc.DBAPIError)


class OutOfStock(Exception):
    pass


class Shop:
    """One account in one database, and one branch that changes it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.owner = uuid4().hex
        self.gid = f"gid-{self.owner}"

    def barrier(self, op: str, *, gid: str | None = None, table: str | None = None) -> BranchBarrier:
        return BranchBarrier("saga", gid or self.gid, "01", op, table=table)

    async def open_account(self) -> None:
        caller = await self.bench.begun()
        await caller.execute("insert into purse (owner, balance) values (?, ?)", self.owner, OPENING)
        await caller.commit()

    async def deliver(
        self, op: str, *, gid: str | None = None, table: str | None = None, error: BaseException | None = None
    ) -> Passage:
        """One request: a connection, the work behind the barrier, a commit; a rollback if it raises."""
        caller = await self.bench.begun()
        try:
            passage = await self.on(caller, op, gid=gid, table=table, error=error)
        except BaseException:
            await caller.rollback()
            raise
        await caller.commit()
        return passage

    async def on(
        self,
        caller: Caller,
        op: str,
        *,
        gid: str | None = None,
        table: str | None = None,
        error: BaseException | None = None,
    ) -> Passage:
        return await caller.call(self.barrier(op, gid=gid, table=table), self.effect(op), error=error)

    def effect(self, op: str) -> Statement:
        return change(self.owner, -AMOUNT if op in ("compensate", "cancel", "rollback") else AMOUNT)

    async def change_on(self, caller: Caller) -> None:
        """Change the balance outside of any barrier."""
        statement, values = change(self.owner, AMOUNT)
        await caller.execute(statement, *values)

    async def effects(self) -> float:
        """How often the amount is in the balance."""
        [[balance]] = await self.look("select balance from purse where owner = ?", self.owner)
        return (balance - OPENING) / AMOUNT

    async def rows(self, *, gid: str | None = None, table: str | None = None) -> list[tuple[str, str, str]]:
        """The barrier's committed rows: op, barrier_id, reason."""
        name = table or ("barrier" if self.bench.database == "sqlite" else "dtm_barrier.barrier")
        found = await self.look(
            f"select op, barrier_id, reason from {name} where gid = ? order by id",  # noqa: S608
            gid or self.gid,
        )
        return [(op, barrier_id, reason) for op, barrier_id, reason in found]

    async def look(self, query: str, *values: object) -> Rows:
        caller = await self.bench.begun()
        found = await caller.execute(query, *values)
        await caller.rollback()
        return found


def name(param: tuple[str, type[Bench]]) -> str:
    database, kind = param
    return f"{database}-{kind.__name__}"


@pytest.fixture(params=BENCHES, ids=name)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    database, kind = request.param
    bench = kind(request.getfixturevalue(f"shared_{database}_url"))
    await bench.prepare()
    yield bench
    await bench.close()


@pytest.fixture
async def shop(bench: Bench) -> Shop:
    shop = Shop(bench)
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
    assert await shop.rows() == [(op, "01", reason) for op, reason in rows]


async def test_branches_and_transactions_do_not_meet(shop: Shop) -> None:
    caller = await shop.bench.begun()
    for gid, branch_id in [(shop.gid, "01"), (shop.gid, "02"), (shop.gid + "x", "01")]:
        barrier = BranchBarrier("saga", gid, branch_id, "action")
        assert await caller.call(barrier, change(shop.owner, AMOUNT)) is RUN
    await caller.commit()

    assert await shop.effects() == 3


async def test_calls_within_one_handler_are_counted(shop: Shop) -> None:
    async def handler(op: str) -> list[Passage]:
        caller = await shop.bench.begun()
        barrier = shop.barrier(op)
        passages = [await caller.call(barrier, shop.effect(op)) for _ in range(2)]
        await caller.commit()
        return passages

    assert await handler("action") == [RUN, RUN]
    assert await shop.effects() == 2
    assert await handler("action") == [DUPLICATE, DUPLICATE]
    assert await handler("compensate") == [RUN, RUN]

    assert await shop.effects() == 0
    assert [row[:2] for row in await shop.rows()] == [
        ("action", "01"),
        ("action", "02"),
        ("compensate", "01"),
        ("compensate", "02"),
    ]


async def test_a_call_within_the_work_of_another_is_a_call_of_its_own(shop: Shop) -> None:
    caller = await shop.bench.begun()
    outer, inner = shop.barrier("action"), BranchBarrier("saga", shop.gid, "02", "action")

    assert await caller.call_nested(outer, inner, shop.effect("action")) == (RUN, RUN)
    await caller.commit()

    assert await shop.effects() == 2


async def test_a_call_may_be_named(shop: Shop) -> None:
    caller = await shop.bench.begun()
    assert await caller.call(shop.barrier("action"), shop.effect("action"), barrier_id="stock") is RUN
    assert await caller.call(shop.barrier("action"), shop.effect("action"), barrier_id="money") is RUN
    assert await caller.call(shop.barrier("action"), shop.effect("action"), barrier_id="stock") is DUPLICATE
    await caller.commit()

    assert await shop.effects() == 2
    assert [row[1] for row in await shop.rows()] == ["stock", "money"]


# -- errors and crashes ----------------------------------------------------------------------


async def test_work_that_fails_leaves_no_row_and_may_succeed_later(shop: Shop) -> None:
    with pytest.raises(OutOfStock):
        await shop.deliver("action", error=OutOfStock())
    assert await shop.rows() == []

    assert await shop.deliver("action") is RUN
    assert await shop.effects() == 1
    assert await shop.rows() == [("action", "01", "action")]


async def test_an_action_that_failed_has_nothing_to_compensate(shop: Shop) -> None:
    with pytest.raises(OutOfStock):
        await shop.deliver("action", error=OutOfStock())

    assert await shop.deliver("compensate") is EMPTY
    assert await shop.effects() == 0


async def test_an_error_that_the_caller_catches_leaves_nothing_of_the_call(shop: Shop) -> None:
    other = Shop(shop.bench)
    await other.open_account()
    caller = await shop.bench.begun()
    await other.change_on(caller)
    with pytest.raises(OutOfStock):
        await shop.on(caller, "action", error=OutOfStock())
    await other.change_on(caller)
    await caller.commit()

    assert (await shop.effects(), await shop.rows()) == (0, [])
    assert await other.effects() == 2


async def test_an_error_of_the_database_within_the_work_comes_through(shop: Shop) -> None:
    taken = ("insert into purse (owner, balance) values (?, ?)", (shop.owner, 0))
    caller = await shop.bench.begun()
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        await caller.call(shop.barrier("action"), shop.effect("action"), taken)
    # Also where a failed statement spoils the whole transaction, the call is taken back alone.
    await caller.commit()

    assert (await shop.effects(), await shop.rows()) == (0, [])


async def test_a_compensation_that_fails_is_repeated(shop: Shop) -> None:
    await shop.deliver("action")
    with pytest.raises(OutOfStock):
        await shop.deliver("compensate", error=OutOfStock())
    assert await shop.effects() == 1

    assert await shop.deliver("compensate") is RUN
    assert await shop.effects() == 0


async def test_the_callers_transaction_is_the_callers_to_end(shop: Shop) -> None:
    caller = await shop.bench.begun()
    assert await shop.on(caller, "action") is RUN
    assert (await shop.effects(), await shop.rows()) == (0, [])

    await caller.rollback()

    assert (await shop.effects(), await shop.rows()) == (0, [])


async def test_a_process_that_dies_before_its_commit_did_nothing(shop: Shop) -> None:
    caller = await shop.bench.begun()
    assert await shop.on(caller, "action") is RUN
    await caller.close()

    assert await shop.deliver("compensate") is EMPTY
    assert await shop.deliver("action") is SUSPENDED
    assert await shop.effects() == 0


@pytest.mark.parametrize("commit", [False, True], ids=["the caller's", "the barrier's"])
async def test_work_that_commits_by_itself_is_found_out(shop: Shop, commit: bool) -> None:
    caller = await (shop.bench.connect() if commit else shop.bench.begun())
    ending = ("commit", ())
    with pytest.raises(Exception, match=r"(?i)savepoint|transaction") as caught:
        await caller.call(shop.barrier("action"), ending, commit=commit)

    assert any("must not commit" in note for note in caught.value.__notes__)


# -- at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "ending", "passage", "effects"),
    [
        pytest.param("action", "compensate", "commit", RUN, 0, id="action commits, compensate"),
        pytest.param("action", "compensate", "rollback", EMPTY, 0, id="action rolls back, compensate"),
        pytest.param("compensate", "action", "commit", SUSPENDED, 0, id="compensate commits, action"),
        pytest.param("compensate", "action", "rollback", RUN, 1, id="compensate rolls back, action"),
        pytest.param("action", "action", "commit", DUPLICATE, 1, id="action commits, action"),
        pytest.param("action", "action", "rollback", RUN, 1, id="action rolls back, action"),
    ],
)
async def test_two_at_once_meet_in_the_database(
    shop: Shop,
    first: str,
    second: str,
    ending: str,
    passage: Passage,
    effects: int,
) -> None:
    early, late = await shop.bench.begun(), await shop.bench.begun()
    await shop.on(early, first)
    waiting = asyncio.create_task(shop.on(late, second))
    await until_it_waits(waiting, shop.bench)
    await (early.commit() if ending == "commit" else early.rollback())

    assert await waiting is passage
    await late.commit()
    assert await shop.effects() == effects


async def test_a_storm_of_calls_ends_with_everything_taken_back(shop: Shop) -> None:
    async def coordinator(op: str) -> None:
        # Deadlocks and refused locks are errors of the driver: rolled back, and called again.
        while True:
            try:
                await shop.deliver(op)
                return
            except LOCK_ERRORS as error:
                if "deadlock" not in str(error).lower():
                    raise

    await asyncio.gather(*(coordinator(op) for op in ["action", "compensate"] * 3))

    assert await shop.effects() == 0
    rows = await shop.rows()
    assert {op for op, _, _ in rows} == {"action", "compensate"}
    assert len(rows) == 2


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    deliveries=st.lists(
        st.tuples(st.sampled_from(["action", "compensate"]), st.sampled_from(["commit", "fail", "roll back"])),
        max_size=8,
    )
)
async def test_any_sequence_of_deliveries_keeps_the_balance_exact(
    bench: Bench, deliveries: list[tuple[str, str]]
) -> None:
    shop = Shop(bench)
    await shop.open_account()
    acted = compensated = False
    for op, ending in deliveries:
        if op == "action":
            expected = SUSPENDED if compensated and not acted else DUPLICATE if acted else RUN
        else:
            expected = DUPLICATE if compensated else RUN if acted else EMPTY

        caller = await bench.begun()
        if ending == "fail" and expected is RUN:
            with pytest.raises(OutOfStock):
                await shop.on(caller, op, error=OutOfStock())
            await caller.commit()
        else:
            assert await shop.on(caller, op, error=OutOfStock() if ending == "fail" else None) is expected
            if ending == "roll back":
                await caller.rollback()
            else:
                await caller.commit()
                acted |= op == "action" and expected is RUN
                compensated |= op == "compensate"
        await caller.close()

    assert await shop.effects() == (acted and not compensated)


# -- whose transaction -----------------------------------------------------------------------


async def test_asked_to_commit_it_does(shop: Shop) -> None:
    caller = await shop.bench.connect()
    assert await caller.call(shop.barrier("action"), shop.effect("action"), commit=True) is RUN
    assert await shop.effects() == 1

    assert await caller.call(shop.barrier("action"), shop.effect("action"), commit=True) is DUPLICATE
    assert await caller.call(shop.barrier("compensate"), shop.effect("compensate"), commit=True) is RUN
    assert await shop.effects() == 0


async def test_asked_to_commit_it_keeps_an_empty_compensation(shop: Shop) -> None:
    caller = await shop.bench.connect()
    assert await caller.call(shop.barrier("compensate"), commit=True) is EMPTY

    assert await shop.deliver("action") is SUSPENDED


async def test_asked_to_commit_it_rolls_back_when_the_work_fails(shop: Shop) -> None:
    caller = await shop.bench.connect()
    with pytest.raises(OutOfStock):
        await caller.call(shop.barrier("action"), shop.effect("action"), commit=True, error=OutOfStock())
    assert (await shop.effects(), await shop.rows()) == (0, [])

    assert await caller.call(shop.barrier("action"), shop.effect("action"), commit=True) is RUN
    assert await shop.effects() == 1


async def test_asked_to_commit_it_does_not_take_a_rollback_for_a_commit(shop: Shop) -> None:
    # PostgreSQL answers the commit of a transaction in which a statement has failed with success, and rolls back.
    taken = ("insert into purse (owner, balance) values (?, ?)", (shop.owner, 0))
    caller = await shop.bench.connect()
    calls = shop.barrier("action"), shop.effect("action"), taken
    if shop.bench.database == "postgresql":
        with pytest.raises(Exception, match="aborted") as caught:
            await caller.call(*calls, commit=True, forgives=True)
        assert any("after an error of the database" in note for note in caught.value.__notes__)
        assert (await shop.effects(), await shop.rows()) == (0, [])
    else:
        assert await caller.call(*calls, commit=True, forgives=True) is RUN

    await caller.call(shop.barrier("action"), shop.effect("action"), commit=True)
    assert (await shop.effects(), await shop.rows()) == (1, [("action", "01", "action")])


@pytest.mark.parametrize(
    ("bench", "commits_each"),
    [
        pytest.param(each, commits_each, id=f"{name(each)}{' autocommit' if commits_each else ''}")
        for each in BENCHES
        for commits_each in (False, True)
        if each[0] == "mysql" and not (commits_each and each[1] in OVER_SQLALCHEMY)
    ],
    indirect=["bench"],
)
async def test_asked_to_commit_it_keeps_nothing_of_a_transaction_that_was_lost(shop: Shop, commits_each: bool) -> None:
    caller = await (shop.bench.committing_each() if commits_each else shop.bench.connect())
    lost = ("rollback", ())  # as a deadlock does it
    with pytest.raises(Exception, match=r"SAVEPOINT .* does not exist"):
        await caller.call(shop.barrier("action"), lost, shop.effect("action"), commit=True)
    assert (await shop.effects(), await shop.rows()) == (0, [])

    assert await caller.call(shop.barrier("action"), shop.effect("action"), commit=True) is RUN
    assert await shop.effects() == 1
    # And the connection is as it was.
    await shop.change_on(caller)
    assert await shop.effects() == (2 if commits_each else 1)


async def test_a_connection_that_commits_each_statement_is_refused(shop: Shop) -> None:
    caller = await shop.bench.committing_each()
    with pytest.raises(NoTransactionError, match=f"{shop.gid}.*commits each statement"):
        await shop.on(caller, "action")

    assert (await shop.effects(), await shop.rows()) == (0, [])


async def test_a_connection_that_commits_each_statement_can_be_asked_to_commit(shop: Shop) -> None:
    caller = await shop.bench.committing_each()
    if "SqlAlchemy" in type(shop.bench).__name__:
        # Under AUTOCOMMIT, SQLAlchemy's begin and commit do nothing.
        with pytest.raises(NoTransactionError, match="AUTOCOMMIT"):
            await caller.call(shop.barrier("action"), shop.effect("action"), commit=True)
        assert (await shop.effects(), await shop.rows()) == (0, [])
        return

    with pytest.raises(OutOfStock):
        await caller.call(shop.barrier("action"), shop.effect("action"), commit=True, error=OutOfStock())
    assert (await shop.effects(), await shop.rows()) == (0, [])
    assert await caller.call(shop.barrier("action"), shop.effect("action"), commit=True) is RUN
    assert await caller.call(shop.barrier("compensate"), shop.effect("compensate"), commit=True) is RUN
    assert await shop.effects() == 0


@pytest.mark.parametrize("bench", [each for each in BENCHES if each[1] not in OVER_SQLALCHEMY], indirect=True, ids=name)
async def test_a_transaction_opened_by_statement_is_joined(shop: Shop) -> None:
    caller = await shop.bench.committing_each()
    await caller.execute("begin")
    assert await shop.on(caller, "action") is RUN
    assert await shop.effects() == 0
    await caller.execute("rollback")

    assert (await shop.effects(), await shop.rows()) == (0, [])


# -- strange values, other tables ------------------------------------------------------------


async def test_values_are_data(shop: Shop) -> None:
    for gid in (f"{strange}{uuid4().hex}" for strange in STRANGE_GIDS):
        assert await shop.deliver("compensate", gid=gid) is EMPTY
        assert await shop.deliver("action", gid=gid) is SUSPENDED
        assert await shop.rows(gid=gid) == [("action", "01", "compensate"), ("compensate", "01", "compensate")]

    assert await shop.effects() == 0
    assert await shop.deliver("action") is RUN


async def test_gids_that_differ_by_case_are_two(shop: Shop) -> None:
    assert await shop.deliver("action", gid=shop.gid.lower()) is RUN
    assert await shop.deliver("action", gid=shop.gid.upper()) is RUN


# As DTM's documentation gives them: names, types, defaults, key.
_DTM_COLUMNS = """
  trans_type varchar(45) default '', gid varchar(128) default '', branch_id varchar(128) default '',
  op varchar(45) default '', barrier_id varchar(45) default '', reason varchar(45) default ''"""
_DTM_TABLES = {
    "mysql": [
        f"""create table if not exists barrier_by_dtm (
  id bigint(22) primary key auto_increment, {_DTM_COLUMNS},
  create_time datetime default now(), update_time datetime default now(),
  key(create_time), key(update_time), unique key(gid, branch_id, op, barrier_id))
  engine=InnoDB default charset=utf8mb4 collate=utf8mb4_general_ci"""
    ],
    "postgresql": [
        "create schema if not exists by_dtm",
        "create sequence if not exists by_dtm.barrier_seq",
        f"""create table if not exists by_dtm.barrier (
  id bigint not null default nextval('by_dtm.barrier_seq'), {_DTM_COLUMNS},
  create_time timestamp(0) with time zone default null, update_time timestamp(0) with time zone default null,
  primary key(id), constraint uniq_barrier unique(gid, branch_id, op, barrier_id))""",
    ],
    "sqlite": [
        f"""create table if not exists barrier_by_dtm (
  id integer primary key, {_DTM_COLUMNS},
  create_time datetime, update_time datetime, unique(gid, branch_id, op, barrier_id))"""
    ],
}


async def _table_by_dtm(bench: Bench) -> str:
    caller = await bench.begun()
    for statement in _DTM_TABLES[bench.database]:
        await caller.execute(statement)
    await caller.commit()
    return "by_dtm.barrier" if bench.database == "postgresql" else "barrier_by_dtm"


async def test_a_table_that_dtm_made_will_do(shop: Shop) -> None:
    table = await _table_by_dtm(shop.bench)
    assert await shop.deliver("action", table=table) is RUN
    assert await shop.deliver("compensate", table=table) is RUN
    assert await shop.deliver("action", table=table) is DUPLICATE

    assert await shop.effects() == 0
    assert await shop.rows() == []
    assert len(await shop.rows(table=table)) == 2


@pytest.mark.parametrize("bench", [each for each in BENCHES if each[0] == "mysql"], indirect=True, ids=name)
async def test_gids_that_the_table_confuses_are_not_taken_for_duplicates(shop: Shop) -> None:
    table = await _table_by_dtm(shop.bench)
    assert await shop.deliver("action", gid=shop.gid.lower(), table=table) is RUN
    with pytest.raises(InvalidRequestError, match="binary collation"):
        await shop.deliver("action", gid=shop.gid.upper(), table=table)


async def test_a_missing_table_is_named_with_what_makes_it(shop: Shop) -> None:
    with pytest.raises(Exception, match="nowhere") as caught:
        await shop.deliver("action", table="nowhere")

    assert any("txcoord-barrier create" in note for note in caught.value.__notes__)


async def test_the_table_is_made_once_whoever_asks(bench: Bench) -> None:
    table = bench.new_table()
    callers = [await bench.connect() for _ in range(4)]

    async def make(caller: Caller) -> bool:
        function = create_table if caller.is_async else create_table_sync
        return await caller.do(lambda: function(caller.connection, table=table))

    made = await asyncio.gather(*map(make, callers))

    assert any(made)
    assert not await make(callers[0])
    assert await Shop(bench).rows(table=table) == []


# -- messages --------------------------------------------------------------------------------


def _message(shop: Shop) -> BranchBarrier:
    return BranchBarrier("msg", shop.gid, "00", "msg")


async def test_a_check_back_finds_the_local_transaction_that_committed(shop: Shop) -> None:
    caller = await shop.bench.begun()
    assert await caller.call(_message(shop), shop.effect("action")) is RUN
    await caller.commit()

    assert await (await shop.bench.connect()).query_prepared(_message(shop))


async def test_a_check_back_keeps_a_late_local_transaction_from_committing(shop: Shop) -> None:
    asking = await shop.bench.connect()
    assert not await asking.query_prepared(_message(shop))

    caller = await shop.bench.begun()
    with pytest.raises(DuplicatedError, match=shop.gid):
        await caller.call(_message(shop), shop.effect("action"))
    await caller.commit()

    assert await shop.effects() == 0
    assert not await asking.query_prepared(_message(shop))


@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_a_check_back_waits_for_a_local_transaction_under_way(shop: Shop, ending: str) -> None:
    caller, asking = await shop.bench.begun(), await shop.bench.connect()
    await caller.call(_message(shop), shop.effect("action"))
    waiting = asyncio.create_task(asking.query_prepared(_message(shop)))
    await until_it_waits(waiting, shop.bench)
    await (caller.commit() if ending == "commit" else caller.rollback())

    assert await waiting is (ending == "commit")


# -- what people see -------------------------------------------------------------------------


async def test_the_log_says_what_was_left_out_and_why(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "txcoord_sdk.barrier")
    await shop.deliver("compensate")
    await shop.deliver("action")

    assert [record.getMessage() for record in caplog.records if record.name == "txcoord_sdk.barrier"] == [
        f"barrier 01 of saga {shop.gid}, branch 01, compensate: left out as an empty compensation: "
        "what it would undo has never run",
        f"barrier 01 of saga {shop.gid}, branch 01, action: left out as suspended: what undoes it came first",
    ]


async def test_work_of_the_wrong_kind_is_refused_and_leaves_nothing(shop: Shop) -> None:
    caller = await shop.bench.begun()

    async def coroutine(connection: object) -> None:
        raise AssertionError("must not run")

    barrier = shop.barrier("action")
    with pytest.raises(TypeError, match="coroutine function"):
        await (
            barrier.call(caller.connection, lambda _: None)  # type: ignore[arg-type]
            if caller.is_async
            else asyncio.to_thread(barrier.call_sync, caller.connection, coroutine)
        )
    await caller.commit()

    assert await shop.rows() == []


async def test_the_way_that_does_not_fit_the_connection_is_refused(shop: Shop) -> None:
    caller = await shop.bench.begun()
    barrier = shop.barrier("action")
    with pytest.raises(BarrierError, match="_sync"):
        (barrier.guard_sync if caller.is_async else barrier.guard)(caller.connection)
