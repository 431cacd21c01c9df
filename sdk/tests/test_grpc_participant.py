"""Branch operations as gRPC methods: in both kinds of server, behind an interceptor and with a decorator."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sdk.tests.grpc_support import SERVICE, call, handler_of, serving_async, serving_threads
from sdk.tests.workflow_support import World
from txcoord_sdk import AsyncCoordinator, Outcome, Status, TryFailedError
from txcoord_sdk.barrier import BranchBarrier, Passage, create_table_sync
from txcoord_sdk.grpc import (
    QUERY_PREPARED,
    RESUME_WORKFLOW,
    AsyncBranchInterceptor,
    BranchContext,
    BranchFailed,
    BranchInterceptor,
    BranchOngoing,
    add_query_prepared,
    add_workflows,
    branch_context,
    branch_method,
)
from txcoord_sdk.workflow import AsyncWorkflow, AsyncWorkflows

OK, ABORTED, AGAIN = grpc.StatusCode.OK, grpc.StatusCode.ABORTED, grpc.StatusCode.FAILED_PRECONDITION
INTERNAL, INVALID, UNKNOWN = grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN
BRANCH = {"gid": "g1", "trans_type": "saga", "branch_id": "01", "op": "action"}

Serving = Callable[..., AbstractAsyncContextManager[str]]
Behaviour = Callable[[BranchContext], bytes]


def shown(branch: BranchContext) -> bytes:
    return f"{branch.trans_type} {branch.gid} {branch.branch_id} {branch.op} {branch.coordinator_url}".encode()


def in_loop(behave: Behaviour) -> Serving:
    async def deduct(_request: bytes, _context: Any) -> bytes:
        return behave(branch_context())

    return partial(serving_async, handler_of({"Deduct": deduct}), interceptors=[AsyncBranchInterceptor()])


def in_loops_thread(behave: Behaviour) -> Serving:
    def deduct(_request: bytes, _context: Any) -> bytes:
        return behave(branch_context())

    return partial(serving_async, handler_of({"Deduct": deduct}), interceptors=[AsyncBranchInterceptor()])


def in_thread(behave: Behaviour) -> Serving:
    def deduct(_request: bytes, _context: Any) -> bytes:
        return behave(branch_context())

    return partial(serving_threads, handler_of({"Deduct": deduct}), interceptors=[BranchInterceptor()])


def decorated_in_loop(behave: Behaviour) -> Serving:
    class Storage:
        @branch_method
        async def deduct(self, _request: bytes, _context: Any, branch: BranchContext) -> bytes:
            return behave(branch)

    return partial(serving_async, handler_of({"Deduct": Storage().deduct}))


def decorated_in_thread(behave: Behaviour) -> Serving:
    class Storage:
        @branch_method
        def deduct(self, _request: bytes, _context: Any, branch: BranchContext) -> bytes:
            return behave(branch)

    return partial(serving_threads, handler_of({"Deduct": Storage().deduct}))


@pytest.fixture(params=[in_loop, in_loops_thread, in_thread, decorated_in_loop, decorated_in_thread])
def served(request: pytest.FixtureRequest) -> Callable[[Behaviour], Any]:
    made: Callable[[Behaviour], Serving] = request.param
    return lambda behave: made(behave)()


async def deduct(target: str, **metadata: str) -> tuple[grpc.StatusCode, str, bytes]:
    return await call(target, f"{SERVICE}/Deduct", **metadata)


async def test_a_method_is_told_its_branch(served: Callable[[Behaviour], Any]) -> None:
    async with served(shown) as target:
        answer = await deduct(target, **BRANCH, dtm="127.0.0.1:36790")

    assert answer == (OK, "", b"saga g1 01 action grpc://127.0.0.1:36790")


@pytest.mark.parametrize("interceptors", [(), (AsyncBranchInterceptor(),)], ids=["alone", "interceptor"])
async def test_a_method_that_asks_twice_has_one_barrier(interceptors: Any) -> None:
    calls: list[Passage] = []

    async def deduct(_request: bytes, context: Any) -> bytes:
        with closing(sqlite3.connect(":memory:")) as connection:
            create_table_sync(connection)
            for _ in range(2):
                calls.append(branch_context(context).barrier.call_sync(connection, lambda _: None))
        return b""

    async with serving_async(handler_of({"Deduct": deduct}), interceptors=interceptors) as target:
        for _ in range(2):
            await call(target, f"{SERVICE}/Deduct", **BRANCH)
    assert calls == [Passage.RUN] * 4


async def test_a_method_of_a_thread_that_asks_twice_has_one_barrier_for_each_call() -> None:
    asked: list[BranchContext] = []

    def deduct(_request: bytes, context: Any) -> bytes:
        asked.extend(branch_context(context) for _ in range(2))
        return b""

    async with serving_threads(handler_of({"Deduct": deduct})) as target:
        for gid in ("g1", "g1", "g2"):
            await call(target, f"{SERVICE}/Deduct", **{**BRANCH, "gid": gid})
    assert [branch.gid for branch in asked] == ["g1"] * 4 + ["g2"] * 2
    assert len({id(branch.barrier) for branch in asked}) == 3


async def test_each_call_has_its_own_branch(served: Callable[[Behaviour], Any]) -> None:
    gids = [f"g{number}" for number in range(20)]

    async with served(shown) as target:
        answers = await asyncio.gather(*(deduct(target, **{**BRANCH, "gid": gid}) for gid in gids))

    assert [body.split()[1].decode() for _, _, body in answers] == gids


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        pytest.param(BranchFailed("no stock"), ABORTED, "no stock", id="failed"),
        pytest.param(BranchOngoing("come back"), AGAIN, "come back", id="ongoing"),
        pytest.param(
            TryFailedError("g1", Status.ABORTING, "no courier", "0101", "h:1/c.C/Try", Outcome.FAILURE),
            ABORTED,
            "no courier",
            id="refused further on",
        ),
        pytest.param(LookupError("secret"), INTERNAL, "the endpoint broke off; its log has the traceback", id="broken"),
        pytest.param(BranchFailed("ä" * 5000), ABORTED, "ä" * 500, id="a long reason"),
    ],
)
async def test_what_a_method_raises_becomes_an_answer(
    served: Callable[[Behaviour], Any], error: Exception, code: grpc.StatusCode, text: str
) -> None:
    def behave(_: BranchContext) -> bytes:
        raise error

    async with served(behave) as target:
        assert (await deduct(target, **BRANCH))[:2] == (code, text)


async def test_what_broke_off_is_in_the_log_with_its_gid(
    served: Callable[[Behaviour], Any], caplog: pytest.LogCaptureFixture
) -> None:
    def behave(_: BranchContext) -> bytes:
        raise LookupError("no such item")

    with caplog.at_level(logging.ERROR, logger="txcoord_sdk.branch"):
        async with served(behave) as target:
            await deduct(target, **BRANCH)

    [record] = [record for record in caplog.records if record.name == "txcoord_sdk.branch"]
    assert "gid=g1 trans_type=saga branch_id=01 op=action" in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("given", [{}, {"gid": "g1"}, {"gid": "g1", "trans_type": "saga", "op": "action"}])
async def test_a_call_that_is_none_of_a_branch_is_told_what_it_lacks(
    served: Callable[[Behaviour], Any], given: dict[str, str]
) -> None:
    async with served(shown) as target:
        code, text, _ = await deduct(target, **given)

    assert code is INVALID
    assert all(f"dtm-{name}" in text for name in BRANCH.keys() - given.keys())
    assert "a coordinator adds" in text


async def test_what_http_leaves_out_is_left_out_here(served: Callable[[Behaviour], Any]) -> None:
    async with served(shown) as target:
        assert (await deduct(target, **{**BRANCH, "gid": "g;1"}))[2].startswith(b"saga g1 ")


@pytest.mark.parametrize(("sent", "gid"), [("%C3%A4-1", "ä-1"), ("50%25", "50%25"), ("50%", "50%"), ("%E4", "%E4")])
async def test_a_gid_that_is_not_ascii_is_read_as_it_was_meant(
    served: Callable[[Behaviour], Any], sent: str, gid: str
) -> None:
    async with served(shown) as target:
        assert (await deduct(target, **{**BRANCH, "gid": sent}))[2].decode().split()[1] == gid


# -- what is no branch operation -----------------------------------------------------------


async def plain(_request: bytes, _context: Any) -> bytes:
    return b"as ever"


async def broken(_request: bytes, _context: Any) -> bytes:
    raise LookupError("of its own")


async def chosen(_request: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.NOT_FOUND, "no such item")
    raise AssertionError("unreachable")


async def streamed(requests: Any, _context: Any) -> bytes:
    return b"".join([request async for request in requests])


def plain_now(_request: bytes, _context: Any) -> bytes:
    return b"as ever"


def broken_now(_request: bytes, _context: Any) -> bytes:
    raise LookupError("of its own")


def chosen_now(_request: bytes, context: Any) -> bytes:
    context.abort(grpc.StatusCode.NOT_FOUND, "no such item")
    raise AssertionError("unreachable")


def streamed_now(requests: Any, _context: Any) -> bytes:
    return b"".join(requests)


@pytest.fixture(params=["loop", "threads"])
def ordinary(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[str]:
    """A server with an interceptor whose methods know nothing of branches."""
    is_loop = request.param == "loop"
    methods: dict[str, Any] = (
        {"Plain": plain, "Broken": broken, "Chosen": chosen}
        if is_loop
        else {"Plain": plain_now, "Broken": broken_now, "Chosen": chosen_now}
    )
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    handlers["Streamed"] = grpc.stream_unary_rpc_method_handler(streamed if is_loop else streamed_now)
    handler = grpc.method_handlers_generic_handler(SERVICE, handlers)
    if is_loop:
        return serving_async(handler, interceptors=[AsyncBranchInterceptor()])
    return serving_threads(handler, interceptors=[BranchInterceptor()])


async def test_calls_that_are_none_of_a_branch_go_through_untouched(
    ordinary: AbstractAsyncContextManager[str],
) -> None:
    async with ordinary as target:
        assert await call(target, f"{SERVICE}/Plain") == (OK, "", b"as ever")
        code, text, _ = await call(target, f"{SERVICE}/Broken")
        assert (code, "of its own" in text) == (UNKNOWN, True)
        assert (await call(target, f"{SERVICE}/Missing"))[0] is grpc.StatusCode.UNIMPLEMENTED
        async with grpc.aio.insecure_channel(target) as channel:
            streaming = channel.stream_unary(f"/{SERVICE}/Streamed")
            assert await streaming(iter([b"a", b"b"]), timeout=10) == b"ab"


async def test_an_answer_that_the_method_chose_stands(ordinary: AbstractAsyncContextManager[str]) -> None:
    async with ordinary as target:
        for metadata in ({}, BRANCH):
            answer = await call(target, f"{SERVICE}/Chosen", **metadata)
            assert answer[:2] == (grpc.StatusCode.NOT_FOUND, "no such item")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "users.db"
    with closing(sqlite3.connect(path)) as connection:
        create_table_sync(connection)
        barrier = BranchBarrier("msg", "committed", "00", "msg")
        barrier.call_sync(connection, lambda _: None, commit=True)
    return path


def rows_of(path: Path, branch: BranchContext) -> bytes:
    """Use the barrier, and show what is then in the table that is not DTM's."""
    with closing(sqlite3.connect(path)) as connection:
        branch.barrier.call_sync(connection, lambda _: None, commit=True)
        return repr(connection.execute("select gid, branch_id, op from shop_barrier").fetchall()).encode()


def by_context(path: Path) -> tuple[Any, Any]:
    async def deduct(_request: bytes, context: Any) -> bytes:
        return rows_of(path, branch_context(context, table="shop_barrier"))

    return deduct, []


def by_interceptor(path: Path) -> tuple[Any, Any]:
    async def deduct(_request: bytes, _context: Any) -> bytes:
        return rows_of(path, branch_context())

    return deduct, [AsyncBranchInterceptor(table="shop_barrier")]


def by_decorator(path: Path) -> tuple[Any, Any]:
    @branch_method(table="shop_barrier")
    async def deduct(_request: bytes, _context: Any, branch: BranchContext) -> bytes:
        return rows_of(path, branch)

    return deduct, []


@pytest.mark.parametrize("kind", [by_context, by_interceptor, by_decorator])
async def test_the_barrier_table_may_be_another(kind: Callable[[Path], Any], path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        create_table_sync(connection, table="shop_barrier")
    method, interceptors = kind(path)

    async with serving_async(handler_of({"Deduct": method}), interceptors=interceptors) as target:
        answer = await call(target, f"{SERVICE}/Deduct", **BRANCH)

    assert answer[2] == b"[('g1', '01', 'action')]"


# -- the check-back ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "async server", "threads"])
async def test_the_check_back_says_whether_the_local_transaction_has_committed(kind: str, path: Path) -> None:
    source = (
        create_async_engine(f"sqlite+aiosqlite:///{path}") if kind == "async" else create_engine(f"sqlite:///{path}")
    )
    serving = serving_threads if kind == "threads" else serving_async
    question = {"trans_type": "msg", "branch_id": "00", "op": "msg"}

    async with serving(add=lambda server: add_query_prepared(server, source)) as target:
        yes = await call(target, QUERY_PREPARED, gid="committed", **question)
        no = await call(target, QUERY_PREPARED, gid="never", **question)
        other = await call(target, QUERY_PREPARED, **BRANCH)
        lacking = await call(target, QUERY_PREPARED)

    assert yes == (OK, "", b"")
    assert no[:2] == (ABORTED, "the local transaction has not committed, and will not")
    assert other[:2] == (INVALID, "not a check-back, but the action of a saga")
    assert lacking[0] is INVALID


async def test_a_check_back_in_threads_needs_connections_that_block(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = create_async_engine(f"sqlite+aiosqlite:///{path}")

    async with serving_threads(add=lambda server: add_query_prepared(server, source)) as target:
        code, _, _ = await call(target, QUERY_PREPARED, gid="g1", trans_type="msg", branch_id="00", op="msg")

    assert code is INTERNAL
    assert "needs a source that blocks" in str(caplog.records[-1].exc_info)


# -- workflows -----------------------------------------------------------------------------


async def test_a_request_to_resume_is_answered_in_the_words_of_grpc() -> None:
    async with AsyncCoordinator() as coordinator:
        workflows = AsyncWorkflows(coordinator, resume_url=f"shop:9000/{RESUME_WORKFLOW}")
        async with serving_async(add=lambda server: add_workflows(server, workflows)) as target:
            unknown = await call(target, RESUME_WORKFLOW, gid="g1", trans_type="workflow", branch_id="00", op="buy")
            lacking = await call(target, RESUME_WORKFLOW, gid="g1")
            garbled = await call(target, RESUME_WORKFLOW, b"\xff", gid="g1")

    assert unknown[:2] == (INTERNAL, "the log of this participant says why")
    assert lacking[0] is INVALID
    assert garbled[0] is INVALID


async def test_async_workflows_need_a_server_of_asyncio() -> None:
    async with AsyncCoordinator() as coordinator:
        workflows = AsyncWorkflows(coordinator, resume_url=f"shop:9000/{RESUME_WORKFLOW}")
        with pytest.raises(TypeError, match=r"need a server of grpc\.aio"):
            add_workflows(grpc.server(ThreadPoolExecutor(1)), workflows)


async def test_a_workflow_goes_on_when_the_coordinator_waits_no_longer() -> None:
    world = World()
    workflows = world.async_workflows()
    begun, leave = asyncio.Event(), asyncio.Event()
    runs: list[int] = []

    async def pay(branch: BranchContext) -> None:
        runs.append(1)
        begun.set()
        await leave.wait()

    @workflows.workflow
    async def buy(wf: AsyncWorkflow, given: None) -> None:
        await wf.step(pay)

    first = asyncio.create_task(buy.run(None, gid="g1"))
    await begun.wait()
    first.cancel()  # a process that dies
    with pytest.raises(asyncio.CancelledError):
        await first
    begun.clear()

    async with serving_async(add=lambda server: add_workflows(server, workflows)) as target:

        async def resume(timeout_s: float) -> grpc.StatusCode:
            query, _ = world.request_to_resume("g1")
            return (await call(target, RESUME_WORKFLOW, timeout_s=timeout_s, **query))[0]

        assert await resume(0.2) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert begun.is_set()
        assert await resume(10) is AGAIN
        leave.set()
        while await resume(10) is not OK:
            await asyncio.sleep(0.01)
    assert len(runs) == 2
    assert world.stored["g1"].status is Status.SUCCEEDED


async def test_a_participant_that_stops_breaks_off_what_it_has_resumed() -> None:
    world = World()
    workflows = world.async_workflows()
    begun = asyncio.Event()

    async def pay(branch: BranchContext) -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflows.workflow
    async def buy(wf: AsyncWorkflow, given: None) -> None:
        await wf.step(pay)

    first = asyncio.create_task(buy.run(None, gid="g1"))
    await begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    begun.clear()
    resumed = asyncio.create_task(workflows.resume(*world.request_to_resume("g1")))
    await begun.wait()
    await workflows.close()

    assert (await resumed).status == 425
    assert world.reports == []
