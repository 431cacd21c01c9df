"""What a database is told in the two phases of XA, and what its errors mean."""

from __future__ import annotations

import re
from enum import Enum, auto

from txcoord.barrier.tables import Database


class Problem(Enum):
    """What an error of the database means for a branch."""

    NO_SUCH_XID = auto()
    """Nothing prepared has this name, as far as this connection can see."""
    XID_IN_USE = auto()
    """A transaction of this name is under way, or prepared."""
    BUSY = auto()
    """Somebody holds a lock, or is ending the same transaction: it may be different soon."""


_MYSQL = {
    1397: Problem.NO_SUCH_XID,
    1440: Problem.XID_IN_USE,
    1205: Problem.BUSY,  # the time allowed for a lock is over
    1213: Problem.BUSY,  # deadlock
    1399: Problem.BUSY,  # another connection has it in its hands
}
_POSTGRESQL = {
    "42704": Problem.NO_SUCH_XID,
    "42710": Problem.XID_IN_USE,
    "55P03": Problem.BUSY,  # the time allowed for a lock is over
    "40P01": Problem.BUSY,  # deadlock
    "55000": Problem.BUSY,  # another connection is ending it
}


def problem_of(error: BaseException, database: Database) -> Problem | None:
    """Say what an error of a driver means, also within one of SQLAlchemy's."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if database is Database.MYSQL:
            code = current.args[0] if current.args else None
            if isinstance(code, int) and code in _MYSQL:
                return _MYSQL[code]
        else:
            state = getattr(current, "sqlstate", None) or getattr(current, "pgcode", None)
            if isinstance(state, str):
                return _POSTGRESQL.get(state)
        current = getattr(current, "orig", None) or current.__cause__
    return None


def prepare(database: Database, xid: str) -> str:
    return f"xa prepare '{xid}'" if database is Database.MYSQL else f"prepare transaction '{xid}'"


def commit(database: Database, xid: str) -> str:
    return f"xa commit '{xid}'" if database is Database.MYSQL else f"commit prepared '{xid}'"


def rollback(database: Database, xid: str) -> str:
    return f"xa rollback '{xid}'" if database is Database.MYSQL else f"rollback prepared '{xid}'"


def why_too_old(version: str) -> str:
    """Say why this MySQL or MariaDB cannot keep a promise; empty if it can.

    The older ones roll back what is prepared when its connection closes.
    """
    numbers = [int(number) for number in re.findall(r"\d+", version)[:3]]
    maria = "mariadb" in version.lower()
    least = [10, 5, 2] if maria else [5, 7, 7]
    if numbers >= least:
        return ""
    name = "MariaDB" if maria else "MySQL"
    return (
        f"{name} {version} rolls back a prepared transaction when its connection closes: "
        f"XA needs {'.'.join(map(str, least))} or later"
    )
