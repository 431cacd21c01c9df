"""The code in the READMEs and the guide runs as it is printed."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from types import CodeType
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from sqlalchemy import Engine, create_engine, text

from sdk.tests.client_support import Answer, ScriptedCoordinator, scripted_coordinator
from txcoord_sdk.barrier import create_table_sync
from txcoord_sdk.fastapi import Branch, BranchRoute

ROOT = Path(__file__).parents[2]
FRONT_PAGE = ROOT / "README.md"
README = ROOT / "sdk" / "README.md"
TCC = ROOT / "docs" / "tcc.md"
GUIDE = ROOT / "docs" / "sdk.md"
MESSAGES = ROOT / "docs" / "msg.md"
SAGAS = ROOT / "docs" / "saga.md"
STOPPED = Answer(409, {"message": "no stock FAILURE"})
FAILED = Answer(
    200,
    {
        "branches": [],
        "transaction": {
            "gid": "g",
            "trans_type": "saga",
            "status": "failed",
            "rollback_reason": "url:http://s return failed: sold FAILURE",
        },
    },
)
RUNNING = Answer(
    200,
    {
        "transaction": {"gid": "g", "trans_type": "saga", "status": "submitted"},
        "branches": [
            {
                "branch_id": "01",
                "op": "action",
                "status": "prepared",
                "attempts": [{"at": "2025-01-02T03:04:05Z", "outcome": "unknown", "code": 500, "detail": "oops"}],
            }
        ],
    },
)
PAGE = Answer(200, {"transactions": [{"gid": "g", "trans_type": "saga", "status": "submitted"}], "next_position": ""})


def blocks(document: Path) -> list[CodeType]:
    sources = re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL)
    return [compile(dedent(source), str(document), "exec") for source in sources]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedCoordinator]:
    with scripted_coordinator() as (server, url):
        monkeypatch.setenv("TXCOORD_URL", url)
        yield server
        assert not server.unused


def test_the_readme_runs(server: ScriptedCoordinator, capsys: pytest.CaptureFixture[str]) -> None:
    sync, async_, endpoint = blocks(README)
    server.answers("/submit", STOPPED, Answer(), Answer())
    server.answers("/query", FAILED)
    names: dict[str, Any] = {}

    exec(sync, names)
    exec(sync, names)
    exec(async_, names)
    asyncio.run(names["buy"]())
    exec(endpoint, names)

    assert "/deduct" in names["app"].openapi()["paths"]
    assert capsys.readouterr().out == "not bought, and everything is undone: sold\nbought\n"


def test_the_front_page_runs(
    server: ScriptedCoordinator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saga, endpoint = blocks(FRONT_PAGE)
    monkeypatch.setenv("DATABASE_URL", "mysql+aiomysql://storage:secret@localhost/storage")
    server.answers("/submit", STOPPED, Answer())
    server.answers("/query", FAILED)
    names: dict[str, Any] = {}

    exec(saga, names)
    exec(saga, names)
    exec(endpoint, names)

    first, second = (request.body["gid"] for request in server.requests if request.path.endswith("/submit"))
    said = capsys.readouterr().out
    assert said == f"{first} not bought, and everything is undone: sold\n{second} bought\n"
    assert "/deduct" in names["app"].openapi()["paths"]


@pytest.fixture
def users_database(tmp_path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{tmp_path}/users.db")
    with engine.begin() as connection:
        connection.execute(text("create table users (name text)"))
        create_table_sync(connection)
    return engine


def test_the_guide_runs(
    server: ScriptedCoordinator, all_hosts_are_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    first, tcc, xa, message, errors, looking, lifespan, *_ = blocks(GUIDE)
    server.answers("/submit", STOPPED, *[Answer()] * 3, STOPPED)
    for path in ("/withdraw", "/deposit"):
        server.answers(path, Answer())
    server.answers("/prepare", *[Answer()] * 2)
    server.answers("/registerBranch", Answer(), Answer())
    server.answers("/try", Answer(), Answer())
    server.answers("/query", FAILED, FAILED, RUNNING)
    server.answers("/all", PAGE)
    server.answers("/resetNextCronTime", Answer())
    names: dict[str, Any] = {}

    exec(first, names)
    with names["Coordinator"]() as names["coordinator"]:
        for block in (tcc, xa, message, errors, looking):
            exec(block, names)
    exec(lifespan, names)

    assert names["answer"] == (409, "sold")
    assert "unknown 500 oops" in capsys.readouterr().out


def test_the_page_on_messages_runs(
    server: ScriptedCoordinator, users_database: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    register, check_back, topics = blocks(MESSAGES)
    monkeypatch.chdir(tmp_path)
    server.answers("/prepare", Answer())
    server.answers("/submit", Answer(), Answer())
    for path in ("/subscribe", "/unsubscribe", "/topic/registered"):
        server.answers(path, Answer())
    names: dict[str, Any] = {}

    exec(register, names)
    with names["coordinator"]:
        gid = names["register"]("ada")
        exec(check_back, names)
        exec(topics, names)

    query = {"gid": gid, "trans_type": "msg", "branch_id": "00", "op": "msg"}
    assert asyncio.run(asked(names["users"], query)) == {"dtm_result": "SUCCESS"}
    with users_database.connect() as connection:
        assert connection.execute(text("select name from users")).all() == [("ada",)]
    names["engine"].dispose()


async def asked(app: Any, query: dict[str, str]) -> Any:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://users") as client:
        return (await client.get("/query-prepared", params=query)).json()


@pytest.fixture
def all_hosts_are_here(monkeypatch: pytest.MonkeyPatch, server: ScriptedCoordinator) -> None:
    """Let the scripted coordinator be every participant as well."""
    for kind in (httpx.Client, httpx.AsyncClient):
        monkeypatch.setattr(kind, "build_request", _building_for_here(kind.build_request))


def _building_for_here(build_request: Callable[..., httpx.Request]) -> Callable[..., httpx.Request]:
    def build(self: object, method: str, url: httpx.URL, **kwargs: Any) -> httpx.Request:
        here = httpx.URL(os.environ["TXCOORD_URL"])
        return build_request(self, method, httpx.URL(url).copy_with(host=here.host, port=here.port), **kwargs)

    return build


def test_the_page_on_sagas_runs(server: ScriptedCoordinator, capsys: pytest.CaptureFixture[str]) -> None:
    sync, async_, endpoints, order = blocks(SAGAS)
    server.answers("/submit", STOPPED, *[Answer()] * 3)
    server.answers("/query", FAILED)
    router = APIRouter(route_class=BranchRoute)
    names: dict[str, Any] = {"router": router, "Branch": Branch, "Deduction": dict}

    exec(sync, names)
    exec(sync, names)
    exec(async_, names)
    asyncio.run(names["buy"]())
    exec(endpoints, names)
    exec(order, names)

    assert capsys.readouterr().out == "not bought: sold\nbought\n"
    assert [getattr(route, "path", "") for route in router.routes] == ["/deduct", "/deduct-compensate"]
    assert '"orders"' in server.requests[-1].body["custom_data"]


def test_the_page_on_tcc_runs(
    server: ScriptedCoordinator, all_hosts_are_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sync, async_, *endpoints = blocks(TCC)
    server.answers("/prepare", Answer(), Answer(), Answer())
    server.answers("/registerBranch", *[Answer()] * 5)
    server.answers("/order-create-try", Answer(), Answer())
    server.answers("/deduct-try", Answer(409, {"message": "sold"}), Answer(), Answer(200, {"left": 3}))
    server.answers("/abort", Answer())
    server.answers("/submit", Answer(), Answer())
    router = APIRouter(route_class=BranchRoute)
    names: dict[str, Any] = {"router": router, "Branch": Branch, "Deduction": dict, "Parcel": dict}

    exec(sync, names)
    exec(sync, names)
    exec(async_, names)
    left = asyncio.run(names["buy"]())
    for block in endpoints:
        exec(block, names)

    assert capsys.readouterr().out == "not bought: sold\nbought\n"
    assert left == {"left": 3}
    assert [getattr(route, "path", "") for route in router.routes] == ["/deduct-try", "/parcel-try"]
