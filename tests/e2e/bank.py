"""Participants for end-to-end tests: two accounts services with books of their own.

Each runs as its own process on its own SQLite file, protected by the SDK's barrier. What
really happened is read from their tables, not from what the coordinator says.

Of a saga, an action moves the money and a compensation moves it back; of a workflow, a rollback does
that. Of a TCC, a try freezes it, a confirm moves what is frozen, a cancel thaws it.

They misbehave on purpose, by the gid, so that a run can be repeated: some transfers are
refused, some calls are answered with 500 after their effect was committed.
"""

from __future__ import annotations

import argparse
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from txcoord_sdk.barrier import BranchBarrier, create_table_sync

REFUSED_PERCENT = 15
LOST_ANSWER_PERCENT = 10

OPENING_BALANCE = 1_000_000_000

_MOVES: Mapping[str, tuple[int, int]] = {
    "action": (1, 0),
    "compensate": (-1, 0),
    "rollback": (-1, 0),
    "try": (0, 1),
    "confirm": (1, -1),
    "cancel": (0, -1),
}
"""Op → what becomes of the amount, in the balance and in what is frozen."""


def chance(gid: str, what: str) -> int:
    """A number from 0 to 99 that depends on nothing but its arguments."""
    return zlib.crc32(f"{gid}/{what}".encode()) % 100


def is_refused(gid: str, account: str) -> bool:
    """Whether the account refuses this transfer for good."""
    return chance(gid, f"refuse {account}") < REFUSED_PERCENT


class Account:
    """One account and its book of effects."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self._file = file
        self._answered: set[tuple[str, str]] = set()
        with closing(self._connect()) as connection:
            connection.execute("pragma journal_mode = wal")
            connection.execute("create table if not exists effects (gid text, op text, amount integer)")
            connection.execute("create table if not exists account (balance integer, frozen integer)")
            connection.execute(
                "insert into account select ?, 0 where not exists (select * from account)", (OPENING_BALANCE,)
            )
            connection.commit()
            create_table_sync(connection)
            connection.commit()

    def handle(self, trans_type: str, gid: str, branch_id: str, op: str, amount: int) -> int:
        """Carry out one branch operation; return the HTTP status to answer."""
        if op in ("action", "try") and is_refused(gid, self.name):
            return 409
        moved, frozen = (sign * amount for sign in _MOVES[op])

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("insert into effects values (?, ?, ?)", (gid, op, moved))
            connection.execute("update account set balance = balance + ?, frozen = frozen + ?", (moved, frozen))

        with closing(self._connect()) as connection:
            connection.execute("begin immediate")
            BranchBarrier(trans_type, gid, branch_id, op).call_sync(connection, write)
            connection.commit()
        first = (gid, op) not in self._answered
        self._answered.add((gid, op))
        return 500 if first and chance(gid, f"lose {self.name} {op}") < LOST_ANSWER_PERCENT else 200

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file, timeout=30)


def app(account: Account) -> Starlette:
    async def branch(request: Request) -> JSONResponse:
        query = request.query_params
        body = await request.json()
        status = await run_in_threadpool(
            account.handle, query["trans_type"], query["gid"], query["branch_id"], query["op"], int(body["amount"])
        )
        return JSONResponse({"status": status}, status_code=status)

    return Starlette(routes=[Route("/branch", branch, methods=["POST"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvicorn.run(app(Account(arguments.name, arguments.file)), port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
