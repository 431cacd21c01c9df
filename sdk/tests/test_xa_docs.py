"""The code in docs/xa.md runs as it is printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from sdk.tests.client_support import Answer, ScriptedCoordinator, scripted_coordinator
from sdk.tests.xa_support import Ledger, over

PAGE = Path(__file__).parents[2] / "docs" / "xa.md"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ScriptedCoordinator, str]]:
    with scripted_coordinator() as (server, url):
        monkeypatch.setenv("TXCOORD_URL", url)
        yield server, url
        assert not server.unused


def blocks() -> list[Any]:
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [compile(block, str(PAGE), "exec") for block in found]


def test_the_initiator(served: tuple[ScriptedCoordinator, str], capsys: pytest.CaptureFixture[str]) -> None:
    server, _ = served
    server.answers("/prepare", Answer(), Answer())
    server.answers("/abort", Answer())
    server.answers("/submit", Answer())
    initiator = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert initiator is not None
    here = initiator[1].replace("http://127.0.0.1:8091", served[1]).replace("http://127.0.0.1:8092", served[1])

    server.answers("/withdraw", Answer(409, {"message": "not enough money"}))
    exec(compile(here, str(PAGE), "exec"), {})
    server.answers("/withdraw", Answer())
    server.answers("/deposit", Answer())
    exec(compile(here, str(PAGE), "exec"), {})

    assert capsys.readouterr().out == "not moved: not enough money\nmoved\n"


async def test_the_participant(
    served: tuple[ScriptedCoordinator, str], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, coordinator = served
    ledger = Ledger(postgres_url)
    ledger.run("create table account (id int primary key, balance int not null)")
    ledger.run("insert into account values (1, 100)")
    monkeypatch.setenv("DATABASE_URL", over(postgres_url, "asyncpg"))
    names: dict[str, Any] = {}
    exec(blocks()[1], names)
    gid = uuid4().hex

    async def call(op: str, branch_id: str, body: object = None, **query: str) -> httpx.Response:
        query |= {"gid": gid, "trans_type": "xa", "branch_id": branch_id, "op": op}
        return await client.post("/withdraw", params=query, json=body)

    def balance() -> int:
        return int(ledger.run("select balance from account")[0][0])

    action = {"dtm": f"{coordinator}/api/dtmsvr", "phase2_url": "http://bank/withdraw"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(names["app"]), base_url="http://bank") as client:
        server.answers("/registerBranch", Answer(), Answer())
        assert (await call("action", "01", {"account": 1, "amount": 30}, **action)).json() == {"dtm_result": "SUCCESS"}
        assert balance() == 100
        assert (await call("commit", "01")).json() == {"dtm_result": "SUCCESS"}
        assert balance() == 70
        refused = await call("action", "02", {"account": 1, "amount": 71}, **action)
        assert (refused.status_code, refused.json()["message"]) == (409, "not enough money")
        assert (await call("action", "03", {"account": 1, "amount": 70}, **action)).status_code == 200
        assert (await call("rollback", "03")).status_code == 200
        assert (balance(), ledger.prepared) == (70, [])

        registered = [request.body for request in server.requests]
        assert registered[0] == {"gid": gid, "trans_type": "xa", "branch_id": "01", "url": "http://bank/withdraw"}
        for wrong in (
            await call("try", "04"),
            await call("action", "04", {}),
            await client.post("/withdraw", params={"gid": gid}),
        ):
            assert wrong.status_code == 400, wrong.text
        server.answers("/registerBranch", Answer(409, {"message": "too late FAILURE"}))
        server.answers("/query", Answer(200, {"transaction": None, "branches": None}))
        late = await call("action", "05", {"account": 1, "amount": 1}, **action)
        assert (late.status_code, balance(), ledger.prepared) == (409, 70, [])
    await names["engine"].dispose()
