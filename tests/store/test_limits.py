"""More than a database takes at once: refused with a sentence, and the store goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pymysql
import pytest

from localservers.servers import start_mariadb
from tests.sagas import make_saga
from txcoord.model import GlobalTransaction
from txcoord.store.base import Applied, Create, Save, Store
from txcoord.store.sql import mysql, postgresql
from txcoord.store.url import open_store, upgrade

MEBI = 1024 * 1024


def with_payload(gid: str, size: int) -> GlobalTransaction:
    saga = make_saga(gid=gid)
    first, *rest = saga.branches
    return saga.replace(branches=(first.replace(payload=b"x" * size), *rest))


@pytest.fixture(scope="module")
def narrow_url() -> Iterator[str]:
    """A server that takes packets of a mebibyte."""
    with start_mariadb(settings={"max_allowed_packet": "1M"}) as server:
        upgrade(server.url)
        yield server.url


@pytest.fixture
async def narrow(narrow_url: str) -> AsyncIterator[Store]:
    store = open_store(narrow_url)
    await store.open()
    yield store
    await store.close()


async def test_a_change_that_is_larger_than_a_packet_is_refused_alone(narrow: Store) -> None:
    node = await narrow.join(name="a", lease_s=600)
    large, small = Create(tx=with_payload("large", MEBI), token=1), Create(tx=make_saga(gid="small"), token=2)

    for batch in ([large, small], [large]):
        with pytest.raises(ValueError, match=r"large has 10\d+ bytes.*max_allowed_packet is 1048576"):
            await narrow.apply(node, batch)
    assert await narrow.find("small") is None

    assert await narrow.apply(node, [small]) == [Applied.DONE]
    with pytest.raises(ValueError, match="small has"):
        await narrow.apply(node, [Save(tx=with_payload("small", MEBI), epoch=1, with_definition=True)])
    assert await narrow.apply(node, [Save(tx=make_saga(gid="small"), epoch=1)]) == [Applied.DONE]


async def test_a_batch_goes_in_as_many_packets_as_the_server_needs(narrow: Store) -> None:
    node = await narrow.join(name="a", lease_s=600)
    transactions = [with_payload(f"g{number}", 300_000) for number in range(10)]

    created = await narrow.apply(node, [Create(tx=tx, token=3) for tx in transactions])
    saved = await narrow.apply(node, [Save(tx=tx, epoch=1, with_definition=True) for tx in transactions])

    assert {*created, *saved} == {Applied.DONE}
    stored = await narrow.find("g9")
    assert stored is not None
    assert stored.tx == transactions[9]


async def test_a_change_may_fill_a_packet_to_the_last_byte(narrow: Store) -> None:
    node = await narrow.join(name="a", lease_s=600)
    largest = MEBI - mysql._PACKET_ROOM
    rest = len(mysql._insert_row(Create(tx=with_payload("full", 100_000), token=4), node)) - 100_000

    with pytest.raises(ValueError, match="full has"):
        await narrow.apply(node, [Create(tx=with_payload("full", largest - rest + 1), token=4)])
    full = with_payload("full", largest - rest)
    assert await narrow.apply(node, [Create(tx=full, token=4)]) == [Applied.DONE]
    stored = await narrow.find("full")
    assert stored is not None
    assert stored.tx == full


@pytest.mark.parametrize(("number", "is_unavailable"), [(1153, False), (1118, False), (1053, True), (2013, True)])
def test_what_is_too_large_is_not_taken_for_the_servers_state(number: int, is_unavailable: bool) -> None:
    store: Any = open_store("mysql://user@host/db")

    assert store._is_unavailable(pymysql.err.OperationalError(number, "…")) is is_unavailable


@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
async def test_a_batch_that_is_larger_than_a_message_is_refused_and_may_be_halved(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "_LARGEST_BATCH", 100_000)
    node = await store.join(name="a", lease_s=600)
    one, two = [Create(tx=with_payload(gid, 60_000), token=5) for gid in ("one", "two")]

    with pytest.raises(ValueError, match="a batch of 2 changes has"):
        await store.apply(node, [one, two])
    assert await store.apply(node, [one]) == [Applied.DONE]
    assert await store.apply(node, [two]) == [Applied.DONE]

    large = with_payload("one", 120_000)
    with pytest.raises(ValueError, match="one has"):
        await store.apply(node, [Save(tx=large, epoch=1, with_definition=True)])
    with pytest.raises(ValueError, match="one has"):
        await store.apply(node, [Save(tx=large.replace(result="x" * 120_000), epoch=1)])
    assert await store.apply(node, [Save(tx=large, epoch=1)]) == [Applied.DONE]
