"""Values on their way into what is stored, and back: JSON, by the types that functions declare.

What is stored is also what the first run gets: a value takes the same way whether it was just made or is read
again after a crash, so that a workflow never behaves differently because of it.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from txcoord_sdk._checks import plain


def _revive(kind: type, value: object) -> object:
    validate = getattr(kind, "model_validate", None)
    if validate is None:
        raise TypeError(f"{kind.__name__} cannot be read from JSON")
    return validate(value)


def encode(value: object, *, what: str) -> bytes:
    """Write a value as JSON.

    Raises:
        TypeError: it has no form in JSON; the sentence names `what`.
    """
    try:
        return msgspec.json.encode(value, enc_hook=plain)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise TypeError(f"{what} cannot be stored as JSON: {error}") from error


def decode(data: bytes, kind: Any) -> Any:
    """Read a value of a type.

    Raises:
        ValueError: it is not one.
    """
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_revive)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(str(error)) from error


def encode_whole(value: object, kind: Any, *, what: str) -> bytes:
    """Write an input or a result of a workflow: what is declared as `bytes` is itself, anything else is JSON.

    The declaration decides, not the value: it is all that there is when it is read.

    Raises:
        TypeError: it has no form in JSON, or could not be read as what it is; the sentence names `what`.
    """
    if kind is bytes:
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        raise TypeError(f"{what} is declared as bytes, and is {type(value).__name__}")
    if kind is Any and isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{what} is {type(value).__name__}: declare it as bytes, else it could not be told from JSON")
    return encode(value, what=what)


def decode_whole(data: bytes, kind: Any) -> Any:
    """Read what `encode_whole` has written; nothing at all stands for None."""
    if kind is bytes:
        return data
    return decode(data or b"null", kind)


def check_readable(kind: Any, *, what: str) -> None:
    """Refuse a type of which nothing could be read back.

    Raises:
        TypeError: it is one; the sentence names `what`.
    """
    try:
        msgspec.json.Decoder(kind, dec_hook=_revive)
    except TypeError as error:
        raise TypeError(f"{what} cannot be read from JSON: {error}") from error


def result_type(function: Callable[..., object]) -> Any:
    """Say what a function returns; Any if it does not tell.

    Raises:
        TypeError: it tells by a name that cannot be found, so that nothing could be read back as what it was.
    """
    return _hint(_bare(function), "return")


def input_type(function: Callable[..., object]) -> Any:
    """Say of what type a workflow's input is: the second parameter of its function."""
    names = list(inspect.signature(function).parameters)
    if len(names) != 2:
        raise TypeError(f"{name_of(function)} is to take the workflow and its input, and nothing else")
    return _hint(_bare(function), names[1])


def name_of(function: Callable[..., object]) -> str:
    """Give the name by which a function is known in what is stored."""
    function = _inner(function)
    return getattr(function, "__name__", None) or type(function).__name__


def _inner(function: Callable[..., object]) -> Callable[..., object]:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _bare(function: Callable[..., object]) -> Callable[..., object]:
    """Return the function whose annotations count."""
    function = _inner(function)
    if not inspect.isroutine(function):
        function = type(function).__call__
    bare: Callable[..., object] = inspect.unwrap(function)
    return bare


def _hint(function: Callable[..., object], name: str) -> Any:
    annotations = getattr(function, "__annotations__", {})
    if name not in annotations:
        return Any
    # Only the one that matters: others may name what only a type checker sees.
    alone = types.SimpleNamespace(__annotations__={name: annotations[name]})
    try:
        return typing.get_type_hints(alone, globalns=getattr(function, "__globals__", {}))[name]
    except NameError as error:
        raise TypeError(
            f"{name_of(function)}: {error}; what it takes and returns is stored as JSON,"
            " so its types have to be names of its module"
        ) from error
