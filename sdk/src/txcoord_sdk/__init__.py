"""The client SDK of txcoord: open global transactions, protect participants.

This is the initiator's side. Participants find their barrier in `txcoord_sdk.barrier`,
and FastAPI helpers in `txcoord_sdk.fastapi`; both are imported by those who use them,
for they need more than httpx.
"""

from __future__ import annotations

from txcoord.model import Op, OpStatus, Outcome, Pattern, Status
from txcoord_sdk.coordinator import AsyncCoordinator, Coordinator
from txcoord_sdk.errors import (
    ActionFailedError,
    CoordinatorUnreachableError,
    RequestRefusedError,
    TransactionFailedError,
    TransactionNotFoundError,
    TransactionRunningError,
    TryFailedError,
    TxcoordSdkError,
)
from txcoord_sdk.gid import new_gid
from txcoord_sdk.message import Message, MessageStep
from txcoord_sdk.results import ActionAnswer, Attempt, Branch, Transaction, TryAnswer
from txcoord_sdk.saga import Saga, Step
from txcoord_sdk.tcc import AsyncTcc, Tcc
from txcoord_sdk.xa_transaction import AsyncXa, Xa

__version__ = "0.1.0"

__all__ = [
    "ActionAnswer",
    "ActionFailedError",
    "AsyncCoordinator",
    "AsyncTcc",
    "AsyncXa",
    "Attempt",
    "Branch",
    "Coordinator",
    "CoordinatorUnreachableError",
    "Message",
    "MessageStep",
    "Op",
    "OpStatus",
    "Outcome",
    "Pattern",
    "RequestRefusedError",
    "Saga",
    "Status",
    "Step",
    "Tcc",
    "Transaction",
    "TransactionFailedError",
    "TransactionNotFoundError",
    "TransactionRunningError",
    "TryAnswer",
    "TryFailedError",
    "TxcoordSdkError",
    "Xa",
    "new_gid",
]
