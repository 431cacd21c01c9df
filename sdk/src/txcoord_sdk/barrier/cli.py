"""The command `txcoord-barrier`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from txcoord.errors import TxcoordError
from txcoord_sdk.barrier.connect import cannot_be_used
from txcoord_sdk.barrier.table import create_table_at


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 not done, 2 not understood."""
    options = _parser().parse_args(arguments)
    try:
        name, created = create_table_at(options.url, table=options.table)
    except TxcoordError as error:
        return _fail(str(error))
    except Exception as error:  # noqa: BLE001 (see cannot_be_used)
        return _fail(cannot_be_used(error))
    sys.stdout.write(f"created the barrier table {name}\n" if created else f"the barrier table {name} is there\n")
    return 0


def _fail(sentence: str) -> int:
    sys.stderr.write(f"txcoord-barrier: {sentence}\n")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="txcoord-barrier", description="Look after the barrier table of a service.")
    commands = parser.add_subparsers(required=True, metavar="command")
    create = commands.add_parser("create", help="make the barrier table unless it is there")
    create.add_argument("url", metavar="URL", help="the service's database: sqlite:///…, mysql://… or postgresql://…")
    create.add_argument("--table", help="its name or schema.name (default: dtm_barrier.barrier; SQLite: barrier)")
    return parser
