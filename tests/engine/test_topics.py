"""Topics on the engine: changes that meet each other, and messages that meet changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.engine.harness import Cluster, Node
from tests.msgs import msg_request
from txcoord.errors import (
    InvalidRequestError,
    SchemaError,
    StatusConflictError,
    StoreUnavailableError,
    SubscribedAlreadyError,
    TopicBusyError,
    TopicNotFoundError,
)
from txcoord.model import Status
from txcoord.msg.topics import CATEGORY, decode_topic
from txcoord.request import TransRequest
from txcoord.store.base import KeyValue
from txcoord.store.memory import FailWhen
from txcoord.topic_service import TRIES


def url(letter: str) -> str:
    return f"http://p/{letter}"


async def subscribe(node: Node, *letters: str, topic: str = "news") -> None:
    for letter in letters:
        await node.service.topics.subscribe(topic, url(letter), "")


async def subscribers(cluster: Cluster, topic: str = "news") -> Sequence[str]:
    [document] = await cluster.store.find_kv(CATEGORY, [topic])
    return [subscriber.url for subscriber in decode_topic(topic, document.value)]


def to_topic(gid: str = "g1", **more: object) -> TransRequest:
    return msg_request(gid, **{"steps": ({"action": "topic://news"},), "payloads": (b"{}",), **more})


def called(cluster: Cluster, gid: str = "g1") -> Sequence[str]:
    return [request.url for request in cluster.participants.requests if request.gid == gid]


# -- changes ---------------------------------------------------------------------------


async def test_changes_made_at_once_are_tried_again_until_all_have_taken_effect(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = cluster.store.find_kv

    async def slow(category: str, keys: Sequence[str]) -> Sequence[KeyValue]:
        found = await find(category, keys)
        await asyncio.sleep(0.001)  # all of them have read before the first one writes
        return found

    monkeypatch.setattr(cluster.store, "find_kv", slow)
    letters = "abcdefghij"

    await asyncio.gather(*(subscribe(node, letter) for letter in letters))

    assert sorted(await subscribers(cluster)) == [url(letter) for letter in letters]
    [document] = await node.service.topics.query_kv(CATEGORY, "news")
    assert document.version == len(letters)


async def test_a_change_that_others_are_always_faster_than_is_given_up(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def overtaken(category: str, key: str, *_: object, **__: object) -> None:
        tried.append(key)

    monkeypatch.setattr(cluster.store, "put_kv", overtaken)

    with pytest.raises(TopicBusyError, match="try it again"):
        await subscribe(node, "a")

    assert tried == ["news"] * TRIES


async def test_a_change_whose_answer_was_lost_may_be_repeated(cluster: Cluster, node: Node) -> None:
    cluster.store.fail_next(when=FailWhen.AFTER, method="put_kv")
    with pytest.raises(StoreUnavailableError):
        await subscribe(node, "a")
    with pytest.raises(SubscribedAlreadyError):
        await subscribe(node, "a")

    cluster.store.fail_next(when=FailWhen.AFTER, method="put_kv")
    with pytest.raises(StoreUnavailableError):
        await node.service.topics.unsubscribe("news", url("a"))
    with pytest.raises(TopicNotFoundError, match="this topic is empty"):
        await node.service.topics.unsubscribe("news", url("a"))


async def test_a_topic_may_be_made_anew(cluster: Cluster, node: Node) -> None:
    await subscribe(node, "a", "b")
    await node.service.topics.delete("news")
    with pytest.raises(TopicNotFoundError, match="no such a topic: news"):
        await node.service.topics.unsubscribe("news", url("a"))

    await subscribe(node, "c")
    await node.service.submit(to_topic(wait_result=True))

    assert called(cluster) == [url("c")]


# -- messages --------------------------------------------------------------------------


async def test_a_change_is_in_effect_on_every_node_at_once(cluster: Cluster, node: Node) -> None:
    other = await cluster.start_node()
    await subscribe(node, "a", "b")
    await other.service.submit(to_topic("g1", wait_result=True))
    await other.service.topics.unsubscribe("news", url("a"))
    await node.service.submit(to_topic("g2", wait_result=True))

    assert called(cluster, "g1") == [url("a"), url("b")]
    assert called(cluster, "g2") == [url("b")]


async def test_receivers_are_settled_when_a_message_is_prepared(cluster: Cluster, node: Node) -> None:
    await subscribe(node, "a", "b")
    await node.service.prepare(to_topic())
    await subscribe(node, "c")
    await node.service.topics.unsubscribe("news", url("a"))

    result = await node.service.submit(to_topic(wait_result=True))

    assert result.status is Status.SUCCEEDED
    assert called(cluster) == [url("a"), url("b")]


@pytest.mark.parametrize("is_parked", [False, True])
@pytest.mark.parametrize("is_spoilt", [False, True])
async def test_what_becomes_of_a_topic_after_the_prepare_does_not_disturb(
    cluster: Cluster, node: Node, is_parked: bool, is_spoilt: bool
) -> None:
    await subscribe(node, "a")
    await node.service.prepare(to_topic())
    if is_parked:
        await cluster.parked()
    await node.service.topics.delete("news")
    if is_spoilt:
        await cluster.store.put_kv(CATEGORY, "news", "no JSON", replaces=None, now_us=0)

    await node.service.prepare(to_topic())
    result = await node.service.submit(to_topic(wait_result=True))

    assert result.status is Status.SUCCEEDED
    assert called(cluster) == [url("a")]


async def test_what_has_ended_says_so_though_its_topic_is_gone(cluster: Cluster, node: Node) -> None:
    await subscribe(node, "a")
    await node.service.submit(to_topic(wait_result=True))
    await node.service.topics.delete("news")

    for again in (node.service.prepare, node.service.submit):
        with pytest.raises(StatusConflictError):
            await again(to_topic())


async def test_how_to_deliver_is_taken_from_the_submit_though_the_topic_is_gone(cluster: Cluster, node: Node) -> None:
    await subscribe(node, "a")
    await node.service.prepare(to_topic())
    await node.service.topics.delete("news")

    await node.service.submit(to_topic(custom_data='{"delay":100}'))

    assert (await cluster.parked()).options.delay_us == 100_000_000


async def test_what_was_never_prepared_needs_its_topic(cluster: Cluster, node: Node) -> None:
    for accept in (node.service.prepare, node.service.submit):
        with pytest.raises(InvalidRequestError, match="topic not found"):
            await accept(to_topic())

    assert await cluster.store.find("g1") is None


async def test_without_the_store_nobody_guesses_who_has_subscribed(cluster: Cluster, node: Node) -> None:
    await subscribe(node, "a")
    cluster.store.fail_next(method="find_kv")

    with pytest.raises(StoreUnavailableError):
        await node.service.submit(to_topic())

    assert await cluster.store.find("g1") is None


async def test_a_topic_changed_by_hand_is_refused_and_can_be_deleted(cluster: Cluster, node: Node) -> None:
    await cluster.store.put_kv(CATEGORY, "news", "no JSON", replaces=None, now_us=0)

    for act in (subscribe(node, "a"), node.service.submit(to_topic())):
        with pytest.raises(SchemaError, match="the stored topic news"):
            await act

    await node.service.topics.delete("news")
    await subscribe(node, "a")
    assert await subscribers(cluster) == [url("a")]
