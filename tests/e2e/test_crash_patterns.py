"""Coordinator and participants die at random moments under a load of transfers.

Whatever is accepted ends, nothing happens twice or by halves, and nothing stays frozen, locked or prepared. Each
pattern sees 50 kills: sagas on every store, the others, whose rows are stored alike, on one each. Workflows:
`test_crash_workflow`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.e2e.bank import chance, is_refused
from tests.e2e.forked import ForkedProcess
from tests.e2e.harness import Bank, Process, XaBank, all_ended, coordinator, store_for
from txcoord_sdk import AsyncCoordinator, Status, TxcoordSdkError

pytestmark = pytest.mark.slow

VANISHING_PERCENT = 15
CLIENTS = 8
BRANCHES = {"01": "out", "02": "in"}


class Initiator:
    """One client that makes transfers. What has no clear answer it repeats, or leaves to the coordinator."""

    def __init__(self, bank: Bank, url: str, http: httpx.AsyncClient) -> None:
        self.bank = bank
        self.coordinator = AsyncCoordinator(url, timeout=10, backoff=0.02, http=http)
        self._url = url
        self._http = http

    async def ask(self, path: str, gid: str, **more: object) -> int:
        """Ask the coordinator until the answer is known."""
        while True:
            try:
                answer = await self._http.post(f"{self._url}/api/dtmsvr/{path}", json={"gid": gid} | more)
            except httpx.TransportError:
                await asyncio.sleep(0.02)
                continue
            if answer.status_code != 503:
                assert answer.status_code in (200, 409), answer.text
                return answer.status_code

    async def call(self, url: str, **request: Any) -> int:
        """Call a participant once; 0: it gave no answer."""
        try:
            return (await self._http.post(url, **request)).status_code
        except httpx.TransportError:
            return 0


# -- the patterns --------------------------------------------------------------------------


async def saga(initiator: Initiator, gid: str) -> bool:
    bank = initiator.bank
    urls = {account: bank.branch_url(account) for account in BRANCHES.values()}
    steps = [{"action": url, "compensate": url} for url in urls.values()]
    payloads = [f'{{"amount":{bank.amount(account)}}}' for account in urls]
    custom_data = '{"concurrent":true}' if chance(gid, "concurrent") < 30 else ""
    await initiator.ask(
        "submit", gid, trans_type="saga", steps=steps, payloads=payloads, custom_data=custom_data
    )  # refused, an earlier submit of ours was accepted, and has turned round since
    return True


def vanishes_before(gid: str) -> str:
    """The step before which the initiator of this transfer vanishes; "" for most."""
    step = chance(gid, "vanish")
    return ["try 01", "register 02", "try 02", "submit"][step % 4] if step < VANISHING_PERCENT else ""


async def tcc(initiator: Initiator, gid: str) -> bool:
    vanishing = vanishes_before(gid)
    options = {"trans_type": "tcc", "timeout_to_fail": 1 if vanishing else 120}
    assert await initiator.ask("prepare", gid, **options) == 200
    for branch_id, account in BRANCHES.items():
        if vanishing == f"register {branch_id}":
            return True
        url = initiator.bank.branch_url(account)
        data = f'{{"amount":{initiator.bank.amount(account)}}}'
        branch = {"branch_id": branch_id, "data": data, "confirm": url, "cancel": url}
        if await initiator.ask("registerBranch", gid, trans_type="tcc", **branch) == 409:
            return True  # the deadline came first
        if vanishing == f"try {branch_id}":
            return True
        query = {"gid": gid, "trans_type": "tcc", "branch_id": branch_id, "op": "try"}
        while (status := await initiator.call(url, params=query, content=data)) not in (200, 409):
            await asyncio.sleep(0.02)  # it may have happened; the same again is safe
        if status == 409:
            # Refused as "it is not prepared", an earlier abort of ours has arrived.
            await initiator.ask("abort", gid, trans_type="tcc", rollback_reason=f"{account} refuses")
            return True
    if vanishing != "submit":
        await initiator.ask("submit", gid, trans_type="tcc")
    return True


async def msg(initiator: Initiator, gid: str) -> bool:
    """Let `out` send it. Interrupted, it is left as it is: whether it is known now shows in the end."""
    bank = initiator.bank
    request = {"gid": gid, "amount": bank.AMOUNT, "to": bank.branch_url("in")}
    status = await initiator.call(f"{bank.services['out'].url}/send", json=request)
    if status not in (200, 409):
        await asyncio.sleep(0.1)
    return status == 200


async def xa(initiator: Initiator, gid: str) -> bool:
    try:
        async with initiator.coordinator.xa(gid, timeout_to_fail=3, request_timeout=2) as block:
            for account in BRANCHES.values():
                payload = {"gid": gid, "amount": initiator.bank.amount(account)}
                await block.call(initiator.bank.branch_url(account), payload)
    except TxcoordSdkError:
        await asyncio.sleep(0.02)
        return False
    return True


@dataclass(frozen=True)
class Case:
    """A pattern under load."""

    begin: Callable[[Initiator, str], Awaitable[bool]]
    """Makes one transfer; says whether the coordinator is known to have it."""
    store: str
    kills: int
    """In all: half of them of the coordinator, half of the two participants."""

    @property
    def name(self) -> str:
        return self.begin.__name__


CASES = [
    Case(saga, "sqlite", 18),
    Case(saga, "mysql", 16),
    Case(saga, "postgres", 16),
    Case(tcc, "postgres", 50),
    Case(msg, "mysql", 50),
    Case(xa, "mysql", 50),
]


# -- load and kills ------------------------------------------------------------------------


class Load:
    """Clients that make transfers until told to stop."""

    def __init__(self, case: Case, bank: Bank, url: str) -> None:
        self._case = case
        self._bank = bank
        self._url = url
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.begun: list[str] = []
        self.accepted: set[str] = set()
        self._progress = asyncio.Condition()

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(CLIENTS)]

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _run(self, number: int) -> None:
        turn = 0
        async with httpx.AsyncClient(timeout=10) as http:
            initiator = Initiator(self._bank, self._url, http)
            while not self._stop.is_set():
                gid = f"t{number}-{turn}"
                turn += 1
                self.begun.append(gid)
                if await self._case.begin(initiator, gid):
                    async with self._progress:
                        self.accepted.add(gid)
                        self._progress.notify_all()

    async def goes_on(self, count: int) -> None:
        """Wait until so many more transfers were accepted."""
        wanted = len(self.accepted) + count
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.accepted) >= wanted)

    async def known(self) -> list[str]:
        """Which of those that were begun the coordinator knows."""
        async with httpx.AsyncClient(timeout=10) as http:
            found = []
            for gid in self.begun:
                answer = await http.get(f"{self._url}/api/dtmsvr/query", params={"gid": gid})
                if answer.json()["transaction"] is not None:
                    found.append(gid)
            return found


async def kill_now_and_then(victims: list[Process], times: int, load: Load, random: Random) -> None:
    for _ in range(times):
        # However slow the machine is, something is on its way when they die.
        await load.goes_on(random.randint(1, 4))
        await asyncio.sleep(random.uniform(0.0, 0.1))
        victim = random.choice(victims)
        victim.kill()
        await asyncio.to_thread(victim.start)


@pytest.fixture(params=CASES, ids=lambda case: f"{case.name}-{case.store}")
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param
    return made


@pytest.fixture
def process(case: Case, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Process]:
    request.param = case.store  # type: ignore[misc]
    made = coordinator(store_for(request, tmp_path), tmp_path, kind=ForkedProcess)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def bank(case: Case, process: Process, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bank]:
    made: Bank
    if case.begin is xa:
        urls = {key: request.getfixturevalue(name) for key, name in _XA_DATABASES.items()}
        made = XaBank(tmp_path, **urls, kind=ForkedProcess)
    else:
        made = Bank(tmp_path, coordinator=process.url, kind=ForkedProcess)
    try:
        made.start()
        yield made
    finally:
        made.close()


_XA_DATABASES = {"out_url": "mysql_url", "in_url": "postgres_url"}


async def test_kill_coordinator_and_participants_at_random_moments(case: Case, process: Process, bank: Bank) -> None:
    random = Random(20261120)
    load = Load(case, bank, process.url)
    load.start()
    await asyncio.gather(
        kill_now_and_then([process], case.kills // 2, load, random),
        kill_now_and_then(list(bank.services.values()), case.kills // 2, load, random),
    )
    await load.stop()

    known = await load.known()
    ended = await all_ended(process.url, known, within_s=90.0)

    bank.check(ended)
    assert load.accepted <= set(known), "accepted, and forgotten"
    assert len(ended) > case.kills
    assert set(ended.values()) == {Status.SUCCEEDED, Status.FAILED}
    for gid, status in ended.items():
        refuses = ["out"] if case.begin is msg else BRANCHES.values()
        if any(is_refused(gid, account) for account in refuses):
            assert status is Status.FAILED, gid
        elif case.begin is saga:
            assert status is Status.SUCCEEDED, gid
    if isinstance(bank, XaBank):
        assert bank.prepared() == []
