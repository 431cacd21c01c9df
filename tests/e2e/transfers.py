"""A participant for end-to-end tests whose transfers are workflows: a line in its own ledger, then both banks.

It runs as its own process, and may be killed at any moment; what it forgets, its resume endpoint is told.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from txcoord_sdk import AsyncCoordinator, CoordinatorUnreachableError, TransactionFailedError
from txcoord_sdk.barrier import create_table_sync
from txcoord_sdk.starlette import workflow_route
from txcoord_sdk.workflow import AsyncWorkflow, AsyncWorkflows, BranchContext, WorkflowInterruptedError

AMOUNT = 30


class Ledger:
    """What this participant itself keeps of each transfer."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with closing(self._connect()) as connection:
            connection.execute("pragma journal_mode = wal")
            connection.execute("create table if not exists effects (gid text, op text)")
            connection.commit()
            create_table_sync(connection)
            connection.commit()

    async def note(self, branch: BranchContext) -> str:
        await asyncio.to_thread(self._note, branch)
        return branch.gid

    def _note(self, branch: BranchContext) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.execute("insert into effects values (?, ?)", (branch.gid, branch.op))

        with closing(self._connect()) as connection:
            connection.execute("begin immediate")
            branch.barrier.call_sync(connection, write)
            connection.commit()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file, timeout=30)


def app(coordinator: AsyncCoordinator, ledger: Ledger, url: str, banks: dict[str, str]) -> Starlette:
    workflows = AsyncWorkflows(coordinator, resume_url=f"{url}/workflow/resume")

    @workflows.workflow
    async def transfer(wf: AsyncWorkflow, amount: int) -> str:
        said = await wf.branch().on_rollback(ledger.note).step(ledger.note)
        for account, sign in (("out", -1), ("in", 1)):
            payload = {"amount": sign * amount}
            await wf.call(f"{banks[account]}/branch", payload, on_rollback=f"{banks[account]}/branch")
        return said

    async def run(request: Request) -> JSONResponse:
        gid = request.path_params["gid"]
        try:
            return JSONResponse({"result": await transfer.run(AMOUNT, gid=gid)})
        except TransactionFailedError as error:
            return JSONResponse({"reason": error.reason}, status_code=409)
        except (WorkflowInterruptedError, CoordinatorUnreachableError) as error:
            # Whoever asks again is told how it ended.
            return JSONResponse({"reason": error.reason}, status_code=503)

    return Starlette(routes=[Route("/transfers/{gid}", run, methods=["POST"]), workflow_route(workflows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--coordinator", required=True)
    for account in ("out", "in"):
        parser.add_argument(f"--{account}", dest=account, required=True)
    arguments = parser.parse_args()
    participant = app(
        AsyncCoordinator(arguments.coordinator, backoff=0.05),
        Ledger(arguments.file),
        f"http://127.0.0.1:{arguments.port}",
        {account: getattr(arguments, account) for account in ("out", "in")},
    )
    uvicorn.run(participant, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
