"""The processes of the demo: a coordinator, and the services of the examples."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from examples.bank import ACCOUNT
from examples.demo.databases import BANKS, Databases
from localservers.processes import end, free_port, kill, spawn
from txcoord_sdk import Coordinator

ROOT = Path(__file__).parents[2]

PATIENCE_S = 40.0
"""Everything here takes a second or two; a busy machine may need longer."""

_LOOK_AGAIN_S = 0.05

# Whoever calls ends before those who are called.
_CALLERS = ("bff", "users", "checkout")
_CALLED = ("order", "storage", "gift", "mail", *BANKS)


class DemoError(Exception):
    """The demo could not go on; the sentence says why."""


class Shop:
    """All processes, on free ports, with their databases and logs in one folder. Use it with `with`."""

    services = (*_CALLERS, *_CALLED)

    def __init__(self, folder: Path, databases: Databases) -> None:
        self.folder = folder
        self.databases = databases
        self.ports = {name: free_port() for name in ("coordinator", *self.services)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ready: set[str] = set()
        self.coordinator = Coordinator(self.url("coordinator"))

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *_: object) -> None:
        self.coordinator.close()
        for group in (_CALLERS, ("coordinator",), _CALLED):
            with ThreadPoolExecutor() as at_once:
                list(at_once.map(end, [self._processes[name] for name in group if name in self._processes]))

    # -- processes -------------------------------------------------------------------

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def service_at(self, url: str) -> str:
        """Name the service that a branch's URL leads to."""
        port = httpx.URL(url).port
        return next((name for name, its in self.ports.items() if its == port), str(port))

    @property
    def started(self) -> Sequence[str]:
        """All that have been started so far."""
        return tuple(self._processes)

    def begin(self, *names: str) -> None:
        """Start those of these that were not started before, and return at once."""
        for name in names:
            if name not in self._processes:
                self._spawn(name)

    def start(self, *names: str) -> None:
        """Return when all of these are ready; those that do not run are started, all at once."""
        for name in names:
            if name not in self._processes or self._processes[name].poll() is not None:
                self._spawn(name)
        for name in names:
            if name not in self._ready:
                self._wait_until_ready(name)

    def _spawn(self, name: str) -> None:
        self._ready.discard(name)
        self._processes[name] = spawn(
            [sys.executable, "-m", *self._command(name)], log=self.log(name), cwd=ROOT, env=_environment()
        )

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut would."""
        kill(self._processes[name])

    def wait_until_dead(self, name: str) -> None:
        """Return when a process has ended of itself."""
        try:
            self._processes[name].wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise DemoError(f"the {name} process was to end, and did not within {PATIENCE_S:.0f} s") from None
        end(self._processes[name])

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def log_lines(self, name: str) -> Sequence[str]:
        """What a process has written so far."""
        log = self.log(name)
        return log.read_text(errors="replace").splitlines() if log.exists() else ()

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def _command(self, name: str) -> Sequence[str]:
        listen = ["--host=127.0.0.1", f"--port={self.ports[name]}"]
        database = f"--database={self.databases.url(name)}"
        match name:
            case "coordinator":
                store = f"--store={self.databases.url(name)}"
                return ["txcoord", "serve", *listen, "--grpc-port=0", store, "--log-format=json"]
            case "bff":
                return ["examples.bff", *listen, *self._urls("coordinator", "order", "storage")]
            case "users":
                return ["examples.demo.users", *listen, database, *self._urls("coordinator", "gift", "mail")]
            case "checkout":
                return ["examples.checkout", *listen, database, *self._urls("coordinator", "order", "storage")]
            case "storage":
                return ["examples.demo.storage", *listen, database]
            case "order" | "gift" | "mail":
                return [f"examples.{name}", *listen, database]
            case "bank-a" | "bank-b":
                return ["examples.bank", *listen, database]
            case _:
                raise AssertionError(f"no such process: {name}")

    def _urls(self, *names: str) -> Sequence[str]:
        return [f"--{name}={self.url(name)}" for name in names]

    def _wait_until_ready(self, name: str) -> None:
        page = "/readyz" if name == "coordinator" else "/healthz"
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            if (code := self._processes[name].poll()) is not None:
                raise DemoError(f"the {name} process ended with exit code {code} instead of starting")
            try:
                if httpx.get(self.url(name) + page, timeout=2, trust_env=False).status_code == 200:
                    self._ready.add(name)
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
        """Return when the coordinator has recorded this many calls of an action that went wrong."""
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            if len(self.coordinator.query(gid).branch(branch_id).attempts) >= failed:
                return
            time.sleep(_LOOK_AGAIN_S)
        raise DemoError(f"branch {branch_id} of {gid} was not called {failed} times within {PATIENCE_S:.0f} s")

    def status(self, gid: str) -> str:
        return str(self.coordinator.query(gid).status)

    def wait_until_ended(self, gid: str) -> None:
        """Return when a transaction has ended, well or not."""
        give_up_at = time.monotonic() + PATIENCE_S
        while not self.coordinator.query(gid).status.is_final:
            if time.monotonic() > give_up_at:
                raise DemoError(f"{gid} has not ended within {PATIENCE_S:.0f} s")
            time.sleep(_LOOK_AGAIN_S)

    def gids(self) -> Sequence[str]:
        """The newest transactions that the coordinator has."""
        return [found.gid for found in self.coordinator.list()]

    def newest_gid(self, *, besides: Sequence[str] = ()) -> str:
        """The transaction that has just been opened, once there is one."""
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            for found in self.coordinator.list(page_size=1):
                if found.gid not in besides:
                    return found.gid
                break
            time.sleep(_LOOK_AGAIN_S)
        raise DemoError(f"the coordinator was not given the transaction within {PATIENCE_S:.0f} s")

    # -- the services' databases -----------------------------------------------------

    def rows(self, name: str, query: str, **values: object) -> list[tuple[Any, ...]]:
        """Look into a service's database, past the service."""
        return self.databases.rows(name, query, values)

    def number(self, name: str, query: str, **values: object) -> int:
        """Look up one number in a service's database."""
        [(found,)] = self.rows(name, query, **values)
        return int(found)

    def stock(self, product: int) -> int:
        return self.number("storage", "select inventory from storages where id = :id", id=product)

    def frozen(self, product: int) -> int:
        return self.number("storage", "select frozen_inventory from storages where id = :id", id=product)

    def purse(self, customer: str) -> int:
        return self.number("checkout", "select balance from purses where customer = :customer", customer=customer)

    def balance(self, bank: str) -> int:
        return self.number(bank, "select balance from accounts where id = :id", id=ACCOUNT)


def _environment() -> dict[str, str]:
    # Settings of a coordinator that the user runs are not the demo's.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TXCOORD_")}
    return {**kept, "PYTHONUNBUFFERED": "1"}
