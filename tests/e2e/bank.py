"""Participants for end-to-end tests: two accounts services with books of their own.

Each runs as its own process on its own database, protected by the SDK's barrier. What really happened is read
from their tables, not from what the coordinator says.

Of a saga, an action moves the money and a compensation moves it back; of a workflow, a rollback does that. Of a TCC,
a try freezes it, a confirm moves what is frozen, a cancel thaws it. Of a message, `out` is the sender: it moves its
money in a local transaction. Of XA, it is moved in a transaction that the database prepares.

They misbehave on purpose, by the gid, so that a run can be repeated: some transfers are
refused, some calls are answered with 500 after their effect was committed.
"""

from __future__ import annotations

import argparse
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from txcoord_sdk import Coordinator, Message, TransactionFailedError, TxcoordSdkError
from txcoord_sdk.barrier import BranchBarrier, create_table_at, create_table_sync
from txcoord_sdk.branch import BranchFailed
from txcoord_sdk.starlette import query_prepared_route, xa_route

REFUSED_PERCENT = 15
LOST_ANSWER_PERCENT = 10

OPENING_BALANCE = 1_000_000_000
XA_ACCOUNTS = 64
"""So many share the money where a transfer locks a row until its end."""

BARRIER = "barrier"
"""The barrier's table, where the account is on a server."""

_DRIVERS = {"mysql": "mysql+pymysql", "postgresql": "postgresql+psycopg"}

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
    """One account on SQLite, and its book of effects."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self._file = file
        self._answered: set[tuple[str, str]] = set()
        with closing(self.connect()) as connection:
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
        # A message is certain once it was sent: only its sender may refuse.
        if trans_type != "msg" and op in ("action", "try") and is_refused(gid, self.name):
            return 409
        with closing(self.connect()) as connection:
            connection.execute("begin immediate")
            write = partial(self.write, gid=gid, op=op, amount=amount)
            BranchBarrier(trans_type, gid, branch_id, op).call_sync(connection, write)
            connection.commit()
        first = (gid, op) not in self._answered
        self._answered.add((gid, op))
        return 500 if first and chance(gid, f"lose {self.name} {op}") < LOST_ANSWER_PERCENT else 200

    def write(self, connection: sqlite3.Connection, *, gid: str, op: str, amount: int) -> None:
        moved, frozen = (sign * amount for sign in _MOVES[op])
        connection.execute("insert into effects values (?, ?, ?)", (gid, op, moved))
        connection.execute("update account set balance = balance + ?, frozen = frozen + ?", (moved, frozen))

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file, timeout=30)


class Sender:
    """What an account needs to begin transfers of its own: it sends messages."""

    def __init__(self, account: Account, *, url: str, coordinator: str) -> None:
        self._account = account
        self._url = url
        # Left to others soon: whoever is interrupted is taken up again.
        self._coordinator = Coordinator(coordinator, timeout=3, attempts=2, backoff=0.05)
        self.routes = [
            Route("/send", self._answer, methods=["POST"]),
            query_prepared_route(lambda: closing(account.connect())),
        ]

    def _send(self, gid: str, amount: int, to: str) -> None:
        def write(connection: sqlite3.Connection) -> None:
            if is_refused(gid, self._account.name):
                raise BranchFailed(f"{self._account.name} refuses")
            self._account.write(connection, gid=gid, op="action", amount=-amount)

        message = Message(gid, timeout_to_fail=1, retry_interval=1)
        message.step(to, {"amount": amount})
        with closing(self._account.connect()) as connection:
            self._coordinator.do_and_submit(message, f"{self._url}/query-prepared", connection, write)

    async def _answer(self, request: Request) -> JSONResponse:
        body = await request.json()
        try:
            await run_in_threadpool(self._send, body["gid"], body["amount"], body["to"])
        except (BranchFailed, TransactionFailedError):
            return JSONResponse({}, status_code=409)
        except TxcoordSdkError as error:
            return JSONResponse({"error": str(error)}, status_code=500)
        return JSONResponse({})


def app(account: Account, sender: Sender | None) -> Starlette:
    async def branch(request: Request) -> JSONResponse:
        query = request.query_params
        body = await request.json()
        status = await run_in_threadpool(
            account.handle, query["trans_type"], query["gid"], query["branch_id"], query["op"], int(body["amount"])
        )
        return JSONResponse({"status": status}, status_code=status)

    routes = [Route("/branch", branch, methods=["POST"])]
    return Starlette(routes=[*routes, *(sender.routes if sender else [])])


# -- on a server, for XA -------------------------------------------------------------------


def open_xa_account(url: str) -> None:
    """Make the tables of an account in an empty database of a server."""
    create_table_at(url, table=BARRIER)
    engine = xa_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("create table effects (gid varchar(64), op varchar(16), amount int)"))
        connection.execute(sa.text("create table account (id int primary key, balance bigint)"))
        rows = [{"id": number, "balance": OPENING_BALANCE if number == 0 else 0} for number in range(XA_ACCOUNTS)]
        connection.execute(sa.text("insert into account values (:id, :balance)"), rows)
    engine.dispose()


def xa_engine(url: str) -> sa.Engine:
    scheme, rest = url.split("://", 1)
    return sa.create_engine(f"{_DRIVERS[scheme]}://{rest}")


def xa_app(name: str, url: str) -> Starlette:
    def work(connection: sa.Connection, transfer: dict[str, Any]) -> None:
        gid, amount = transfer["gid"], transfer["amount"]
        if is_refused(gid, name):
            raise BranchFailed(f"{name} refuses")
        values = {"gid": gid, "amount": amount, "id": zlib.crc32(gid.encode()) % XA_ACCOUNTS}
        connection.execute(sa.text("insert into effects values (:gid, 'action', :amount)"), values)
        connection.execute(sa.text("update account set balance = balance + :amount where id = :id"), values)

    return Starlette(routes=[xa_route("/branch", xa_engine(url), work, table=BARRIER)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("database", help="a file, or the URL of a database on a server: for XA")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--coordinator", help="its URL, for one that begins transfers itself")
    arguments = parser.parse_args()
    if "://" in arguments.database:
        served = xa_app(arguments.name, arguments.database)
    else:
        account = Account(arguments.name, Path(arguments.database))
        url = f"http://127.0.0.1:{arguments.port}"
        served = app(
            account,
            Sender(account, url=url, coordinator=arguments.coordinator) if arguments.coordinator else None,
        )
    uvicorn.run(served, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
