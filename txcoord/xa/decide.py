"""The rules of an XA transaction: those of two phases, and its order.

Submitted, the commits are called; aborting, the rollbacks; in the order of registration, as DTM
does. A participant registers within its local transaction, before it prepares it: what is prepared in
a database is thus known here, and a registration that comes too late is refused while the
participant can still roll back by itself.
"""

from __future__ import annotations

from collections.abc import Collection

from txcoord.decision import Decision
from txcoord.model import GlobalTransaction
from txcoord.two_phase.decide import decide_two_phase


def decide(xa: GlobalTransaction, now_us: int, in_flight: Collection[int] = ()) -> Decision:
    """Say what an XA transaction does next; arguments as of `txcoord.saga.decide.decide`."""
    return decide_two_phase(xa, now_us, in_flight, last_first=False)
