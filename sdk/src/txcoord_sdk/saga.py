"""A saga as the initiator describes it. No I/O: a coordinator client submits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from txcoord.model import Pattern
from txcoord.protocol import branch_id_of
from txcoord_sdk._checks import Duration, Fields, checked_gid, checked_url, payload_of, protocol_for, wire_options
from txcoord_sdk.gid import new_gid


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a saga: hand it to `after=` of a later step to state an order."""

    gid: str
    index: int
    action_url: str
    compensate_url: str
    payload: bytes
    """The exact body of both calls."""
    after: tuple[int, ...] = ()

    @property
    def branch_id(self) -> str:
        """The name of this step's branch in queries, logs and barriers."""
        return branch_id_of(self.index)


class Saga:
    """Steps that all take effect, or are all undone.

    Steps run one after another. With `concurrent` they start together, except that each
    waits for the steps named in its `after`. When one fails, those that may have had an
    effect are compensated in reverse order.

    The gid is made here unless given. It is the transaction's identity: submitting the
    same saga again never runs it twice, and a second transaction needs a saga of its own.

    What is left None is as the coordinator is set. Times are seconds or timedeltas, and
    whole seconds:

    Args:
        gid: a unique name of your own, such as an order number; made for you if None.
        concurrent: start steps together; `Step`s in `after` order them.
        wait_result: let `submit` return only when the saga has succeeded.
        timeout_to_fail: turn round and compensate if it has not succeeded by then.
        request_timeout: how long the coordinator waits for the answer to one call.
        retry_interval: pause before a call without a clear answer is repeated; it grows.
        retry_limit: give up and compensate when an action has been repeated this often.
            Without it actions are repeated until they are answered; compensations always are.
        branch_headers: sent with every call of a branch, e.g. for authorisation.
        protocol: `grpc` if URLs have the form `host:port/package.Service/Method`; inferred from the URLs if None.

    Raises:
        ValueError: an option cannot mean anything; the sentence says what is allowed.
    """

    def __init__(
        self,
        gid: str | None = None,
        *,
        concurrent: bool = False,
        wait_result: bool = False,
        timeout_to_fail: Duration | None = None,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        retry_limit: int | None = None,
        branch_headers: Mapping[str, str] | None = None,
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
        if retry_limit is not None:
            if retry_limit < 1:
                raise ValueError(f"retry_limit must be 1 or more (None is unlimited), not {retry_limit}")
            self._options["retry_limit"] = retry_limit
        self._protocol = protocol
        protocol_for(protocol, ())
        self._steps: list[Step] = []
        self._sealed = False

    @property
    def gid(self) -> str:
        return self._gid

    @property
    def wait_result(self) -> bool:
        return self._wait_result

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(self._steps)

    def step(
        self, action_url: str, compensate_url: str = "", payload: object = None, *, after: Sequence[Step] = ()
    ) -> Step:
        """Add a step.

        Both endpoints are called with POST and the same body, or over gRPC with the same message. Each
        may be called more than once, and the compensation even if the action never arrived: protect
        them with a barrier.

        Args:
            action_url: called to do it: an http(s) URL, or `host:port/package.Service/Method` for
                gRPC. An empty URL stands for success without a call.
            compensate_url: called to undo it; empty if there is nothing to undo.
            payload: anything JSON can express, dataclasses and Pydantic models included. `str`
                and `bytes` are sent as they are; an empty one makes the call a GET. Over gRPC a
                protobuf message, or the bytes of one. What is not UTF-8 needs the coordinator's
                gRPC API.
            after: steps that must have succeeded before this one starts (only with
                `concurrent=True`: without it every step waits for all before it).

        Raises:
            ValueError: a URL, the payload or the order cannot work, or the saga was
                submitted already.
        """
        if self._sealed:
            raise ValueError(f"saga {self._gid} has been submitted: open a new saga, it needs a gid of its own")
        if after and not self._concurrent:
            raise ValueError("after= states an order among concurrent steps: open the saga with concurrent=True")
        for earlier in after:
            if not any(earlier is step for step in self._steps):
                raise ValueError(f"after= takes steps of this saga ({self._gid}), not one of {earlier.gid}")
        action_url = checked_url(action_url, name="action_url")
        compensate_url = checked_url(compensate_url, name="compensate_url")
        protocol_for(self._protocol, (action_url, compensate_url))
        step = Step(
            gid=self._gid,
            index=len(self._steps),
            action_url=action_url,
            compensate_url=compensate_url,
            payload=payload_of(payload, action_url, compensate_url),
            after=tuple(sorted({earlier.index for earlier in after})),
        )
        self._steps.append(step)
        return step

    def request(self, *, wait_result: bool | None = None) -> Fields:
        """Give what a submit sends, and take no more steps from here on."""
        if not self._steps:
            raise ValueError(f"saga {self._gid} has no steps: add some with step() before it is submitted")
        self._sealed = True
        body: dict[str, object] = {
            "gid": self._gid,
            "trans_type": Pattern.SAGA,
            "steps": [{"action": step.action_url, "compensate": step.compensate_url} for step in self._steps],
            "payloads": [step.payload for step in self._steps],
            **self._options,
        }
        urls = [url for step in self._steps for url in (step.action_url, step.compensate_url)]
        if protocol := protocol_for(self._protocol, urls):
            body["protocol"] = protocol
        if self._wait_result if wait_result is None else wait_result:
            body["wait_result"] = True
        if self._concurrent:
            body["concurrent"] = True
            # The wire carries the order as JSON inside a string, its keys as strings.
            orders = {str(step.index): step.after for step in self._steps if step.after}
            body["custom_data"] = msgspec.json.encode({"orders": orders, "concurrent": True}).decode()
        return body

    def __repr__(self) -> str:
        return f"<Saga {self._gid}: {len(self._steps)} steps>"
