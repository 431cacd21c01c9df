"""The example in docs/barrier.md runs as it is printed."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel

from txcoord_sdk.barrier import BranchBarrier, Passage
from txcoord_sdk.branch import BranchFailed
from txcoord_sdk.fastapi import Branch, BranchRoute

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


class Deduction(BaseModel):
    id: int
    quantity: int


async def test_the_examples_for_redis_do_the_same_there(redis_url: str) -> None:
    blocks = [
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "redis_call" in block
    ]
    first, second = blocks
    router = APIRouter(route_class=BranchRoute)
    names: dict[str, Any] = {"router": router, "Branch": Branch, "Deduction": Deduction}
    exec(compile(first.replace("Redis()", f"Redis.from_url({redis_url!r})"), str(PAGE), "exec"), names)
    exec(compile(second, str(PAGE), "exec"), names)
    app = FastAPI()
    app.include_router(router)
    store = names["client"]
    await store.set("stock:3", 108)
    await store.hset("stock:4", "free", 5)

    async def call(path: str, *, gid: str, op: str, quantity: int) -> int:
        query = {"gid": gid, "trans_type": "saga", "branch_id": "01", "op": op}
        answer = await client.post(path, params=query, json={"id": 3, "quantity": quantity})
        return answer.status_code

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://storage") as client:
        assert [await call("/deduct", gid="g1", op="action", quantity=108) for _ in range(2)] == [200, 200]
        assert await store.get("stock:3") == b"0"
        assert await call("/deduct", gid="g2", op="action", quantity=1) == 409
        assert await call("/deduct-compensate", gid="g2", op="compensate", quantity=1) == 200
        assert await call("/deduct-compensate", gid="g1", op="compensate", quantity=108) == 200
        assert await store.get("stock:3") == b"108"

    order = Deduction(id=4, quantity=5)
    barrier = BranchBarrier("tcc", "g3", "01", "try")
    await names["reserve"](order, barrier)
    assert await store.hgetall("stock:4") == {b"free": b"0", b"reserved": b"5"}
    with pytest.raises(BranchFailed, match="only 0 left"):
        await names["reserve"](order, barrier)
    again = BranchBarrier("tcc", "g3", "01", "try")
    assert (await again.redis_call(store, names["LuaWork"]("", ["stock:4"]))).passage is Passage.DUPLICATE
    await store.aclose()
