"""Who is in a topic, and what a message that names one becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.msgs import QUERY_PREPARED, msg_request
from tests.sagas import NOON_US
from txcoord.errors import (
    InvalidRequestError,
    RequestTooLargeError,
    SchemaError,
    SubscribedAlreadyError,
    TopicNotFoundError,
)
from txcoord.model import GlobalTransaction, Op, Status
from txcoord.msg.request import FANNED_OUT_AT_MOST, build_msg
from txcoord.msg.topics import (
    MAX_REMARK_LENGTH,
    MAX_TOPIC_LENGTH,
    TOPIC_BYTES_AT_MOST,
    Subscriber,
    check_subscriber,
    check_topic,
    decode_topic,
    encode_topic,
    subscribed,
    topics_of,
    unsubscribed,
)
from txcoord.request import Limits
from txcoord.store import codec

LIMITS = Limits(max_branches=3, max_payload_bytes=100)

A, B, C, D = (Subscriber(f"http://p/{letter}", f"remark of {letter}") for letter in "abcd")
OVER_GRPC = Subscriber("mail:50051/mail.Mail/Send")


# -- the rules of a topic ------------------------------------------------------------


def test_a_subscriber_joins_at_the_end_and_leaves_without_disturbing_the_others() -> None:
    both = subscribed("news", subscribed("news", (), A, LIMITS), B, LIMITS)

    assert both == (A, B)
    assert unsubscribed("news", both, A.url) == (B,)
    assert unsubscribed("news", (B,), B.url) == ()


def test_a_url_is_subscribed_once_whatever_its_remark() -> None:
    with pytest.raises(SubscribedAlreadyError, match=r"^this url exists: the topic news has"):
        subscribed("news", (A, B), Subscriber(A.url, "another"), LIMITS)


def test_what_is_not_there_cannot_be_unsubscribed() -> None:
    with pytest.raises(TopicNotFoundError, match=r"^this topic is empty: news"):
        unsubscribed("news", (), A.url)
    with pytest.raises(
        TopicNotFoundError, match=r"^no such an url among the subscribers of the topic news: http://p/b"
    ):
        unsubscribed("news", (A,), B.url)


def test_a_topic_has_as_many_subscribers_as_a_message_can_reach() -> None:
    with pytest.raises(RequestTooLargeError, match="max_branches"):
        subscribed("news", (A, B, C), D, LIMITS)


def test_a_topic_is_bounded_as_it_is_stored() -> None:
    limits = Limits(max_branches=10_000, max_url_length=1024)
    many: Sequence[Subscriber] = ()
    while len(encode_topic(many)) < TOPIC_BYTES_AT_MOST - 2000:
        many = subscribed("news", many, Subscriber(f"http://p/{len(many)}/{'x' * 1000}"), limits)

    with pytest.raises(RequestTooLargeError, match=f"at most {TOPIC_BYTES_AT_MOST}"):
        subscribed("news", many, Subscriber(f"http://p/{'é' * 1000}"), limits)


def test_a_topic_is_stored_as_dtms_clients_read_it() -> None:
    assert json.loads(encode_topic((A,))) == [{"url": A.url, "remark": A.remark}]
    assert encode_topic(()) == "[]"


def test_a_topic_that_dtm_has_written_is_read() -> None:
    assert decode_topic("news", '[{"url":"http://p/a","remark":"","more":1},{"url":"http://p/b"}]') == (
        Subscriber("http://p/a"),
        Subscriber("http://p/b"),
    )


@pytest.mark.parametrize("value", ["", "no JSON", "{}", '[{"url":1}]', '[{"remark":"r"}]', "[" * 100_000])
def test_a_topic_that_was_changed_by_hand_is_told_by_its_name(value: str) -> None:
    with pytest.raises(SchemaError, match="the stored topic news cannot be read"):
        decode_topic("news", value)


@given(st.lists(st.builds(Subscriber, st.text(), st.text())))
def test_a_stored_topic_is_read_as_it_was(subscribers: Sequence[Subscriber]) -> None:
    stored = encode_topic(subscribers)

    assert codec.clean_text(stored) == stored, "every database can hold it"
    assert list(decode_topic("news", stored)) == subscribers


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([A, B, C, D])), max_size=30))
def test_a_topic_is_the_ordered_set_of_its_subscribers(changes: Sequence[tuple[bool, Subscriber]]) -> None:
    limits = Limits(max_branches=4)
    topic: Sequence[Subscriber] = ()
    expected: dict[str, Subscriber] = {}
    for joins, subscriber in changes:
        if joins and subscriber.url not in expected:
            topic = subscribed("news", topic, subscriber, limits)
            expected[subscriber.url] = subscriber
        elif not joins and subscriber.url in expected:
            topic = unsubscribed("news", topic, subscriber.url)
            del expected[subscriber.url]
        else:
            with pytest.raises(SubscribedAlreadyError if joins else TopicNotFoundError):
                subscribed("news", topic, subscriber, limits) if joins else unsubscribed("news", topic, subscriber.url)
        assert list(topic) == [*expected.values()]


@pytest.mark.parametrize("name", ["news", "http_trans", "Ünïcode 😀", "a.b-c:d", "..a", "n" * MAX_TOPIC_LENGTH])
def test_a_name_that_can_be_kept(name: str) -> None:
    assert check_topic(name) == name
    assert topics_of([{"action": f"topic://{name}"}]) == [name]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "empty topic"),
        ("n" * (MAX_TOPIC_LENGTH + 1), "129 characters"),
        ("a/b", "slashes"),
        (" a", "outer spaces"),
        ("a\n", "control characters"),
        ("a\0", "control characters"),
        ("\ud800", "control characters"),
        ("..", "only dots"),
    ],
)
def test_a_name_that_cannot(name: str, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        check_topic(name)
    assert topics_of([{"action": f"topic://{name}"}]) == []


def test_a_message_names_each_topic_once_in_order() -> None:
    actions = ["topic://b", "http://p/x", "topic://a", "topic://b", "topic://", ""]

    assert topics_of([*({"action": action} for action in actions), {}]) == ["b", "a"]


@pytest.mark.parametrize("url", ["http://p/a?b=c", "https://p", "p:50051/a.B/C", "[::1]:1/a.B/C"])
def test_a_subscriber_can_be_called_over_http_or_grpc(url: str) -> None:
    assert check_subscriber(url, "r", LIMITS) == Subscriber(url, "r")


@pytest.mark.parametrize(
    ("url", "remark", "complaint"),
    [
        ("", "", "empty url"),
        ("ftp://p/a", "", "host:port/package.Service/Method"),
        ("http:///a", "", "not a complete http"),
        ("http://p/a b", "", "spaces"),
        ("topic://other", "", "host:port/package.Service/Method"),
        (f"http://p/{'a' * 1024}", "", "max_url_length"),
        ("http://p/a", "r" * (MAX_REMARK_LENGTH + 1), "remark has 201 characters"),
        ("http://p/a", "line\nbreak", "control characters"),
    ],
)
def test_a_subscriber_that_cannot_be_called_is_refused(url: str, remark: str, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        check_subscriber(url, remark, LIMITS)


# -- a message that names topics -----------------------------------------------------


def build(
    actions: Sequence[str],
    topics: Mapping[str, Sequence[Subscriber]],
    *,
    payload: bytes = b"{}",
    limits: Limits = LIMITS,
    **more: object,
) -> GlobalTransaction:
    request = msg_request(
        steps=tuple({"action": action} for action in actions), payloads=(payload,) * len(actions), **more
    )
    return build_msg(request, limits, now_us=NOON_US, status=Status.PREPARED, default_timeout_s=35.0, topics=topics)


def calls(msg: GlobalTransaction) -> list[tuple[str, str]]:
    return [(op.branch_id, op.url) for op in msg.branches if op.op is Op.ACTION]


def test_each_subscriber_gets_a_branch_below_the_step() -> None:
    msg = build(["http://p/0", "topic://news"], {"news": (A, B)}, query_prepared=QUERY_PREPARED)

    assert calls(msg) == [("01", "http://p/0"), ("02-01", A.url), ("02-02", B.url)]
    assert (msg.branches[-1].branch_id, msg.branches[-1].op) == ("00", Op.MSG)


def test_a_single_subscriber_stands_in_the_place_of_the_topic() -> None:
    assert calls(build(["topic://news", "topic://news"], {"news": (A,)})) == [("01", A.url), ("02", A.url)]


def test_the_payload_of_all_subscribers_is_stored_once() -> None:
    msg = build(["topic://news"], {"news": (A, B, C)}, payload=b"x" * 99)

    assert {op.payload for op in msg.branches if op.op is Op.ACTION} == {b"x" * 99}
    assert codec.encode_definition(msg).count(b"x" * 99) == 1


@pytest.mark.parametrize("topics", [{}, {"news": ()}])
def test_a_topic_without_subscribers_is_not_found(topics: Mapping[str, Sequence[Subscriber]]) -> None:
    with pytest.raises(InvalidRequestError, match=r"^topic not found: 'news'"):
        build(["http://p/0", "topic://news"], topics)


def test_a_topic_without_a_name_is_not_found() -> None:
    with pytest.raises(InvalidRequestError, match=r"^topic not found: ''"):
        build(["topic://"], {})


def test_the_subscribers_of_all_topics_together_are_bounded() -> None:
    with pytest.raises(RequestTooLargeError, match=r"4 actions .*max_branches"):
        build(["topic://news", "topic://other"], {"news": (A, B), "other": (C, D)})


def test_payloads_are_bounded_with_each_subscriber() -> None:
    limits = Limits(max_branches=FANNED_OUT_AT_MOST + 1, max_payload_bytes=100)
    many = [Subscriber(f"http://p/{number}") for number in range(FANNED_OUT_AT_MOST + 1)]

    assert build(["topic://news"], {"news": many[:-1]}, payload=b"x" * 100, limits=limits)
    with pytest.raises(RequestTooLargeError, match=r"payloads of 1700 bytes.* at most 1600"):
        build(["topic://news"], {"news": many}, payload=b"x" * 100, limits=limits)


def test_subscribers_are_called_as_the_message_says() -> None:
    news = {"news": (A, OVER_GRPC)}

    assert calls(build(["topic://news"], news, protocol="grpc", query_prepared="")) == [
        ("01-01", A.url),
        ("01-02", OVER_GRPC.url),
    ]
    with pytest.raises(
        InvalidRequestError, match=r"a subscriber of the topic news \(to a message whose protocol is http\) 'mail:50051"
    ):
        build(["topic://news"], news)


def test_a_payload_that_a_json_rpc_subscriber_cannot_be_sent_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="the payload of branch 01 is JSON, but not an object"):
        build(["topic://news"], {"news": (Subscriber("http://p/?method=m"),)}, payload=b"[]", protocol="json-rpc")
