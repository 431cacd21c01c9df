"""The use cases: what every adapter (HTTP, later JSON-RPC and gRPC) calls.

Skeleton of the interface; the body is being written.
"""

from __future__ import annotations

from collections.abc import Sequence

from txcoord.model import Status
from txcoord.request import SubmitResult, TransRequest
from txcoord.store.base import ListQuery, Stored


class Service:
    """Checks a request against the rules, makes it durable, hands it to the engine."""

    def new_gid(self) -> str:
        """Make a gid: 22 characters, unique, ordered by time (which keeps indexes compact)."""
        raise NotImplementedError

    async def submit(self, request: TransRequest) -> SubmitResult:
        """Accept a transaction and start driving it; repeated submits of a running one are harmless.

        Raises:
            InvalidRequestError, RequestTooLargeError, StatusConflictError (wanted="submit"),
            StoreUnavailableError, OverloadedError.
        """
        raise NotImplementedError

    async def prepare(self, request: TransRequest) -> None:
        """Raises InvalidRequestError for a saga (it is submitted whole), StatusConflictError(wanted="prepare")."""
        raise NotImplementedError

    async def abort(self, request: TransRequest) -> SubmitResult:
        """Raises TransactionNotFoundError, StatusConflictError (wanted="abort"), StoreUnavailableError."""
        raise NotImplementedError

    async def force_stop(self, gid: str) -> None:
        """Raises TransactionNotFoundError, StatusConflictError (wanted="force stop"), StoreUnavailableError."""
        raise NotImplementedError

    async def reset_next_cron_time(self, gid: str) -> None:
        """Make one transaction due now. Raises TransactionNotFoundError, StoreUnavailableError."""
        raise NotImplementedError

    async def reset_cron_time(self, *, timeout_s: int | None, limit: int) -> int:
        """Make transactions due now that would be due later than `timeout_s` from now; return how many."""
        raise NotImplementedError

    async def query(self, gid: str) -> Stored | None:
        """One transaction with its branches; a live one as it stands in memory, attempts included."""
        raise NotImplementedError

    async def list_transactions(self, query: ListQuery) -> Sequence[Stored]:
        raise NotImplementedError

    async def count_by_status(self) -> dict[Status, int]:
        raise NotImplementedError

    async def check_ready(self) -> None:
        """Raises StoreUnavailableError or OverloadedError (draining) with a sentence."""
        raise NotImplementedError
