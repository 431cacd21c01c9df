"""The operations of a coordinator client: stated once, for the async and the sync one."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import datetime
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from txcoord.model import Op, Pattern, Status
from txcoord.protocol import DEFAULT_HTTP_PORT
from txcoord_sdk import gid as gids
from txcoord_sdk._calls import Flow
from txcoord_sdk._checks import (
    Duration,
    checked_gid,
    checked_headers,
    checked_url,
    seconds,
    whole_seconds,
    wire_options,
)
from txcoord_sdk._rules import Rules
from txcoord_sdk._tcc_rules import TccRules
from txcoord_sdk._xa_rules import XaRules
from txcoord_sdk.message import Message
from txcoord_sdk.results import Transaction
from txcoord_sdk.saga import Saga
from txcoord_sdk.tcc import TccOperations
from txcoord_sdk.xa_transaction import XaOperations

if TYPE_CHECKING:
    # An initiator needs nothing of the barrier, which this would load.
    from txcoord_sdk.barrier.redis import RedisWork
    from txcoord_sdk.branch import BranchContext

C = TypeVar("C")
R = TypeVar("R", TccRules, XaRules)

DEFAULT_TIMEOUT_S = 10.0
DEFAULT_WAIT_S = 60.0


class Operations(ABC):
    """What a coordinator client does. The async client awaits what the sync one returns.

    Every operation raises `CoordinatorUnreachableError` if no coordinator answers within
    the attempts allowed, and `RequestRefusedError` if it does not accept the request.
    """

    saga = Saga
    """Open a saga; see `Saga` for its options. Nothing is sent before it is submitted."""

    message = Message
    """Open a two-phase message; see `Message` for its options. Nothing is sent before it is prepared or submitted."""

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
        protocol: str | None = None,
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
            protocol: `grpc` if confirms and cancels are to be called over gRPC (their URLs have the
                form `host:port/package.Service/Method`). With a coordinator that is spoken to over
                gRPC it is so without a word.

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
                cancels is up to whoever opened the transaction.

        Raises:
            ValueError: the request is not a try, or is nested too deeply (10 levels).
        """

    def _two_phase_rules(
        self,
        kind: type[R],
        gid: str | None,
        *,
        wait_result: bool,
        timeout_to_fail: Duration | None,
        request_timeout: Duration | None,
        retry_interval: Duration | None,
        branch_headers: Mapping[str, str] | None,
        protocol: str | None,
    ) -> R:
        return kind(
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
            timeout_s=self._timeout_of_first(request_timeout),
            protocol=protocol,
        )

    @abstractmethod
    def xa(
        self,
        gid: str | None = None,
        *,
        wait_result: bool = False,
        timeout_to_fail: Duration | None = None,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
        protocol: str | None = None,
    ) -> XaOperations:
        """Make an XA transaction, to be used with `async with` (or `with`); see `XaOperations`.

        The arguments are those of `tcc`, with action, commit and rollback in place of try, confirm
        and cancel. `timeout_to_fail` bounds how long participants keep locks if this process dies.
        """

    @abstractmethod
    def register_xa_branch(self, branch: BranchContext) -> Awaitable[None] | None:
        """Tell the coordinator of an XA branch, for whoever carries out its phase 1 by hand.

        `txcoord_sdk.xa.take_part` does it; otherwise call it within the local transaction, after the
        work and before the prepare. Registering again changes nothing.

        Args:
            branch: the context of the action; `phase2_url` is where commit or rollback will be called.

        Raises:
            TransactionFailedError: the deadline has passed, or the transaction was aborted: roll back.
            CoordinatorUnreachableError: whether it is registered is not known: roll back.
            RequestRefusedError, ValueError: it cannot be registered: roll back.
        """

    def _registration(self, branch: BranchContext) -> Flow[None]:
        url = checked_url(branch.phase2_url, name="phase2_url")
        if not url:
            raise ValueError(f"branch {branch.branch_id} of {branch.gid} has no phase2_url to be called at later")
        body = {"gid": branch.gid, "trans_type": branch.trans_type, "branch_id": branch.branch_id, "url": url}
        return self._rules.register(branch.gid, branch.branch_id, body)

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
            timeout_s=self._timeout_of_first(request_timeout),
            parent_id=branch.branch_id,
        )

    def _timeout_of_first(self, request_timeout: Duration | None) -> float:
        if request_timeout is None:
            return self._rules.timeout_s
        return float(whole_seconds(request_timeout, name="request_timeout"))

    @abstractmethod
    def submit(self, work: Saga | Message) -> str | Awaitable[str]:
        """Hand a saga or a message over; once this returns the coordinator has it for good.

        It may be repeated at will, by this client or by you: a gid is run once. Lost answers
        and a busy coordinator are dealt with here, by asking and sending again.

        With `wait_result` this returns only if it has succeeded. The coordinator then answers
        after its first pass, which may end before the transaction does.

        Returns:
            The gid.

        Raises:
            TransactionFailedError: it has failed or turned round (known only with
                `wait_result`, or if this gid had been submitted before).
            TransactionRunningError: with `wait_result`: accepted, and not ended yet.
        """

    @abstractmethod
    def run(self, work: Saga | Message, timeout: Duration = DEFAULT_WAIT_S) -> str | Awaitable[str]:
        """Submit a saga or a message and return when it has succeeded.

        Returns:
            The gid.

        Raises:
            TransactionFailedError: it failed; `status` tells whether it is undone yet.
            TransactionRunningError: it had not ended in time. It goes on: `wait` again.
        """

    @abstractmethod
    def prepare(self, message: Message, query_prepared: str) -> str | Awaitable[str]:
        """Announce a message, before the local transaction that decides about it begins.

        Nothing is called until it is submitted. If it is neither submitted nor aborted in time, the
        coordinator asks at `query_prepared` which of the two it is to be. May be repeated.
        `do_and_submit` does all of this; use this for a local transaction of another kind.

        Args:
            query_prepared: the URL of the check-back. The ready-made ones, in `txcoord_sdk.fastapi`
                and `txcoord_sdk.starlette`, tell by the barrier's row of the local transaction.

        Returns:
            The gid.

        Raises:
            TransactionFailedError: a message of this gid has failed; do not begin.
            RequestRefusedError: one of this gid is submitted already (`status`), or the
                request is wrong; do not begin.
            ValueError: it has no steps, or the URL cannot work.
        """

    @abstractmethod
    def abort(self, message: Message, reason: str = "") -> Awaitable[None] | None:
        """End a prepared message: nothing of it is ever called. May be repeated.

        Only for a local transaction that is certain not to commit any more: a check-back is not
        asked after this.

        Args:
            reason: shown by queries.

        Raises:
            RequestRefusedError: it is submitted already (`status`).
            TransactionNotFoundError: it was not prepared.
        """

    @abstractmethod
    def do_and_submit(
        self,
        message: Message,
        query_prepared: str,
        connection: C,
        work: Callable[[C], Any],
        *,
        table: str | None = None,
    ) -> str | Awaitable[str]:
        """Commit a local transaction and send a message: both, or neither.

        Prepares the message, runs `work` in the connection's transaction together with a barrier's
        row, commits it, and submits the message. The commit decides. What a crash or a lost answer
        leaves open, the coordinator settles by asking at `query_prepared`.

        When this returns, the local transaction has committed and the message will be delivered. (If
        the submit does not get through, a warning is logged, and the check-back makes up for it. Only
        with `wait_result` is that raised.)

        If `work` raises, everything on the connection since its last commit is rolled back, the
        message is aborted, and the exception goes on to you. After any other exception before the
        commit nothing is written. If the commit itself raises, it is not known whether it happened;
        a note on the exception says so, and the message follows the commit all the same.

        Args:
            connection: as for the barrier: a connection or session of SQLAlchemy or of a driver, on
                which no `begin()` block is open. Writes made on it before are part of the
                transaction, and committed or rolled back with it.
            work: takes the connection, writes, and neither commits nor rolls back. For the async
                client a coroutine function. It must not run for longer than the message's
                `timeout_to_fail`: a check-back waits for it, and the other calls with it.
            table: the barrier table, if it is not DTM's; the check-back needs the same.

        Returns:
            The gid.

        Raises:
            DuplicatedError: a check-back has come first and the message is ended, or a transaction
                with this gid has committed before. Nothing was written this time.
            TransactionFailedError, RequestRefusedError, CoordinatorUnreachableError: it could not be
                prepared, and `work` has not run; unless a note says that the local transaction
                has committed.
            TransactionRunningError: with `wait_result`: committed, and not all is delivered yet.
        """

    @abstractmethod
    def redis_do_and_submit(
        self,
        message: Message,
        query_prepared: str,
        client: object,
        work: RedisWork,
        *,
        expiry: Duration | None = None,
        dtm_keys: bool = False,
    ) -> str | Awaitable[str]:
        """Do what `do_and_submit` does, with a local transaction in Redis.

        `work` and the barrier's mark take effect in one script. If it refuses or breaks off, the message is
        aborted. If the connection breaks, it is not known whether it took effect; a note on the exception says
        so, and the message follows it all the same.

        Args:
            query_prepared: the URL of the check-back; `redis_key` is added to its query (over gRPC to
                the metadata of all calls), which the ready-made ones read.
            client: of the package redis, async for the async client.
            work: an `Increment` or a `LuaWork` of `txcoord_sdk.barrier.redis`.
            expiry: how long the mark is kept, by default 7 days: longer than the coordinator could be away
                and ask back. A check-back that comes later would take the work for not done.
            dtm_keys: name the mark as DTM does, for a check-back in another language.

        Returns:
            The gid.

        Raises:
            BranchFailed: `work` refused, and the message is aborted.
            DuplicatedError, TransactionFailedError, RequestRefusedError, CoordinatorUnreachableError,
            TransactionRunningError: as for `do_and_submit`.
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
    def subscribe(self, topic: str, url: str, remark: str = "") -> bool | Awaitable[bool]:
        """Let the messages to a topic be sent to one more URL, from now on.

        Subscribing what is subscribed changes nothing, so that a service may do it whenever it starts.

        Args:
            topic: its name; it is made if there is none.
            url: what is called with the messages (http(s), or `host:port/package.Service/Method` for gRPC,
                which only messages with the protocol `grpc` reach). Protect it with a barrier.
            remark: a word for people who look at the topic. It stays as it was for a URL that is subscribed.

        Returns:
            Whether it was changed; False: it had this subscriber, perhaps by a first request whose answer was lost.

        Raises:
            ValueError: the name or the URL cannot work.
        """

    @abstractmethod
    def unsubscribe(self, topic: str, url: str) -> bool | Awaitable[bool]:
        """Let the messages to a topic be sent to a URL no more. Those that are prepared or submitted already still are.

        Returns:
            Whether it was changed; False: it had no such subscriber.
        """

    @abstractmethod
    def delete_topic(self, topic: str) -> bool | Awaitable[bool]:
        """Delete a topic with all its subscribers. Messages to it are refused from now on.

        Returns:
            Whether it was deleted; False: there was none.
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
