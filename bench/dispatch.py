"""CPU of one branch call: the dispatcher beside httpx, against nginx.

    python bench/dispatch.py [--calls 40000] [--concurrency 64] [--profile]

Participants are one nginx on a free port that answers {"dtm_result":"SUCCESS"} to everything.
CPU is this process's (user and system): nginx's is not in it. Each client runs on uvloop,
with `--concurrency` workers that call one after another, after a warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import os
import platform
import pstats
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import uvloop

from txcoord.dispatch.base import BranchRequest
from txcoord.dispatch.http import HttpDispatcher
from txcoord.model import Op, Outcome, Pattern

PAYLOAD = b'{"id": 3, "quantity": 20, "tx_id": "0123456789abcdef"}'
CONFIG = """
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log warn;
daemon off;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        default_type application/json;
        location / {{ return 200 '{{"dtm_result":"SUCCESS"}}'; }}
    }}
}}
"""


@contextmanager
def participants() -> Iterator[str]:
    """Run nginx in a temporary folder; gives its base URL."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        sys.exit("nginx is needed: apt-get install nginx-light")
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        config = Path(folder) / "nginx.conf"
        config.write_text(CONFIG.format(folder=folder, port=port))
        process = subprocess.Popen([program, "-p", folder, "-c", str(config), "-e", f"{folder}/error.log"])
        try:
            _wait_for_port(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        if process.poll() is not None:
            sys.exit("nginx ended at once")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    sys.exit("nginx does not listen")


async def measure(call: Callable[[int], Awaitable[None]], calls: int, concurrency: int) -> tuple[float, float]:
    """Make the calls; give CPU and wall microseconds per call."""

    async def worker(share: int) -> None:
        for index in range(share):
            await call(index)

    async def run(total: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker(total // concurrency))

    await run(max(concurrency * 2, calls // 10))
    gc.collect()
    made = calls // concurrency * concurrency
    cpu, wall = time.process_time(), time.perf_counter()
    await run(calls)
    return (time.process_time() - cpu) / made * 1e6, (time.perf_counter() - wall) / made * 1e6


async def ours(base: str, calls: int, concurrency: int) -> tuple[float, float]:
    dispatcher = HttpDispatcher()

    async def call(index: int) -> None:
        result = await dispatcher.call(
            BranchRequest(
                gid=f"gid{index}",
                pattern=Pattern.SAGA,
                branch_id="01",
                op=Op.ACTION,
                url=f"{base}/deduct",
                payload=PAYLOAD,
                timeout_s=3.0,
            )
        )
        assert result.outcome is Outcome.SUCCESS, result

    try:
        return await measure(call, calls, concurrency)
    finally:
        await dispatcher.close()


async def with_httpx(base: str, calls: int, concurrency: int) -> tuple[float, float]:
    import httpx

    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:

        async def call(index: int) -> None:
            response = await client.post(
                f"{base}/deduct",
                params={"branch_id": "01", "gid": f"gid{index}", "op": "action", "trans_type": "saga"},
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                content=PAYLOAD,
                timeout=3.0,
            )
            assert response.status_code == 200
            assert response.content

        return await measure(call, calls, concurrency)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=40_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="profile the dispatcher instead")
    arguments = parser.parse_args()
    with participants() as base:
        if arguments.profile:
            profile = cProfile.Profile()
            profile.enable()
            uvloop.run(ours(base, arguments.calls, arguments.concurrency))
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)
            return
        rows = []
        for name, run, calls in (
            ("txcoord", ours, arguments.calls),
            ("httpx", with_httpx, max(arguments.concurrency, arguments.calls // 20)),
        ):
            figures = [uvloop.run(run(base, calls, arguments.concurrency)) for _ in range(arguments.rounds)]
            rows.append((name, calls, *min(figures)))
    print(f"Python {platform.python_version()}, uvloop {version('uvloop')}, {os.cpu_count()} cores")
    print(f"{arguments.concurrency} at once, best of {arguments.rounds} rounds")
    print(f"{'client':10} {'calls':>8} {'CPU µs/call':>12} {'calls/s':>9}")
    for name, calls, cpu, wall in rows:
        print(f"{name:10} {calls:>8} {cpu:>12.1f} {1e6 / wall:>9.0f}")


if __name__ == "__main__":
    main()
