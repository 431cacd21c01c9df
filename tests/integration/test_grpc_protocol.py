"""DTM's own tests with participants over gRPC, as ours, against a running server on every store.

Each transaction is opened over HTTP, with protocol "grpc", and over gRPC, where that is understood. Statuses are
in the order of the rows, as in the tests of each pattern over HTTP.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx
import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import Session

from tests.e2e.harness import Process
from tests.integration.callers import Caller, GrpcCaller, HttpCaller, Said
from tests.integration.dtm import Dtm
from tests.integration.grpc_participant import (
    ERROR,
    OLD_ONGOING,
    ONGOING,
    SUCCESS,
    Answer,
    GrpcParticipant,
    Received,
    failure,
)
from tests.integration.scripted import Participant
from tests.integration.test_saga_protocol import concurrent
from txcoord.proto.workflow_pb2 import WorkflowData
from txcoord_sdk.barrier import BranchBarrier, create_table_at

DATA = '{"amount":30}'


class Overall:
    """A transaction whose branches are called over gRPC, and the API by which it is opened."""

    def __init__(self, caller: Caller, dtm: Dtm, it: GrpcParticipant) -> None:
        self._caller = caller
        self.dtm = dtm
        self.gid = dtm.gid
        self.it = it

    async def call(self, method: str, **body: Any) -> Said:
        if isinstance(self._caller, HttpCaller) and method != "registerBranch":
            body["protocol"] = "grpc"
        return await self._caller.call(method, gid=self.gid, **body)

    async def accepted(self, method: str, **body: Any) -> None:
        assert (await self.call(method, **body)).word == "SUCCESS"

    async def submit_saga(self, **changes: Any) -> Said:
        url = self.it.url
        body: dict[str, Any] = {
            "trans_type": "saga",
            "steps": [
                {"action": url("TransOut"), "compensate": url("TransOutRevert")},
                {"action": url("TransIn"), "compensate": url("TransInRevert")},
            ],
            "payloads": [DATA, DATA],
        }
        return await self.call("submit", **(body | changes))

    async def register(self, branch_id: str, name: str) -> None:
        urls = {"confirm": self.it.url(f"{name}Confirm"), "cancel": self.it.url(f"{name}Cancel")}
        await self.accepted("registerBranch", trans_type="tcc", branch_id=branch_id, data=DATA, **urls)

    def msg(self, **changes: Any) -> dict[str, Any]:
        url = self.it.url
        body: dict[str, Any] = {
            "trans_type": "msg",
            "steps": [{"action": url("TransOut")}, {"action": url("TransIn")}],
            "payloads": [DATA, DATA],
            "query_prepared": url("Query"),
        }
        return body | changes

    def calls(self) -> list[str]:
        return self.it.calls(self.gid)


@pytest.fixture
async def it() -> AsyncIterator[GrpcParticipant]:
    async with GrpcParticipant() as made:
        yield made


@pytest.fixture(params=["http", "grpc"])
async def caller(request: pytest.FixtureRequest, server: Process) -> AsyncIterator[Caller]:
    if request.param == "http":
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
            yield HttpCaller(http)
    else:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            yield GrpcCaller(channel)


@pytest.fixture
def tx(caller: Caller, dtm: Dtm, it: GrpcParticipant) -> Overall:
    return Overall(caller, dtm, it)


# -- saga ----------------------------------------------------------------------------------


async def test_saga_grpc_normal(tx: Overall, it: GrpcParticipant) -> None:
    assert (await tx.submit_saga()).word == "SUCCESS"

    transaction = await tx.dtm.ends("succeed", "PSPS")

    assert transaction["protocol"] == "grpc"
    assert tx.calls() == ["TransOut", "TransIn"]
    [out, _] = [call for call in it.received if call.gid == tx.gid]
    assert (out.path, out.message) == ("/busi.Busi/TransOut", DATA.encode())
    context = {key: value for key, value in out.metadata.items() if key.startswith("dtm-")}
    assert context == {
        "dtm-gid": tx.gid,
        "dtm-trans_type": "saga",
        "dtm-branch_id": "01",
        "dtm-op": "action",
        "dtm-dtm": "",
    }


async def test_saga_grpc_rollback(tx: Overall, it: GrpcParticipant) -> None:
    it.script("TransIn", failure("no such account"))
    it.script("TransOutRevert", ONGOING)
    await tx.submit_saga()
    await it.called("TransOutRevert", tx.gid)
    assert (await tx.dtm.parked())["status"] == "aborting"

    await tx.dtm.cron()
    transaction = await tx.dtm.ends("failed", "SSSF")

    assert transaction["rollback_reason"] == f"url:{it.url('TransIn')} return failed: no such account FAILURE"
    assert tx.calls() == ["TransOut", "TransIn", "TransInRevert", "TransOutRevert", "TransOutRevert"]


async def test_saga_grpc_concurrent(tx: Overall) -> None:
    await tx.submit_saga(custom_data=concurrent())
    await tx.dtm.ends("succeed", "PSPS")
    assert sorted(tx.calls()) == ["TransIn", "TransOut"]


async def test_saga_grpc_concurrent_order(tx: Overall) -> None:
    await tx.submit_saga(custom_data=concurrent(s0=[1]))
    await tx.dtm.ends("succeed", "PSPS")
    assert tx.calls() == ["TransIn", "TransOut"]


@pytest.mark.parametrize("answer", [ONGOING, OLD_ONGOING], ids=["new", "old"])
async def test_saga_grpc_committed_ongoing(tx: Overall, it: GrpcParticipant, answer: Answer) -> None:
    it.script("TransOut", answer)
    await tx.submit_saga()
    await it.called("TransOut", tx.gid)
    assert (await tx.dtm.parked())["status"] == "submitted"
    assert await tx.dtm.rows() == "PPPP"
    await tx.dtm.cron()
    await tx.dtm.ends("succeed", "PSPS")


async def test_saga_grpc_error_is_repeated(tx: Overall, it: GrpcParticipant) -> None:
    it.script("TransOut", ERROR)
    await tx.submit_saga()
    await tx.dtm.ends("succeed", "PSPS")
    [attempt, _] = (await tx.dtm.query())["branches"][1]["attempts"]
    assert (attempt["outcome"], attempt["code"]) == ("unknown", grpc.StatusCode.INTERNAL.value[0])
    assert attempt["detail"] == "gRPC INTERNAL: out of order FAILURE"


async def test_saga_grpc_normal_wait(tx: Overall) -> None:
    assert (await tx.submit_saga(wait_result=True)).word == "SUCCESS"
    assert (await tx.dtm.transaction())["status"] == "succeed"


async def test_saga_grpc_empty_url(tx: Overall, it: GrpcParticipant) -> None:
    steps = [{"action": it.url("TransOut"), "compensate": ""}, {"action": "", "compensate": ""}]
    await tx.submit_saga(steps=steps)
    await tx.dtm.ends("succeed", "PSPS")
    assert tx.calls() == ["TransOut"]


async def test_saga_grpc_with_a_request_timeout(tx: Overall, it: GrpcParticipant) -> None:
    assert (await tx.submit_saga(wait_result=True, request_timeout=6)).word == "SUCCESS"

    for call in (call for call in it.received if call.gid == tx.gid):
        assert call.time_left_s is not None
        assert 3 < call.time_left_s < 7
        names = {key for key in call.metadata if not key.startswith("dtm-")}
        assert names <= {"user-agent", "accept-encoding", "grpc-accept-encoding"}, "no stray header"


async def test_saga_grpc_options_rollback_wait(tx: Overall, it: GrpcParticipant) -> None:
    it.script("TransIn", failure("no money"))
    said = await tx.submit_saga(wait_result=True)
    assert said.word == "FAILURE"
    assert "no money" in said.message
    await tx.dtm.ends("failed", "SSSF")


async def test_saga_grpc_headers_on_each_call(tx: Overall, it: GrpcParticipant) -> None:
    it.script("TransOut", ONGOING)
    await tx.submit_saga(branch_headers={"Test_Header": "test", "trace-bin": "x"})
    await it.called("TransOut", tx.gid)
    await tx.dtm.cron()
    await tx.dtm.ends("succeed", "PSPS")
    seen = [(call.metadata["test_header"], call.metadata["trace-bin"]) for call in it.received if call.gid == tx.gid]
    assert seen == [("test", b"x")] * 3


@pytest.mark.parametrize("header", [{"a$b": "1"}, {"a": "é"}], ids=["name", "value"])
async def test_a_header_that_cannot_be_metadata_is_refused(tx: Overall, header: dict[str, str]) -> None:
    said = await tx.submit_saga(branch_headers=header)
    assert said.word == "ERROR"
    assert "called over gRPC" in said.message


@pytest.mark.parametrize("url", ["host:99999/a.B/C", "nowhere", "ftp://h/a.B/C", "host:1/a.B"])
async def test_a_url_that_cannot_be_called_is_refused(tx: Overall, url: str) -> None:
    said = await tx.submit_saga(steps=[{"action": url, "compensate": ""}], payloads=[DATA])
    assert said.word == "ERROR"
    assert "cannot be called over gRPC" in said.message


async def test_a_saga_mixes_grpc_and_http(tx: Overall, it: GrpcParticipant, participant: Participant) -> None:
    steps = [
        {"action": f"{participant.url}/out", "compensate": it.url("TransOutRevert")},
        {"action": it.url("TransIn"), "compensate": f"{participant.url}/in-revert"},
    ]
    it.script("TransIn", failure("no"))

    await tx.submit_saga(steps=steps)

    await tx.dtm.ends("failed", "SSSF")
    assert tx.calls() == ["TransIn", "TransOutRevert"]
    assert participant.calls(tx.gid) == ["out", "in-revert"]


async def test_a_participant_that_is_away_is_waited_for(tx: Overall) -> None:
    async with GrpcParticipant() as away:
        port, url = away.port, away.url("TransOut")
    await tx.submit_saga(steps=[{"action": url, "compensate": ""}], payloads=[DATA])
    async with asyncio.timeout(15):
        while not (await tx.dtm.query())["branches"][1].get("attempts"):
            await asyncio.sleep(0.02)
    async with GrpcParticipant(port=port):
        await tx.dtm.ends("succeed", "PS")
    first = (await tx.dtm.query())["branches"][1]["attempts"][0]
    assert (first["outcome"], first["code"]) == ("unknown", 0)


# -- tcc -----------------------------------------------------------------------------------


async def test_tcc_grpc_normal(tx: Overall, it: GrpcParticipant) -> None:
    await tx.accepted("prepare", trans_type="tcc")
    await tx.register("01", "TransOut")
    await tx.register("02", "TransIn")
    await tx.accepted("submit", trans_type="tcc")

    await tx.dtm.ends("succeed", "PSPS")

    assert it.ops(tx.gid) == ["TransInConfirm confirm", "TransOutConfirm confirm"]
    assert {call.message for call in it.received if call.gid == tx.gid} == {DATA.encode()}


async def test_tcc_grpc_rollback(tx: Overall, it: GrpcParticipant) -> None:
    it.script("TransOutCancel", ONGOING)
    await tx.accepted("prepare", trans_type="tcc")
    await tx.register("01", "TransOut")
    await tx.register("02", "TransIn")
    reason = "rpc error: code = Aborted desc = reason:no money"
    await tx.accepted("abort", trans_type="tcc", rollback_reason=reason)
    await it.called("TransOutCancel", tx.gid)
    assert (await tx.dtm.parked())["status"] == "aborting"

    await tx.dtm.cron()
    transaction = await tx.dtm.ends("failed", "SPSP")

    assert transaction["rollback_reason"] == reason


async def test_tcc_grpc_nested(tx: Overall, it: GrpcParticipant) -> None:
    await tx.accepted("prepare", trans_type="tcc")
    for branch_id, name in [("01", "TransOut"), ("0101", "TransIn"), ("02", "TransIn")]:
        await tx.register(branch_id, name)
    await tx.accepted("submit", trans_type="tcc")

    await tx.dtm.ends("succeed", "PSPSPS")

    assert [call.metadata["dtm-branch_id"] for call in it.received if call.gid == tx.gid] == ["02", "0101", "01"]


async def test_tcc_grpc_headers(tx: Overall, it: GrpcParticipant) -> None:
    await tx.accepted("prepare", trans_type="tcc", branch_headers={"test_header": "test"}, wait_result=True)
    await tx.register("01", "TransOut")
    await tx.accepted("submit", trans_type="tcc", wait_result=True)

    assert await tx.dtm.rows() == "PS"
    assert [call.metadata["test_header"] for call in it.received if call.gid == tx.gid] == ["test"]


async def test_a_confirm_that_is_refused_is_repeated(tx: Overall, it: GrpcParticipant) -> None:
    it.script("TransOutConfirm", failure("cannot"), failure("cannot"))
    await tx.accepted("prepare", trans_type="tcc")
    await tx.register("01", "TransOut")
    await tx.accepted("submit", trans_type="tcc")

    await tx.dtm.ends("succeed", "PS")

    assert tx.calls() == ["TransOutConfirm"] * 3


# -- msg -----------------------------------------------------------------------------------


async def test_msg_grpc_normal(tx: Overall) -> None:
    await tx.accepted("prepare", **tx.msg())
    await tx.accepted("submit", **tx.msg())
    await tx.dtm.ends("succeed", "SS")
    assert tx.calls() == ["TransOut", "TransIn"]


async def test_msg_grpc_of_a_topic(tx: Overall, it: GrpcParticipant, participant: Participant, server: Process) -> None:
    topic = f"grpc_trans_{tx.gid}"
    async with httpx.AsyncClient(base_url=server.url) as http:
        for url in (it.url("TransOut"), it.url("TransIn"), f"{participant.url}/audit"):
            answer = await http.post("/api/dtmsvr/subscribe", params={"topic": topic, "url": url, "remark": ""})
            assert answer.status_code == 200

    message = tx.msg(steps=[{"action": f"topic://{topic}"}], payloads=[DATA])
    await tx.accepted("prepare", **message)
    await tx.accepted("submit", **message)

    await tx.dtm.ends("succeed", "SSS")
    assert tx.calls() == ["TransOut", "TransIn"]
    assert participant.calls(tx.gid) == ["audit"]
    assert [call.metadata["dtm-branch_id"] for call in it.received if call.gid == tx.gid] == ["01-01", "01-02"]


async def test_msg_grpc_timeout_success(tx: Overall, it: GrpcParticipant) -> None:
    it.script("Query", ONGOING)
    it.script("TransIn", ONGOING)
    await tx.accepted("prepare", **tx.msg(timeout_to_fail=1, retry_interval=60))
    await it.called("Query", tx.gid)
    await tx.dtm.cron()
    await it.called("TransIn", tx.gid)
    await tx.dtm.cron()

    transaction = await tx.dtm.ends("succeed", "SS")

    assert [attempt["outcome"] for attempt in transaction["check_back"]["attempts"]] == ["ongoing", "success"]
    question = next(call for call in it.received if call.method == "Query")
    assert (question.message, question.op, question.metadata["dtm-branch_id"]) == (b"", "msg", "00")


async def test_msg_grpc_timeout_failed(tx: Overall, it: GrpcParticipant) -> None:
    it.script("Query", ONGOING, failure("never committed"))
    await tx.accepted("prepare", **tx.msg(timeout_to_fail=1, retry_interval=60))
    await it.called("Query", tx.gid)
    await tx.dtm.cron()

    await tx.dtm.ends("failed", "PP")

    assert tx.calls() == ["Query", "Query"]


# -- workflow ------------------------------------------------------------------------------


async def test_workflow_grpc_resume(tx: Overall, it: GrpcParticipant) -> None:
    it.script("Execute", ONGOING, ERROR)
    plan = json.dumps({"name": "transfer", "data": b64encode(b"\x00input").decode()})
    address = f"{it.address}/workflow.Workflow/Execute"
    # The APIs answer with the progress, each in its own form; that is looked at elsewhere.
    if isinstance(tx._caller, HttpCaller):
        body = {"trans_type": "workflow", "custom_data": plan, "query_prepared": address, "retry_interval": 1}
        answer = await tx.dtm.post("prepareWorkflow", protocol="grpc", **body)
        assert answer.status_code == 200
    else:
        await tx.accepted(
            "prepareWorkflow", trans_type="workflow", custom_data=plan, query_prepared=address, retry_interval=1
        )

    await it.called("Execute", tx.gid, times=3)
    await tx.accepted("submit", trans_type="workflow", req_extra={"status": "succeed", "result": ""})
    await tx.dtm.reaches("succeed")

    resume = next(call for call in it.received if call.gid == tx.gid)
    assert resume.path == "/workflow.Workflow/Execute"
    assert WorkflowData.FromString(resume.message).Data == b"\x00input"
    assert (resume.op, resume.metadata["dtm-trans_type"]) == ("transfer", "workflow")


# -- with the barrier ------------------------------------------------------------------------

BALANCE = 10_000
_DRIVERS = {"sqlite": "sqlite", "mysql": "mysql+pymysql", "postgresql": "postgresql+psycopg"}
_NO_MONEY = "no money"


class Accounts:
    """Two accounts in a database, and what a participant does with them behind the barrier."""

    def __init__(self, url: str) -> None:
        create_table_at(url, table="barrier")
        scheme, rest = url.split("://", 1)
        self._engine = create_engine(f"{_DRIVERS[scheme]}://{rest}", poolclass=NullPool)
        with self._engine.begin() as connection:
            connection.execute(text("create table account (name varchar(20) primary key, balance int)"))
            for name in ("out", "in"):
                connection.execute(text("insert into account values (:n, :b)"), {"n": name, "b": BALANCE})

    def balances(self) -> dict[str, int]:
        with self._engine.connect() as connection:
            found = connection.execute(text("select name, balance from account"))
            return {str(row.name): int(row.balance) for row in found}

    async def answer(self, call: Received) -> Answer:
        done = await asyncio.to_thread(self._work, call)
        return SUCCESS if done else failure(_NO_MONEY)

    def _work(self, call: Received) -> bool:
        names = ("trans_type", "gid", "branch_id", "op")
        barrier = BranchBarrier(*[str(call.metadata[f"dtm-{name}"]) for name in names], table="barrier")
        amount = int(json.loads(call.message)["amount"])
        if call.method.startswith("TransOut"):
            amount = -amount
        if call.op == "compensate":
            amount = -amount
        name = "out" if call.method.startswith("TransOut") else "in"

        def work(session: Session) -> None:
            statement = "update account set balance = balance + :a where name = :n and balance + :a >= 0"
            if not session.execute(text(statement), {"a": amount, "n": name}).rowcount:  # type: ignore[attr-defined]
                raise _NoMoneyError

        with Session(self._engine) as session:
            try:
                barrier.call_sync(session, work)
            except _NoMoneyError:
                return False
            session.commit()
            return True


class _NoMoneyError(Exception):
    pass


@pytest.fixture
def accounts(request: pytest.FixtureRequest, make_database: Callable[[str], str], it: GrpcParticipant) -> Accounts:
    """Accounts in a database of the kind that the coordinator's store is, behind the participant."""
    made = Accounts(make_database(request.node.callspec.params["server"]))
    it.work = made.answer
    return made


async def test_saga_grpc_barrier_normal(tx: Overall, accounts: Accounts) -> None:
    await tx.submit_saga()
    await tx.dtm.ends("succeed", "PSPS")
    assert accounts.balances() == {"out": BALANCE - 30, "in": BALANCE + 30}


async def test_saga_grpc_barrier_rollback(tx: Overall, it: GrpcParticipant, accounts: Accounts) -> None:
    it.script("TransIn", failure("no"))
    await tx.submit_saga()
    await tx.dtm.ends("failed", "SSSF")
    assert accounts.balances() == {"out": BALANCE, "in": BALANCE}, "the compensation of what never ran is empty"


async def test_saga_grpc_barrier_refuses_what_is_not_there(tx: Overall, accounts: Accounts) -> None:
    await tx.submit_saga(payloads=['{"amount":20000}', '{"amount":20000}'])
    transaction = await tx.dtm.ends("failed", "SFPP")
    assert _NO_MONEY in transaction["rollback_reason"]
    assert accounts.balances() == {"out": BALANCE, "in": BALANCE}
