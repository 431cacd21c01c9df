"""DTM clients of other languages, from their package registries: fetched, built once, and run.

Each folder beside this file is one small program over that language's own DTM client. All of them are
participant and initiator at once, and take the same orders over HTTP:

- `POST /run` starts a global transaction with the client's own functions: `pattern`, `gid` (empty: the
  client asks the coordinator for one), `dtm` (the coordinator), `branches` (each a `url` and a `body`),
  and options. It answers with the `gid` and the `error` that the client reported, empty for none.
- `POST /branch` is a branch operation, protected by the client's own barrier: it writes a line into the
  table `books`. Its body says `account` and `amount`, and how it misbehaves, each a list of operations:
  `refuse` (a definite failure), `later` (ongoing, the first time), `never` (ongoing, always), `lose` (takes
  effect, but the first answer is an error). `nested` is a branch that the try itself calls, in the same TCC.

What is fetched and built stays in `.cache/interop` of the repository, under a name that depends on the
sources, so that the next run starts at once and needs no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "interop"
FETCH_S = 420
BUILD_S = 420


class ToolchainMissingError(Exception):
    """The language is not installed on this machine; the sentence names what is looked for."""


class RegistryUnreachableError(Exception):
    """The client could not be fetched from its registry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A language: what it needs on this machine, how its program is fetched, built and started."""

    name: str
    programs: Sequence[str]
    fetch: Callable[[Path], None]
    build: Callable[[Path], None]
    command: Callable[[Path], Sequence[str | Path]]

    def prepare(self) -> Path:
        """Return the folder with the built program; fetch and build it unless it is there.

        Raises:
            ToolchainMissingError: install one of the language, or do without it.
            RegistryUnreachableError: nothing is built yet, and the network has not got it.
        """
        missing = [program for program in self.programs if shutil.which(program) is None]
        if missing:
            raise ToolchainMissingError(f"no DTM client in {self.name}: {' and '.join(missing)} not found on the PATH")
        folder = CACHE / f"{self.name}-{self._fingerprint()}"
        CACHE.mkdir(parents=True, exist_ok=True)
        # Workers of one run, and runs beside each other, share the cache: one builds, the others wait.
        with (CACHE / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "built").exists():
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(HERE / self.name, folder)
                self.fetch(folder)
                self.build(folder)
                (folder / "built").touch()
        return folder

    def _fingerprint(self) -> str:
        found = hashlib.sha256(sys.version.encode())
        # The recipe is part of what is built.
        for file in [Path(__file__), *sorted((HERE / self.name).iterdir())]:
            found.update(file.name.encode() + b"\0" + file.read_bytes())
        return found.hexdigest()[:16]


def _fetch(command: Sequence[str | Path], folder: Path) -> None:
    try:
        done = _run(command, folder, FETCH_S)
    except subprocess.TimeoutExpired:
        raise RegistryUnreachableError(f"{command[0]} did not fetch the client within {FETCH_S} s") from None
    if done.returncode != 0:
        raise RegistryUnreachableError(f"{command[0]} cannot fetch the client:\n{_tail(done)}")


def _build(command: Sequence[str | Path], folder: Path, env: Mapping[str, str] | None = None) -> None:
    done = _run(command, folder, BUILD_S, env)
    # Never skipped: the client is here, so that only our program can be at fault.
    assert done.returncode == 0, f"{command[0]} cannot build {folder.name}:\n{_tail(done)}"


def _run(
    command: Sequence[str | Path], folder: Path, timeout_s: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout + done.stderr).strip()[-3000:]


def _fetch_go(folder: Path) -> None:
    # go.sum says what each module must be; -mod=readonly (the default) keeps to it.
    _fetch(["go", "mod", "download"], folder)


def _build_go(folder: Path) -> None:
    _build(["go", "build", "-o", "participant", "."], folder, {"GOPROXY": "off"})


def _fetch_python(folder: Path) -> None:
    _fetch([sys.executable, "-m", "pip", "wheel", "-q", "-r", "requirements.txt", "-w", "wheels"], folder)


def _build_python(folder: Path) -> None:
    # The client's dependencies are its own affair: they must not meet ours.
    _build([sys.executable, "-m", "venv", "venv"], folder)
    install = ["venv/bin/python", "-m", "pip", "install", "-q", "--no-index", "--find-links", "wheels"]
    _build([*install, "-r", "requirements.txt"], folder)


def _fetch_java(folder: Path) -> None:
    _fetch(["mvn", "-B", "-q", "dependency:copy-dependencies", "-DoutputDirectory=lib"], folder)


def _build_java(folder: Path) -> None:
    _build(["javac", "-nowarn", "-cp", "lib/*", "-d", "classes", "Participant.java"], folder)


CLIENTS: Mapping[str, Client] = {
    client.name: client
    for client in (
        Client(
            name="go",
            programs=["go"],
            fetch=_fetch_go,
            build=_build_go,
            command=lambda folder: [folder / "participant"],
        ),
        Client(
            name="python",
            programs=[],
            fetch=_fetch_python,
            build=_build_python,
            command=lambda folder: [folder / "venv" / "bin" / "python", folder / "participant.py"],
        ),
        Client(
            name="java",
            programs=["javac", "java", "mvn"],
            fetch=_fetch_java,
            build=_build_java,
            command=lambda folder: [
                "java",
                "-XX:TieredStopAtLevel=1",
                "-cp",
                f"{folder / 'classes'}:{folder / 'lib'}/*",
                "Participant",
            ],
        ),
    )
}
