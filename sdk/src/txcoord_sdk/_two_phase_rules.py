"""What the initiator's side of TCC and XA have in common: where a transaction stands, and how it is ended. No I/O.

Three rules make it safe:

- Only what is known to have succeeded is completed. A branch is open until its first phase has been
  answered with success, and with an open branch nothing is submitted, even if the caller has
  caught what `call` raised.
- Once a submit has been sent, nothing is aborted: it may have arrived.
- What is neither submitted nor aborted is undone by the coordinator, at the deadline.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from itertools import count
from typing import ClassVar

from txcoord.model import Op, Outcome, Pattern, Status
from txcoord.outcome import clean
from txcoord.protocol import GRPC, branch_id_of
from txcoord_sdk._branch_calls import branch_call, understood
from txcoord_sdk._calls import Call, Flow
from txcoord_sdk._checks import Fields, protocol_for
from txcoord_sdk._rules import MAX_REASON, Rules
from txcoord_sdk.errors import (
    BranchCallError,
    CoordinatorUnreachableError,
    RequestRefusedError,
    TransactionFailedError,
    TransactionNotFoundError,
    TxcoordSdkError,
)

MAX_CHILDREN = 99
"""Two digits name a child; DTM's clients stop here too."""


class Stage(Enum):
    NEW = "has not begun"
    OPEN = "is open"
    SUBMITTED = "has been submitted"
    ENDED = "has ended"


class TwoPhaseRules(ABC):
    """The state of one `async with coordinator.tcc(…)` or `.xa(…)`."""

    pattern: ClassVar[Pattern]
    first_op: ClassVar[Op]
    """What the initiator itself calls."""
    undoes: ClassVar[str]
    """What the coordinator does to it at the deadline, as in "the deadline … it"."""

    def __init__(
        self,
        rules: Rules,
        gid: str,
        *,
        options: Mapping[str, object],
        branch_headers: Mapping[str, str],
        timeout_s: float,
        wait_result: bool = False,
        parent_id: str = "",
        protocol: str | None = None,
    ) -> None:
        self.gid = gid
        self._rules = rules
        chosen = protocol_for(protocol, ())
        self._options = {**options, **({"protocol": chosen} if chosen else {})}
        self._branch_headers = branch_headers
        self._timeout_s = timeout_s
        self._wait_result = wait_result
        self._parent_id = parent_id
        self._protocol = protocol
        self._stage = Stage.NEW
        # Counted by `next`, which threads cannot come between.
        self._numbers = count(1)
        self._open: dict[str, TxcoordSdkError] = {}
        """Branches whose first phase is not known to have succeeded, with what is to be said of it."""

    @property
    def is_nested(self) -> bool:
        """Whether somebody else prepared it, and submits or aborts it."""
        return bool(self._parent_id)

    def __repr__(self) -> str:
        within = f" within branch {self._parent_id}" if self.is_nested else ""
        return f"{self.pattern} {self.gid}{within}: {self._stage.value}"

    # -- steps -------------------------------------------------------------------------

    def enter(self) -> Flow[None]:
        if self._stage is not Stage.NEW:
            raise ValueError(
                f"{self.pattern} {self.gid} {self._stage.value}: open a new one, it needs a gid of its own"
            )
        if not self.is_nested:
            yield from self._rules.prepare(self.gid, self._body(**self._options))
        self._stage = Stage.OPEN

    def submit(self) -> Flow[None]:
        if self.is_nested:
            raise ValueError(
                f"{self.gid} can be submitted only by whoever opened it, not within branch {self._parent_id}"
            )
        if self._stage not in (Stage.OPEN, Stage.SUBMITTED):
            raise ValueError(
                f"{self.pattern} {self.gid} {self._stage.value}: it is submitted within or after its `with` block"
            )
        self._check_nothing_open()
        # From here on it may be on its way to success, whatever comes back.
        self._stage = Stage.SUBMITTED
        body = self._body(**self._options, **({"wait_result": True} if self._wait_result else {}))
        try:
            yield from self._rules.submit_prepared(self.gid, body, wait_result=self._wait_result)
        except TransactionNotFoundError:
            raise
        except (CoordinatorUnreachableError, RequestRefusedError) as error:
            later = f"it is not aborted either: unless the submit takes effect after all, the deadline {self.undoes} it"
            raise type(error)(error.gid, error.status, f"{error.reason}; {later}") from error

    def leave(self, error: BaseException | None) -> Flow[None]:
        """End the block: submit, or abort because of an error, which the caller lets go on."""
        if self._stage is Stage.SUBMITTED:
            return  # by hand, within the block; how that went has been told
        if error is None and not self._open and not self.is_nested:
            yield from self.submit()
            return
        self._stage = Stage.ENDED
        cause = error or next(iter(self._open.values()), None)
        if cause is not None and not self.is_nested:
            yield from self._abort(cause)
        if error is None:
            self._check_nothing_open()

    # -- for `call`, which the patterns have of their own ---------------------------------

    def _check_open(self) -> None:
        if self._stage is not Stage.OPEN:
            raise ValueError(
                f"{self.pattern} {self.gid} {self._stage.value}: branches are called within its `with` block"
            )

    def _next_branch_id(self) -> str:
        number = next(self._numbers)
        if number > MAX_CHILDREN:
            where = f"branch {self._parent_id} of {self.gid}" if self.is_nested else f"{self.pattern} {self.gid}"
            raise ValueError(f"{where} has {MAX_CHILDREN} branches, which is the most")
        return self._parent_id + branch_id_of(number - 1)

    def _check_protocol(self, *urls: str) -> None:
        # Whoever takes part in another's transaction is not told its protocol, and over the gRPC API
        # it is always gRPC; else it was said when it was prepared.
        if not self.is_nested and not self._rules.speaks_grpc and protocol_for(None, urls) and self._protocol != GRPC:
            raise ValueError(
                f"{self.pattern} {self.gid} has to be opened with protocol={GRPC!r} to have branches called over gRPC"
            )

    def _first_call(self, branch_id: str, url: str, payload: bytes, *, phase2_url: str = "") -> Call:
        return branch_call(
            url,
            payload,
            gid=self.gid,
            trans_type=self.pattern,
            branch_id=branch_id,
            op=self.first_op,
            coordinator=self._rules.url,
            phase2_url=phase2_url,
            headers=self._branch_headers,
            timeout_s=self._timeout_s,
        )

    def _opens(self, branch_id: str, url: str) -> None:
        self._open[branch_id] = self._failed(branch_id, url, "it was broken off before it was answered")

    def _settle(self, branch_id: str, flow: Flow[bytes]) -> Flow[bytes]:
        """Carry out the first phase of a branch that is open; only with its success is it that no more."""
        try:
            body = yield from flow
        except TxcoordSdkError as error:
            self._open[branch_id] = error
            raise
        del self._open[branch_id]
        return body

    def _answer_to(self, call: Call, branch_id: str, url: str) -> Flow[bytes]:
        answer = understood((yield from self._rules.ask_participant(call)))
        if answer.outcome is not Outcome.SUCCESS:
            raise self._failed(branch_id, url, clean(answer.reason, MAX_REASON), answer.outcome)
        return answer.body

    @abstractmethod
    def _failed(self, branch_id: str, url: str, reason: str, outcome: Outcome = Outcome.UNKNOWN) -> BranchCallError:
        """Make the error of a first phase that did not succeed."""

    def _body(self, **more: object) -> Fields:
        return {"gid": self.gid, "trans_type": self.pattern, **more}

    # -- the parts of the steps ------------------------------------------------------------

    def _abort(self, cause: BaseException) -> Flow[None]:
        body = self._body(rollback_reason=reason_of(cause))
        # Whoever is being cancelled, or interrupted from the keyboard, is not kept for long.
        attempts = None if isinstance(cause, Exception) else 1
        try:
            yield from self._rules.abort(self.gid, body, attempts=attempts)
        except TxcoordSdkError as failure:
            # What went wrong first matters more, and the deadline does the same.
            cause.add_note(
                f"{self.pattern} {self.gid} could not be aborted ({failure.reason}): the deadline {self.undoes} it"
            )

    def _check_nothing_open(self) -> None:
        for error in self._open.values():
            if isinstance(error, TransactionFailedError):
                raise error
            raise TransactionFailedError(self.gid, Status.ABORTING, error.reason) from error


def reason_of(cause: BaseException) -> str:
    """Give why something is aborted, for the transaction's own reason."""
    match cause:
        case BranchCallError():
            text = cause.what
        case TxcoordSdkError():
            text = cause.reason
        case _:
            text = f"{type(cause).__name__}: {cause}".removesuffix(": ")
    return clean(text, MAX_REASON)
