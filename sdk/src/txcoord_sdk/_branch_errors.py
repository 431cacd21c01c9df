"""What an endpoint raises to answer "failure" or "ongoing"; `txcoord_sdk.branch` offers them.

Apart from it, because the barrier raises one of them and is a part of each branch's context.
"""

from __future__ import annotations

from txcoord.errors import TxcoordError


class BranchFailed(TxcoordError):
    """Raise it in an endpoint to say: it cannot be done, and calling again will not help.

    For an action, the coordinator then compensates; for a try, the initiator has all cancelled. A
    compensation, a confirm or a cancel has no way to fail: it is called again. Everything that
    the endpoint wrote is to be rolled back.
    """


class BranchOngoing(TxcoordError):
    """Raise it in an endpoint to say: not finished yet, call again after the usual interval.

    Everything that the endpoint wrote is to be rolled back, or to be harmless to repeat.
    """
