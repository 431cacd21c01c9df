"""What `txcoord.store.base.Store` promises, shown on every store."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import tracemalloc
from collections.abc import Sequence

import pytest
import structlog
from sqlalchemy import Connection, select, text, update

from tests.sagas import NOON_US, make_saga
from tests.store.databases import connected, run_sql, wait_until_somebody_waits_for_a_lock
from tests.workflows import make_workflow, step
from txcoord.errors import LeaseLostError, SchemaError, StoreUnavailableError, TransactionsLockedError
from txcoord.model import AT_ONCE, Attempt, BranchOp, GlobalTransaction, Op, OpStatus, Options, Outcome, Pattern, Status
from txcoord.patterns import registered
from txcoord.request import Limits, TransRequest
from txcoord.store.base import (
    UNREADABLE_US,
    Applied,
    Create,
    KeyValue,
    KvQuery,
    ListQuery,
    Owned,
    Save,
    Store,
    Stored,
)
from txcoord.store.sql import statements, tables
from txcoord.store.sql.server import ServerStore
from txcoord.store.url import open_store
from txcoord.workflow.request import ended

LATER_US = NOON_US + 60_000_000

_tokens = itertools.count(1)


def saga(gid: str = "g1", **changes: object) -> GlobalTransaction:
    return make_saga(gid=gid).replace(**changes)


def with_payload(tx: GlobalTransaction, size: int) -> GlobalTransaction:
    first, *rest = tx.branches
    return tx.replace(branches=(first.replace(payload=b"x" * size), *rest))


def create(tx: GlobalTransaction, *, parked: bool = False) -> Create:
    return Create(tx=tx, token=next(_tokens), parked=parked)


async def join(store: Store, name: str = "a") -> int:
    return await store.join(name=name, lease_s=600)


async def let_lease_end(store: Store, node_id: int) -> None:
    # It ends at the moment it is prolonged to, by the clock of the store.
    assert await store.renew(node_id, lease_s=0)


async def created(store: Store, node_id: int, *transactions: GlobalTransaction, parked: bool = False) -> None:
    applied = await store.apply(node_id, [create(tx, parked=parked) for tx in transactions])
    assert set(applied) == {Applied.DONE}


async def found(store: Store, gid: str) -> Stored:
    stored = await store.find(gid)
    assert stored is not None
    return stored


async def gids(store: Store, **filters: object) -> Sequence[str]:
    listed = await store.list_transactions(ListQuery(**{"limit": 100, **filters}))  # type: ignore[arg-type]
    return [stored.tx.gid for stored in listed.items]


def tcc(gid: str = "t1", *registered: str, **changes: object) -> GlobalTransaction:
    """A prepared TCC transaction; a cancel and a confirm for each registered payload."""
    branches = tuple(
        BranchOp(branch_id=f"{number:02}", op=op, url=f"http://p{number}/{op}", payload=payload.encode())
        for number, payload in enumerate(registered, start=1)
        for op in (Op.CANCEL, Op.CONFIRM)
    )
    unsent = {"pattern": Pattern.TCC, "status": Status.PREPARED, "deadline_us": LATER_US, "due_us": LATER_US}
    return saga(gid, **{**unsent, "branches": branches, **changes})


RICH = saga(
    "rich",
    pattern=Pattern.SAGA,
    branches=(
        BranchOp(branch_id="01", op=Op.COMPENSATE, url="http://p/undo?x=1&y=%s", payload=b'{"a": 1}'),
        BranchOp(
            branch_id="01",
            op=Op.ACTION,
            url="http://p/do",
            payload=b'{"a": 1}',
            status=OpStatus.FAILED,
            reached=True,
            failures=3,
            refusals=2,
            in_vain=3,
            due_us=NOON_US + 1,
            finished_us=NOON_US + 2,
            attempts=(
                Attempt(at_us=NOON_US, duration_us=17, outcome=Outcome.UNKNOWN, detail="connection refused"),
                Attempt(at_us=NOON_US + 1, duration_us=1, outcome=Outcome.FAILURE, code=409, detail='{"a":"\\"\'"}'),
            ),
        ),
        BranchOp(branch_id="02", op=Op.ACTION, url="", payload=b""),
    ),
    options=Options(
        wait_result=True,
        timeout_to_fail_s=1,
        request_timeout_s=2,
        retry_interval_s=3,
        retry_limit=4,
        branch_headers={"X-Ünïcode": "'quoted\" \\ 😀 %s"},
        concurrent=True,
        orders={1: (0,), 2: (0, 1)},
    ),
    protocol="grpc",
    query_prepared="http://p/query",
    custom_data='{"concurrent":true,"text":"\\u0000 😀"}',
    created_us=NOON_US + 123_456,
    updated_us=NOON_US + 123_457,
    deadline_us=NOON_US + 999_999,
    due_us=NOON_US + 5,
)


# -- finding -------------------------------------------------------------------------


async def test_what_was_created_is_found_as_it_was(store: Store) -> None:
    node = await join(store)
    await created(store, node, RICH)

    stored = await found(store, "rich")

    assert stored.tx == RICH
    assert (stored.owner, stored.epoch) == (node, 1)
    assert stored.id > 0


async def test_an_unknown_gid_is_not_found(store: Store) -> None:
    assert await store.find("nowhere") is None
    assert await store.find("") is None
    assert await store.find("zero\0byte") is None
    assert await store.find("surrogate\ud800") is None
    assert await store.find("x" * 5000) is None


async def test_gids_are_compared_exactly(store: Store) -> None:
    node = await join(store)
    alike = [
        "order-1",
        "Order-1",
        "ORDER-1",
        "order-\u00e9",
        "order-e\u0301",
        "order-e",
        "order-ß",
        "order-ss",
        "😀",
        "%s'\\\"",
    ]
    await created(store, node, *[saga(gid) for gid in alike])

    assert [(await found(store, gid)).tx.gid for gid in alike] == alike
    assert await store.find("g-1 ") is None


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"null", id="null"),
        pytest.param(b"zero \0 byte", id="NUL"),
        pytest.param(b"\xff\xfe\x00\x80", id="not UTF-8"),
        pytest.param(b"\xed\xa0\x80", id="surrogate in UTF-8"),
        pytest.param("😀 ü".encode(), id="emoji"),
        pytest.param(b"'; DROP TABLE node; -- \" ` \\ \\' \\\\", id="quotes and backslashes"),
        pytest.param(b"%s %(x)s %d %% :name ? $1 {}", id="placeholders"),
        pytest.param(b"\x01\x1a\x7f\r\n\t", id="control characters"),
        pytest.param(b'{"base64":"YQ=="}', id="looks like our mark"),
        pytest.param(bytes(range(256)) * 4096, id="1 MiB of bytes"),
        pytest.param(b"'\\" * (512 * 1024), id="1 MiB that is all escaped"),
    ],
)
async def test_payloads_come_back_byte_by_byte(store: Store, payload: bytes) -> None:
    node = await join(store)
    others = (b"before", payload, payload, b"", payload, b"after")
    branches = tuple(BranchOp(branch_id=f"{i:02}", op=Op.ACTION, url="u", payload=p) for i, p in enumerate(others))
    await created(store, node, saga(branches=branches))

    assert (await found(store, "g1")).tx.branches == branches


async def test_texts_that_databases_choke_on_do_not_break_a_batch(store: Store) -> None:
    node = await join(store)
    nasty = "a\0b\x01\x1a\ud800 '\"\\ %s 😀"
    attempt = Attempt(at_us=1, duration_us=1, outcome=Outcome.UNKNOWN, detail=nasty)
    branch = BranchOp(branch_id="01", op=Op.ACTION, url="u", attempts=(attempt,), failures=1)
    await created(store, node, saga("g1", branches=(branch,)), saga("g2"))

    applied = await store.apply(
        node,
        [
            Save(tx=saga("g1", branches=(branch,), rollback_reason=nasty, result=nasty), epoch=1),
            Save(tx=saga("g2", rollback_reason="plain"), epoch=1),
        ],
    )

    assert applied == [Applied.DONE, Applied.DONE]
    tx = (await found(store, "g1")).tx
    assert tx.rollback_reason == tx.result == "a\ufffdb\x01\x1a\ufffd '\"\\ %s 😀"
    assert "'\"\\ %s 😀" in tx.branches[0].attempts[0].detail
    assert (await found(store, "g2")).tx.rollback_reason == "plain"


async def test_a_transaction_may_have_a_thousand_branches(store: Store) -> None:
    node = await join(store)
    branches = tuple(
        BranchOp(branch_id=f"{i:02}", op=Op.ACTION, url=f"http://p/{i}", payload=b"%d" % i) for i in range(1000)
    )
    await created(store, node, saga(branches=branches))
    done = tuple(branch.replace(status=OpStatus.SUCCEEDED, finished_us=NOON_US) for branch in branches)

    assert await store.apply(node, [Save(tx=saga(branches=done), epoch=1)]) == [Applied.DONE]
    assert (await found(store, "g1")).tx.branches == done


async def test_a_batch_may_be_larger_than_a_packet(store: Store) -> None:
    node = await join(store)
    payload = b"'" * (1024 * 1024)
    large = [
        saga(f"g{i}", branches=(BranchOp(branch_id="01", op=Op.ACTION, url="u", payload=payload),)) for i in range(20)
    ]
    await created(store, node, *large)

    assert (await found(store, "g19")).tx == large[19]


# -- the journal ---------------------------------------------------------------------


async def test_a_batch_answers_for_each_change_in_order(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga("there"), saga("saved"), saga("moved"))

    applied = await store.apply(
        node,
        [
            Save(tx=saga("saved", status=Status.ABORTING), epoch=1),
            create(saga("there", status=Status.ABORTING)),
            create(saga("new")),
            Save(tx=saga("moved", status=Status.ABORTING), epoch=7),
            Save(tx=saga("gone"), epoch=1),
        ],
    )

    assert applied == [Applied.DONE, Applied.EXISTS, Applied.DONE, Applied.LEASE_LOST, Applied.LEASE_LOST]
    statuses = {gid: (await found(store, gid)).tx.status for gid in ("saved", "there", "new", "moved")}
    assert statuses == {
        "saved": Status.ABORTING,
        "there": Status.SUBMITTED,
        "new": Status.SUBMITTED,
        "moved": Status.SUBMITTED,
    }
    assert await store.find("gone") is None


async def test_an_empty_batch_checks_the_lease(store: Store) -> None:
    node = await join(store)

    assert list(await store.apply(node, [])) == []
    await let_lease_end(store, node)
    with pytest.raises(LeaseLostError):
        await store.apply(node, [])


async def test_a_save_writes_what_may_change_and_nothing_else(store: Store) -> None:
    node = await join(store)
    await created(store, node, RICH)
    branches = tuple(
        branch.replace(
            url="changed", payload=b"changed", status=OpStatus.SUCCEEDED, failures=0, refusals=7, attempts=()
        )
        for branch in RICH.branches
    )
    tx = RICH.replace(
        status=Status.ABORTING,
        branches=branches,
        options=Options(),
        custom_data="changed",
        query_prepared="changed",
        protocol="http",
        created_us=1,
        deadline_us=1,
        updated_us=LATER_US,
        due_us=LATER_US + 1,
        rollback_reason="out of stock",
        result="result",
    )

    assert await store.apply(node, [Save(tx=tx, epoch=1)]) == [Applied.DONE]

    stored = await found(store, "rich")
    assert (stored.owner, stored.epoch) == (node, 1)
    assert stored.tx == RICH.replace(
        status=Status.ABORTING,
        branches=tuple(
            old.replace(status=OpStatus.SUCCEEDED, failures=0, refusals=7, attempts=(), reached=old.reached)
            for old in RICH.branches
        ),
        updated_us=LATER_US,
        due_us=LATER_US + 1,
        rollback_reason="out of stock",
        result="result",
    )


async def test_a_branch_that_was_registered_is_found_again(store: Store) -> None:
    node = await join(store)
    await created(store, node, tcc("t1"))

    for tx in (tcc("t1", "one"), tcc("t1", "one", "'two' \\ 😀"), tcc("t1", "one", "'two' \\ 😀", "zero \0 byte")):
        assert await store.apply(node, [Save(tx=tx, epoch=1, with_definition=True)]) == [Applied.DONE]
        assert (await found(store, "t1")).tx == tx


async def test_the_results_of_a_workflow_are_found_as_they_were_reported(store: Store) -> None:
    node = await join(store)
    workflow = make_workflow(gid="w1", data=b"\0\xff input")
    await created(store, node, workflow)
    results = [
        step("01", data=b""),
        step("01", "rollback", data=b"\0\xff"),
        step("02", status="failed", data="no stock für dich".encode()),
        step("02", "business", data=b"\0\xff"),
        step("03", "commit", data=b"x" * 100_000),
    ]
    for number, result in enumerate(results, start=1):
        workflow = registered(workflow, result, Limits(), now_us=LATER_US + number, interval_s=10)
        assert await store.apply(node, [Save(tx=workflow, epoch=1, with_definition=True)]) == [Applied.DONE]
    assert (await found(store, "w1")).tx == workflow

    end = TransRequest(gid="w1", req_extra={"status": "succeed", "result": "aGkh" * 50_000})
    workflow = ended(workflow, end, Limits(), now_us=LATER_US + 99)
    assert await store.apply(node, [Save(tx=workflow, epoch=1)]) == [Applied.DONE]

    assert (await found(store, "w1")).tx == workflow


async def test_a_save_with_its_definition_writes_all_that_was_asked_for(store: Store) -> None:
    node = await join(store)
    await created(store, node, tcc("rich", "one"), tcc("other", "one"))

    # All of it but the pattern, the creation and the deadline, which are fixed.
    fixed = {"pattern": Pattern.TCC, "created_us": NOON_US, "deadline_us": LATER_US}
    assert await store.apply(node, [Save(tx=RICH, epoch=1, with_definition=True)]) == [Applied.DONE]

    stored = await found(store, "rich")
    assert stored.tx == RICH.replace(**fixed)
    assert (stored.owner, stored.epoch) == (node, 1)
    assert (await found(store, "other")).tx == tcc("other", "one")


async def test_a_definition_that_was_written_stays(store: Store) -> None:
    node, other = await join(store, "a"), await join(store, "b")
    await created(store, node, tcc("t1"))
    tx = tcc("t1", "one", "two", options=Options(retry_limit=3))
    await store.apply(node, [Save(tx=tx, epoch=1, with_definition=True)])
    done, *rest = tx.branches
    tx = tx.replace(status=Status.SUBMITTED, branches=(done.replace(status=OpStatus.SUCCEEDED), *rest), due_us=NOON_US)

    await store.apply(node, [Save(tx=tx, epoch=1, park=True)])
    [owned] = await store.take_over_due(other, now_us=NOON_US, limit=9)

    assert owned.tx == tx
    assert (await found(store, "t1")).tx == tx


async def test_what_was_registered_outlives_the_node_that_wrote_it(store: Store) -> None:
    dead, node = await join(store, "dead"), await join(store)
    await created(store, dead, tcc("t1"))
    await store.apply(dead, [Save(tx=tcc("t1", "one"), epoch=1, with_definition=True)])
    await let_lease_end(store, dead)
    assert await store.release_dead(now_us=NOON_US, limit=9) == 1

    [owned] = await store.take_over_due(node, now_us=NOON_US, limit=9)

    assert owned.tx == tcc("t1", "one", due_us=NOON_US)


async def test_a_batch_may_hold_saves_with_and_without_a_definition(store: Store) -> None:
    node = await join(store)
    names = ["e", "a", "d", "b", "c"]
    await created(store, node, *[tcc(gid, "one") for gid in names])
    registered = {gid: tcc(gid, "one", f"two of {gid}") for gid in ("e", "b")}
    plain = {gid: tcc(gid, "one", status=Status.ABORTING, rollback_reason=gid) for gid in ("a", "d", "c")}
    batch = [Save(tx=(registered | plain)[gid], epoch=1, with_definition=gid in registered) for gid in names]
    batch.insert(2, Save(tx=tcc("gone", "one"), epoch=1, with_definition=True))

    first = await store.apply(node, [create(tcc("new", "one")), *batch])

    done, lost = Applied.DONE, Applied.LEASE_LOST
    assert list(first) == [done, done, done, lost, done, done, done]
    assert {gid: (await found(store, gid)).tx for gid in names} == registered | plain
    # Again, as after a lost answer; what is not there any more is still not there.
    assert list(await store.apply(node, batch)) == [done, done, lost, done, done, done]
    assert {gid: (await found(store, gid)).tx for gid in names} == registered | plain
    assert await store.find("gone") is None


async def test_registering_again_and_again_in_one_batch_after_another_is_harmless(store: Store) -> None:
    node = await join(store)
    await created(store, node, tcc("t1"))
    one, two = [[Save(tx=tx, epoch=1, with_definition=True)] for tx in (tcc("t1", "one"), tcc("t1", "one", "two"))]

    for batch in (one, one, two, two):
        assert await store.apply(node, batch) == [Applied.DONE]

    assert (await found(store, "t1")).tx == tcc("t1", "one", "two")


async def test_a_large_definition_may_be_written_over(store: Store) -> None:
    node = await join(store)
    await created(store, node, *[tcc(f"t{i}") for i in range(10)])
    large = [tcc(f"t{i}", "'" * (1024 * 1024)) for i in range(10)]

    applied = await store.apply(node, [Save(tx=tx, epoch=1, with_definition=True) for tx in large])

    assert set(applied) == {Applied.DONE}
    assert (await found(store, "t9")).tx == large[9]


async def test_a_definition_is_not_written_under_an_old_epoch(store: Store) -> None:
    late, node = await join(store, "late"), await join(store)
    await created(store, late, tcc("t1", "one"))
    claimed = await store.claim_prepared(node, "t1")
    assert claimed is not None

    batch = [Save(tx=tcc("t1", "one", "late"), epoch=1, with_definition=True)]

    assert await store.apply(late, batch) == [Applied.LEASE_LOST]
    assert (await found(store, "t1")).tx == tcc("t1", "one")


async def test_a_final_status_ends_ownership(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga("won"), saga("lost"))

    await store.apply(
        node,
        [
            Save(tx=saga("won", status=Status.SUCCEEDED, finished_us=LATER_US), epoch=1),
            Save(tx=saga("lost", status=Status.FAILED, finished_us=LATER_US), epoch=1),
        ],
    )

    assert [(await found(store, gid)).owner for gid in ("won", "lost")] == [None, None]
    assert (await found(store, "won")).tx.finished_us == LATER_US
    assert await store.owned(node) == []


async def test_applying_a_batch_again_is_harmless_and_answers_the_same(store: Store) -> None:
    node = await join(store)
    await created(store, node, *[saga(gid) for gid in ("there", "going", "parking", "ending", "moved")])
    batch = [
        create(saga("new")),
        create(saga("new parked", due_us=LATER_US), parked=True),
        create(saga("there", status=Status.ABORTING)),
        Save(tx=saga("going", status=Status.ABORTING), epoch=1),
        Save(tx=saga("parking", due_us=LATER_US), epoch=1, park=True),
        Save(tx=saga("ending", status=Status.SUCCEEDED, finished_us=LATER_US), epoch=1),
        Save(tx=saga("moved"), epoch=2),
    ]
    first = await store.apply(node, batch)
    after_first = await store.list_transactions(ListQuery(limit=100))

    again = await store.apply(node, batch)

    done = Applied.DONE
    assert list(first) == [done, done, Applied.EXISTS, done, done, done, Applied.LEASE_LOST]
    assert again == first
    assert await store.list_transactions(ListQuery(limit=100)) == after_first


async def test_a_batch_applied_again_does_not_undo_what_came_after_it(store: Store) -> None:
    node, other = await join(store, "a"), await join(store, "b")
    await created(store, node, saga("taken"), saga("hurried"), saga("stopped"))
    batch = [
        Save(tx=saga("taken", due_us=NOON_US), epoch=1, park=True),
        Save(tx=saga("hurried", due_us=LATER_US), epoch=1, park=True),
        Save(tx=saga("stopped", due_us=LATER_US), epoch=1, park=True),
    ]
    await store.apply(node, batch)
    assert [owned.tx.gid for owned in await store.take_over_due(other, now_us=NOON_US, limit=9)] == ["taken"]
    await store.make_due("hurried", now_us=NOON_US + 7)
    await store.force_stop("stopped", now_us=NOON_US, reason="by hand")

    await store.apply(node, batch)

    assert (await found(store, "taken")).owner == other
    assert (await found(store, "hurried")).tx.due_us == AT_ONCE
    assert (await found(store, "stopped")).tx.status is Status.FAILED


async def test_a_batch_that_runs_after_later_ones_is_superseded(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga("ended"), saga("parked"), saga("going"), tcc("registered"))

    def save(tx: GlobalTransaction, later_us: int, *, park: bool = False) -> Save:
        with_definition = tx.pattern is Pattern.TCC
        return Save(tx=tx.replace(updated_us=NOON_US + later_us), epoch=1, park=park, with_definition=with_definition)

    late = [save(saga(gid), 1) for gid in ("ended", "parked", "going")]
    late.append(save(tcc("registered", "one"), 1))
    later = [
        save(saga("ended", status=Status.SUCCEEDED, finished_us=LATER_US), 2),
        save(saga("parked", due_us=LATER_US), 2, park=True),
        save(saga("going", status=Status.ABORTING), 2),
        save(tcc("registered", "one", "two"), 2),
    ]
    assert list(await store.apply(node, late)) == [Applied.DONE] * 4
    assert list(await store.apply(node, later)) == [Applied.DONE] * 4
    expected = await store.list_transactions(ListQuery(limit=9))

    assert list(await store.apply(node, late)) == [Applied.DONE] * 4

    assert await store.list_transactions(ListQuery(limit=9)) == expected
    assert [(await found(store, gid)).owner for gid in ("ended", "parked", "going")] == [None, 0, node]
    # What comes next is written as ever, also beside one that is late.
    last = save(saga("going", status=Status.FAILED), 3)
    assert list(await store.apply(node, [late[0], last])) == [Applied.DONE] * 2
    assert [(await found(store, gid)).tx.status for gid in ("ended", "going")] == [Status.SUCCEEDED, Status.FAILED]


async def test_a_parked_creation_belongs_to_nobody(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga(due_us=NOON_US), parked=True)

    stored = await found(store, "g1")

    assert (stored.owner, stored.epoch) == (0, 1)
    assert await store.next_due_us() == NOON_US


async def test_a_write_after_a_take_over_changes_nothing(store: Store, second_store: Store) -> None:
    late, node = await join(store, "late"), await join(second_store)
    await created(store, late, saga())
    await let_lease_end(second_store, late)
    assert await second_store.release_dead(now_us=NOON_US, limit=9) == 1
    [owned] = await second_store.take_over_due(node, now_us=NOON_US, limit=9)

    # Even with a lease of its own, under the old epoch.
    assert await store.apply(node, [Save(tx=saga(status=Status.ABORTING), epoch=1)]) == [Applied.LEASE_LOST]
    assert (await found(store, "g1")).tx.status is Status.SUBMITTED
    assert owned.epoch > 1
    assert await store.apply(node, [Save(tx=saga(status=Status.ABORTING), epoch=owned.epoch)]) == [Applied.DONE]


async def test_a_node_whose_lease_has_ended_writes_nothing(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga("g1"))
    await let_lease_end(store, node)

    with pytest.raises(LeaseLostError):
        await store.apply(node, [create(saga("g2")), Save(tx=saga("g1", status=Status.ABORTING), epoch=1)])
    with pytest.raises(LeaseLostError):
        await store.apply(999_999, [create(saga("g3"))])

    assert await gids(store) == ["g1"]
    assert (await found(store, "g1")).tx.status is Status.SUBMITTED


async def test_a_lost_lease_does_not_hold_up_the_next_batch(store: Store) -> None:
    late, node = await join(store, "late"), await join(store, "b")
    await let_lease_end(store, late)
    with pytest.raises(LeaseLostError):
        await store.apply(late, [create(saga("g1"))])

    await created(store, node, saga("g1"))
    assert await store.release_dead(now_us=NOON_US, limit=9) == 0


# -- leases --------------------------------------------------------------------------


async def test_node_ids_are_never_given_out_twice(store: Store) -> None:
    seen = set()
    for _ in range(4):
        node = await join(store)
        assert node > 0
        seen.add(node)
        await store.leave(node, now_us=NOON_US)
    assert len(seen) == 4


async def test_a_lease_that_has_ended_is_not_revived(store: Store) -> None:
    node = await join(store)
    assert await store.renew(node, lease_s=600)
    await let_lease_end(store, node)

    assert not await store.renew(node, lease_s=600)
    assert not await store.renew(999_999, lease_s=600)
    with pytest.raises(LeaseLostError):
        await store.apply(node, [])


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_lease_that_ends_while_its_renewal_waits_is_not_revived(store: Store, store_url: str) -> None:
    node = await store.join(name="a", lease_s=0.5)
    rows = tables.node
    async with connected(store_url) as rival:
        await rival.execute(select(rows.c.id).where(rows.c.id == node).with_for_update())
        renewing = asyncio.create_task(store.renew(node, lease_s=600))
        await wait_until_somebody_waits_for_a_lock(store_url)
        await asyncio.sleep(0.6)

    assert not await renewing


@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
async def test_a_renewal_does_not_wait_for_what_is_done_under_the_lease(store: Store, store_url: str) -> None:
    node = await join(store)
    assert isinstance(store, ServerStore)
    async with connected(store_url) as at_work, asyncio.timeout(4):
        await at_work.run_sync(statements.check_lease, store._clock_us(), node_id=node)

        assert await store.renew(node, lease_s=600)


async def test_leaving_parks_what_the_node_owned(store: Store) -> None:
    node, other = await join(store, "a"), await join(store, "b")
    await created(store, node, saga("mine"), saga("ended"))
    await created(store, other, saga("not mine"))
    await store.apply(node, [Save(tx=saga("ended", status=Status.SUCCEEDED), epoch=1)])

    await store.leave(node, now_us=LATER_US)
    await store.leave(node, now_us=LATER_US)

    mine = await found(store, "mine")
    assert (mine.owner, mine.tx.due_us) == (0, LATER_US)
    assert mine.epoch > 1
    assert (await found(store, "not mine")).owner == other
    assert (await found(store, "ended")).owner is None
    with pytest.raises(LeaseLostError):
        await store.apply(node, [Save(tx=saga("mine"), epoch=mine.epoch)])


async def test_leaving_parks_more_than_one_transaction_can_hold(store: Store) -> None:
    node = await join(store)
    await created(store, node, *[saga(f"g{i}") for i in range(1203)])

    await store.leave(node, now_us=LATER_US)

    assert await store.owned(node) == []
    assert len(await store.take_over_due(await join(store), now_us=LATER_US, limit=5000)) == 1203


async def test_the_transactions_of_dead_nodes_are_released_a_part_at_a_time(store: Store) -> None:
    dead, also_dead, alive = [await join(store, name) for name in "abc"]
    await created(store, dead, saga("g1"), saga("g2"))
    await created(store, also_dead, saga("g3"))
    await created(store, alive, saga("g4"))
    await let_lease_end(store, dead)
    await let_lease_end(store, also_dead)

    assert await store.release_dead(now_us=LATER_US, limit=2) == 2
    assert await store.release_dead(now_us=LATER_US, limit=2) == 1
    assert await store.release_dead(now_us=LATER_US, limit=2) == 0

    for gid in ("g1", "g2", "g3"):
        stored = await found(store, gid)
        assert (stored.owner, stored.tx.due_us) == (0, LATER_US)
        assert stored.epoch > 1
    assert (await found(store, "g4")).owner == alive
    assert not await store.renew(dead, lease_s=600)


async def test_a_batch_that_races_with_the_release_of_its_node_is_written_before_or_not_at_all(
    store: Store, second_store: Store
) -> None:
    for turn in range(15):
        late = await join(store, f"late {turn}")
        gid = f"g{turn}"
        await created(store, late, saga(gid))
        written = NOON_US

        async def write(late: int = late, gid: str = gid) -> int:
            for number in range(1, 100_000):
                try:
                    [applied] = await store.apply(late, [Save(tx=saga(gid, updated_us=NOON_US + number), epoch=1)])
                except LeaseLostError:
                    return NOON_US + number - 1
                assert applied is Applied.DONE
                await asyncio.sleep(0)
            raise AssertionError("the lease was never lost")

        async def release(late: int = late, gid: str = gid, turn: int = turn) -> Stored:
            # Another moment of the batch in each turn.
            await asyncio.sleep(0.0005 * (turn % 5))
            await let_lease_end(second_store, late)
            # None while a batch is under way, which is then the last.
            while await second_store.release_dead(now_us=LATER_US, limit=9) == 0:
                await asyncio.sleep(0)
            return await found(second_store, gid)

        written, released = await asyncio.gather(write(), release())

        assert released.owner == 0
        assert released.tx.updated_us == written
        assert await found(store, gid) == released


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_node_is_not_released_before_its_batch_under_way_has_ended(store: Store, store_url: str) -> None:
    late, hanging = await join(store, "late"), await join(store, "hanging")
    await created(store, late, saga("g1"))
    await created(store, hanging, saga("g2"))
    await let_lease_end(store, late)
    await let_lease_end(store, hanging)
    async with connected(store_url) as batch:
        # What a batch does first, and holds until it commits.
        await batch.execute(select(tables.node.c.id).where(tables.node.c.id == hanging).with_for_update(read=True))

        # Nor does it keep the others from being released.
        assert await store.release_dead(now_us=NOON_US, limit=9) == 1
        assert (await found(store, "g1")).owner == 0
        assert (await found(store, "g2")).owner == hanging

    assert await store.release_dead(now_us=NOON_US, limit=9) == 1
    assert (await found(store, "g2")).owner == 0


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgres"], indirect=True)
async def test_the_transactions_of_nodes_that_are_not_there_are_released(store: Store, store_url: str) -> None:
    gone, also_gone, alive = [await join(store, name) for name in "abc"]
    await created(store, gone, saga("g1"), saga("g2"))
    await created(store, also_gone, saga("g3"))
    await created(store, alive, saga("g4"), saga("ended"))
    await created(store, alive, saga("parked", due_us=NOON_US), parked=True)
    await store.apply(alive, [Save(tx=saga("ended", status=Status.SUCCEEDED), epoch=1)])
    await run_sql(store_url, f"DELETE FROM node WHERE id IN ({gone}, {also_gone})")  # noqa: S608  (numbers)

    assert await store.release_dead(now_us=LATER_US, limit=2) == 2
    assert await store.release_dead(now_us=LATER_US, limit=2) == 1
    assert await store.release_dead(now_us=LATER_US, limit=2) == 0

    for gid in ("g1", "g2", "g3"):
        stored = await found(store, gid)
        assert (stored.owner, stored.epoch, stored.tx.due_us) == (0, 2, LATER_US)
    assert [(await found(store, gid)).owner for gid in ("g4", "ended", "parked")] == [alive, None, 0]
    assert (await found(store, "parked")).epoch == 1


# -- recovery ------------------------------------------------------------------------


async def test_what_is_due_is_taken_over_earliest_first(store: Store) -> None:
    node = await join(store)
    dues = {"third": 30, "first": 10, "later": 41, "second": 20, "fourth": 40}
    await created(store, node, *[saga(gid, due_us=NOON_US + due) for gid, due in dues.items()], parked=True)
    assert await store.next_due_us() == NOON_US + 10

    first = await store.take_over_due(node, now_us=NOON_US + 40, limit=3)
    second = await store.take_over_due(node, now_us=NOON_US + 40, limit=3)

    assert [owned.tx.gid for owned in first] == ["first", "second", "third"]
    assert [owned.tx.gid for owned in second] == ["fourth"]
    assert first[0].tx == saga("first", due_us=NOON_US + 10)
    assert {owned.epoch for owned in (*first, *second)} == {2}
    assert sorted(await store.owned(node)) == [("first", 2), ("fourth", 2), ("second", 2), ("third", 2)]
    assert await store.next_due_us() == NOON_US + 41


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgres"], indirect=True)
async def test_of_large_ones_no_more_are_taken_over_than_can_be_read_in_a_moment(store: Store) -> None:
    node = await join(store)
    due = [saga(f"g{i:02d}", due_us=NOON_US + i) for i in range(16)]
    for tx in (*due[:2], *(with_payload(tx, 4_000_000) for tx in due[2:])):
        await created(store, node, tx, parked=True)

    taken: list[str] = []
    while len(taken) < 16:
        portion = await store.take_over_due(node, now_us=LATER_US, limit=256)
        assert 0 < len(portion) <= 8
        taken += [owned.tx.gid for owned in portion]

    assert taken == [tx.gid for tx in due]
    assert await store.take_over_due(node, now_us=LATER_US, limit=256) == []


async def test_a_backlog_of_small_ones_is_taken_over_as_one(store: Store) -> None:
    node = await join(store)
    due = [saga(f"g{i:03d}", due_us=NOON_US + i) for i in range(300)]
    await created(store, node, *due, parked=True)

    taken = await store.take_over_due(node, now_us=LATER_US, limit=256)

    assert [owned.tx.gid for owned in taken] == [tx.gid for tx in due[:256]]


async def test_a_microsecond_decides_what_is_due(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga(due_us=NOON_US + 1), parked=True)

    assert await store.take_over_due(node, now_us=NOON_US, limit=1) == []
    assert len(await store.take_over_due(node, now_us=NOON_US + 1, limit=1)) == 1


async def test_nothing_is_taken_that_is_owned_or_final(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga("owned", due_us=NOON_US), saga("final", due_us=NOON_US))
    await store.apply(node, [Save(tx=saga("final", status=Status.FAILED, due_us=NOON_US), epoch=1)])

    assert await store.take_over_due(node, now_us=LATER_US, limit=9) == []
    assert await store.next_due_us() is None


async def test_two_nodes_that_take_over_at_once_get_different_ones(store: Store, second_store: Store) -> None:
    one, two = await join(store, "a"), await join(second_store, "b")
    await created(store, one, *[saga(f"g{i}", due_us=NOON_US + i) for i in range(200)], parked=True)
    taken: dict[int, list[str]] = {one: [], two: []}

    async def take(store: Store, node_id: int) -> None:
        # Skipped rows are not counted, so less than the limit does not mean that nothing is left.
        while await store.next_due_us() is not None:
            owned = await store.take_over_due(node_id, now_us=LATER_US, limit=7)
            assert [item.tx.due_us for item in owned] == sorted(item.tx.due_us or 0 for item in owned)
            taken[node_id] += [item.tx.gid for item in owned]

    await asyncio.gather(take(store, one), take(second_store, two))

    assert sorted(taken[one] + taken[two]) == sorted(f"g{i}" for i in range(200))
    assert sorted(await store.owned(one)) == sorted((gid, 2) for gid in taken[one])


UNREADABLE = {
    "unknown word": ("progress", '[[1,"paused",0,0,false,null,[]]]'),
    "branch that is not there": ("progress", '[[99,"succeed",0,0,false,null,[]]]'),
    "half a document": ("definition", '{"branches":['),
    "unknown status": ("status", "paused"),
    "unknown pattern": ("pattern", "quadrille"),
}


async def spoil(store_url: str) -> None:
    rows = tables.global_transaction
    async with connected(store_url) as connection:
        for gid, (column, value) in UNREADABLE.items():
            await connection.execute(update(rows).where(rows.c.gid == gid).values({column: value}))


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgres"], indirect=True)
async def test_what_cannot_be_read_does_not_keep_the_others_from_being_taken_over(store: Store, store_url: str) -> None:
    node = await join(store)
    await created(store, node, *[saga(gid, due_us=NOON_US) for gid in UNREADABLE], parked=True)
    await created(store, node, *[saga(f"g{i}", due_us=NOON_US + 1) for i in range(3)], parked=True)
    await spoil(store_url)
    taken: list[str] = []

    with structlog.testing.capture_logs() as lines:
        while (due_us := await store.next_due_us()) is not None and due_us <= LATER_US:
            owned = await store.take_over_due(node, now_us=LATER_US, limit=2)
            taken += [item.tx.gid for item in owned]

    assert sorted(taken) == ["g0", "g1", "g2"]
    assert sorted(await store.owned(node)) == [("g0", 2), ("g1", 2), ("g2", 2)]
    assert due_us == LATER_US + UNREADABLE_US
    assert sorted(line["gid"] for line in lines) == sorted(UNREADABLE)
    assert {line["log_level"] for line in lines} == {"error"}


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgres"], indirect=True)
async def test_what_cannot_be_read_is_named(store: Store, store_url: str) -> None:
    node = await join(store)
    await created(store, node, *[saga(gid) for gid in UNREADABLE])
    await spoil(store_url)

    for gid in UNREADABLE:
        with pytest.raises(SchemaError, match=f"{gid} cannot be read"):
            await store.find(gid)
        with pytest.raises(SchemaError, match=f"{gid} cannot be read"):
            await store.force_stop(gid, now_us=NOON_US, reason="by hand")
    await store.ping()


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgres"], indirect=True)
async def test_what_cannot_be_read_is_left_out_of_listings(store: Store, store_url: str) -> None:
    node = await join(store)
    for gid in ("old", *UNREADABLE, "new"):
        await created(store, node, saga(gid))
    await spoil(store_url)

    with structlog.testing.capture_logs() as lines:
        assert await gids(store) == ["new", "old"]
    assert [line["gid"] for line in lines] == list(UNREADABLE)[::-1]
    # A page is full however many were left out, so that a reader goes on to the next.
    assert await gids(store, limit=2) == ["new", "old"]
    new = await found(store, "new")
    assert await gids(store, limit=1, before_id=new.id) == ["old"]
    assert await gids(store, limit=2, before_id=(await found(store, "old")).id) == []
    assert await store.count_by_status() == {Status.SUBMITTED: len(UNREADABLE) + 1}


async def test_a_node_without_a_lease_takes_over_nothing(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga(due_us=NOON_US), parked=True)
    await let_lease_end(store, node)

    with pytest.raises(LeaseLostError):
        await store.take_over_due(node, now_us=LATER_US, limit=1)
    with pytest.raises(LeaseLostError):
        await store.take_over_due(999_999, now_us=LATER_US, limit=1)
    assert (await found(store, "g1")).owner == 0


async def test_a_node_releases_what_it_owns_and_nothing_else(store: Store) -> None:
    node, other = await join(store, "a"), await join(store, "b")
    await created(store, node, saga("mine"), saga("kept"), saga("ended"))
    await created(store, other, saga("not mine"))
    await store.apply(node, [Save(tx=saga("ended", status=Status.SUCCEEDED), epoch=1)])

    assert await store.release(node, ["mine", "not mine", "ended", "unknown"], now_us=LATER_US) == 1
    assert await store.release(node, [], now_us=LATER_US) == 0

    stored = await found(store, "mine")
    assert (stored.owner, stored.tx.due_us) == (0, LATER_US)
    assert stored.epoch > 1
    assert (await found(store, "not mine")).owner == other
    assert [gid for gid, _ in await store.owned(node)] == ["kept"]


async def test_a_prepared_one_is_claimed_whoever_has_it(store: Store) -> None:
    node, other = await join(store, "a"), await join(store, "b")
    await created(store, other, tcc("owned", "one"), tcc("own", "one"))
    await created(store, other, tcc("parked", "one"), tcc("not asked for"), parked=True)
    assert await store.claim_prepared(node, "own") is not None

    epochs = {}
    for gid in ("owned", "own", "parked"):
        claimed = await store.claim_prepared(node, gid)
        assert claimed is not None
        assert claimed.tx == tcc(gid, "one")
        stored = await found(store, gid)
        assert (stored.owner, stored.epoch, stored.tx) == (node, claimed.epoch, claimed.tx)
        epochs[gid] = claimed.epoch

    assert epochs == {"owned": 2, "own": 3, "parked": 2}
    assert sorted(await store.owned(node)) == sorted(epochs.items())
    assert (await found(store, "not asked for")).owner == 0
    assert await store.next_due_us() == LATER_US


async def test_a_node_that_had_it_finds_out_with_its_next_write(store: Store, second_store: Store) -> None:
    had, node = await join(store, "had"), await join(second_store)
    await created(store, had, tcc("t1"), tcc("kept"))
    claimed = await second_store.claim_prepared(node, "t1")
    assert claimed is not None

    batch = [
        Save(tx=tcc("t1", status=Status.ABORTING), epoch=1),
        Save(tx=tcc("kept", status=Status.ABORTING), epoch=1),
    ]

    assert list(await store.apply(had, batch)) == [Applied.LEASE_LOST, Applied.DONE]
    assert (await found(store, "t1")).tx.status is Status.PREPARED
    tx = tcc("t1", "one", status=Status.SUBMITTED)
    assert await second_store.apply(node, [Save(tx=tx, epoch=claimed.epoch, with_definition=True)]) == [Applied.DONE]
    assert (await found(store, "t1")).tx == tx


async def test_only_what_is_prepared_is_claimed(store: Store) -> None:
    node, other = await join(store, "a"), await join(store, "b")
    started = {
        "submitted": tcc("submitted", status=Status.SUBMITTED),
        "aborting": tcc("aborting", status=Status.ABORTING),
        "succeeded": tcc("succeeded", status=Status.SUCCEEDED, due_us=None, finished_us=NOON_US),
        "failed": tcc("failed", status=Status.FAILED, due_us=None, finished_us=NOON_US),
    }
    await created(store, other, *[tcc(gid) for gid in started], tcc("t1"))
    await store.apply(other, [Save(tx=tx, epoch=1) for tx in started.values()])
    await created(store, other, tcc("parked", status=Status.SUBMITTED), parked=True)
    before = await store.list_transactions(ListQuery(limit=9))

    for gid in (*started, "parked", "unknown", "", "T1", "t1 ", "zero\0byte", "surrogate\ud800", "x" * 5000):
        assert await store.claim_prepared(node, gid) is None

    assert await store.list_transactions(ListQuery(limit=9)) == before


async def test_a_node_without_a_lease_claims_nothing(store: Store) -> None:
    node = await join(store)
    await created(store, node, tcc("t1"))
    await let_lease_end(store, node)

    for gid in ("t1", "unknown"):
        with pytest.raises(LeaseLostError):
            await store.claim_prepared(node, gid)
        with pytest.raises(LeaseLostError):
            await store.claim_prepared(999_999, gid)

    stored = await found(store, "t1")
    assert (stored.owner, stored.epoch) == (node, 1)


async def test_of_two_nodes_that_claim_at_once_only_the_last_can_write(store: Store, second_store: Store) -> None:
    one, two = await join(store, "a"), await join(second_store, "b")
    for turn in range(20):
        gid = f"t{turn}"
        await created(store, one, tcc(gid), parked=turn % 2 == 0)

        claims = await asyncio.gather(store.claim_prepared(one, gid), second_store.claim_prepared(two, gid))

        epochs = {node: claimed.epoch for node, claimed in zip((one, two), claims, strict=True) if claimed}
        assert sorted(epochs.values()) == [2, 3]
        last = max(epochs, key=lambda node: epochs[node])
        assert (await found(store, gid)).owner == last
        for node, claimed in epochs.items():
            [applied] = await store.apply(node, [Save(tx=tcc(gid, str(node)), epoch=claimed, with_definition=True)])
            assert applied is (Applied.DONE if node == last else Applied.LEASE_LOST)
        assert (await found(store, gid)).tx == tcc(gid, str(last))


async def test_a_claim_and_a_submit_at_once_go_one_after_the_other(store: Store, second_store: Store) -> None:
    owner, node = await join(store, "a"), await join(second_store, "b")
    for turn in range(20):
        gid = f"t{turn}"
        await created(store, owner, tcc(gid))

        [applied], claimed = await asyncio.gather(
            store.apply(owner, [Save(tx=tcc(gid, status=Status.SUBMITTED), epoch=1)]),
            second_store.claim_prepared(node, gid),
        )

        stored = await found(store, gid)
        if claimed is None:
            assert applied is Applied.DONE
            assert (stored.owner, stored.epoch, stored.tx.status) == (owner, 1, Status.SUBMITTED)
        else:
            assert applied is Applied.LEASE_LOST
            assert (stored.owner, stored.epoch, stored.tx.status) == (node, 2, Status.PREPARED)


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_claim_of_a_locked_one_waits_for_nothing(store: Store, store_url: str) -> None:
    node = await join(store)
    await created(store, node, tcc("t1"), tcc("t2"))
    rows = tables.global_transaction
    async with connected(store_url) as owner:
        await owner.execute(update(rows).where(rows.c.gid == "t1").values(status="submitted"))
        began = time.monotonic()
        claims = await asyncio.gather(*[store.claim_prepared(node, "t1") for _ in range(8)], return_exceptions=True)
        assert time.monotonic() - began < 2
        assert [type(claim) for claim in claims] == [TransactionsLockedError] * 8
        assert await store.renew(node, lease_s=600)
        assert await insist_on_claim(store, node, "t2") is not None

    assert await insist_on_claim(store, node, "t1") is None
    assert (await found(store, "t1")).epoch == 1


async def insist_on_claim(store: Store, node: int, gid: str) -> Owned | None:
    """Claim as the engine does, which tries again: a database may have a row locked for its own upkeep."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(TransactionsLockedError):
                return await store.claim_prepared(node, gid)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_node_is_not_fenced_while_it_claims(store: Store, store_url: str) -> None:
    node = await join(store)
    await created(store, node, tcc("t1"))
    assert isinstance(store, ServerStore)
    locked = select(tables.node.c.id).where(tables.node.c.id == node).with_for_update(skip_locked=True)
    async with connected(store_url) as at_work, connected(store_url) as rival:
        claimed = await at_work.run_sync(statements.claim_prepared, store._clock_us(), node_id=node, gid="t1")

        assert claimed is not None
        assert (await rival.execute(locked)).first() is None


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
@pytest.mark.parametrize("what", ["claim", "stop", "make due"])
async def test_what_is_written_between_two_statements_is_not_overlooked(
    store: Store, store_url: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await join(store)
    await created(store, node, tcc("t1"), parked=True)
    rows, find, changes = tables.global_transaction, statements.find, iter([1, 2])

    def find_and_look_away(connection: Connection, *, gid: str) -> Stored | None:
        stored = find(connection, gid=gid)
        change = next(changes, 0)
        if change:
            later = update(rows).where(rows.c.gid == gid)
            connection.execute(later.values(updated_us=NOON_US + change, result=str(change)))
        return stored

    monkeypatch.setattr(statements, "find", find_and_look_away)
    if what == "claim":
        claimed = await store.claim_prepared(node, "t1")
        assert claimed is not None
        before = claimed.tx
    elif what == "stop":
        stopped = await store.force_stop("t1", now_us=NOON_US + 3, reason="by hand")
        assert stopped is not None
        before = stopped.tx
    else:
        hurried = await store.make_due("t1", now_us=NOON_US + 3)
        assert hurried is not None
        before = hurried.tx

    assert (before.result, before.updated_us) == ("2", NOON_US + 2)
    assert (await found(store, "t1")).epoch == 2


async def test_a_batch_applied_again_does_not_undo_a_claim(store: Store) -> None:
    node, other = await join(store, "a"), await join(store, "b")
    await created(store, node, tcc("t1"), tcc("t2"))
    batch = [Save(tx=tcc("t1", "one"), epoch=1, with_definition=True), Save(tx=tcc("t2"), epoch=1, park=True)]
    await store.apply(node, batch)
    for gid in ("t1", "t2"):
        assert await store.claim_prepared(other, gid) is not None
    await store.apply(other, [Save(tx=tcc("t1", "one", "two"), epoch=2, with_definition=True)])

    await store.apply(node, batch)

    assert (await found(store, "t1")).tx == tcc("t1", "one", "two")
    assert [(await found(store, gid)).owner for gid in ("t1", "t2")] == [other, other]


# -- operators -----------------------------------------------------------------------


async def test_stopping_by_force_fails_an_owned_one_and_its_owner_loses_it(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga(due_us=NOON_US))
    before = await found(store, "g1")

    assert await store.force_stop("g1", now_us=LATER_US, reason="by\0hand") == before

    after = await found(store, "g1")
    assert after.owner is None
    assert after.tx == before.tx.replace(
        status=Status.FAILED, rollback_reason="by\ufffdhand", updated_us=LATER_US, finished_us=LATER_US, due_us=None
    )
    assert await store.apply(node, [Save(tx=saga(), epoch=1)]) == [Applied.LEASE_LOST]
    assert await found(store, "g1") == after


async def test_stopping_by_force_fails_a_parked_one(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga(status=Status.PREPARED, due_us=NOON_US), parked=True)

    await store.force_stop("g1", now_us=LATER_US, reason="by hand")

    assert (await found(store, "g1")).tx.status is Status.FAILED
    assert await store.take_over_due(node, now_us=LATER_US, limit=9) == []


async def test_stopping_by_force_leaves_final_and_unknown_ones_alone(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga())
    await store.apply(node, [Save(tx=saga(status=Status.SUCCEEDED, finished_us=NOON_US), epoch=1)])
    before = await found(store, "g1")

    assert await store.force_stop("g1", now_us=LATER_US, reason="by hand") == before
    assert await found(store, "g1") == before
    assert await store.force_stop("unknown", now_us=LATER_US, reason="by hand") is None


async def test_a_parked_one_can_be_made_due(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga(due_us=LATER_US), parked=True)
    before = await found(store, "g1")

    assert await store.make_due("g1", now_us=NOON_US) == before

    after = await found(store, "g1")
    assert (after.owner, after.tx) == (0, before.tx.replace(due_us=AT_ONCE, updated_us=NOON_US))
    assert len(await store.take_over_due(node, now_us=NOON_US, limit=9)) == 1


@pytest.mark.parametrize("how", ["leave", "release", "release_dead"])
async def test_an_operators_wish_outlives_the_node_that_took_it_over(store: Store, how: str) -> None:
    node, other = await join(store), await join(store, "b")
    await created(store, node, saga("wish", due_us=LATER_US), saga("other", due_us=NOON_US), parked=True)
    await store.make_due("wish", now_us=NOON_US)
    assert len(await store.take_over_due(node, now_us=NOON_US, limit=9)) == 2

    match how:
        case "leave":
            await store.leave(node, now_us=LATER_US)
        case "release":
            assert await store.release(node, ["wish", "other"], now_us=LATER_US) == 2
        case _:
            await let_lease_end(store, node)
            assert await store.release_dead(now_us=LATER_US, limit=9) == 2

    again = await store.take_over_due(other, now_us=LATER_US, limit=9)
    assert {owned.tx.gid: owned.tx.due_us for owned in again} == {"wish": AT_ONCE, "other": LATER_US}


async def test_an_owned_one_is_not_made_due(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga(due_us=LATER_US))
    before = await found(store, "g1")

    assert await store.make_due("g1", now_us=NOON_US) == before
    assert await found(store, "g1") == before
    assert await store.make_due("unknown", now_us=NOON_US) is None


async def test_of_a_final_one_only_the_time_is_noted(store: Store) -> None:
    node = await join(store)
    await created(store, node, saga())
    await store.apply(node, [Save(tx=saga(status=Status.SUCCEEDED), epoch=1)])
    before = await found(store, "g1")

    assert await store.make_due("g1", now_us=LATER_US) == before

    after = await found(store, "g1")
    assert (after.owner, after.tx) == (None, before.tx.replace(due_us=LATER_US, updated_us=LATER_US))
    assert await store.take_over_due(node, now_us=LATER_US, limit=9) == []
    assert await store.next_due_us() is None


async def test_what_is_due_far_in_the_future_is_made_due_up_to_a_limit(store: Store) -> None:
    node = await join(store)
    dues = {"near": 0, "edge": 10, "far": 11, "farther": 12, "farthest": 13}
    await created(store, node, *[saga(gid, due_us=LATER_US + due) for gid, due in dues.items()], parked=True)
    await created(store, node, saga("owned", due_us=LATER_US + 99))

    assert await store.make_far_due(after_us=LATER_US + 10, now_us=NOON_US, limit=2) == 2
    assert await store.make_far_due(after_us=LATER_US + 10, now_us=NOON_US, limit=2) == 1
    assert await store.make_far_due(after_us=LATER_US + 10, now_us=NOON_US, limit=2) == 0

    due = await store.take_over_due(node, now_us=NOON_US, limit=9)
    assert sorted(owned.tx.gid for owned in due) == ["far", "farther", "farthest"]
    assert {owned.tx.updated_us for owned in due} == {NOON_US}
    assert (await found(store, "near")).tx.due_us == LATER_US
    assert (await found(store, "owned")).owner == node


# -- listing and counting ------------------------------------------------------------


async def test_transactions_are_listed_newest_first_page_by_page(store: Store) -> None:
    node = await join(store)
    for number in range(5):
        await created(store, node, saga(f"g{number}"))

    first = await store.list_transactions(ListQuery(limit=2))
    second = await store.list_transactions(ListQuery(limit=2, before_id=first.items[-1].id))
    third = await store.list_transactions(ListQuery(limit=2, before_id=second.items[-1].id))
    end = await store.list_transactions(ListQuery(limit=2, before_id=third.items[-1].id))

    pages = [[stored.tx.gid for stored in page.items] for page in (first, second, third, end)]
    assert pages == [["g4", "g3"], ["g2", "g1"], ["g0"], []]
    assert [page.has_more for page in (first, second, third, end)] == [True, True, False, False]
    assert first.items[0] == (await found(store, "g4")).without_payloads()


async def test_a_listing_has_no_payloads(store: Store) -> None:
    node = await join(store)
    await created(store, node, with_payload(saga(), 1000))

    [listed] = (await store.list_transactions(ListQuery(limit=1))).items

    assert [branch.payload for branch in listed.tx.branches] == [b""] * len(listed.tx.branches)
    assert [branch.url for branch in listed.tx.branches] == [branch.url for branch in saga().branches]


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgres"], indirect=True)
async def test_a_page_ends_before_it_fills_the_memory(store: Store) -> None:
    node = await join(store)
    expected = [f"g{i:02d}" for i in reversed(range(16))]
    for gid in reversed(expected):
        tx = with_payload(saga(gid, status=Status.ABORTING), 2_000_000)
        await created(store, node, tx.replace(rollback_reason="x" * 2_000_000))

    pages = [await store.list_transactions(ListQuery(limit=100))]
    while pages[-1].has_more:
        before_id = pages[-1].items[-1].id
        pages.append(await store.list_transactions(ListQuery(limit=100, before_id=before_id)))

    assert [stored.tx.gid for page in pages for stored in page.items] == expected
    assert len(pages) > 1
    assert all(0 < len(page.items) <= 12 for page in pages)


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgres"], indirect=True)
async def test_payloads_that_are_not_shown_do_not_end_a_page_and_are_not_kept(store: Store) -> None:
    node = await join(store)
    expected = [f"g{i:02d}" for i in reversed(range(24))]
    for gid in reversed(expected):
        await created(store, node, with_payload(saga(gid), 4_000_000))
    tracemalloc.start()

    page = await store.list_transactions(ListQuery(limit=24))

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [stored.tx.gid for stored in page.items] == expected
    assert peak < 96_000_000 * 0.75, "all of them, without anything they are decoded into"


async def test_transactions_are_listed_by_what_they_are(store: Store) -> None:
    node = await join(store)
    await created(
        store,
        node,
        saga("s1", created_us=NOON_US),
        saga("t1", created_us=NOON_US + 1, pattern=Pattern.TCC),
        saga("s2", created_us=NOON_US + 2),
        saga("done", created_us=NOON_US + 3),
    )
    await created(store, node, saga("p1", status=Status.PREPARED, due_us=1, created_us=NOON_US + 4), parked=True)
    await store.apply(node, [Save(tx=saga("done", status=Status.SUCCEEDED), epoch=1)])

    everything = ["p1", "done", "s2", "t1", "s1"]
    assert sorted(await gids(store)) == sorted(everything)
    by_age = [stored.tx.gid for stored in (await store.list_transactions(ListQuery(limit=9))).items]
    submitted = [gid for gid in by_age if gid in ("s1", "t1", "s2")]
    assert await gids(store, status=Status.SUBMITTED) == submitted
    assert await gids(store, status=Status.PREPARED) == ["p1"]
    assert await gids(store, status=Status.ABORTING) == []
    assert await gids(store, status=Status.SUCCEEDED) == ["done"]
    assert await gids(store, pattern=Pattern.TCC) == ["t1"]
    assert await gids(store, created_from_us=NOON_US + 2) == [gid for gid in by_age if gid in ("p1", "done", "s2")]
    assert await gids(store, created_to_us=NOON_US + 1) == [gid for gid in by_age if gid in ("t1", "s1")]
    assert await gids(store, created_from_us=NOON_US + 1, created_to_us=NOON_US + 1, pattern=Pattern.TCC) == ["t1"]
    assert (
        await gids(store, status=Status.SUBMITTED, limit=1) == [gid for gid in by_age if gid in ("s1", "t1", "s2")][:1]
    )


async def test_unfinished_transactions_are_counted_by_status(store: Store) -> None:
    node = await join(store)
    assert await store.count_by_status() == {}
    await created(store, node, saga("a"), saga("b"), saga("c", status=Status.ABORTING), saga("done"))
    await created(store, node, saga("d", status=Status.PREPARED, due_us=1), parked=True)
    await store.apply(node, [Save(tx=saga("done", status=Status.FAILED), epoch=1)])

    assert await store.count_by_status() == {Status.SUBMITTED: 2, Status.ABORTING: 1, Status.PREPARED: 1}


# -- conflicts -----------------------------------------------------------------------


async def _applied_once_unlocked(store: Store, node: int, batch: Sequence[Save]) -> Sequence[Applied]:
    """As the journal does it: whether a database tells a deadlock or a time-out depends on which it sees first."""
    while True:
        try:
            return await store.apply(node, batch)
        except TransactionsLockedError:
            continue


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_batch_that_loses_to_a_deadlock_is_applied_all_the_same(store: Store, store_url: str) -> None:
    node = await join(store)
    many = [saga(f"other {i}") for i in range(20)]
    await created(store, node, saga("g1"), saga("g2"), *many)
    rows = tables.global_transaction
    async with connected(store_url) as rival:
        # It has written more than the batch, so that the database ends the batch rather than this.
        await rival.execute(update(rows).where(rows.c.gid.startswith("other")).values(result="rival"))
        await rival.execute(update(rows).where(rows.c.gid == "g2").values(result="rival"))
        batch = [Save(tx=saga(gid, status=Status.ABORTING), epoch=1) for gid in ("g1", "g2")]
        applying = asyncio.create_task(_applied_once_unlocked(store, node, batch))
        await wait_until_somebody_waits_for_a_lock(store_url)
        await rival.execute(update(rows).where(rows.c.gid == "g1").values(result="rival"))

    assert await applying == [Applied.DONE, Applied.DONE]
    assert [(await found(store, gid)).tx.status for gid in ("g1", "g2")] == [Status.ABORTING, Status.ABORTING]


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_row_that_stays_locked_is_given_up_in_time(store: Store, store_url: str) -> None:
    node = await join(store)
    await created(store, node, saga())
    impatient = open_store(store_url, timeout_s=1)
    await impatient.open()
    rows = tables.global_transaction
    async with connected(store_url) as rival:
        await rival.execute(select(rows.c.id).where(rows.c.gid == "g1").with_for_update())
        with pytest.raises(StoreUnavailableError):
            await impatient.apply(node, [Save(tx=saga(status=Status.ABORTING), epoch=1)])
        with pytest.raises(StoreUnavailableError):
            await impatient.force_stop("g1", now_us=NOON_US, reason="by hand")
        # Reading does not wait.
        assert (await found(impatient, "g1")).tx.status is Status.SUBMITTED

    assert await impatient.apply(node, [Save(tx=saga(status=Status.ABORTING), epoch=1)]) == [Applied.DONE]
    await impatient.close()


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_locked_row_is_named_and_the_rest_of_its_batch_can_go(store: Store, store_url: str) -> None:
    node = await join(store)
    await created(store, node, *[saga(f"g{i}") for i in range(4)])
    rows = tables.global_transaction
    saves = [Save(tx=saga(f"g{i}", status=Status.ABORTING), epoch=1) for i in range(4)]
    batch = [*saves, Create(tx=saga("new"), token=1)]
    async with connected(store_url) as rival:
        await rival.execute(select(rows.c.id).where(rows.c.gid.in_(["g1", "g2"])).with_for_update())

        for patiently in (True, False):
            with pytest.raises(TransactionsLockedError) as refused:
                await store.apply(node, batch, patiently=patiently)
            assert refused.value.gids == {"g1", "g2"}
        assert (await found(store, "g0")).tx.status is Status.SUBMITTED
        assert await store.find("new") is None
        rest = [change for change in batch if change.tx.gid not in refused.value.gids]
        assert await store.apply(node, rest, patiently=False) == [Applied.DONE] * 3

    assert await store.apply(node, batch, patiently=False) == [Applied.DONE] * 5


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_batch_that_is_not_patient_does_not_wait(store: Store, store_url: str) -> None:
    node = await join(store)
    await created(store, node, saga("g1"))
    rows = tables.global_transaction
    async with connected(store_url) as rival:
        await rival.execute(select(rows.c.id).where(rows.c.gid == "g1").with_for_update())
        began = time.monotonic()
        for _ in range(5):
            with pytest.raises(TransactionsLockedError):
                await store.apply(node, [Save(tx=saga(), epoch=1)], patiently=False)

    # Each would have waited for half a second at least.
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("kind", ["mysql"], indirect=True)
async def test_a_gid_that_somebody_is_creating_is_named(store: Store, store_url: str) -> None:
    node = await join(store)
    async with connected(store_url) as rival:
        await created(store, node, saga("g0"))
        # As a batch does that goes in several packets and whose process hangs between two of them.
        copied = "gid, pattern, status, owner, epoch, token, created_us, updated_us, definition, progress"
        await rival.execute(
            text(
                f"INSERT INTO global_transaction ({copied}, rollback_reason, result)"  # noqa: S608
                f" SELECT 'g1', {copied.removeprefix('gid, ')}, '', '' FROM global_transaction WHERE gid = 'g0'"
            )
        )
        with pytest.raises(TransactionsLockedError) as refused:
            await store.apply(node, [Create(tx=saga("g1"), token=1), Create(tx=saga("g2"), token=1)])

    assert refused.value.gids == {"g1"}


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_process_that_hangs_in_a_transaction_does_not_hold_its_locks_for_long(
    store: Store, store_url: str
) -> None:
    node = await join(store)
    await created(store, node, saga("g1"))
    hanging = open_store(store_url, timeout_s=1)
    await hanging.open()
    assert isinstance(hanging, ServerStore)
    assert hanging._engine is not None
    rows = tables.global_transaction
    connection = await hanging._engine.connect()
    await connection.execute(select(rows.c.id).where(rows.c.gid == "g1").with_for_update())

    async with asyncio.timeout(10):
        await _applied_once_unlocked(store, node, [Save(tx=saga(status=Status.ABORTING), epoch=1)])

    await connection.invalidate()
    await connection.close()
    await hanging.close()


# -- connections ---------------------------------------------------------------------


async def test_many_calls_at_once_share_few_connections(store: Store) -> None:
    node = await join(store)
    await asyncio.gather(*(created(store, node, saga(f"g{i}")) for i in range(30)))

    stored = await asyncio.gather(*(found(store, f"g{i}") for i in range(30)))

    assert [item.tx.gid for item in stored] == [f"g{i}" for i in range(30)]


@pytest.mark.parametrize("kind", ["mysql", "postgres"], indirect=True)
async def test_a_nodes_own_work_does_not_wait_for_what_clients_ask(store: Store, store_url: str) -> None:
    busy = open_store(store_url, pool_size=1)
    await busy.open()
    node = await join(busy)
    await created(busy, node, saga("g1"), saga("g2", status=Status.ABORTING))
    await created(busy, node, saga("due", due_us=NOON_US), tcc("prepared"), parked=True)
    document = await busy.put_kv("cat", "locked", "1", replaces=None, now_us=NOON_US)
    async with connected(store_url) as rival:
        await rival.execute(select(tables.kv.c.id).with_for_update())
        asked = [
            asyncio.create_task(busy.put_kv("cat", "locked", "2", replaces=document, now_us=NOON_US)),
            asyncio.create_task(busy.find("g1")),
        ]
        await wait_until_somebody_waits_for_a_lock(store_url)

        assert await busy.renew(node, lease_s=600)
        assert await busy.next_due_us() == NOON_US
        assert [owned.tx.gid for owned in await busy.take_over_due(node, now_us=NOON_US, limit=9)] == ["due"]
        assert await busy.release(node, ["g1"], now_us=NOON_US) == 1
        assert await busy.release_dead(now_us=NOON_US, limit=9) == 0
        assert sorted(await busy.owned(node)) == [("due", 2), ("g2", 1)]
        await busy.leave(await join(busy), now_us=NOON_US)
        assert await busy.claim_prepared(node, "prepared") is not None
        assert await busy.force_stop("g2", now_us=NOON_US, reason="by hand") is not None
        assert not any(call.done() for call in asked)

    await asyncio.gather(*asked)
    await busy.close()


async def test_a_cancelled_call_leaves_no_trace_in_the_next(store: Store) -> None:
    node = await join(store)
    await created(store, node, *[saga(f"g{i}") for i in range(20)])

    for number in range(20):
        calls = [
            asyncio.ensure_future(store.apply(node, [Save(tx=saga(f"g{number}", status=Status.ABORTING), epoch=1)])),
            asyncio.ensure_future(store.find(f"g{number}")),
        ]
        for _ in range(number):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert (await found(store, f"g{19 - number}")).tx.gid == f"g{19 - number}"
        assert await store.apply(node, [Save(tx=saga(f"g{number}"), epoch=1)]) == [Applied.DONE]


async def test_closing_twice_is_harmless(store: Store) -> None:
    await store.ping()
    await store.close()
    await store.close()


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgres"], indirect=True)
async def test_a_closed_store_says_so(store: Store) -> None:
    await store.close()

    with pytest.raises(StoreUnavailableError, match="is not open"):
        await store.find("g1")
    with pytest.raises(StoreUnavailableError, match="is not open"):
        await store.apply(1, [])


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgres"], indirect=True)
async def test_everything_outlives_the_process(store: Store, store_url: str) -> None:
    node = await join(store)
    await created(store, node, RICH)
    await store.close()

    again = open_store(store_url)
    await again.open()

    assert (await found(again, "rich")).tx == RICH
    await again.close()


# -- documents that all coordinators share -------------------------------------------


async def made(store: Store, key: str, value: str = "[]", *, category: str = "topics") -> KeyValue:
    document = await store.put_kv(category, key, value, replaces=None, now_us=NOON_US)
    assert document is not None
    return document


async def keys_listed(store: Store, **filters: object) -> Sequence[str]:
    listed = await store.list_kv(KvQuery(**{"limit": 100, **filters}))  # type: ignore[arg-type]
    return [document.key for document in listed.items]


async def test_a_document_is_found_as_it_was_made(store: Store, second_store: Store) -> None:
    value = '[{"url":"http://p/\'a\\\\b","remark":"ü 😀 %s"}]'

    document = await made(store, "news", value)

    assert [document] == await second_store.find_kv("topics", ["news"])
    assert document == KeyValue(
        id=document.id,
        category="topics",
        key="news",
        value=value,
        version=1,
        created_us=NOON_US,
        updated_us=NOON_US,
    )


async def test_documents_are_found_by_their_very_keys(store: Store) -> None:
    await made(store, "news")
    await made(store, "NEWS")
    await made(store, "news", category="other")

    found = await store.find_kv("topics", ["news", "NEWS", "news", "Né", "news ", "no\0ne", "\ud800"])

    assert sorted(document.key for document in found) == ["NEWS", "news"]
    assert not await store.find_kv("topics", [])
    assert not await store.find_kv("nothing", ["news"])
    assert not await store.find_kv("top\0ics", ["news"])


async def test_a_document_is_made_once(store: Store, second_store: Store) -> None:
    first = await made(store, "news", "1")

    assert await second_store.put_kv("topics", "news", "2", replaces=None, now_us=LATER_US) is None
    assert await store.find_kv("topics", ["news"]) == [first]


async def test_a_change_replaces_what_it_was_made_from(store: Store) -> None:
    first = await made(store, "news", "1")

    second = await store.put_kv("topics", "news", "2", replaces=first, now_us=LATER_US)

    assert second is not None
    assert (second.id, second.value, second.version) == (first.id, "2", 2)
    assert (second.created_us, second.updated_us) == (NOON_US, LATER_US)
    assert await store.find_kv("topics", ["news"]) == [second]


async def test_a_change_made_from_what_is_not_there_any_more_is_lost(store: Store, second_store: Store) -> None:
    first = await made(store, "news", "1")
    second = await store.put_kv("topics", "news", "2", replaces=first, now_us=LATER_US)

    assert await second_store.put_kv("topics", "news", "mine", replaces=first, now_us=LATER_US) is None
    assert await store.find_kv("topics", ["news"]) == [second]


async def test_a_document_made_anew_is_not_taken_for_the_deleted_one(store: Store) -> None:
    first = await made(store, "news", "1")
    assert await store.delete_kv("topics", "news")
    assert await store.put_kv("topics", "news", "mine", replaces=first, now_us=LATER_US) is None
    anew = await made(store, "news", "1")

    assert anew.version == first.version
    assert await store.put_kv("topics", "news", "mine", replaces=first, now_us=LATER_US) is None
    assert await store.find_kv("topics", ["news"]) == [anew]


async def test_deleting_says_whether_there_was_something(store: Store) -> None:
    await made(store, "news")
    await made(store, "weather")

    assert await store.delete_kv("topics", "news")
    assert not await store.delete_kv("topics", "news")
    assert not await store.delete_kv("other", "weather")
    assert await keys_listed(store) == ["weather"]


async def test_of_changes_made_at_once_one_takes_effect_per_version(store: Store, second_store: Store) -> None:
    async def change(on: Store, number: int) -> bool:
        [*found] = await on.find_kv("topics", ["news"])
        before = found[0] if found else None
        value = f"{before.value if before else ''}{number},"
        return await on.put_kv("topics", "news", value, replaces=before, now_us=NOON_US) is not None

    took_effect = await asyncio.gather(*(change((store, second_store)[number % 2], number) for number in range(10)))

    [document] = await store.find_kv("topics", ["news"])
    winners = [str(number) for number, took in enumerate(took_effect) if took]
    assert winners
    assert document.version == len(winners)
    assert sorted(document.value.removesuffix(",").split(",")) == winners


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgres"], indirect=True)
async def test_a_page_of_large_documents_ends_early(store: Store) -> None:
    for i in range(16):
        await store.put_kv("large", f"k{i:02d}", "x" * 3_000_000, replaces=None, now_us=NOON_US)

    first = await store.list_kv(KvQuery(limit=100))
    rest = await store.list_kv(KvQuery(limit=100, before_id=first.items[-1].id))

    assert (first.has_more, rest.has_more) == (True, True)
    assert [document.key for page in (first, rest) for document in page.items] == [
        f"k{i:02d}" for i in range(15, 5, -1)
    ]


async def test_documents_are_listed_newest_first_page_by_page(store: Store) -> None:
    for key in ("a", "b", "c"):
        await made(store, key)
    await made(store, "d", category="other")

    assert await keys_listed(store) == ["d", "c", "b", "a"]
    assert await keys_listed(store, category="topics") == ["c", "b", "a"]
    assert await keys_listed(store, category="nothing\0") == []
    [first] = (await store.list_kv(KvQuery(limit=1, category="topics"))).items
    assert await keys_listed(store, category="topics", before_id=first.id, limit=1) == ["b"]
    assert await keys_listed(store, category="topics", before_id=first.id) == ["b", "a"]
