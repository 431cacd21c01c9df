"""Topics: whom a message reaches without its initiator knowing them.

An action `topic://name` stands for all that have subscribed to the topic by then. Whom it means is settled when the
message's rows are made: a message that is prepared or under way does not change with its topics.

The functions are pure: they take the subscribers as they stand and return them as they are to be, or raise what the
caller is told. Their sentences begin with DTM's words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from txcoord.errors import (
    InvalidRequestError,
    RequestTooLargeError,
    SchemaError,
    SubscribedAlreadyError,
    TopicNotFoundError,
)
from txcoord.protocol import GRPC, TOPIC_SCHEME
from txcoord.request import Limits, check_url

CATEGORY = "topics"
"""Of the documents that topics are stored as."""

MAX_TOPIC_LENGTH = 128
MAX_REMARK_LENGTH = 200

TOPIC_BYTES_AT_MOST = 256 << 10
"""Of a topic as it is stored: it is read for each message that names it."""


class Subscriber(Struct, frozen=True):
    """Who gets the messages of a topic."""

    url: str
    remark: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[Subscriber, ...]).decode


def encode_topic(subscribers: Sequence[Subscriber]) -> str:
    """Write a topic down as DTM's clients read it: an array of url and remark."""
    return _encode(subscribers).decode()


def decode_topic(topic: str, value: str) -> Sequence[Subscriber]:
    """Read what `encode_topic` wrote.

    Raises:
        SchemaError: it was changed by hand.
    """
    try:
        return _decode(value)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise SchemaError(
            f"the stored topic {topic} cannot be read ({error}): mend its row, or delete the topic and subscribe again"
        ) from error


def check_topic(topic: str) -> str:
    """Return the name of a topic that every store can keep and that fits into one segment of a path."""
    if not topic:
        raise InvalidRequestError("empty topic: name the topic")
    if len(topic) > MAX_TOPIC_LENGTH:
        raise InvalidRequestError(f"the topic's name has {len(topic)} characters: at most {MAX_TOPIC_LENGTH} fit")
    if not _is_topic(topic):
        raise InvalidRequestError(
            f"the topic's name {topic!r} has slashes, control characters or outer spaces, or only dots: use other ones"
        )
    return topic


def _is_topic(topic: str) -> bool:
    return (
        0 < len(topic) <= MAX_TOPIC_LENGTH
        and topic.isprintable()
        and topic == topic.strip()
        and "/" not in topic
        and bool(topic.strip("."))
    )


def check_subscriber(url: str, remark: str, limits: Limits) -> Subscriber:
    """Return a subscriber that can be called: over HTTP, or over gRPC at host:port/package.Service/Method."""
    if not url:
        raise InvalidRequestError("empty url: name the http(s) or gRPC URL that the topic's messages are to be sent to")
    # Which protocol a message uses is not known yet: under this one, either form of a URL will do.
    check_url(url, where="url", limits=limits, protocol=GRPC)
    if len(remark) > MAX_REMARK_LENGTH:
        raise InvalidRequestError(f"remark has {len(remark)} characters: at most {MAX_REMARK_LENGTH} fit")
    if not remark.isprintable():
        raise InvalidRequestError(f"remark {remark!r} has control characters: use printable ones")
    return Subscriber(url, remark)


def subscribed(
    topic: str, subscribers: Sequence[Subscriber], subscriber: Subscriber, limits: Limits
) -> Sequence[Subscriber]:
    """Return them with one more, the last.

    Raises:
        SubscribedAlreadyError: its URL is among them.
        RequestTooLargeError: they are as many as one message can reach.
    """
    if any(known.url == subscriber.url for known in subscribers):
        raise SubscribedAlreadyError(topic, url=subscriber.url)
    if len(subscribers) >= limits.max_branches:
        raise RequestTooLargeError(
            f"the topic {topic} has {len(subscribers)} subscribers: at most {limits.max_branches} (max_branches)"
            " are allowed"
        )
    more = (*subscribers, subscriber)
    size = len(_encode(more))
    if size > TOPIC_BYTES_AT_MOST:
        raise RequestTooLargeError(
            f"the topic {topic} would need {size} bytes with this subscriber: at most {TOPIC_BYTES_AT_MOST} are allowed"
        )
    return more


def unsubscribed(topic: str, subscribers: Sequence[Subscriber], url: str) -> Sequence[Subscriber]:
    """Return them without one.

    Raises:
        TopicNotFoundError: there is none with this URL.
    """
    if not subscribers:
        raise TopicNotFoundError(f"this topic is empty: {topic} has no subscribers")
    others = tuple(known for known in subscribers if known.url != url)
    if len(others) == len(subscribers):
        raise TopicNotFoundError(f"no such an url among the subscribers of the topic {topic}: {url}")
    return others


def topic_of(url: str) -> str | None:
    """The topic that an action names; None: it is a URL to be called."""
    return url.removeprefix(TOPIC_SCHEME) if url.startswith(TOPIC_SCHEME) else None


def topics_of(steps: Sequence[Mapping[str, str]]) -> Sequence[str]:
    """The topics that the actions of a message name and that could exist, each once."""
    named = (topic_of(step.get("action", "")) for step in steps)
    return [*dict.fromkeys(topic for topic in named if topic is not None and _is_topic(topic))]
