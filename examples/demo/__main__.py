"""Start a coordinator and the example services, run real transactions of every pattern, and show what happened.

Exits with 0 only if everything ended as it must.
"""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from examples.demo.checks import Check, nothing_is_left
from examples.demo.databases import HOW_TO_SEE_XA, PREPARING, DatabaseError, Databases, may_leave_out
from examples.demo.record import record_of
from examples.demo.scenarios import SCENARIOS
from examples.demo.shop import DemoError, Shop
from examples.demo.story import Scenario
from examples.demo.timeline import WIDTH, lines
from localservers.processes import remove_folder, temporary_folder
from txcoord_sdk import Pattern, TxcoordSdkError

_LOG_LINES = 15


def main() -> int:
    options = command_line().parse_args()
    # A script that starts us in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    scenarios = _chosen(options.pattern)
    console = Console(width=WIDTH, highlight=False, soft_wrap=True)
    try:
        with (
            _folder(options.keep) as folder,
            Databases(
                folder,
                with_server=any(name in PREPARING for scenario in scenarios for name in scenario.needs),
                server=options.xa_server,
                must_prepare=not may_leave_out(),
            ) as databases,
            Shop(folder, databases) as shop,
        ):
            return _run(console, shop, scenarios, stay=options.stay)
    except (DemoError, DatabaseError) as error:
        console.print(f"demo: {error}", style="bold red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--stay", action="store_true", help="leave everything running, until Ctrl-C")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep databases and logs there (a new or empty folder)"
    )
    parser.add_argument(
        "--pattern",
        action="append",
        choices=[str(pattern) for pattern in Pattern],
        help="show this one only (may be given again)",
    )
    parser.add_argument(
        "--xa-server",
        metavar="URL",
        help="a MariaDB, MySQL or PostgreSQL server for XA, on which databases may be made and dropped in the end, "
        "such as mysql://root:password@127.0.0.1:3306/ (default: one of our own, if such a program is installed)",
    )
    return parser


def _chosen(patterns: Sequence[str] | None) -> Sequence[Scenario]:
    return [scenario for scenario in SCENARIOS if not patterns or scenario.pattern in patterns]


def _run(console: Console, shop: Shop, scenarios: Sequence[Scenario], *, stay: bool) -> int:
    began = time.monotonic()
    checks: list[Check] = []
    try:
        _start_first(console, shop, scenarios)
        number = 0
        for scenario in scenarios:
            if scenario.pattern is Pattern.XA and not shop.databases.can_prepare:
                continue
            number += 1
            _begin_those_that_prepare(shop, scenarios)
            checks += _play(console, shop, number, scenario)
        _tell_what_is_left_out(console, shop, scenarios)
        console.print(Text("\nIn the end ".ljust(WIDTH, "-"), style="bold"))
        checks += _shown_checks(console, [nothing_is_left(shop)])
    except (DemoError, DatabaseError, TxcoordSdkError) as error:
        console.print(f"\ndemo: {error}", style="bold red", markup=False)
        _show_logs(console, shop)
        return 1
    failed = [check for check in checks if not check.is_ok]
    passed = len(checks) - len(failed)
    verdict = Text(f"\n{passed} of {len(checks)} checks OK, {time.monotonic() - began:.0f} s")
    console.print(verdict, style="bold red" if failed else "bold green")
    if failed:
        _show_logs(console, shop)
    if stay:
        _stay(console, shop)
    return 1 if failed else 0


def _start_first(console: Console, shop: Shop, scenarios: Sequence[Scenario]) -> None:
    """Start what the first scenario needs, and have the others come up meanwhile."""
    begins = ("coordinator", *(name for name in scenarios[0].needs if name not in PREPARING))
    shop.start(*begins)
    console.print(f"Running: {', '.join(begins)}; databases and logs are in {shop.folder}")
    shop.begin(*(name for scenario in scenarios for name in scenario.needs if name not in PREPARING))


def _begin_those_that_prepare(shop: Shop, scenarios: Sequence[Scenario]) -> None:
    # As soon as their server runs, which starts meanwhile, too.
    if shop.databases.is_settled and shop.databases.can_prepare:
        shop.begin(*(name for scenario in scenarios for name in scenario.needs))


def _tell_what_is_left_out(console: Console, shop: Shop, scenarios: Sequence[Scenario]) -> None:
    if any(scenario.pattern is Pattern.XA for scenario in scenarios) and not shop.databases.can_prepare:
        console.print(Text("\nXA is left out ".ljust(WIDTH + 1, "-"), style="bold yellow"))
        console.print(
            Text(
                textwrap.fill(
                    f"It takes a database that can prepare, and there is none. To see it, {HOW_TO_SEE_XA}", WIDTH
                )
            )
        )


def _play(console: Console, shop: Shop, number: int, scenario: Scenario) -> list[Check]:
    console.print(Text(f"\n{number}. {scenario.title} ".ljust(WIDTH + 1, "-"), style="bold"))
    console.print(Text(textwrap.fill(scenario.about, WIDTH)))
    shop.start(*scenario.needs)
    story = scenario.run(shop)
    console.print(Text(f"gid {story.gid}\n", style="dim"))
    record = record_of(shop, story.gid, initiator=story.initiator)
    for line in lines(record, happened=story.events, initiator=story.initiator):
        console.print(line)
    console.print()
    return _shown_checks(console, story.checks)


def _shown_checks(console: Console, checks: list[Check]) -> list[Check]:
    for check in checks:
        verdict = ("  OK      ", "bold green") if check.is_ok else ("  FAILED  ", "bold red")
        console.print(Text.assemble(verdict, str(check)))
    return checks


def _show_logs(console: Console, shop: Shop) -> None:
    """What the processes said last, for whoever has to find out what went wrong."""
    for name in shop.started:
        log = shop.log(name)
        if log.exists():
            console.print(f"\nlast lines of {log.name}:", style="bold")
            for line in log.read_text(errors="replace").splitlines()[-_LOG_LINES:]:
                console.print(line, markup=False)


def _stay(console: Console, shop: Shop) -> None:
    lines = [line for needs, line in _things_to_try(shop) if needs in shop.started]
    lines += [
        f"the coordinator's view:    curl '{shop.url('coordinator')}/api/dtmsvr/query?gid=GID'",
        f"all it has, newest first:  curl '{shop.url('coordinator')}/api/dtmsvr/all?limit=5'",
        f"logs and SQLite files:     {shop.folder}",
        f"process ids:               {', '.join(f'{name} {shop.pid(name)}' for name in shop.started)}",
    ]
    shown = "".join(f"  {line}\n" for line in lines)
    console.print(f"\nEverything is running, until Ctrl-C.\n\n{shown}", markup=False)
    with suppress(KeyboardInterrupt):
        while True:
            signal.pause()
    console.print("stopping")


def _things_to_try(shop: Shop) -> Iterator[tuple[str, str]]:
    """A line for each thing to try, and the service that it takes."""
    json = "-H 'Content-Type: application/json' -d"
    bank_a, bank_b = shop.url("bank-a"), shop.url("bank-b")
    yield "bff", f"""order something:           curl {shop.url("bff")}/orders {json} '{{"id": 3, "quantity": 5}}'"""
    yield "bff", f"how its saga stands:       curl {shop.url('bff')}/orders/GID"
    yield "order", f"the order itself:          curl {shop.url('order')}/orders/GID"
    yield "storage", f"what is left in stock:     curl {shop.url('storage')}/storages/3"
    yield "users", f"""register somebody:         curl {shop.url("users")}/users {json} '{{"name": "alan"}}'"""
    yield "gift", f"the gift that follows:     curl {shop.url('gift')}/gifts/alan"
    yield "bank-a", f"move money by XA:          {_python()} -m examples.bank transfer {bank_a} {bank_b} 5 \\"
    yield "bank-a", f"                               --coordinator {shop.url('coordinator')}"
    yield "bank-b", f"what is there then:        curl {bank_b}/balance"
    purchase = """'{"customer": "ada", "id": 3, "quantity": 1}'"""
    yield "checkout", f"buy something:             curl {shop.url('checkout')}/checkouts {json} {purchase}"


def _python() -> str:
    """How to name this Python here."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        folder = temporary_folder("txcoord-demo-")
        try:
            yield folder
        finally:
            remove_folder(folder)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise DemoError(f"{keep} is not empty: name a folder of which nothing is needed")
    yield keep.resolve()


def _end(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
