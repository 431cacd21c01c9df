"""Messages by DTM's own clients: those for Go and Python have them, that for Java has not."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest

from tests.interop.world import Over, World, needs
from txcoord_sdk import Status

pytestmark = pytest.mark.slow

OVER_GRPC = ("go",)
"""Clients that speak gRPC."""
TOPICS = ("go",)
"""Clients that can name a topic."""


@pytest.fixture(scope="module", params=["go", "python"])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["http", "grpc"])
def over(request: pytest.FixtureRequest, world: World) -> Over:
    if request.param == "grpc":
        needs(world, OVER_GRPC)
    return Over(world, request.param)


def test_a_message_follows_its_local_transaction(world: World, over: Over) -> None:
    ran = world.run("msg", over.branch("in"), wait_result=True, **over.options)

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    assert world.books.lines(ran.gid) == [("00", "msg", "local"), ("01", "action", "in")]


def test_a_message_whose_local_transaction_refuses_is_not_sent(world: World, over: Over) -> None:
    ran = world.run("msg", over.branch("in"), local="refuse", **over.options)

    assert "refuses" in ran.error
    assert world.ended(ran.gid).status is Status.FAILED
    assert world.books.lines(ran.gid) == []


@pytest.mark.parametrize("committed", [True, False])
def test_the_check_back_finds_whether_a_vanished_initiator_committed(world: World, over: Over, committed: bool) -> None:
    local = "vanish" if committed else "vanish early"
    ran = world.run("msg", over.branch("in"), local=local, timeout_to_fail=3, **over.options)

    assert ran.error == ""
    assert world.ended(ran.gid).status is (Status.SUCCEEDED if committed else Status.FAILED)
    assert world.books.lines(ran.gid) == ([("00", "msg", "local"), ("01", "action", "in")] if committed else [])


def test_a_message_reaches_the_subscribers_of_a_topic(world: World) -> None:
    needs(world, TOPICS)
    topic = f"interop-{uuid4().hex[:8]}"
    # Two URLs: a topic has each subscriber once.
    for url in (world.participant.branch("")["url"], f"{world.participant.branch('')['url']}?second"):
        httpx.get(f"{world.dtm}/subscribe", params={"topic": topic, "url": url}).raise_for_status()
    ran = world.run("msg", world.participant.branch("in"), topic=topic)

    assert ran.error == ""
    assert world.ended(ran.gid).status is Status.SUCCEEDED
    assert world.books.lines(ran.gid) == [("00", "msg", "local"), ("01-01", "action", "in"), ("01-02", "action", "in")]
