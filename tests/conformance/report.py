"""The results of a run, from the reports that `pytest --junitxml` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from xml.etree import ElementTree


class Outcome(Enum):
    PASSED = "passed"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one test, with one set of parameters."""

    module: str
    """Its file, from the root of the repository."""
    name: str
    """Of the function; with parameters, these in brackets."""
    outcome: Outcome

    @property
    def function(self) -> str:
        return self.name.partition("[")[0]

    @property
    def parameters(self) -> str:
        return self.name.partition("[")[2].removesuffix("]")


def read_reports(files: Iterable[Path]) -> Sequence[Result]:
    """Read reports in the order of their runs: a test that ran in several counts by the last."""
    found: dict[tuple[str, str], Result] = {}
    for file in files:
        for result in _read(file):
            found[result.module, result.name] = result
    return list(found.values())


def _read(file: Path) -> Iterable[Result]:
    # A test whose teardown fails has a second entry in a report. None may make up for another one.
    found: dict[tuple[str, str], Result] = {}
    for case in ElementTree.parse(file).iter("testcase"):
        result = Result(
            module=case.get("classname", "").replace(".", "/") + ".py",
            name=case.get("name", ""),
            outcome=_outcome({child.tag for child in case}),
        )
        before = found.get((result.module, result.name))
        if before is None or before.outcome is not Outcome.FAILED:
            found[result.module, result.name] = result
    return found.values()


def _outcome(tags: set[str]) -> Outcome:
    if tags & {"failure", "error"}:
        return Outcome.FAILED
    return Outcome.SKIPPED if "skipped" in tags else Outcome.PASSED
