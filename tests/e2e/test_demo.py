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

from examples.demo import __main__ as demo
from examples.demo import scenarios
from examples.demo.checks import Check
from examples.demo.shop import Shop
from tests.processes import end, spawn

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0


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


def test_all_orders_end_as_they_must(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "kept"

    with running_demo(log, "--keep", folder) as process:
        code = process.wait(PATIENCE_S)

    shown = log.read_text()
    assert code == 0, shown
    assert "FAILED" not in shown
    for number, scenario in enumerate(scenarios.SCENARIOS, start=1):
        assert f"\n{number}. {scenario.title} ---" in shown
    assert "stock of product 3, 108 before: 88" in shown
    assert re.search(r"/deduct +failure 409 .*\n +no stock: there are not 20 of product 8\n", shown)
    assert re.search(r"order +compensate /order-create-compensate success 200 .* done\n", shown)
    assert "not confirmed, total 1024, product 8, 20 pieces at 99" in shown
    assert "stock of product 8, 10 before: 10" in shown
    assert len(re.findall(r"/deduct +unknown - ", shown)) >= 2
    after_the_kill = shown[shown.index("the coordinator is killed (SIGKILL)") :]
    assert re.search(r"/deduct +success 200 .* skipped: done before\n", after_the_kill)
    assert "stock of product 3, 68 before: 48" in shown
    in_two_phases = shown[shown.index("an order in two phases (TCC)") :]
    assert re.search(r"storage +confirm +/deduct-confirm +success 200 .* done\n", in_two_phases)
    assert "stock of product 3, 48 before: 28" in in_two_phases
    assert re.search(r"storage +cancel +/deduct-cancel +success 200 .* nothing to undo\n", in_two_phases)
    assert re.search(r"order +cancel +/order-create-cancel +success 200 .* done\n", in_two_phases)
    assert max(map(len, shown.splitlines())) <= 100 + len(str(folder))
    assert {"coordinator.db", "order.db", "storage.db", "coordinator.log"} <= {path.name for path in folder.iterdir()}
    assert processes_of(folder) == []


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
        wait_for_text(log, "are running", process)
        # The demo alone, as `kill -9` would: not its children, as `tests.processes.kill` does.
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)

        wait_until_gone(folder)


def test_a_check_that_fails_makes_the_demo_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def it_lies(shop: Shop) -> scenarios.Story:
        story = scenarios.it_succeeds(shop)
        story.checks.append(Check(what="the moon", expected="cheese", found="rock"))
        return story

    lie = scenarios.Scenario(title="a lie", about="It is not so.", run=it_lies)
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
