"""Child processes that never outlive their parent, free ports, and missing programs.

Tests, benchmark and demo start databases, coordinators and web servers. `spawn` starts one
and `end` ends it; when the parent dies in any way, SIGKILL included, a watchdog ends what is left.

Only the standard library: the watchdog runs this file by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO


class ProgramMissingError(Exception):
    """A program is not installed and cannot be; the sentence says what to do."""


# -- processes ---------------------------------------------------------------------------


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one; its output goes to the end of `log`.

    It runs in a session of its own: Ctrl-C reaches us alone, and we end it in order.
    """
    # Announced before it is there: we may die before we know its number.
    mark = f"{_MARK}={os.getpid()}-{next(_marks)}"
    _watchdog().tell(f"+ {mark}")
    with _open_log(log) as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**(os.environ if env is None else env), _MARK: mark.partition("=")[2]},
            start_new_session=True,
            user=user,
            group=_group_of(user) if user else None,
            extra_groups=[] if user else None,
        )
    _watchdog().tell(f"+ {process.pid}\n- {mark}")
    return process


_MARK = "SPAWNED_AS"
"""A variable in the environment of what is spawned, by which the watchdog finds it."""
_marks = itertools.count(1)


def end(process: subprocess.Popen[bytes], *, with_signal: int = signal.SIGTERM, patience_s: float = 20.0) -> int:
    """Ask a process to end, kill it and its descendants if it does not; return its exit code."""
    if process.poll() is None:
        family = [process.pid, *descendants(process.pid)]
        process.send_signal(with_signal)
        # A stopped process takes the signal only once it goes on.
        send(signal.SIGCONT, family)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            kill(process)
    _watchdog().tell(f"- {process.pid}")
    return process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all its descendants at once, as a power cut would end them."""
    if process.poll() is None:
        family = freeze(process.pid)
        send(signal.SIGKILL, family)
    process.wait()
    _watchdog().tell(f"- {process.pid}")


def freeze(pid: int) -> list[int]:
    """SIGSTOP to a process and all its descendants; return them. `thaw` lets them go on."""
    stopped: list[int] = []
    # A parent is stopped before its children are listed, so that it cannot make new ones.
    while fresh := [each for each in [pid, *descendants(pid)] if each not in stopped]:
        send(signal.SIGSTOP, fresh)
        stopped += fresh
    return stopped


def thaw(pid: int) -> None:
    """Let a frozen process and its descendants go on."""
    send(signal.SIGCONT, [*descendants(pid), pid])


def send(number: int, pids: Sequence[int]) -> None:
    """Send a signal to each of these that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def descendants(pid: int) -> list[int]:
    """Children of a process, their children, and so on."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    open_ends = [pid]
    while open_ends:
        fresh = children.get(open_ends.pop(), [])
        found += fresh
        open_ends += fresh
    return found


def _parents() -> Iterator[tuple[int, int]]:
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
        for line in listing.stdout.splitlines():
            child, parent = line.split()
            yield int(child), int(parent)
        return
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                # The command's name stands in parentheses and may hold anything: cut behind it.
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                yield int(name), int(fields[1])


@contextlib.contextmanager
def _open_log(log: Path | None) -> Iterator[IO[bytes] | int]:
    if log is None:
        yield subprocess.DEVNULL
    else:
        with log.open("ab") as file:
            yield file


# -- what is left behind -------------------------------------------------------------------


def temporary_folder(prefix: str, *, user: str | None = None) -> Path:
    """Make a folder, for `user` if given; `remove_folder` removes it, or the watchdog if we die before."""
    # Directly in the system's temporary folder: pytest's own is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    if user:
        shutil.chown(folder, user, _group_of(user))
    _watchdog().tell(f"+ {folder}")
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a temporary folder and what is in it. Idempotent."""
    _remove(folder)
    _watchdog().tell(f"- {folder}")


def _remove(folder: Path) -> None:
    # Processes that were just killed may write a last file while the folder is emptied.
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


class _Watchdog:
    """A process that reads what lives from a pipe and ends it when we are gone.

    Chosen over PR_SET_PDEATHSIG, which is lost with a change of user, fires when the
    starting thread ends, and does not reach the children of a server.
    """

    def __init__(self) -> None:
        self.parent = os.getpid()
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self.parent)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()


_the_watchdog: _Watchdog | None = None


def _watchdog() -> _Watchdog:
    global _the_watchdog
    # A forked child has the object, but not the promise: it gets one of its own.
    if _the_watchdog is None or _the_watchdog.parent != os.getpid():
        _the_watchdog = _Watchdog()
    return _the_watchdog


def _watch(parent: int) -> None:
    left: set[str] = set()
    pending = b""
    alive = True
    while alive:
        # The pipe's end may be held open by a forked sibling, hence also a look at the parent.
        # First the look, then what it wrote before: it may have died before we came to run.
        alive = os.getppid() == parent
        while select.select([0], [], [], 0.5 if alive else 0)[0]:
            chunk = os.read(0, 65536)
            if not chunk:
                alive = False
                break
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                sign, _, what = line.decode().partition(" ")
                (left.add if sign == "+" else left.discard)(what)
    marks = {what for what in left if what.startswith(f"{_MARK}=")}
    for pid in [*(int(what) for what in left if what.isdigit()), *(_marked(marks) if marks else ())]:
        send(signal.SIGKILL, freeze(pid))
    for what in left - marks:
        if not what.isdigit():
            _remove(Path(what))


def _marked(marks: Collection[str]) -> Iterator[int]:
    """Find the processes that were being spawned when their parent died."""
    time.sleep(0.2)  # until the last of them has its environment
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if not {os.fsencode(mark) for mark in marks}.isdisjoint((folder / "environ").read_bytes().split(b"\0")):
                yield int(folder.name)


# -- ports ---------------------------------------------------------------------------------


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on, and that stays free between stop and restart.

    It lies below the range from which the system picks ports of outgoing connections: one
    of those could otherwise take it while a server is down, or even connect to itself.
    """
    for _ in range(200):
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free TCP port between 20000 and 32000 on 127.0.0.1")


# -- users and programs ----------------------------------------------------------------------


def unprivileged_user(*candidates: str) -> str | None:
    """Whom to run a server as when we are root; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    import pwd

    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in (*candidates, "nobody"):
        if name in known:
            return name
    raise ProgramMissingError("servers do not run as root, and there is no user `nobody` to run them as")


def _group_of(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


def program(
    *names: str,
    package: str,
    folders: Callable[[], Sequence[Path]] = tuple,
    instead: str = "",
    may_install: bool = True,
) -> Path:
    """Find a program, by the first of `names` that is there; install `package` if none is, and if we may.

    Looked for in `folders()` first, which is asked again after the installation.

    Raises:
        ProgramMissingError: not there, and not to be installed from here; the sentence
            names the package, and `instead`: what else would do.
    """
    found = _find(names, folders())
    if found is None:
        _apt_install(package, wanted=names[0], instead=instead, may_install=may_install)
        found = _find(names, folders())
    if found is None:
        raise ProgramMissingError(f"`{names[0]}` is missing even with the package {package} installed{instead}")
    return found


def _find(names: Sequence[str], folders: Sequence[Path]) -> Path | None:
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    for name in names:
        if where := shutil.which(name, path=path):
            return Path(where)
    return None


def _apt_install(package: str, *, wanted: str, instead: str, may_install: bool) -> None:
    by_hand = f"`{wanted}` is missing: install it (Debian, Ubuntu: apt-get install {package}){instead}"
    if not may_install or os.environ.get("TXCOORD_NO_APT") or shutil.which("apt-get") is None:
        raise ProgramMissingError(by_hand)
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and (shutil.which("sudo") is None or subprocess.run([*sudo, "true"], capture_output=True).returncode != 0):
        raise ProgramMissingError(by_hand)
    sys.stderr.write(f"installing {package}, which has `{wanted}` ...\n")
    with _one_at_a_time(), _services_stay_off(sudo):
        install = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]
        arguments = ["install", "-y", "--no-install-recommends", package]
        result = subprocess.run([*install, *arguments], capture_output=True, text=True)
        if result.returncode != 0:
            subprocess.run([*install, "update"], capture_output=True, text=True)
            result = subprocess.run([*install, *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise ProgramMissingError(f"{by_hand}; apt-get said: {result.stderr.strip()[-500:]}")


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / f"txcoord-apt-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _services_stay_off(sudo: Sequence[str]) -> Iterator[None]:
    """Install programs without the system's own database and web server being started by it."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    script = f"printf '#!/bin/sh\\nexit 101\\n' > {policy} && chmod 755 {policy}"
    subprocess.run([*sudo, "sh", "-c", script], check=True)
    try:
        yield
    finally:
        subprocess.run([*sudo, "rm", "-f", str(policy)], check=True)


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
