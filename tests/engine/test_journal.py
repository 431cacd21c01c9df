"""The journal: group commit, order, one bad change, a store that is away, a lease that is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from tests.engine.harness import now_s, settle
from tests.sagas import make_saga
from tests.virtual_time import VirtualClock
from txcoord.engine.journal import ChangeRefusedError, Journal
from txcoord.engine.settings import EngineSettings
from txcoord.errors import LeaseLostError, StoreUnavailableError, TransactionsLockedError
from txcoord.model import Status
from txcoord.store.base import Applied, Change, Create, Save

LAZY_S = 0.1
LOCK_WAIT_S = 1.0


class FakeStore:
    """Takes batches when it is let to, and answers as told."""

    def __init__(self) -> None:
        self.batches: list[list[Change]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.errors: list[Exception] = []
        """Raised by the next calls, one each."""
        self.refuses: Callable[[Change], bool] = lambda change: False

        self.locked: set[str] = set()
        """Rows that somebody else holds."""
        self.impatient = 0

    async def apply(self, batch: Sequence[Change], *, patiently: bool = True) -> Sequence[Applied]:
        self.batches.append(list(batch))
        self.impatient += not patiently
        await self.free.wait()
        if self.errors:
            raise self.errors.pop(0)
        if any(map(self.refuses, batch)):
            raise ValueError("too long")
        locked = [change.tx.gid for change in batch if change.tx.gid in self.locked]
        if locked:
            await asyncio.sleep(LOCK_WAIT_S if patiently else 0)
            raise TransactionsLockedError(locked)
        return [Applied.DONE] * len(batch)

    @property
    def gids(self) -> list[list[str]]:
        return [[change.tx.gid for change in batch] for batch in self.batches]


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def losses() -> list[str]:
    """One entry for each time the engine was told that its lease is lost."""
    return []


@pytest.fixture
async def journal(store: FakeStore, losses: list[str]) -> AsyncIterator[Journal]:
    journal = Journal(
        store.apply,
        settings=EngineSettings(max_batch=3, lazy_write_s=LAZY_S),
        clock=VirtualClock(),
        on_lease_lost=lambda: losses.append("lost"),
        on_superseded=lambda gid, epoch: losses.append(f"{gid} {epoch}"),
    )
    flusher = asyncio.create_task(journal.run())
    yield journal
    flusher.cancel()
    await asyncio.gather(flusher, return_exceptions=True)


def save(gid: str, status: Status = Status.SUBMITTED) -> Save:
    return Save(tx=make_saga(gid=gid, status=status), epoch=1)


async def test_an_idle_journal_writes_at_once(journal: Journal, store: FakeStore) -> None:
    assert await journal.write(Create(tx=make_saga(gid="a"), token=1)) is Applied.DONE
    assert asyncio.get_running_loop().time() == 0.0
    assert store.gids == [["a"]]


async def test_what_gathers_while_a_batch_commits_goes_as_one(journal: Journal, store: FakeStore) -> None:
    store.free.clear()
    first = journal.write(save("a"))
    await settle()
    rest = [journal.write(save(gid)) for gid in "bcd"]
    store.free.set()

    assert await asyncio.gather(first, *rest) == [Applied.DONE] * 4
    assert store.gids == [["a"], ["b", "c", "d"]]


async def test_a_batch_is_bounded_and_keeps_the_order(journal: Journal, store: FakeStore) -> None:
    await asyncio.gather(*[journal.write(save(gid)) for gid in "abcdefg"])

    assert store.gids == [["a", "b", "c"], ["d", "e", "f"], ["g"]]


async def test_an_answer_says_what_became_of_each_change(journal: Journal, store: FakeStore) -> None:
    answers = {"a": Applied.EXISTS, "b": Applied.DONE, "c": Applied.LEASE_LOST}

    async def apply(batch: Sequence[Change], *, patiently: bool = True) -> Sequence[Applied]:
        return [answers[change.tx.gid] for change in batch]

    journal._apply = apply

    assert await asyncio.gather(*[journal.write(save(gid)) for gid in "abc"]) == list(answers.values())


# -- posted changes ------------------------------------------------------------------------


async def test_a_posted_change_is_written_on_its_own_after_a_while(journal: Journal, store: FakeStore) -> None:
    journal.post(save("a"))
    journal.post(save("b"))
    await asyncio.sleep(LAZY_S * 0.9)
    assert store.gids == []

    await asyncio.sleep(LAZY_S * 0.2)

    assert store.gids == [["a", "b"]]


async def test_the_latest_of_several_posted_changes_counts(journal: Journal, store: FakeStore) -> None:
    journal.post(save("a"))
    journal.post(save("a", Status.ABORTING))
    await journal.drained()

    assert [[change.tx.status for change in batch] for batch in store.batches] == [[Status.ABORTING]]


async def test_a_posted_change_rides_along_with_the_next_one_of_its_transaction(
    journal: Journal, store: FakeStore
) -> None:
    journal.post(save("a"))
    await journal.write(save("a", Status.SUCCEEDED))
    await asyncio.sleep(2 * LAZY_S)

    assert [[change.tx.status for change in batch] for batch in store.batches] == [[Status.SUCCEEDED]]


async def test_an_idle_journal_leaves_the_store_alone(journal: Journal, store: FakeStore) -> None:
    journal.post(save("a"))
    journal.forget("a")
    journal.post(save("b"))
    await journal.write(save("b"))
    await asyncio.sleep(10 * LAZY_S)
    await journal.drained()

    assert store.gids == [["b"]]


async def test_a_change_posted_behind_its_batch_comes_after_it(journal: Journal, store: FakeStore) -> None:
    store.free.clear()
    journal.post(save("a"))
    await asyncio.sleep(2 * LAZY_S)
    journal.post(save("a", Status.ABORTING))
    await asyncio.sleep(2 * LAZY_S)
    journal.post(save("a", Status.FAILED))
    store.free.set()
    await journal.drained()

    assert [[change.tx.status for change in batch] for batch in store.batches] == [[Status.SUBMITTED], [Status.FAILED]]


async def test_drained_means_that_all_is_durable(journal: Journal, store: FakeStore) -> None:
    await journal.drained()
    store.free.clear()
    journal.post(save("a"))
    drained = asyncio.create_task(journal.drained())
    await settle()
    assert store.gids == [["a"]], "a drain does not wait for the lazy writes' time"
    assert not drained.done()

    store.free.set()

    await drained


# -- a change that the store refuses -------------------------------------------------------


@pytest.mark.parametrize("bad", ["a", "b", "c"])
async def test_one_bad_change_does_not_fail_the_others(journal: Journal, store: FakeStore, bad: str) -> None:
    store.refuses = lambda change: change.tx.gid == bad
    writes = {gid: journal.write(save(gid)) for gid in "abc"}
    await asyncio.gather(*writes.values(), return_exceptions=True)

    with pytest.raises(ChangeRefusedError, match=f"the store refuses a change of {bad}: too long"):
        writes.pop(bad).result()
    assert [write.result() for write in writes.values()] == [Applied.DONE] * 2
    assert await journal.write(save("d")) is Applied.DONE


async def test_a_bad_posted_change_ends_nothing(journal: Journal, store: FakeStore) -> None:
    store.refuses = lambda change: change.tx.gid == "a"
    journal.post(save("a"))
    await asyncio.sleep(2 * LAZY_S)

    assert await journal.write(save("b")) is Applied.DONE


# -- a store that is away ------------------------------------------------------------------


async def test_a_batch_is_repeated_as_it_was_until_the_store_answers(journal: Journal, store: FakeStore) -> None:
    store.errors = [StoreUnavailableError("away")] * 3
    first = journal.write(save("a"))
    await asyncio.sleep(0.01)
    assert not journal.store_is_available
    second = journal.write(save("b"))

    assert list(await asyncio.gather(first, second)) == [Applied.DONE] * 2
    assert store.gids == [["a"], ["a"], ["a"], ["a"], ["b"]]
    assert journal.store_is_available


async def test_a_store_away_for_long_is_asked_about_once_a_second(journal: Journal, store: FakeStore) -> None:
    store.errors = [StoreUnavailableError("away")] * 1000
    write = journal.write(save("a"))

    await asyncio.sleep(60.0)

    assert 60 <= len(store.batches) <= 70
    store.errors.clear()
    assert await write is Applied.DONE


async def test_a_waiter_that_went_away_does_not_take_its_change_along(journal: Journal, store: FakeStore) -> None:
    store.free.clear()
    first = journal.write(save("a"))
    await settle()
    gone = journal.write(save("b"))
    gone.cancel()
    store.free.set()
    await first
    await journal.drained()

    assert store.gids == [["a"], ["b"]]


# -- a row that somebody else has locked ---------------------------------------------------


async def test_a_locked_row_holds_up_its_own_transaction_alone(journal: Journal, store: FakeStore) -> None:
    store.locked = {"a", "b"}
    locked = [journal.write(save("a")), journal.write(save("b"))]
    assert await journal.write(save("c")) is Applied.DONE
    assert now_s() == LOCK_WAIT_S

    for turn in range(20):
        assert await journal.write(save(f"d{turn}")) is Applied.DONE
        await asyncio.sleep(1.0)

    assert now_s() == LOCK_WAIT_S + 20.0, "to try a locked one again costs the others nothing"
    assert not any(write.done() for write in locked)
    assert journal.store_is_available
    store.locked = {"b"}
    assert await locked[0] is Applied.DONE
    assert not locked[1].done()
    store.locked = set()
    assert await locked[1] is Applied.DONE
    assert now_s() < LOCK_WAIT_S + 21.0
    tries = len(store.batches)
    await asyncio.sleep(60.0)
    assert len(store.batches) == tries
    await journal.drained()


async def test_what_comes_for_a_locked_row_stays_behind_what_came_before(journal: Journal, store: FakeStore) -> None:
    store.locked = {"a"}
    journal.post(save("a"))
    await asyncio.sleep(2 * LOCK_WAIT_S)
    journal.post(save("a", Status.ABORTING))
    await asyncio.sleep(2 * LAZY_S)
    last = journal.write(save("a", Status.FAILED))
    assert await journal.write(save("b")) is Applied.DONE
    drained = asyncio.create_task(journal.drained())
    await asyncio.sleep(10.0)
    assert store.batches[-1] == [save("a")]
    assert store.impatient > 10
    assert not drained.done()

    store.locked = set()

    assert await last is Applied.DONE
    await drained
    assert store.batches[-2:] == [[save("a")], [save("a", Status.FAILED)]]


async def test_more_locked_rows_than_a_batch_holds_are_all_tried_again(journal: Journal, store: FakeStore) -> None:
    store.locked = set("abcdefgh")
    writes = {gid: journal.write(save(gid)) for gid in "abcdefgh"}
    await asyncio.sleep(10.0)

    for gid in "hgfedcba":
        store.locked.remove(gid)
        assert await writes[gid] is Applied.DONE


async def test_what_waits_for_a_locked_row_is_abandoned_with_the_rest(journal: Journal, store: FakeStore) -> None:
    store.locked = {"a"}
    locked = journal.write(save("a"))
    await asyncio.sleep(2 * LOCK_WAIT_S)

    journal.abandon(LeaseLostError("somebody else has it"))

    with pytest.raises(LeaseLostError, match="somebody else has it"):
        await locked
    tries = len(store.batches)
    await asyncio.sleep(10.0)
    assert len(store.batches) == tries
    await journal.drained()


# -- a lease that is lost ------------------------------------------------------------------


async def test_a_lost_lease_is_told_to_all_that_wait_and_nothing_more_is_written(
    journal: Journal, store: FakeStore, losses: list[str]
) -> None:
    store.errors = [LeaseLostError("too late")]
    store.free.clear()
    first = journal.write(save("a"))
    await settle()
    second = journal.write(save("b"))
    journal.post(save("c"))
    store.free.set()

    for write in (first, second):
        with pytest.raises(LeaseLostError, match="too late"):
            await write
    await asyncio.sleep(2 * LAZY_S)
    assert losses == ["lost"]
    assert store.gids == [["a"]]
    await journal.drained()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(StoreUnavailableError("away"), id="the batch failed"),
        pytest.param(ValueError("too long"), id="the batch was refused"),
        pytest.param(LeaseLostError("too late"), id="the batch was late"),
    ],
)
async def test_abandoned_changes_are_not_written_later(
    journal: Journal, store: FakeStore, losses: list[str], error: Exception
) -> None:
    store.errors = [error]
    store.free.clear()
    flushing = [journal.write(save(gid)) for gid in "abc"]
    await settle()
    waiting = journal.write(save("d"))
    journal.post(save("e"))

    journal.abandon(LeaseLostError("somebody else has them"))
    later = journal.write(save("f"))
    store.free.set()

    for write in (*flushing, waiting):
        with pytest.raises(LeaseLostError, match="somebody else has them"):
            await write
    assert await later is Applied.DONE
    await asyncio.sleep(2 * LAZY_S)
    assert store.gids == [["a", "b", "c"], ["f"]]
    assert losses == []
