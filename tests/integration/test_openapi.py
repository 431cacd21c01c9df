"""A running coordinator keeps to its OpenAPI document, whatever is sent to it; and nothing that it took is stuck."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.harness import Process, coordinator, store_for
from tests.integration.rubbish import Rubbish, assert_nothing_is_stuck
from txcoord.api.openapi import document
from txcoord.protocol import JSON_RPC_PATH

PARTICIPANT = Rubbish()


def _closed(document: Any) -> Any:
    """The document with no key in an answer but those that it names."""
    for name in ("Success", "Failure", "Ongoing", "Error", "Attempt", "Transaction", "BranchOp", "Found", "Page"):
        document["components"]["schemas"][name]["additionalProperties"] = False
    return document


schemathesis.openapi.format("gid", st.uuids().map(str) | st.text(min_size=1, max_size=128))
schemathesis.openapi.format(
    "branch-url",
    st.sampled_from(["ok", "no", "later", "words", "text?method=Do"]).map(PARTICIPANT.url)
    | st.sampled_from(["", "http://127.0.0.1:1/nobody", "127.0.0.1:1/a.B/C", "topic://order-created"]),
)
schema = schemathesis.openapi.from_dict(_closed(document()))

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module", params=["sqlite", "mysql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("coordinator")
    process = coordinator(store_for(request, folder), folder, TXCOORD_MAX_BODY_BYTES="100000", TXCOORD_MAX_WAIT_S="0.3")
    with PARTICIPANT.serving():
        try:
            process.start()
            yield process
            # Here and not in a test, which might run elsewhere than those that sent the rubbish.
            assert_nothing_is_stuck(process)
        finally:
            process.close()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        yield made


@schema.parametrize()
@settings(max_examples=10, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_is_answered_as_documented(case: Case, server: Process, session: requests.Session) -> None:
    # JSON-RPC says in a body of status 200 what it refuses; queries take an empty parameter for an absent one.
    is_strict = case.method == "POST" and case.path != JSON_RPC_PATH
    checks = [*CHECKS, negative_data_rejection] if is_strict else CHECKS
    case.call_and_validate(base_url=server.url, session=session, timeout=20, checks=checks)


def test_the_examples_can_be_sent_as_they_stand_one_after_the_other(tmp_path: Path) -> None:
    process = coordinator("memory://", tmp_path, TXCOORD_MAX_WAIT_S="0.3")
    answered: dict[str, list[int]] = {}
    try:
        process.start()
        with httpx.Client(base_url=process.url, timeout=20) as http:
            subscriber = {"topic": "order-created", "url": "http://mail:8083/send"}
            assert http.post("/api/dtmsvr/subscribe", params=subscriber).status_code == 200
            for path, operations in document()["paths"].items():
                for content in operations.get("post", {}).get("requestBody", {}).get("content", {}).values():
                    for example in content["examples"].values():
                        answer = http.post(path, json=example["value"])
                        answered.setdefault(operations["post"]["operationId"], []).append(answer.status_code)
    finally:
        process.close()

    # Nobody is there to be called: who waits for the result is told that it goes on.
    assert answered == {
        "prepare": [200, 200, 200],
        "prepareWorkflow": [200],
        "registerBranch": [200, 200, 200],
        "submit": [425, 200, 425, 200, 200, 200, 200],
        "abort": [409],
        "forceStop": [200],
        "resetNextCronTime": [200],
        "registerTccBranch": [409, 409, 409],
        "registerXaBranch": [409, 409, 409],
        "jsonRpc": [200, 200],
    }
