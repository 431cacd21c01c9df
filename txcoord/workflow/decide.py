"""The rules of a workflow.

Its steps run in the participant, which reports the result of each and, at last, how the whole ended. The coordinator
keeps them, and while none of this comes for a while it asks the participant to go on: a call of
`query_prepared`, with the workflow's name and input. Whatever is answered, only the participant's own
report ends a workflow; so each call that leaves it unfinished is repeated later, and later still.

Position 0 of the branches is that request, the others are the reported steps.
"""

from __future__ import annotations

from collections.abc import Collection

from txcoord.decision import Call, Decision, Done, Wait
from txcoord.model import NEVER_US, GlobalTransaction, Status

RESUME = 0
"""The position of the request to go on."""


def decide(workflow: GlobalTransaction, now_us: int, in_flight: Collection[int] = ()) -> Decision:
    """Say what a workflow does next; arguments as of `txcoord.saga.decide.decide`."""
    if workflow.status.is_final:
        return Done()
    assert workflow.status is Status.PREPARED, f"workflow {workflow.gid} is {workflow.status}, which none can be"
    resume = workflow.branches[RESUME]
    if not resume.url:
        return Wait(NEVER_US)
    if in_flight:
        return Wait(None)
    return Call((RESUME,)) if resume.due_us <= now_us else Wait(resume.due_us)
