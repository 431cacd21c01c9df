"""Many transactions at once: what parked ones cost, how fast a backlog is worked off, what is in flight.

python -m bench.scale parked   --store mariadb --count 100000
python -m bench.scale recovery --store mariadb --count 50000
python -m bench.scale flight   --store sqlite  --count 10000
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import httpx
import typer

from bench.coordinator import StoreKind, Target, prepare_schema, running_coordinator, running_store
from bench.measure import Bench
from bench.participants import participants
from localservers.processes import descendants
from txcoord.model import BranchOp, GlobalTransaction, Op, Pattern, Status
from txcoord.protocol import branch_id_of
from txcoord.store.base import Create
from txcoord.store.url import open_store

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

HOUR_US = 3_600_000_000
BATCH = 1000

Kind = Annotated[StoreKind, typer.Option("--store")]


@app.command()
def parked(store: Kind = StoreKind.SQLITE, count: int = 100_000) -> None:
    """Memory of the coordinator with no parked transaction, and with COUNT that are due in an hour."""
    with running_store(store, folder=None, settings={}) as place:
        prepare_schema(place)
        with running_coordinator(place, processes=1) as target:
            empty = _settled_memory(target)
        asyncio.run(_park(place.url, "http://127.0.0.1:9", count, due_us=_now_us() + HOUR_US))
        with running_coordinator(place, processes=1) as target:
            full = _settled_memory(target)
    print(f"{store}: {empty / 2**20:.1f} MiB with none parked, {full / 2**20:.1f} MiB with {count:,}")


@app.command()
def recovery(store: Kind = StoreKind.SQLITE, count: int = 50_000) -> None:
    """Sagas per second from a backlog of COUNT overdue ones after a restart, beside the normal rate."""
    with participants() as answering, running_store(store, folder=None, settings={}) as place:
        prepare_schema(place)
        with running_coordinator(place, processes=1) as target:
            normal = Bench(target=target, participants=answering, store=place).measure(clients=64, seconds=8)
        asyncio.run(_park(place.url, answering.url, count, due_us=_now_us() - HOUR_US))
        with running_coordinator(place, processes=1) as target:
            # Ready means that it is at work: count from what is left then.
            started, done_before = time.perf_counter(), _ended(target)
            give_up = started + 300
            while (done := _ended(target)) < count and time.perf_counter() < give_up:
                time.sleep(0.1)
            seconds = time.perf_counter() - started
    rate = (done - done_before) / seconds
    print(
        f"{store}: {done:,} of {count:,} overdue sagas ended; {rate:,.0f} sagas/s beside {normal.per_s:,.0f}"
        f" normally with 64 clients: {rate / normal.per_s:.0%}"
    )


@app.command()
def flight(store: Kind = StoreKind.SQLITE, count: int = 10_000) -> None:
    """Memory of the coordinator with COUNT transactions whose participants do not answer."""
    with running_store(store, folder=None, settings={}) as place:
        prepare_schema(place)
        with running_coordinator(place, processes=1) as target:
            before = _settled_memory(target)
            live, after = asyncio.run(_fly(target, count))
    print(f"{store}: {before / 2**20:.1f} MiB idle, {after / 2**20:.1f} MiB with {live:,} transactions in flight")


async def _park(url: str, participant: str, count: int, *, due_us: int) -> None:
    store = open_store(url)
    await store.open()
    try:
        node_id = await store.join(name="backlog", lease_s=600)
        for start in range(0, count, BATCH):
            sagas = [_saga(participant, due_us=due_us) for _ in range(min(BATCH, count - start))]
            await store.apply(node_id, [Create(tx=tx, token=secrets.randbits(62) + 1, parked=True) for tx in sagas])
        await store.leave(node_id, now_us=_now_us())
    finally:
        await store.close()


def _saga(participant: str, *, due_us: int) -> GlobalTransaction:
    branches = [
        BranchOp(branch_id=branch_id_of(step), op=op, url=f"{participant}/{name}-{op}", payload=b'{"amount":30}')
        for step, name in enumerate(("a", "b"))
        for op in (Op.COMPENSATE, Op.ACTION)
    ]
    now_us = _now_us()
    return GlobalTransaction(
        gid=secrets.token_hex(12),
        pattern=Pattern.SAGA,
        status=Status.SUBMITTED,
        branches=tuple(branches),
        created_us=now_us,
        updated_us=now_us,
        due_us=due_us,
    )


async def _fly(target: Target, count: int) -> tuple[int, int]:
    async with _silent_participant() as url, httpx.AsyncClient(base_url=target.url, trust_env=False) as http:
        gate = asyncio.Semaphore(32)

        async def submit(number: int) -> None:
            step = {"action": f"{url}/a", "compensate": f"{url}/a-undo"}
            body = {
                "gid": f"flight-{number}",
                "trans_type": "saga",
                "steps": [step, step],
                "payloads": ['{"amount":30}'] * 2,
                "request_timeout": 600,
            }
            async with gate:
                answer = await http.post("/api/dtmsvr/submit", json=body, timeout=60)
            answer.raise_for_status()

        await asyncio.gather(*(submit(number) for number in range(count)))
        return int(_metric(target, "txcoord_live_transactions")), _memory(target)


@contextlib.asynccontextmanager
async def _silent_participant() -> AsyncIterator[str]:
    """Accepts calls and never answers them."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


def _ended(target: Target) -> int:
    return int(_metric(target, "dtm_transaction_process_total"))


def _metric(target: Target, name: str) -> float:
    text = httpx.get(f"{target.url}/api/metrics", trust_env=False, timeout=30).text
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(name))
    return sum(float(value) for _, _, value in lines)


def _settled_memory(target: Target) -> int:
    """Resident memory after a few polls of the store."""
    time.sleep(5)
    return _memory(target)


def _memory(target: Target) -> int:
    assert target.pid is not None
    pages = sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in [target.pid, *descendants(target.pid)]
    )
    return pages * 4096


def _now_us() -> int:
    return time.time_ns() // 1000


if __name__ == "__main__":
    app()
