"""What an operation of a branch may be: each kind does it, and reads its result back from what is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, ClassVar, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw, Struct

from txcoord.model import Outcome, Pattern
from txcoord.outcome import clean
from txcoord_sdk._branch_calls import branch_call, understood
from txcoord_sdk._calls import AnyReply, Call
from txcoord_sdk._checks import is_grpc_url
from txcoord_sdk._rules import MAX_REASON
from txcoord_sdk.barrier import BranchBarrier
from txcoord_sdk.branch import BranchContext, BranchFailed
from txcoord_sdk.workflow import _codec

T = TypeVar("T")

NOTHING = Raw(b"null")


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is stored of an operation, as JSON: what it was, and what came of it."""

    kind: str
    name: str
    result: Raw = NOTHING
    reason: str = ""
    """Why it failed."""
    # The rest is of a step, and says when it was: see `_deliveries`.
    order: int = 0
    """Its place among the results of steps, from 1."""
    asked_after: str | None = None
    """The branch whose result the function had received last when it asked for this one; empty if it was the first."""
    beside: Mapping[str, str] = {}
    """Branch → the same, of steps that were under way."""


class Unanswered(Exception):
    """What an operation came to is not known, or not yet: it is to be done again later."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


class Turn(Protocol):
    """One operation that is to be done, and what it may use."""

    @property
    def gid(self) -> str: ...

    @property
    def branch_id(self) -> str: ...

    @property
    def op(self) -> str: ...

    @property
    def is_async(self) -> bool: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """What every call carries."""

    @property
    def timeout_s(self) -> float:
        """How long a call waits for its answer."""

    @property
    def table(self) -> str | None:
        """The barrier table, if it is not DTM's."""

    async def ask(self, call: Call) -> AnyReply:
        """Call a participant once, or again while it is certain that nothing arrived."""

    def recorded(self, op: str) -> Record | None:
        """Return what is recorded of another operation of the branch."""

    async def record(self, op: str, result: Raw) -> None:
        """Record that another operation of the branch has succeeded."""


def context_of(turn: Turn) -> BranchContext:
    barrier = BranchBarrier(Pattern.WORKFLOW, turn.gid, turn.branch_id, turn.op, table=turn.table)
    return BranchContext(
        trans_type=Pattern.WORKFLOW, gid=turn.gid, branch_id=turn.branch_id, op=turn.op, barrier=barrier
    )


class Work(ABC, Generic[T]):
    """One operation of a branch."""

    kind: ClassVar[str]
    name: str
    """What it is recorded under: a replay that comes to another has lost its way."""

    @abstractmethod
    async def do(self, turn: Turn) -> Raw:
        """Do it, and return its result as JSON.

        Raises:
            BranchFailed: it cannot be done, for good.
            BranchOngoing, Unanswered: it is to be done again later.
        """

    @abstractmethod
    def read(self, branch_id: str, result: Raw) -> T:
        """Return its result from what is stored.

        Raises:
            ValueError: this is not one of its results.
        """


class LocalWork(Work[T]):
    """A function of the participant itself."""

    kind = "step"

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> None:
        self.name = _codec.name_of(function)
        self._function, self._args, self._kwargs = function, args, kwargs
        self._result_type = _codec.result_type(function)

    async def do(self, turn: Turn) -> Raw:
        value = await called(self._function, context_of(turn), *self._args, is_async=turn.is_async, **self._kwargs)
        return Raw(_codec.encode(value, what=f"the result of step {turn.branch_id} ({self.name}) of {turn.gid}"))

    def read(self, branch_id: str, result: Raw) -> T:
        value: T = _codec.decode(bytes(result), self._result_type)
        return value


async def called(function: Callable[..., Any], *args: object, is_async: bool, **kwargs: object) -> Any:
    """Call a function of the user's, which is a coroutine function exactly if the workflow is async."""
    done = function(*args, **kwargs)
    if is_async:
        if not isawaitable(done):
            raise TypeError(f"{_codec.name_of(function)} is not a coroutine function: write it with `async def`")
        return await done
    if isawaitable(done):
        if close := getattr(done, "close", None):
            close()
        raise TypeError(f"{_codec.name_of(function)} is a coroutine function: use AsyncWorkflows")
    return done


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAnswer:
    """What was answered to the call of a step."""

    branch_id: str
    body: bytes = b""

    def json(self, kind: Any = Any) -> Any:
        """Decode the body, if you like as a type of yours; None if there is none."""
        return _codec.decode(self.body, kind) if self.body else None


class CallWork(Work[CallAnswer]):
    """A call over HTTP or gRPC."""

    kind = "call"

    def __init__(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        # Host and query may differ from one deployment to the next.
        path = url.partition("/")[2] if is_grpc_url(url) else urlsplit(url).path
        self.name = f"/{path.lstrip('/')}" if url else "nothing"
        self._url, self._body, self._headers = url, body, headers

    async def do(self, turn: Turn) -> Raw:
        if not self._url:
            return _stored_body(b"")
        call = branch_call(
            self._url,
            self._body,
            gid=turn.gid,
            trans_type=Pattern.WORKFLOW,
            branch_id=turn.branch_id,
            op=turn.op,
            headers={**turn.headers, **self._headers},
            timeout_s=turn.timeout_s,
        )
        answer = understood(await turn.ask(call))
        if answer.outcome is Outcome.SUCCESS:
            return _stored_body(answer.body)
        reason = clean(answer.reason, MAX_REASON)
        if answer.outcome is Outcome.FAILURE:
            raise BranchFailed(reason)
        raise Unanswered(answer.outcome, reason)

    def read(self, branch_id: str, result: Raw) -> CallAnswer:
        stored: _StoredBody = _codec.decode(bytes(result), _StoredBody)
        body = stored.body.encode() if stored.base64 is None else b64decode(stored.base64)
        return CallAnswer(branch_id=branch_id, body=body)


class _StoredBody(Struct, frozen=True, omit_defaults=True):
    """The body of an answer: as it is where that can be read."""

    body: str = ""
    base64: str | None = None


def _stored_body(body: bytes) -> Raw:
    try:
        stored = _StoredBody(body=body.decode())
    except UnicodeDecodeError:
        stored = _StoredBody(base64=b64encode(body).decode())
    return Raw(msgspec.json.encode(stored))
