"""The page, and what it may not claim."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.conformance.catalogue import CATALOGUE, OurTest, Row
from tests.conformance.report import Outcome, Result
from tests.conformance.suites import PARTICIPANTS, PATTERNS, STORES_BY_PARAMETER, Store, Suite

COORDINATOR_STORES = (Store.MEMORY, Store.SQLITE, Store.MARIADB, Store.POSTGRESQL)
PARTICIPANT_STORES = (Store.SQLITE, Store.MARIADB, Store.POSTGRESQL, Store.REDIS)


@dataclass(frozen=True, slots=True)
class Table:
    heads: Sequence[str]
    stores: Sequence[Store]
    suites: Sequence[Suite]


TABLES = {
    "coordinator": Table(("pattern", "protocol", "client"), COORDINATOR_STORES, PATTERNS),
    "participants": Table(("pattern", "what is shown"), PARTICIPANT_STORES, PARTICIPANTS),
}


class Page:
    """Made from the results of a run.

    Args:
        tables, catalogue: what it is about; others in tests of this.
    """

    def __init__(
        self,
        results: Iterable[Result],
        *,
        tables: Mapping[str, Table] = TABLES,
        catalogue: Mapping[str, Sequence[Row]] = CATALOGUE,
    ) -> None:
        self._tables = tables
        self._catalogue = catalogue
        self._by_module: dict[str, list[Result]] = defaultdict(list)
        for result in results:
            self._by_module[result.module].append(result)

    def text(self) -> str:
        return self._text(skipped="-")

    def _text(self, *, skipped: str) -> str:
        tables = {f"{name}_table": "\n".join(_rows(table, self._of, skipped)) for name, table in self._tables.items()}
        lists = "\n".join(line for title, rows in self._catalogue.items() for line in _list(title, rows))
        return _PAGE.format(**tables, lists=lists)

    def faults(self) -> Sequence[str]:
        """Say what keeps the page from being true: what failed, was not run, or was skipped."""
        skipped = (f"{what} was skipped" for what, results in self._claims() if _are_skipped(results))
        return [*self._failures(), *skipped]

    def differences(self, page: str) -> Sequence[str]:
        """Say what a page claims and this run did not show, and which of its lines are not there.

        Numbers do not matter, nor a `-` where this run shows something: that changes with every test.
        What was skipped on this machine is not known, and may stand as it stands.
        """
        claimed, shown = page.splitlines(), self._text(skipped=_UNKNOWN).splitlines()
        return [
            *self._failures(),
            *(f"not shown: {line}" for line in claimed if not any(_holds(line, each) for each in shown)),
            *(f"not on the page: {line}" for line in shown if not any(_holds(each, line) for each in claimed)),
        ]

    def _failures(self) -> Sequence[str]:
        claims = list(self._claims())
        failed = {result for _, results in claims for result in results if result.outcome is Outcome.FAILED}
        return [
            *sorted(f"{result.module}::{result.name} failed" for result in failed),
            *(f"{what} was not run" for what, results in claims if not results),
        ]

    def _claims(self) -> Iterable[tuple[str, Sequence[Result]]]:
        """Everything on the page that tests have to show, and their results."""
        for table in self._tables.values():
            for suite in table.suites:
                yield f"{', '.join(suite.head)} ({suite.module})", self._of(suite)
        for rows in self._catalogue.values():
            for row in rows:
                for test in row.tests:
                    yield f"{row.name} ({test.module}::{test.function})", self._runs(test)

    def _of(self, suite: Suite) -> Sequence[Result]:
        return [result for result in self._by_module.get(suite.module, ()) if suite.counts(result.name)]

    def _runs(self, test: OurTest) -> Sequence[Result]:
        results = self._by_module.get(test.module, ())
        return [each for each in results if each.function == test.function and test.parameters in each.parameters]


def _rows(table: Table, results_of: Callable[[Suite], Sequence[Result]], skipped: str) -> Iterable[str]:
    """A row for each of what stands at its head: several suites may speak for one."""
    yield f"| {' | '.join([*table.heads, *table.stores])} |"
    yield f"|{'---|' * (len(table.heads) + len(table.stores))}"
    by_head: dict[Sequence[str], list[Suite]] = defaultdict(list)
    for suite in table.suites:
        by_head[suite.head].append(suite)
    for head, suites in by_head.items():
        found = {(_store(result, suite), result) for suite in suites for result in results_of(suite)}
        cells = [_cell([result for of, result in found if of is store], skipped) for store in table.stores]
        yield f"| {' | '.join([*head, *cells])} |"


def _cell(results: Sequence[Result], skipped: str) -> str:
    if passed := sum(result.outcome is Outcome.PASSED for result in results):
        return str(passed)
    return skipped if _are_skipped(results) else "-"


def _are_skipped(results: Sequence[Result]) -> bool:
    return bool(results) and all(result.outcome is Outcome.SKIPPED for result in results)


def _store(result: Result, suite: Suite) -> Store | None:
    if suite.store is not None:
        return suite.store
    words = re.split(r"[^a-z0-9]+", result.parameters.lower())
    return next((STORES_BY_PARAMETER[word] for word in words if word in STORES_BY_PARAMETER), None)


def _list(title: str, rows: Sequence[Row]) -> Iterable[str]:
    yield f"\n### {title}\n"
    yield "| DTM's test | ours |"
    yield "|---|---|"
    for row in rows:
        shown = ", ".join(f"[`{_short(test)}`](../{test.module})" for test in row.tests)
        yield f"| {row.name} | {'; '.join(part for part in (shown, row.note) if part)} |"


def _short(test: OurTest) -> str:
    stem = test.module.rpartition("/")[2].removesuffix(".py").removeprefix("test_")
    parameters = f" [{test.parameters}]" if test.parameters else ""
    return f"{stem}: {test.function.removeprefix('test_')}{parameters}"


_UNKNOWN = "§"
"""In place of a cell of which everything was skipped."""


def _holds(claimed: str, shown: str) -> bool:
    """Whether a line of the page says no more than one of this run."""
    cells = [[cell.strip() for cell in line.split("|")] for line in (claimed, shown)]
    return len(cells[0]) == len(cells[1]) and all(map(_cell_holds, *cells))


def _cell_holds(claimed: str, shown: str) -> bool:
    is_result = shown.isdecimal() or shown == _UNKNOWN
    return claimed == shown or (is_result and (claimed.isdecimal() or claimed == "-"))


_PAGE = """\
# Conformance

What the tests show, made from their results by `./scripts/conformance`: do not edit it. CI fails if its own run does
not show what stands here. A number is how many tests passed; `-` means that none is about this.

Where tests are of a pattern, the coordinator is a process of its own, called over sockets; databases are real servers.
The wire protocol is what DTM's clients send, written by hand in our tests; DTM's own clients come from their package
registries and are described in [interop.md](interop.md).

## Patterns, protocols and clients

The columns are where the coordinator keeps transactions.

{coordinator_table}

## The barrier and XA

The columns are the participants' databases.

{participants_table}

## DTM's own tests

Each test that DTM has of its server and of its Go client, and what shows the same or more of ours. Where
[protocol.md](protocol.md) changes something on purpose, such as a 4xx where DTM answers 500, ours show that.
{lists}
"""
