"""The OpenAPI document leaves nothing out: no route, no field that is read, no key that is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.test_api_answers import FakeService, stored
from txcoord.api.http import HttpApi
from txcoord.api.openapi import document
from txcoord.api.views import branch_views, kv_view, stored_view
from txcoord.api.wire import decode_branch, decode_trans
from txcoord.model import Attempt, BranchOp, Op, OpStatus, Outcome, Pattern, Status
from txcoord.request import BranchRegistration, TransRequest
from txcoord.store.base import KeyValue

DOCUMENT = document()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    (method.upper(), path): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


@pytest.fixture
def api() -> HttpApi:
    return HttpApi(FakeService(), max_body_bytes=1000)


def test_every_route_is_described_and_nothing_else(api: HttpApi) -> None:
    assert set(OPERATIONS) == api.offered


async def test_it_is_served(api: HttpApi) -> None:
    transport = httpx.ASGITransport(app=api)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://coordinator") as http:
        answer = await http.get("/openapi.json")

    assert (answer.status_code, answer.json()) == (200, json.loads(json.dumps(DOCUMENT)))


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for operation in OPERATIONS.values()]

    assert len(set(names)) == len(names)


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].removeprefix("#/components/")
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_component_is_there_and_used() -> None:
    there = {f"{kind}/{name}" for kind, named in DOCUMENT["components"].items() for name in named}

    assert set(references(DOCUMENT)) == there


# -- requests -------------------------------------------------------------------------

TRANS = ["Saga", "Msg", "Tcc", "Xa", "Workflow", "WorkflowEnd", "Abort"]
BRANCHES = ["TccBranch", "XaBranch", "WorkflowStep"]


def properties(names: list[str]) -> set[str]:
    return {key for name in names for key in SCHEMAS[name]["properties"]}


def test_every_field_that_is_read_is_described() -> None:
    assert properties(TRANS) == set(TransRequest.__struct_fields__)
    assert properties(BRANCHES) == set(BranchRegistration.__struct_fields__)


EXAMPLES = [
    pytest.param(path, example["value"], id=f"{path} {name}")
    for (_, path), operation in OPERATIONS.items()
    for content in operation.get("requestBody", {}).get("content", {}).values()
    for name, example in content["examples"].items()
]


@pytest.mark.parametrize(("path", "example"), EXAMPLES)
def test_examples_are_of_their_schemas_and_can_be_read(path: str, example: dict[str, Any]) -> None:
    [schema] = [content["schema"] for content in OPERATIONS["POST", path]["requestBody"]["content"].values()]
    names = [reference.removeprefix("schemas/") for reference in references(schema)]
    fitting = [
        name
        for name in names
        if set(SCHEMAS[name].get("required", ())) <= set(example) <= set(SCHEMAS[name]["properties"])
        and SCHEMAS[name]["properties"].get("trans_type", {}).get("const") in (None, example.get("trans_type"))
    ]

    assert len(fitting) == 1
    body = json.dumps(example).encode()
    if names == BRANCHES:
        assert decode_branch(body).branch_id
    elif names != ["JsonRpcRequest"]:
        assert decode_trans(body).gid


# -- answers --------------------------------------------------------------------------


def test_every_key_that_is_answered_is_described() -> None:
    attempt = Attempt(at_us=1, duration_us=1, outcome=Outcome.UNKNOWN, code=500, detail="out of order")
    done = {"finished_us": 3, "attempts": (attempt,), "held_off": "left alone"}
    action = BranchOp(branch_id="01", op=Op.ACTION, url="u", payload=b"{}", status=OpStatus.SUCCEEDED, **done)
    questions = [
        BranchOp(branch_id="00", op=op, url="u", attempts=(attempt,), held_off="left alone")
        for op in (Op.MSG, Op.RESUME)
    ]
    found = [
        stored(
            owner=5,
            pattern=pattern,
            status=status,
            branches=(action, question),
            query_prepared="u",
            custom_data="{}",
            due_us=due_us,
            finished_us=4,
            rollback_reason="no money",
            result="e30=",
        )
        for pattern, question in zip((Pattern.MSG, Pattern.WORKFLOW), questions, strict=True)
        for status in (Status.SUCCEEDED, Status.FAILED)
        for due_us in (5, 253_402_300_799_000_000)
    ]
    [branch] = branch_views(found[0].tx)
    document_of_a_topic = KeyValue(id=1, category="topics", key="t", value="[]", version=1, created_us=1, updated_us=1)

    assert {key for one in found for key in stored_view(one)} == properties(["Transaction"])
    assert set(branch) == properties(["BranchOp"])
    assert set(branch["attempts"][0]) == properties(["Attempt"])
    assert set(kv_view(document_of_a_topic)) == properties(["KeyValue"])
