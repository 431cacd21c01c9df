"""What is sent to a coordinator, and what its answers mean. No I/O, no clock of its own.

Each operation is a generator, a `Flow` of `txcoord_sdk._calls`; the two clients in
`txcoord_sdk.coordinator` do nothing but drive it. The rules speak of requests and answers as the HTTP
API has them. How one is sent, repeated and understood is in `txcoord_sdk._exchange`.

Two facts shape the rules. A gid is run once, so any request may be repeated. And only a
query tells how a transaction stands: a coordinator may answer 409 for "rolled back", for "still
running" (DTM does) and for "ended already", the latter also to a repeated submit whose
first answer was lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

from txcoord.model import Pattern, Status
from txcoord.outcome import clean
from txcoord.protocol import STATUS_FAILURE, STATUS_ONGOING
from txcoord_sdk._calls import (
    PING_PATH,
    AnyReply,
    Call,
    Flow,
    HttpAnswer,
    NoAnswer,
)
from txcoord_sdk._checks import (
    Fields,
    checked_gid,
    checked_topic,
    checked_url,
)
from txcoord_sdk._exchange import (
    MIN_CALL_S,
    Exchanges,
    ask,
    is_to_repeat,
    may_have_arrived,
    message_of,
    not_found,
    pause,
    text_of,
)
from txcoord_sdk.errors import (
    RequestRefusedError,
    TransactionRunningError,
    TxcoordSdkError,
)
from txcoord_sdk.message import Message
from txcoord_sdk.results import (
    ListAnswer,
    PingAnswer,
    QueryAnswer,
    Transaction,
    VersionAnswer,
    WorkflowAnswer,
)
from txcoord_sdk.saga import Saga

FIRST_POLL_S = 0.05
MAX_POLL_S = 1.0
MAX_REASON = 1000
"""Bytes. DTM's column holds 1024 characters, and DTM keeps failing on what is longer."""

Settled = Callable[[WorkflowAnswer], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which transactions to list; None and "" stand for all."""

    status: Status | None = None
    pattern: Pattern | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    page_size: int = 100

    def __post_init__(self) -> None:
        if self.page_size < 1:
            raise ValueError(f"page_size must be 1 or more, not {self.page_size}")
        for instant in (self.created_from, self.created_to):
            if instant is not None and instant.tzinfo is None:
                raise ValueError(f"created_from and created_to need a time zone, which {instant} has not")

    def parameters(self, position: str) -> dict[str, str]:
        given = {
            "position": position,
            "limit": str(self.page_size),
            "status": self.status or "",
            "transType": self.pattern or "",
            "createTimeStart": _milliseconds(self.created_from),
            "createTimeEnd": _milliseconds(self.created_to),
        }
        return {name: value for name, value in given.items() if value}


class Rules(Exchanges):
    """The operations on one coordinator."""

    def submit(self, work: Saga | Message) -> Flow[str]:
        body = work.request()
        yield from self._submit_and_check(work.gid, body, wait_result=work.wait_result, is_prepared=_is_prepared(work))
        return work.gid

    def run(self, work: Saga | Message, timeout_s: float) -> Flow[str]:
        deadline = self._clock() + timeout_s
        body = work.request(wait_result=True)
        got = yield from self._submit(work.gid, body, deadline=deadline, is_prepared=_is_prepared(work))
        if not isinstance(got, HttpAnswer) or got.status != 200:
            found = yield from self._wait_until(work.gid, deadline)
            found.raise_for_status()
        return work.gid

    def prepare_message(self, message: Message, query_prepared: str) -> Flow[str]:
        if not query_prepared:
            raise ValueError(f"message {message.gid} needs query_prepared: without it nobody could tell its end")
        body = message.prepare_request(checked_url(query_prepared, name="query_prepared"))
        yield from self.prepare(message.gid, body)
        return message.gid

    def abort_message(self, message: Message, reason: str) -> Flow[None]:
        yield from self.abort(message.gid, message.abort_request(clean(reason, MAX_REASON)))

    def wait(self, gid: str, timeout_s: float) -> Flow[Transaction]:
        found = yield from self._wait_until(checked_gid(gid), self._clock() + timeout_s)
        if not found.status.is_final:
            reason = found.reason or found.waiting_for or f"not ended within {timeout_s:g} s"
            raise TransactionRunningError(gid, found.status, reason)
        return found

    def query(self, gid: str) -> Flow[Transaction]:
        found = yield from self._find(checked_gid(gid))
        return found if found is not None else not_found(gid)

    def list_page(self, chosen: Filter, before: ListAnswer | None) -> Flow[ListAnswer | None]:
        """Get the page that follows one, or the first; None: there are no more."""
        if before is not None and not before.next_position:
            return None
        query = chosen.parameters(before.next_position if before is not None else "")
        answer = yield from self._exchange("", self._call("GET", "/all", query=query))
        return self._decode("", answer, ListAnswer)

    def force_stop(self, gid: str) -> Flow[None]:
        answer = yield from self._exchange(gid, self._post("/forceStop", checked_gid(gid)))
        if answer.status == STATUS_FAILURE:
            found = yield from self._find(gid)
            # Failed is what was asked for; a first request whose answer was lost may have done it.
            if found is None or found.status is not Status.FAILED:
                raise RequestRefusedError(gid, found.status if found else None, text_of(answer))
        else:
            self._check_success(gid, answer)

    def retry_now(self, gid: str) -> Flow[None]:
        answer = yield from self._exchange(gid, self._post("/resetNextCronTime", checked_gid(gid)))
        self._check_success(gid, answer)

    def subscribe(self, topic: str, url: str, remark: str) -> Flow[bool]:
        checked_topic(topic)
        if not url:
            raise ValueError("a subscriber needs a URL: name the URL that the topic's messages are to be sent to")
        query = {"topic": topic, "url": checked_url(url, name="url")} | ({"remark": remark} if remark else {})
        call = self._call("GET", "/subscribe", query=query)
        return (yield from self._change_topic(call, unless=("this url exists",)))

    def unsubscribe(self, topic: str, url: str) -> Flow[bool]:
        if not url:
            raise ValueError("name the URL that is to be unsubscribed")
        call = self._call("GET", "/unsubscribe", query={"topic": checked_topic(topic), "url": url})
        nothing = ("no such a topic", "this topic is empty", "no such an url")
        return (yield from self._change_topic(call, unless=nothing))

    def delete_topic(self, topic: str) -> Flow[bool]:
        call = self._call("DELETE", f"/topic/{quote(checked_topic(topic), safe='')}")
        return (yield from self._change_topic(call, unless=("no such a topic", "storage: NotFound")))

    def _change_topic(self, call: Call, *, unless: tuple[str, ...]) -> Flow[bool]:
        """Change it, and say whether that was done now; it was so before if the coordinator's words are one of these.

        The words decide, not the status: a coordinator of DTM answers 500 to all of them.
        """
        attempt = 0
        while True:
            attempt += 1
            reply = yield from self._send(call)
            if isinstance(reply, HttpAnswer):
                if (message_of(reply) or "").startswith(unless):
                    return False
                if not is_to_repeat(reply):
                    self._check_success("", reply)
                    return True
            if attempt >= self._attempts:
                self._unreachable("", reply)
            yield from pause(self._delay(attempt, reply))

    def version(self) -> Flow[str]:
        answer = yield from self._exchange("", self._call("GET", "/version"))
        return self._decode("", answer, VersionAnswer).version

    def ping(self) -> Flow[None]:
        call = self._wire.call("GET", PING_PATH, query={}, body=None, timeout_s=self.timeout_s)
        answer = yield from self._exchange("", call)
        self._decode("", answer, PingAnswer)

    # -- the requests of a prepared transaction; a TCC's state is `txcoord_sdk._tcc_rules`' ------

    def prepare(self, gid: str, body: Fields) -> Flow[None]:
        """Open it. Preparing what is prepared changes nothing."""
        answer = yield from self._exchange(gid, self._call("POST", "/prepare", body=body))
        if answer.status == STATUS_FAILURE:
            raise _not_open(gid, (yield from self._find(gid)), text_of(answer))
        self._check_success(gid, answer)

    def register(self, gid: str, branch_id: str, body: Fields) -> Flow[None]:
        attempt = 0
        while True:
            attempt += 1
            reply = yield from self._send(self._call("POST", "/registerBranch", body=body))
            if isinstance(reply, HttpAnswer) and not is_to_repeat(reply):
                if reply.status == STATUS_FAILURE:
                    raise _not_open(gid, (yield from self._find(gid)), text_of(reply))
                return self._check_success(gid, reply)
            # Look before sending it again: DTM answers 500, in its database's words, to a
            # registration that it has.
            if may_have_arrived(reply):
                found = (yield from self._find(gid)) or not_found(gid)
                if found.status is not Status.PREPARED:
                    raise _not_open(gid, found, "branches can be registered only while it is prepared")
                if any(branch.branch_id == branch_id for branch in found.branches):
                    return None
            if attempt >= self._attempts:
                self._unreachable(gid, reply)
            yield from pause(self._delay(attempt, reply))

    def check_registration(self, body: Fields) -> None:
        """Raise ValueError if it holds what cannot be sent to this coordinator."""
        self._call("POST", "/registerBranch", body=body)

    def submit_prepared(self, gid: str, body: Fields, *, wait_result: bool) -> Flow[None]:
        yield from self._submit_and_check(gid, body, wait_result=wait_result, is_prepared=True)

    def abort(self, gid: str, body: Fields, *, attempts: int | None = None) -> Flow[None]:
        """Turn it round. Aborting what is turned round already changes nothing."""
        answer = yield from self._exchange(gid, self._call("POST", "/abort", body=body), attempts=attempts)
        if answer.status == STATUS_FAILURE:
            found = yield from self._find(gid)
            if found is None or found.status not in (Status.ABORTING, Status.FAILED):
                raise RequestRefusedError(gid, found.status if found else None, text_of(answer))
        elif answer.status != STATUS_ONGOING:
            self._check_success(gid, answer)

    def ask_participant(self, call: Call) -> Flow[AnyReply]:
        """Call once; again only while it is certain that nothing arrived."""
        attempt = 0
        while True:
            attempt += 1
            reply = yield from ask(call)
            if not isinstance(reply, NoAnswer) or reply.may_have_arrived or attempt >= self._attempts:
                return reply
            yield from pause(self._delay(attempt, reply))

    # -- the requests of a workflow; its state is `txcoord_sdk.workflow`'s ------------------------

    def open_workflow(self, gid: str, body: Fields) -> Flow[WorkflowAnswer]:
        """Open it, or learn how far it got, or how it ended. May be repeated."""
        answer = yield from self._exchange(gid, self._call("POST", "/prepareWorkflow", body=body))
        return self._decode(gid, answer, WorkflowAnswer)

    def find_workflow(self, gid: str) -> Flow[WorkflowAnswer]:
        """Learn how far it got, or how it ended, without opening one."""
        answer = yield from self._exchange(gid, self._call("GET", "/query", query={"gid": gid}))
        found = self._decode(gid, answer, WorkflowAnswer)
        return found if found.transaction is not None else not_found(gid)

    def report(self, gid: str, path: str, body: Fields, is_settled: Settled) -> Flow[WorkflowAnswer | None]:
        """Report a step's result, or the end, until it is known to be stored, or known not to be wanted.

        Args:
            is_settled: says of a workflow as it is found whether that needs no further report.

        Returns:
            None: it is stored. Otherwise the workflow as it was then found.

        Raises:
            RequestRefusedError: it cannot be stored, and the workflow is open for another.
        """
        attempt = 0
        while True:
            attempt += 1
            reply = yield from self._send(self._call("POST", path, body=body))
            if isinstance(reply, HttpAnswer) and not is_to_repeat(reply):
                if reply.status == 200:
                    self._check_success(gid, reply)
                    return None
                found = yield from self.find_workflow(gid)
                return found if is_settled(found) else self._refused(gid, reply)
            # Look before sending it again: DTM answers 500 to a result that it has, and to an end.
            if may_have_arrived(reply):
                found = yield from self.find_workflow(gid)
                if is_settled(found):
                    return found
            if attempt >= self._attempts:
                self._unreachable(gid, reply)
            yield from pause(self._delay(attempt, reply))

    # -- the parts they are made of --------------------------------------------------

    def _submit_and_check(self, gid: str, body: Fields, *, wait_result: bool, is_prepared: bool = False) -> Flow[None]:
        """Submit, and return if that is all, or if it has succeeded; raise what else it came to."""
        got = yield from self._submit(gid, body, is_prepared=is_prepared)
        said = ""
        if isinstance(got, HttpAnswer):
            if got.status == 200:
                return
            said = text_of(got)
            found = yield from self._find(gid)
            if found is None or found.status is Status.PREPARED:
                raise RequestRefusedError(gid, found.status if found else None, said)
        else:
            found = got
        if found.status is Status.SUCCEEDED or (found.status is Status.SUBMITTED and not wait_result):
            return
        raise found.as_error(reason=said)

    def _submit(
        self, gid: str, body: Fields, *, deadline: float | None = None, is_prepared: bool = False
    ) -> Flow[HttpAnswer | Transaction]:
        """Send a submit until it is known to be accepted.

        Returns:
            The coordinator's answer (200, 409 or 425); or, if an answer was lost, the
            transaction as it was then found.
        """
        attempt = 0
        while True:
            attempt += 1
            # A waiting submit is answered when the saga has ended: it gets all the time there is.
            timeout_s = self.timeout_s if deadline is None else max(deadline - self._clock(), MIN_CALL_S)
            reply = yield from self._send(self._call("POST", "/submit", body=body, timeout_s=timeout_s))
            if isinstance(reply, HttpAnswer) and not is_to_repeat(reply):
                if reply.status not in (STATUS_FAILURE, STATUS_ONGOING):
                    self._check_success(gid, reply)
                return reply
            # Look before sending it again: DTM runs a repeated submit a second time.
            if may_have_arrived(reply):
                found = yield from self._find(gid, deadline)
                if found is None and is_prepared:
                    # Sent again it would make a new one: without the branches, or after the end of the old.
                    not_found(gid)
                if found is not None and found.status is not Status.PREPARED:
                    return found
            if attempt >= self._attempts:
                self._unreachable(gid, reply)
            yield from pause(self._delay(attempt, reply))

    def _wait_until(self, gid: str, deadline: float) -> Flow[Transaction]:
        """Ask until it has ended or time is up; return it as it stands then."""
        poll_s = FIRST_POLL_S
        while True:
            found = (yield from self._find(gid, deadline)) or not_found(gid)
            left_s = deadline - self._clock()
            if found.status.is_final or left_s <= 0:
                return found
            yield from pause(min(left_s, poll_s * self._random.uniform(0.5, 1)))
            poll_s = min(poll_s * 2, MAX_POLL_S)

    def _find(self, gid: str, deadline: float | None = None) -> Flow[Transaction | None]:
        call = self._call("GET", "/query", query={"gid": gid})
        answer = yield from self._exchange(gid, call, deadline)
        return self._decode(gid, answer, QueryAnswer).joined()


def _is_prepared(work: Saga | Message) -> bool:
    return isinstance(work, Message) and work.is_prepared


def _not_open(gid: str, found: Transaction | None, said: str) -> TxcoordSdkError:
    """Say why a transaction takes no branches."""
    if found is not None and found.status in (Status.ABORTING, Status.FAILED):
        return found.as_error(reason=said)
    return RequestRefusedError(gid, found.status if found else None, said)


def _milliseconds(instant: datetime | None) -> str:
    return "" if instant is None else str(int(instant.timestamp() * 1000))
