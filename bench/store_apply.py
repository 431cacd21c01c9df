"""What a batch of the journal costs: `python -m bench.store_apply --store URL`.

Each batch creates half as many sagas as it has changes and saves the end of those of the batch before. Client CPU is
that of this process, which for SQLite includes the database's own work.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import secrets
import time
from collections.abc import Sequence

from bench.preload import finished_saga
from txcoord.model import BranchOp, GlobalTransaction, OpStatus, Status
from txcoord.store.base import Change, Create, Save
from txcoord.store.url import open_store, upgrade

SIZES = (1, 2, 32, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the journal's batches on one store.")
    parser.add_argument("--store", required=True, help="URL of an empty database; its schema is made")
    parser.add_argument("--changes", type=int, default=20_000, help="changes for each size of batch")
    arguments = parser.parse_args()
    if not arguments.store.startswith("memory:"):
        upgrade(arguments.store)
    asyncio.run(_measure(arguments.store, arguments.changes))


async def _measure(url: str, changes: int) -> None:
    store = open_store(url)
    await store.open()
    node_id = await store.join(name="bench", lease_s=3600)
    print(f"{'changes in a batch':>20} {'ms each':>10} {'client CPU, µs a change':>25}")
    for size in SIZES:
        batches = _batches(size, max(20, min(1_000, changes // size)))
        await store.apply(node_id, batches[0])
        gc.collect()
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        for batch in batches[1:]:
            await store.apply(node_id, batch)
        count = len(batches) - 1
        cpu_us = (time.process_time() - began_cpu_s) / count / size * 1e6
        print(f"{size:>20} {(time.perf_counter() - began_s) / count * 1e3:>10.2f} {cpu_us:>25.1f}")
    await store.leave(node_id, now_us=time.time_ns() // 1000)
    await store.close()


def _batches(size: int, count: int) -> Sequence[Sequence[Change]]:
    """Batches of creates and saves in turn; with a single change, of one and then of the other."""
    half = (size + 1) // 2
    batches: list[list[Change]] = []
    ended: list[GlobalTransaction] = []
    while len(batches) < count:
        started = [finished_saga(ended_us=time.time_ns() // 1000) for _ in range(half)]
        creates = [Create(tx=_begun(tx), token=secrets.randbits(62) + 1) for tx in started]
        saves = [Save(tx=tx, epoch=1) for tx in ended]
        batches += [[*creates], [*saves]] if size == 1 else [[*creates, *saves]]
        ended = started
    return batches if size > 1 else [batch for batch in batches if batch]


def _begun(tx: GlobalTransaction) -> GlobalTransaction:
    return tx.replace(status=Status.SUBMITTED, finished_us=None, branches=tuple(map(_untouched, tx.branches)))


def _untouched(branch: BranchOp) -> BranchOp:
    return branch.replace(status=OpStatus.PREPARED, finished_us=None, attempts=())


if __name__ == "__main__":
    main()
