"""The values of the domain: global transactions, their branch operations, statuses.

All are immutable; a change is a new value. Instants are whole microseconds since 1970
UTC (`…_us`), durations are seconds (`…_s`). The values are msgspec structs rather than
dataclasses because several are made per call on the hot path, and a frozen dataclass
costs about five times as much to make.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

MICROSECONDS = 1_000_000

NEVER_US = 253_402_300_799_000_000
"""The end of the year 9999, as the due time of what waits for an operator."""

AT_ONCE = 0
"""As the due time of a parked transaction: an operator wants it looked at now, whatever its operations wait for."""


class Pattern(StrEnum):
    """How a global transaction reaches all or nothing."""

    SAGA = "saga"
    TCC = "tcc"
    XA = "xa"
    MSG = "msg"
    WORKFLOW = "workflow"


class Status(StrEnum):
    """Where a global transaction stands; the last two are final."""

    PREPARED = "prepared"
    SUBMITTED = "submitted"
    ABORTING = "aborting"
    SUCCEEDED = "succeed"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return self is Status.SUCCEEDED or self is Status.FAILED


class OpStatus(StrEnum):
    """Where one branch operation stands; `prepared` means that no final result is known."""

    PREPARED = "prepared"
    SUCCEEDED = "succeed"
    FAILED = "failed"


class Op(StrEnum):
    """The callable operations of a branch."""

    ACTION = "action"
    COMPENSATE = "compensate"
    TRY = "try"
    CONFIRM = "confirm"
    CANCEL = "cancel"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    MSG = "msg"
    BUSINESS = "business"
    """Workflow: the local part of an XA step, as its participant reports it."""
    RESUME = "resume"
    """Workflow: the request to its participant to go on. On the wire the workflow's name stands in its place."""


class Outcome(StrEnum):
    """The answer to one call. `unknown` is retried and never taken for a failure."""

    SUCCESS = "success"
    FAILURE = "failure"
    ONGOING = "ongoing"
    UNKNOWN = "unknown"


class Attempt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call of a branch operation, as it is stored and shown."""

    at_us: int
    duration_us: int
    outcome: Outcome
    code: int = 0
    """HTTP status (from 100) or gRPC status (up to 16); 0 when no answer came, and for gRPC's OK (a success)."""
    detail: str = ""
    """A bounded piece of the answer, or what went wrong."""


class BranchOp(Struct, frozen=True, kw_only=True):
    """One callable operation of one branch: what was asked, and how far it got."""

    branch_id: str
    op: Op
    url: str
    """Empty: the operation succeeds without a call."""
    payload: bytes = b""

    status: OpStatus = OpStatus.PREPARED
    reached: bool = False
    """On an action, set when the saga turned round: it may have had an effect."""
    failures: int = 0
    """Calls since the last understood answer that ended without one."""
    refusals: int = 0
    """Answers of failure in a row from an operation that has no way to fail."""
    in_vain: int = 0
    """Calls that did not succeed, in all; counted only where there is a limit to them."""
    due_us: int = 0
    """Not to be called before this instant."""
    held_off: str = ""
    """Why it was put off instead of called, if it was since its last call: its endpoint is left alone for a while."""
    finished_us: int | None = None
    attempts: tuple[Attempt, ...] = ()
    """The latest calls, oldest first."""

    def replace(self, **changes: object) -> BranchOp:
        return replace(self, **changes)


class Options(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the initiator chose; 0 stands for "as the server is set", as on the wire."""

    wait_result: bool = False
    timeout_to_fail_s: int = 0
    request_timeout_s: int = 0
    retry_interval_s: int = 0
    retry_limit: int = 0
    branch_headers: dict[str, str] = {}
    concurrent: bool = False
    orders: dict[int, tuple[int, ...]] = {}
    """Saga: step → steps that must have succeeded before it, 0-based."""
    delay_us: int = 0
    """Message: from the submit to the first call."""
    max_attempts: int = 0
    """Message: how often an action is called before it is given up; 0: until it succeeds."""
    give_up_after_us: int = 0
    """Message: how long after its turn came an action that has not succeeded is given up; 0: never."""
    give_up_at_us: int = 0
    """Message: the instant that this comes to for those whose turn comes first, settled when it is submitted."""


class GlobalTransaction(Struct, frozen=True, kw_only=True):
    """A global transaction with all its branch operations."""

    gid: str
    pattern: Pattern
    status: Status
    branches: tuple[BranchOp, ...] = ()
    """Saga: compensate and action of step 1, then of step 2, … Message: the actions, then the check-back. TCC and
    XA: what undoes and what completes each branch, as registered. Workflow: the request to resume, then the
    steps that its participant has reported, each with its result as payload."""
    options: Options = Options()
    protocol: str = "http"
    query_prepared: str = ""
    custom_data: str = ""
    """As the initiator sent it; what it means is parsed into `options`."""
    created_us: int
    updated_us: int
    deadline_us: int | None = None
    """Latest moment to go on forward; of a message, to be submitted without being asked."""
    due_us: int | None = None
    """When somebody has to look at it next, if nobody drives it now."""
    finished_us: int | None = None
    rollback_reason: str = ""
    result: str = ""

    def updated_at(self, now_us: int) -> int:
        """Return `now_us` as an `updated_us` for the next version: later than this one's, whatever the clock says.

        Versions of one transaction are told apart by it, so that a write which the network
        delivers late cannot undo a later one.
        """
        return max(now_us, self.updated_us + 1)

    def replace(self, **changes: object) -> GlobalTransaction:
        return replace(self, **changes)
