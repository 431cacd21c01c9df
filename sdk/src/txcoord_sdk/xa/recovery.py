"""Find prepared transactions that nobody will end, and end them.

The coordinator ends what it knows, however long that takes. What is left over can only be of a
global transaction that it has ended without this branch (a participant that lied, a database restored
from a backup, a branch given up by hand) or does not know (a coordinator set up anew). Such
a transaction holds its locks for ever.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from txcoord.barrier.tables import Database, table_name
from txcoord.model import Op, OpStatus, Pattern, Status
from txcoord.xa.xid import HashedXid, XaKey, read_xid, xid_of
from txcoord_sdk.barrier.drivers.base import run_now
from txcoord_sdk.branch import BranchFailed, BranchOngoing
from txcoord_sdk.coordinator import AsyncCoordinator, Coordinator
from txcoord_sdk.errors import TransactionNotFoundError
from txcoord_sdk.results import Transaction
from txcoord_sdk.xa.links import BorrowedLink, Link, Source
from txcoord_sdk.xa.phases import finish, finish_sync, prepared_xids

_PATTERNS = (Pattern.XA, Pattern.WORKFLOW)


class Fate(StrEnum):
    """What is to become of a prepared transaction."""

    COMMIT = "commit"
    """Its global transaction has succeeded, or was stopped by hand while it was being committed."""
    ROLLBACK = "rollback"
    """Its global transaction has failed, or has succeeded without it."""
    WAIT = "wait"
    """Its global transaction has not ended: the coordinator will see to it."""
    UNKNOWN = "unknown"
    """The coordinator does not know it: it never did, or has removed it since. It is rolled back if
    the caller says so."""
    UNNAMED = "unnamed"
    """Its name does not tell its gid; name the gid to find out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A prepared transaction of ours in a database."""

    xid: str
    key: XaKey | None
    """None if it is unnamed."""
    fate: Fate
    status: Status | None = None
    """Of the global transaction; None if the coordinator does not know it."""
    ended: Op | None = None
    """`commit` or `rollback`, if it was ended now."""
    problem: str = ""
    """Why it could not be ended."""

    @property
    def is_settled(self) -> bool:
        """Whether nobody has to do anything about it."""
        return self.fate is Fate.WAIT or self.ended is not None

    @property
    def meaning(self) -> str:
        """One clause for people: what was done, or is to be done."""
        if self.ended is not None:
            return _DONE[self.ended]
        return self.problem or _TO_DO[self.fate]


_DONE = {Op.COMMIT: "committed", Op.ROLLBACK: "rolled back"}
_TO_DO = {
    Fate.COMMIT: "is to be committed (--end)",
    Fate.ROLLBACK: "is to be rolled back (--end)",
    Fate.WAIT: "the coordinator will end it",
    Fate.UNKNOWN: "the coordinator does not know it: roll back (--end --unknown) if that is the right one",
    Fate.UNNAMED: "its name does not tell its gid: name that (--gid)",
}


async def recover(
    source: Source,
    coordinator: AsyncCoordinator,
    *,
    end: bool = False,
    unknown: bool = False,
    gids: Collection[str] = (),
    table: str | None = None,
) -> Sequence[Leftover]:
    """Show the prepared transactions of a database with what the coordinator says of them; end them if asked to.

    Only those are looked at that have a name of ours and have written to the barrier table: whatever else
    is prepared in the database is neither shown nor touched.

    Args:
        source: the database, as for `prepare`. In MySQL the user needs the privilege XA_RECOVER_ADMIN.
        end: commit those whose global transaction has succeeded, roll back those whose has failed.
        unknown: with `end`, also roll back those that the coordinator does not know. Make sure first that
            it is the right coordinator, and that it has not removed what had succeeded long ago.
        gids: global transactions whose gid is too long or too unusual to be read from a name.
        table: the barrier table, if it is not DTM's.

    Raises:
        CoordinatorUnreachableError: it could not be asked. Those before it may have been ended.
        XaError: the database, or the source, cannot do XA.
    """

    async def ask(gid: str) -> Transaction | None:
        try:
            return await coordinator.query(gid)
        except TransactionNotFoundError:
            return None

    async def finish_it(key: XaKey, op: Op) -> None:
        await finish(source, key, op, table=table)

    async with BorrowedLink(source, is_async=True) as link:
        found = await _ours(link, gids, ask, table)
    return await _each(found, ask, finish_it, end=end, unknown=unknown)


def recover_sync(
    source: Source,
    coordinator: Coordinator,
    *,
    end: bool = False,
    unknown: bool = False,
    gids: Collection[str] = (),
    table: str | None = None,
) -> Sequence[Leftover]:
    """Do what `recover` does, on blocking connections."""

    async def ask(gid: str) -> Transaction | None:
        try:
            return coordinator.query(gid)
        except TransactionNotFoundError:
            return None

    async def finish_it(key: XaKey, op: Op) -> None:
        finish_sync(source, key, op, table=table)

    async def run() -> Sequence[Leftover]:
        async with BorrowedLink(source, is_async=False) as link:
            found = await _ours(link, gids, ask, table)
        return await _each(found, ask, finish_it, end=end, unknown=unknown)

    return run_now(run())


_Ask = Callable[[str], Awaitable[Transaction | None]]
_Found = dict[str, XaKey | None]
"""xid → which branch it is, if that is known."""


async def _each(
    found: _Found, ask: _Ask, finish_it: Callable[[XaKey, Op], Awaitable[None]], *, end: bool, unknown: bool
) -> Sequence[Leftover]:
    shown = []
    for xid, key in sorted(found.items()):
        leftover = _judged(xid, key, await ask(key.gid) if key is not None else None)
        op = _op_for(leftover.fate, unknown=unknown) if end else None
        if op is not None and key is not None:
            leftover = await _ended(leftover, key, op, finish_it)
        shown.append(leftover)
    return shown


def _judged(xid: str, key: XaKey | None, transaction: Transaction | None) -> Leftover:
    if key is None:
        return Leftover(xid=xid, key=None, fate=Fate.UNNAMED)
    if transaction is None:
        return Leftover(xid=xid, key=key, fate=Fate.UNKNOWN)
    match transaction.status:
        case Status.SUCCEEDED | Status.FAILED if transaction.pattern not in _PATTERNS:
            fate = Fate.UNKNOWN  # a namesake, or another coordinator's
        case Status.SUCCEEDED:
            fate = _fate_in_success(key, transaction)
        case Status.FAILED:
            # It can be stopped by hand while its branches are being committed: then all of them are to be.
            is_committed = any(
                branch.op == Op.COMMIT and (branch.attempts or branch.status is OpStatus.SUCCEEDED)
                for branch in transaction.branches
            )
            fate = Fate.COMMIT if is_committed else Fate.ROLLBACK
        case _:
            fate = Fate.WAIT
    return Leftover(xid=xid, key=key, fate=fate, status=transaction.status)


def _fate_in_success(key: XaKey, transaction: Transaction) -> Fate:
    own = [branch for branch in transaction.branches if branch.branch_id == key.branch_id]
    # One that it did not commit it does not know.
    if not own:
        return Fate.UNKNOWN
    # A workflow may succeed although a step was refused.
    is_refused = any(branch.op == Op.ACTION and branch.status is OpStatus.FAILED for branch in own)
    return Fate.ROLLBACK if is_refused else Fate.COMMIT


def _op_for(fate: Fate, *, unknown: bool) -> Op | None:
    match fate:
        case Fate.COMMIT:
            return Op.COMMIT
        case Fate.ROLLBACK:
            return Op.ROLLBACK
        case Fate.UNKNOWN if unknown:
            return Op.ROLLBACK
        case _:
            return None


async def _ended(leftover: Leftover, key: XaKey, op: Op, finish_it: Callable[[XaKey, Op], Awaitable[None]]) -> Leftover:
    try:
        await finish_it(key, op)
    except (BranchFailed, BranchOngoing) as error:
        return replace(leftover, problem=str(error))
    return replace(leftover, ended=op)


async def _ours(link: Link, gids: Collection[str], ask: _Ask, table: str | None) -> _Found:
    known = {xid_of(key, link.database): key for key in await _branches_of(gids, ask)}
    name = table_name(link.database, table)
    try:
        await link.commit_each()
        is_mysql = link.database is Database.MYSQL
        found = await (_ours_in_mysql(link, name, known) if is_mysql else _ours_in_postgresql(link, name, known))
        await link.restore()
    except BaseException:
        # Whoever has it next must not find that it commits each statement, or reads what is not committed.
        link.is_discarded = True
        await link.discard()
        raise
    return found


async def _branches_of(gids: Collection[str], ask: _Ask) -> Sequence[XaKey]:
    found = [(gid, await ask(gid)) for gid in gids]
    return [
        XaKey(gid=gid, branch_id=branch.branch_id)
        for gid, transaction in found
        if transaction is not None
        for branch in transaction.branches
    ]


async def _ours_in_mysql(link: Link, table: str, known: Mapping[str, XaKey]) -> _Found:
    # The rows of what is prepared can be seen only so; for one transaction.
    await link.run("set transaction isolation level read uncommitted")
    await link.run("begin")
    found: _Found = {}
    for xid in await prepared_xids(link):
        match read_xid(xid):
            case XaKey(gid=gid):
                where = f"gid = '{gid}'"
            case HashedXid(prefix=prefix) if xid not in known and prefix:
                where = f"gid like concat('{prefix}', char(37))"  # the percent sign, which drivers take for a mark
            case HashedXid():
                found[xid] = known.get(xid)
                continue
            case None:
                continue
        # What stands between the quotes is harmless, see `xid_of`, and the table's name was checked.
        rows = await link.rows(f"select gid, branch_id from {table} where op = 'action' and {where}")  # noqa: S608
        keys = (XaKey(gid=_text(gid), branch_id=_text(branch_id)) for gid, branch_id in rows)
        key = next((key for key in keys if xid_of(key, link.database) == xid), None)
        if key is not None or isinstance(read_xid(xid), HashedXid):
            found[xid] = key
    await link.run("commit")
    return found


async def _ours_in_postgresql(link: Link, table: str, known: Mapping[str, XaKey]) -> _Found:
    # Its row cannot be seen, but the lock that its insert took on the table can: it is held
    # by the same virtual transaction as the lock on its number, and by no process.
    rows = await link.rows(
        "select p.gid from pg_prepared_xacts p where p.database = current_database() and exists ("  # noqa: S608
        "select 1 from pg_locks x join pg_locks l on l.virtualtransaction = x.virtualtransaction "
        "where x.transactionid = p.transaction and x.mode = 'ExclusiveLock' and x.pid is null and l.pid is null "
        f"and l.relation = to_regclass('{table}') and l.mode = 'RowExclusiveLock')"
    )
    found: _Found = {}
    for (xid,) in rows:
        match read_xid(xid):
            case XaKey() as key:
                found[xid] = key
            case HashedXid():
                found[xid] = known.get(xid)
            case None:
                pass
    return found


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
