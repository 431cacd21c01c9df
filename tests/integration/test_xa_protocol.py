"""DTM's own XA tests, as ours, against a running server on every store: money moves from MariaDB to PostgreSQL.

Statuses are in the order of the rows: rollback and commit of each branch, as they were registered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import Process, coordinator
from tests.integration.banks import BALANCE, Banks
from tests.integration.dtm import Dtm, seconds_ahead
from tests.integration.scripted import ERROR, failure
from txcoord_sdk import (
    ActionFailedError,
    AsyncCoordinator,
    AsyncXa,
    CoordinatorUnreachableError,
    Outcome,
    Status,
    TransactionFailedError,
)

MOVED = (BALANCE - 30, BALANCE + 30)
SAME = (BALANCE, BALANCE)


@pytest.fixture
async def banks(mysql_url: str, postgres_url: str) -> AsyncIterator[Banks]:
    async with Banks(mysql_url, postgres_url) as made:
        yield made


@pytest.fixture
async def participant(banks: Banks) -> Banks:
    """What `dtm` takes for its participant."""
    return banks


@pytest.fixture
async def client(server: Process) -> AsyncIterator[AsyncCoordinator]:
    async with AsyncCoordinator(server.url, attempts=2, backoff=0.01) as made:
        yield made


async def move(xa: AsyncXa, banks: Banks, amount: int = 30) -> None:
    await xa.call(f"{banks.url}/out", {"amount": amount})
    await xa.call(f"{banks.url}/in", {"amount": amount})


async def run(xa: AsyncXa, *works: Callable[[AsyncXa], Awaitable[object]]) -> None:
    """Do all this within the block."""
    async with xa:
        for work in works:
            await work(xa)


async def break_off(_: AsyncXa) -> None:
    raise LookupError("no such customer")


def ops(banks: Banks, gid: str) -> list[str]:
    """What was called for a transaction, as "out commit", in order."""
    return [f"{call.path} {call.query['op']}" for call in banks.received if call.query.get("gid") == gid]


# -- DTM's rows ----------------------------------------------------------------------------


async def test_normal(client: AsyncCoordinator, dtm: Dtm, banks: Banks) -> None:
    async with client.xa(dtm.gid) as xa:
        await move(xa, banks)
        assert banks.balances == SAME, "nobody sees what is only prepared"
        assert banks.prepared(dtm.gid) == [f"{dtm.gid}-01", f"{dtm.gid}-02"]
        assert (await dtm.transaction())["status"] == "prepared"

    transaction = await dtm.ends("succeed", "PSPS")

    assert "rollback_reason" not in transaction
    assert banks.balances == MOVED
    assert ops(banks, dtm.gid) == ["out action", "in action", "out commit", "in commit"]
    action, *_, commit = banks.received
    assert action.query == {
        "branch_id": "01",
        "dtm": f"{client.url}/api/dtmsvr",
        "gid": dtm.gid,
        "op": "action",
        "phase2_url": f"{banks.url}/out",
        "trans_type": "xa",
    }
    assert (commit.method, commit.body) == ("POST", b"")
    assert commit.query == {"branch_id": "02", "gid": dtm.gid, "op": "commit", "trans_type": "xa"}


async def test_a_branch_that_was_committed_by_hand(client: AsyncCoordinator, dtm: Dtm, banks: Banks) -> None:
    async with client.xa(dtm.gid) as xa:
        await move(xa, banks)
        banks.banks["out"].run(f"xa commit '{dtm.gid}-01'")
        banks.banks["in"].run(f"commit prepared '{dtm.gid}-02'")

    await dtm.ends("succeed", "PSPS")

    assert banks.balances == MOVED


async def test_rollback(client: AsyncCoordinator, dtm: Dtm, banks: Banks) -> None:
    banks.script("in", failure('{"message": "account closed"}'))

    with pytest.raises(ActionFailedError, match="account closed") as caught:
        async with client.xa(dtm.gid) as xa:
            await move(xa, banks)

    assert (caught.value.branch_id, caught.value.outcome) == ("02", Outcome.FAILURE)
    await dtm.ends("failed", "SP")
    assert (banks.balances, banks.prepared(dtm.gid)) == (SAME, [])
    assert ops(banks, dtm.gid) == ["out action", "in action", "out rollback"]


async def test_a_participant_that_refuses_is_not_registered(client: AsyncCoordinator, dtm: Dtm, banks: Banks) -> None:
    with pytest.raises(ActionFailedError, match="not enough money"):
        async with client.xa(dtm.gid) as xa:
            await move(xa, banks, BALANCE + 1)

    await dtm.ends("failed", "")
    assert (banks.balances, banks.prepared(dtm.gid)) == (SAME, [])


async def test_local_error(client: AsyncCoordinator, dtm: Dtm, banks: Banks) -> None:
    with pytest.raises(LookupError):
        await run(client.xa(dtm.gid), partial(move, banks=banks), break_off)

    transaction = await dtm.ends("failed", "SPSP")
    assert transaction["rollback_reason"] == "LookupError: no such customer"
    assert (banks.balances, banks.prepared(dtm.gid)) == (SAME, [])


async def test_timeout(client: AsyncCoordinator, dtm: Dtm, banks: Banks) -> None:
    async def too_late(xa: AsyncXa) -> None:
        await client.wait(dtm.gid)
        await move(xa, banks)

    with pytest.raises(ActionFailedError, match="cannot be registered: Timeout after 1 seconds"):
        await run(client.xa(dtm.gid, timeout_to_fail=1), too_late)

    await dtm.ends("failed", "")
    assert (banks.balances, banks.prepared(dtm.gid)) == (SAME, [])


async def test_after_the_deadline_what_is_prepared_is_rolled_back(
    client: AsyncCoordinator, dtm: Dtm, banks: Banks
) -> None:
    with pytest.raises(TransactionFailedError, match="Timeout after 3 seconds"):
        await run(client.xa(dtm.gid, timeout_to_fail=3), partial(move, banks=banks), lambda xa: client.wait(xa.gid))

    await dtm.ends("failed", "SPSP")
    assert (banks.balances, banks.prepared(dtm.gid)) == (SAME, [])


async def test_a_commit_that_is_not_ready_is_called_again(client: AsyncCoordinator, dtm: Dtm, banks: Banks) -> None:
    async with client.xa(dtm.gid, retry_interval=100) as xa:
        await xa.call(f"{banks.url}/out", {"amount": 30})
        banks.script("out", (200, '{"dtm_result":"ONGOING"}'))

    assert (await dtm.parked())["status"] == "submitted"
    assert await dtm.rows() == "PP"
    await dtm.cron()
    await dtm.ends("succeed", "PS")
    assert banks.balances == (BALANCE - 30, BALANCE)


@pytest.mark.parametrize("server", ["sqlite"], indirect=True, scope="module")
async def test_being_due_before_the_deadline_changes_nothing(client: AsyncCoordinator, dtm: Dtm, banks: Banks) -> None:
    async with client.xa(dtm.gid, timeout_to_fail=1000) as xa:
        await xa.call(f"{banks.url}/out", {"amount": 30})
        await dtm.cron()
        async with asyncio.timeout(15):
            while seconds_ahead(await dtm.parked()) < 500:
                await asyncio.sleep(0.02)
        assert (await dtm.transaction())["status"] == "prepared"
        assert ops(banks, dtm.gid) == ["out action"]

    await dtm.ends("succeed", "PS")


async def test_a_database_that_is_broken(client: AsyncCoordinator, dtm: Dtm, banks: Banks) -> None:
    banks.banks["in"].run("alter table xa.barrier rename to gone")

    async def half(xa: AsyncXa) -> None:
        await xa.call(f"{banks.url}/out", {"amount": 30})
        banks.script("out", ERROR)
        await xa.call(f"{banks.url}/in", {"amount": 30})

    with pytest.raises(ActionFailedError) as caught:
        await run(client.xa(dtm.gid, retry_interval=100), half)

    assert caught.value.outcome is Outcome.UNKNOWN
    assert (await dtm.parked())["status"] == "aborting"
    assert await dtm.rows() == "PP"
    await dtm.cron()
    await dtm.ends("failed", "SP")
    assert (banks.balances, banks.prepared(dtm.gid)) == (SAME, [])


async def test_no_coordinator() -> None:
    async with AsyncCoordinator("http://127.0.0.1:1", attempts=2, backoff=0.01) as nobody:
        with pytest.raises(CoordinatorUnreachableError):
            async with nobody.xa():
                raise AssertionError("it was not opened")


@pytest.mark.parametrize("gid", ["it's {}", 'a"{}`\\', "%s :x {} ä", "{}" + "x" * 90])
async def test_a_gid_that_no_statement_could_hold(client: AsyncCoordinator, dtm: Dtm, banks: Banks, gid: str) -> None:
    dtm.gid = gid.format(dtm.gid)
    async with client.xa(dtm.gid) as xa:
        await move(xa, banks)

    await dtm.ends("succeed", "PSPS")
    assert banks.balances == MOVED

    with pytest.raises(LookupError):
        await run(client.xa(f"{dtm.gid}2"), partial(move, banks=banks), break_off)
    assert (await client.wait(f"{dtm.gid}2")).status is Status.FAILED
    assert banks.balances == MOVED
    assert [bank.prepared for bank in banks.banks.values()] == [[], []]


# -- what goes wrong on the way ----------------------------------------------------------------


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_answers_that_are_lost(client: AsyncCoordinator, dtm: Dtm, banks: Banks, ends: str) -> None:
    banks.breaks.add(ends)
    works = [partial(move, banks=banks), *([break_off] if ends == "rollback" else [])]
    with suppress(LookupError):
        await run(client.xa(dtm.gid, retry_interval=100), *works)
    await dtm.parked()
    assert await dtm.rows() == "PPPP"

    banks.breaks.clear()
    await dtm.cron()

    await dtm.ends(*{"commit": ("succeed", "PSPS"), "rollback": ("failed", "SPSP")}[ends])
    assert banks.balances == (MOVED if ends == "commit" else SAME)
    assert banks.prepared(dtm.gid) == []


async def test_an_action_whose_answer_is_lost_is_rolled_back(client: AsyncCoordinator, dtm: Dtm, banks: Banks) -> None:
    banks.breaks.add("action")

    with pytest.raises(ActionFailedError) as caught:
        async with client.xa(dtm.gid) as xa:
            await move(xa, banks)

    assert caught.value.outcome is Outcome.UNKNOWN
    await dtm.ends("failed", "SP")
    assert (banks.balances, banks.prepared(dtm.gid)) == (SAME, [])


class Branch:
    """The calls of one branch, as anybody might send them, in any order."""

    def __init__(self, dtm: Dtm, banks: Banks, server: Process, name: str) -> None:
        self._url = f"{banks.url}/{name}"
        self._query = {"gid": dtm.gid, "branch_id": "01", "trans_type": "xa"}
        self._action = {"phase2_url": self._url, "dtm": f"{server.url}/api/dtmsvr"}

    async def action(self) -> httpx.Response:
        return await self._post("action", json={"amount": 30}, **self._action)

    async def commit(self) -> httpx.Response:
        return await self._post("commit")

    async def rollback(self) -> httpx.Response:
        return await self._post("rollback")

    async def _post(self, op: str, *, json: object = None, **query: str) -> httpx.Response:
        async with httpx.AsyncClient(timeout=20) as http:
            return await http.post(self._url, params={**self._query, "op": op, **query}, json=json)


@pytest.fixture(params=["out", "in"], ids=["mariadb", "postgres"])
async def branch(request: pytest.FixtureRequest, dtm: Dtm, banks: Banks, server: Process) -> Branch:
    assert (await dtm.post("prepare", trans_type="xa")).status_code == 200
    return Branch(dtm, banks, server, request.param)


async def test_a_rollback_that_comes_first_keeps_the_action_from_running(
    branch: Branch, dtm: Dtm, banks: Banks
) -> None:
    assert (await branch.rollback()).status_code == 200

    late = await branch.action()

    assert (late.status_code, late.json()["dtm_result"]) == (409, "FAILURE")
    assert await dtm.rows() == "", "it is not registered either"
    assert (banks.balances, banks.prepared(dtm.gid)) == (SAME, [])


async def test_doubled_calls_take_effect_once(branch: Branch, dtm: Dtm, banks: Banks) -> None:
    for _ in range(2):
        assert (await branch.action()).status_code == 200
        assert len(banks.prepared(dtm.gid)) == 1
    for _ in range(2):
        assert (await branch.commit()).status_code == 200
    assert (await branch.action()).status_code == 200, "it was committed; nothing is done again"

    assert banks.balances in ((BALANCE - 30, BALANCE), (BALANCE, BALANCE + 30))
    assert banks.prepared(dtm.gid) == []


async def test_a_rollback_during_the_action_waits_until_it_is_prepared(branch: Branch, dtm: Dtm, banks: Banks) -> None:
    banks.gate = asyncio.Event()
    action = asyncio.create_task(branch.action())
    await asyncio.wait_for(banks.working.wait(), 10)

    early = await branch.rollback()
    assert (early.status_code, early.json()["dtm_result"]) == (425, "ONGOING")
    assert (await branch.action()).status_code == 425, "and a second one does not run beside it"
    banks.gate.set()
    assert (await action).status_code == 200

    assert len(banks.prepared(dtm.gid)) == 1
    assert (await branch.rollback()).status_code == 200
    assert (banks.balances, banks.prepared(dtm.gid)) == (SAME, [])


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[AsyncCoordinator]:
    """A client of a coordinator that is quick to repeat."""
    process = coordinator("memory://", tmp_path, TXCOORD_ERROR_BACKOFF_S="0.01")
    try:
        process.start()
        async with AsyncCoordinator(process.url) as made:
            yield made
    finally:
        process.close()


async def test_a_commit_of_what_was_never_prepared_needs_an_operator(quick: AsyncCoordinator, banks: Banks) -> None:
    async with quick.xa() as xa:
        await move(xa, banks)
        banks.banks["out"].run(f"xa rollback '{xa.gid}-01'")

    async with asyncio.timeout(30):
        while not (found := await quick.query(xa.gid)).needs_operator:
            await asyncio.sleep(0.02)

    assert found.status is Status.SUBMITTED
    assert "rolled back by hand" in found.needs_operator
    assert banks.prepared(xa.gid) == [f"{xa.gid}-02"], "the others wait: branches are ended in order"
    # A person has seen to it that the money is gone, and has this branch answer success.
    banks.script("out", (200, '{"dtm_result": "SUCCESS", "by": "hand"}'))
    await quick.retry_now(xa.gid)
    assert (await quick.wait(xa.gid)).status is Status.SUCCEEDED
    assert (banks.balances, banks.prepared(xa.gid)) == ((BALANCE, BALANCE + 30), [])
