"""The operations of a coordinator client: stated once, for the async and the sync one."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Iterator
from datetime import datetime
from random import Random

from txcoord.model import Pattern, Status
from txcoord.protocol import DEFAULT_HTTP_PORT
from txcoord_sdk import gid as gids
from txcoord_sdk._checks import Duration, seconds
from txcoord_sdk._rules import Rules
from txcoord_sdk.results import Transaction
from txcoord_sdk.saga import Saga

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
