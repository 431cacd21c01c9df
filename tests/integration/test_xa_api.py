"""XA by DTM's HTTP API: what needs no database, against a running server on every store."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.integration.allowed import OK, check_refusal, two_phase_calls
from tests.integration.dtm import Dtm, moment
from tests.integration.scripted import ERROR, ONGOING, SUCCESS, Answer, Participant, failure

SUCCEEDED = {"dtm_result": "SUCCESS"}


class Xa:
    """One XA transaction, as a client of DTM writes it."""

    def __init__(self, dtm: Dtm, participant: Participant) -> None:
        self.dtm = dtm
        self.gid = dtm.gid
        self._participant = participant

    async def post(self, path: str, **more: Any) -> httpx.Response:
        return await self.dtm.post(path, **({"trans_type": "xa"} | more))

    async def prepare(self, *names: str, **options: Any) -> None:
        """Prepare it, with branches 01, 02, … of these names."""
        assert (await self.post("prepare", **options)).json() == SUCCEEDED
        for number, name in enumerate(names, start=1):
            assert (await self.register(f"{number:02d}", name)).json() == SUCCEEDED

    async def register(self, branch_id: str, name: str, **more: Any) -> httpx.Response:
        fields = {"branch_id": branch_id, "url": f"{self._participant.url}/{name}"}
        return await self.post("registerBranch", **(fields | more))

    def called(self) -> list[str]:
        """What was called, as "out commit", in order."""
        return [
            f"{call.path} {call.query['op']}" for call in self._participant.received if call.query["gid"] == self.gid
        ]


@pytest.fixture
def xa(dtm: Dtm, participant: Participant) -> Xa:
    return Xa(dtm, participant)


# -- its course ----------------------------------------------------------------------------


async def test_normal(xa: Xa, participant: Participant) -> None:
    await xa.prepare("out", "in", branch_headers={"x-test": "yes"})
    assert [row["op"] for row in (await xa.dtm.query())["branches"]] == ["rollback", "commit"] * 2

    assert (await xa.post("submit")).json() == SUCCEEDED

    transaction = await xa.dtm.ends("succeed", "PSPS")
    assert transaction["finish_time"]
    assert xa.called() == ["out commit", "in commit"], "in the order of registration"
    commit = participant.received[0]
    assert (commit.method, commit.body, commit.headers["content-length"]) == ("POST", b"", "0")
    assert commit.headers["x-test"] == "yes"
    assert commit.query == {"branch_id": "01", "gid": xa.gid, "op": "commit", "trans_type": "xa"}


async def test_rollback(xa: Xa, participant: Participant) -> None:
    participant.script("out", ERROR)
    await xa.prepare("out", "in")

    assert (await xa.post("abort", rollback_reason="in refused")).json() == SUCCEEDED

    await participant.called("out", xa.gid)
    transaction = await xa.dtm.ends("failed", "SPSP")
    assert transaction["rollback_reason"] == "in refused"
    assert xa.called() == ["out rollback", "out rollback", "in rollback"]


async def test_timeout(xa: Xa) -> None:
    await xa.prepare("out", "in", timeout_to_fail=3)

    transaction = await xa.dtm.ends("failed", "SPSP")

    assert transaction["rollback_reason"] == "Timeout after 3 seconds"
    lasted = moment(transaction["rollback_time"]) - moment(transaction["create_time"])
    assert timedelta(seconds=3) <= lasted < timedelta(seconds=10), "exact, not on a polling grid"
    assert xa.called() == ["out rollback", "in rollback"]


@pytest.mark.parametrize("answer", [ONGOING, (200, '{"dtm_result":"ONGOING"}')], ids=["425", "200"])
async def test_a_commit_that_goes_on(xa: Xa, participant: Participant, answer: Answer) -> None:
    participant.script("out", answer)
    await xa.prepare("out", "in", retry_interval=1)
    await xa.post("submit")

    await participant.called("out", xa.gid)
    assert (await xa.dtm.parked())["status"] == "submitted"
    await xa.dtm.ends("succeed", "PSPS")
    assert xa.called() == ["out commit", "out commit", "in commit"]


@pytest.mark.parametrize("alias", ["registerBranch", "registerXaBranch"])
async def test_what_other_clients_send_with_a_branch(xa: Xa, participant: Participant, alias: str) -> None:
    await xa.prepare()
    extra = {"status": "prepared", "subType": "x", "data": None, "op": None, "confirm": "", "cancel": None}

    answer = await xa.post(alias, branch_id="01", url=f"{participant.url}/out?a=b", **extra)

    assert answer.json() == SUCCEEDED
    await xa.post("submit")
    await xa.dtm.ends("succeed", "PS")
    assert participant.received[-1].query["a"] == "b"


# -- registering ---------------------------------------------------------------------------


async def test_a_registration_again_is_the_same(xa: Xa) -> None:
    await xa.prepare("out")
    assert [(await xa.register("01", "out")).json() for _ in range(2)] == [SUCCEEDED] * 2

    other = await xa.register("01", "in")

    assert other.status_code == 400
    assert f"branch 01 of {xa.gid} is registered with other URLs" in other.json()["message"]
    await xa.post("abort")
    await xa.dtm.ends("failed", "SP")


@pytest.mark.parametrize("decided", ["submit", "abort"])
async def test_a_late_registration_is_refused_and_never_called(xa: Xa, participant: Participant, decided: str) -> None:
    participant.script("out", ONGOING)
    await xa.prepare("out", retry_interval=1000)
    await xa.post(decided)
    await participant.called("out", xa.gid)

    late = await xa.register("02", "in")

    assert (late.status_code, late.json()) == (
        409,
        {"dtm_result": "FAILURE", "message": f"no trans with gid: {xa.gid} status: prepared found FAILURE"},
    )
    await xa.dtm.cron()
    await xa.dtm.ends(*{"submit": ("succeed", "PS"), "abort": ("failed", "SP")}[decided])
    assert (await xa.register("02", "in")).status_code == 409
    assert "in" not in participant.calls(xa.gid)


@pytest.mark.parametrize("fields", [{"url": ""}, {"url": None}, {"url": "nonsense"}, {"url": 5}, {"branch_id": ""}])
async def test_a_branch_that_could_never_be_ended_is_refused(xa: Xa, fields: dict[str, Any]) -> None:
    await xa.prepare()

    answer = await xa.post("registerBranch", **({"branch_id": "01"} | fields))

    assert answer.status_code == 400
    await xa.post("submit")
    await xa.dtm.ends("succeed", "")


# -- what wait_result answers --------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "word"),
    [
        (SUCCESS, 200, "SUCCESS"),
        (ONGOING, 425, "ONGOING"),
        (ERROR, 425, "ONGOING"),
        (failure("no"), 425, "ONGOING"),
    ],
    ids=["success", "ongoing", "error", "failure"],
)
@pytest.mark.parametrize("act", ["submit", "abort"])
async def test_wait_result(xa: Xa, participant: Participant, act: str, answer: Answer, status: int, word: str) -> None:
    participant.script("out", answer)
    await xa.prepare("out", retry_interval=100)

    waited = await xa.post(act, wait_result=True)

    assert (waited.status_code, waited.json()["dtm_result"]) == (status, word)
    assert "FAILURE" not in waited.text
    if status == 425:
        await xa.dtm.cron()
    await xa.dtm.ends(*{"submit": ("succeed", "PS"), "abort": ("failed", "SP")}[act])


# -- which call is allowed when ------------------------------------------------------------

ALLOWED = two_phase_calls("xa")


@pytest.mark.parametrize(
    ("status", "call"), [(status, call) for status, calls in ALLOWED.items() for call in calls], ids=str
)
async def test_which_call_is_allowed_when(xa: Xa, participant: Participant, status: str, call: str) -> None:
    if status != "none":
        await xa.prepare("out", retry_interval=1000)
    if status in ("submitted", "aborting"):
        participant.script("out", ONGOING)
    if status not in ("none", "prepared"):
        await xa.post("abort" if status in ("aborting", "failed") else "submit")
        await xa.dtm.reaches(status)
    if status in ("submitted", "aborting"):
        await xa.dtm.parked()

    branch = {"branch_id": "02", "url": f"{participant.url}/in"}
    answer = await xa.post(call, **(branch if call == "registerBranch" else {}))

    if ALLOWED[status][call] == OK:
        assert (answer.status_code, answer.json()) == (200, SUCCEEDED)
    else:
        check_refusal(answer, ALLOWED[status][call], xa.gid)
