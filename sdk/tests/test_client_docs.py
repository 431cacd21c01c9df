"""The code in the READMEs and the guide runs as it is printed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from sdk.tests.client_support import Answer, ScriptedCoordinator, scripted_coordinator

ROOT = Path(__file__).parents[2]
FRONT_PAGE = ROOT / "README.md"
README = ROOT / "sdk" / "README.md"
GUIDE = ROOT / "docs" / "sdk.md"
STOPPED = Answer(409, {"message": "no stock FAILURE"})
FAILED = Answer(
    200,
    {"branches": [], "transaction": {"gid": "g", "trans_type": "saga", "status": "failed", "rollback_reason": "sold"}},
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
    return [compile(source, str(document), "exec") for source in sources]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedCoordinator]:
    with scripted_coordinator() as (server, url):
        monkeypatch.setenv("TXCOORD_URL", url)
        yield server
        assert not server.unused


def test_the_readme_runs(server: ScriptedCoordinator, capsys: pytest.CaptureFixture[str]) -> None:
    sync, async_ = blocks(README)
    server.answers("/submit", STOPPED, Answer(), Answer())
    server.answers("/query", FAILED)
    names: dict[str, Any] = {}

    exec(sync, names)
    exec(sync, names)
    exec(async_, names)
    asyncio.run(names["buy"]())

    assert capsys.readouterr().out == "not bought, and everything is undone: sold\nbought\n"


def test_the_front_page_runs(server: ScriptedCoordinator, capsys: pytest.CaptureFixture[str]) -> None:
    saga, endpoint = blocks(FRONT_PAGE)
    server.answers("/submit", STOPPED, Answer())
    server.answers("/query", FAILED)
    names: dict[str, Any] = {}

    exec(saga, names)
    exec(saga, names)
    exec(endpoint, names)

    assert capsys.readouterr().out == "not bought, and everything is undone: sold\nbought\n"
    assert "/deduct" in names["app"].openapi()["paths"]


def test_the_guide_runs(server: ScriptedCoordinator, capsys: pytest.CaptureFixture[str]) -> None:
    first, order, errors, looking, lifespan, *_ = blocks(GUIDE)
    server.answers("/submit", STOPPED, STOPPED)
    server.answers("/query", FAILED, FAILED, RUNNING)
    server.answers("/all", PAGE)
    server.answers("/resetNextCronTime", Answer())
    names: dict[str, Any] = {}

    exec(first, names)
    with names["Coordinator"]() as names["coordinator"]:
        for block in (order, errors, looking):
            exec(block, names)
    exec(lifespan, names)

    assert names["answer"] == (409, "sold")
    assert "unknown 500 oops" in capsys.readouterr().out
