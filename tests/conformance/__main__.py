"""Make docs/conformance.md from the results of a run, or check it against one.

    python -m tests.conformance REPORT...           write the page, unless a test that counts failed or was not run
    python -m tests.conformance --check REPORT...   fail if the page claims what the run did not show
    python -m tests.conformance --modules           name the test modules that count

A REPORT is what `pytest --junitxml` wrote; with several, later ones win.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conformance.catalogue import CATALOGUE
from tests.conformance.page import TABLES, Page
from tests.conformance.report import read_reports

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"


def modules() -> Sequence[str]:
    """The test modules whose results count."""
    suites = {suite.module for table in TABLES.values() for suite in table.suites}
    return sorted(suites | {test.module for rows in CATALOGUE.values() for row in rows for test in row.tests})


def main(arguments: Sequence[str]) -> int:
    options = {argument for argument in arguments if argument.startswith("-")}
    files = [Path(argument) for argument in arguments if not argument.startswith("-")]
    if options == {"--modules"} and not files:
        sys.stdout.write("\n".join(modules()) + "\n")
        return 0
    if options - {"--check"} or not files:
        sys.stderr.write(__doc__ or "")
        return 2
    if missing := [str(file) for file in files if not file.is_file()]:
        sys.stderr.write(f"no report {', '.join(missing)}: run the tests with --junitxml=FILE\n")
        return 2
    page = Page(read_reports(files))
    if options:
        faults = page.differences(PAGE.read_text())
    elif not (faults := page.faults()):
        PAGE.write_text(page.text())
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    if faults:
        sys.stderr.write("docs/conformance.md is not what this run shows; ./scripts/conformance makes it anew\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
