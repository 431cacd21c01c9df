"""Topics of both clients, against a coordinator of the test's own: one list of scenarios."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from sdk.tests.client_support import Answer, Client, Drop, Reply, ScriptedCoordinator
from txcoord_sdk import AsyncCoordinator, Coordinator, CoordinatorUnreachableError, Message, RequestRefusedError

URL = "http://mail/welcome"
BUSY = Answer(503, {"message": "others changed the topic news"})


@pytest.fixture(params=[Coordinator, AsyncCoordinator], ids=["sync", "async"])
def client(request: pytest.FixtureRequest, served: tuple[ScriptedCoordinator, str]) -> Iterator[Client]:
    client = Client(request.param, served[1], backoff=0.001, attempts=3, timeout=5)
    yield client
    client.close()


def test_a_topic_is_changed_by_the_requests_that_dtm_has(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/subscribe", Answer())
    server.answers("/unsubscribe", Answer())
    server.answers("/topic/n%C3%A9w%20s%3F", Answer())

    assert client.do("subscribe", "néw s?", URL, "r") is True
    assert client.do("unsubscribe", "néw s?", URL) is True
    assert client.do("delete_topic", "néw s?") is True

    subscribe, unsubscribe, delete = server.requests
    assert (subscribe.method, subscribe.query) == ("GET", {"topic": "néw s?", "url": URL, "remark": "r"})
    assert (unsubscribe.method, unsubscribe.query) == ("GET", {"topic": "néw s?", "url": URL})
    assert (delete.method, delete.query) == ("DELETE", {})


@pytest.mark.parametrize(
    ("operation", "arguments", "path", "answer"),
    [
        pytest.param(
            "subscribe",
            (URL,),
            "/subscribe",
            Answer(409, {"dtm_result": "FAILURE", "message": "this url exists: … FAILURE"}),
            id="subscribed",
        ),
        pytest.param("subscribe", (URL,), "/subscribe", Answer(500, {"message": "this url exists"}), id="DTM"),
        pytest.param(
            "unsubscribe",
            (URL,),
            "/unsubscribe",
            Answer(404, {"message": "no such a topic: news"}),
            id="no topic",
        ),
        pytest.param(
            "unsubscribe", (URL,), "/unsubscribe", Answer(500, {"message": "this topic is empty"}), id="empty, DTM"
        ),
        pytest.param(
            "unsubscribe", (URL,), "/unsubscribe", Answer(404, {"message": "no such an url among …"}), id="no url"
        ),
        pytest.param("delete_topic", (), "/topic/news", Answer(404, {"message": "no such a topic: news"}), id="gone"),
        pytest.param("delete_topic", (), "/topic/news", Answer(500, {"message": "storage: NotFound"}), id="gone, DTM"),
    ],
)
@pytest.mark.parametrize("before", [(), (Drop(),)], ids=["at once", "after a lost answer"])
def test_what_is_so_already_is_no_error(
    server: ScriptedCoordinator,
    client: Client,
    operation: str,
    arguments: tuple[str, ...],
    path: str,
    answer: Answer,
    before: tuple[Reply, ...],
) -> None:
    server.answers(path, *before, answer)

    assert client.do(operation, "news", *arguments) is False


def test_a_change_that_others_were_faster_than_is_sent_again(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/subscribe", BUSY, BUSY, Answer())

    assert client.do("subscribe", "news", URL) is True


@pytest.mark.parametrize("answer", [BUSY, Drop()])
def test_a_change_is_not_sent_for_ever(server: ScriptedCoordinator, client: Client, answer: Reply) -> None:
    server.answers("/subscribe", answer, answer, answer)

    with pytest.raises(CoordinatorUnreachableError):
        client.do("subscribe", "news", URL)


def test_a_change_that_is_refused_says_why(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/subscribe", Answer(413, {"message": "the topic news has 1000 subscribers"}))

    with pytest.raises(RequestRefusedError, match="has 1000 subscribers"):
        client.do("subscribe", "news", URL)


@pytest.mark.parametrize(
    "answer", [Answer(404, b"404 page not found"), Answer(200, b"<html>"), Answer(200, {"dtm_result": "?"})]
)
def test_another_server_is_not_taken_for_a_coordinator(
    server: ScriptedCoordinator, client: Client, answer: Answer
) -> None:
    server.answers("/subscribe", answer)

    with pytest.raises(CoordinatorUnreachableError):
        client.do("subscribe", "news", URL)


@pytest.mark.parametrize(
    ("operation", "arguments", "complaint"),
    [
        ("subscribe", ("", URL), "empty topic"),
        ("subscribe", ("a/b", URL), "slashes"),
        ("subscribe", ("news", ""), "needs a URL"),
        ("subscribe", ("news", "ftp://x"), "http"),
        ("unsubscribe", ("news", ""), "URL"),
        ("delete_topic", ("..",), "only dots"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_sent(
    server: ScriptedCoordinator, client: Client, operation: str, arguments: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        client.do(operation, *arguments)

    assert server.requests == []


def test_a_message_is_sent_to_a_topic(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/submit", Answer())
    message = Message("g1")
    message.step("http://gift/grant", {"user": 7})

    step = message.add_topic("news", {"user": 7})
    client.do("submit", message)

    assert (step.url, step.branch_id) == ("topic://news", "02")
    body = server.requests[0].body
    assert body["steps"] == [{"action": "http://gift/grant"}, {"action": "topic://news"}]
    assert json.loads(body["payloads"][1]) == {"user": 7}


def test_a_message_names_topics_that_can_be() -> None:
    with pytest.raises(ValueError, match="empty topic"):
        Message().add_topic("")
