"""Participants that answer nonsense: it decides nothing and kills nothing, and when they are well again all goes on.

Over HTTP and JSON-RPC, at each point where a participant is asked; over gRPC see test_grpc_dispatch.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e.harness import Process, coordinator
from tests.integration.rubbish import NO_JSON_RPC, NONSENSE, Rubbish


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder: Path = tmp_path_factory.mktemp("coordinator")
    process = coordinator(
        f"sqlite:///{folder}/txcoord.db",
        folder,
        # So that a participant that is well again is called, whatever it answered before.
        TXCOORD_BREAKER_FAILURES="1000000",
    )
    try:
        process.start()
        yield process
        log = process.log.read_text()
        assert "unexpected error" not in log
        assert "Traceback" not in log
    finally:
        process.close()


@pytest.fixture
def http(server: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/api/dtmsvr", timeout=20) as client:
        yield client


@pytest.fixture
def participant() -> Iterator[Rubbish]:
    rubbish = Rubbish()
    with rubbish.serving():
        yield rubbish


class Transaction:
    def __init__(self, http: httpx.Client, pattern: str, protocol: str, url: str) -> None:
        self._http = http
        self._common = {"gid": f"g-{uuid4().hex}", "trans_type": pattern}
        self._protocol = protocol
        self.url = url

    def post(self, operation: str, **body: Any) -> None:
        options = {} if operation == "registerBranch" else {"protocol": self._protocol}
        answer = self._http.post(f"/{operation}", json={**self._common, **options, **body})
        assert answer.status_code == 200, answer.text

    def status(self) -> str:
        status: str = self._found()["transaction"]["status"]
        return status

    def outcomes(self) -> set[str]:
        """Of the calls that were made for it."""
        found = self._found()
        questions = [found["transaction"].get(name, {}) for name in ("check_back", "resume")]
        return {call["outcome"] for op in (*found["branches"], *questions) for call in op.get("attempts", ())}

    def wait_until(self, is_so: Callable[[Transaction], bool]) -> None:
        deadline = time.monotonic() + 30
        while not is_so(self):
            assert time.monotonic() < deadline, (self.url, self._found())
            time.sleep(0.05)

    def _found(self) -> Any:
        return self._http.get("/query", params={"gid": self._common["gid"]}).json()


def _saga_action(tx: Transaction) -> None:
    tx.post("submit", steps=[{"action": tx.url}], payloads=["{}"])


def _saga_compensation(tx: Transaction) -> None:
    failing = tx.url.rpartition("/")[0] + "/no"
    tx.post("submit", steps=[{"action": failing, "compensate": tx.url}], payloads=["{}"])


def _tcc_confirm(tx: Transaction) -> None:
    tx.post("prepare")
    tx.post("registerBranch", branch_id="01", confirm=tx.url, cancel=tx.url)
    tx.post("submit")


def _tcc_cancel(tx: Transaction) -> None:
    tx.post("prepare")
    tx.post("registerBranch", branch_id="01", confirm=tx.url, cancel=tx.url)
    tx.post("abort")


def _xa_commit(tx: Transaction) -> None:
    tx.post("prepare")
    tx.post("registerBranch", branch_id="01", url=tx.url)
    tx.post("submit")


def _xa_rollback(tx: Transaction) -> None:
    tx.post("prepare")
    tx.post("registerBranch", branch_id="01", url=tx.url)
    tx.post("abort")


def _msg_action(tx: Transaction) -> None:
    tx.post("submit", steps=[{"action": tx.url}], payloads=["{}"])


def _msg_check_back(tx: Transaction) -> None:
    tx.post("prepare", query_prepared=tx.url, timeout_to_fail=1)


def _workflow_resume(tx: Transaction) -> None:
    tx.post("prepareWorkflow", query_prepared=tx.url, custom_data='{"name":"w","data":"e30="}', retry_interval=1)


@pytest.mark.parametrize("protocol", ["http", "json-rpc"])
@pytest.mark.parametrize(
    ("begin", "pattern", "during", "after"),
    [
        pytest.param(_saga_action, "saga", "submitted", "succeed", id="saga action"),
        pytest.param(_saga_compensation, "saga", "aborting", "failed", id="saga compensation"),
        pytest.param(_tcc_confirm, "tcc", "submitted", "succeed", id="tcc confirm"),
        pytest.param(_tcc_cancel, "tcc", "aborting", "failed", id="tcc cancel"),
        pytest.param(_xa_commit, "xa", "submitted", "succeed", id="xa commit"),
        pytest.param(_xa_rollback, "xa", "aborting", "failed", id="xa rollback"),
        pytest.param(_msg_action, "msg", "submitted", "succeed", id="message action"),
        pytest.param(_msg_check_back, "msg", "prepared", "succeed", id="message check-back"),
        pytest.param(_workflow_resume, "workflow", "prepared", "succeed", id="workflow resume"),
    ],
)
def test_nonsense_is_repeated_until_there_is_an_answer(
    http: httpx.Client,
    participant: Rubbish,
    protocol: str,
    begin: Callable[[Transaction], None],
    pattern: str,
    during: str,
    after: str,
) -> None:
    if protocol == "http":
        urls = [participant.url(name) for name in NONSENSE]
    else:
        urls = [participant.url(name) + "?method=Do" for name in (*NONSENSE, *NO_JSON_RPC)]
    started = [Transaction(http, pattern, protocol, url) for url in urls]
    for tx in started:
        begin(tx)

    # The action of a saga that is compensated has failed, as it should.
    taken_for = {"unknown", "failure"} if begin is _saga_compensation else {"unknown"}
    for tx in started:
        tx.wait_until(lambda it: "unknown" in it.outcomes())
        assert tx.outcomes() == taken_for, tx.url
        assert tx.status() == during

    participant.is_healed = True
    for tx in started:
        tx.wait_until(lambda it: "success" in it.outcomes())
        if pattern == "workflow":
            assert tx.status() == "prepared", "only its participant's report ends a workflow"
            tx.post("submit", req_extra={"status": "succeed"})
        tx.wait_until(lambda it: it.status() == after)
