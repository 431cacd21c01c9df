"""The rules of a TCC transaction: those of two phases, and its order.

Submitted, the confirms are called; aborting, the cancels; the branch that was registered last
first, as DTM does.
"""

from __future__ import annotations

from collections.abc import Collection

from txcoord.decision import Decision
from txcoord.model import GlobalTransaction
from txcoord.two_phase.decide import decide_two_phase


def decide(tcc: GlobalTransaction, now_us: int, in_flight: Collection[int] = ()) -> Decision:
    """Say what a TCC transaction does next; arguments as of `txcoord.saga.decide.decide`."""
    return decide_two_phase(tcc, now_us, in_flight, last_first=True)
