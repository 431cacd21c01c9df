"""TCC on the engine: what callers ask for, racing each other, the deadline, other nodes and every kind of trouble."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.engine.harness import (
    COMMIT_S,
    FAILURE,
    LINGER_S,
    ONGOING,
    SUCCESS,
    UNKNOWN,
    Cluster,
    Node,
    insist,
    now_s,
    settle,
)
from tests.tccs import registration
from txcoord.errors import (
    InvalidRequestError,
    OverloadedError,
    StatusConflictError,
    StoreUnavailableError,
    TransactionNotFoundError,
    TransactionsLockedError,
)
from txcoord.model import MICROSECONDS, NEVER_US, Status
from txcoord.request import SubmitResult, TransRequest
from txcoord.store.base import Owned, Save, Stored
from txcoord.store.memory import FailWhen
from txcoord.two_phase.decide import MOST_REFUSALS

SUCCEEDED = SubmitResult(waited=True, status=Status.SUCCEEDED)
ACCEPTED = SubmitResult(waited=False, status=Status.SUBMITTED)
CANCELLED = SubmitResult(waited=True, status=Status.FAILED, reason="no stock")

CONFIRMED = ["02 confirm", "01 confirm"]
CANCELLED_CALLS = ["02 cancel", "01 cancel"]


@dataclass
class Tcc:
    """One transaction as its initiator handles it, through one node."""

    node: Node
    gid: str = "g1"

    async def prepare(self, **options: Any) -> None:
        await self.node.service.prepare(TransRequest(gid=self.gid, trans_type="tcc", **options))

    async def register(self, *branch_ids: str, **more: object) -> None:
        for branch_id in branch_ids:
            await self.node.service.register_branch(registration(branch_id, gid=self.gid, **more))

    async def submit(self, *, wait: bool = True) -> SubmitResult:
        return await self.node.service.submit(TransRequest(gid=self.gid, trans_type="tcc", wait_result=wait))

    async def abort(self, *, wait: bool = True, reason: str = "no stock") -> SubmitResult:
        request = TransRequest(gid=self.gid, trans_type="tcc", wait_result=wait, rollback_reason=reason)
        return await self.node.service.abort(request)


@pytest.fixture
def tcc(node: Node) -> Tcc:
    return Tcc(node)


@pytest.fixture(autouse=True)
async def nothing_left_behind(cluster: Cluster) -> AsyncIterator[None]:
    yield
    await cluster.check_nothing_is_left(after_s=2 * LINGER_S)


async def until(instant_s: float) -> None:
    await asyncio.sleep(instant_s - now_s())


async def refusal(call: Awaitable[object]) -> str:
    """What a call is refused for; "" if it is not."""
    try:
        await call
    except StatusConflictError as error:
        return error.wanted
    return ""


async def check_end(cluster: Cluster, gid: str = "g1", *, branches: int) -> Status:
    """Wait for the end; all branches are confirmed or all cancelled, never some of each."""
    tx = await cluster.ended(gid)
    ops = {call.split()[1] for call in cluster.calls(gid)}
    rows = await cluster.rows(gid)
    if tx.status is Status.SUCCEEDED:
        assert (rows, ops) == ("PS" * branches, {"confirm"} if branches else set())
    else:
        assert (rows, ops) == ("SP" * branches, {"cancel"} if branches else set())
    return tx.status


# -- its course ----------------------------------------------------------------------------


async def test_a_submit_confirms_in_reverse_order(cluster: Cluster, tcc: Tcc) -> None:
    await tcc.prepare()
    await tcc.register("01", "02", "0201", "03")

    assert await tcc.submit() == SUCCEEDED

    assert cluster.calls() == ["03 confirm", "0201 confirm", "02 confirm", "01 confirm"]
    assert await cluster.rows() == "PSPSPSPS"


async def test_an_abort_cancels_in_reverse_order(cluster: Cluster, tcc: Tcc) -> None:
    await tcc.prepare()
    await tcc.register("01", "02")

    assert await tcc.abort() == CANCELLED

    assert cluster.calls() == CANCELLED_CALLS
    assert (await cluster.saga()).rollback_reason == "no stock"
    assert await cluster.rows() == "SPSP"


async def test_what_confirm_and_cancel_are_called_with(cluster: Cluster, tcc: Tcc) -> None:
    await tcc.prepare(branch_headers={"x-test": "yes"}, request_timeout=7)
    await tcc.register("01")
    await tcc.submit()

    [request] = cluster.participants.requests
    assert (request.url, request.payload) == ("http://p01/confirm", b'{"amount":30}')
    assert (request.headers, request.timeout_s) == ({"x-test": "yes"}, 7)


async def test_branches_without_urls_need_no_call(cluster: Cluster, tcc: Tcc) -> None:
    await tcc.prepare()
    await tcc.register("01", confirm="", cancel="")

    assert await tcc.submit() == SUCCEEDED
    assert (await cluster.rows(), cluster.calls()) == ("PS", [])


async def test_one_that_was_never_prepared_is_submitted_without_branches(cluster: Cluster, tcc: Tcc) -> None:
    assert await tcc.submit() == SUCCEEDED
    assert (await cluster.saga()).branches == ()
    with pytest.raises(TransactionNotFoundError):
        await Tcc(tcc.node, "g2").abort()
    with pytest.raises(TransactionNotFoundError):
        await Tcc(tcc.node, "g2").register("01")


async def test_one_that_was_never_prepared_is_submitted_several_times_at_once(
    cluster: Cluster, tcc: Tcc, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, answered = cluster.store.find, itertools.count()

    async def one_after_another(gid: str) -> Stored | None:
        stored = await find(gid)
        await asyncio.sleep(next(answered) * COMMIT_S / 4)  # some hear of it while it is created, some afterwards
        return stored

    monkeypatch.setattr(cluster.store, "find", one_after_another)

    results = await asyncio.gather(*(tcc.submit(wait=False) for _ in range(8)), return_exceptions=True)

    assert results[0] == ACCEPTED
    assert all(result == ACCEPTED or isinstance(result, StatusConflictError) for result in results)
    assert cluster.log == ["g1 created", "g1 succeed"]


async def test_a_confirm_is_repeated_until_it_succeeds(cluster: Cluster, tcc: Tcc) -> None:
    cluster.participants.script("02 confirm", UNKNOWN, ONGOING, FAILURE)
    await tcc.prepare()
    await tcc.register("01", "02")

    result = await tcc.submit()

    assert result.status is Status.SUBMITTED
    assert "confirm of branch 02 of g1 is to be repeated" in result.reason
    assert await check_end(cluster, branches=2) is Status.SUCCEEDED
    assert cluster.calls() == ["02 confirm"] * 4 + ["01 confirm"]


@pytest.mark.parametrize("op", ["confirm", "cancel"])
async def test_a_branch_that_refuses_needs_an_operator_and_goes_on_when_one_says_so(
    cluster: Cluster, tcc: Tcc, op: str
) -> None:
    cluster.participants.always(f"02 {op}", FAILURE)
    await tcc.prepare()
    await tcc.register("01", "02")
    await (tcc.submit(wait=False) if op == "confirm" else tcc.abort(wait=False))
    parked = await cluster.store.wait_until(lambda stored: stored.tx.due_us == NEVER_US, "g1", within_s=7200.0)
    assert cluster.calls() == [f"02 {op}"] * MOST_REFUSALS
    await asyncio.sleep(1000.0)
    assert await cluster.saga() == parked, "it waits, however long"
    cluster.participants.always(f"02 {op}", SUCCESS)

    await tcc.node.service.reset_next_cron_time("g1")

    await check_end(cluster, branches=2)
    assert cluster.calls() == [f"02 {op}"] * (MOST_REFUSALS + 1) + [f"01 {op}"]


async def test_who_submits_again_and_waits_is_told_that_an_operator_is_needed(cluster: Cluster, tcc: Tcc) -> None:
    cluster.participants.always("01 confirm", FAILURE)
    await tcc.prepare()
    await tcc.register("01")
    await tcc.submit(wait=False)
    await cluster.store.wait_until(lambda stored: stored.tx.due_us == NEVER_US, "g1", within_s=7200.0)

    result = await tcc.submit()

    refused = f"confirm of branch 01 answered failure {MOST_REFUSALS} times: no stock"
    assert (result.status, result.reason) == (Status.SUBMITTED, f"g1 needs an operator: {refused}")


# -- the deadline --------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [1, 5], ids=["while it lingers", "when it is parked"])
async def test_the_deadline_is_exact(cluster: Cluster, tcc: Tcc, timeout_s: int) -> None:
    await tcc.prepare(timeout_to_fail=timeout_s)
    await tcc.register("01")

    tx = await cluster.ended()

    assert (tx.status, tx.rollback_reason) == (Status.FAILED, f"Timeout after {timeout_s} seconds")
    [called_s] = cluster.call_times_s("01 cancel")
    assert timeout_s <= called_s < timeout_s + 0.02


async def test_a_transaction_without_a_timeout_has_the_default_one(cluster: Cluster, tcc: Tcc) -> None:
    await tcc.prepare()
    await tcc.register("01")

    tx = await cluster.ended()

    assert tx.rollback_reason == "Timeout after 35 seconds"
    assert cluster.call_times_s("01 cancel") == [pytest.approx(35.0, abs=0.02)]


async def test_a_submitted_one_has_no_deadline(cluster: Cluster, tcc: Tcc) -> None:
    cluster.participants.script("01 confirm", *[UNKNOWN] * 5)
    await tcc.prepare(timeout_to_fail=1)
    await tcc.register("01")
    await tcc.submit(wait=False)

    assert await check_end(cluster, branches=1) is Status.SUCCEEDED
    assert now_s() > 1


@pytest.mark.parametrize("act", ["submit", "abort", "register"])
async def test_after_the_deadline_it_is_too_late(cluster: Cluster, tcc: Tcc, act: str) -> None:
    cluster.participants.hold("01 cancel")
    await tcc.prepare(timeout_to_fail=3)
    await tcc.register("01")
    await asyncio.sleep(3.1)

    late = {
        "submit": lambda: tcc.submit(wait=False),
        "abort": lambda: tcc.abort(wait=False),
        "register": lambda: tcc.register("02"),
    }

    # An abort asks for what is under way already.
    assert await refusal(late[act]()) == {"abort": ""}.get(act, act)
    assert await cluster.rows() == "PP"
    await cluster.nodes[0].service.force_stop("g1")


@pytest.mark.parametrize("late_us", range(-4000, 4001, 500))
@pytest.mark.parametrize("timeout_s", [1, 3], ids=["while it lingers", "when it is parked"])
async def test_a_submit_at_the_deadline_wins_or_is_refused(
    cluster: Cluster, tcc: Tcc, late_us: int, timeout_s: int
) -> None:
    await tcc.prepare(timeout_to_fail=timeout_s)
    await tcc.register("01", "02")
    await until(timeout_s + late_us / MICROSECONDS)

    refused = await refusal(tcc.submit(wait=False))

    assert await check_end(cluster, branches=2) is (Status.FAILED if refused else Status.SUCCEEDED)
    if late_us <= -3000:
        assert not refused


# -- what is answered is durable -----------------------------------------------------------


@pytest.mark.parametrize("parked", [False, True], ids=["live", "parked"])
@pytest.mark.parametrize("act", ["register", "submit", "abort"])
async def test_a_change_is_answered_once_it_is_durable(cluster: Cluster, tcc: Tcc, act: str, parked: bool) -> None:
    await tcc.prepare()
    await tcc.register("01")
    if parked:
        await cluster.parked()
        await settle()
    cluster.store.before_apply = asyncio.Event()
    acts: dict[str, Callable[[], Awaitable[object]]] = {
        "register": lambda: tcc.register("02"),
        "submit": lambda: tcc.submit(wait=False),
        "abort": lambda: tcc.abort(wait=False),
    }
    call = asyncio.ensure_future(acts[act]())
    await settle()
    assert not call.done()
    assert cluster.calls() == [], "called before it was durable"

    cluster.store.before_apply.set()
    await call

    stored = await cluster.saga()
    assert stored.status is {"submit": Status.SUBMITTED, "abort": Status.ABORTING}.get(act, Status.PREPARED)
    assert len(stored.branches) == (4 if act == "register" else 2)
    await tcc.node.service.force_stop("g1")


async def test_a_prepare_is_answered_once_it_is_durable(cluster: Cluster, tcc: Tcc) -> None:
    cluster.store.before_apply = asyncio.Event()
    prepares = [asyncio.ensure_future(tcc.prepare()) for _ in range(3)]
    await settle()
    assert not any(prepare.done() for prepare in prepares)

    cluster.store.before_apply.set()

    assert await asyncio.gather(*prepares) == [None] * 3
    assert (await cluster.saga()).status is Status.PREPARED
    await tcc.abort()


async def test_preparing_at_the_same_time_on_two_nodes_creates_one(cluster: Cluster, tcc: Tcc) -> None:
    other = Tcc(await cluster.start_node())

    await asyncio.gather(tcc.prepare(), other.prepare())
    await asyncio.gather(tcc.register("01"), other.register("02"))

    await other.submit(wait=False)
    assert await check_end(cluster, branches=2) is Status.SUCCEEDED


async def test_a_submit_while_the_prepare_is_on_its_way(cluster: Cluster, tcc: Tcc) -> None:
    prepare = asyncio.ensure_future(tcc.prepare())
    await settle(0)

    assert await tcc.submit() == SUCCEEDED
    await prepare


async def test_a_client_that_goes_away_takes_nothing_along(cluster: Cluster, tcc: Tcc) -> None:
    await tcc.prepare()
    await tcc.register("01")
    cluster.store.before_apply = asyncio.Event()
    submit = asyncio.ensure_future(tcc.submit())
    await settle()
    submit.cancel()
    cluster.store.before_apply.set()

    assert await check_end(cluster, branches=1) is Status.SUCCEEDED


# -- registering ---------------------------------------------------------------------------


async def test_registrations_at_the_same_time_share_a_write(cluster: Cluster, tcc: Tcc) -> None:
    await tcc.prepare()
    before = len(cluster.store.batches)

    await asyncio.gather(*[tcc.register(f"{number:02d}") for number in range(50)])

    assert len(cluster.store.batches) - before <= 2
    assert [op.branch_id for op in (await cluster.saga()).branches[::2]] == [f"{number:02d}" for number in range(50)]
    assert await tcc.submit() == SUCCEEDED


async def test_one_refused_registration_harms_no_other_of_the_same_write(cluster: Cluster, tcc: Tcc) -> None:
    await tcc.prepare()
    cluster.store.before_apply = asyncio.Event()
    first = asyncio.ensure_future(tcc.register("01"))
    await settle()
    others = [
        asyncio.ensure_future(tcc.register("02")),
        asyncio.ensure_future(tcc.register("01", data=b"other")),
        asyncio.ensure_future(tcc.register("03")),
    ]
    await settle()
    cluster.store.before_apply.set()

    results = await asyncio.gather(first, *others, return_exceptions=True)

    assert [type(result) for result in results] == [type(None), type(None), InvalidRequestError, type(None)]
    assert [op.branch_id for op in (await cluster.saga()).branches[::2]] == ["01", "02", "03"]
    await tcc.submit()


@pytest.mark.parametrize("parked", [False, True], ids=["live", "parked"])
async def test_the_same_registration_again_changes_nothing(cluster: Cluster, tcc: Tcc, parked: bool) -> None:
    await tcc.prepare()
    await tcc.register("01", "02")
    if parked:
        await cluster.parked()
        await settle()
    before = (await cluster.saga()).branches
    batches = len(cluster.store.batches)

    await tcc.register("01")

    assert (await cluster.saga()).branches == before
    assert len(cluster.store.batches) == batches, "nothing to write"
    with pytest.raises(InvalidRequestError, match="branch 01 of g1 is registered with other URLs or data"):
        await tcc.register("01", confirm="http://p01/other")
    await tcc.submit()
    assert cluster.calls() == CONFIRMED


@pytest.mark.parametrize("act", ["submit", "abort"])
async def test_no_registration_after_the_decision(cluster: Cluster, tcc: Tcc, act: str) -> None:
    op = "confirm" if act == "submit" else "cancel"
    hold = cluster.participants.hold(f"01 {op}")
    await tcc.prepare()
    await tcc.register("01")
    await (tcc.submit(wait=False) if act == "submit" else tcc.abort(wait=False))
    await hold.began.wait()

    for branch_id in ("01", "02"):
        assert await refusal(tcc.register(branch_id)) == "register"

    hold.end()
    await check_end(cluster, branches=1)
    assert await refusal(tcc.register("02")) == "register"


async def test_a_registration_the_store_refuses_is_not_accepted(cluster: Cluster, tcc: Tcc) -> None:
    await tcc.prepare()
    await tcc.register("01")
    cluster.store.refuses = lambda change: len(change.tx.branches) > 2

    with pytest.raises(StoreUnavailableError):
        await tcc.register("02")

    cluster.store.refuses = lambda change: False
    assert [op.branch_id for op in (await cluster.saga()).branches[::2]] == ["01"]
    assert await insist(tcc.submit) == SUCCEEDED
    assert cluster.calls() == ["01 confirm"]


# -- submitting and aborting again ---------------------------------------------------------


@pytest.mark.parametrize("wait", [False, True])
async def test_a_repeated_submit_never_skips_a_confirm(cluster: Cluster, tcc: Tcc, wait: bool) -> None:
    hold = cluster.participants.hold("02 confirm")
    await tcc.prepare()
    await tcc.register("01", "02")
    first = asyncio.ensure_future(tcc.submit())
    await hold.began.wait()

    again = [asyncio.ensure_future(tcc.submit(wait=wait)) for _ in range(3)]
    await settle()
    assert [one.done() for one in again] == [not wait] * 3
    assert (await cluster.saga()).status is Status.SUBMITTED
    assert await cluster.rows() == "PPPP"
    hold.end()

    assert await first == SUCCEEDED
    assert await asyncio.gather(*again) == [SUCCEEDED if wait else ACCEPTED] * 3
    assert cluster.calls() == CONFIRMED
    assert await cluster.rows() == "PSPS"
    assert await refusal(tcc.submit()) == "submit"


async def test_a_repeated_submit_of_a_parked_one_starts_no_second_pass(cluster: Cluster, tcc: Tcc) -> None:
    cluster.participants.script("02 confirm", ONGOING)
    await tcc.prepare(retry_interval=600)
    await tcc.register("01", "02")
    await tcc.submit()
    before = await cluster.stored()

    assert (await tcc.submit(wait=False)).status is Status.SUBMITTED
    assert (await tcc.submit()).status is Status.SUBMITTED

    assert await cluster.stored() == before
    assert await check_end(cluster, branches=2) is Status.SUCCEEDED


@pytest.mark.parametrize("act", ["submit", "abort"])
async def test_what_comes_while_the_decision_is_written_does_not_wait_for_a_call(
    cluster: Cluster, tcc: Tcc, act: str
) -> None:
    op = "confirm" if act == "submit" else "cancel"
    hold = cluster.participants.hold(f"01 {op}")
    decide = tcc.submit if act == "submit" else tcc.abort
    await tcc.prepare()
    await tcc.register("01")
    cluster.store.before_apply = asyncio.Event()
    first = asyncio.ensure_future(decide(wait=False))
    await settle()
    again = asyncio.ensure_future(decide(wait=False))
    late = asyncio.ensure_future(refusal(tcc.register("02")))
    await settle()
    cluster.store.before_apply.set()
    await hold.began.wait()
    await settle()

    assert (first.done(), again.done(), late.done()) == (True, True, True)
    assert await first == await again
    assert await late == "register"
    hold.end()
    await check_end(cluster, branches=1)


async def test_nobody_is_remembered_who_waits_no_more(cluster: Cluster) -> None:
    node = await cluster.start_node(max_wait_s=20.0)
    tcc = Tcc(node)
    await tcc.prepare()
    await tcc.register("01")
    live = node.engine.find_live("g1")
    assert live is not None
    for _ in range(3):
        with pytest.raises(InvalidRequestError):
            await node.service.submit(TransRequest(gid="g1", trans_type="xa", wait_result=True))
    assert not live.waiters

    confirm = cluster.participants.hold("01 confirm")
    results = await asyncio.gather(*(tcc.submit() for _ in range(3)))
    gone = asyncio.create_task(tcc.submit())
    await settle()
    assert len(live.waiters) == 1
    gone.cancel()
    await settle()

    assert [result.status for result in results] == [Status.SUBMITTED] * 3
    assert not live.waiters
    confirm.end()


async def test_an_abort_again_is_no_second_pass(cluster: Cluster, tcc: Tcc) -> None:
    hold = cluster.participants.hold("02 cancel")
    await tcc.prepare()
    await tcc.register("01", "02")
    first = asyncio.ensure_future(tcc.abort())
    await hold.began.wait()
    again = asyncio.ensure_future(tcc.abort(reason="another"))
    await settle()
    hold.end()

    assert await first == await again == CANCELLED
    assert cluster.calls() == CANCELLED_CALLS
    assert await refusal(tcc.abort()) == "abort"


# -- races ---------------------------------------------------------------------------------


def acts_on(tcc: Tcc) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "register": lambda: tcc.register("02"),
        "submit": lambda: tcc.submit(wait=False),
        "abort": lambda: tcc.abort(wait=False),
    }


ORDERS = list(itertools.permutations(["register", "submit", "abort"]))


async def check_race(cluster: Cluster, refused: dict[str, str]) -> None:
    """After a register of 02, a submit and an abort at once: one decision, and no branch is forgotten."""
    assert (refused["submit"] == "") is (refused["abort"] != ""), "one of the two is refused"
    branches = 1 if refused["register"] else 2
    status = await check_end(cluster, branches=branches)
    assert status is (Status.FAILED if refused["submit"] else Status.SUCCEEDED)


@pytest.mark.parametrize("parked", [False, True], ids=["live", "parked"])
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
async def test_register_submit_and_abort_at_once(
    cluster: Cluster, tcc: Tcc, order: tuple[str, ...], parked: bool
) -> None:
    await tcc.prepare()
    await tcc.register("01")
    if parked:
        await cluster.parked()

    results = await asyncio.gather(*[refusal(acts_on(tcc)[act]()) for act in order])

    await check_race(cluster, dict(zip(order, results, strict=True)))


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
@pytest.mark.parametrize("apart_us", [0, 300, 1000, 1700, 2500])
async def test_register_submit_and_abort_on_three_nodes(
    cluster: Cluster, tcc: Tcc, order: tuple[str, ...], apart_us: int
) -> None:
    tccs = [tcc, *[Tcc(await cluster.start_node()) for _ in range(2)]]
    await tcc.prepare()
    await tcc.register("01")

    async def act(index: int) -> str:
        await asyncio.sleep(index * apart_us / MICROSECONDS)
        return await insist(lambda: refusal(acts_on(tccs[index])[order[index]]()))

    results = await asyncio.gather(*map(act, range(3)))

    await check_race(cluster, dict(zip(order, results, strict=True)))


@pytest.mark.parametrize("late_us", range(-3000, 5001, 500))
@pytest.mark.parametrize("act", ["register", "submit", "abort"])
async def test_a_change_while_it_is_being_parked(cluster: Cluster, tcc: Tcc, act: str, late_us: int) -> None:
    await tcc.prepare()
    await tcc.register("01")
    await until(now_s() + LINGER_S + late_us / MICROSECONDS)

    await acts_on(tcc)[act]()

    if act == "register":
        assert [op.branch_id for op in (await cluster.saga()).branches[::2]] == ["01", "02"]
        assert await tcc.submit() == SUCCEEDED
    await check_end(cluster, branches=2 if act == "register" else 1)
    assert len(cluster.calls()) == (2 if act == "register" else 1)


# -- two nodes -----------------------------------------------------------------------------


async def test_a_transaction_goes_to_the_node_that_is_asked(cluster: Cluster, tcc: Tcc) -> None:
    other = Tcc(await cluster.start_node())
    await tcc.prepare()
    for number in range(10):
        await (tcc, other)[number % 2].register(f"{number:02d}")

    assert await other.submit() == SUCCEEDED

    assert cluster.calls() == [f"{number:02d} confirm" for number in reversed(range(10))]
    assert await refusal(tcc.register("99")) == "register"
    assert await refusal(tcc.submit()) == "submit"


@pytest.mark.parametrize("count", [2, 3])
async def test_nodes_that_want_the_same_transaction_at_once_all_get_their_way(cluster: Cluster, count: int) -> None:
    tccs = [Tcc(await cluster.start_node()) for _ in range(count)]
    await tccs[0].prepare()

    # Without repeating: to pass a transaction to and fro is not the client's business.
    await asyncio.gather(*[tccs[number % count].register(f"{number:02d}") for number in range(12)])

    assert {op.branch_id for op in (await cluster.saga()).branches} == {f"{number:02d}" for number in range(12)}
    results = await asyncio.gather(*[tcc.submit(wait=False) for tcc in tccs])
    assert {result.status for result in results} <= {Status.SUBMITTED}
    assert await check_end(cluster, branches=12) is Status.SUCCEEDED
    assert len(cluster.calls()) == 12, "confirmed once each"


async def test_the_deadline_passes_while_two_nodes_have_it(cluster: Cluster, tcc: Tcc) -> None:
    other = Tcc(await cluster.start_node())
    await tcc.prepare(timeout_to_fail=1)
    await tcc.register("01")
    await other.register("02")

    tx = await cluster.ended()

    assert (tx.status, tx.rollback_reason) == (Status.FAILED, "Timeout after 1 seconds")
    assert cluster.calls() == CANCELLED_CALLS, "cancelled by one of them"


async def test_a_node_that_stays_behind_shows_nothing_old(cluster: Cluster, tcc: Tcc) -> None:
    other = Tcc(await cluster.start_node())
    await tcc.prepare()
    await other.register("01")

    shown = await tcc.node.service.query("g1")

    assert shown is not None
    assert [op.branch_id for op in shown.tx.branches] == ["01", "01"]
    await other.abort()


# -- trouble -------------------------------------------------------------------------------


async def initiate(tcc: Tcc, act: str) -> None:
    """An initiator that repeats what it has no answer to; refused, it was there before."""
    try:
        await insist(tcc.prepare)
        await insist(lambda: tcc.register("01"))
        await insist(lambda: tcc.register("02"))
        if act == "submit":
            await insist(lambda: tcc.submit(wait=False))
        else:
            await insist(lambda: tcc.abort(wait=False))
    except StatusConflictError:
        pass


@pytest.mark.parametrize("when", list(FailWhen))
@pytest.mark.parametrize("method", ["apply", "claim_prepared", "find", "take_over_due", "release_dead", "renew"])
@pytest.mark.parametrize("act", ["submit", "abort"])
async def test_a_failure_of_any_statement_harms_nothing(
    cluster: Cluster, act: str, method: str, when: FailWhen
) -> None:
    # Parked after each change, so that each change claims it.
    tcc = Tcc(await cluster.start_node(linger_s=0.001, lease_s=3.0, accept_wait_s=0.2))
    cluster.store.fail_next(4, when=when, method=method)

    await initiate(tcc, act)
    cluster.store._failures.clear()

    assert await check_end(cluster, branches=2) is (Status.SUCCEEDED if act == "submit" else Status.FAILED)
    await asyncio.sleep(10.0)
    assert await cluster.store.owned(tcc.node.engine.node_id) == []


@pytest.mark.parametrize("act", ["submit", "abort"])
@pytest.mark.parametrize("down_us", range(500, 12_000, 1000))
async def test_a_store_that_goes_away_and_comes_back(cluster: Cluster, tcc: Tcc, act: str, down_us: int) -> None:
    initiator = asyncio.create_task(initiate(tcc, act))
    await asyncio.sleep(down_us / MICROSECONDS)
    cluster.store.is_down = True
    await asyncio.sleep(7.0)
    cluster.store.is_down = False
    await initiator

    assert await check_end(cluster, branches=2) is (Status.SUCCEEDED if act == "submit" else Status.FAILED)


@pytest.mark.parametrize("returns", [True, False], ids=["the initiator returns", "the initiator vanishes"])
@pytest.mark.parametrize("act", ["submit", "abort"])
@pytest.mark.parametrize("killed_us", range(500, 24_000, 700))
async def test_a_kill_at_any_moment(cluster: Cluster, tcc: Tcc, act: str, killed_us: int, returns: bool) -> None:
    initiator = asyncio.create_task(initiate(tcc, act))
    await asyncio.sleep(killed_us / MICROSECONDS)
    tcc.node.kill()
    initiator.cancel()
    await settle()  # what the database has got, it carries out
    stored = await cluster.store.find("g1")
    next_node = await cluster.start_node()
    if returns:
        await initiate(Tcc(next_node), act)
    elif stored is None:
        return

    status = await check_end(cluster, branches=len((await cluster.saga()).branches) // 2)

    decided = Status.SUCCEEDED if act == "submit" else Status.FAILED
    if returns:
        assert (status, await cluster.rows()) == (decided, "PSPS" if act == "submit" else "SPSP")
    else:
        assert stored is not None
        assert status is (Status.FAILED if stored.tx.status is Status.PREPARED else decided)


@pytest.mark.parametrize("act", ["register", "submit", "abort"])
@pytest.mark.parametrize("lost_us", [0, 500, 1500, 2500])
async def test_a_lease_that_is_lost_during_a_change(cluster: Cluster, tcc: Tcc, act: str, lost_us: int) -> None:
    await tcc.prepare()
    await tcc.register("01")
    call = asyncio.ensure_future(insist(lambda: refusal(acts_on(tcc)[act]())))
    await asyncio.sleep(lost_us / MICROSECONDS)
    cluster.store._leases.clear()
    await cluster.store.release_dead(now_us=cluster.clock.now_us(), limit=1000)

    assert await call == ""

    if act == "register":
        assert await insist(lambda: refusal(tcc.submit(wait=False))) == ""
    await check_end(cluster, branches=2 if act == "register" else 1)


async def test_a_change_is_answered_when_the_lease_is_lost(cluster: Cluster) -> None:
    tcc = Tcc(await cluster.start_node(lease_s=0.9))
    await tcc.prepare()
    cluster.store.before_apply = asyncio.Event()
    writing, queued = (asyncio.ensure_future(tcc.register("01")) for _ in range(2))
    await settle()
    cluster.store._leases.clear()

    for call in (writing, queued):
        with pytest.raises(StoreUnavailableError):
            await call

    assert now_s() < 0.5, "with the next renewal, not when it would give up"
    cluster.store.before_apply.set()
    assert await insist(tcc.abort) == CANCELLED


@pytest.mark.parametrize("while_writing", [False, True])
async def test_a_change_is_answered_when_an_operator_stops_it(cluster: Cluster, tcc: Tcc, while_writing: bool) -> None:
    await tcc.prepare()
    await tcc.register("01")
    if while_writing:
        cluster.store.before_apply = asyncio.Event()
    call = asyncio.ensure_future(refusal(tcc.submit()))
    await settle(0.01 if while_writing else 0)
    began_s = now_s()

    await tcc.node.service.force_stop("g1")
    if cluster.store.before_apply is not None:
        cluster.store.before_apply.set()

    assert await call == "submit"
    assert now_s() - began_s < 1
    assert (cluster.calls(), (await cluster.saga()).status) == ([], Status.FAILED)


async def test_a_draining_node_parks_what_is_prepared_for_others(cluster: Cluster, tcc: Tcc) -> None:
    await tcc.prepare(timeout_to_fail=60)
    await tcc.register("01")
    other = Tcc(await cluster.start_node())

    await tcc.node.stop()

    assert now_s() < 1, "it does not linger"
    stored = await cluster.stored()
    assert stored.owner == 0
    assert stored.tx.due_us == stored.tx.deadline_us
    with pytest.raises(OverloadedError):
        await tcc.register("02")
    with pytest.raises(OverloadedError):
        await Tcc(tcc.node, "g2").prepare()
    await other.register("02")
    assert await other.submit() == SUCCEEDED


@pytest.mark.parametrize("act", ["register", "submit", "abort"])
@pytest.mark.parametrize("drained_us", [0, 500, 1500, 2500])
async def test_a_change_while_the_node_begins_to_drain(cluster: Cluster, tcc: Tcc, act: str, drained_us: int) -> None:
    other = Tcc(await cluster.start_node())
    await tcc.prepare()
    await tcc.register("01")
    call = asyncio.ensure_future(refusal(acts_on(tcc)[act]()))
    await asyncio.sleep(drained_us / MICROSECONDS)

    await tcc.node.stop()

    assert await call == "", "it was there before the node began to drain"
    if act == "register":
        assert await other.submit() == SUCCEEDED
    await check_end(cluster, branches=2 if act == "register" else 1)


async def test_a_full_node_takes_what_was_prepared_to_its_end(cluster: Cluster) -> None:
    tcc = Tcc(await cluster.start_node(max_live=1))
    hold = cluster.participants.hold("01 action", gid="g9")
    saga = tcc.node.submit_soon("g9")
    await hold.began.wait()

    await tcc.prepare()
    await asyncio.gather(tcc.prepare(), tcc.register("01"))

    assert await tcc.submit() == SUCCEEDED
    hold.end()
    assert await saga == SUCCEEDED


async def test_many_initiators_and_nodes(cluster: Cluster) -> None:
    nodes = [await cluster.start_node(linger_s=0.01) for _ in range(3)]

    async def run(number: int) -> None:
        gid = f"g{number}"
        one, other = (Tcc(nodes[(number + shift) % 3], gid) for shift in (0, number % 3))
        await one.prepare(timeout_to_fail=5)
        await other.register("01")
        await asyncio.sleep(COMMIT_S * (number % 11))
        await one.register("02")
        if number % 3:
            await (other.submit(wait=False) if number % 3 == 1 else other.abort(wait=False))

    await asyncio.gather(*map(run, range(60)))

    for number in range(60):
        expected = Status.SUCCEEDED if number % 3 == 1 else Status.FAILED
        assert await check_end(cluster, f"g{number}", branches=2) is expected
        assert len(cluster.calls(f"g{number}")) == 2


async def test_a_flood_of_claims_is_bounded_and_refused_ones_come_through_later(cluster: Cluster) -> None:
    first = await cluster.start_node()
    small = await cluster.start_node(max_live=2)
    gids = [f"g{number}" for number in range(12)]
    for gid in gids:
        await Tcc(first, gid).prepare(timeout_to_fail=600)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, small.engine.live_count)
            await asyncio.sleep(COMMIT_S / 4)

    watching = asyncio.create_task(watch())
    results = await asyncio.gather(*[Tcc(small, gid).register("01") for gid in gids], return_exceptions=True)
    refused = [result for result in results if isinstance(result, OverloadedError)]
    assert results.count(None) + len(refused) == len(gids)
    assert len(refused) == len(gids) - 4
    await asyncio.gather(*[insist(Tcc(small, gid).abort) for gid in gids])
    watching.cancel()

    assert most <= 4, "twice max_live"
    assert [(await cluster.saga(gid)).status for gid in gids] == [Status.FAILED] * len(gids)


async def test_claims_of_different_transactions_do_not_wait_for_each_other(cluster: Cluster, tcc: Tcc) -> None:
    other = await cluster.start_node()
    await tcc.prepare()
    await Tcc(tcc.node, "g2").prepare()
    hanging, claim = asyncio.Event(), cluster.store.claim_prepared

    async def claim_slowly(node_id: int, gid: str) -> Owned | None:
        if gid == "g1":
            await hanging.wait()
        return await claim(node_id, gid)

    cluster.store.claim_prepared = claim_slowly  # type: ignore[method-assign]
    slow = asyncio.ensure_future(Tcc(other, "g1").register("01"))
    gone = asyncio.ensure_future(Tcc(other, "g1").register("02"))
    await settle()

    assert (await Tcc(other, "g2").abort()).status is Status.FAILED
    assert not slow.done()
    gone.cancel()
    hanging.set()
    await slow

    assert [op.branch_id for op in (await cluster.saga()).branches[::2]] == ["01"]
    await Tcc(other).abort()


async def test_branches_that_come_to_many_nodes_at_once_are_all_registered(cluster: Cluster) -> None:
    nodes = [await cluster.start_node() for _ in range(16)]
    await Tcc(nodes[0]).prepare(timeout_to_fail=600)

    await asyncio.gather(*[Tcc(node).register(f"{number:02d}") for number, node in enumerate(nodes)])

    assert await Tcc(nodes[7]).submit() == SUCCEEDED
    assert len(cluster.calls()) == 16


async def test_a_change_that_the_store_refuses_is_called_that(cluster: Cluster) -> None:
    node = await cluster.start_node()
    tcc = Tcc(node)
    await tcc.prepare(timeout_to_fail=600)
    cluster.store.refuses = lambda change: change.tx.gid == "g1" and isinstance(change, Save)
    written = len(cluster.store.batches)

    with pytest.raises(StoreUnavailableError, match="g1 was not changed: the store refuses a change of g1"):
        await tcc.register("01")

    assert len(cluster.store.batches) == written + 1
    cluster.store.refuses = lambda change: False
    await insist(lambda: tcc.register("01"))
    assert await tcc.submit() == SUCCEEDED


async def test_a_claim_of_a_row_that_somebody_has_locked_closes_no_gate(cluster: Cluster, tcc: Tcc) -> None:
    other = await cluster.start_node()
    await tcc.prepare()
    claim, is_locked = cluster.store.claim_prepared, True

    async def claim_if_free(node_id: int, gid: str) -> Owned | None:
        if is_locked:
            raise TransactionsLockedError([gid])
        return await claim(node_id, gid)

    cluster.store.claim_prepared = claim_if_free  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="try the same"):
            await Tcc(other).register("01")
    waiting = asyncio.ensure_future(Tcc(other).register("01"))
    await settle()
    async with asyncio.timeout(COMMIT_S):
        async with other.engine._recovery.gate.alone():
            pass
    assert not other.engine._recovery._must_reconcile.is_set(), "nothing was taken"
    assert not waiting.done()
    is_locked = False
    await waiting

    assert await Tcc(other).submit() == SUCCEEDED
