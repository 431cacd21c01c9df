"""Finished transactions put straight into the store, to see whether throughput depends on how many there are."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

from txcoord.model import Attempt, BranchOp, GlobalTransaction, Op, OpStatus, Outcome, Pattern, Status
from txcoord.store.base import Applied, Create
from txcoord.store.url import open_store

BATCH = 2_000
LEASE_S = 3600.0
SECOND_US = 1_000_000


def preload_finished(url: str, count: int, *, progress: Callable[[int], None] = lambda _: None) -> None:
    """Write `count` sagas that succeeded, one every 10 ms until now; tell how many there are after each batch."""
    asyncio.run(_preload(url, count, progress))


async def _preload(url: str, count: int, progress: Callable[[int], None]) -> None:
    store = open_store(url)
    await store.open()
    try:
        node_id = await store.join(name="preload", lease_s=LEASE_S)
        now_us = int(time.time() * SECOND_US)
        for start in range(0, count, BATCH):
            end = min(start + BATCH, count)
            batch = [finished_saga(ended_us=now_us - (count - number) * 10_000) for number in range(start, end)]
            # Renewed with each batch, however long all of them take.
            await store.renew(node_id, lease_s=LEASE_S)
            applied = await store.apply(node_id, [Create(tx=tx, token=secrets.randbits(62) + 1) for tx in batch])
            assert set(applied) == {Applied.DONE}
            progress(end)
        await store.leave(node_id, now_us=now_us)
    finally:
        await store.close()


def finished_saga(*, ended_us: int) -> GlobalTransaction:
    """Make what the load's sagas leave behind: two branches, both actions called once. Its gid is random."""
    began_us = ended_us - 5_000
    branches: list[BranchOp] = []
    for number, (name, amount) in enumerate((("a", 30), ("b", -30)), start=1):
        branch_id, payload = f"{number:02}", b'{"account":%d,"amount":%d}' % (number, amount)
        base = f"http://127.0.0.1:20000/{name}"
        called_us = began_us + number * 1_000
        attempt = Attempt(at_us=called_us, duration_us=800, outcome=Outcome.SUCCESS, code=200)
        branches += [
            BranchOp(branch_id=branch_id, op=Op.COMPENSATE, url=f"{base}-compensate", payload=payload),
            BranchOp(
                branch_id=branch_id,
                op=Op.ACTION,
                url=base,
                payload=payload,
                status=OpStatus.SUCCEEDED,
                finished_us=called_us + 800,
                attempts=(attempt,),
            ),
        ]
    return GlobalTransaction(
        gid=secrets.token_hex(12),
        pattern=Pattern.SAGA,
        status=Status.SUCCEEDED,
        branches=tuple(branches),
        created_us=began_us,
        updated_us=ended_us,
        finished_us=ended_us,
    )
