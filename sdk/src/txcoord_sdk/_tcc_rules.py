"""One TCC transaction on the initiator's side: where it stands, and what each step sends. No I/O.

The order of things is what makes it safe:

- A branch is registered before its try is called. A try that is under way when everything
  stops is thus cancelled at the deadline; one that was never called is cancelled for nothing,
  which the participant's barrier takes for an empty compensation.
- Only what is known to be reserved is confirmed. A branch is open from before it is
  registered until its try has succeeded, and with an open branch nothing is submitted,
  even if the caller has caught what `call` raised.
- Once a submit has been sent, nothing is aborted: it may have arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from itertools import count

from txcoord.model import Op, Outcome, Pattern, Status
from txcoord.outcome import clean
from txcoord.protocol import GRPC, branch_id_of
from txcoord_sdk._branch_calls import branch_call, understood
from txcoord_sdk._checks import Fields, checked_url, payload_of, protocol_for
from txcoord_sdk._rules import MAX_REASON, Call, Flow, Rules
from txcoord_sdk.errors import (
    CoordinatorUnreachableError,
    RequestRefusedError,
    TransactionFailedError,
    TransactionNotFoundError,
    TryFailedError,
    TxcoordSdkError,
)
from txcoord_sdk.results import TryAnswer

MAX_CHILDREN = 99
"""Two digits name a child; DTM's clients stop here too."""
MAX_PARENT_LENGTH = 19

_UNDONE_LATER = "it is not aborted either: unless the submit takes effect after all, the deadline cancels it"


class _Stage(Enum):
    NEW = "has not begun"
    OPEN = "is open"
    SUBMITTED = "has been submitted"
    ENDED = "has ended"


class TccRules:
    """The state of one `async with coordinator.tcc(…)`, or of a participant's part of one."""

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
        if len(parent_id) > MAX_PARENT_LENGTH:
            raise ValueError(f"branch {parent_id} of {gid} is nested too deeply: no id is left for branches within it")
        self.gid = gid
        self._rules = rules
        chosen = protocol_for(protocol, ())
        self._options = {**options, **({"protocol": chosen} if chosen else {})}
        self._branch_headers = branch_headers
        self._timeout_s = timeout_s
        self._wait_result = wait_result
        self._parent_id = parent_id
        self._protocol = protocol
        self._stage = _Stage.NEW
        # Counted by `next`, which threads cannot come between.
        self._numbers = count(1)
        self._open: dict[str, TxcoordSdkError] = {}
        """Branches whose try is not known to have succeeded, with what is to be said of it."""

    @property
    def is_nested(self) -> bool:
        """Whether somebody else prepared it, and submits or aborts it."""
        return bool(self._parent_id)

    def __repr__(self) -> str:
        within = f" within branch {self._parent_id}" if self.is_nested else ""
        return f"tcc {self.gid}{within}: {self._stage.value}"

    # -- steps -------------------------------------------------------------------------

    def enter(self) -> Flow[None]:
        if self._stage is not _Stage.NEW:
            raise ValueError(f"tcc {self.gid} {self._stage.value}: open a new one, it needs a gid of its own")
        if not self.is_nested:
            yield from self._rules.prepare(self.gid, self._body(**self._options))
        self._stage = _Stage.OPEN

    def call(self, try_url: str, confirm_url: str, cancel_url: str, payload: object) -> Flow[TryAnswer]:
        if self._stage is not _Stage.OPEN:
            raise ValueError(f"tcc {self.gid} {self._stage.value}: its tries are called within its `with` block")
        try_url = checked_url(try_url, name="try_url")
        confirm_url = checked_url(confirm_url, name="confirm_url")
        cancel_url = checked_url(cancel_url, name="cancel_url")
        self._check_protocol(confirm_url, cancel_url)
        data = payload_of(payload, try_url, confirm_url, cancel_url)
        branch_id = self._next_branch_id()
        # Made before it is registered, so that what cannot be called is not registered either.
        call = self._call_of_try(branch_id, try_url, data) if try_url else None
        branch = self._body(branch_id=branch_id, confirm=confirm_url, cancel=cancel_url, data=data)
        self._rules.check_registration(branch)
        self._open[branch_id] = self._failed(branch_id, try_url, "it was broken off before it was answered")
        try:
            yield from self._rules.register(self.gid, branch_id, branch)
            answer = TryAnswer(branch_id=branch_id)
            if call is not None:
                answer = yield from self._try(branch_id, try_url, call)
        except TxcoordSdkError as error:
            self._open[branch_id] = error
            raise
        del self._open[branch_id]
        return answer

    def submit(self) -> Flow[None]:
        if self.is_nested:
            raise ValueError(f"{self.gid} is submitted by who opened it, not within branch {self._parent_id}")
        if self._stage not in (_Stage.OPEN, _Stage.SUBMITTED):
            raise ValueError(f"tcc {self.gid} {self._stage.value}: it is submitted within or after its `with` block")
        self._check_nothing_open()
        # From here on it may be on its way to success, whatever comes back.
        self._stage = _Stage.SUBMITTED
        body = self._body(**self._options, **({"wait_result": True} if self._wait_result else {}))
        try:
            yield from self._rules.submit_prepared(self.gid, body, wait_result=self._wait_result)
        except TransactionNotFoundError:
            raise
        except (CoordinatorUnreachableError, RequestRefusedError) as error:
            raise type(error)(error.gid, error.status, f"{error.reason}; {_UNDONE_LATER}") from error

    def leave(self, error: BaseException | None) -> Flow[None]:
        """End the block: submit, or abort because of an error, which the caller lets go on."""
        if self._stage is _Stage.SUBMITTED:
            return  # by hand, within the block; how that went has been told
        if error is None and not self._open and not self.is_nested:
            yield from self.submit()
            return
        self._stage = _Stage.ENDED
        cause = error or next(iter(self._open.values()), None)
        if cause is not None and not self.is_nested:
            yield from self._abort(cause)
        if error is None:
            self._check_nothing_open()

    # -- the parts they are made of ------------------------------------------------------

    def _next_branch_id(self) -> str:
        number = next(self._numbers)
        if number > MAX_CHILDREN:
            where = f"branch {self._parent_id} of {self.gid}" if self.is_nested else f"tcc {self.gid}"
            raise ValueError(f"{where} has {MAX_CHILDREN} branches, which is the most")
        return self._parent_id + branch_id_of(number - 1)

    def _check_protocol(self, *urls: str) -> None:
        # Who takes part in another's transaction is not told its protocol, and over the gRPC API
        # it is always gRPC; else it was said when it was prepared.
        if not self.is_nested and not self._rules.speaks_grpc and protocol_for(None, urls) and self._protocol != GRPC:
            raise ValueError(
                f"tcc {self.gid} has to be opened with protocol={GRPC!r} to have branches called over gRPC"
            )

    def _call_of_try(self, branch_id: str, url: str, data: bytes) -> Call:
        return branch_call(
            url,
            data,
            gid=self.gid,
            trans_type=Pattern.TCC,
            branch_id=branch_id,
            op=Op.TRY,
            coordinator=self._rules.url,
            headers=self._branch_headers,
            timeout_s=self._timeout_s,
        )

    def _try(self, branch_id: str, url: str, call: Call) -> Flow[TryAnswer]:
        answer = understood((yield from self._rules.ask_participant(call)))
        if answer.outcome is not Outcome.SUCCESS:
            raise self._failed(branch_id, url, clean(answer.reason, MAX_REASON), answer.outcome)
        return TryAnswer(branch_id=branch_id, body=answer.body)

    def _abort(self, cause: BaseException) -> Flow[None]:
        body = self._body(rollback_reason=reason_of(cause))
        # Who is being cancelled, or interrupted from the keyboard, is not kept for long.
        attempts = None if isinstance(cause, Exception) else 1
        try:
            yield from self._rules.abort(self.gid, body, attempts=attempts)
        except TxcoordSdkError as failure:
            # What went wrong first matters more, and the deadline does the same.
            cause.add_note(f"tcc {self.gid} could not be aborted ({failure.reason}): the deadline cancels it")

    def _check_nothing_open(self) -> None:
        for error in self._open.values():
            if isinstance(error, TransactionFailedError):
                raise error
            raise TransactionFailedError(self.gid, Status.ABORTING, error.reason) from error

    def _failed(self, branch_id: str, url: str, reason: str, outcome: Outcome = Outcome.UNKNOWN) -> TryFailedError:
        return TryFailedError(self.gid, Status.ABORTING, reason, branch_id, url, outcome)

    def _body(self, **more: object) -> Fields:
        return {"gid": self.gid, "trans_type": Pattern.TCC, **more}


def reason_of(cause: BaseException) -> str:
    """Give why something is aborted, for the transaction's own reason."""
    match cause:
        case TryFailedError():
            text = cause.what
        case TxcoordSdkError():
            text = cause.reason
        case _:
            text = f"{type(cause).__name__}: {cause}".removesuffix(": ")
    return clean(text, MAX_REASON)
