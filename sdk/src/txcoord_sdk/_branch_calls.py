"""Calls of participants that an initiator makes itself: how they are written, and what answers mean. No I/O.

Over HTTP they say in the query which branch operation they are, over gRPC in the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit, urlunsplit

from txcoord.grpc_call import as_ascii, metadata_of
from txcoord.model import Outcome
from txcoord.outcome import understand, understand_grpc
from txcoord.protocol import API_BASE, COORDINATOR_PARAMETER, METADATA_PREFIX, PHASE2_PARAMETER
from txcoord.request import without_credentials
from txcoord_sdk._calls import AnyReply, Call, GrpcAnswer, GrpcCall, HttpAnswer, HttpCall, NoAnswer
from txcoord_sdk._checks import is_grpc_url
from txcoord_sdk._exchange import text_of


def branch_call(
    url: str,
    payload: bytes,
    *,
    gid: str,
    trans_type: str,
    branch_id: str,
    op: str,
    coordinator: str = "",
    phase2_url: str = "",
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
) -> Call:
    """Write the call of a branch operation, over HTTP or gRPC as its URL says.

    Args:
        coordinator: where branches within the branch are registered, as a coordinator client has it; what it has of
            user and password is left out.
        phase2_url: of the action of an xa: what it is to register for commit and rollback.

    Raises:
        ValueError: a header cannot be sent as metadata.
    """
    ours = {"branch_id": branch_id, "gid": gid, "op": op, "trans_type": trans_type}
    if coordinator:
        ours[COORDINATOR_PARAMETER] = _for_participants(coordinator, over_grpc=is_grpc_url(url))
    if phase2_url:
        ours[PHASE2_PARAMETER] = phase2_url
    if not is_grpc_url(url):
        target = _with_query(url, urlencode(sorted(ours.items())))
        return HttpCall(method="POST", url=target, body=payload, headers=headers or {}, timeout_s=timeout_s)
    target, _, method = url.partition("/")
    named = {f"{METADATA_PREFIX}{name}": as_ascii(value) for name, value in ours.items()}
    return GrpcCall(
        target=target,
        method=f"/{method}",
        message=payload,
        metadata=(*metadata_of((headers or {}).items(), ours=named), *named.items()),
        timeout_s=timeout_s,
        is_branch=True,
    )


def _for_participants(coordinator: str, *, over_grpc: bool) -> str:
    # Participants keep what they are asked for in their logs, and may be others' than the coordinator's users.
    coordinator = without_credentials(coordinator)
    if coordinator.startswith("http"):
        return f"{coordinator}{API_BASE}"
    # Over gRPC DTM's clients pass host and port, and would not know the scheme.
    return coordinator.removeprefix("grpc://") if over_grpc else coordinator


def _with_query(url: str, ours: str) -> str:
    parts = urlsplit(url)
    # Ours last: of two with the same name, participants take the last.
    return urlunsplit(parts._replace(query=f"{parts.query}&{ours}" if parts.query else ours, fragment=""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a participant's answer means."""

    outcome: Outcome
    reason: str = ""
    """Why it is not a success."""
    body: bytes = b""


def understood(reply: AnyReply) -> Answered:
    """Say what came of the call of a branch operation."""
    match reply:
        case NoAnswer():
            return Answered(outcome=Outcome.UNKNOWN, reason=f"no answer ({reply.detail})")
        case GrpcAnswer():
            return _of_grpc(reply)
        case HttpAnswer():
            outcome = understand(reply.status, reply.body)
            code = f"HTTP {reply.status}: " if outcome is Outcome.UNKNOWN else ""
            return Answered(outcome=outcome, reason=f"{code}{text_of(reply)}", body=reply.body)


def _of_grpc(answer: GrpcAnswer) -> Answered:
    outcome = understand_grpc(answer.code, answer.message)
    if outcome is Outcome.SUCCESS:
        return Answered(outcome=outcome, body=answer.body)
    code = f"gRPC {answer.name}: " if outcome is Outcome.UNKNOWN else ""
    return Answered(outcome=outcome, reason=f"{code}{answer.message or 'no further word'}")
