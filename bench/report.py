"""Figures as a table to read and as JSON to keep."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.flows import Load
from bench.machine import Machine
from bench.measure import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one call of the benchmark found out."""

    load: Load
    server: str
    """What was loaded: our store and number of processes, or the URL of another server."""
    seconds: int
    repeat: int
    preloaded: int
    machine: Machine
    runs: Sequence[Run]

    def write_json(self, file: Path) -> None:
        """Write every run, with the machine's description."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def print(self, console: Console) -> None:
        """Print one row for each number of clients: of several runs the one with the median throughput."""
        machine = self.machine
        title = f"{self.load.explanation}: {self.server}"
        if self.preloaded:
            title += f", {self.preloaded:,} finished ones in the store"
        table = Table(title=title, title_justify="left", caption_justify="left")
        for heading in ("clients", f"{self.load}s/s", "p50 ms", "p99 ms", "errors"):
            table.add_column(heading, justify="right")
        for heading in ("coordinator", "store", "participants", "load"):
            table.add_column(f"CPU µs each\n{heading}", justify="right")
        for heading in ("memory\nMiB", "db transactions\neach", "mean\nbatch", "fsync\nµs"):
            table.add_column(heading, justify="right")
        for clients in dict.fromkeys(run.clients for run in self.runs):
            table.add_row(*self._row([run for run in self.runs if run.clients == clients]))
        console.print(table)
        console.print(
            f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB; "
            f"{machine.system}, Linux {machine.kernel}; "
            f"Python {machine.python}; "
            + (f"store on {machine.file_system}; " if machine.file_system else "")
            + f"commit {machine.commit}; {machine.measured_at}",
            soft_wrap=True,
        )
        console.print(", ".join(f"{name} {version}" for name, version in machine.versions.items()), soft_wrap=True)
        if not machine.durable:
            console.print(
                f"[bold red]The store lies in memory ({machine.file_system}): these figures are not durable ones. "
                "Name a folder on a disk with --folder."
            )
        for run in self.runs:
            if run.load.errors:
                console.print(
                    f"[bold red]clients: {run.clients}, errors: {run.load.errors}, the first:[/] "
                    + escape(run.load.first_error),
                    soft_wrap=True,
                )

    def _row(self, runs: Sequence[Run]) -> Sequence[str]:
        run = sorted(runs, key=lambda each: each.per_s)[(len(runs) - 1) // 2]
        rate = f"{run.per_s:,.0f}"
        if len(runs) > 1:
            rates = [each.per_s for each in runs]
            rate += f" ±{100 * (max(rates) - min(rates)) / 2 / statistics.median(rates):.0f}%"
        return (
            str(run.clients),
            rate,
            f"{run.load.p50_us / 1000:.2f}",
            f"{run.load.p99_us / 1000:.2f}",
            str(sum(each.load.errors for each in runs)),
            _number(run.coordinator_cpu_us, ".0f"),
            _number(run.store_cpu_us, ".0f"),
            _number(run.participants_cpu_us, ".0f"),
            _number(run.load_cpu_us, ".0f"),
            _number(None if run.memory_bytes is None else run.memory_bytes / 2**20, ".0f"),
            _number(run.database_transactions, ".3f"),
            _number(run.mean_batch, ".1f"),
            _number(run.fsync_us, ".0f"),
        )


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
