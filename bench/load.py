"""The load: transactions as fast as they are answered, one connection per client.

wrk posts sagas; what takes several requests, or gRPC, `bench.client` does.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.flows import Load
from localservers.processes import program

SCRIPT = Path(__file__).with_name("saga.lua")
SUBMIT = "/api/dtmsvr/submit"
TIMEOUT_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What the clients saw in one run. Latencies are of all that was answered, in microseconds."""

    transactions: int
    """Ended, and answered with SUCCESS to the last."""
    seconds: float
    errors: int
    """Other answers, broken connections and answers that took too long."""
    first_error: str
    mean_us: float
    p50_us: int
    p90_us: int
    p99_us: int
    max_us: int
    cpu_s: float
    """Processor time of the clients themselves."""


def run_load(load: Load, *, server: str, participants: str, clients: int, seconds: int) -> LoadResult:
    """Let `clients` clients do transactions on a server for some seconds.

    What is under way at the end is not counted, though the coordinator finishes it.

    Args:
        server: its URL; for gRPC host:port.
    """
    if load is Load.SAGA:
        return _wrk(server=server, participants=participants, clients=clients, seconds=seconds)
    options = {
        "load": load.value,
        "url": server,
        "participants": participants,
        "prefix": uuid.uuid4().hex[:16] + "-",
        "clients": clients,
        "seconds": seconds,
    }
    command = [sys.executable, "-m", "bench.client", *(f"--{name}={value}" for name, value in options.items())]
    before = _cpu_of_children()
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 2 * TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"the clients did not end within {error.timeout:.0f} s") from error
    if result.returncode != 0:
        raise BenchError(f"the clients failed ({result.returncode}): {result.stderr.strip()[-500:]}")
    seen = json.loads(result.stdout)
    return LoadResult(seconds=seen.pop("duration_us") / 1e6, cpu_s=_cpu_of_children() - before, **seen)


def _wrk(*, server: str, participants: str, clients: int, seconds: int) -> LoadResult:
    wrk = program("wrk", package="wrk")
    options = ["-t1", f"-c{clients}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s", "-s", str(SCRIPT)]
    command = [str(wrk), *options, server + SUBMIT, "--", uuid.uuid4().hex[:16] + "-", participants]
    before = _cpu_of_children()
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 2 * TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"wrk did not end within {error.timeout:.0f} s") from error
    cpu_s = _cpu_of_children() - before
    lines = dict(line.partition(" ")[::2] for line in result.stdout.splitlines() if line[:1].isupper())
    if result.returncode != 0 or "RESULT" not in lines:
        raise BenchError(f"wrk failed ({result.returncode}): {(result.stderr + result.stdout).strip()[-500:]}")
    seen = json.loads(lines["RESULT"])
    errors = seen["bad"] + seen["broken"] + seen["timed_out"]
    return LoadResult(
        transactions=seen["requests"] - seen["bad"],
        seconds=seen["duration_us"] / 1e6,
        errors=errors,
        first_error=lines.get("FIRST_BAD", "a connection broke or an answer took too long" if errors else ""),
        mean_us=seen["mean_us"],
        p50_us=seen["p50_us"],
        p90_us=seen["p90_us"],
        p99_us=seen["p99_us"],
        max_us=seen["max_us"],
        cpu_s=cpu_s,
    )


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
