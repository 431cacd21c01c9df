"""The command `txcoord-xa`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence

from txcoord.barrier.tables import Database
from txcoord.errors import TxcoordError
from txcoord_sdk.barrier.connect import cannot_be_used, connect
from txcoord_sdk.coordinator import Coordinator
from txcoord_sdk.xa.errors import XaError
from txcoord_sdk.xa.recovery import Leftover, recover_sync

COLUMNS = ("xid", "gid", "branch", "global transaction", "what about it")


def recover_at(
    url: str,
    *,
    coordinator: str | None = None,
    end: bool = False,
    unknown: bool = False,
    gids: Collection[str] = (),
    table: str | None = None,
) -> Sequence[Leftover]:
    """Do what `recover` does, for the database and the coordinator at these URLs.

    Raises:
        TxcoordError: with a sentence for people.
    """
    try:
        client = Coordinator(coordinator)
    except ValueError as error:
        raise XaError(str(error)) from error
    try:
        database, connection = connect(url)
        connection.close()
        if database is Database.SQLITE:
            raise XaError("SQLite has no prepared transactions: name a MySQL, MariaDB or PostgreSQL database")
        with client:
            return recover_sync(lambda: connect(url)[1], client, end=end, unknown=unknown, gids=gids, table=table)
    except TxcoordError:
        raise
    except Exception as error:
        raise XaError(cannot_be_used(error)) from error


def row(leftover: Leftover) -> tuple[str, ...]:
    """What is shown of one, in the order of `COLUMNS`."""
    key = leftover.key
    return (
        leftover.xid,
        key.gid if key else "?",
        key.branch_id if key else "?",
        str(leftover.status or "unknown"),
        leftover.meaning,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 nothing is left to do, 1 something is, or it failed."""
    options = _parser().parse_args(arguments)
    try:
        found = recover_at(
            options.url,
            coordinator=options.coordinator,
            end=options.end,
            unknown=options.unknown,
            gids=options.gid,
            table=options.table,
        )
    except TxcoordError as error:
        sys.stderr.write(f"txcoord-xa: {error}\n")
        return 1
    sys.stdout.write(_table(found))
    return 0 if all(leftover.is_settled for leftover in found) else 1


def _table(found: Sequence[Leftover]) -> str:
    if not found:
        return "no prepared transaction of ours\n"
    lines = [COLUMNS, *map(row, found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="txcoord-xa", description="Look after the XA branches of a service.")
    commands = parser.add_subparsers(required=True, metavar="command")
    recover = commands.add_parser("recover", help="show prepared transactions that nobody will end, and end them")
    recover.add_argument(
        "--url", required=True, metavar="URL", help="the service's database: mysql://… or postgresql://…"
    )
    recover.add_argument("--coordinator", metavar="URL", help="default: TXCOORD_URL, or http://127.0.0.1:36789")
    recover.add_argument("--end", action="store_true", help="commit what has succeeded, roll back what has failed")
    recover.add_argument(
        "--unknown", action="store_true", help="with --end, roll back what the coordinator does not know"
    )
    recover.add_argument(
        "--gid", action="append", default=[], help="a gid that the transaction's name does not show; repeatable"
    )
    recover.add_argument("--table", help="the barrier table, as name or schema.name (default: dtm_barrier.barrier)")
    return parser
