"""DTM's own JSON-RPC tests, as ours, against a running server on every store: both sides call over JSON-RPC.

Status lists as in `test_saga_protocol`; of a tcc they are cancel and confirm of each branch, of a message actions.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e.harness import Process
from tests.integration.scripted import Answer, Participant

LETTERS = {"prepared": "P", "succeed": "S", "failed": "F"}


def error(code: int, message: str) -> Answer:
    return 200, json.dumps({"jsonrpc": "2.0", "id": "x", "error": {"code": code, "message": message}, "result": None})


ERROR = error(-32603, "out of order")
ONGOING = error(-32902, "not yet")
FAILURE = error(-32901, "no money")


class JsonRpcParticipant(Participant):
    """Answers as JSON-RPC servers do. The path, not the method, names what is scripted."""

    usual = (200, '{"jsonrpc":"2.0","id":"x","error":null,"result":{"note":"no FAILURE here"}}')

    def method(self, path: str) -> str:
        return f"{self.url}/{path}?method=Busi.{path}"

    def sent(self, gid: str, path: str) -> dict[str, Any]:
        """The last body that a path received."""
        body: dict[str, Any] = json.loads(
            [call for call in self.received if (call.gid, call.path) == (gid, path)][-1].body
        )
        return body


class Dtm:
    """DTM's JSON-RPC API as a client sees it."""

    def __init__(self, http: httpx.AsyncClient, participant: JsonRpcParticipant) -> None:
        self._http = http
        self._participant = participant
        self.gid = f"g-{uuid4().hex}"

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method about this transaction; return its error."""
        body = {"jsonrpc": "2.0", "id": "no-use", "method": method, "params": {"gid": self.gid, **params}}
        answer = await self._http.post("/api/json-rpc", json=body)
        assert answer.status_code == 200
        reply = answer.json()
        assert set(reply) == {"jsonrpc", "id", "error", "result"}
        assert reply["id"] == "no-use"
        return reply["error"]

    async def submit_saga(self, **changes: Any) -> Any:
        method = self._participant.method
        saga = {
            "trans_type": "saga",
            "protocol": "json-rpc",
            "steps": [
                {"action": method("out"), "compensate": method("out-revert")},
                {"action": method("in"), "compensate": method("in-revert")},
            ],
            "payloads": ['{"amount":30}', '{"amount":30}'],
        }
        return await self.call("submit", **(saga | changes))

    async def register(self, branch_id: str, name: str) -> Any:
        return await self.call(
            "registerBranch",
            trans_type="tcc",
            branch_id=branch_id,
            data='{"amount":30}',
            confirm=self._participant.method(f"{name}-confirm"),
            cancel=self._participant.method(f"{name}-cancel"),
        )

    async def query(self) -> dict[str, Any]:
        answer = await self._http.get("/api/dtmsvr/query", params={"gid": self.gid})
        found: dict[str, Any] = answer.json()
        return found

    async def ends(self, status: str, rows: str) -> dict[str, Any]:
        """Wait for a status, and check the rows."""
        async with asyncio.timeout(15):
            while (found := await self.query())["transaction"]["status"] != status:
                await asyncio.sleep(0.02)
        assert "".join(LETTERS[branch["status"]] for branch in found["branches"]) == rows
        transaction: dict[str, Any] = found["transaction"]
        return transaction

    async def cron(self) -> None:
        """What a turn of the cron does for this transaction: it becomes due once it is parked."""
        async with asyncio.timeout(15):
            while not (await self.query())["transaction"].get("next_cron_time"):
                await asyncio.sleep(0.02)
        answer = await self._http.post("/api/dtmsvr/resetNextCronTime", json={"gid": self.gid})
        assert answer.status_code == 200

    async def outcomes(self, op: str) -> list[str]:
        """What the calls of the operations of this name came to."""
        branches = (await self.query())["branches"]
        return [attempt["outcome"] for branch in branches if branch["op"] == op for attempt in branch["attempts"]]


on_sqlite = pytest.mark.parametrize("server", ["sqlite"], indirect=True, scope="module")
"""For what takes long, or does not get as far as the store."""


@pytest.fixture
async def participant() -> AsyncIterator[JsonRpcParticipant]:
    async with JsonRpcParticipant() as made:
        yield made


@pytest.fixture
async def http(server: Process) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def dtm(http: httpx.AsyncClient, participant: JsonRpcParticipant) -> Dtm:
    return Dtm(http, participant)


# -- sagas -------------------------------------------------------------------------------


async def test_a_whole_saga(dtm: Dtm, participant: JsonRpcParticipant) -> None:
    assert await dtm.submit_saga(wait_result=True) is None

    transaction = await dtm.ends("succeed", "PSPS")
    assert transaction["protocol"] == "json-rpc"
    assert participant.calls(dtm.gid) == ["out", "in"]
    assert participant.sent(dtm.gid, "in") == {
        "jsonrpc": "2.0",
        "id": f"{dtm.gid}/saga/02/action",
        "method": "Busi.in",
        "params": {"amount": 30, "gid": dtm.gid, "trans_type": "saga", "branch_id": "02", "op": "action"},
    }


async def test_a_failure_turns_it_round(dtm: Dtm, participant: JsonRpcParticipant) -> None:
    participant.script("in", FAILURE)

    refused = await dtm.submit_saga(wait_result=True)

    expected = f"url:{participant.method('in')} return failed: no money FAILURE"
    assert refused == {"code": -32901, "message": expected}
    transaction = await dtm.ends("failed", "SSSF")
    assert transaction["rollback_reason"] == expected
    assert participant.calls(dtm.gid) == ["out", "in", "in-revert", "out-revert"]


async def test_error_and_ongoing_are_repeated(dtm: Dtm, participant: JsonRpcParticipant) -> None:
    participant.script("out", ERROR, ONGOING, (200, "<html>"))

    refused = await dtm.submit_saga(wait_result=True)
    assert refused["code"] == -32902
    assert dtm.gid in refused["message"]
    await participant.called("out", dtm.gid, times=2)
    await dtm.cron()

    await dtm.ends("succeed", "PSPS")
    assert await dtm.outcomes("action") == ["unknown", "ongoing", "unknown", "success", "success"]


async def test_steps_over_http_and_json_rpc_are_mixed(dtm: Dtm, participant: JsonRpcParticipant) -> None:
    steps = [{"action": f"{participant.url}/plain"}, {"action": participant.method("in")}]

    assert await dtm.submit_saga(steps=steps, payloads=["[1]", "{}"], wait_result=True) is None

    await dtm.ends("succeed", "PSPS")
    assert participant.calls(dtm.gid) == ["plain", "in"]
    [plain, _] = [call for call in participant.received if call.gid == dtm.gid]
    assert plain.body == b"[1]"


async def test_without_the_protocol_branches_are_called_over_http(dtm: Dtm, participant: JsonRpcParticipant) -> None:
    assert await dtm.submit_saga(protocol="", wait_result=True) is None

    assert (await dtm.ends("succeed", "PSPS"))["protocol"] == "http"
    [out, _] = [call for call in participant.received if call.query.get("gid") == dtm.gid]
    assert out.body == b'{"amount":30}'


async def test_a_submit_after_the_end_is_a_failure(dtm: Dtm) -> None:
    await dtm.submit_saga(wait_result=True)

    assert await dtm.submit_saga() == {"code": -32901, "message": "current status 'succeed', cannot sumbmit. FAILURE"}


async def test_payloads_that_are_no_params_are_refused(dtm: Dtm) -> None:
    refused = await dtm.submit_saga(payloads=["{}", "[1]"])

    assert refused["code"] == -32603
    assert refused["message"].startswith("the payload of branch 02 is JSON, but not an object;")
    assert (await dtm.query())["transaction"] is None


# -- tcc ---------------------------------------------------------------------------------


async def prepare(dtm: Dtm) -> None:
    assert await dtm.call("prepare", trans_type="tcc", protocol="json-rpc") is None
    assert await dtm.register("01", "out") is None
    assert await dtm.register("02", "in") is None


async def test_a_whole_tcc(dtm: Dtm, participant: JsonRpcParticipant) -> None:
    await prepare(dtm)
    assert await dtm.call("submit", trans_type="tcc", protocol="json-rpc") is None

    await dtm.ends("succeed", "PSPS")
    assert participant.calls(dtm.gid) == ["in-confirm", "out-confirm"]
    assert participant.sent(dtm.gid, "out-confirm")["params"] == {
        "amount": 30,
        "gid": dtm.gid,
        "trans_type": "tcc",
        "branch_id": "01",
        "op": "confirm",
    }


async def test_an_aborted_tcc_cancels(dtm: Dtm, participant: JsonRpcParticipant) -> None:
    participant.script("out-cancel", ONGOING, FAILURE)
    await prepare(dtm)
    assert await dtm.call("abort", trans_type="tcc", rollback_reason="no money FAILURE") is None
    await participant.called("out-cancel", dtm.gid)
    await dtm.cron()

    transaction = await dtm.ends("failed", "SPSP")
    assert transaction["rollback_reason"] == "no money FAILURE"
    assert await dtm.outcomes("cancel") == ["ongoing", "failure", "success", "success"]


async def test_a_branch_without_params_is_refused(dtm: Dtm, participant: JsonRpcParticipant) -> None:
    await prepare(dtm)

    refused = await dtm.call(
        "registerBranch", trans_type="tcc", branch_id="03", data="x", confirm=participant.method("c"), cancel=""
    )

    assert refused["code"] == -32603
    assert refused["message"].startswith("data of branch 03 is not JSON")


async def test_what_is_not_prepared_takes_no_branches(dtm: Dtm) -> None:
    expected = {"code": -32901, "message": f"no trans with gid: {dtm.gid} status: prepared found FAILURE"}

    assert await dtm.register("01", "out") == expected


# -- messages ----------------------------------------------------------------------------


async def submit_message(dtm: Dtm, participant: JsonRpcParticipant, method: str = "submit", **changes: Any) -> Any:
    """A message of an HTTP step and a JSON-RPC step."""
    message = {
        "trans_type": "msg",
        "protocol": "json-rpc",
        "steps": [{"action": f"{participant.url}/plain"}, {"action": participant.method("in")}],
        "payloads": ['{"amount":30}', '{"amount":30}'],
        "query_prepared": participant.method("query"),
        "retry_interval": 60,
    }
    return await dtm.call(method, **(message | changes))


async def test_a_whole_message(dtm: Dtm, participant: JsonRpcParticipant) -> None:
    assert await submit_message(dtm, participant, "prepare") is None
    assert await submit_message(dtm, participant) is None

    await dtm.ends("succeed", "SS")

    assert participant.calls(dtm.gid) == ["plain", "in"]
    assert participant.sent(dtm.gid, "in")["params"]["op"] == "action"
    assert await submit_message(dtm, participant) == {
        "code": -32901,
        "message": "current status 'succeed', cannot sumbmit. FAILURE",
    }


async def test_whatever_an_action_answers_it_is_repeated(dtm: Dtm, participant: JsonRpcParticipant) -> None:
    participant.script("in", ERROR, ONGOING, FAILURE)
    assert await submit_message(dtm, participant) is None

    for calls in (1, 2, 3):
        await participant.called("in", dtm.gid, times=calls)
        await dtm.cron()

    await dtm.ends("succeed", "SS")
    assert await dtm.outcomes("action") == ["success", "unknown", "ongoing", "failure", "success"]


@on_sqlite
@pytest.mark.parametrize("answer", [ERROR, ONGOING, FAILURE], ids=["error", "ongoing", "failure"])
async def test_the_check_back_is_asked_over_json_rpc(dtm: Dtm, participant: JsonRpcParticipant, answer: Answer) -> None:
    participant.script("query", answer)
    assert await submit_message(dtm, participant, "prepare", timeout_to_fail=1) is None
    await participant.called("query", dtm.gid)
    assert participant.sent(dtm.gid, "query")["params"] == {
        "gid": dtm.gid,
        "trans_type": "msg",
        "branch_id": "00",
        "op": "msg",
    }
    if answer is FAILURE:
        await dtm.ends("failed", "PP")
        return
    await dtm.cron()
    await dtm.ends("succeed", "SS")


# -- the abnormal cases ------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param("hello", 400, -32700, id="plain text"),
        pytest.param('{"jsonrpc":"1.0","id":"1","method":"newGid"}', 200, -32600, id="jsonrpc 1.0"),
        pytest.param('{"jsonrpc":"2.0","id":"1","method":"nope"}', 200, -32601, id="unknown method"),
        pytest.param(
            '{"jsonrpc":"2.0","id":"1","method":"registerBranch","params":{"gid":"g","trans_type":"nope"}}',
            200,
            -32603,
            id="unknown type",
        ),
    ],
)
async def test_abnormal(http: httpx.AsyncClient, body: str, status: int, code: int) -> None:
    answer = await http.post("/api/json-rpc", content=body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@on_sqlite
async def test_a_new_gid_with_strange_params(http: httpx.AsyncClient) -> None:
    body = {"jsonrpc": "2.0", "id": 5, "method": "newGid", "params": "strange"}

    reply = (await http.post("/api/json-rpc", json=body)).json()

    assert (reply["id"], reply["error"]) == (5, None)
    assert len(reply["result"]["gid"]) == 22
