"""What one client does again and again, for each pattern: the requests of one transaction, one after another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from enum import StrEnum

import msgspec

from txcoord.protocol import API_BASE

SUCCESS = b'"dtm_result":"SUCCESS"'
PAYLOAD = '{"amount":30}'


class Load(StrEnum):
    """What is measured."""

    SAGA = "saga"
    TCC = "tcc"
    MSG = "msg"
    GRPC = "grpc-saga"

    @property
    def explanation(self) -> str:
        return _EXPLANATIONS[self]


_EXPLANATIONS: Mapping[Load, str] = {
    Load.SAGA: "2-branch sagas with wait_result",
    Load.TCC: "TCC transactions (prepare, two registrations, submit with wait_result)",
    Load.MSG: "two-phase messages of one branch (prepare, submit with wait_result)",
    Load.GRPC: "2-branch sagas with wait_result, submitted over gRPC (branches over HTTP)",
}

Flow = Generator[tuple[str, bytes], bytes, None]
"""Yields path and body of a request, is sent the body of its answer; returns when the transaction has ended."""


class UnexpectedAnswerError(Exception):
    """An answer is not the success that a benchmark counts."""


def tcc(gid: str, participants: str) -> Flow:
    yield from _post("prepare", {"gid": gid, "trans_type": "tcc"})
    for branch in ("01", "02"):
        yield from _post(
            "registerBranch",
            {
                "gid": gid,
                "trans_type": "tcc",
                "branch_id": branch,
                "confirm": f"{participants}/confirm",
                "cancel": f"{participants}/cancel",
                "data": PAYLOAD,
            },
        )
    yield from _post("submit", {"gid": gid, "trans_type": "tcc", "wait_result": True})


def msg(gid: str, participants: str) -> Flow:
    body = {
        "gid": gid,
        "trans_type": "msg",
        "steps": [{"action": f"{participants}/in"}],
        "payloads": [PAYLOAD],
        "query_prepared": f"{participants}/query",
    }
    yield from _post("prepare", body)
    yield from _post("submit", {**body, "wait_result": True})


def saga_steps(participants: str) -> Iterable[Mapping[str, str]]:
    return [{"action": f"{participants}/{name}", "compensate": f"{participants}/{name}-undo"} for name in ("out", "in")]


FLOWS: Mapping[Load, Callable[[str, str], Flow]] = {Load.TCC: tcc, Load.MSG: msg}
"""Those over HTTP that take more than one request; wrk does the saga."""


def _post(operation: str, body: Mapping[str, object]) -> Flow:
    answer = yield f"{API_BASE}/{operation}", msgspec.json.encode(body)
    if SUCCESS not in answer:
        raise UnexpectedAnswerError(f"{operation} was answered: {answer[:300].decode(errors='replace')}")
