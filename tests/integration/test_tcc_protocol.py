"""DTM's own TCC tests, as ours, against a running server on every store.

The test is the initiator: it registers a branch, then calls its try. Statuses are in the
order of the rows: cancel and confirm of each branch, as they were registered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.e2e.harness import Process, coordinator, store_for
from tests.integration.allowed import OK, check_refusal, two_phase_calls
from tests.integration.dtm import Dtm, moment
from tests.integration.purses import BALANCE, Purses
from tests.integration.scripted import ERROR, ONGOING, SUCCESS, Answer, Participant, failure
from txcoord.two_phase.decide import MOST_REFUSALS

DATA = '{"amount":30}'


class Tcc:
    """One TCC transaction, as a client of DTM writes it."""

    def __init__(self, dtm: Dtm, participant: Participant) -> None:
        self.dtm = dtm
        self.gid = dtm.gid
        self._url = participant.url

    async def post(self, path: str, **more: Any) -> httpx.Response:
        return await self.dtm.post(path, **({"trans_type": "tcc"} | more))

    async def prepare(self, **options: Any) -> None:
        answer = await self.post("prepare", **options)
        assert (answer.status_code, answer.json()) == (200, {"dtm_result": "SUCCESS"})

    async def register(self, branch_id: str, name: str, **more: Any) -> httpx.Response:
        url = f"{self._url}/{name}"
        fields = {"branch_id": branch_id, "data": DATA, "confirm": url, "cancel": url}
        return await self.post("registerBranch", **(fields | more))

    async def try_(self, branch_id: str, name: str, **headers: str) -> httpx.Response:
        query = {"gid": self.gid, "trans_type": "tcc", "branch_id": branch_id, "op": "try", "dtm": "http://nowhere"}
        async with httpx.AsyncClient(timeout=20) as http:
            return await http.post(f"{self._url}/{name}", params=query, content=DATA, headers=headers)

    async def call(self, branch_id: str, name: str, **more: Any) -> bool:
        """Register a branch and call its try; say whether it succeeded."""
        registered = await self.register(branch_id, name, **more)
        assert registered.json() == {"dtm_result": "SUCCESS"}
        answer = await self.try_(branch_id, name)
        return answer.status_code == 200 and "FAILURE" not in answer.text

    async def submit(self, **more: Any) -> httpx.Response:
        return await self.post("submit", **more)

    async def abort(self, reason: str = "", **more: Any) -> httpx.Response:
        return await self.post("abort", rollback_reason=reason, **more)


@pytest.fixture
def tcc(dtm: Dtm, participant: Participant) -> Tcc:
    return Tcc(dtm, participant)


def ops(participant: Participant, gid: str) -> list[str]:
    """What was called for a transaction, as "out confirm", in order."""
    return [f"{call.path} {call.query['op']}" for call in participant.received if call.query.get("gid") == gid]


async def two_branches(tcc: Tcc) -> None:
    await tcc.prepare()
    assert await tcc.call("01", "out")
    assert await tcc.call("02", "in")


# -- DTM's rows ----------------------------------------------------------------------------


async def test_normal(tcc: Tcc, participant: Participant) -> None:
    await two_branches(tcc)
    assert (await tcc.dtm.transaction())["status"] == "prepared"
    assert (await tcc.submit()).json() == {"dtm_result": "SUCCESS"}

    transaction = await tcc.dtm.ends("succeed", "PSPS")

    assert "rollback_reason" not in transaction
    assert transaction["finish_time"]
    assert ops(participant, tcc.gid) == ["out try", "in try", "in confirm", "out confirm"]
    confirm = participant.received[-1]
    assert (confirm.method, confirm.body) == ("POST", DATA.encode())
    assert confirm.query == {"branch_id": "01", "gid": tcc.gid, "op": "confirm", "trans_type": "tcc"}


OLD_STYLE = {
    "new": (failure("no money"), ONGOING),
    "old": ((200, '{"dtm_result":"FAILURE"}'), (200, '{"dtm_result":"ONGOING"}')),
}


@pytest.mark.parametrize("style", OLD_STYLE)
async def test_rollback(tcc: Tcc, participant: Participant, style: str) -> None:
    refused, ongoing = OLD_STYLE[style]
    participant.script("in", refused)
    participant.script("out", SUCCESS, ongoing)
    await tcc.prepare()
    assert await tcc.call("01", "out")
    assert not await tcc.call("02", "in")

    answer = await tcc.abort("in refused FAILURE")

    assert answer.json() == {"dtm_result": "SUCCESS"}
    await participant.called("out", tcc.gid, times=2)
    assert (await tcc.dtm.parked())["status"] == "aborting"
    assert await tcc.dtm.rows() == "PPSP"
    await tcc.dtm.cron()
    transaction = await tcc.dtm.ends("failed", "SPSP")
    assert transaction["rollback_reason"] == "in refused FAILURE"
    assert transaction["rollback_time"]
    assert ops(participant, tcc.gid) == ["out try", "in try", "in cancel", "out cancel", "out cancel"]


async def test_timeout(tcc: Tcc, participant: Participant) -> None:
    await tcc.prepare(timeout_to_fail=3)
    assert await tcc.call("01", "out")

    transaction = await tcc.dtm.ends("failed", "SP")

    assert transaction["rollback_reason"] == "Timeout after 3 seconds"
    lasted = moment(transaction["rollback_time"]) - moment(transaction["create_time"])
    assert timedelta(seconds=3) <= lasted < timedelta(seconds=10), "exact, not on a polling grid"
    late = await tcc.register("02", "in")
    assert late.status_code == 409
    assert late.json() == {
        "dtm_result": "FAILURE",
        "message": f"no trans with gid: {tcc.gid} status: prepared found FAILURE",
    }
    assert (await tcc.submit()).json()["message"] == "current status 'failed', cannot sumbmit. FAILURE"
    assert ops(participant, tcc.gid) == ["out try", "out cancel"]


async def test_headers(tcc: Tcc, participant: Participant) -> None:
    await tcc.prepare(branch_headers={"x-test": "yes"})
    await tcc.register("01", "out")
    await tcc.register("02", "in", confirm="", cancel="")
    await tcc.submit()

    await tcc.dtm.ends("succeed", "PSPS")

    assert ops(participant, tcc.gid) == ["out confirm"]
    assert participant.received[-1].headers["x-test"] == "yes"


async def test_nested(tcc: Tcc, participant: Participant) -> None:
    await tcc.prepare()
    assert await tcc.call("01", "out")
    # The participant of 01 is itself an initiator: it adds branches below its own, from the query it got.
    received = participant.received[-1].query
    assert (received["gid"], received["branch_id"]) == (tcc.gid, "01")
    assert await tcc.call(received["branch_id"] + "01", "in")
    assert await tcc.call("02", "in")
    await tcc.submit()

    await tcc.dtm.ends("succeed", "PSPSPS")

    assert [branch["branch_id"] for branch in (await tcc.dtm.query())["branches"]] == [
        "01",
        "01",
        "0101",
        "0101",
        "02",
        "02",
    ]
    called = [call.query["branch_id"] for call in participant.received if call.query["op"] == "confirm"]
    assert called == ["02", "0101", "01"]


@pytest.mark.parametrize("alias", ["registerBranch", "registerTccBranch"])
async def test_what_other_clients_send_with_a_branch(tcc: Tcc, participant: Participant, alias: str) -> None:
    url = f"{participant.url}/out"
    await tcc.prepare(status="prepared")
    extra = {"status": "prepared", "subType": "x", "try": url, "op": None}

    answer = await tcc.post(alias, branch_id="01", data=None, confirm=url, cancel=None, **extra)

    assert answer.json() == {"dtm_result": "SUCCESS"}
    await tcc.submit()
    await tcc.dtm.ends("succeed", "PS")
    assert (participant.received[-1].method, participant.received[-1].body) == ("GET", b"")


# -- what wait_result answers --------------------------------------------------------------

WAITS: list[tuple[str, Answer, int, str]] = [
    ("submit", SUCCESS, 200, "SUCCESS"),
    ("submit", ONGOING, 425, "ONGOING"),
    ("submit", ERROR, 425, "ONGOING"),
    # DTM says 409 although it goes on: 409 is kept here for what is rolled back.
    ("submit", failure("no"), 425, "ONGOING"),
    ("abort", SUCCESS, 200, "SUCCESS"),
    ("abort", ONGOING, 425, "ONGOING"),
    ("abort", ERROR, 425, "ONGOING"),
    ("abort", failure("no"), 425, "ONGOING"),
]


@pytest.mark.parametrize(("act", "answer", "status", "word"), WAITS, ids=lambda value: str(value)[:20])
async def test_wait_result(
    tcc: Tcc, participant: Participant, act: str, answer: Answer, status: int, word: str
) -> None:
    participant.script("out", answer)
    await tcc.prepare(retry_interval=100)
    await tcc.register("01", "out")

    waited = await tcc.post(act, wait_result=True)

    assert (waited.status_code, waited.json()["dtm_result"]) == (status, word)
    assert "FAILURE" not in waited.text
    if status == 425:
        assert await tcc.dtm.rows() == "PP"
        await tcc.dtm.cron()
    await tcc.dtm.ends(*{"submit": ("succeed", "PS"), "abort": ("failed", "SP")}[act])


# -- which call is allowed when ------------------------------------------------------------

ALLOWED = two_phase_calls("tcc")


async def bring_to(tcc: Tcc, participant: Participant, status: str) -> None:
    if status == "none":
        return
    await tcc.prepare(retry_interval=1000)
    await tcc.register("01", "out")
    if status in ("submitted", "aborting"):
        participant.script("out", ONGOING)
    if status != "prepared":
        await (tcc.abort() if status in ("aborting", "failed") else tcc.submit())
        await tcc.dtm.reaches(status)
    if status in ("submitted", "aborting"):
        await tcc.dtm.parked()


@pytest.mark.parametrize(
    ("status", "call"), [(status, call) for status, calls in ALLOWED.items() for call in calls], ids=str
)
async def test_which_call_is_allowed_when(tcc: Tcc, participant: Participant, status: str, call: str) -> None:
    await bring_to(tcc, participant, status)

    branch = {"branch_id": "02", "data": DATA, "confirm": f"{participant.url}/in", "cancel": f"{participant.url}/in"}
    answer = await tcc.post(call, **(branch if call == "registerBranch" else {}))

    if ALLOWED[status][call] == OK:
        assert (answer.status_code, answer.json()) == (200, {"dtm_result": "SUCCESS"})
    else:
        check_refusal(answer, ALLOWED[status][call], tcc.gid)


async def test_a_registration_again_is_the_same(tcc: Tcc, participant: Participant) -> None:
    await tcc.prepare()
    answers = [await tcc.register("01", "out") for _ in range(3)]
    assert [answer.json() for answer in answers] == [{"dtm_result": "SUCCESS"}] * 3

    other = await tcc.register("01", "in")

    assert other.status_code == 400
    assert f"branch 01 of {tcc.gid} is registered with other URLs or data" in other.json()["message"]
    await tcc.submit()
    await tcc.dtm.ends("succeed", "PS")
    assert ops(participant, tcc.gid) == ["out confirm"]


async def test_a_repeated_submit_never_skips_a_confirm(tcc: Tcc, participant: Participant) -> None:
    gate = participant.hold("in")
    await tcc.prepare()
    await tcc.register("01", "out")
    await tcc.register("02", "in")
    await tcc.submit()
    await participant.called("in", tcc.gid)

    again = [await tcc.submit() for _ in range(3)]

    assert [answer.json() for answer in again] == [{"dtm_result": "SUCCESS"}] * 3
    assert await tcc.dtm.rows() == "PPPP"
    gate.set()
    await tcc.dtm.ends("succeed", "PSPS")
    assert ops(participant, tcc.gid) == ["in confirm", "out confirm"]


@pytest.mark.parametrize("call", ["submit", "prepare"])
async def test_its_type_cannot_be_changed(tcc: Tcc, call: str) -> None:
    await tcc.prepare()

    assert (await tcc.post(call, trans_type="saga")).status_code == 400
    assert (await tcc.register("01", "out", trans_type="saga")).status_code == 400
    assert (await tcc.dtm.transaction())["trans_type"] == "tcc"


async def test_a_submit_without_a_prepare_has_nothing_to_confirm(tcc: Tcc) -> None:
    assert (await tcc.submit(wait_result=True)).json() == {"dtm_result": "SUCCESS"}
    await tcc.dtm.ends("succeed", "")


# -- operators -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "mysql", "postgres"])
def quick_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One whose repeats and whose default timeout are short."""
    folder = tmp_path_factory.mktemp("quick")
    settings = {"TXCOORD_ERROR_BACKOFF_S": "0.05", "TXCOORD_TIMEOUT_TO_FAIL_S": "2"}
    with coordinator(store_for(request, folder), folder, **settings) as process:
        yield process


@pytest.fixture
async def quick(quick_server: Process, participant: Participant) -> AsyncIterator[Tcc]:
    async with httpx.AsyncClient(base_url=quick_server.url, timeout=20) as http:
        yield Tcc(Dtm(http, participant), participant)


async def test_what_refuses_needs_an_operator(quick: Tcc, participant: Participant) -> None:
    participant.script("in", *[failure("cannot")] * MOST_REFUSALS)
    await quick.prepare()
    await quick.register("01", "out")
    await quick.register("02", "in")
    await quick.submit()

    async with asyncio.timeout(20):
        while not (reason := (await quick.dtm.transaction()).get("needs_operator")):
            await asyncio.sleep(0.05)

    assert reason == f"confirm of branch 02 answered failure {MOST_REFUSALS} times: cannot"
    transaction = await quick.dtm.transaction()
    assert transaction["status"] == "submitted"
    assert "next_cron_time" not in transaction
    assert ops(participant, quick.gid) == ["in confirm"] * MOST_REFUSALS
    assert (await quick.dtm.post("resetNextCronTime")).json() == {"dtm_result": "SUCCESS"}
    assert "needs_operator" not in await quick.dtm.ends("succeed", "PSPS")


async def test_the_servers_own_timeout(quick: Tcc, participant: Participant) -> None:
    await quick.prepare()
    await quick.register("01", "out")

    transaction = await quick.dtm.ends("failed", "SP")

    assert transaction["rollback_reason"] == "Timeout after 2 seconds"


async def test_the_timeout_unless_the_server_is_told(tcc: Tcc) -> None:
    await tcc.prepare()

    transaction = await tcc.dtm.parked()  # until its deadline, since nothing comes

    ahead = moment(transaction["next_cron_time"]) - moment(transaction["create_time"])
    assert ahead == timedelta(seconds=35)
    await tcc.abort()
    await tcc.dtm.ends("failed", "")


async def test_a_reset_of_a_prepared_one_harms_nothing(tcc: Tcc) -> None:
    await tcc.prepare()
    await tcc.register("01", "out")
    await tcc.dtm.cron()
    await tcc.register("02", "in")

    await tcc.submit()

    await tcc.dtm.ends("succeed", "PSPS")


async def test_a_forced_stop_calls_nothing_more(tcc: Tcc, participant: Participant) -> None:
    gate = participant.hold("in")
    await tcc.prepare()
    await tcc.register("01", "out")
    await tcc.register("02", "in")
    waiting = asyncio.create_task(tcc.submit(wait_result=True))
    await participant.called("in", tcc.gid)

    assert (await tcc.dtm.post("forceStop")).json() == {"dtm_result": "SUCCESS"}

    assert (await waiting).status_code == 409
    gate.set()
    await tcc.dtm.ends("failed", "PPPP")
    assert ops(participant, tcc.gid) == ["in confirm"]


# -- the barrier, on real databases --------------------------------------------------------


@pytest.fixture
async def purses(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> AsyncIterator[Purses]:
    """Purses in a database of the kind that the coordinator's store is."""
    kind: str = request.node.callspec.params["server"]
    async with Purses(make_database(kind)) as made:
        yield made


@pytest.fixture
async def moving(server: Process, purses: Purses) -> AsyncIterator[Tcc]:
    """A transfer from one purse to the other."""
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
        yield Tcc(Dtm(http, purses), purses)


UNCHANGED = {"out": (BALANCE, 0), "in": (BALANCE, 0)}
MOVED = {"out": (BALANCE - 30, 0), "in": (BALANCE + 30, 0)}


async def test_barrier_normal(moving: Tcc, purses: Purses) -> None:
    await two_branches(moving)
    assert purses.balances() == {"out": (BALANCE, -30), "in": (BALANCE, 30)}
    await moving.submit()
    await moving.dtm.ends("succeed", "PSPS")
    assert purses.balances() == MOVED


async def test_barrier_rollback(moving: Tcc, purses: Purses) -> None:
    purses.script("in", failure("no"))
    await moving.prepare()
    assert await moving.call("01", "out")
    assert not await moving.call("02", "in")
    await moving.abort()
    await moving.dtm.ends("failed", "SPSP")
    assert purses.balances() == UNCHANGED


async def test_barrier_refuses_what_is_not_there(moving: Tcc, purses: Purses) -> None:
    await moving.prepare()
    big = json.dumps({"amount": BALANCE + 1})
    await moving.register("01", "out", data=big)
    query = {"gid": moving.gid, "trans_type": "tcc", "branch_id": "01", "op": "try"}
    async with httpx.AsyncClient() as http:
        assert (await http.post(f"{purses.url}/out", params=query, content=big)).status_code == 409
    await moving.abort()
    await moving.dtm.ends("failed", "SP")
    assert purses.balances() == UNCHANGED


async def test_barrier_duplicates(moving: Tcc, purses: Purses) -> None:
    await two_branches(moving)
    for _ in range(2):
        assert (await moving.try_("01", "out")).status_code == 200
    assert purses.balances() == {"out": (BALANCE, -30), "in": (BALANCE, 30)}
    await moving.submit()
    await moving.dtm.ends("succeed", "PSPS")
    again = await asyncio.gather(*[_op(moving, purses, "out", "confirm") for _ in range(3)])
    assert [answer.status_code for answer in again] == [200] * 3
    assert purses.balances() == MOVED


async def test_barrier_panic_takes_all_back(moving: Tcc, purses: Purses) -> None:
    purses.fails_after = {"try"}
    await moving.prepare()
    await moving.register("01", "out")
    assert (await moving.try_("01", "out")).status_code == 500
    assert purses.balances() == UNCHANGED
    await moving.abort()
    await moving.dtm.ends("failed", "SP")
    assert purses.balances() == UNCHANGED


async def test_barrier_disorder(moving: Tcc, purses: Purses) -> None:
    gate = purses.hold("out")
    await moving.prepare(timeout_to_fail=3)
    await moving.register("01", "out")
    # The deadline passes before the try arrives. The coordinator's cancel, and the same once more, at the same time:
    await purses.called("out", moving.gid)
    twice = asyncio.create_task(_answered(lambda: _op(moving, purses, "out", "cancel")))
    await purses.called("out", moving.gid, times=2)
    gate.set()
    assert (await twice).status_code == 200
    await moving.dtm.ends("failed", "SP")

    late = await moving.try_("01", "out")

    assert (late.status_code, late.json()) == (200, {"dtm_result": "SUCCESS"})
    assert purses.balances() == UNCHANGED
    assert ops(purses, moving.gid)[-1] == "out try"


@pytest.mark.parametrize("late_tries", [1, 3])
async def test_barrier_try_and_cancel_at_the_same_time(moving: Tcc, purses: Purses, late_tries: int) -> None:
    gate = purses.hold("out")
    await moving.prepare()
    await moving.register("01", "out")
    calls: list[Callable[[], Awaitable[httpx.Response]]] = [lambda: moving.try_("01", "out")] * late_tries
    calls += [lambda: _op(moving, purses, "out", "cancel")] * 2
    under_way = [asyncio.create_task(_answered(call)) for call in calls]
    await purses.called("out", moving.gid, times=len(calls))
    gate.set()
    assert [(await task).status_code for task in under_way] == [200] * len(calls)
    await moving.abort()
    await moving.dtm.ends("failed", "SP")
    assert purses.balances() == UNCHANGED


async def _answered(call: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Repeat a call until its answer is clear: a database may end a deadlock by failing one of those in it."""
    while (answer := await call()).status_code == 500:
        pass
    return answer


async def _op(tcc: Tcc, purses: Purses, name: str, op: str) -> httpx.Response:
    """A confirm or cancel that comes once more, from wherever."""
    query = {"gid": tcc.gid, "trans_type": "tcc", "branch_id": "01", "op": op}
    async with httpx.AsyncClient(timeout=20) as http:
        return await http.post(f"{purses.url}/{name}", params=query, content=DATA)
