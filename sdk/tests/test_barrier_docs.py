"""The example in docs/barrier.md runs as it is printed."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "barrier.md"


async def test_the_example_deducts_once_refuses_and_puts_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect(tmp_path / "storage.db") as connection:
        connection.execute("create table storages (id int primary key, inventory int)")
        connection.execute("insert into storages values (3, 108)")
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(compile(example, str(PAGE), "exec"), names)
    app = names["app"]

    async def call(path: str, *, gid: str, op: str, quantity: int) -> int:
        query = {"gid": gid, "trans_type": "saga", "branch_id": "01", "op": op}
        answer = await client.post(path, params=query, json={"id": 3, "quantity": quantity})
        return answer.status_code

    def inventory() -> int:
        [[left]] = connection.execute("select inventory from storages")
        return int(left)

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://storage") as client,
    ):
        assert [await call("/deduct", gid="g1", op="action", quantity=20) for _ in range(2)] == [200, 200]
        assert inventory() == 88
        assert await call("/deduct", gid="g2", op="action", quantity=89) == 409
        assert await call("/deduct-compensate", gid="g2", op="compensate", quantity=89) == 200
        assert inventory() == 88
        assert await call("/deduct-compensate", gid="g1", op="compensate", quantity=20) == 200
        assert inventory() == 108
    await names["engine"].dispose()
    connection.close()
