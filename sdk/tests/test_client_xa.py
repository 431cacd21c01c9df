"""XA transactions of both clients, against a coordinator and participants of the test's own: one list of scenarios."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from sdk.tests.client_support import Answer, Drop, ScriptedCoordinator
from txcoord_sdk import (
    ActionFailedError,
    AsyncCoordinator,
    Coordinator,
    CoordinatorUnreachableError,
    Outcome,
    Status,
    TransactionFailedError,
)
from txcoord_sdk.branch import BranchContext

OK = Answer()
REFUSED = Answer(409, {"message": "no money"})
FAILED = Answer(
    200,
    {"branches": [], "transaction": {"gid": "g1", "trans_type": "xa", "status": "failed", "rollback_reason": "late"}},
)


Run = Callable[..., Any]


@pytest.fixture(params=[Coordinator, AsyncCoordinator], ids=["sync", "async"])
def run(request: pytest.FixtureRequest, served: tuple[ScriptedCoordinator, str]) -> Run:
    """Run a block that calls these paths, and then raises, by either client."""
    url = served[1]

    def of_sync(*paths: str, error: BaseException | None = None, **options: Any) -> None:
        with Coordinator(url, attempts=2, backoff=0.001) as client, client.xa("g1", **options) as xa:
            for path in paths:
                assert xa.call(f"{url}{path}", {"amount": 30}).branch_id
            if error is not None:
                raise error

    async def of_async(*paths: str, error: BaseException | None = None, **options: Any) -> None:
        async with (
            AsyncCoordinator(url, attempts=2, backoff=0.001) as client,
            client.xa("g1", **options) as xa,
        ):
            for path in paths:
                assert (await xa.call(f"{url}{path}", {"amount": 30})).branch_id
            if error is not None:
                raise error

    def in_a_loop(*paths: str, **more: Any) -> None:
        asyncio.run(of_async(*paths, **more))

    return of_sync if request.param is Coordinator else in_a_loop


def test_actions_are_called_then_all_is_submitted(run: Run, served: tuple[ScriptedCoordinator, str]) -> None:
    server, url = served
    for path in ("/prepare", "/out", "/in", "/submit"):
        server.answers(path, OK)

    run("/out", "/in", timeout_to_fail=60, wait_result=True, branch_headers={"x-tenant": "t1"})

    assert server.paths == ["/prepare", "/out", "/in", "/submit"]
    prepare, out, into, submit = server.requests
    options = {"timeout_to_fail": 60, "branch_headers": {"x-tenant": "t1"}}
    assert prepare.body == {"gid": "g1", "trans_type": "xa", **options}
    assert submit.body == {"gid": "g1", "trans_type": "xa", "wait_result": True, **options}
    assert (out.body, out.headers["x-tenant"]) == ({"amount": 30}, "t1")
    assert out.query == {
        "branch_id": "01",
        "dtm": f"{url}/api/dtmsvr",
        "gid": "g1",
        "op": "action",
        "phase2_url": f"{url}/out",
        "trans_type": "xa",
    }
    assert (into.query["branch_id"], into.query["phase2_url"]) == ("02", f"{url}/in")


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (REFUSED, Outcome.FAILURE),
        (Answer(425, {}), Outcome.ONGOING),
        (Answer(500, {}), Outcome.UNKNOWN),
        (Drop(), None),
    ],
    ids=["refused", "ongoing", "broken", "no answer"],
)
def test_an_action_without_success_has_all_rolled_back(
    run: Run, server: ScriptedCoordinator, answer: Any, outcome: Outcome | None
) -> None:
    for path in ("/prepare", "/out", "/abort"):
        server.answers(path, OK)
    server.answers("/in", answer)

    with pytest.raises(ActionFailedError) as caught:
        run("/out", "/in")

    assert (caught.value.branch_id, caught.value.outcome) == ("02", outcome or Outcome.UNKNOWN)
    assert server.paths == ["/prepare", "/out", "/in", "/abort"], "called once, and nothing is submitted"
    assert server.requests[-1].body["rollback_reason"] == caught.value.what
    assert caught.value.what.startswith("the action of branch 02 had the outcome")
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_an_exception_has_all_rolled_back(run: Run, server: ScriptedCoordinator) -> None:
    for path in ("/prepare", "/out", "/abort"):
        server.answers(path, OK)

    with pytest.raises(LookupError):
        run("/out", error=LookupError("no such customer"))

    assert server.requests[-1].body == {
        "gid": "g1",
        "trans_type": "xa",
        "rollback_reason": "LookupError: no such customer",
    }


def test_a_submit_after_the_deadline(run: Run, server: ScriptedCoordinator) -> None:
    for path in ("/prepare", "/out"):
        server.answers(path, OK)
    server.answers("/submit", Answer(409, {"message": "current status 'failed', cannot sumbmit. FAILURE"}))
    server.answers("/query", FAILED)

    with pytest.raises(TransactionFailedError, match="late") as caught:
        run("/out")

    assert caught.value.status is Status.FAILED


def test_a_submit_whose_answer_is_lost_is_not_aborted(run: Run, server: ScriptedCoordinator) -> None:
    for path in ("/prepare", "/out"):
        server.answers(path, OK)
    server.answers("/submit", Drop())
    server.answers("/query", *[Drop()] * 2)

    with pytest.raises(CoordinatorUnreachableError):
        run("/out")

    assert "/abort" not in server.paths


@pytest.mark.parametrize("path", ["", "no url"])
def test_what_cannot_be_called_is_no_branch(server: ScriptedCoordinator, served: Any, path: str) -> None:
    for path_ in ("/prepare", "/submit"):
        server.answers(path_, OK)

    with Coordinator(served[1]) as client, client.xa("g1") as xa:
        with pytest.raises(ValueError):
            xa.call(path)
        with pytest.raises(ValueError, match="has to be opened with protocol='grpc'"):
            xa.call(f"{served[1]}/out", phase2_url="bank:9000/bank.Account/Withdraw")

    with pytest.raises(ValueError, match="xa g1 has been submitted: branches are called within its `with` block"):
        xa.call(f"{served[1]}/out")


# -- registration by hand ----------------------------------------------------------------------


def context(**more: str) -> BranchContext:
    query = {"gid": "g1", "trans_type": "xa", "branch_id": "01", "op": "action", "phase2_url": "http://bank/out"}
    return BranchContext.from_query(query | more)


Register = Callable[[BranchContext], None]


@pytest.fixture(params=[Coordinator, AsyncCoordinator], ids=["sync", "async"])
def register(request: pytest.FixtureRequest, served: tuple[ScriptedCoordinator, str]) -> Register:
    def by_sync(branch: BranchContext) -> None:
        with Coordinator(served[1], attempts=2, backoff=0.001) as client:
            client.register_xa_branch(branch)

    async def by_async(branch: BranchContext) -> None:
        async with AsyncCoordinator(served[1], attempts=2, backoff=0.001) as client:
            await client.register_xa_branch(branch)

    def in_a_loop(branch: BranchContext) -> None:
        asyncio.run(by_async(branch))

    return by_sync if request.param is Coordinator else in_a_loop


def test_a_branch_is_registered_with_its_second_url(register: Register, server: ScriptedCoordinator) -> None:
    server.answers("/registerBranch", OK)

    register(context())

    [request] = server.requests
    assert request.body == {"gid": "g1", "trans_type": "xa", "branch_id": "01", "url": "http://bank/out"}


def test_a_branch_that_comes_too_late_is_refused(register: Register, server: ScriptedCoordinator) -> None:
    server.answers("/registerBranch", Answer(409, {"message": "status prepared not found FAILURE"}))
    server.answers("/query", FAILED)

    with pytest.raises(TransactionFailedError, match="late"):
        register(context())


def test_a_branch_without_a_second_url_is_not_registered(register: Register) -> None:
    with pytest.raises(ValueError, match="has no phase2_url"):
        register(context(phase2_url=""))
