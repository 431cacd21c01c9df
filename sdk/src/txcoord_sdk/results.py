"""Global transactions as a query shows them, decoded straight from the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from txcoord.model import Op, OpStatus, Outcome, Pattern, Status
from txcoord_sdk.errors import TransactionFailedError, TransactionRunningError


class Attempt(Struct, frozen=True, kw_only=True):
    """One call of a branch operation."""

    at: datetime
    outcome: Outcome
    duration_ms: float = 0
    code: int = 0
    """HTTP status (from 100) or gRPC status (up to 16); 0 when no answer came, and for gRPC's OK."""
    detail: str = ""


class Branch(Struct, frozen=True, kw_only=True):
    """One callable operation of one branch."""

    branch_id: str
    op: str
    """A word of `Op`, except that a workflow may use others."""
    status: OpStatus = OpStatus.PREPARED
    url: str = ""
    payload: bytes = field(default=b"", name="bin_data")
    finished_at: datetime | None = field(default=None, name="finish_time")
    attempts: tuple[Attempt, ...] = ()
    """The latest calls, oldest first; empty too if the coordinator (DTM) does not tell."""
    held_off: str = ""
    """Why it was put off, if it was since its last call: its participant is left alone for a while."""


class Transaction(Struct, frozen=True, kw_only=True):
    """A global transaction as it stood when it was asked for."""

    gid: str
    pattern: Pattern = field(name="trans_type")
    status: Status
    reason: str = field(default="", name="rollback_reason")
    """Why it turned round; empty if it did not."""
    result: str = ""
    created_at: datetime | None = field(default=None, name="create_time")
    updated_at: datetime | None = field(default=None, name="update_time")
    succeeded_at: datetime | None = field(default=None, name="finish_time")
    failed_at: datetime | None = field(default=None, name="rollback_time")
    due_at: datetime | None = field(default=None, name="next_cron_time")
    """When the coordinator looks at it again, if it is waiting."""
    needs_operator: str = ""
    """What a person has to mend before it goes on: a confirm or a cancel that is refused again and
    again. `retry_now` when that is done. Empty while nobody is needed; DTM does not tell."""
    branches: tuple[Branch, ...] = ()
    """Of a saga: compensate and action of step 1, then of step 2, …; of a tcc: cancel and confirm
    of each branch as it was registered. Empty in a list."""

    def branch(self, branch_id: str, op: str = Op.ACTION) -> Branch:
        """Find one operation.

        Raises:
            KeyError: this transaction has none such.
        """
        for branch in self.branches:
            if branch.branch_id == branch_id and branch.op == op:
                return branch
        raise KeyError(f"{self.gid} has no {op} of branch {branch_id}")

    def raise_for_status(self) -> Self:
        """Return this transaction if it has succeeded.

        Raises:
            TransactionFailedError: it has failed, or is being undone.
            TransactionRunningError: it has not ended yet.
        """
        if self.status is not Status.SUCCEEDED:
            raise self.as_error()
        return self

    def as_error(self, *, reason: str = "") -> TransactionFailedError | TransactionRunningError:
        """Say what keeps it from success; `reason` is for a transaction that knows none itself."""
        known = self.reason or self.needs_operator or self.waiting_for or reason or "the coordinator gave no reason"
        # Once it has turned round it cannot succeed any more, even if undoing it takes a while.
        if self.status in (Status.ABORTING, Status.FAILED):
            return TransactionFailedError(self.gid, self.status, known)
        return TransactionRunningError(self.gid, self.status, known)

    @property
    def waiting_for(self) -> str:
        """Name the operation whose latest call did not succeed, and what came of it; empty if none is known."""
        for branch in self.branches:
            if branch.held_off:
                return f"{branch.op} of branch {branch.branch_id} is put off: {branch.held_off}"
            if branch.status is OpStatus.PREPARED and branch.attempts:
                last = branch.attempts[-1]
                if last.outcome is not Outcome.SUCCESS:
                    code = f" {last.code}" if last.code else ""
                    detail = f": {last.detail}" if last.detail else ""
                    return f"{branch.op} of branch {branch.branch_id} answered {last.outcome}{code}{detail}"
        return ""


class BranchAnswer(Struct, frozen=True, kw_only=True):
    """What a participant answered to what the initiator called of a branch."""

    branch_id: str
    body: bytes = b""

    def json(self) -> Any:
        """Decode the body; None if there is none."""
        return msgspec.json.decode(self.body) if self.body else None


class TryAnswer(BranchAnswer, frozen=True, kw_only=True):
    """What a participant answered to the try of a TCC branch."""


class ActionAnswer(BranchAnswer, frozen=True, kw_only=True):
    """What a participant answered to the action of an XA branch."""


class QueryAnswer(Struct, frozen=True):
    """The body of `/query`: null for a gid that nobody has submitted."""

    transaction: Transaction | None = None
    branches: tuple[Branch, ...] | None = None

    def joined(self) -> Transaction | None:
        if self.transaction is None:
            return None
        return replace(self.transaction, branches=self.branches or ())


class ListAnswer(Struct, frozen=True):
    """The body of `/all`: one page."""

    transactions: tuple[Transaction, ...] | None = None
    next_position: str = ""


class VersionAnswer(Struct, frozen=True):
    """The body of `/version`."""

    version: str


class PingAnswer(Struct, frozen=True):
    """The body of `/api/ping`."""

    msg: str


class ResultAnswer(Struct, frozen=True):
    """The body of an answer that has nothing to tell but its result."""

    dtm_result: str


class MessageAnswer(Struct, frozen=True):
    """The body of an answer that is not a success."""

    message: str


class StoredResult(Struct, frozen=True, kw_only=True):
    """What a workflow's participant has reported of one operation."""

    branch_id: str
    op: str
    status: OpStatus
    data: bytes = field(default=b"", name="bin_data")


class StoredWorkflow(Struct, frozen=True, kw_only=True):
    """A workflow as its participant needs to know it."""

    gid: str
    status: Status
    pattern: Pattern = field(default=Pattern.WORKFLOW, name="trans_type")
    reason: str = field(default="", name="rollback_reason")
    result: str = ""
    custom_data: str = ""


class WorkflowAnswer(Struct, frozen=True, kw_only=True):
    """The body of `/prepareWorkflow`, or of `/query`, which gives the same under another name."""

    transaction: StoredWorkflow | None = None
    progresses: tuple[StoredResult, ...] | None = None
    branches: tuple[StoredResult, ...] | None = None

    @property
    def results(self) -> tuple[StoredResult, ...]:
        return self.progresses or self.branches or ()

    def find(self, branch_id: str, op: str) -> StoredResult | None:
        for result in self.results:
            if (result.branch_id, result.op) == (branch_id, op):
                return result
        return None
