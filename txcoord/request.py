"""What an initiator asks for, as every adapter hands it to the service."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from msgspec import Struct

from txcoord.errors import InvalidRequestError, RequestTooLargeError
from txcoord.grpc_call import GRPC_FORM, fault_of_metadata, read_url
from txcoord.jsonrpc import BadParamsError, method_of, read_params
from txcoord.model import Options, Status
from txcoord.protocol import GRPC, HTTP, JSON_RPC, METHOD_PARAMETER, branch_id_of
from txcoord.url import fault_of_url

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # what fits Latin-1, as RFC 9110 reads it


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


class BranchRegistration(Struct, frozen=True, kw_only=True):
    """The body of registerBranch: decoded and typed, not yet checked. Each pattern reads its own fields."""

    gid: str = ""
    trans_type: str = ""
    branch_id: str = ""
    data: bytes = b""
    """TCC: the body of confirm and cancel. Workflow: the step's result."""
    confirm: str = ""
    cancel: str = ""
    url: str = ""
    """XA: of commit and rollback."""
    op: str = ""
    """Workflow: what of the step has ended, and how."""
    status: str = ""


class SubmitResult(Struct, frozen=True, kw_only=True):
    """Where the transaction stands when a submit is answered.

    Without `waited` it is only known to be accepted (durable). With it, one pass of
    processing has ended: finished, or stopped at a call that has to be repeated later.
    """

    waited: bool
    status: Status
    reason: str = ""
    """Why it turned round, or what it is waiting for."""


class Limits(Struct, frozen=True, kw_only=True):
    """The bounds of a request; each is a setting of the same name."""

    max_branches: int = 1000
    max_payload_bytes: int = 1 << 20
    max_url_length: int = 1024
    max_custom_data_bytes: int = 64 << 10
    max_header_bytes: int = 8 << 10
    max_timeout_s: int = 30 * 24 * 3600


REASON_LENGTH = 1024
"""Longest reason that DTM's clients expect to be stored."""

MAX_GID_LENGTH = 128
MAX_BRANCH_ID_LENGTH = 128

PAYLOADS_AT_MOST = 4
"""What is registered for one transaction is kept in one row: all of it together may have this many times
`max_payload_bytes`, like a request that brings all at once."""


def check_gid(gid: str) -> str:
    """Return a gid that every store and every participant's barrier can keep.

    Raises:
        InvalidRequestError: it is empty, too long, or has characters that databases
            compare in different ways.
    """
    if not gid:
        raise InvalidRequestError("gid is empty: choose a unique one, or ask newGid for one")
    if len(gid) > MAX_GID_LENGTH:
        raise InvalidRequestError(f"gid has {len(gid)} characters: at most {MAX_GID_LENGTH} fit")
    if not gid.isprintable() or gid != gid.strip():
        raise InvalidRequestError(f"gid {gid!r} has control characters or outer spaces: use printable ones")
    return gid


def check_options(request: TransRequest, limits: Limits) -> Options:
    """Return the options that all patterns share; zero and negative numbers mean "as the server is set"."""
    return Options(
        wait_result=request.wait_result,
        timeout_to_fail_s=_check_seconds("timeout_to_fail", request.timeout_to_fail, limits),
        request_timeout_s=_check_seconds("request_timeout", request.request_timeout, limits),
        retry_interval_s=_check_seconds("retry_interval", request.retry_interval, limits),
        retry_limit=min(max(request.retry_limit, 0), 2**31 - 1),
        branch_headers=_check_headers(request.branch_headers, limits, request.protocol),
        concurrent=request.concurrent,
    )


def check_protocol(protocol: str) -> str:
    """Return the protocol by which the branches are called."""
    if protocol not in ("", HTTP, JSON_RPC, GRPC):
        raise InvalidRequestError(
            f"protocol {protocol!r} is not offered: leave it out or say {HTTP!r}; {JSON_RPC!r} for branches whose"
            f" URL names a {METHOD_PARAMETER}, or {GRPC!r} for those of the form {GRPC_FORM}"
        )
    return protocol or HTTP


def check_branch_id(branch_id: str) -> str:
    """Return the id of a branch that is registered."""
    if not branch_id or len(branch_id) > MAX_BRANCH_ID_LENGTH or not branch_id.isprintable():
        raise InvalidRequestError(
            f"branch_id {branch_id[:40]!r} must have 1 to {MAX_BRANCH_ID_LENGTH} printable characters"
        )
    return branch_id


def check_custom_data(custom_data: str, limits: Limits) -> str:
    """Return custom_data that is not too long; what it says is each pattern's own."""
    size = len(custom_data.encode(errors="surrogatepass"))
    if size > limits.max_custom_data_bytes:
        raise RequestTooLargeError(
            f"custom_data has {size} bytes: at most {limits.max_custom_data_bytes} (max_custom_data_bytes) are allowed"
        )
    return custom_data


def check_params(payload: bytes, *, url: str, protocol: str, where: str) -> None:
    """Refuse a payload that can never be sent: the params of a JSON-RPC call are an object."""
    if protocol != JSON_RPC or not method_of(url):
        return
    try:
        read_params(payload)
    except BadParamsError as error:
        raise InvalidRequestError(f"{where} {error}: it is to be called over JSON-RPC ({url})") from error


def check_url(
    url: str, *, where: str, limits: Limits, protocol: str = HTTP, headers: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return a URL that can be called; an empty one stands for "nothing to call".

    Of a transaction whose protocol is not HTTP, one without a scheme is called over gRPC.

    Args:
        headers: what is sent with the call. Over gRPC it has to be metadata.
    """
    if not url:
        return url
    if len(url) > limits.max_url_length:
        raise InvalidRequestError(
            f"{where} has {len(url)} characters: at most {limits.max_url_length} (max_url_length) are allowed"
        )
    fault = _fault_of_grpc_url(url) if is_grpc(url, protocol) else _fault_of_url(url)
    if fault:
        raise InvalidRequestError(f"{where} {url!r} {fault}")
    if headers and is_grpc(url, protocol):
        _check_metadata(headers, f"{where} is")
    return url


def without_credentials(url: str) -> str:
    """Return a URL as it stands in logs, reasons and alerts: without the user and password that it may have."""
    return _USERINFO.sub("//", url, count=1)


_USERINFO = re.compile(r"//[^/?#]*@")


def is_grpc(url: str, protocol: str) -> bool:
    """Whether a branch with this URL is called over gRPC: DTM's rule."""
    return protocol != HTTP and not url.startswith(("http://", "https://"))


def _fault_of_grpc_url(url: str) -> str:
    try:
        read_url(url)
    except ValueError as error:
        return str(error)
    return ""


_fault_of_url = lru_cache(maxsize=4096)(fault_of_url)  # the same few come with every transaction


def check_payloads(request: TransRequest, limits: Limits) -> Sequence[bytes]:
    """Return one payload for each step."""
    steps = len(request.steps)
    if steps > limits.max_branches:
        raise RequestTooLargeError(f"{steps} steps: at most {limits.max_branches} (max_branches) are allowed")
    if len(request.payloads) < steps:
        raise InvalidRequestError(
            f"payloads has {len(request.payloads)} entries for {steps} steps: give one for each (it may be empty)"
        )
    for index, payload in enumerate(request.payloads):
        if len(payload) > limits.max_payload_bytes:
            raise RequestTooLargeError(
                f"the payload of branch {branch_id_of(index)} has {len(payload)} bytes:"
                f" at most {limits.max_payload_bytes} (max_payload_bytes) are allowed"
            )
    return request.payloads[:steps]


def _check_seconds(name: str, seconds: int, limits: Limits) -> int:
    if seconds > limits.max_timeout_s:
        raise InvalidRequestError(
            f"{name} is {seconds} seconds: at most {limits.max_timeout_s} (max_timeout_s) are allowed"
        )
    return max(seconds, 0)


def _check_headers(headers: Mapping[str, str], limits: Limits, protocol: str) -> dict[str, str]:
    size = sum(len(name) + len(value) + 4 for name, value in headers.items())
    if size > limits.max_header_bytes:
        raise RequestTooLargeError(
            f"branch_headers need {size} bytes: at most {limits.max_header_bytes} (max_header_bytes) are allowed"
        )
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidRequestError(f"branch_headers: {name!r} is not a header name: use letters, digits and hyphens")
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidRequestError(
                f"branch_headers: the value of {name!r} has characters that a header cannot carry"
            )
    if protocol == GRPC:
        # Those that are registered later, too.
        _check_metadata(headers, "the branches are")
    return dict(headers)


def _check_metadata(headers: Mapping[str, str], what: str) -> None:
    for name, value in headers.items():
        if fault := fault_of_metadata(name.lower(), value):
            raise InvalidRequestError(f"branch_headers: {name!r} {fault}, and {what} called over gRPC")
