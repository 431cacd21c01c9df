"""A two-phase message as the initiator describes it. No I/O: a coordinator client prepares and submits it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from txcoord.model import Pattern
from txcoord.protocol import TOPIC_SCHEME, branch_id_of
from txcoord_sdk._checks import (
    Duration,
    Fields,
    checked_gid,
    checked_topic,
    checked_topic_or_url,
    payload_of,
    protocol_for,
    whole_seconds,
    wire_options,
)
from txcoord_sdk.gid import new_gid


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStep:
    """One receiver of a message, or a topic that stands for any number of them."""

    gid: str
    index: int
    url: str
    payload: bytes
    """The exact body of the call."""

    @property
    def branch_id(self) -> str:
        """The name of this step's branch; the subscribers of a topic are named below it."""
        return branch_id_of(self.index)


class Message:
    """Calls that are made for certain once the message is submitted, and never if it is aborted.

    There is nothing to undo: each call is repeated until it is answered with success. So receivers
    have no way to refuse. What may be refused belongs in a saga or a TCC transaction.

    Steps run one after another; with `concurrent` they start together. The gid is made here unless
    given. It is the message's identity: submitting the same message again never delivers it twice over,
    and a second one needs a message of its own.

    *Best effort*: with `max_attempts` or `give_up_after` each step is given up when it has been
    called that often, or for that long, without success; the message then fails, visibly, and
    what has been delivered stays so. It takes txcoord: DTM repeats for ever.

    What is left None is as the coordinator is set. Times are seconds or timedeltas, and whole seconds:

    Args:
        gid: a unique name of your own, such as a user's number; made for you if None.
        concurrent: start all steps together.
        wait_result: let `submit` return only when all is delivered.
        delay: make the first call this long after the submit.
        timeout_to_fail: ask back if it has not been submitted this long after it was prepared.
        request_timeout: how long the coordinator waits for the answer to one call.
        retry_interval: pause before a call without success is repeated; it grows.
        branch_headers: sent with every call, the check-back included, e.g. for authorisation.
        max_attempts: give a step up when it has been called this often.
        give_up_after: give a step up when it has not succeeded this long after its turn came: after the delay, and
            after the end of the step before it unless `concurrent`.
        protocol: `grpc` if URLs, those of a topic's subscribers included, have the form
            `host:port/package.Service/Method`; inferred from the steps and the check-back if None.

    Raises:
        ValueError: an option cannot mean anything; the sentence says what is allowed.
    """

    def __init__(
        self,
        gid: str | None = None,
        *,
        concurrent: bool = False,
        wait_result: bool = False,
        delay: Duration | None = None,
        timeout_to_fail: Duration | None = None,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
        max_attempts: int | None = None,
        give_up_after: Duration | None = None,
        protocol: str | None = None,
    ) -> None:
        self._gid = new_gid() if gid is None else checked_gid(gid)
        self._concurrent = concurrent
        self._wait_result = wait_result
        self._options = wire_options(
            timeout_to_fail=timeout_to_fail,
            request_timeout=request_timeout,
            retry_interval=retry_interval,
            branch_headers=branch_headers,
        )
        self._custom: dict[str, int] = {}
        if delay is not None:
            self._custom["delay"] = whole_seconds(delay, name="delay")
        if max_attempts is not None:
            if max_attempts < 1:
                raise ValueError(f"max_attempts must be 1 or more (None is unlimited), not {max_attempts}")
            self._custom["max_attempts"] = max_attempts
        if give_up_after is not None:
            self._custom["deadline"] = whole_seconds(give_up_after, name="give_up_after")
        self._protocol = protocol
        protocol_for(protocol, ())
        self._steps: list[MessageStep] = []
        self._query_prepared = ""
        self._sealed = False

    @property
    def gid(self) -> str:
        return self._gid

    @property
    def wait_result(self) -> bool:
        return self._wait_result

    @property
    def steps(self) -> tuple[MessageStep, ...]:
        return tuple(self._steps)

    @property
    def is_prepared(self) -> bool:
        """Whether this object has been prepared; a coordinator may know of an earlier one with its gid."""
        return bool(self._query_prepared)

    def step(self, url: str, payload: object = None) -> MessageStep:
        """Add a receiver.

        It is called with POST, or over gRPC, at least once and perhaps more often: protect it with a barrier.

        Args:
            url: what is called (http(s), or `host:port/package.Service/Method` for gRPC), or
                `topic://name` for all who have subscribed to that topic when the message is
                prepared (or, if it is not, submitted).
            payload: as for a saga's step.

        Raises:
            ValueError: the URL or the payload cannot work, or the message was prepared or
                submitted already.
        """
        if self._sealed:
            raise ValueError(f"message {self._gid} has been handed over: open a new one, it needs a gid of its own")
        if not url:
            raise ValueError("a step of a message needs a URL, or topic://name")
        url = checked_topic_or_url(url)
        protocol_for(self._protocol, (url,))
        step = MessageStep(gid=self._gid, index=len(self._steps), url=url, payload=payload_of(payload, url))
        self._steps.append(step)
        return step

    def add_topic(self, topic: str, payload: object = None) -> MessageStep:
        """Add all who have subscribed to a topic when the message is prepared (or, if it is not, submitted).

        Later changes of the topic do not touch it. Each subscriber is a receiver as of `step`, with the same payload.

        Args:
            topic: the name, without `topic://`. Handing over the message is refused if nobody has subscribed.
            payload: as for a saga's step.

        Raises:
            ValueError: the name or the payload cannot work, or the message was prepared or submitted already.
        """
        return self.step(f"{TOPIC_SCHEME}{checked_topic(topic)}", payload)

    def add_header(self, name: str, value: str) -> None:
        """Have a header sent with every call, the check-back included; for the SDK itself."""
        headers = self._options.get("branch_headers")
        self._options["branch_headers"] = {**(headers if isinstance(headers, dict) else {}), name: value}

    def prepare_request(self, query_prepared: str) -> Fields:
        """Give what a prepare sends, and take no more steps from here on."""
        body = self._body(query_prepared)
        self._query_prepared = query_prepared
        return body

    def request(self, *, wait_result: bool | None = None) -> Fields:
        """Give what a submit sends, and take no more steps from here on."""
        # Of a prepared message too, as DTM's clients do: DTM takes the options from here.
        body = self._body(self._query_prepared)
        if self._wait_result if wait_result is None else wait_result:
            body["wait_result"] = True
        return body

    def abort_request(self, reason: str) -> Fields:
        return {"gid": self._gid, "trans_type": Pattern.MSG, "rollback_reason": reason}

    def _body(self, query_prepared: str) -> dict[str, object]:
        if not self._steps:
            raise ValueError(f"message {self._gid} has no steps: add some with step() before it is handed over")
        self._sealed = True
        body: dict[str, object] = {
            "gid": self._gid,
            "trans_type": Pattern.MSG,
            "steps": [{"action": step.url} for step in self._steps],
            "payloads": [step.payload for step in self._steps],
            **self._options,
        }
        if protocol := protocol_for(self._protocol, [query_prepared, *(step.url for step in self._steps)]):
            body["protocol"] = protocol
        if query_prepared:
            body["query_prepared"] = query_prepared
        if self._concurrent:
            body["concurrent"] = True
        if self._custom:
            # The wire carries it as JSON inside a string.
            body["custom_data"] = msgspec.json.encode(self._custom).decode()
        return body

    def __repr__(self) -> str:
        return f"<Message {self._gid}: {len(self._steps)} steps>"
