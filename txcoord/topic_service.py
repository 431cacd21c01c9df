"""The use cases of topics, and of the documents that they are stored as.

Nothing is kept in memory: each message that names a topic reads who has subscribed. A change is in effect on every
coordinator when it is answered, and a topic that was deleted is gone. The read costs one keyed look-up beside the
write that the message needs anyway; a copy in memory would save it, at the price of messages to the wrong receivers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final

from txcoord.engine.clock import Clock
from txcoord.errors import InvalidRequestError, TopicBusyError, TopicNotFoundError
from txcoord.logs import get_logger
from txcoord.msg.topics import (
    CATEGORY,
    Subscriber,
    check_subscriber,
    check_topic,
    decode_topic,
    encode_topic,
    subscribed,
    unsubscribed,
)
from txcoord.request import Limits
from txcoord.store.base import KeyValue, KvQuery, Page, Store

log = get_logger()

TRIES: Final = 10
"""How often a change is tried that others are faster than."""

_BACKOFF_S: Final = 0.01
_LONGEST_BACKOFF_S: Final = 0.3


class TopicService:
    """Checks a request against the rules, and makes it durable."""

    def __init__(self, *, store: Store, limits: Limits, clock: Clock, random: Random) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock
        self._random = random

    async def subscribe(self, topic: str, url: str, remark: str) -> None:
        """Let the messages of a topic, which is made if need be, be sent to one more URL.

        Raises:
            InvalidRequestError, RequestTooLargeError: nothing was stored.
            SubscribedAlreadyError: the topic has this URL.
            TopicBusyError: nothing was stored; the same again may do.
            StoreUnavailableError: whether it was stored is not known. The same again is safe, and
                `SubscribedAlreadyError` then says that it was.
        """
        check_topic(topic)
        subscriber = check_subscriber(url, remark, self._limits)
        await self._change(topic, lambda known: subscribed(topic, known or (), subscriber, self._limits))

    async def unsubscribe(self, topic: str, url: str) -> None:
        """Let no more messages of a topic be sent to a URL. Without its last one the topic is empty, not deleted.

        Raises:
            InvalidRequestError: nothing was stored.
            TopicNotFoundError: there is no such topic, or it has no such subscriber.
            TopicBusyError: nothing was stored; the same again may do.
            StoreUnavailableError: whether it was stored is not known. The same again is safe, and
                `TopicNotFoundError` then says that it was.
        """
        check_topic(topic)
        if not url:
            raise InvalidRequestError("empty url: name the URL that is to be unsubscribed")

        def without(known: Sequence[Subscriber] | None) -> Sequence[Subscriber]:
            if known is None:
                raise TopicNotFoundError(f"no such a topic: {topic}")
            return unsubscribed(topic, known, url)

        await self._change(topic, without)

    async def _change(self, topic: str, change: Callable[[Sequence[Subscriber] | None], Sequence[Subscriber]]) -> None:
        for attempt in range(TRIES):
            found = await self._store.find_kv(CATEGORY, [topic])
            before = found[0] if found else None
            after = change(None if before is None else decode_topic(topic, before.value))
            stored = await self._store.put_kv(
                CATEGORY, topic, encode_topic(after), replaces=before, now_us=self._clock.now_us()
            )
            if stored is not None:
                log.info("topic changed", topic=topic, subscribers=len(after), version=stored.version)
                return
            longest_s = min(_BACKOFF_S * 2**attempt, _LONGEST_BACKOFF_S)
            await asyncio.sleep(longest_s * self._random.random())
        raise TopicBusyError(f"others changed the topic {topic} each of the {TRIES} times this was tried: try it again")

    async def delete(self, topic: str) -> None:
        """Delete a topic with all its subscribers. Messages that are prepared or under way are not touched.

        Raises:
            TopicNotFoundError: there is none.
            StoreUnavailableError: whether it was deleted is not known; the same again is safe.
        """
        if not await self._store.delete_kv(CATEGORY, check_topic(topic)):
            raise TopicNotFoundError(f"no such a topic: {topic}")
        log.info("topic deleted", topic=topic)

    async def resolve(self, topics: Sequence[str]) -> Mapping[str, Sequence[Subscriber]]:
        """Say who has subscribed to these topics, as it is in the store now; a topic that is not there is left out."""
        if not topics:
            return {}
        found = await self._store.find_kv(CATEGORY, topics)
        return {document.key: decode_topic(document.key, document.value) for document in found}

    async def query_kv(self, category: str, key: str) -> Sequence[KeyValue]:
        """The document that has this key."""
        return await self._store.find_kv(category, [key])

    async def scan_kv(self, query: KvQuery) -> Page[KeyValue]:
        """Documents that match, newest first."""
        return await self._store.list_kv(query)
