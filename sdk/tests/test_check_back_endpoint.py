"""The ready-made check-back endpoints."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiosqlite
import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from starlette.applications import Starlette

from sdk.tests.xa_support import over
from txcoord_sdk.barrier import BranchBarrier, create_table_at, create_table_sync
from txcoord_sdk.fastapi import query_prepared_router
from txcoord_sdk.starlette import query_prepared_route

TABLE = "made_barrier"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "users.db"
    with closing(sqlite3.connect(path)) as connection:
        for table in ("barrier", TABLE):
            create_table_sync(connection, table=table)
    return path


@asynccontextmanager
async def _connection_of(path: Path) -> Any:
    async with aiosqlite.connect(path) as connection:
        yield connection


SOURCES: dict[str, Callable[[Path], Any]] = {
    "engine": lambda path: create_engine(f"sqlite:///{path}"),
    "async engine": lambda path: create_async_engine(f"sqlite+aiosqlite:///{path}"),
    "sessions": lambda path: sessionmaker(create_engine(f"sqlite:///{path}")),
    "async sessions": lambda path: async_sessionmaker(create_async_engine(f"sqlite+aiosqlite:///{path}")),
    "connections": lambda path: lambda: closing(sqlite3.connect(path)),
    "async connections": lambda path: partial(_connection_of, path),
}


def starlette_app(source: Any, **options: Any) -> Any:
    return Starlette(routes=[query_prepared_route(source, **options)])


def fastapi_app(source: Any, **options: Any) -> Any:
    app = FastAPI()
    app.include_router(query_prepared_router(source, **options))
    return app


@pytest.fixture(params=[starlette_app, fastapi_app], ids=["starlette", "fastapi"])
def app_on(request: pytest.FixtureRequest) -> Callable[..., Any]:
    make: Callable[..., Any] = request.param
    return make


async def ask(app: Any, gid: str, *, op: str = "msg", path: str = "/query-prepared") -> httpx.Response:
    query = {"gid": gid, "trans_type": "msg", "branch_id": "00", "op": op}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://users") as client:
        return await client.get(path, params=query)


def commit(path: Path, gid: str, table: str = "barrier") -> None:
    with closing(sqlite3.connect(path)) as connection:
        BranchBarrier("msg", gid, "00", "msg", table=table).call_sync(connection, lambda _: None, commit=True)


@pytest.mark.parametrize("kind", SOURCES)
async def test_it_says_whether_the_local_transaction_has_committed(
    app_on: Callable[..., Any], path: Path, kind: str
) -> None:
    app = app_on(SOURCES[kind](path))
    commit(path, "committed")

    yes, no = await ask(app, "committed"), await ask(app, "never")

    assert (yes.status_code, yes.json()) == (200, {"dtm_result": "SUCCESS"})
    assert (no.status_code, no.json()["dtm_result"]) == (409, "FAILURE")


async def test_path_and_table_may_be_others(app_on: Callable[..., Any], path: Path) -> None:
    app = app_on(create_engine(f"sqlite:///{path}"), path="/asked", table=TABLE)
    commit(path, "g1", TABLE)
    assert (await ask(app, "g1", path="/asked")).status_code == 200


async def test_a_database_that_is_away_is_no_answer(app_on: Callable[..., Any], tmp_path: Path) -> None:
    app = app_on(create_engine(f"sqlite:///{tmp_path}/not/there.db"))
    assert (await ask(app, "g1")).status_code == 500


async def test_the_call_of_another_op_is_refused_and_leaves_nothing(app_on: Callable[..., Any], path: Path) -> None:
    app = app_on(create_engine(f"sqlite:///{path}"))
    assert (await ask(app, "g1", op="action")).status_code == 400
    commit(path, "g1")
    assert (await ask(app, "g1")).status_code == 200


BUSY: dict[str, tuple[str, Callable[[str], Any]]] = {
    "PyMySQL": ("mysql", lambda url: create_engine(over(url, "pymysql"), pool_size=1)),
    "aiomysql": ("mysql", lambda url: create_async_engine(over(url, "aiomysql"), poolclass=NullPool)),
    "psycopg": ("postgres", lambda url: create_engine(over(url, "psycopg"), poolclass=NullPool)),
    "asyncpg": ("postgres", lambda url: create_async_engine(over(url, "asyncpg"), poolclass=NullPool)),
    "asyncpg, pool": ("postgres", lambda url: lambda: asyncpg.create_pool(url, min_size=1, max_size=1)),
}


@asynccontextmanager
async def _lent(pools: Callable[[], Any]) -> Any:
    async with pools() as pool, pool.acquire() as connection:
        yield connection


@pytest.mark.parametrize("kind", BUSY)
async def test_a_local_transaction_that_is_under_way_is_not_waited_for_long(
    request: pytest.FixtureRequest, app_on: Callable[..., Any], kind: str
) -> None:
    database, make = BUSY[kind]
    url = request.getfixturevalue(f"shared_{database}_url")
    create_table_at(url)
    made = make(url)
    app = app_on(partial(_lent, made) if kind == "asyncpg, pool" else made)
    gid = f"gid-{uuid4().hex}"

    with create_engine(over(url, "pymysql" if database == "mysql" else "psycopg")).connect() as local:
        BranchBarrier("msg", gid, "00", "msg").call_sync(local, lambda _: None)
        under_way = await ask(app, gid)
        local.commit()
    done, never = await ask(app, gid), await ask(app, f"{gid}-2")

    assert (under_way.status_code, under_way.json()["dtm_result"]) == (425, "ONGOING")
    assert (done.status_code, never.status_code) == (200, 409)
    if isinstance(made, Engine) and database == "mysql":
        with made.connect() as connection:  # the same one, as its pool has no other
            assert connection.scalar(text("select @@session.innodb_lock_wait_timeout")) > 1


async def test_it_takes_none_of_the_loops_own_threads(app_on: Callable[..., Any], path: Path) -> None:
    app = app_on(create_engine(f"sqlite:///{path}"))
    commit(path, "g1")
    leave = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        threads.submit(leave.wait)
        try:
            assert (await asyncio.wait_for(ask(app, "g1"), 30)).status_code == 200
        finally:
            leave.set()
