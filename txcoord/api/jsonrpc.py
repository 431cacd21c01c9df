"""The DTM JSON-RPC API: the requests of initiators in the form that DTM gives them.

Every reply has the four keys `jsonrpc`, `id`, `error` and `result`, as DTM's clients
expect; JSON-RPC 2.0 would leave one of the last two out. Its clients take any `error` for
one, so there is room to say more than DTM does: what is still running has a code of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
from msgspec import Raw, Struct

from txcoord.api import replies
from txcoord.api.answers import JSON, Answer, headers_of
from txcoord.api.operations import Operations
from txcoord.api.replies import Reply
from txcoord.api.views import encode
from txcoord.api.wire import decode_branch, decode_trans
from txcoord.outcome import clean
from txcoord.protocol import (
    JSON_RPC_INVALID_REQUEST,
    JSON_RPC_METHOD_NOT_FOUND,
    JSON_RPC_PARSE_ERROR,
    JSON_RPC_PATH,
    JSON_RPC_VERSION,
)
from txcoord.service import Service

_ECHO_BYTES: Final = 200
_PARAMS: Final = "params"

Id = str | Raw
"""As it came: a string, or the digits of a number."""


class _Request(Struct, gc=False):
    jsonrpc: str | None = None
    id: Raw = Raw()
    method: str | None = None
    params: Raw = Raw()


_decode = msgspec.json.Decoder(_Request).decode
_decode_id = msgspec.json.Decoder(str).decode


class JsonRpcApi:
    """Bodies in, calls of the service, answers out. Raises nothing."""

    def __init__(self, service: Service) -> None:
        operations = Operations(service)
        self._new_gid = service.new_gid
        self._methods: Mapping[str, Callable[[bytes], Awaitable[Reply]]] = {
            "prepare": lambda params: operations.prepare(decode_trans(params, what=_PARAMS)),
            "submit": lambda params: operations.submit(decode_trans(params, what=_PARAMS)),
            "abort": lambda params: operations.abort(decode_trans(params, what=_PARAMS)),
            "registerBranch": lambda params: operations.register_branch(decode_branch(params, what=_PARAMS)),
        }

    async def answer(self, body: bytes) -> Answer:
        try:
            request = _decode(body)
            id_ = _id_of(request.id)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if body.lstrip().startswith(b"["):
                return _refused("", JSON_RPC_INVALID_REQUEST, f"Bad json request: {_NO_BATCH}")
            return _refused("", JSON_RPC_PARSE_ERROR, f"Parse json error: {_fault(error)}", status=400)
        if not id_ or request.jsonrpc != JSON_RPC_VERSION:
            why = f"jsonrpc must be {JSON_RPC_VERSION!r}" if id_ else _NO_NOTIFICATION
            return _refused(
                id_, JSON_RPC_INVALID_REQUEST, f"Bad json request: {why}. It was: {clean(body, _ECHO_BYTES)}"
            )
        if request.method == "newGid":
            return _succeeded(id_, {"gid": self._new_gid()})
        method = self._methods.get(request.method or "")
        if method is None:
            name = clean(request.method or "", _ECHO_BYTES)
            return _refused(id_, JSON_RPC_METHOD_NOT_FOUND, f"Method not found: {name}")
        try:
            return of_reply(id_, await method(bytes(request.params)))
        except Exception as error:  # noqa: BLE001 - the last resort, which logs it
            known = replies.of_error(error)
            if known is not None:
                return of_reply(id_, known)
            # How far the request got nobody knows: DTM's form of a panic.
            bug = replies.of_bug(error, where=JSON_RPC_PATH)
            return _refused(id_, bug.code, bug.message)


_NO_BATCH: Final = "batches are not taken, send one request at a time"
_NO_NOTIFICATION: Final = (
    "id is missing or empty, and notifications are not taken: give an id, every request is answered"
)


def _id_of(raw: Raw) -> Id:
    """Return what is to be echoed. Raises what the decoder raises, for an id that none can have."""
    text = bytes(raw)
    if text in (b"", b"null"):
        return ""
    # Of a number nothing is lost, not even digits that no float holds.
    if text[0] in b"-0123456789":
        return raw
    if text[0] != ord('"'):
        raise msgspec.ValidationError("id must be a string or a number")
    return _decode_id(text)


def _fault(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return clean(str(error), _ECHO_BYTES)


# -- the form of a reply ---------------------------------------------------------------


def of_reply(id_: Id, reply: Reply) -> Answer:
    if reply is replies.SUCCESS:
        return _succeeded(id_, None)
    error = {"code": reply.code, "message": reply.message}
    return Answer(200, _form(id_, error, {}), JSON, headers_of(reply))


def of_unread(reply: Reply) -> Answer:
    """A reply to a request whose body was not read (too large, too slow), and whose id nobody knows."""
    return Answer(reply.status, _form("", {"code": reply.code, "message": reply.message}, None), JSON)


def _succeeded(id_: Id, result: object) -> Answer:
    return Answer(200, _form(id_, None, result))


def _refused(id_: Id, code: int, message: str, *, status: int = 200) -> Answer:
    return Answer(status, _form(id_, {"code": code, "message": message}, None))


def _form(id_: Id, error: object, result: object) -> bytes:
    return encode({"jsonrpc": JSON_RPC_VERSION, "id": id_, "error": error, "result": result})
