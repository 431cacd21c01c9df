"""DTM's own tests of topics and of the documents behind them, as ours, against running servers on every store.

On a database server two coordinators share the store, and each request goes to the other one of them: nothing may
depend on which one is asked.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.harness import Process, coordinator, store_for
from tests.integration.dtm import Dtm
from tests.integration.scripted import ERROR, Participant
from txcoord_sdk import AsyncCoordinator, RequestRefusedError

BASE = "/api/dtmsvr"
SUCCESS = {"dtm_result": "SUCCESS"}


@pytest.fixture(scope="module", params=["sqlite", "mysql", "postgres"])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Process]]:
    folder = tmp_path_factory.mktemp("coordinators")
    store = store_for(request, folder)
    # A SQLite store belongs to one process.
    names = ["first"] if request.param == "sqlite" else ["first", "second"]
    processes = [coordinator(store, folder, name=name) for name in names]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            process.close()


class TakingTurns(httpx.AsyncBaseTransport):
    """Sends each request to the next coordinator."""

    def __init__(self, servers: Sequence[Process]) -> None:
        self._ports = itertools.cycle([server.port for server in servers])
        self._transport = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(port=next(self._ports))
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()


@pytest.fixture
async def http(servers: Sequence[Process]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=TakingTurns(servers), base_url=servers[0].url, timeout=20) as client:
        yield client


@pytest.fixture
def dtm(http: httpx.AsyncClient, participant: Participant) -> Dtm:
    return Dtm(http, participant)


class Topic:
    """A topic of the test's own, as DTM's clients see it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.name = f"topic-{uuid4().hex}"

    async def subscribe(self, url: str, **more: str) -> httpx.Response:
        return await self._get("subscribe", {"topic": self.name, "url": url, **more})

    async def unsubscribe(self, url: str, **more: str) -> httpx.Response:
        return await self._get("unsubscribe", {"topic": self.name, "url": url, **more})

    async def _get(self, path: str, query: dict[str, str]) -> httpx.Response:
        return await self._http.get(f"{BASE}/{path}", params=query)

    async def delete(self) -> httpx.Response:
        return await self._http.delete(f"{BASE}/topic/{self.name}")

    async def stored(self) -> dict[str, Any]:
        [document] = (await self._get("queryKV", {"cat": "topics", "key": self.name})).json()["kv"]
        found: dict[str, Any] = document
        return found

    async def urls(self) -> list[str]:
        return [subscriber["url"] for subscriber in json.loads((await self.stored())["v"])]


@pytest.fixture
def topic(http: httpx.AsyncClient) -> Topic:
    return Topic(http)


@pytest.fixture
async def out_and_in(topic: Topic, participant: Participant) -> Topic:
    """A topic with two subscribers."""
    for path in ("out", "in"):
        assert (await topic.subscribe(f"{participant.url}/{path}")).json() == SUCCESS
    return topic


async def send(dtm: Dtm, topic: Topic, path: str = "submit", **more: Any) -> httpx.Response:
    step = {"trans_type": "msg", "steps": [{"action": f"topic://{topic.name}"}], "payloads": ['{"amount":30}']}
    return await dtm.post(path, **{**step, **more})


def said(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["message"]


async def test_topic_normal(topic: Topic) -> None:
    assert (await topic.subscribe("http://p/1", remark="1")).json() == SUCCESS
    status, message = said(await topic.subscribe("http://p/1", remark="2"))
    assert (status, "this url exists" in message) == (409, True)
    assert said(await topic.subscribe("http://p/1", topic="")) == (400, "empty topic: name the topic")
    assert "empty url" in said(await topic.subscribe(""))[1]
    assert (await topic.subscribe("http://p/2", remark="2")).json() == SUCCESS
    assert json.loads((await topic.stored())["v"]) == [
        {"url": "http://p/1", "remark": "1"},
        {"url": "http://p/2", "remark": "2"},
    ]

    assert (await topic.unsubscribe("http://p/1")).json() == SUCCESS
    status, message = said(await topic.unsubscribe("http://p/1"))
    assert (status, "no such an url" in message) == (404, True)
    assert "empty topic" in said(await topic.unsubscribe("http://p/2", topic=""))[1]
    assert "empty url" in said(await topic.unsubscribe(""))[1]
    status, message = said(await topic.unsubscribe("http://p/2", topic=f"not-{topic.name}"))
    assert (status, "no such a topic" in message) == (404, True)
    assert (await topic.unsubscribe("http://p/2")).json() == SUCCESS
    status, message = said(await topic.unsubscribe("http://p/2"))
    assert (status, "this topic is empty" in message) == (404, True)

    assert (await topic.delete()).json() == SUCCESS
    status, message = said(await topic.delete())
    assert (status, "no such a topic" in message) == (404, True)


async def test_concurrent_update_topic(topic: Topic) -> None:
    urls = [f"http://p/{number}" for number in range(20)]

    subscribed = await asyncio.gather(*map(topic.subscribe, urls))

    joined = [url for url, answer in zip(urls, subscribed, strict=True) if answer.status_code == 200]
    assert {answer.status_code for answer in subscribed} <= {200, 503}
    assert sorted(await topic.urls()) == sorted(joined)
    assert joined
    for url in joined:
        assert (await topic.unsubscribe(url)).json() == SUCCESS
    stored = await topic.stored()
    assert (stored["v"], stored["version"]) == ("[]", 2 * len(joined))


async def test_concurrent_subscribes_of_one_url(topic: Topic) -> None:
    answers = await asyncio.gather(*(topic.subscribe("http://p/1") for _ in range(10)))

    assert sorted({answer.status_code for answer in answers} - {503}) == [200, 409]
    assert [answer.status_code for answer in answers].count(200) == 1
    assert await topic.urls() == ["http://p/1"]


async def test_scan_kv(http: httpx.AsyncClient) -> None:
    made = [Topic(http) for _ in range(3)]
    for topic in made:
        await topic.subscribe("http://p/1")

    async def page(**query: Any) -> dict[str, Any]:
        found: dict[str, Any] = (await http.get(f"{BASE}/scanKV", params={"cat": "topics", **query})).json()
        return found

    first = await page(limit=1)
    second = await page(limit=1, position=first["next_position"])
    assert [document["k"] for document in (*first["kv"], *second["kv"])] == [made[2].name, made[1].name]
    assert "" not in (first["next_position"], second["next_position"])
    assert first["next_position"] != second["next_position"]
    rest = await page(limit=1000, position=second["next_position"])
    assert (rest["kv"][0]["k"], rest["next_position"]) == (made[0].name, "")


async def test_query_kv(http: httpx.AsyncClient, topic: Topic) -> None:
    await topic.subscribe("http://p/1")

    assert (await topic.stored())["k"] == topic.name
    unknown = await http.get(f"{BASE}/queryKV", params={"cat": "topics", "key": f"not-{topic.name}"})
    assert (unknown.status_code, unknown.json()) == (200, {"kv": []})


async def test_msg_normal(dtm: Dtm, out_and_in: Topic, participant: Participant) -> None:
    gate = participant.hold("out")
    assert (await send(dtm, out_and_in, "prepare")).json() == SUCCESS
    assert (await send(dtm, out_and_in)).json() == SUCCESS
    assert (await dtm.transaction())["status"] == "submitted"
    gate.set()
    await dtm.ends("succeed", "SS")

    branches = (await dtm.query())["branches"]
    assert [(branch["branch_id"], branch["url"]) for branch in branches] == [
        ("01-01", f"{participant.url}/out"),
        ("01-02", f"{participant.url}/in"),
    ]
    assert participant.calls(dtm.gid) == ["out", "in"]
    assert {call.body for call in participant.received} == {b'{"amount":30}'}
    assert [call.query["branch_id"] for call in participant.received] == ["01-01", "01-02"]


async def test_all_filters_topic_messages_too(
    http: httpx.AsyncClient, dtm: Dtm, out_and_in: Topic, participant: Participant
) -> None:
    sent = [dtm, Dtm(http, participant), Dtm(http, participant)]
    for each in sent:
        await send(each, out_and_in)
        await each.reaches("succeed")

    async def page(**query: Any) -> dict[str, Any]:
        found: dict[str, Any] = (await http.get(f"{BASE}/all", params=query)).json()
        return found

    first = await page(limit=1)
    second = await page(limit=1, position=first["next_position"])
    assert "" not in (first["next_position"], second["next_position"])
    assert first["next_position"] != second["next_position"]
    assert [found["gid"] for found in (await page(gid=dtm.gid))["transactions"]] == [dtm.gid]
    succeeded = await page(status="succeed", transType="msg", limit=1000)
    assert {each.gid for each in sent} <= {found["gid"] for found in succeeded["transactions"]}
    assert {found["status"] for found in succeeded["transactions"]} == {"succeed"}


async def test_concurrent_fan_out(dtm: Dtm, out_and_in: Topic, participant: Participant) -> None:
    gates = [participant.hold("out"), participant.hold("in")]
    await send(dtm, out_and_in, concurrent=True)
    for path in ("out", "in"):
        await participant.called(path, dtm.gid)
    for gate in gates:
        gate.set()
    await dtm.ends("succeed", "SS")


async def test_one_subscriber_stands_in_the_place_of_the_topic(
    dtm: Dtm, topic: Topic, participant: Participant
) -> None:
    await topic.subscribe(f"{participant.url}/in")
    await send(
        dtm,
        topic,
        steps=[{"action": f"{participant.url}/out"}, {"action": f"topic://{topic.name}"}],
        payloads=["{}", "{}"],
    )
    await dtm.ends("succeed", "SS")
    assert [branch["branch_id"] for branch in (await dtm.query())["branches"]] == ["01", "02"]


async def test_a_subscriber_that_fails_is_called_again_and_no_other(
    dtm: Dtm, out_and_in: Topic, participant: Participant
) -> None:
    participant.script("in", ERROR)
    await send(dtm, out_and_in)
    await dtm.ends("succeed", "SS")
    assert participant.calls(dtm.gid) == ["out", "in", "in"]


async def test_topic_not_found(dtm: Dtm, topic: Topic) -> None:
    await topic.subscribe("http://p/1")
    await topic.unsubscribe("http://p/1")
    for name in (topic.name, f"not-{topic.name}", "", "a/b"):
        for path in ("prepare", "submit"):
            status, message = said(await send(dtm, topic, path, steps=[{"action": f"topic://{name}"}]))
            assert (status, "topic not found" in message) == (400, True)
    assert (await dtm.query())["transaction"] is None


async def test_a_topic_deleted_between_prepare_and_submit(
    dtm: Dtm, out_and_in: Topic, participant: Participant
) -> None:
    assert (await send(dtm, out_and_in, "prepare")).json() == SUCCESS
    assert (await out_and_in.delete()).json() == SUCCESS
    assert (await send(dtm, out_and_in, "prepare")).json() == SUCCESS
    assert (await send(dtm, out_and_in, wait_result=True)).json() == SUCCESS
    await dtm.ends("succeed", "SS")
    assert participant.calls(dtm.gid) == ["out", "in"]


async def test_each_change_is_in_effect_at_once_on_every_coordinator(
    http: httpx.AsyncClient, topic: Topic, participant: Participant
) -> None:
    async def receivers() -> Sequence[str]:
        dtm = Dtm(http, participant)
        answer = await send(dtm, topic, wait_result=True)
        return participant.calls(dtm.gid) if answer.status_code == 200 else ()

    # An odd number of requests, twice: each coordinator meets the other's changes and its own.
    for _ in range(2):
        assert await receivers() == ()
        await topic.subscribe(f"{participant.url}/out")
        assert await receivers() == ["out"]
        await topic.subscribe(f"{participant.url}/in")
        assert await receivers() == ["out", "in"]
        await topic.unsubscribe(f"{participant.url}/out")
        assert await receivers() == ["in"]
        await topic.delete()
        assert await receivers() == ()
        await topic.subscribe(f"{participant.url}/new")
        assert await receivers() == ["new"]
        await topic.delete()
        assert (await topic.delete()).status_code == 404


TEXT = st.text(max_size=140)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=TEXT, url=TEXT.map("http://p/".__add__) | TEXT, remark=TEXT)
def test_whatever_is_subscribed_is_stored_as_it_is_or_refused(
    servers: Sequence[Process], name: str, url: str, remark: str
) -> None:
    with httpx.Client(base_url=f"{servers[-1].url}{BASE}", timeout=20) as http:
        subscribed = http.get("subscribe", params={"topic": name, "url": url, "remark": remark})
        shown = http.get("queryKV", params={"cat": "topics", "key": name}).json()["kv"]
        deleted = http.delete(f"topic/{quote(name, safe='')}")

    if subscribed.status_code == 200:
        assert [(document["k"], json.loads(document["v"])) for document in shown] == [
            (name, [{"url": url, "remark": remark}])
        ]
        assert deleted.json() == SUCCESS
    else:
        assert (subscribed.status_code, deleted.status_code in (400, 404)) == (400, True)


# -- by the SDK ------------------------------------------------------------------------


@pytest.fixture(params=["http", "grpc"])
async def sdk(request: pytest.FixtureRequest, servers: Sequence[Process]) -> AsyncIterator[AsyncCoordinator]:
    url = servers[0].url if request.param == "http" else f"grpc://127.0.0.1:{servers[0].grpc_port}"
    async with AsyncCoordinator(url) as coordinator:
        yield coordinator


async def test_the_sdk_sends_to_whom_it_has_subscribed(
    sdk: AsyncCoordinator, topic: Topic, participant: Participant
) -> None:
    for path in ("out", "in"):
        assert await sdk.subscribe(topic.name, f"{participant.url}/{path}", "r")
        assert not await sdk.subscribe(topic.name, f"{participant.url}/{path}")
    first = sdk.message(wait_result=True)
    first.add_topic(topic.name, {"amount": 30})
    await sdk.submit(first)
    assert participant.calls(first.gid) == ["out", "in"]
    assert [branch.branch_id for branch in (await sdk.query(first.gid)).branches] == ["01-01", "01-02"]

    assert await sdk.unsubscribe(topic.name, f"{participant.url}/out")
    assert not await sdk.unsubscribe(topic.name, f"{participant.url}/out")
    second = sdk.message(wait_result=True)
    second.add_topic(topic.name, {"amount": 30})
    await sdk.submit(second)
    assert participant.calls(second.gid) == ["in"]

    assert await sdk.delete_topic(topic.name)
    assert not await sdk.delete_topic(topic.name)
    third = sdk.message()
    third.add_topic(topic.name)
    with pytest.raises(RequestRefusedError, match="topic not found"):
        await sdk.submit(third)


async def test_the_sdk_hears_why_a_subscription_is_refused(sdk: AsyncCoordinator, topic: Topic) -> None:
    with pytest.raises(RequestRefusedError, match="remark has 201 characters"):
        await sdk.subscribe(topic.name, "http://p/1", "r" * 201)
