"""The barrier: each branch operation takes effect at most once, in the right order. See docs/barrier.md."""

from txcoord.barrier.rule import Passage
from txcoord_sdk.barrier.barrier import BranchBarrier, Guard, SyncGuard
from txcoord_sdk.barrier.errors import BarrierError, DuplicatedError, NoTransactionError
from txcoord_sdk.barrier.table import create_table, create_table_at, create_table_sync

__all__ = [
    "BarrierError",
    "BranchBarrier",
    "DuplicatedError",
    "Guard",
    "NoTransactionError",
    "Passage",
    "SyncGuard",
    "create_table",
    "create_table_at",
    "create_table_sync",
]
