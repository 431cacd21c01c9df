"""What can come of a workflow, or of a step, other than its result."""

from __future__ import annotations

from txcoord.model import Outcome, Status
from txcoord_sdk.branch import BranchFailed
from txcoord_sdk.errors import TransactionRunningError, TxcoordSdkError


class StepFailed(BranchFailed):
    """A step was refused, for good. It has all undone if it leaves the workflow; caught, that may go another way."""

    gid: str
    branch_id: str
    step: str
    """What was refused: a function's name, or method and path of a call."""
    reason: str

    def __init__(self, gid: str, branch_id: str, step: str, reason: str) -> None:
        super().__init__(gid, branch_id, step, reason)
        self.gid, self.branch_id, self.step, self.reason = gid, branch_id, step, reason

    def __str__(self) -> str:
        return f"step {self.branch_id} ({self.step}) failed: {self.reason}"


class WorkflowInterruptedError(TransactionRunningError):
    """The workflow could not go on for now: nothing is decided, and what is recorded stands.

    The coordinator asks for it to be resumed, again and again, until it has ended. Running it again with
    its gid does the same at once.
    """

    outcome: Outcome
    """`ongoing`: somebody asked for patience. `unknown`: something did not answer as it should."""

    def __init__(self, gid: str, status: Status | None, reason: str, outcome: Outcome = Outcome.UNKNOWN) -> None:
        super().__init__(gid, status, reason)
        self.args = (gid, status, reason, outcome)
        self.outcome = outcome

    def __str__(self) -> str:
        return (
            f"workflow {self.gid} is interrupted: {self.reason}; "
            "it is resumed when the coordinator asks, or when it is run again with this gid"
        )


class WorkflowChangedError(TxcoordSdkError):
    """What is recorded does not fit what the function does now, so it cannot go on from there.

    Either its code has changed while this one was under way (let that version finish it, or give the new
    one a new name), or the function depends on more than its input and its steps' results: time, chance,
    the order in which parallel steps end. Nothing is decided; it is tried again at each resume.
    """

    branch_id: str

    def __init__(self, gid: str, status: Status | None, reason: str, branch_id: str = "") -> None:
        super().__init__(gid, status, reason)
        self.args = (gid, status, reason, branch_id)
        self.branch_id = branch_id

    def __str__(self) -> str:
        return f"workflow {self.gid} does something else than is recorded of it: {self.reason}"
