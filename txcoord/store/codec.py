"""How a transaction's branches and options are written into text columns, as JSON.

Two documents for each transaction: the *definition*, written once (or whenever a branch
joins), and the *progress*, written with each save. Both are on the hot path, so they are short:
what has its default is left out, and a payload that two operations of a branch share stands
there once.

    definition  {"options":{…}, "protocol":"grpc", "branches":[["01","compensate","http://…","{…}"],
                 ["01","action","http://…"], …]}
    progress    [[1,"succeed",0,0,false,1700000000000000,[{"at_us":…,"outcome":"success",…}]], …]

A payload is text where it is valid UTF-8, else {"base64":"…"}; JSON null (or its absence) means "that
of the operation before". An entry of the progress starts with the position of its branch operation;
its last elements, the refusals and the calls in vain, are there only if there were some.
Neither document ever holds a raw control character: JSON escapes them.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from txcoord.model import Attempt, BranchOp, GlobalTransaction, Op, OpStatus, Options


class _Base64(Struct, frozen=True):
    base64: str


class _BranchDefinition(Struct, frozen=True, array_like=True):
    branch_id: str
    op: Op
    url: str
    payload: str | _Base64 | None = None


class Definition(Struct, frozen=True, omit_defaults=True):
    """What the initiator asked for."""

    branches: Sequence[Any] = ()
    options: Options = Options()
    protocol: str = "http"
    query_prepared: str = ""
    custom_data: str = ""


class _StoredDefinition(Definition, frozen=True):
    branches: tuple[_BranchDefinition, ...] = ()


class _BranchProgress(Struct, frozen=True, array_like=True):
    index: int
    status: OpStatus
    due_us: int
    failures: int
    reached: bool
    finished_us: int | None
    attempts: tuple[Attempt, ...]
    refusals: int = 0
    in_vain: int = 0
    held_off: str = ""


_encode = msgspec.json.Encoder().encode
_decode_definition = msgspec.json.Decoder(_StoredDefinition).decode
_decode_progress = msgspec.json.Decoder(tuple[_BranchProgress, ...]).decode

NO_PROGRESS = b"[]"

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def encode_definition(tx: GlobalTransaction) -> bytes:
    """Write down what was asked for."""
    branches: list[tuple[Any, ...]] = []
    shared: bytes | None = None
    for branch in tx.branches:
        payload = branch.payload
        # Equal payloads of one branch are nearly always the same object, and compare at once.
        if payload == shared:
            branches.append((branch.branch_id, branch.op, branch.url))
            continue
        shared = payload
        try:
            branches.append((branch.branch_id, branch.op, branch.url, payload.decode()))
        except UnicodeDecodeError:
            branches.append((branch.branch_id, branch.op, branch.url, _Base64(b64encode(payload).decode())))
    definition = Definition(branches, tx.options, tx.protocol, tx.query_prepared, tx.custom_data)
    return _encode_any_text(definition)


def encode_progress(branches: Sequence[BranchOp]) -> bytes:
    """Write down how far the operations got."""
    prepared = OpStatus.PREPARED
    entries = [
        (
            index,
            branch.status,
            branch.due_us,
            branch.failures,
            branch.reached,
            branch.finished_us,
            branch.attempts,
            *_rare(branch),
        )
        for index, branch in enumerate(branches)
        if branch.status is not prepared
        or branch.attempts
        or branch.due_us
        or branch.reached
        or branch.failures
        or branch.refusals
        or branch.in_vain
        or branch.finished_us is not None
    ]
    return _encode_any_text(entries) if entries else NO_PROGRESS


def _rare(branch: BranchOp) -> tuple[int | str, ...]:
    """What most operations have not: the last fields of a progress, as far as they are needed."""
    if branch.held_off:
        return branch.refusals, branch.in_vain, branch.held_off
    if branch.in_vain:
        return branch.refusals, branch.in_vain
    return (branch.refusals,) if branch.refusals else ()


def decode(definition: str | bytes, progress: str | bytes) -> tuple[Definition, tuple[BranchOp, ...]]:
    """Read both documents: the definition's other fields, and the branch operations as they stand."""
    stored = _decode_definition(definition)
    branches = []
    payload = b""
    for entry in stored.branches:
        if isinstance(entry.payload, str):
            payload = entry.payload.encode()
        elif entry.payload is not None:
            payload = b64decode(entry.payload.base64)
        branches.append(BranchOp(branch_id=entry.branch_id, op=entry.op, url=entry.url, payload=payload))
    for done in _decode_progress(progress):
        branches[done.index] = branches[done.index].replace(
            status=done.status,
            reached=done.reached,
            failures=done.failures,
            due_us=done.due_us,
            finished_us=done.finished_us,
            attempts=done.attempts,
            refusals=done.refusals,
            in_vain=done.in_vain,
            held_off=done.held_off,
        )
    return stored, tuple(branches)


def clean_text(text: str) -> str:
    """Make text fit for a plain text column: what not every database can hold (NUL, lone surrogates) becomes U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text) if text else text


def _encode_any_text(document: object) -> bytes:
    try:
        return _encode(document)
    except UnicodeEncodeError:
        # A lone surrogate somewhere: rare enough to be found by walking through all of it.
        return _encode(_without_surrogates(msgspec.to_builtins(document)))


def _without_surrogates(value: object) -> object:
    match value:
        case str():
            return clean_text(value)
        case dict():
            return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_surrogates(item) for item in value]
        case _:
            return value
