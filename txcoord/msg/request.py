"""From what came in to a message, and what a request does to one that is prepared.

The functions that change one are pure: they take the message as it stands and return it as
it is to be, the same object if nothing changes, or raise what the caller is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Self

import msgspec

from txcoord.errors import InvalidRequestError, RequestTooLargeError, StatusConflictError
from txcoord.model import MICROSECONDS, BranchOp, GlobalTransaction, Op, OpStatus, Options, Pattern, Status
from txcoord.msg.topics import MAX_TOPIC_LENGTH, Subscriber, topic_of
from txcoord.protocol import CHECK_BACK_BRANCH, branch_id_of
from txcoord.request import (
    Limits,
    TransRequest,
    check_custom_data,
    check_gid,
    check_options,
    check_params,
    check_payloads,
    check_protocol,
    check_url,
)

FANNED_OUT_AT_MOST = 16
"""Payloads are stored once for all subscribers of a topic, but shown with each: so many times `max_payload_bytes` is
the most that those of one message may come to, counted with each subscriber."""

Topics = Mapping[str, Sequence[Subscriber]]


def build_msg(
    request: TransRequest,
    limits: Limits,
    *,
    now_us: int,
    status: Status,
    default_timeout_s: float,
    topics: Topics = MappingProxyType({}),
) -> GlobalTransaction:
    """Return the message that a prepare asks for, or a submit without one before it.

    Args:
        topics: the subscribers of the topics that the actions name, as they are now; those that exist.

    Raises:
        InvalidRequestError, RequestTooLargeError: with a sentence that says what to change.
    """
    gid = check_gid(request.gid)
    protocol = check_protocol(request.protocol)
    branches = []
    for position, (step, payload) in enumerate(zip(request.steps, check_payloads(request, limits), strict=True)):
        branch_id, url = branch_id_of(position), step.get(Op.ACTION.value, "")
        topic = topic_of(url)
        if topic is None:
            where = f"the action URL of branch {branch_id}"
            actions: Iterable[BranchOp] = (BranchOp(branch_id=branch_id, op=Op.ACTION, url=url, payload=payload),)
        else:
            where = f"a subscriber of the topic {topic} (to a message whose protocol is {protocol})"
            actions = _fanned_out(position, topic, topics.get(topic, ()), payload)
        for action in actions:
            check_url(action.url, where=where, limits=limits, protocol=protocol, headers=request.branch_headers)
            check_params(payload, url=action.url, protocol=protocol, where=f"the payload of branch {branch_id}")
            branches.append(action)
    if len(branches) > len(request.steps):
        _check_fan_out(branches, limits)
    query_prepared = check_url(
        request.query_prepared,
        where="query_prepared",
        limits=limits,
        protocol=protocol,
        headers=request.branch_headers,
    )
    if query_prepared:
        branches.append(BranchOp(branch_id=CHECK_BACK_BRANCH, op=Op.MSG, url=query_prepared))
    options = _with_delivery(check_options(request, limits), request.custom_data, limits)
    msg = GlobalTransaction(
        gid=gid,
        pattern=Pattern.MSG,
        status=Status.PREPARED,
        branches=tuple(branches),
        options=options,
        protocol=protocol,
        query_prepared=query_prepared,
        custom_data=request.custom_data,
        created_us=now_us,
        updated_us=now_us,
        deadline_us=now_us + int((options.timeout_to_fail_s or default_timeout_s) * MICROSECONDS),
    )
    return msg if status is Status.PREPARED else _forward(msg, now_us).replace(status=status)


def _fanned_out(position: int, topic: str, subscribers: Sequence[Subscriber], payload: bytes) -> Iterator[BranchOp]:
    """One action for each subscriber, with one payload: the same object, and so stored once."""
    if not subscribers:
        raise InvalidRequestError(f"topic not found: {topic[:MAX_TOPIC_LENGTH]!r} has no subscribers")
    step = branch_id_of(position)
    for number, subscriber in enumerate(subscribers):
        branch_id = step if len(subscribers) == 1 else f"{step}-{branch_id_of(number)}"
        yield BranchOp(branch_id=branch_id, op=Op.ACTION, url=subscriber.url, payload=payload)


def _check_fan_out(actions: Sequence[BranchOp], limits: Limits) -> None:
    if len(actions) > limits.max_branches:
        raise RequestTooLargeError(
            f"{len(actions)} actions with the subscribers of all topics: at most {limits.max_branches} (max_branches)"
            " are allowed"
        )
    size, most = sum(len(action.payload) for action in actions), FANNED_OUT_AT_MOST * limits.max_payload_bytes
    if size > most:
        raise RequestTooLargeError(
            f"payloads of {size} bytes, counted once for each subscriber: at most {most}"
            f" ({FANNED_OUT_AT_MOST} times max_payload_bytes) are allowed"
        )


class _Delivery(msgspec.Struct, frozen=True):
    """What a message's `custom_data` says; the first is DTM's, the others are ours."""

    delay: float | None = None
    max_attempts: int | None = None
    deadline: float | None = None
    concurrent: bool | None = None
    """As in a saga's: DTM's gRPC messages have no other place for it."""

    @classmethod
    def read(cls, custom_data: str) -> Self:
        """Raises `InvalidRequestError`."""
        try:
            return msgspec.json.decode(custom_data, type=cls | None) or cls()
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise InvalidRequestError(f"custom_data of a msg cannot be read: {error}") from error


def _with_delivery(options: Options, custom_data: str, limits: Limits) -> Options:
    if not custom_data:
        return options
    delivery = _Delivery.read(check_custom_data(custom_data, limits))
    delay_us = _duration_us("delay", delivery.delay, limits)
    give_up_after_us = _duration_us("deadline", delivery.deadline, limits)
    return msgspec.structs.replace(
        options,
        delay_us=delay_us,
        max_attempts=min(max(delivery.max_attempts or 0, 0), 2**31 - 1),
        give_up_after_us=give_up_after_us,
        concurrent=options.concurrent or bool(delivery.concurrent),
    )


def _duration_us(name: str, seconds: float | None, limits: Limits) -> int:
    seconds = max(seconds or 0.0, 0.0)
    if not seconds <= limits.max_timeout_s:
        raise InvalidRequestError(
            f"{name} in custom_data is {seconds:g} seconds: at most {limits.max_timeout_s} (max_timeout_s) are allowed"
        )
    # Rounded up: a deadline shorter than the clock's step is a deadline all the same.
    return math.ceil(seconds * MICROSECONDS)


def submitted(msg: GlobalTransaction, wish: GlobalTransaction, *, now_us: int) -> GlobalTransaction:
    """Return it decided forward; submitted again it is the same.

    Args:
        wish: what the submit asks for. Only how to deliver is taken from it, if it says
            so: DTM's clients send the delay with the submit alone. The actions are those
            that were prepared.

    Raises:
        StatusConflictError: it has ended (`wanted="submit"`).
    """
    if msg.status is Status.SUBMITTED:
        return msg
    if msg.status is not Status.PREPARED:
        raise StatusConflictError(msg.gid, status=msg.status, wanted="submit", pattern=msg.pattern)
    if wish.custom_data and wish.custom_data != msg.custom_data:
        concurrent = _Delivery.read(wish.custom_data).concurrent
        options = msgspec.structs.replace(
            msg.options,
            delay_us=wish.options.delay_us,
            max_attempts=wish.options.max_attempts,
            give_up_after_us=wish.options.give_up_after_us,
            concurrent=msg.options.concurrent if concurrent is None else concurrent,
        )
        msg = msg.replace(options=options, custom_data=wish.custom_data)
    return decided_forward(msg, now_us=now_us)


def decided_forward(msg: GlobalTransaction, *, now_us: int) -> GlobalTransaction:
    """Return a prepared message as it is submitted now, by its initiator or by the check-back's answer."""
    return _forward(msg, now_us).replace(status=Status.SUBMITTED, due_us=None, updated_us=msg.updated_at(now_us))


def _forward(msg: GlobalTransaction, now_us: int) -> GlobalTransaction:
    options = msg.options
    if options.give_up_after_us:
        options = msgspec.structs.replace(options, give_up_at_us=now_us + options.delay_us + options.give_up_after_us)
        msg = msg.replace(options=options)
    if options.delay_us:
        due_us = now_us + options.delay_us
        branches = tuple(
            op.replace(due_us=due_us) if op.op is Op.ACTION and op.status is OpStatus.PREPARED else op
            for op in msg.branches
        )
        msg = msg.replace(branches=branches)
    return msg


def aborted(msg: GlobalTransaction, reason: str, *, now_us: int) -> GlobalTransaction:
    """Return it failed; nothing has been called, so nothing is to be undone.

    Raises:
        StatusConflictError: it is submitted, or has ended (`wanted="abort"`).
    """
    if msg.status is not Status.PREPARED:
        raise StatusConflictError(msg.gid, status=msg.status, wanted="abort", pattern=msg.pattern)
    return msg.replace(
        status=Status.FAILED,
        rollback_reason=reason,
        updated_us=msg.updated_at(now_us),
        finished_us=now_us,
        due_us=None,
    )
