"""The participants: nginx, which answers every branch call with SUCCESS and costs next to nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.errors import BenchError
from localservers.processes import end, free_port, program, remove_folder, spawn, temporary_folder, unprivileged_user

READY_S = 20.0

CONFIG = """\
daemon off;
master_process off;  # one process, which does the work itself
pid {folder}/nginx.pid;
error_log stderr warn;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  tcp_nodelay on;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  default_type application/json;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ return 200 '{{"dtm_result":"SUCCESS"}}'; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Participants:
    """Both participants of the sagas: two paths of one server."""

    url: str
    pid: int


@contextlib.contextmanager
def participants() -> Iterator[Participants]:
    """Run nginx with a configuration of its own on a free port."""
    nginx = program("nginx", package="nginx")
    user = unprivileged_user("www-data")
    folder = temporary_folder("txcoord-nginx-", user=user)
    port = free_port()
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, port=port))
    log = folder / "nginx.log"
    command: list[str | Path] = [nginx, "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"]
    process = spawn(command, log=log, cwd=folder, user=user)
    try:
        url = f"http://127.0.0.1:{port}"
        give_up = time.monotonic() + READY_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > give_up:
                raise BenchError(f"nginx did not start: {log.read_text().strip()[-500:]}")
            time.sleep(0.02)
        yield Participants(url=url, pid=process.pid)
    finally:
        end(process)
        remove_folder(folder)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).text == '{"dtm_result":"SUCCESS"}'
    except httpx.TransportError:
        return False
