"""The processes of the demo: a coordinator, the order and storage services, and the BFF."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tests.processes import end, free_port, kill, spawn
from txcoord_sdk import Coordinator, Status

ROOT = Path(__file__).parents[2]

PATIENCE_S = 40.0
"""Everything here takes a second or two; a busy machine may need longer."""

_LOOK_AGAIN_S = 0.05


class DemoError(Exception):
    """The demo could not go on; the sentence says why."""


class Shop:
    """All processes, on free ports, with their databases and logs in one folder. Use it with `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("coordinator", "order", "storage", "bff")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.coordinator = Coordinator(self.url("coordinator"))

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *_: object) -> None:
        self.coordinator.close()
        # In this order the ones that call go before the ones that are called.
        for name in ("bff", "coordinator", "order", "storage"):
            if name in self._processes:
                end(self._processes[name])

    # -- processes -------------------------------------------------------------------

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def service_at(self, url: str) -> str:
        """Name the service that a branch's URL leads to."""
        port = httpx.URL(url).port
        return next((name for name, its in self.ports.items() if its == port), str(port))

    def start(self, *names: str) -> None:
        """Start these at once, and return when all of them are ready."""
        for name in names:
            self._processes[name] = spawn(
                [sys.executable, "-m", *self._command(name)], log=self.log(name), cwd=ROOT, env=_environment()
            )
        for name in names:
            self._wait_until_ready(name)

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut would."""
        kill(self._processes[name])

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def _command(self, name: str) -> Sequence[str]:
        listen = ["--host=127.0.0.1", f"--port={self.ports[name]}"]
        match name:
            case "coordinator":
                store = f"sqlite:///{self.folder / 'coordinator.db'}"
                return ["txcoord", "serve", *listen, "--grpc-port=0", f"--store={store}", "--log-format=json"]
            case "order":
                return ["examples.order", *listen, f"--database=sqlite:///{self.database('order')}"]
            case "storage":
                return ["examples.demo.storage", *listen, f"--database=sqlite:///{self.database('storage')}"]
            case "bff":
                urls = [f"--{other}={self.url(other)}" for other in ("coordinator", "order", "storage")]
                return ["examples.bff", *listen, *urls]
            case _:
                raise AssertionError(f"no such process: {name}")

    def _wait_until_ready(self, name: str) -> None:
        page = "/readyz" if name == "coordinator" else "/healthz"
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            if (code := self._processes[name].poll()) is not None:
                raise DemoError(f"the {name} process ended with exit code {code} instead of starting")
            try:
                if httpx.get(self.url(name) + page, timeout=2, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(_LOOK_AGAIN_S)
        raise DemoError(f"the {name} process was not ready within {PATIENCE_S:.0f} s")

    # -- what can be asked -----------------------------------------------------------

    def ask(self, name: str, method: str, path: str, body: object = None) -> httpx.Response:
        """Send one request to one of them, and wait for the answer."""
        try:
            return httpx.request(method, self.url(name) + path, json=body, timeout=PATIENCE_S, trust_env=False)
        except httpx.TransportError as error:
            raise DemoError(f"{method} {path} of the {name} service: {error or type(error).__name__}") from error

    def wait_for_calls(self, gid: str, branch_id: str, *, failed: int) -> None:
        """Return when the coordinator has recorded so many calls of an action that went wrong."""
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            if len(self.coordinator.query(gid).branch(branch_id).attempts) >= failed:
                return
            time.sleep(_LOOK_AGAIN_S)
        raise DemoError(f"branch {branch_id} of {gid} was not called {failed} times within {PATIENCE_S:.0f} s")

    def newest_gid(self, *, besides: Sequence[str] = ()) -> str:
        """The transaction that has just been submitted, once there is one."""
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            for found in self.coordinator.list(page_size=1):
                if found.gid not in besides:
                    return found.gid
                break
            time.sleep(_LOOK_AGAIN_S)
        raise DemoError(f"the coordinator was not given the order within {PATIENCE_S:.0f} s")

    def turned_round_at(self, gid: str) -> datetime | None:
        """When the saga turned round: the coordinator logs each change of status."""
        give_up_at = time.monotonic() + 2
        while time.monotonic() < give_up_at:
            for line in self.log("coordinator").read_bytes().splitlines():
                facts = _json_object(line)
                if facts.get("gid") == gid and facts.get("status") == Status.ABORTING:
                    return datetime.fromisoformat(str(facts["time"]))
            time.sleep(_LOOK_AGAIN_S)  # the log is written a moment later
        return None

    # -- the services' databases -----------------------------------------------------

    def database(self, name: str) -> Path:
        return self.folder / f"{name}.db"

    def rows(self, name: str, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Look into a service's database, past the service."""
        connection = sqlite3.connect(f"file:{self.database(name)}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def stock(self, product: int) -> int:
        [(inventory,)] = self.rows("storage", "select inventory from storages where id = ?", product)
        return int(inventory)

    def frozen(self, product: int) -> int:
        [(frozen,)] = self.rows("storage", "select frozen_inventory from storages where id = ?", product)
        return int(frozen)


def _environment() -> dict[str, str]:
    # Settings of a coordinator that the user runs are not the demo's.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TXCOORD_")}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def _json_object(line: bytes) -> dict[str, object]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
