"""A message and its local transaction in Redis: every kind of client, and the ready-made check-back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
import redis
import redis.asyncio as aredis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from starlette.applications import Starlette

from localservers.processes import free_port
from localservers.servers import Server
from sdk.tests.client_support import Answer, ScriptedCoordinator
from sdk.tests.redis_support import DESKS, Async, Desk, LossyWay
from txcoord.errors import InvalidRequestError
from txcoord_sdk import AsyncCoordinator, Coordinator, CoordinatorUnreachableError, Message
from txcoord_sdk.barrier import BarrierError, BranchBarrier, DuplicatedError
from txcoord_sdk.barrier.redis import Increment, LuaWork, RedisWork
from txcoord_sdk.branch import BranchFailed
from txcoord_sdk.starlette import query_prepared_route

CHECK = "http://users/query-prepared?tenant=7"
OK = Answer()
BUSY = Answer(503, {"message": "busy"})
OPENING = 100


class Sender:
    """A service that takes money from a counter and sends a message."""

    def __init__(self, desk: Desk, url: str) -> None:
        self.desk = desk
        self.url = url
        self.key = f"purse:{uuid4().hex} &=ü"
        self.gid = f"gid-{uuid4().hex}"

    async def open_account(self) -> None:
        await self.desk.say("SET", self.key, OPENING)

    async def send(self, work: RedisWork | None = None, **options: Any) -> str:
        sent = Message(self.gid, wait_result=options.pop("wait_result", False))
        sent.step("http://gift/grant")
        what = work or Increment(self.key, -30)
        if self.desk.is_async:
            async with AsyncCoordinator(self.url, attempts=1) as client:
                return await client.redis_do_and_submit(sent, CHECK, self.desk.client, what, **options)

        def send_now() -> str:
            with Coordinator(self.url, attempts=1) as client:
                return client.redis_do_and_submit(sent, CHECK, self.desk.client, what, **options)

        return await asyncio.to_thread(send_now)

    async def check_back(self) -> bool:
        return await self.desk.query_prepared(BranchBarrier("msg", self.gid, "00", "msg"), self.key)

    async def balance(self) -> int:
        return int(await self.desk.say("GET", self.key))


@pytest.fixture(params=DESKS, ids=lambda kind: kind.__name__)
async def sender(request: pytest.FixtureRequest, served: tuple[ScriptedCoordinator, str]) -> AsyncIterator[Sender]:
    kind: type[Desk] = request.param
    store = request.getfixturevalue("redis_cluster" if kind.is_cluster else "redis_server")
    sender = Sender(kind(store.url), served[1])
    await sender.open_account()
    yield sender
    await sender.desk.close()


async def ask(server: ScriptedCoordinator, sender: Sender) -> int:
    """Ask back as the coordinator does: at the URL that it was given, with its own parameters added."""
    url = httpx.URL(server.requests[0].body["query_prepared"])
    assert url.params["tenant"] == "7"
    app = Starlette(routes=[query_prepared_route(sender.desk.client)])
    query = {"gid": sender.gid, "trans_type": "msg", "branch_id": "00", "op": "msg"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        return (await client.get(url.copy_merge_params(query))).status_code


async def test_local_transaction_and_message_happen_both(server: ScriptedCoordinator, sender: Sender) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", OK)

    assert await sender.send() == sender.gid

    assert server.paths == ["/prepare", "/submit"]
    assert await sender.balance() == 70
    assert await ask(server, sender) == 200


async def test_what_is_refused_happens_neither(server: ScriptedCoordinator, sender: Sender) -> None:
    server.answers("/prepare", OK)
    server.answers("/abort", OK)

    with pytest.raises(BranchFailed, match="below 0"):
        await sender.send(Increment(sender.key, -101))

    assert "below 0" in server.requests[1].body["rollback_reason"]
    assert await sender.balance() == OPENING
    assert await ask(server, sender) == 409


async def test_a_script_that_breaks_off_aborts_the_message(server: ScriptedCoordinator, sender: Sender) -> None:
    server.answers("/prepare", OK)
    server.answers("/abort", OK)

    with pytest.raises(ResponseError, match="broken"):
        await sender.send(LuaWork("error('broken')", [sender.key]))

    assert await ask(server, sender) == 409


async def test_a_check_back_that_comes_first_wins(server: ScriptedCoordinator, sender: Sender) -> None:
    server.answers("/prepare", OK)
    assert not await sender.check_back()

    with pytest.raises(DuplicatedError, match=sender.gid):
        await sender.send()

    assert server.paths == ["/prepare"]
    assert await sender.balance() == OPENING


async def test_a_second_attempt_with_the_gid_has_no_effect(server: ScriptedCoordinator, sender: Sender) -> None:
    server.answers("/prepare", OK, OK)
    server.answers("/submit", OK)
    await sender.send()

    with pytest.raises(DuplicatedError):
        await sender.send()

    assert await sender.balance() == 70
    assert await ask(server, sender) == 200


async def test_a_refusal_does_not_abort_what_another_attempt_has_done(
    server: ScriptedCoordinator, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers("/prepare", OK, OK)
    server.answers("/submit", OK)
    await sender.send()

    async def refused_just_before(*_: object, **__: object) -> None:
        raise BranchFailed("less than 30")

    with monkeypatch.context() as patched:
        patched.setattr("txcoord_sdk.barrier.redis.Marks.run", refused_just_before)
        with pytest.raises(BranchFailed) as raised:
            await sender.send()

    assert server.paths == ["/prepare", "/submit", "/prepare"]
    assert "check-back" in raised.value.__notes__[-1]


async def test_if_it_cannot_be_prepared_nothing_is_done(sender: Sender) -> None:
    sender.url = f"http://127.0.0.1:{free_port()}"

    with pytest.raises(CoordinatorUnreachableError):
        await sender.send()

    assert await sender.balance() == OPENING


async def test_a_submit_that_does_not_get_through_is_made_up_for(server: ScriptedCoordinator, sender: Sender) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", BUSY)

    assert await sender.send() == sender.gid

    assert await sender.balance() == 70
    assert await ask(server, sender) == 200


async def test_who_waits_for_the_result_hears_that_it_did_not_get_through(
    server: ScriptedCoordinator, sender: Sender
) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", BUSY)

    with pytest.raises(CoordinatorUnreachableError) as raised:
        await sender.send(wait_result=True)

    assert "has committed" in raised.value.__notes__[-1]


async def test_what_cannot_work_is_refused_before_anything_is_sent(
    server: ScriptedCoordinator, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequestError, match="hash tag"):
        await sender.send(Increment("a}", 1))
    with monkeypatch.context() as patched:
        patched.setattr(sender.desk, "client", sender.desk.client.pipeline())
        with pytest.raises(BarrierError, match="later"):
            await sender.send()

    assert server.paths == []


# -- where the connection breaks -------------------------------------------------------------


class Impatient(Async):
    def connect(self, url: str) -> Any:
        return aredis.Redis.from_url(url, retry=AsyncRetry(NoBackoff(), 0))


@pytest.mark.parametrize("arrives", [True, False], ids=["after it took effect", "before it arrives"])
async def test_where_it_is_not_known_the_check_back_finds_out(
    served: tuple[ScriptedCoordinator, str], redis_server: Server, arrives: bool
) -> None:
    server, url = served
    server.answers("/prepare", OK)
    async with LossyWay(redis_server.url) as way:
        sender = Sender(Impatient(way.url), url)
        await sender.open_account()
        other = Sender(sender.desk, url)
        await other.open_account()
        # Redis knows the script from now on: what gets lost is the run, not the search for it.
        await sender.desk.call(BranchBarrier("msg", other.gid, "00", "msg"), Increment(other.key, 1))
        way.loses, way.drops_requests = 1, not arrives

        with pytest.raises(redis.ConnectionError) as raised:
            await sender.send()

        assert "is not known" in raised.value.__notes__[-1]
        assert server.paths == ["/prepare"]
        assert await ask(server, sender) == (200 if arrives else 409)
        assert await sender.balance() == (70 if arrives else OPENING)
        await sender.desk.close()


# -- DTM's names -----------------------------------------------------------------------------


async def test_with_dtm_keys_the_check_back_may_be_in_another_language(
    served: tuple[ScriptedCoordinator, str], redis_server: Server
) -> None:
    server, url = served
    server.answers("/prepare", OK)
    server.answers("/submit", OK)
    sender = Sender(Async(redis_server.url), url)
    await sender.open_account()

    await sender.send(dtm_keys=True)

    assert urlsplit(server.requests[0].body["query_prepared"]).query == "tenant=7"
    assert await sender.desk.say("GET", f"{sender.gid}-00-msg-01") not in (None, b"rollback")
    assert await ask(server, sender) == 200
    await sender.desk.close()
