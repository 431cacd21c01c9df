"""A branch call over JSON-RPC: which URLs are called so, what is sent, what the answer means.

Text is not searched for words: an answer is understood by its HTTP status, by the code of
its `error`, or by the `dtm_result` of its `result`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Raw, Struct

from txcoord.model import Outcome
from txcoord.outcome import clean, describe, understand
from txcoord.protocol import JSON_RPC_FAILURE, JSON_RPC_ONGOING, JSON_RPC_VERSION, METHOD_PARAMETER

_OUTCOMES: Mapping[float | None, Outcome] = {JSON_RPC_FAILURE: Outcome.FAILURE, JSON_RPC_ONGOING: Outcome.ONGOING}
_MOST_FIELDS = 100


class BadParamsError(ValueError):
    """The payload cannot be the params of a call; the sentence goes on from its name."""


# -- the call ---------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def method_of(url: str) -> str:
    """Return the method that a URL names (`?method=TransIn`); empty: it is called over plain HTTP.

    DTM looks for the letters anywhere in the URL, and then calls a method without a name.
    """
    if METHOD_PARAMETER not in url:
        return ""
    try:
        fields = parse_qsl(urlsplit(url).query, max_num_fields=_MOST_FIELDS)
    except ValueError:
        return ""
    return next((value for name, value in fields if name == METHOD_PARAMETER), "")


def read_params(payload: bytes) -> dict[str, Raw]:
    """Return the params in a payload, their values as they stand; of an empty one, or null, none.

    Raises:
        BadParamsError: it is not a JSON object.
    """
    if not payload:
        return {}
    try:
        # As text first: values are taken over unread, and may not smuggle in bytes that are not text.
        return _decode_params(payload.decode()) or {}
    except UnicodeDecodeError:
        fault = "is not UTF-8 text"
    except RecursionError:
        fault = "is nested too deeply"
    except msgspec.ValidationError:
        fault = "is JSON, but not an object"
    except msgspec.MsgspecError as error:
        fault = f"is not JSON ({error})"
    raise BadParamsError(f"{fault}; the params of a JSON-RPC call must be a JSON object")


_decode_params = msgspec.json.Decoder(dict[str, Raw] | None).decode


def make_request(method: str, params: Mapping[str, Raw], *, call: Mapping[str, str]) -> bytes:
    """Write the body. What says which call this is stands among the params, and overrides theirs."""
    return msgspec.json.encode(
        {
            "jsonrpc": JSON_RPC_VERSION,
            # Answers come on the call's own connection: the id is for the participant's log.
            "id": "/".join(call.values()),
            "method": method,
            "params": {**params, **call},
        }
    )


# -- the answer ---------------------------------------------------------------------------


class _Error(Struct):
    code: int | float | None = None
    message: object = None


class _Reply(Struct):
    error: _Error | None = None
    result: Raw = Raw(b"null")


_decode_reply = msgspec.json.Decoder(_Reply).decode


def understand_reply(status: int, body: bytes, *, limit: int, anywhere: bool = False) -> tuple[Outcome, str]:
    """Say what a whole answer means, and the text to keep of it: at most `limit` bytes.

    HTTP's rule comes first (409, 425, anything but 200; a `dtm_result` at the top). Then
    an `error` decides by its code: failure, ongoing, or unknown. Without one, or with a
    null one, it is a success, unless the `result` is an answer of failure or ongoing.
    """
    outcome = understand(status, body, anywhere=anywhere)
    if outcome is not Outcome.SUCCESS:
        return outcome, describe(status, body, outcome, limit=limit)
    try:
        reply = _decode_reply(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Outcome.UNKNOWN, clean(b"HTTP 200, but no JSON-RPC reply: " + body, limit)
    error = reply.error
    if error is None:
        return understand(status, bytes(reply.result), anywhere=anywhere), clean(body, limit)
    message = error.message if isinstance(error.message, str) and error.message else body
    outcome = _OUTCOMES.get(error.code, Outcome.UNKNOWN)
    if outcome is Outcome.UNKNOWN:
        return outcome, clean(f"JSON-RPC error {error.code}: ".encode() + _bytes(message), limit)
    return outcome, clean(message, limit)


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "replace") if isinstance(text, str) else text
