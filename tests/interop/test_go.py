"""What only DTM's Go client offers: gRPC, XA and workflows."""

from __future__ import annotations

import pytest

from tests.interop.world import Over, World
from txcoord_sdk import Status

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["go"])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- saga and tcc over gRPC ------------------------------------------------------------------


@pytest.mark.parametrize("wait_result", [False, True], ids=["", "waiting"])
@pytest.mark.parametrize("refuse", [False, True], ids=["succeeds", "refused"])
@pytest.mark.parametrize(("pattern", "first", "undo"), [("saga", "action", "compensate"), ("tcc", "try", "cancel")])
def test_the_coordinator_is_called_over_grpc(
    world: World, pattern: str, first: str, undo: str, refuse: bool, wait_result: bool
) -> None:
    branch = world.participant.grpc_branch
    last = branch("in", refuse=[first] if refuse else [], later=[first] if pattern == "saga" else [])
    ran = world.run(pattern, branch("out", lose=[undo]), last, protocol="grpc", wait_result=wait_result)

    if refuse:
        ended = world.ended(ran.gid)
        assert ended.status is Status.FAILED
        assert "in refuses" in ended.reason
        assert world.books.lines(ran.gid) == [("01", first, "out"), ("01", undo, "out")]
    else:
        assert world.ended(ran.gid).status is Status.SUCCEEDED
        assert {("01", first, "out"), ("02", first, "in")} <= set(world.books.lines(ran.gid))


def test_the_coordinator_gives_out_a_gid_over_grpc(world: World) -> None:
    ran = world.run("saga", world.participant.grpc_branch("out"), gid="", protocol="grpc")

    assert ran.gid
    assert world.ended(ran.gid).status is Status.SUCCEEDED


def test_branch_headers_travel_as_metadata(world: World) -> None:
    branch = world.participant.grpc_branch("out", later=["action"])
    ran = world.run("saga", branch, protocol="grpc", branch_headers={"interop-note": "red"})

    assert world.ended(ran.gid).status is Status.SUCCEEDED
    assert world.books.notes(ran.gid) == {"red"}


@pytest.mark.parametrize("refuse", [[], ["try"]], ids=["confirmed", "cancelled"])
def test_a_participant_adds_a_branch_over_grpc(world: World, refuse: list[str]) -> None:
    branch = world.participant.grpc_branch
    ran = world.run("tcc", branch("out", nested=branch("in", refuse=refuse)), protocol="grpc")

    ended = world.ended(ran.gid)
    assert {branch.branch_id for branch in ended.branches} == {"01", "0101"}
    assert ended.status is (Status.FAILED if refuse else Status.SUCCEEDED)
    confirmed = {(op, account) for _, op, account in world.books.lines(ran.gid) if op == "confirm"}
    assert confirmed == (set() if refuse else {("confirm", "out"), ("confirm", "in")})


# -- xa --------------------------------------------------------------------------------------


def prepared_in(world: World) -> set[str]:
    """The gids of XA transactions that the database still holds prepared."""
    return {row[3].decode() if isinstance(row[3], bytes) else row[3] for row in world.books.query("xa recover")}


def test_an_xa_transaction_is_committed_everywhere(world: World, over: Over) -> None:
    ran = world.run("xa", over.branch("out"), over.branch("in"), **over.options)

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    assert world.books.lines(ran.gid) == [("01", "action", "out"), ("02", "action", "in")]
    assert not [xid for xid in prepared_in(world) if xid.startswith(ran.gid)]


def test_a_refused_xa_transaction_is_rolled_back_everywhere(world: World, over: Over) -> None:
    ran = world.run("xa", over.branch("out"), over.branch("in", refuse=["action"]), **over.options)

    assert ran.error != ""
    assert world.ended(ran.gid).status is Status.FAILED
    assert world.books.lines(ran.gid) == []
    assert not [xid for xid in prepared_in(world) if xid.startswith(ran.gid)]


# -- workflows -------------------------------------------------------------------------------

KINDS = ("http", "local", "xa", "grpc")


def test_a_workflow_runs_its_steps_and_returns_its_result(world: World, over: Over) -> None:
    steps = [world.participant.branch(kind, kind=kind) for kind in KINDS]
    ran = world.run("workflow", *steps, **over.options)

    assert (ran.error, ran.result) == ("", "all done")
    ended = world.ended(ran.gid)
    assert ended.status is Status.SUCCEEDED
    assert [account for _, _, account in world.books.lines(ran.gid)] == list(KINDS)
    assert not [xid for xid in prepared_in(world) if xid.startswith(ran.gid)]


def test_a_workflow_that_has_ended_is_not_run_again(world: World, over: Over) -> None:
    step = world.participant.branch("once")
    first = world.run("workflow", step, **over.options)
    again = world.run("workflow", step, gid=first.gid, **over.options)

    assert (again.error, again.result) == ("", "all done")
    assert [account for _, _, account in world.books.lines(first.gid)] == ["once"]


def test_a_refused_workflow_undoes_its_steps(world: World, over: Over) -> None:
    steps = [world.participant.branch(kind, kind=kind) for kind in KINDS]
    ran = world.run("workflow", *steps, world.participant.branch("last", refuse=["action"]), **over.options)

    assert ran.error != ""
    assert world.ended(ran.gid).status is Status.FAILED
    assert world.books.lines(ran.gid) == [
        ("01", "action", "http"),
        ("02", "action", "local"),
        ("04", "action", "grpc"),
        ("04", "undo", "grpc"),
        ("02", "undo", "local"),
        ("01", "undo", "http"),
    ]
    assert not [xid for xid in prepared_in(world) if xid.startswith(ran.gid)]


def test_the_coordinator_has_an_interrupted_workflow_resumed(world: World, over: Over) -> None:
    """Each step is ongoing the first time, which ends that run: the resumes bring it to its end."""
    steps = [world.participant.branch(kind, kind=kind, later=["action"]) for kind in ("http", "local", "grpc")]
    ran = world.run("workflow", *steps, retry_interval=1, **over.options)

    assert ran.error != ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    assert [account for _, _, account in world.books.lines(ran.gid)] == ["http", "local", "grpc"]
