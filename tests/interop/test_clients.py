"""Sagas and TCC by DTM's own clients of other languages, as initiators and participants.

What happened is read from the participants' books, which their own barriers protect, and from the
coordinator's query.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.interop.world import Line, Participant, World, needs
from txcoord_sdk import Status

pytestmark = pytest.mark.slow

NESTING = ("go", "python")
"""Clients whose participants can add a branch to the TCC that calls them."""
CONCURRENT = ("go", "java")
"""Clients that can submit a concurrent saga; the Python client ends in an AttributeError of its own."""
WITH_OPTIONS = ("go", "python")
"""Clients whose sagas can have options beyond `wait_result`; the Java client's setters call themselves for ever."""

WAITING_TCC = ("go",)
"""Clients whose TCC has options at all."""

JSON_RPC = ("go",)
"""Clients that speak JSON-RPC to the coordinator."""


def undone(world: World, *lines: Line) -> set[Line]:
    """What stands in the books after a saga was compensated in which the second action was refused.

    The compensation of that one finds nothing to undo, and the barrier leaves it out. Only that of
    the Java client does not: it knows empty cancels, but no empty compensations.
    """
    return {*lines, *([("02", "compensate", "in")] if world.participant.name == "java" else [])}


# -- sagas -----------------------------------------------------------------------------------


def test_a_saga_runs_its_actions_in_turn(world: World) -> None:
    ran = world.run("saga", world.participant.branch("out"), world.participant.branch("in"))

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    assert world.books.lines(ran.gid) == [("01", "action", "out"), ("02", "action", "in")]


def test_the_coordinator_gives_out_a_gid(world: World) -> None:
    ran = world.run("saga", world.participant.branch("out"), gid="")

    assert ran.gid
    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED


def test_a_refused_saga_is_compensated(world: World) -> None:
    ran = world.run("saga", world.participant.branch("out"), world.participant.branch("in", refuse=["action"]))

    ended = world.ended(ran.gid)
    assert ended.status is Status.FAILED
    assert "in refuses" in ended.reason
    assert set(world.books.lines(ran.gid)) == undone(world, ("01", "action", "out"), ("01", "compensate", "out"))


def test_a_lost_answer_makes_no_second_effect(world: World) -> None:
    ran = world.run(
        "saga",
        world.participant.branch("out", lose=["action", "compensate"]),
        world.participant.branch("in", later=["action"], refuse=["action"]),
    )

    assert world.ended(ran.gid).status is Status.FAILED
    lines = world.books.lines(ran.gid)
    assert set(lines) == undone(world, ("01", "action", "out"), ("01", "compensate", "out"))
    assert len(lines) == len(set(lines))


def test_a_concurrent_saga_keeps_its_orders(world: World) -> None:
    needs(world, CONCURRENT)
    ran = world.run(
        "saga",
        *(world.participant.branch(account) for account in "abcd"),
        concurrent=True,
        orders={"0": [2, 3], "1": [0]},
    )

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    accounts = [account for _, _, account in world.books.lines(ran.gid)]
    assert sorted(accounts[:2]) == ["c", "d"]
    assert accounts[2:] == ["a", "b"]


def test_wait_result_answers_when_the_saga_has_succeeded(world: World) -> None:
    ran = world.run("saga", world.participant.branch("out"), world.participant.branch("in"), wait_result=True)

    assert ran.error == ""
    assert world.found(ran.gid).status is Status.SUCCEEDED


def test_wait_result_is_an_error_when_the_saga_is_refused(world: World) -> None:
    ran = world.run(
        "saga", world.participant.branch("out"), world.participant.branch("in", refuse=["action"]), wait_result=True
    )

    assert ran.error != ""
    assert world.ended(ran.gid).status is Status.FAILED


def test_a_saga_past_its_time_is_compensated(world: World) -> None:
    needs(world, WITH_OPTIONS)
    ran = world.run(
        "saga", world.participant.branch("out"), world.participant.branch("in", never=["action"]), timeout_to_fail=1
    )

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.FAILED
    assert world.books.lines(ran.gid) == [("01", "action", "out"), ("01", "compensate", "out")]


def test_branch_headers_reach_the_participant(world: World) -> None:
    needs(world, WITH_OPTIONS)
    ran = world.run("saga", world.participant.branch("out"), branch_headers={"Interop-Note": "red"})

    assert world.ended(ran.gid).status is Status.SUCCEEDED
    assert world.books.notes(ran.gid) == {"red"}


# -- tcc -------------------------------------------------------------------------------------


def test_a_tcc_is_confirmed(world: World) -> None:
    ran = world.run("tcc", world.participant.branch("out"), world.participant.branch("in"))

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    lines = world.books.lines(ran.gid)
    assert lines[:2] == [("01", "try", "out"), ("02", "try", "in")]
    assert sorted(lines[2:]) == [("01", "confirm", "out"), ("02", "confirm", "in")]


def test_a_refused_tcc_is_cancelled(world: World) -> None:
    ran = world.run("tcc", world.participant.branch("out"), world.participant.branch("in", refuse=["try"]))

    assert ran.error != ""
    assert world.ended(ran.gid).status is Status.FAILED
    assert world.books.lines(ran.gid) == [("01", "try", "out"), ("01", "cancel", "out")]


def test_a_confirm_is_repeated_until_it_succeeds(world: World) -> None:
    ran = world.run(
        "tcc", world.participant.branch("out", later=["confirm"]), world.participant.branch("in", lose=["confirm"])
    )

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    assert sorted(world.books.lines(ran.gid)) == [
        ("01", "confirm", "out"),
        ("01", "try", "out"),
        ("02", "confirm", "in"),
        ("02", "try", "in"),
    ]


def test_a_cancel_is_repeated_until_it_succeeds(world: World) -> None:
    ran = world.run(
        "tcc",
        world.participant.branch("out", later=["cancel"], lose=["cancel"]),
        world.participant.branch("in", refuse=["try"]),
    )

    assert world.ended(ran.gid).status is Status.FAILED
    assert world.books.lines(ran.gid) == [("01", "try", "out"), ("01", "cancel", "out")]


@pytest.mark.parametrize(
    ("refuse", "status"), [([], Status.SUCCEEDED), (["try"], Status.FAILED)], ids=["confirmed", "cancelled"]
)
def test_wait_result_answers_when_the_tcc_has_ended(world: World, refuse: list[str], status: Status) -> None:
    needs(world, WAITING_TCC)
    ran = world.run(
        "tcc", world.participant.branch("out"), world.participant.branch("in", refuse=refuse), wait_result=True
    )

    assert (ran.error == "") is (status is Status.SUCCEEDED)
    assert world.found(ran.gid).status is status


@pytest.mark.parametrize("refuse", [[], ["try"]], ids=["confirmed", "cancelled"])
def test_a_participant_adds_a_branch_to_the_tcc_that_calls_it(world: World, refuse: list[str]) -> None:
    needs(world, NESTING)
    inner = world.participant.branch("in", refuse=refuse)
    ran = world.run(
        "tcc", world.participant.branch("fee"), world.participant.branch("out", nested=inner, dtm=world.dtm)
    )

    ended = world.ended(ran.gid)
    assert {branch.branch_id for branch in ended.branches} == {"01", "02", "0201"}
    lines = world.books.lines(ran.gid)
    if refuse:
        assert ran.error != ""
        assert ended.status is Status.FAILED
        assert lines == [("01", "try", "fee"), ("01", "cancel", "fee")]
    else:
        assert ran.error == ""
        assert ended.status is Status.SUCCEEDED
        assert lines[:3] == [("01", "try", "fee"), ("0201", "try", "in"), ("02", "try", "out")]
        assert sorted(lines[3:]) == [("01", "confirm", "fee"), ("02", "confirm", "out"), ("0201", "confirm", "in")]


# -- json-rpc --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refuse", "status"), [(False, Status.SUCCEEDED), (True, Status.FAILED)], ids=["succeeds", "refused"]
)
@pytest.mark.parametrize(("pattern", "first"), [("saga", "action"), ("tcc", "try")])
def test_the_coordinator_is_called_over_json_rpc(
    world: World, pattern: str, first: str, refuse: bool, status: Status
) -> None:
    needs(world, JSON_RPC)
    last = world.participant.branch("in", refuse=[first] if refuse else [])
    ran = world.run(
        pattern,
        world.participant.branch("out"),
        last,
        dtm=f"{world.url}/api/json-rpc",
        protocol="json-rpc",
        wait_result=True,
    )

    assert (ran.error == "") is not refuse
    assert world.ended(ran.gid).status is status
    assert ("01", first, "out") in world.books.lines(ran.gid)


# -- several languages in one ----------------------------------------------------------------


@pytest.mark.parametrize("refuse", [False, True], ids=["succeeds", "refused"])
@pytest.mark.parametrize(("pattern", "first", "undo"), [("saga", "action", "compensate"), ("tcc", "try", "cancel")])
def test_one_transaction_has_branches_in_every_language(
    world: World, every: Sequence[Participant], pattern: str, first: str, undo: str, refuse: bool
) -> None:
    last = world.participant.branch("last", refuse=[first] if refuse else [])
    ran = world.run(pattern, *(each.branch(each.name) for each in every), last)

    assert world.ended(ran.gid).status is (Status.FAILED if refuse else Status.SUCCEEDED)
    done = {(op, account) for _, op, account in world.books.lines(ran.gid)}
    for each in every:
        assert (first, each.name) in done
        assert ((undo, each.name) in done) is refuse
    assert ((first, "last") in done) is not refuse
