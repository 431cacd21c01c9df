"""Both phases of an XA branch, in the participant's database.

What has to hold whatever is lost, doubled, late or killed:

- What is prepared is known to the coordinator: a branch registers within its local transaction,
  before it prepares. If it is refused, or the answer is lost, nothing is prepared.
- A rollback that comes before its phase 1 writes the barrier's row, so that phase 1, when it comes,
  finds it taken. While phase 1 is between its own insert and its prepare, the rollback's insert waits
  for it, only for a while: it then answers "ongoing", and is called again.
- "No such transaction" is not a proof that it was committed: MySQL and MariaDB say so too while the
  connection that prepared it is still open there (its process was killed, its network cut). The row
  is proof: it was written within the transaction, so it is visible once that is committed, locked
  while it is not, and gone when it was rolled back. So every such answer is followed by a look at it.
- Whatever fails in phase 1, closing the connection is safe: what is not prepared is rolled back by
  the database, and what is prepared is registered, so the coordinator rolls it back.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from inspect import isawaitable, iscoroutine
from typing import Any, Generic, TypeVar

from msgspec.structs import replace

from txcoord.barrier import rule
from txcoord.barrier.rule import BarrierCall, Found, Passage, Row
from txcoord.barrier.tables import Database, find_values, insert_values, statements, table_name
from txcoord.errors import InvalidRequestError
from txcoord.model import Op
from txcoord.xa.xid import XaKey, xid_of
from txcoord_sdk.barrier.drivers.base import run_now
from txcoord_sdk.barrier.errors import BarrierError
from txcoord_sdk.branch import BranchFailed, BranchOngoing
from txcoord_sdk.xa import dialects
from txcoord_sdk.xa.dialects import Problem, problem_of
from txcoord_sdk.xa.errors import XaError
from txcoord_sdk.xa.links import BorrowedLink, Link, Source

logger = logging.getLogger("txcoord_sdk.xa")

T = TypeVar("T")

LOCK_WAIT_S = 1
"""How long a barrier's row is waited for; the coordinator's own patience is 3 s by default."""

_PAUSES_S = (0.01, 0.03, 0.1)
"""A closed connection lets go of its prepared transaction a moment after."""

BARRIER_ID = "01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Generic[T]):
    """What phase 1 came to."""

    passage: Passage
    """RUN, or DUPLICATE: it was prepared or committed before, and the work was left out."""
    result: T | None
    """What the work returned; None for a duplicate."""


async def prepare(
    source: Source,
    key: XaKey,
    work: Callable[[Any], Awaitable[T]],
    *,
    register: Callable[[], Awaitable[object]],
    table: str | None = None,
) -> Prepared[T]:
    """Do phase 1 of a branch: run `work` in a local transaction, register the branch, and prepare.

    When it returns, what `work` wrote will survive any crash, is seen by nobody, and keeps its
    locks until `finish`. When it raises, nothing is kept, except where the answer to the prepare
    itself was lost: the branch is registered by then, and is rolled back by the coordinator.

    Args:
        source: where a connection of its own comes from: a SQLAlchemy engine, a pool of aiomysql or
            asyncpg, or a function that opens a connection or lends one.
        work: is handed the connection. It must not commit or roll back.
        register: tells the coordinator of the branch; called after the work, before the prepare.
        table: the barrier table, if it is not DTM's. It is required, and prevents a late phase 1.

    Raises:
        BranchFailed: the branch was rolled back before this came. The work did not run.
        BranchOngoing: another call for this branch is under way. The work did not run.
        XaError: the database, or the source, cannot do XA.
        Whatever `work` and `register` raise.
    """

    async def both(connection: Any) -> T:
        done = work(connection)
        if not isawaitable(done):
            raise TypeError("the work of an XA branch is not a coroutine function: await it, or use prepare_sync")
        result = await done
        await register()
        return result

    async with BorrowedLink(source, is_async=True) as link:
        return await _PhaseOne(link, key, table).run(both)


def prepare_sync(
    source: Source,
    key: XaKey,
    work: Callable[[Any], T],
    *,
    register: Callable[[], object],
    table: str | None = None,
) -> Prepared[T]:
    """Do what `prepare` does, on a blocking connection."""

    async def both(connection: Any) -> T:
        result = work(connection)
        if iscoroutine(result):
            result.close()
            raise TypeError("the work of an XA branch is a coroutine function: use prepare, with an async source")
        register()
        return result

    async def run() -> Prepared[T]:
        async with BorrowedLink(source, is_async=False) as link:
            return await _PhaseOne(link, key, table).run(both)

    return run_now(run())


async def finish(source: Source, key: XaKey, op: str, *, table: str | None = None) -> Passage:
    """Do phase 2 of a branch: commit or roll back what phase 1 prepared. To be repeated until it returns.

    Args:
        op: `commit` or `rollback`.
        source, table: as for `prepare`.

    Returns:
        RUN; DUPLICATE: it was ended so before; EMPTY: a rollback of what was never prepared, and now never will be.

    Raises:
        BranchOngoing: phase 1 is under way, or its connection is not closed yet. Call again.
        BranchFailed: it cannot be done any more: the branch was ended the other way, or a commit
            finds nothing that was ever prepared. A person has to look at it.
    """
    async with BorrowedLink(source, is_async=True) as link:
        return await _PhaseTwo(link, key, op, table).run()


def finish_sync(source: Source, key: XaKey, op: str, *, table: str | None = None) -> Passage:
    """Do what `finish` does, on a blocking connection."""

    async def run() -> Passage:
        async with BorrowedLink(source, is_async=False) as link:
            return await _PhaseTwo(link, key, op, table).run()

    return run_now(run())


class _Phase:
    def __init__(self, link: Link, key: XaKey, table: str | None) -> None:
        self._link = link
        self._key = key
        self._table = table
        self._xid = xid_of(key, link.database)
        self._call = BarrierCall(
            trans_type=rule.check("trans_type", key.trans_type),
            gid=rule.check("gid", key.gid),
            branch_id=rule.check("branch_id", key.branch_id),
            op=Op.ACTION,
            barrier_id=BARRIER_ID,
        )
        self._said = statements(link.database, table, link.driver.placeholders)

    def _row(self, reason: Op) -> Row:
        """The row of the action, written by it or by the rollback that came first."""
        return replace(self._call.own, reason=reason)

    async def _insert(self, row: Row) -> bool:
        try:
            return await self._link.driver.execute(self._said.insert, insert_values(row)) == 1
        except Exception as error:
            error.add_note(
                f"{self._key}: writing to {table_name(self._link.database, self._table)} failed; "
                "if the table is missing, `txcoord-barrier create URL` makes it"
            )
            raise

    async def _find(self, statement: str) -> Found | None:
        found = await self._link.driver.fetch(statement, find_values(self._call.own))
        if found is None:
            return None
        gid, reason = (value.decode() if isinstance(value, bytes) else str(value) for value in found)
        rule.judge_existing(self._call, Found(gid=gid, reason=reason))  # raises for another gid's row
        return Found(gid=gid, reason=reason)

    def _problem(self, error: BaseException) -> Problem | None:
        return problem_of(error, self._link.database)

    async def _discard(self) -> None:
        if not self._link.is_discarded:
            self._link.is_discarded = True
            await self._link.discard()


class _PhaseOne(_Phase):
    _is_started = False
    """Whether there may be something on this connection to roll back."""

    async def run(self, work: Callable[[Any], Awaitable[T]]) -> Prepared[T]:
        try:
            return await self._run(work)
        except BaseException as error:
            await self._take_back(error)
            raise

    async def _run(self, work: Callable[[Any], Awaitable[T]]) -> Prepared[T]:
        if not await (self._begin_in_mysql() if self._is_mysql else self._begin_in_postgresql()):
            await self._roll_back()
            logger.info("%s: left out as a duplicate: it was prepared before", self._key)
            return Prepared(passage=Passage.DUPLICATE, result=None)
        result = await work(self._link.connection)
        await self._prepare()
        return Prepared(passage=Passage.RUN, result=result)

    @property
    def _is_mysql(self) -> bool:
        return self._link.database is Database.MYSQL

    async def _begin_in_mysql(self) -> bool:
        version = await self._link.driver.fetch("select version()")
        assert version is not None, "one row"
        if old := dialects.why_too_old(str(version[0])):
            raise XaError(old)
        try:
            await self._link.run(f"xa start '{self._xid}'")
        except Exception as error:
            if self._problem(error) is not Problem.XID_IN_USE:
                raise
            if await self._is_prepared():
                return False
            raise self._under_way() from error
        self._is_started = True
        return await self._claim()

    async def _begin_in_postgresql(self) -> bool:
        await self._open_in_postgresql()
        found = await self._link.driver.fetch(
            "select current_setting('max_prepared_transactions'), current_setting('lock_timeout')"
        )
        assert found is not None, "one row"
        most, lock_timeout = map(str, found)
        if most == "0":
            raise XaError(
                "this PostgreSQL allows no prepared transactions, which XA needs: set max_prepared_transactions to as "
                "many as may be under way at once (ALTER SYSTEM SET max_prepared_transactions = 100), and restart it"
            )
        # Before the insert, which would wait for whatever is prepared.
        if await self._is_prepared():
            return False
        await self._link.run(f"set local lock_timeout = '{LOCK_WAIT_S}s'")
        try:
            is_new = await self._claim()
        except Exception as error:
            if self._problem(error) is not Problem.BUSY:
                raise
            await self._roll_back()
            await self._open_in_postgresql()
            if await self._is_prepared():
                return False
            raise self._under_way() from error
        await self._link.run(f"set local lock_timeout = '{lock_timeout}'")
        # Lets `_prepare` notice that the work ended the transaction, or left it broken: this
        # database would then roll back, and call that the success of the prepare.
        await self._link.run(f"savepoint {_SAVEPOINT}")
        return is_new

    async def _open_in_postgresql(self) -> None:
        await self._link.begin()
        self._is_started = True

    async def _claim(self) -> bool:
        if await self._insert(self._row(Op.ACTION)):
            return True
        found = await self._find(self._said.find)
        if found is None:
            # `insert ignore` ignored something else than a duplicate, or the row has just gone.
            raise BarrierError(f"{self._key}: its row was neither inserted nor found; call again")
        if found.reason == Op.ROLLBACK:
            raise BranchFailed(f"{self._key} was rolled back before its action came")
        return False

    async def _is_prepared(self) -> bool:
        try:
            return self._xid in await prepared_xids(self._link)
        except Exception as error:
            raise BranchOngoing(
                f"{self._key}: another call of its action is under way, or it is prepared already and that cannot be "
                "seen: MySQL shows it only to users with the privilege XA_RECOVER_ADMIN"
            ) from error

    def _under_way(self) -> BranchOngoing:
        return BranchOngoing(f"{self._key}: another call of its action is under way")

    async def _prepare(self) -> None:
        await self._link.run(f"xa end '{self._xid}'" if self._is_mysql else f"release savepoint {_SAVEPOINT}")
        await self._link.run(dialects.prepare(self._link.database, self._xid))
        if self._is_mysql:
            # Now, for as long as the connection is open no other one can commit.
            await self._discard()
        else:
            await self._link.leave()

    async def _take_back(self, error: BaseException) -> None:
        # A connection whose user is being cancelled may be in the middle of a statement.
        if isinstance(error, Exception):
            try:
                await self._roll_back()
            except Exception as failure:  # noqa: BLE001 (what went wrong first matters more)
                logger.debug("%s: rolling back failed, so its connection is closed: %r", self._key, failure)
            else:
                return
        await self._discard()

    async def _roll_back(self) -> None:
        if not self._is_started or self._link.is_discarded:
            return
        if self._is_mysql:
            try:
                await self._link.run(f"xa end '{self._xid}'")
            except Exception as failure:  # noqa: BLE001 (it has ended already, or a deadlock has ended it)
                logger.debug("%s: %r", self._key, failure)
            await self._link.run(dialects.rollback(self._link.database, self._xid))
        else:
            await self._link.leave()
        self._is_started = False


class _PhaseTwo(_Phase):
    def __init__(self, link: Link, key: XaKey, op: str, table: str | None) -> None:
        if op not in (Op.COMMIT, Op.ROLLBACK):
            raise InvalidRequestError(f"{op!r} does not end an XA branch: it is {Op.COMMIT} or {Op.ROLLBACK}")
        super().__init__(link, key, table)
        self._op = op

    async def run(self) -> Passage:
        try:
            await self._link.commit_each()
            passage = await (self._commit() if self._op == Op.COMMIT else self._roll_back())
            await self._link.restore()
        except BaseException:
            # In what state it is need not be found out.
            await self._discard()
            raise
        level = logging.DEBUG if passage.runs else logging.INFO
        logger.log(level, "%s, %s: %s", self._key, self._op, passage.meaning)
        return passage

    async def _commit(self) -> Passage:
        statement = dialects.commit(self._link.database, self._xid)
        if await self._ends(statement):
            return Passage.RUN
        for pause_s in _PAUSES_S:
            found = await self._peek()
            if found is not None:
                break
            await self._link.pause(pause_s)
            if await self._ends(statement):
                return Passage.RUN
        else:
            found = await self._claim(keeps=False)
        if found is None:
            raise BranchFailed(
                f"{self._key} cannot be committed: nothing is prepared here, and nothing was committed. Either it was "
                "rolled back by hand, or it was submitted although its action failed"
            )
        if found.reason == Op.ROLLBACK:
            raise BranchFailed(f"{self._key} cannot be committed: it was rolled back before")
        return Passage.DUPLICATE

    async def _roll_back(self) -> Passage:
        statement = dialects.rollback(self._link.database, self._xid)
        was_prepared = await self._ends(statement)
        try:
            found = await self._claim(keeps=True)
        except BranchOngoing:
            # Phase 1 may have ended meanwhile.
            if was_prepared or not await self._ends(statement):
                raise
            was_prepared = True
            found = await self._claim(keeps=True)
        if found is None:
            return Passage.RUN if was_prepared else Passage.EMPTY
        if found.reason == Op.ROLLBACK:
            return Passage.DUPLICATE
        raise BranchFailed(f"{self._key} cannot be rolled back: it was committed before, which was not the coordinator")

    async def _ends(self, statement: str) -> bool:
        try:
            await self._link.run(statement)
        except Exception as error:
            match self._problem(error):
                case Problem.NO_SUCH_XID:
                    return False
                case Problem.BUSY:
                    raise BranchOngoing(f"{self._key}: another connection is ending it") from error
                case _:
                    raise
        return True

    async def _peek(self) -> Found | None:
        if self._link.database is Database.MYSQL:
            # Whatever is usual here: what is prepared can be read uncommitted, too. For the next statement alone.
            await self._link.run("set transaction isolation level read committed")
        return await self._find(self._said.peek)

    async def _claim(self, *, keeps: bool) -> Found | None:
        """Write the row that keeps a late phase 1 from running, unless there is a row; then return that.

        Waits for whoever is writing it, and raises `BranchOngoing` if that takes long.

        Args:
            keeps: otherwise it is only looked whether it could be written.
        """
        if self._link.database is not Database.MYSQL:
            return await self._claimed(keeps=keeps)
        await self._link.run(
            f"set @txcoord_lock_wait = @@session.innodb_lock_wait_timeout, innodb_lock_wait_timeout = {LOCK_WAIT_S}"
        )
        try:
            found = await self._claimed(keeps=keeps)
        except BranchOngoing:
            # This connection may be asked again, and then be lent to others.
            await self._link.run(_OLD_LOCK_WAIT)
            raise
        await self._link.run(_OLD_LOCK_WAIT)
        return found

    async def _claimed(self, *, keeps: bool) -> Found | None:
        await self._link.run("begin")
        try:
            if self._link.database is Database.POSTGRESQL:
                await self._link.run(f"set local lock_timeout = '{LOCK_WAIT_S}s'")
            inserted = await self._insert(self._row(Op.ROLLBACK))
            found = None if inserted else await self._find(self._said.find)
        except Exception as error:
            if self._problem(error) is not Problem.BUSY:
                raise
            await self._link.run("rollback")
            raise BranchOngoing(f"{self._key}: its action is under way, or its connection is not closed yet") from error
        await self._link.run("commit" if keeps else "rollback")
        if not inserted and found is None:
            raise BranchOngoing(f"{self._key}: its row was neither inserted nor found")
        return found


async def prepared_xids(link: Link) -> Collection[str]:
    """Return the names of what is prepared in this database, whosever it is.

    MySQL shows all of the server's, and foreign ones may be bytes of any kind: what is not text
    or has a second part is not ours.
    """
    if link.database is Database.MYSQL:
        names = []
        for _, length, rest, data in await link.rows("xa recover"):
            name = data if isinstance(data, bytes) else str(data).encode("latin-1", errors="replace")
            if not rest and len(name) == length and name.isascii():
                names.append(name.decode())
        return names
    rows = await link.rows("select gid from pg_prepared_xacts where database = current_database()")
    return [str(gid) for (gid,) in rows]


_SAVEPOINT = "txcoord_xa"
_OLD_LOCK_WAIT = "set innodb_lock_wait_timeout = @txcoord_lock_wait"
