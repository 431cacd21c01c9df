"""`scripts/bench`: transactions end to end, measured as a user would."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.coordinator import (
    RunningStore,
    StoreKind,
    Target,
    other_server,
    prepare_schema,
    running_coordinator,
    running_store,
)
from bench.errors import BenchError
from bench.flows import Load
from bench.machine import describe_machine
from bench.measure import Bench, Run
from bench.participants import participants
from bench.preload import preload_finished
from bench.report import Report
from localservers.processes import ProgramMissingError
from localservers.servers import ServerFailedError

RESULTS = Path(__file__).with_name("results")

HELP = """\
Measure the throughput of transactions, end to end and durable, on this machine.

Sagas of two branches, unless `--pattern` says otherwise, with `wait_result`: each answer means that the saga was
stored, both branches were called over HTTP and the end is on disk. nginx plays both participants. Coordinator,
database, participants and load generator share this machine's cores. A warm-up of 2 s before each run is not counted.

`tcc` is prepare, two registrations and a submit, `msg` prepare and submit of a message with one branch, `grpc-saga`
a saga submitted over gRPC: the clients are then a Python program instead of wrk, which takes more of the machine.

**How to read it**

* **sagas/s** (or what else was chosen): those answered with success. With 1 client it is little more than
  1 / latency, and says what one caller waits for; with 64 it says what the machine can carry.
* **p50, p99**: latency as the client sees it. Clients post the next saga when the last is answered, so under full
  load latency is clients / throughput.
* **errors**: answers that were not 200 with SUCCESS, and broken connections. Any at all spoils the run (exit code 1).
* **CPU µs each**: user and system time of all processes of each part, per transaction. Where they add up to
  cores x 1 s / rate, the machine is full; where they do not, something waits: for the disk, or for one busy core.
* **db transactions each, mean batch**: how well the group commit gathers. One client cannot share a commit: 2 or
  more per saga. Many clients should be far below 1.
* **fsync**: time to sync 4 KiB where the store lies, just before the run. It bounds what one client can reach, and
  two runs compare only if it is alike. A store in memory (tmpfs) is marked: not durable.

The first run after a pause of a laptop or virtual machine is often off: use `--repeat 3` (the row is the run with the
median throughput, ± half the span) and leave the machine alone meanwhile. Figures of different machines do not compare.

Raw results go to bench/results/ as JSON.
"""

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command(help=HELP)
def bench(
    store: Annotated[StoreKind, typer.Option(help="Store; databases are private servers, durable.")] = StoreKind.SQLITE,
    pattern: Annotated[Load, typer.Option(help="What the clients do.")] = Load.SAGA,
    clients: Annotated[str, typer.Option(help="Numbers of clients, one run each.")] = "1,16,64",
    seconds: Annotated[int, typer.Option(min=1, help="Length of each run.")] = 10,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes of the coordinator.")] = 1,
    repeat: Annotated[int, typer.Option(min=1, help="How many times to do all runs.")] = 1,
    preload: Annotated[
        int, typer.Option(min=0, help="How many finished transactions to put into the store first.")
    ] = 0,
    server: Annotated[str, typer.Option(help="Load this DTM-compatible server instead of ours.")] = "",
    server_pid: Annotated[int | None, typer.Option(help="With --server: its process, to see its CPU.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the store lies; kept. Default: a temporary one.")] = None,
    database_setting: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the database server.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the raw results here.")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="One more run, under py-spy: .svg, .json (speedscope) or .txt.")
    ] = None,
) -> None:
    counts = _clients(clients)
    console = Console(stderr=True)
    try:
        with contextlib.ExitStack() as stack:
            if server:
                if preload:
                    raise BenchError("--preload writes into a store of ours: leave it out with --server")
                what, ours, target = server, None, other_server(server, pid=server_pid)
            else:
                ours, target = _start(
                    stack,
                    console,
                    store,
                    processes=processes,
                    preload=preload,
                    folder=folder,
                    settings=database_setting or [],
                )
                what = f"{store}, {processes} process{'es' if processes > 1 else ''}"
            if pattern is Load.GRPC and not target.grpc:
                raise BenchError("--pattern grpc-saga needs a coordinator of ours: leave --server out")
            setup = Bench(target=target, participants=stack.enter_context(participants()), store=ours, load=pattern)
            machine = describe_machine(ours)
            runs = _measure(setup, console, counts=counts, seconds=seconds, repeat=repeat)
            if profile:
                console.print(f"profiling with {max(counts)} clients ...")
                setup.profile(profile, clients=max(counts), seconds=seconds)
    except (BenchError, ServerFailedError, ProgramMissingError) as error:
        console.print(f"[bold red]{error}", soft_wrap=True)
        raise typer.Exit(2) from error
    report = Report(
        load=pattern, server=what, seconds=seconds, repeat=repeat, preloaded=preload, machine=machine, runs=runs
    )
    file = json or RESULTS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{pattern}-{'server' if server else store.value}.json"
    report.write_json(file)
    report.print(Console(width=None if sys.stdout.isatty() else 150))
    console.print(f"raw results: {file}")
    raise typer.Exit(1 if any(run.load.errors for run in runs) else 0)


def _start(
    stack: contextlib.ExitStack,
    console: Console,
    kind: StoreKind,
    *,
    processes: int,
    preload: int,
    folder: Path | None,
    settings: list[str],
) -> tuple[RunningStore, Target]:
    if kind is StoreKind.SQLITE and processes > 1:
        raise BenchError("SQLite runs with one process: use --store mariadb or postgres for more")
    pairs = dict(setting.partition("=")[::2] for setting in settings)
    store = stack.enter_context(running_store(kind, folder=folder, settings=pairs))
    prepare_schema(store)
    if preload:
        with console.status("preloading") as status:
            preload_finished(
                store.url, preload, progress=lambda done: status.update(f"preloading: {done:,} of {preload:,}")
            )
    return store, stack.enter_context(running_coordinator(store, processes=processes))


def _measure(setup: Bench, console: Console, *, counts: list[int], seconds: int, repeat: int) -> list[Run]:
    runs: list[Run] = []
    for turn in range(repeat):
        for count in counts:
            of = f" ({turn + 1} of {repeat})" if repeat > 1 else ""
            console.print(f"clients: {count}, {seconds} s{of} ...")
            runs.append(setup.measure(clients=count, seconds=seconds))
    return runs


def _clients(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise typer.BadParameter(f"--clients {text}: say numbers from 1, e.g. 1,16,64")
    return counts


if __name__ == "__main__":
    app()
