"""What can go wrong for an initiator, each with gid, status and reason.

There are four situations: it has failed (`TransactionFailedError`), it has not ended
(`TransactionRunningError`), nothing is known (`CoordinatorUnreachableError`), nothing was done
(`RequestRefusedError`). What else there is, here and in `txcoord_sdk.workflow`, derives from one of
them, so that catching these four is enough; except `WorkflowChangedError`, a fault of the program.
"""

from __future__ import annotations

import re
from typing import ClassVar

import msgspec

from txcoord.errors import TxcoordError
from txcoord.model import Op, Outcome, Status
from txcoord.request import without_credentials


class TxcoordSdkError(TxcoordError):
    """Base of what the coordinator clients raise."""

    gid: str
    """The global transaction it is about; empty where it is about none in particular."""
    status: Status | None
    """Where the transaction stands; None where that is not known."""
    reason: str

    def __init__(self, gid: str, status: Status | None, reason: str) -> None:
        # All three go into `args`, so that the error survives pickling (process pools, task queues).
        super().__init__(gid, status, reason)
        self.gid, self.status, self.reason = gid, status, reason

    def __str__(self) -> str:
        return f"{self.gid}: {self.reason}" if self.gid else self.reason


_REFUSAL = re.compile(r"url:\S* return failed: (.*) FAILURE", re.DOTALL)
"""A reason of the coordinator's, in DTM's form."""


class _Answer(msgspec.Struct):
    message: str = ""


def _words_of(answer: str) -> str:
    try:
        return msgspec.json.decode(answer, type=_Answer).message
    except (msgspec.MsgspecError, RecursionError):
        # No JSON: the words themselves. What is neither, such as a piece of a long answer, says nothing to a user.
        return "" if answer.startswith(("{", "[", "<")) else answer.strip()


class TransactionFailedError(TxcoordSdkError):
    """The transaction will not succeed. `aborting`: it is being undone; `failed`: that has ended."""

    @property
    def message(self) -> str:
        """What the participant that refused said, for whoever asked for the transaction: "no stock".

        Empty if nobody refused (a deadline, a stop by hand), or without a word. `reason` is for logs: it names the
        participant's URL, and shows its answer as it came.
        """
        refusal = _REFUSAL.fullmatch(self.reason)
        return _words_of(refusal[1]) if refusal else ""

    def __str__(self) -> str:
        if self.status is Status.ABORTING:
            return f"global transaction {self.gid} did not succeed and is being undone: {self.reason}"
        return f"global transaction {self.gid} failed: {self.reason}"


class BranchCallError(TransactionFailedError):
    """What the initiator called of a branch was not answered with success, so all of it is undone.

    The end of the block has it undone; should that fail, the deadline does.
    """

    op: ClassVar[Op]
    branch_id: str
    url: str
    outcome: Outcome
    """`failure`: the participant refuses, and `reason` is its word. Otherwise it is not known
    what the call has done (`unknown`, `ongoing`)."""

    def __init__(
        self,
        gid: str,
        status: Status | None,
        reason: str,
        branch_id: str = "",
        url: str = "",
        outcome: Outcome = Outcome.UNKNOWN,
    ) -> None:
        super().__init__(gid, status, reason)
        self.args = (gid, status, reason, branch_id, url, outcome)
        self.branch_id, self.url, self.outcome = branch_id, url, outcome

    def __str__(self) -> str:
        url = without_credentials(self.url)
        return f"global transaction {self.gid} did not succeed and is being undone: {self.what} ({url})"

    @property
    def message(self) -> str:
        return _words_of(self.reason) if self.outcome is Outcome.FAILURE else ""

    @property
    def what(self) -> str:
        """One clause, for logs and for the transaction's own reason."""
        return f"the {self.op} of branch {self.branch_id} had the outcome {self.outcome}: {self.reason}"


class TryFailedError(BranchCallError):
    """A try of a TCC transaction was not answered with success, so all of it is cancelled."""

    op = Op.TRY


class ActionFailedError(BranchCallError):
    """An action of an XA transaction was not answered with success, so all of it is rolled back."""

    op = Op.ACTION


class TransactionRunningError(TxcoordSdkError):
    """The transaction is accepted and has not ended yet; `wait` or `query` tells how it ends."""

    def __str__(self) -> str:
        return f"global transaction {self.gid} is still {self.status} ({self.reason}): wait for it or query it later"


class CoordinatorUnreachableError(TxcoordSdkError):
    """No coordinator gave a usable answer.

    Whether a request took effect is not known. Sending it again is safe: a saga keeps its
    gid, and a gid is run once.
    """

    def __str__(self) -> str:
        if not self.gid:
            return f"the coordinator cannot be reached: {self.reason}"
        return (
            f"the coordinator cannot be reached about {self.gid}: {self.reason}; "
            "the request may have taken effect, and repeating it with this gid is safe"
        )


class RequestRefusedError(TxcoordSdkError):
    """The coordinator refused the request and changed nothing; the reason says what to change."""

    def __str__(self) -> str:
        about = f" about {self.gid}" if self.gid else ""
        return f"the coordinator refused the request{about}: {self.reason}"


class TransactionNotFoundError(RequestRefusedError):
    """The coordinator has no transaction with this gid."""
