"""What an initiator asks for, as every adapter hands it to the service."""

from __future__ import annotations

from msgspec import Struct

from txcoord.model import Status


class TransRequest(Struct, frozen=True, kw_only=True):
    """The body of submit, prepare and abort: decoded, typed, not yet checked against any rule.

    Absent and null fields have the defaults below, as on the wire. `gid` has been cleaned
    by the adapter (line breaks and semicolons deleted).
    """

    gid: str = ""
    trans_type: str = ""
    steps: tuple[dict[str, str], ...] = ()
    payloads: tuple[bytes, ...] = ()
    custom_data: str = ""
    wait_result: bool = False
    timeout_to_fail: int = 0
    request_timeout: int = 0
    retry_interval: int = 0
    retry_limit: int = 0
    branch_headers: dict[str, str] = {}
    concurrent: bool = False
    query_prepared: str = ""
    protocol: str = ""
    rollback_reason: str = ""
    req_extra: dict[str, str] = {}


class SubmitResult(Struct, frozen=True, kw_only=True):
    """Where the transaction stands when a submit is answered.

    Without `waited` it is only known to be accepted (durable). With it, one pass of
    processing has ended: finished, or stopped at a call that has to be repeated later.
    """

    waited: bool
    status: Status
    reason: str = ""
    """Why it turned round, or what it is waiting for."""
