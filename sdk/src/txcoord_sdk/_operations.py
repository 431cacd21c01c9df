"""The operations of a coordinator client: stated once, for the async and the sync one."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from datetime import datetime
from random import Random
from typing import TYPE_CHECKING

from txcoord.model import Op, Pattern, Status
from txcoord.protocol import DEFAULT_HTTP_PORT
from txcoord_sdk import gid as gids
from txcoord_sdk._checks import Duration, checked_gid, checked_headers, seconds, whole_seconds, wire_options
from txcoord_sdk._rules import Rules
from txcoord_sdk._tcc_rules import TccRules
from txcoord_sdk.results import Transaction
from txcoord_sdk.saga import Saga
from txcoord_sdk.tcc import TccOperations

if TYPE_CHECKING:
    # An initiator needs nothing of the barrier, which this would load.
    from txcoord_sdk.branch import BranchContext

DEFAULT_TIMEOUT_S = 10.0
DEFAULT_WAIT_S = 60.0


class Operations(ABC):
    """What a coordinator client does. The async client awaits what the sync one returns.

    Every operation raises `CoordinatorUnreachableError` if no coordinator answers within
    the attempts allowed, and `RequestRefusedError` if it does not accept the request.
    """

    saga = Saga
    """Open a saga; see `Saga` for its options. Nothing is sent before it is submitted."""

    def __init__(
        self,
        url: str | None,
        *,
        timeout: Duration,
        attempts: int,
        backoff: Duration,
    ) -> None:
        self._rules = Rules(
            url=url or os.environ.get("TXCOORD_URL") or f"http://127.0.0.1:{DEFAULT_HTTP_PORT}",
            timeout_s=seconds(timeout, name="timeout"),
            attempts=attempts,
            backoff_s=seconds(backoff, name="backoff"),
            clock=time.monotonic,
            random=Random(),
        )

    @property
    def url(self) -> str:
        """The coordinator's address, without the path of its API."""
        return self._rules.url

    def new_gid(self) -> str:
        """Make a gid, here: 22 characters, unique, ordered by time."""
        return gids.new_gid()

    @abstractmethod
    def tcc(
        self,
        gid: str | None = None,
        *,
        wait_result: bool = False,
        timeout_to_fail: Duration | None = None,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
    ) -> TccOperations:
        """Make a TCC transaction, to be used with `async with` (or `with`); see `TccOperations`.

        What is left None is as the coordinator is set. Times are seconds or timedeltas, and
        whole seconds:

        Args:
            gid: a unique name of your own, such as an order number; made for you if None.
            wait_result: let the end of the block return only when all is confirmed.
            timeout_to_fail: cancel if it has not been submitted by then (35 s if left out).
            request_timeout: how long the coordinator waits for the answer to a confirm or a
                cancel, and this client for the answer to a try (if left out, its own `timeout`).
            retry_interval: pause before a confirm or cancel is repeated; it grows.
            branch_headers: sent with every try, confirm and cancel, e.g. for authorisation.

        Raises:
            ValueError: an option cannot mean anything; the sentence says what is allowed.
        """

    @abstractmethod
    def nested_tcc(
        self,
        branch: BranchContext,
        *,
        request_timeout: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
    ) -> TccOperations:
        """Make a participant's part of a TCC transaction: branches within the branch whose try it is called for.

        For the endpoint of a try that needs others to reserve something too. Its branches are
        registered under this branch's id (01 gets 0101, 0102, …), and confirmed or cancelled with all
        the others: leaving the block neither submits nor aborts, and entering it sends nothing.

        This client has to lead to the coordinator that has the transaction; `branch.coordinator_url`
        names it.

        Args:
            branch: the context of the request, which has to be a try.
            request_timeout: how long to wait for the answer to a try.
            branch_headers: sent with the tries. What the coordinator sends with confirms and
                cancels is the matter of who opened the transaction.

        Raises:
            ValueError: the request is not a try, or is nested too deeply (10 levels).
        """

    def _tcc_rules(
        self,
        gid: str | None,
        *,
        wait_result: bool,
        timeout_to_fail: Duration | None,
        request_timeout: Duration | None,
        retry_interval: Duration | None,
        branch_headers: Mapping[str, str] | None,
    ) -> TccRules:
        return TccRules(
            self._rules,
            gids.new_gid() if gid is None else checked_gid(gid),
            options=wire_options(
                timeout_to_fail=timeout_to_fail,
                request_timeout=request_timeout,
                retry_interval=retry_interval,
                branch_headers=branch_headers,
            ),
            wait_result=wait_result,
            branch_headers=branch_headers or {},
            timeout_s=self._timeout_of_try(request_timeout),
        )

    def _nested_tcc_rules(
        self, branch: BranchContext, *, request_timeout: Duration | None, branch_headers: Mapping[str, str] | None
    ) -> TccRules:
        if (branch.trans_type, branch.op) != (Pattern.TCC, Op.TRY):
            raise ValueError(
                f"branches within a branch are added by its try, not by the {branch.op} of a {branch.trans_type}"
            )
        return TccRules(
            self._rules,
            branch.gid,
            options={},
            branch_headers=checked_headers(branch_headers or {}),
            timeout_s=self._timeout_of_try(request_timeout),
            parent_id=branch.branch_id,
        )

    def _timeout_of_try(self, request_timeout: Duration | None) -> float:
        if request_timeout is None:
            return self._rules.timeout_s
        return float(whole_seconds(request_timeout, name="request_timeout"))

    @abstractmethod
    def submit(self, saga: Saga) -> str | Awaitable[str]:
        """Hand a saga over; once this returns the coordinator has it for good.

        It may be repeated at will, by this client or by you: a gid is run once. Lost answers
        and a busy coordinator are dealt with here, by asking and sending again.

        With the saga's `wait_result` this returns only if it has succeeded. The coordinator
        then answers after its first pass, which may end before the saga does.

        Returns:
            The gid.

        Raises:
            TransactionFailedError: it has failed or turned round (known only with
                `wait_result`, or if this gid had been submitted before).
            TransactionRunningError: with `wait_result`: accepted, and not ended yet.
        """

    @abstractmethod
    def run(self, saga: Saga, timeout: Duration = DEFAULT_WAIT_S) -> str | Awaitable[str]:
        """Submit a saga and return when it has succeeded.

        Returns:
            The gid.

        Raises:
            TransactionFailedError: it failed; `status` tells whether it is undone yet.
            TransactionRunningError: it had not ended in time. It goes on: `wait` again.
        """

    @abstractmethod
    def wait(self, gid: str, timeout: Duration = DEFAULT_WAIT_S) -> Transaction | Awaitable[Transaction]:
        """Ask until a transaction has ended, and return it, however it ended.

        `wait(gid).raise_for_status()` returns only if it has succeeded. A coordinator that
        is away meanwhile is waited for, too.

        Raises:
            TransactionRunningError: it had not ended in time; `aborting` if it has turned round.
            TransactionNotFoundError: nobody submitted this gid.
        """

    @abstractmethod
    def query(self, gid: str) -> Transaction | Awaitable[Transaction]:
        """Show one transaction with its branches, however it stands.

        Raises:
            TransactionNotFoundError: nobody submitted this gid.
        """

    @abstractmethod
    def list(
        self,
        *,
        status: Status | None = None,
        pattern: Pattern | None = None,
        created_from: datetime | None = None,
        created_to: datetime | None = None,
        page_size: int = 100,
    ) -> Iterator[Transaction] | AsyncIterator[Transaction]:
        """Go through the transactions that match, without their branches, fetching page after page.

        Times need a time zone and are inclusive. txcoord lists the newest first.
        """

    @abstractmethod
    def force_stop(self, gid: str) -> Awaitable[None] | None:
        """Make an unfinished transaction failed, as it is: nothing more is called, nothing is undone.

        Raises:
            RequestRefusedError: it has succeeded.
            TransactionNotFoundError: nobody submitted this gid.
        """

    @abstractmethod
    def retry_now(self, gid: str) -> Awaitable[None] | None:
        """Make a transaction that waits for its next attempt go on at once.

        Raises:
            TransactionNotFoundError: nobody submitted this gid.
        """

    @abstractmethod
    def version(self) -> str | Awaitable[str]:
        """Tell the coordinator's version."""

    @abstractmethod
    def ping(self) -> Awaitable[None] | None:
        """Return if a coordinator answers."""

    @abstractmethod
    def close(self) -> Awaitable[None] | None:
        """Close the connections. An `http` client of your own stays open."""
