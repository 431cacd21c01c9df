"""The page on conformance claims what a run showed, and a run is held against it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conformance import __main__ as command
from tests.conformance.catalogue import CATALOGUE, OurTest, Row
from tests.conformance.page import TABLES, Page, Table
from tests.conformance.report import Outcome, Result, read_reports
from tests.conformance.suites import Store, Suite

ROOT = Path(__file__).resolve().parents[2]
MODULE = "tests/integration/test_saga.py"
TABLE = Table(
    ("pattern", "client"),
    (Store.SQLITE, Store.MARIADB),
    (Suite(("saga", "wire"), MODULE, lacking="sdk"), Suite(("saga", "SDK"), MODULE, ("sdk",), store=Store.SQLITE)),
)
CASES = {
    "Saga": [Row("TestNormal", [OurTest(MODULE, "test_normal", "mysql")]), Row("TestMongo", note="none: no store")]
}
PASSED, SKIPPED, FAILED = Outcome.PASSED, Outcome.SKIPPED, Outcome.FAILED
ALL = {"test_normal[sqlite]": PASSED, "test_normal[mysql-2]": PASSED, "test_two[mysql]": PASSED, "test_sdk": PASSED}


def page(outcomes: dict[str, Outcome]) -> Page:
    results = [Result(module=MODULE, name=name, outcome=outcome) for name, outcome in outcomes.items()]
    return Page(results, tables={"coordinator": TABLE, "participants": TABLE}, catalogue=CASES)


def rows(text: str) -> Sequence[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_the_page_counts_what_passed_and_names_what_shows_a_row() -> None:
    made = page(ALL)

    assert made.faults() == []
    found = rows(made.text())
    assert found[:3] == ["| pattern | client | SQLite | MariaDB |", "| saga | wire | 1 | 2 |", "| saga | SDK | 1 | - |"]
    assert f"| TestNormal | [`saga: normal [mysql]`](../{MODULE}) |" in found
    assert "| TestMongo | none: no store |" in found
    assert made.differences(made.text()) == []


def test_how_many_there_are_does_not_matter_to_a_check() -> None:
    more = ALL | {f"test_more[mysql-{number}]": PASSED for number in range(40)}

    assert page(more).differences(page(ALL).text()) == []


@pytest.mark.parametrize(
    ("outcomes", "sentence"),
    [
        pytest.param(ALL | {"test_two[mysql]": FAILED}, "::test_two[mysql] failed", id="failed"),
        pytest.param({"test_normal[sqlite]": PASSED, "test_sdk": PASSED}, "TestNormal", id="not run so"),
        pytest.param({name: PASSED for name in ALL if name != "test_sdk"}, "saga, SDK", id="no test of a suite"),
    ],
)
def test_what_failed_or_is_not_there_is_a_fault(outcomes: dict[str, Outcome], sentence: str) -> None:
    for faults in (page(outcomes).faults(), page(outcomes).differences(page(ALL).text())):
        assert any(sentence in fault for fault in faults), faults


def test_what_was_skipped_may_stand_but_not_be_written() -> None:
    here = page({name: SKIPPED if "mysql" in name else outcome for name, outcome in ALL.items()})

    assert here.differences(page(ALL).text()) == []
    assert here.faults() == [f"TestNormal ({MODULE}::test_normal) was skipped"]


def test_a_claim_without_a_test_is_a_difference_and_a_test_without_a_claim_is_none() -> None:
    fewer = {name: outcome for name, outcome in ALL.items() if name != "test_normal[sqlite]"}

    assert set(page(fewer).differences(page(ALL).text())) == {
        "not shown: | saga | wire | 1 | 2 |",
        "not on the page: | saga | wire | - | 2 |",
    }
    assert page(ALL).differences(page(fewer).text()) == []


def test_a_page_whose_lines_are_others_is_not_this_one() -> None:
    text = page(ALL).text()

    assert page(ALL).differences(text.replace("| SDK |", "| nobody |"))
    assert page(ALL).differences(text.replace("none: no store", "none: no time"))
    assert page(ALL).differences(text + "and more\n")


REPORT = """<testsuites><testsuite>
<testcase classname="tests.integration.test_saga" name="test_normal[a.b]" />
<testcase classname="tests.integration.test_saga" name="test_breaks"><failure message="no" /></testcase>
<testcase classname="tests.integration.test_saga" name="test_torn"><error message="at teardown" /></testcase>
<testcase classname="tests.integration.test_saga" name="test_torn" />
<testcase classname="tests.integration.test_saga" name="test_away"><skipped message="no Go" /></testcase>
</testsuite></testsuites>"""


def test_a_report_is_read_as_pytest_writes_it(tmp_path: Path) -> None:
    first, second = tmp_path / "1.xml", tmp_path / "2.xml"
    first.write_text(REPORT)
    second.write_text('<testcase classname="tests.integration.test_saga" name="test_breaks" />')

    assert [(each.function, each.outcome) for each in read_reports([first])] == [
        ("test_normal", PASSED),
        ("test_breaks", FAILED),
        ("test_torn", FAILED),
        ("test_away", SKIPPED),
    ]
    again = read_reports([first, second])
    assert {each.module for each in again} == {MODULE}
    assert [each.parameters for each in again] == ["a.b", "", "", ""]
    assert again[1].outcome is PASSED, "a later run wins"


def test_a_page_with_faults_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, page_file = tmp_path / "report.xml", tmp_path / "page.md"
    report.write_text(REPORT)
    page_file.write_text("as it was")
    monkeypatch.setattr(command, "PAGE", page_file)

    for arguments in ([str(report)], ["--check", str(report)]):
        assert command.main(arguments) == 1
        assert "was not run" in capsys.readouterr().err
    assert command.main([str(tmp_path / "absent.xml")]) == 2
    assert command.main([]) == 2
    assert page_file.read_text() == "as it was"


def test_every_test_that_is_named_is_there() -> None:
    for module in command.modules():
        assert (ROOT / module).is_file()
    for row in (row for rows in CATALOGUE.values() for row in rows):
        assert row.tests or row.note.startswith("none: "), row.name
        for test in row.tests:
            assert re.search(rf"\bdef {test.function}\(", (ROOT / test.module).read_text()), f"{row.name}: {test}"


def test_the_page_has_the_rows_that_tests_are_named_for() -> None:
    text = (ROOT / "docs" / "conformance.md").read_text()

    for row in (row for rows in CATALOGUE.values() for row in rows):
        assert f"| {row.name} |" in text
    for suite in (suite for table in TABLES.values() for suite in table.suites):
        assert f"| {' | '.join(suite.head)} |" in text
