"""The demo, run as a user runs it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.engine import make_url

from examples.demo import __main__ as demo
from examples.demo import databases, orders, scenarios
from examples.demo.checks import Check
from examples.demo.shop import Shop
from examples.demo.story import Scenario, Story
from localservers.processes import end, spawn
from localservers.servers import Server
from txcoord_sdk import Pattern

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0


@contextmanager
def running_demo(log: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    process = spawn([sys.executable, "-m", "examples.demo", *arguments], log=log, cwd=ROOT)
    try:
        yield process
    finally:
        end(process)


def wait_for_text(log: Path, text: str, process: subprocess.Popen[bytes]) -> str:
    give_up_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_at and process.poll() is None:
        if text in (shown := log.read_text()):
            return shown
        time.sleep(0.05)
    raise AssertionError(f"the demo did not say {text!r}:\n{log.read_text()}")


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder, which the commands of all the demo's processes with a database do."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode()
            if str(folder) in command and "examples.demo --" not in command:
                found.append(command)
    return found


def wait_until_gone(folder: Path) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while left := processes_of(folder):
        assert time.monotonic() < give_up_at, f"still running: {left}"
        time.sleep(0.05)


def test_all_ends_as_it_must(tmp_path: Path, mariadb_server: Server) -> None:
    log, folder = tmp_path / "log", tmp_path / "kept"
    server = mariadb_server.database_url("")

    with running_demo(log, "--keep", folder, "--xa-server", server) as process:
        code = process.wait(PATIENCE_S)

    shown = log.read_text()
    assert code == 0, shown
    assert "FAILED" not in shown
    for number, scenario in enumerate(scenarios.SCENARIOS, start=1):
        assert f"\n{number}. {scenario.title} ---" in shown
    assert {scenario.pattern for scenario in scenarios.SCENARIOS} == set(Pattern)
    _sagas_are_shown(shown)
    _tcc_is_shown(shown)
    _messages_are_shown(shown)
    _xa_is_shown(shown)
    _workflows_are_shown(shown)
    assert max(map(len, shown.splitlines())) <= 100 + len(str(folder))
    assert {"coordinator.db", "order.db", "storage.db", "coordinator.log"} <= {path.name for path in folder.iterdir()}
    assert "txcoord_demo" not in _databases_of(mariadb_server)
    assert processes_of(folder) == []


def _sagas_are_shown(shown: str) -> None:
    assert "stock of product 3, 108 before: 88" in shown
    assert re.search(r"/deduct +failure 409 .*\n +no stock: there are not 20 of product 8\n", shown)
    assert re.search(r"order +compensate /order-create-compensate success 200 .* done\n", shown)
    assert "not confirmed, total 1024, product 8, 20 pieces at 99" in shown
    assert "stock of product 8, 10 before: 10" in shown
    assert len(re.findall(r"/deduct +unknown - ", shown)) >= 2
    after_the_kill = shown[shown.index("the coordinator is killed (SIGKILL)") :]
    assert re.search(r"/deduct +success 200 .* skipped: done before\n", after_the_kill)
    assert "stock of product 3, 68 before: 48" in shown


def _tcc_is_shown(shown: str, *, before: int = 48) -> None:
    told = told_of(shown, Pattern.TCC)
    assert re.search(r"storage +try +/deduct-try +success 200 .* \(by bff\)\n", told)
    assert re.search(r"storage +confirm +/deduct-confirm +success 200 .* done\n", told)
    assert f"stock of product 3, {before} before: {before - 20}" in told
    assert re.search(r"storage +try +/deduct-try +failure 409 ", told)
    assert re.search(r"storage +cancel +/deduct-cancel +success 200 .* nothing to undo\n", told)
    assert re.search(r"order +cancel +/order-create-cancel +success 200 .* done\n", told)


def _messages_are_shown(shown: str) -> None:
    told = told_of(shown, Pattern.MSG)
    assert re.search(r"gift +action +/grant +success 200 .* done\n", told)
    assert "for NameTakenError: there is a user ada already" in told
    assert re.search(r"users +msg +/query-prepared +success 200 ", told)
    assert "rows of grace in the mail database: 1" in told
    assert "its reason: gave up branch 02 (called 2 times in vain)" in told


def _xa_is_shown(shown: str) -> None:
    told = told_of(shown, Pattern.XA)
    assert re.search(r"bank-a +action +/withdraw +success 200 .* \(by customer\)\n", told)
    assert "what others saw of it then: bank-a 100, bank-b 100" in told
    assert re.search(r"bank-b +commit +/deposit +success 200 ", told)
    assert "balance at bank-b, 100 before: 130" in told
    assert re.search(r"bank-a +rollback +/withdraw +success 200 ", told)
    assert "balance at bank-a, 70 before: 70" in told


def _workflows_are_shown(shown: str) -> None:
    told = told_of(shown, Pattern.WORKFLOW)
    assert re.search(r"storage +commit +/deduct-confirm +success 200 ", told)
    assert re.search(r"checkout +commit +its own branch 03 +success ", told), "by XA, there is a commit of its own"
    assert "for step 03 (pay) failed: bob has not got 396" in told
    after_the_kill = told[told.index("the checkout service is killed") :]
    assert re.search(r"storage +action +/deduct-try +success 200 .* skipped: done before\n", after_the_kill)
    assert "purse of ada, 9604 before: 9208" in told


def told_of(shown: str, pattern: Pattern) -> str:
    """What is shown of a pattern's scenarios."""
    titles = [scenario.title for scenario in scenarios.SCENARIOS]
    first = next(number for number, scenario in enumerate(scenarios.SCENARIOS) if scenario.pattern is pattern)
    rest = [number for number in range(first, len(titles)) if scenarios.SCENARIOS[number].pattern is not pattern]
    begin = shown.index(f". {titles[first]} ---")
    ends = [shown.find(f". {titles[number]} ---") for number in rest] + [shown.index("In the end ---")]
    return shown[begin : min(end for end in ends if end > begin)]


def _databases_of(server: Server) -> str:
    engine = create_engine(make_url(server.database_url("")).set(drivername="mysql+pymysql"), poolclass=NullPool)
    with engine.connect() as connection:
        return str(connection.execute(text("show databases")).all())


def test_one_pattern_can_be_shown_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"

    with running_demo(log, "--pattern", "tcc") as process:
        code = process.wait(PATIENCE_S)

    shown = log.read_text()
    assert code == 0, shown
    _tcc_is_shown(shown, before=108)
    titles = [scenario.title for scenario in scenarios.SCENARIOS if scenario.pattern is Pattern.TCC]
    assert re.findall(r"^\d+\. (.*?) -+$", shown, re.MULTILINE) == titles


def test_without_a_server_xa_is_left_out_and_the_demo_says_how_to_see_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(databases, "_KINDS", ())
    monkeypatch.setattr(sys, "argv", ["demo", "--pattern", "xa", "--pattern", "workflow"])
    monkeypatch.delenv("CI", raising=False)

    assert demo.main() == 0

    shown = capsys.readouterr().out
    assert "XA is left out ---" in shown
    assert "install PostgreSQL or MariaDB" in shown
    assert "money moves between two banks" not in shown
    assert "purse of ada, 10000 before: 9604" in shown, "the checkout has another way"


def test_in_ci_xa_is_not_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(databases, "_KINDS", ())
    monkeypatch.setattr(sys, "argv", ["demo", "--pattern", "xa"])
    monkeypatch.setenv("CI", "true")

    assert demo.main() == 1

    assert "there is no server for XA, and in CI nothing may be left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "said"),
    [
        pytest.param("sqlite:///xa.db", "--xa-server is to look like", id="of another kind"),
        pytest.param("mysql://root@127.0.0.1:1/", "no database can be made on the server for XA", id="nobody there"),
        pytest.param("postgresql://me@127.0.0.1:1/", "the server for XA cannot be used", id="nobody there either"),
    ],
)
def test_a_server_that_is_of_no_use_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--pattern", "xa", "--xa-server", url])

    assert demo.main() == 1

    assert said in capsys.readouterr().out.replace("\n", " ")


def test_with_stay_orders_can_be_made_by_hand_until_it_is_stopped(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "kept"

    with running_demo(log, "--stay", "--keep", folder) as process:
        shown = wait_for_text(log, "process ids:", process)
        [orders] = re.findall(r"curl (http://\S+/orders) -H", shown)
        answer = httpx.post(orders, json={"id": 3, "quantity": 5}, timeout=PATIENCE_S)
        state = httpx.get(f"{orders}/{answer.json()['gid']}", timeout=PATIENCE_S)
        process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE_S)

    assert (answer.status_code, state.json()["status"]) == (200, "succeed")
    assert code == 0
    assert processes_of(folder) == []


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_a_demo_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "kept"

    with running_demo(log, "--keep", folder) as process:
        wait_for_text(log, "Running: ", process)
        # The demo alone, as `kill -9` would: not its children, as `localservers.processes.kill` does.
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)

        wait_until_gone(folder)


def test_a_check_that_fails_makes_the_demo_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def it_lies(shop: Shop) -> Story:
        story = orders.it_succeeds(shop)
        story.checks.append(Check(what="the moon", expected="cheese", found="rock"))
        return story

    lie = Scenario(
        pattern=Pattern.SAGA, title="a lie", about="It is not so.", run=it_lies, needs=("order", "storage", "bff")
    )
    monkeypatch.setattr(demo, "SCENARIOS", (lie,))
    monkeypatch.setattr(sys, "argv", ["demo", "--keep", str(tmp_path / "kept")])

    assert demo.main() == 1

    shown = capsys.readouterr().out
    assert "FAILED  the moon: rock, and not cheese" in shown
    assert "5 of 6 checks OK" in shown
    assert "last lines of coordinator.log" in shown


def test_a_folder_that_is_in_use_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "order.db").write_text("precious")
    monkeypatch.setattr(sys, "argv", ["demo", "--keep", str(tmp_path)])

    assert demo.main() == 1

    assert f"{tmp_path} is not empty" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "order.db").read_text() == "precious"
