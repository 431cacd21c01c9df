"""From bytes on the wire to a typed request, as Go's `encoding/json` would read them.

DTM's server decodes bodies into Go structs, and its clients rely on what that allows:
keys in any case, keys it does not know, nulls for absent values, duplicate keys. They
equally rely on nothing else being guessed: a string is never taken for a number.

Most bodies are plain, and one pass of msgspec into a struct reads them. Whatever that
pass refuses is read again field by field, which costs more and understands everything
that Go does; and it is where the sentences come from that say what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from txcoord.errors import InvalidRequestError
from txcoord.request import BranchRegistration, TransRequest

INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)

_Int64 = Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX)]

# DTM deletes these from a gid that it writes; we delete them wherever a gid comes in, so
# that one that was written can be asked for with the same text.
_GID_CLEANING: Final = str.maketrans("", "", "\n\r;")

_BODY: Final = "the body"


def clean_gid(gid: str) -> str:
    """Delete line breaks and semicolons."""
    return gid.translate(_GID_CLEANING)


class _PlainBody(Struct, forbid_unknown_fields=True, gc=False):
    """A body whose keys are spelled as documented. Clients in Python and C# send nulls."""

    gid: str | None = None
    trans_type: str | None = None
    steps: list[dict[str, str]] | None = None
    payloads: list[str] | None = None
    custom_data: str | None = None
    wait_result: bool | None = None
    timeout_to_fail: _Int64 | None = None
    request_timeout: _Int64 | None = None
    retry_interval: _Int64 | None = None
    retry_limit: _Int64 | None = None
    branch_headers: dict[str, str] | None = None
    concurrent: bool | None = None
    query_prepared: str | None = None
    protocol: str | None = None
    rollback_reason: str | None = None
    req_extra: dict[str, str] | None = None


_plain_decoder = msgspec.json.Decoder(_PlainBody)
_plain_steps_decoder = msgspec.json.Decoder(tuple[dict[str, str], ...])
_any_decoder = msgspec.json.Decoder()


def decode_trans(body: bytes, *, what: str = _BODY) -> TransRequest:
    """Read the body of prepare, submit, abort and of whatever only names a gid.

    `what` names it in sentences: JSON-RPC has the same object as its params.

    Raises:
        InvalidRequestError: it is not JSON, or a field has another type than its own; the
            sentence names the field and what is expected.
    """
    try:
        plain = _plain_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _read_by_field(body, what)
    return _request(plain)


def _request(body: _PlainBody) -> TransRequest:
    steps = body.steps or ()
    payloads = [text.encode() for text in body.payloads] if body.payloads else []
    for step in steps:
        # The form of old clients: the payload stands in the step.
        if "data" in step:
            payloads.append(step["data"].encode())
    return TransRequest(
        gid=clean_gid(body.gid) if body.gid else "",
        trans_type=body.trans_type or "",
        steps=tuple(steps),
        payloads=tuple(payloads),
        custom_data=body.custom_data or "",
        wait_result=body.wait_result or False,
        timeout_to_fail=body.timeout_to_fail or 0,
        request_timeout=body.request_timeout or 0,
        retry_interval=body.retry_interval or 0,
        retry_limit=body.retry_limit or 0,
        branch_headers=body.branch_headers or {},
        concurrent=body.concurrent or False,
        query_prepared=body.query_prepared or "",
        protocol=body.protocol or "",
        rollback_reason=body.rollback_reason or "",
        req_extra=body.req_extra or {},
    )


def decode_branch(body: bytes, *, what: str = _BODY) -> BranchRegistration:
    """Read the body of registerBranch: a flat map whose values are strings or null.

    Raises:
        InvalidRequestError: it is not that; the sentence names the key.
    """
    found: dict[str, str] = {}
    for key, value in _decode_object(body, what).items():
        # Every value is a string in DTM's body, known or not: clients send more keys than are read.
        found[key] = _read_string(key[:64], value)
    return BranchRegistration(
        gid=clean_gid(found.get("gid", "")),
        trans_type=found.get("trans_type", ""),
        branch_id=found.get("branch_id", ""),
        data=found.get("data", "").encode(),
        confirm=found.get("confirm", ""),
        cancel=found.get("cancel", ""),
        url=found.get("url", ""),
        op=found.get("op", ""),
        status=found.get("status", ""),
    )


def decode_steps(text: str) -> tuple[dict[str, str], ...]:
    """Read the steps of a gRPC message, which stand in it as JSON text; "" and "null" are none.

    Raises:
        InvalidRequestError: they are not a list of objects whose values are strings.
    """
    if not text:
        return ()
    try:
        return _plain_steps_decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        value = _decode_any(text, "Steps")
        return () if value is None else tuple(_read_steps("Steps", value))


# -- field by field -------------------------------------------------------------------


def _read_by_field(body: bytes, what: str) -> TransRequest:
    plain = _PlainBody()
    for key, value in _decode_object(body, what).items():
        name = key.casefold()
        read = _READERS.get(name)
        if read is not None and value is not None:
            setattr(plain, name, read(name, value))
    return _request(plain)


def _decode_object(body: bytes, what: str) -> Mapping[str, Any]:
    if not body.strip():
        raise InvalidRequestError(f"{what} is empty; send a JSON object")
    value = _decode_any(body, what)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{what} must be a JSON object, not {_kind(value)}")
    return value


def _decode_any(body: bytes | str, what: str) -> Any:
    try:
        return _any_decoder.decode(body)
    except RecursionError:
        raise InvalidRequestError(f"{what} is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{what} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except msgspec.MsgspecError as error:
        raise InvalidRequestError(f"{what} is not JSON that can be read: {error}") from error


def _kind(value: object) -> str:
    match value:
        case bool():
            return f"the boolean {str(value).lower()}"
        case int():
            return "a number"
        case float():
            return f"the number {value!r}"
        case str():
            return "a string"
        case None:
            return "null"
        case dict():
            return "an object"
        case _:
            return "an array"


def _wrong(name: str, expected: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(f"{name} must be {expected}, not {_kind(value)}")


def _read_string(name: str, value: object) -> str:
    if value is None:
        return ""  # inside an array or a map: Go leaves the zero value
    if not isinstance(value, str):
        raise _wrong(name, "a string", value)
    return value


def _read_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _read_int(name: str, value: object) -> int:
    # A bool is an int in Python, and 5.0 is a float: Go takes neither for an integer.
    if type(value) is not int:
        raise _wrong(name, "a whole number", value)
    if not INT64_MIN <= value <= INT64_MAX:
        raise InvalidRequestError(f"{name} must fit into 64 bits")
    return value


def _read_map(name: str, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(name, "an object whose values are strings", value)
    return {key: _read_string(f"{name}.{key[:64]}", item) for key, item in value.items()}


def _read_steps(name: str, value: object) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise _wrong(name, "an array of objects whose values are strings", value)
    return [_read_map(f"{name}[{index}]", item) for index, item in enumerate(value)]


def _read_payloads(name: str, value: object) -> list[str]:
    if not isinstance(value, list):
        raise _wrong(name, "an array of strings, one for each step", value)
    return [_read_string(f"{name}[{index}]", item) for index, item in enumerate(value)]


_READERS: Final[Mapping[str, Callable[[str, object], object]]] = {
    "gid": _read_string,
    "trans_type": _read_string,
    "steps": _read_steps,
    "payloads": _read_payloads,
    "custom_data": _read_string,
    "wait_result": _read_bool,
    "timeout_to_fail": _read_int,
    "request_timeout": _read_int,
    "retry_interval": _read_int,
    "retry_limit": _read_int,
    "branch_headers": _read_map,
    "concurrent": _read_bool,
    "query_prepared": _read_string,
    "protocol": _read_string,
    "rollback_reason": _read_string,
    "req_extra": _read_map,
}
