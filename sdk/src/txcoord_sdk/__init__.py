"""The client SDK of txcoord: open global transactions, protect participants.

This is the initiator's side. What needs more than httpx is imported by those who use it:
participants find their barrier in `txcoord_sdk.barrier`, XA in `txcoord_sdk.xa`, and endpoints
for their framework in `txcoord_sdk.fastapi`, `txcoord_sdk.starlette` and `txcoord_sdk.grpc`;
workflows are in `txcoord_sdk.workflow`.

Read in this order: `coordinator` (the two clients, which are shells), `_operations` (what they
do, stated once), `_rules` (what is sent and what follows from answers), `_exchange` (how one
request is repeated and its answer read), `_calls` (how rules, wires and clients speak to each
other). Then a pattern: `saga` and `message` are values that are handed over; `tcc` and
`xa_transaction` are blocks around `_two_phase_rules`; `_local` is the order of things around a
message's local transaction; `workflow/_execution` runs a workflow's function.
For participants: `branch`, then `barrier/barrier`, whose rule is `txcoord.barrier.rule`, and
`xa/phases`.
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
