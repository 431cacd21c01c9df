"""Start coordinator, order and storage service and BFF, run real orders, and show what happened.

Exits with 0 only if everything ended as it must.
"""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from examples.demo.checks import Check, nothing_is_left
from examples.demo.scenarios import SCENARIOS, Scenario
from examples.demo.shop import DemoError, Shop
from examples.demo.timeline import WIDTH, lines
from tests.processes import remove_folder, temporary_folder
from txcoord_sdk import TxcoordSdkError

_LOG_LINES = 15


def main() -> int:
    options = command_line().parse_args()
    console = Console(width=WIDTH, highlight=False, soft_wrap=True)
    try:
        with _folder(options.keep) as folder, Shop(folder) as shop:
            return _run(console, shop, stay=options.stay)
    except DemoError as error:
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
    return parser


def _run(console: Console, shop: Shop, *, stay: bool) -> int:
    began = time.monotonic()
    checks: list[Check] = []
    try:
        shop.start("coordinator", "order", "storage", "bff")
        console.print(f"Coordinator, order service, storage service and BFF are running, in {shop.folder}")
        for number, scenario in enumerate(SCENARIOS, start=1):
            checks += _play(console, shop, number, scenario)
        console.print(Text("\nIn the end ".ljust(WIDTH, "-"), style="bold"))
        checks += _shown_checks(console, [nothing_is_left(shop)])
    except (DemoError, TxcoordSdkError) as error:
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


def _play(console: Console, shop: Shop, number: int, scenario: Scenario) -> list[Check]:
    console.print(Text(f"\n{number}. {scenario.title} ".ljust(WIDTH + 1, "-"), style="bold"))
    console.print(Text(textwrap.fill(scenario.about, WIDTH)))
    story = scenario.run(shop)
    transaction = shop.coordinator.query(story.gid)
    turned_round_at = shop.turned_round_at(story.gid) if transaction.reason else None
    console.print(Text(f"gid {story.gid}\n", style="dim"))
    for line in lines(transaction, happened=story.events, turned_round_at=turned_round_at, service_at=shop.service_at):
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
    for name in shop.ports:
        log = shop.log(name)
        if log.exists():
            console.print(f"\nlast lines of {log.name}:", style="bold")
            for line in log.read_text(errors="replace").splitlines()[-_LOG_LINES:]:
                console.print(line, markup=False)


def _stay(console: Console, shop: Shop) -> None:
    bff, storage, order, coordinator = (shop.url(name) for name in ("bff", "storage", "order", "coordinator"))
    console.print(
        f"""
Everything is running, until Ctrl-C.

  order something:         curl {bff}/orders -H 'Content-Type: application/json' \\
                                -d '{{"id": 3, "quantity": 5}}'
  how its saga stands:     curl {bff}/orders/GID
  the order itself:        curl {order}/orders/GID
  what is left in stock:   curl {storage}/storages/3
  the coordinator's view:  curl '{coordinator}/api/dtmsvr/query?gid=GID'
  all it has, newest first:  curl '{coordinator}/api/dtmsvr/all?limit=5'
  databases and logs:      {shop.folder}
  process ids:             {", ".join(f"{name} {shop.pid(name)}" for name in shop.ports)}
""",
        markup=False,
    )
    with suppress(KeyboardInterrupt):
        while True:
            signal.pause()
    console.print("stopping")


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
