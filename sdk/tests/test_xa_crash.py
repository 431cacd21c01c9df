"""The participant is killed at each statement of each phase: nothing is lost, halved or left prepared."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from sdk.tests.xa_support import Ledger
from sdk.tests.xa_victim import Blow, act
from tests.forks import fork_context
from txcoord_sdk.barrier import Passage
from txcoord_sdk.branch import BranchFailed, BranchOngoing
from txcoord_sdk.xa import XaKey, finish_sync, prepare_sync

MOST_STATEMENTS = 30
SETTLE_S = 30


@pytest.fixture(params=["mysql", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    made = Ledger(request.getfixturevalue(f"shared_{request.param}_url"))
    yield made
    made.end_all()


@pytest.fixture(params=[False, True], ids=["before it leaves", "before it is answered"])
def is_sent(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def context() -> Any:
    return fork_context()


class Victim:
    """What one killed process came to."""

    def __init__(self, context: Any, ledger: Ledger, key: XaKey, op: str, blow: Blow) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=act, args=(ledger.url, ledger.name, key, op, blow, theirs))
        process.start()
        theirs.close()
        self.said = []
        try:
            while True:
                self.said.append(ours.recv())
        except EOFError:
            pass
        process.join()
        assert process.exitcode == (0 if self.is_done else -9), process.exitcode

    @property
    def is_done(self) -> bool:
        return "done" in self.said


def new_key() -> XaKey:
    return XaKey(gid=f"gid-{uuid4().hex}", branch_id="01")


def call_until_done(ledger: Ledger, key: XaKey, op: str) -> Passage:
    """Do as the coordinator does: call again while the answer is "ongoing"."""
    give_up = time.monotonic() + SETTLE_S
    while True:
        try:
            return finish_sync(ledger.connect, key, op)
        except BranchOngoing:
            assert time.monotonic() < give_up, f"{op} of {key} never ends"


def write_entry(ledger: Ledger, key: XaKey) -> Any:
    def work(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("insert into entry values (%s)", (key.gid,))

    return prepare_sync(ledger.connect, key, work, register=lambda: None)


def test_killed_in_the_action(context: Any, ledger: Ledger, is_sent: bool) -> None:
    prepared_once = False
    for number in range(MOST_STATEMENTS):
        key = new_key()
        victim = Victim(context, ledger, key, "action", Blow(number, is_sent))
        if victim.is_done:
            break
        # Who called it has no answer and has all rolled back; the coordinator calls only what is registered.
        if "registered" in victim.said:
            prepared_once |= call_until_done(ledger, key, "rollback") is Passage.RUN
            with pytest.raises(BranchFailed, match="was rolled back before its action came"):
                write_entry(ledger, key)
        else:
            until_gone(ledger, key)
            assert write_entry(ledger, key).passage is Passage.RUN, "nothing of it is in the way"
            assert call_until_done(ledger, key, "rollback") is Passage.RUN
        assert (ledger.prepared, ledger.has(key.gid)) == ([], False)
    else:
        pytest.fail("it never came to its end")
    assert number > 5
    assert prepared_once is is_sent, "the blow at the prepare itself leaves it prepared if it was sent"
    assert call_until_done(ledger, key, "commit") is Passage.RUN
    assert ledger.has(key.gid)


def until_gone(ledger: Ledger, key: XaKey) -> None:
    """Wait until the server has noticed that a process is dead, and rolled back what was not prepared."""
    give_up = time.monotonic() + SETTLE_S
    while True:
        try:
            finish_sync(ledger.connect, key, "commit")
        except BranchOngoing:
            assert time.monotonic() < give_up, f"{key} is never let go of"
        except BranchFailed:
            return  # there is nothing of it


@pytest.mark.parametrize("op", ["commit", "rollback"])
def test_killed_at_the_end(context: Any, ledger: Ledger, is_sent: bool, op: str) -> None:
    for number in range(MOST_STATEMENTS):
        key = new_key()
        write_entry(ledger, key)
        if Victim(context, ledger, key, op, Blow(number, is_sent)).is_done:
            break
        assert call_until_done(ledger, key, op) in (Passage.RUN, Passage.DUPLICATE, Passage.EMPTY)
        assert (ledger.prepared, ledger.has(key.gid)) == ([], op == "commit")
        if op == "rollback":
            with pytest.raises(BranchFailed, match="was rolled back before its action came"):
                write_entry(ledger, key)
    else:
        pytest.fail("it never came to its end")
    assert number > 0
    assert (ledger.prepared, ledger.has(key.gid)) == ([], op == "commit")


def test_killed_in_a_rollback_that_comes_first(context: Any, ledger: Ledger, is_sent: bool) -> None:
    for number in range(MOST_STATEMENTS):
        key = new_key()
        if Victim(context, ledger, key, "rollback", Blow(number, is_sent)).is_done:
            break
        assert call_until_done(ledger, key, "rollback") in (Passage.EMPTY, Passage.DUPLICATE)
        with pytest.raises(BranchFailed, match="was rolled back before its action came"):
            write_entry(ledger, key)
    else:
        pytest.fail("it never came to its end")
    assert number > 2
    assert ledger.prepared == []


def test_the_server_is_killed_with_a_branch_prepared(request: pytest.FixtureRequest) -> None:
    for kind in ("mariadb", "postgres"):
        server = request.getfixturevalue(f"fragile_{kind}")
        ledger = Ledger(server.create_database(f"xa_{uuid4().hex[:12]}"))
        kept, undone = new_key(), new_key()
        write_entry(ledger, kept)
        write_entry(ledger, undone)

        server.kill()
        server.start()

        assert sorted(ledger.prepared) == sorted(f"{key.gid}-01" for key in (kept, undone))
        assert call_until_done(ledger, kept, "commit") is Passage.RUN
        assert call_until_done(ledger, undone, "rollback") is Passage.RUN
        assert (ledger.has(kept.gid), ledger.has(undone.gid), ledger.prepared) == (True, False, [])
