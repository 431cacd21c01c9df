"""The barrier of one branch operation. Its rule is `txcoord.barrier.rule`; this carries it out on a connection."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from inspect import isawaitable, iscoroutine
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from txcoord.barrier import rule
from txcoord.barrier.rule import BarrierCall, Found, Passage, Row
from txcoord.barrier.tables import Database, find_values, insert_values, statements, table_name
from txcoord.protocol import CHECK_BACK_BRANCH
from txcoord_sdk._checks import Duration
from txcoord_sdk.barrier.drivers.base import Driver, Standing, run_now
from txcoord_sdk.barrier.drivers.registry import driver_of
from txcoord_sdk.barrier.errors import BarrierError, DuplicatedError, NoTransactionError

if TYPE_CHECKING:
    # The package redis is an extra: it is loaded by the first call that needs it.
    from txcoord_sdk.barrier.redis import Passed, RedisWork

logger = logging.getLogger("txcoord_sdk.barrier")

C = TypeVar("C")


class BranchBarrier:
    """Lets one branch operation take effect at most once, and in the right order, in one database.

    Make one per request. Several calls within a request get the numbers 01, 02, …: action and
    compensation are to make them in the same order. Where some calls depend on a condition,
    or one is repeated after a deadlock, name each with `barrier_id`.
    """

    def __init__(self, trans_type: str, gid: str, branch_id: str, op: str, *, table: str | None = None) -> None:
        """
        Args:
            table: the barrier table, as `name` or `schema.name`. By default DTM's
                `dtm_barrier.barrier`, in SQLite `barrier`.

        Raises:
            InvalidRequestError: a value is missing or longer than the table can hold.
        """
        self.trans_type = rule.check("trans_type", trans_type)
        self.gid = rule.check("gid", gid)
        self.branch_id = rule.check("branch_id", branch_id)
        self.op = rule.check("op", op)
        self._table = table
        self._numbers = count(1)
        self._is_first_reserved = False

    def __repr__(self) -> str:
        return f"BranchBarrier({self.trans_type!r}, {self.gid!r}, {self.branch_id!r}, {self.op!r})"

    def reserve_first(self) -> bool:
        """Keep the number 01 for a row that XA writes itself; say whether it was free. For the SDK itself."""
        if not self._is_first_reserved:
            self._is_first_reserved = next(self._numbers) == 1
        return self._is_first_reserved

    async def call(
        self,
        connection: C,
        work: Callable[[C], Awaitable[object]],
        *,
        commit: bool = False,
        barrier_id: str | None = None,
    ) -> Passage:
        """Run `work` at most once, inside the caller's local transaction.

        The barrier's rows and those that `work` writes commit together or not at
        all: pass the connection or session that `work` uses, and commit it yourself,
        whatever the answer, before you answer the coordinator. Or ask for `commit`:
        the connection's transaction is then committed here, or rolled back if
        anything raises. Where the database has ended or broken the transaction within
        `work`, the call raises, even if `work` has caught that.

        `work` is left out, and the call still succeeds, when the operation has run
        before (duplicate), when it compensates something that never ran (empty
        compensation), or when its compensation came first (suspension).

        If `work` raises, its writes and the barrier's rows are taken back, and the
        exception goes on to you: even if you catch it and commit, it is as though
        the call had not been. `work` must not commit or roll back by itself.

        Returns:
            Which of these it was. The answer to the coordinator is success in each.

        Raises:
            NoTransactionError: the connection commits each statement by itself, and
                `commit` was not asked for.
            DuplicatedError: the local transaction of a message must not commit.
        """
        async with self.guard(connection, commit=commit, barrier_id=barrier_id) as passage:
            if passage.runs:
                done = work(connection)
                if not isawaitable(done):
                    raise TypeError(f"the work of {self!r} is not a coroutine function: await it, or use call_sync")
                await done
        return passage

    def call_sync(
        self, connection: C, work: Callable[[C], object], *, commit: bool = False, barrier_id: str | None = None
    ) -> Passage:
        """Do what `call` does, on a blocking connection."""
        with self.guard_sync(connection, commit=commit, barrier_id=barrier_id) as passage:
            if passage.runs:
                done = work(connection)
                if iscoroutine(done):
                    # Nothing of it has run, and its row must not say that it has.
                    done.close()
                    raise TypeError(f"the work of {self!r} is a coroutine function: use call on an async connection")
        return passage

    def guard(self, connection: object, *, commit: bool = False, barrier_id: str | None = None) -> Guard:
        """Do what `call` does, for work that is a block rather than a function.

            async with barrier.guard(connection) as passage:
                if passage.runs:
                    await connection.execute(…)

        The block is the work: nothing in it is run for you, so ask `passage.runs`.
        """
        return Guard(self._scope(connection, is_async=True, commit=commit, barrier_id=barrier_id))

    def guard_sync(self, connection: object, *, commit: bool = False, barrier_id: str | None = None) -> SyncGuard:
        """Do what `guard` does, on a blocking connection, with a plain `with`."""
        return SyncGuard(self._scope(connection, is_async=False, commit=commit, barrier_id=barrier_id))

    async def query_prepared(self, connection: object) -> bool:
        """Say whether the local transaction of a message has committed, and if not, keep it from ever doing so.

        Waits for that transaction if it is under way. For the endpoint that the
        coordinator asks: True is to be answered with success, False with failure.
        Commits what it writes; give it a connection with nothing else under way.
        """
        return await self._query_prepared(driver_of(connection, is_async=True))

    def query_prepared_sync(self, connection: object) -> bool:
        """Do what `query_prepared` does, on a blocking connection."""
        return run_now(self._query_prepared(driver_of(connection, is_async=False)))

    async def redis_call(
        self,
        client: object,
        work: RedisWork,
        *,
        barrier_id: str | None = None,
        expiry: Duration | None = None,
        dtm_keys: bool = False,
    ) -> Passed:
        """Run `work` at most once, in Redis, in one script with the barrier's marks.

        `work` is an `Increment` or a `LuaWork` of `txcoord_sdk.barrier.redis`. It is left out, and the
        call still succeeds, as with `call`; and there is nothing to commit. If it refuses or fails, no
        mark is set: it is as though the call had not been.

        What a connection that breaks leaves open, a repetition settles: it is a duplicate if the
        first had arrived.

        Args:
            client: of the package redis, async, of one server or of a cluster.
            expiry: how long the marks are kept after the last call, in whole seconds; by default 7 days. Until
                then late and repeated calls are known for what they are, so it has to be longer than any call
                can come late, and than the transaction can last.
            dtm_keys: name the marks as DTM does, for operations of the same branch in services in other
                languages. Not in a cluster, where those names are in slots of their own.

        Returns:
            The passage, and what the work returned.

        Raises:
            BranchFailed: the work refused.
            DuplicatedError: the local transaction of a message must not take effect.
            BarrierError: the client is of no kind that is known, or blocks.
        """
        return await self._redis_call(
            client, work, barrier_id=barrier_id, expiry=expiry, dtm_keys=dtm_keys, is_async=True
        )

    def redis_call_sync(
        self,
        client: object,
        work: RedisWork,
        *,
        barrier_id: str | None = None,
        expiry: Duration | None = None,
        dtm_keys: bool = False,
    ) -> Passed:
        """Do what `redis_call` does, on a blocking client."""
        return run_now(
            self._redis_call(client, work, barrier_id=barrier_id, expiry=expiry, dtm_keys=dtm_keys, is_async=False)
        )

    async def redis_query_prepared(self, client: object, key: str | None, *, expiry: Duration | None = None) -> bool:
        """Do what `query_prepared` does, for a local transaction in Redis.

        Args:
            key: the first key of its work, as it was given there; None if it was done with `dtm_keys`.
        """
        return await self._redis_query_prepared(client, key, expiry=expiry, is_async=True)

    def redis_query_prepared_sync(self, client: object, key: str | None, *, expiry: Duration | None = None) -> bool:
        """Do what `redis_query_prepared` does, on a blocking client."""
        return run_now(self._redis_query_prepared(client, key, expiry=expiry, is_async=False))

    async def _redis_call(
        self,
        client: object,
        work: RedisWork,
        *,
        barrier_id: str | None,
        expiry: Duration | None,
        dtm_keys: bool,
        is_async: bool,
    ) -> Passed:
        from txcoord_sdk.barrier.redis import Marks

        call = self._call(self._number(barrier_id))
        marks = Marks(client, call, is_async=is_async, expiry=expiry)
        passed = await marks.run(work, dtm_keys=dtm_keys, token=uuid4().hex)
        _log(call, passed.passage)
        return passed

    async def _redis_query_prepared(
        self, client: object, key: str | None, *, expiry: Duration | None, is_async: bool
    ) -> bool:
        from txcoord_sdk.barrier.redis import Marks

        call = self._call(rule.CHECK_BACK_BARRIER_ID, branch_id=CHECK_BACK_BRANCH)
        return await Marks(client, call, is_async=is_async, expiry=expiry).check_back(key)

    def _scope(self, connection: object, *, is_async: bool, commit: bool, barrier_id: str | None) -> _Scope:
        call = self._call(self._number(barrier_id))
        return _Scope(driver_of(connection, is_async=is_async), call, table=self._table, commit=commit)

    def _number(self, barrier_id: str | None) -> str:
        number = barrier_id if barrier_id is not None else rule.barrier_id_of(next(self._numbers))
        return rule.check("barrier_id", number)

    def _call(self, barrier_id: str, *, branch_id: str | None = None) -> BarrierCall:
        return BarrierCall(
            trans_type=self.trans_type,
            gid=self.gid,
            branch_id=branch_id or self.branch_id,
            op=self.op,
            barrier_id=barrier_id,
        )

    async def _query_prepared(self, driver: Driver, *, lock_wait_s: int | None = None) -> bool:
        call = self._call(rule.CHECK_BACK_BARRIER_ID, branch_id=CHECK_BACK_BRANCH)
        return await _Scope(driver, call, table=self._table, commit=True).check_back(lock_wait_s)


class Guard:
    """The barrier around a block; see `BranchBarrier.guard`."""

    def __init__(self, scope: _Scope) -> None:
        self._scope = scope

    async def __aenter__(self) -> Passage:
        return await self._scope.enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._scope.leave(error)


class SyncGuard:
    """The barrier around a block; see `BranchBarrier.guard_sync`."""

    def __init__(self, scope: _Scope) -> None:
        self._scope = scope

    def __enter__(self) -> Passage:
        return run_now(self._scope.enter())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run_now(self._scope.leave(error))


class _Scope:
    """One call on one connection, from its first statement to its last.

    Rows and work are one piece, after a savepoint. Without it, a caller who catches what `work` raised
    and commits would leave rows that say it ran, and the compensation would take back what
    was never done; and in a transaction that is ours, nobody would notice that it was lost meanwhile.
    """

    def __init__(self, driver: Driver, call: BarrierCall, *, table: str | None, commit: bool) -> None:
        self._driver = driver
        self._call = call
        self._table = table
        self._commit = commit

    async def enter(self) -> Passage:
        standing = await self._checked()
        try:
            await (self._driver.begin_own(standing) if self._commit else self._driver.savepoint())
            passage = await self._pass()
        except NoTransactionError:
            raise  # nothing was sent
        except BaseException as error:
            # Also if it was cancelled while it began: the database may do it all the same.
            await self._take_back(error)
            raise
        _log(self._call, passage)
        return passage

    async def leave(self, error: BaseException | None) -> None:
        """End what `enter` began: keep it, or take it back because of an error."""
        if error is not None:
            return await self._take_back(error)
        try:
            await (self._driver.commit_own() if self._commit else self._driver.release())
        except BaseException as failure:
            failure.add_note(
                f"{self._words()}: could not be ended. Work must not commit or roll back by itself, nor go on after "
                "a deadlock, or in PostgreSQL after an error of the database, unless in a savepoint of its own; "
                "and what it added to a session is written only now."
            )
            await self._take_back(failure)
            raise

    async def _take_back(self, error: BaseException) -> None:
        try:
            await (self._driver.rollback_own() if self._commit else self._driver.undo())
        except Exception as failure:  # noqa: BLE001 (what went wrong first matters more)
            # The connection is gone, or a deadlock has rolled everything back already.
            error.add_note(f"{self._words()}: taking it back failed too ({failure!r}): roll the transaction back.")

    async def check_back(self, lock_wait_s: int | None) -> bool:
        standing = await self._checked()
        try:
            if standing is Standing.NONE:
                await self._driver.begin()
            row = self._call.check_back
            async with self._waiting_at_most(lock_wait_s):
                await self._insert(row)
                committed = rule.has_committed(await self._find(row))
            await self._driver.commit()
        except NoTransactionError:
            raise  # nothing was sent
        except BaseException as error:
            await self._take_back(error)
            raise
        return committed

    @asynccontextmanager
    async def _waiting_at_most(self, lock_wait_s: int | None) -> AsyncIterator[None]:
        """Limit how long a statement waits for a lock; in SQLite that stays as it is set."""
        database = self._driver.database if lock_wait_s is not None else None
        if database is Database.POSTGRESQL:
            await self._driver.execute(f"set local lock_timeout = '{lock_wait_s}s'")
        if database is not Database.MYSQL:
            yield
            return
        await self._driver.execute(
            f"set @txcoord_lock_wait = @@session.innodb_lock_wait_timeout, innodb_lock_wait_timeout = {lock_wait_s}"
        )
        try:
            yield
        except Exception:  # cancelled, the connection is closed by its driver
            with suppress(Exception):  # what went wrong first matters more
                await self._driver.execute(_OLD_LOCK_WAIT)
            raise
        await self._driver.execute(_OLD_LOCK_WAIT)

    async def _checked(self) -> Standing:
        """Say how the connection stands, and refuse what cannot work. Sends nothing."""
        standing = await self._driver.standing()
        # Before a statement is sent: a wrong name is not the database's error.
        table_name(self._driver.database, self._table)
        if not self._commit and standing is Standing.NONE:
            raise NoTransactionError(
                f"{self._words()}: the connection commits each statement by itself, so barrier and work would not "
                "commit together: open a transaction first, or pass commit=True"
            )
        return standing

    async def _pass(self) -> Passage:
        call = self._call
        origin_inserted = call.origin is not None and await self._insert(call.origin)
        own_inserted = await self._insert(call.own)
        if call.refuses_duplicates and not own_inserted:
            raise DuplicatedError(call.gid)
        passage = rule.judge(origin_inserted=origin_inserted, own_inserted=own_inserted)
        return passage or rule.judge_existing(call, await self._find(call.own))

    async def _insert(self, row: Row) -> bool:
        said = statements(self._driver.database, self._table, self._driver.placeholders)
        try:
            affected = await self._driver.execute(said.insert, insert_values(row))
        except Exception as error:
            error.add_note(
                f"{self._words()}: writing to {table_name(self._driver.database, self._table)} failed; "
                "if the table is missing, `txcoord-barrier create URL` makes it"
            )
            raise
        if affected not in (0, 1):
            raise BarrierError(f"{self._words()}: the driver did not say how many rows it inserted ({affected})")
        return affected == 1

    async def _find(self, row: Row) -> Found:
        said = statements(self._driver.database, self._table, self._driver.placeholders)
        found = await self._driver.fetch(said.find, find_values(row))
        if found is None:
            # Gone between two statements, or `insert ignore` ignored something else than a
            # duplicate. Not known, so not decided: the coordinator calls again.
            raise BarrierError(f"{self._words()}: its row was neither inserted nor found; call again")
        gid, reason = (value.decode() if isinstance(value, bytes) else str(value) for value in found)
        return Found(gid=gid, reason=reason)

    def _words(self) -> str:
        return _words(self._call)


_OLD_LOCK_WAIT = "set innodb_lock_wait_timeout = @txcoord_lock_wait"


def _log(call: BarrierCall, passage: Passage) -> None:
    level = logging.DEBUG if passage.runs else logging.INFO
    logger.log(level, "%s: %s", _words(call), passage.meaning)


def _words(call: BarrierCall) -> str:
    return f"barrier {call.barrier_id} of {call.trans_type} {call.gid}, branch {call.branch_id}, {call.op}"
