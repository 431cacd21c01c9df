"""From what came in to a saga that can be stored: nothing malformed gets past here."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from txcoord.errors import InvalidRequestError
from txcoord.model import MICROSECONDS, BranchOp, GlobalTransaction, Op, Pattern, Status
from txcoord.protocol import branch_id_of
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
from txcoord.saga.graph import edges, find_cycle


def build_saga(request: TransRequest, limits: Limits, *, now_us: int) -> GlobalTransaction:
    """Return the saga that a submit asks for.

    Raises:
        InvalidRequestError, RequestTooLargeError: with a sentence that says what to change.
    """
    gid = check_gid(request.gid)
    protocol = check_protocol(request.protocol)
    payloads = check_payloads(request, limits)
    branches: list[BranchOp] = []
    for step, (urls, payload) in enumerate(zip(request.steps, payloads, strict=True)):
        branch_id = branch_id_of(step)
        for op in (Op.COMPENSATE, Op.ACTION):
            url = check_url(
                urls.get(op.value, ""),
                where=f"the {op} URL of branch {branch_id}",
                limits=limits,
                protocol=protocol,
                headers=request.branch_headers,
            )
            check_params(payload, url=url, protocol=protocol, where=f"the payload of branch {branch_id}")
            branches.append(BranchOp(branch_id=branch_id, op=op, url=url, payload=payload))
    plan = _Plan.read(request.custom_data, steps=len(request.steps), limits=limits)
    # Only the flag within custom_data makes a saga concurrent; DTM ignores the outer one.
    options = msgspec.structs.replace(check_options(request, limits), concurrent=plan.concurrent, orders=plan.orders)
    deadline_us = now_us + options.timeout_to_fail_s * MICROSECONDS if options.timeout_to_fail_s else None
    return GlobalTransaction(
        gid=gid,
        pattern=Pattern.SAGA,
        status=Status.SUBMITTED,
        branches=tuple(branches),
        options=options,
        protocol=protocol,
        query_prepared=check_url(request.query_prepared, where="query_prepared", limits=limits, protocol=protocol),
        custom_data=request.custom_data,
        created_us=now_us,
        updated_us=now_us,
        deadline_us=deadline_us,
    )


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a saga's `custom_data` says: `{"orders": {"<step>": [<step>, …]}, "concurrent": true}`."""

    concurrent: bool = False
    orders: dict[int, tuple[int, ...]] = {}

    @classmethod
    def read(cls, custom_data: str, *, steps: int, limits: Limits) -> _Plan:
        if not custom_data:
            return cls()
        try:
            raw = msgspec.json.decode(check_custom_data(custom_data, limits), type=_RawPlan | None)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise InvalidRequestError(f"custom_data of a saga cannot be read: {error}") from error
        if raw is None:
            return cls()
        orders = _read_orders(raw.orders or {}, steps)
        cycle = find_cycle(edges(steps, concurrent=bool(raw.concurrent), orders=orders))
        if cycle:
            ring = " waits for ".join(f"step {step}" for step in (*cycle, cycle[0]))
            chain = "" if raw.concurrent else " (a saga that is not concurrent also runs in the order of its steps)"
            raise InvalidRequestError(f"orders can never be met: {ring}{chain}")
        return cls(concurrent=bool(raw.concurrent), orders=orders)


class _RawPlan(msgspec.Struct, frozen=True):
    concurrent: bool | None = None
    # PHP writes a map whose keys happen to be 0, 1, 2, … as a list.
    orders: dict[str, list[int] | None] | list[list[int] | None] | None = None


def _read_orders(
    raw: Mapping[str, list[int] | None] | list[list[int] | None], steps: int
) -> dict[int, tuple[int, ...]]:
    entries = enumerate(raw) if isinstance(raw, list) else ((_step_number(key), value) for key, value in raw.items())
    orders = {step: tuple(dict.fromkeys(before)) for step, before in entries if before}
    for step, before in orders.items():
        for named in (step, *before):
            if not 0 <= named < steps:
                raise InvalidRequestError(f"orders names step {named}, but there are {steps} steps (numbered from 0)")
    return orders


def _step_number(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise InvalidRequestError(f"orders has the key {key!r}: step numbers are decimal, from 0")
    return int(key)
