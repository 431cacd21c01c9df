"""When to send again, how long to wait and when to give up: the rules, played without I/O or time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from txcoord_sdk import CoordinatorUnreachableError, RequestRefusedError, Saga, Status, TransactionRunningError
from txcoord_sdk._calls import Flow, HttpAnswer, HttpCall, NoAnswer, Pause, Reply
from txcoord_sdk._exchange import MAX_PAUSE_S, MAX_RETRY_AFTER_S
from txcoord_sdk._rules import MAX_POLL_S, Rules

NOT_SENT = NoAnswer(detail="refused", may_have_arrived=False)
LOST = NoAnswer(detail="reset", may_have_arrived=True)
ACCEPTED = HttpAnswer(status=200, body=b'{"dtm_result":"SUCCESS"}')
STILL_RUNNING = HttpAnswer(status=425, body=b'{"dtm_result":"ONGOING","message":"wait"}')
UNKNOWN_GID = HttpAnswer(status=200, body=b'{"branches":[],"transaction":null}')


def error(status: int, retry_after: str = "") -> HttpAnswer:
    return HttpAnswer(status=status, body=b'{"message":"later"}', retry_after=retry_after)


def standing(status: str) -> HttpAnswer:
    transaction = {"gid": "g1", "trans_type": "saga", "status": status}
    return HttpAnswer(status=200, body=json.dumps({"branches": [], "transaction": transaction}).encode())


class Play:
    """Rules with a clock that only their own pauses, and calls that take a while, move."""

    def __init__(self, *, attempts: int = 4, backoff_s: float = 0.2, timeout_s: float = 10.0) -> None:
        self.now = 1000.0
        self.calls: list[HttpCall] = []
        self.pauses: list[float] = []
        self.rules = Rules(
            url="http://c",
            timeout_s=timeout_s,
            attempts=attempts,
            backoff_s=backoff_s,
            clock=lambda: self.now,
            random=Random(1),
        )

    def of(self, flow: Flow[Any], replies: Iterator[Reply] | list[Reply], *, call_s: float = 0.0) -> Any:
        coming = iter(replies)
        reply: Reply | None = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration as end:
                return end.value
            if isinstance(step, Pause):
                self.pauses.append(step.seconds)
                self.now += step.seconds
                reply = None
            else:
                self.calls.append(step)
                self.now += call_s
                reply = next(coming)

    @property
    def paths(self) -> list[str]:
        return [call.url.rpartition("/")[2] for call in self.calls]


def make_saga(**options: Any) -> Saga:
    saga = Saga("g1", **options)
    saga.step("http://a")
    return saga


def forever(reply: Reply) -> Iterator[Reply]:
    while True:
        yield reply


@pytest.mark.parametrize("trouble", [NOT_SENT, error(503), error(429)], ids=["not sent", "503", "429"])
def test_a_request_that_certainly_changed_nothing_is_just_sent_again(trouble: Reply) -> None:
    play = Play()

    assert play.of(play.rules.submit(make_saga()), [trouble, trouble, ACCEPTED]) == "g1"

    assert play.paths == ["submit"] * 3


@pytest.mark.parametrize("trouble", [LOST, error(500), error(502), error(504)], ids=["lost", "500", "502", "504"])
def test_a_request_that_may_have_arrived_is_looked_up_before_it_is_sent_again(trouble: Reply) -> None:
    play = Play()

    assert play.of(play.rules.submit(make_saga()), [trouble, UNKNOWN_GID, trouble, standing("submitted")]) == "g1"

    assert play.paths == ["submit", "query", "submit", "query"]


def test_every_attempt_sends_the_same() -> None:
    play = Play()

    play.of(play.rules.submit(make_saga()), [NOT_SENT, LOST, UNKNOWN_GID, ACCEPTED])

    assert len({call.body for call in play.calls if call.method == "POST"}) == 1


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [(NOT_SENT, "no answer from http://c (refused)"), (error(503), "http://c answered 503, later")],
)
def test_attempts_are_bounded_and_pauses_grow_up_to_a_cap(trouble: Reply, reason: str) -> None:
    play = Play(attempts=8)

    with pytest.raises(CoordinatorUnreachableError) as caught:
        play.of(play.rules.submit(make_saga()), forever(trouble))

    assert caught.value.reason == reason

    assert len(play.calls) == 8
    nominal = [0.2, 0.4, 0.8, 1.6, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]
    assert len(play.pauses) == len(nominal)
    for pause, longest in zip(play.pauses, nominal, strict=True):
        assert longest / 2 <= pause <= longest


@pytest.mark.parametrize(
    ("asked", "pause_s"), [("1", 1.0), ("7", 7.0), ("3600", MAX_RETRY_AFTER_S)], ids=["1 s", "7 s", "an hour"]
)
def test_a_coordinator_may_ask_for_a_longer_pause_within_reason(asked: str, pause_s: float) -> None:
    play = Play()

    play.of(play.rules.submit(make_saga()), [error(503, asked), ACCEPTED])

    assert play.pauses == [pause_s]


@pytest.mark.parametrize("asked", ["", "0", "-5", "soon", "1.5", "²", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_pause_that_is_not_asked_for_in_seconds_is_our_own(asked: str) -> None:
    play = Play()

    play.of(play.rules.submit(make_saga()), [error(503, asked), ACCEPTED])

    assert 0.1 <= play.pauses[0] <= 0.2


def test_a_plain_call_gets_the_usual_time_and_a_run_all_there_is() -> None:
    play = Play(timeout_s=10)

    play.of(play.rules.submit(make_saga()), [ACCEPTED])
    play.of(play.rules.run(make_saga(), 45), [ACCEPTED])

    assert [call.timeout_s for call in play.calls] == [10, 45]


def test_a_run_whose_connection_broke_waits_for_the_coordinator_until_its_time_is_up() -> None:
    play = Play(attempts=1)
    away = [NOT_SENT] * 20

    assert play.of(play.rules.run(make_saga(), 60), [LOST, *away, standing("submitted"), standing("succeed")]) == "g1"

    assert play.paths == ["submit"] + ["query"] * 22


def test_a_run_that_never_arrived_does_not_wait_for_long() -> None:
    play = Play(attempts=3)

    with pytest.raises(CoordinatorUnreachableError):
        play.of(play.rules.run(make_saga(), 60), forever(NOT_SENT))

    assert play.paths == ["submit"] * 3


def test_a_run_uses_up_its_time_and_no_more() -> None:
    play = Play()

    with pytest.raises(TransactionRunningError) as caught:
        play.of(play.rules.run(make_saga(), 30), iter([STILL_RUNNING, *[standing("submitted")] * 1000]))

    assert play.now == pytest.approx(1030)
    assert caught.value.status is Status.SUBMITTED


def test_polls_are_quick_at_first_and_rare_later() -> None:
    play = Play()

    with pytest.raises(TransactionRunningError):
        play.of(play.rules.wait("g1", 60), forever(standing("submitted")))

    assert play.pauses[0] <= 0.05
    assert all(MAX_POLL_S / 2 <= pause <= MAX_POLL_S for pause in play.pauses[10:-1])


def test_a_wait_for_a_coordinator_that_stays_away_ends_in_time() -> None:
    play = Play()

    with pytest.raises(CoordinatorUnreachableError, match="g1"):
        play.of(play.rules.wait("g1", 20), forever(NOT_SENT))

    assert play.now == pytest.approx(1020)


def test_a_call_is_not_cut_off_by_the_end_of_a_wait_before_it_could_tell_anything() -> None:
    play = Play(timeout_s=10)

    with pytest.raises(TransactionRunningError):
        play.of(play.rules.wait("g1", 2.5), forever(standing("submitted")), call_s=1)

    assert play.calls[0].timeout_s == 2.5
    assert min(call.timeout_s for call in play.calls) == 1


def test_a_waiting_submit_that_outlasts_its_answer_is_running() -> None:
    play = Play()

    with pytest.raises(TransactionRunningError, match="still submitted"):
        play.of(play.rules.submit(make_saga(wait_result=True)), [LOST, standing("submitted")])


def test_a_conflict_about_a_gid_that_is_not_there_is_a_refusal() -> None:
    play = Play()
    conflict = HttpAnswer(status=409, body=b'{"message":"not today FAILURE"}')

    with pytest.raises(RequestRefusedError, match="not today"):
        play.of(play.rules.submit(make_saga()), [conflict, UNKNOWN_GID])


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"{"], ids=["empty", "not UTF-8", "a list", "cut off"])
def test_a_refusal_without_a_message_is_still_one(body: bytes) -> None:
    play = Play()

    with pytest.raises(RequestRefusedError, match=r"g1: ."):
        play.of(play.rules.submit(make_saga()), [HttpAnswer(status=400, body=body)])


def test_at_least_one_attempt_is_needed() -> None:
    with pytest.raises(ValueError, match="attempts must be 1 or more"):
        Play(attempts=0)
