"""A participant that answers nonsense until it is healed, and what is owed to transactions after any rubbish."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from uuid import uuid4

import httpx

from tests.e2e.harness import Process


def _answer(status: bytes, body: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), headers, body)


GOOD = _answer(b"200 OK", b'{"jsonrpc":"2.0","id":"1","result":{"dtm_result":"SUCCESS"}}')

ANSWERS = {
    "ok": GOOD,
    "no": _answer(b"409 Conflict", b"no"),
    "later": _answer(b"425 Too Early", b""),
}

NONSENSE = {
    "nothing": b"",
    "garbage": b"\x00\xff not HTTP\r\n\r\n",
    "half": b"HTTP/1.1 20",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "bomb": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
    "words": _answer(b"500 Broken", b"SUCCESS FAILURE ONGOING"),
    "status": _answer(b"599 \xff", b"\xff\xfe"),
    "nowhere": _answer(b"302 Found", b"", b"Location: \x80://[\r\n"),
    "circle": _answer(b"307 Again", b"", b"Location: circle\r\n"),
    "packed": _answer(b"200 OK", b"not packed", b"Content-Encoding: gzip\r\n"),
}
"""No answer to any kind of call."""

NO_JSON_RPC = {
    "list": _answer(b"200 OK", b"[]"),
    "number": _answer(b"200 OK", b"1e999"),
    "text": _answer(b"200 OK", b"\xff"),
    "deep": _answer(b"200 OK", b"[" * 100_000),
    "error": _answer(b"200 OK", b'{"error":[{"code":-32901}]}'),
    "code": _answer(b"200 OK", b'{"error":{"code":"-32901","message":7}}'),
}
"""Successes over HTTP, which says all with its status; no answers over JSON-RPC."""


class Rubbish:
    """Answers by the last segment of the path."""

    def __init__(self) -> None:
        self.port = 0
        self.is_healed = False

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    @contextmanager
    def serving(self) -> Iterator[None]:
        rubbish = self

        class Handler(BaseHTTPRequestHandler):
            answers: ClassVar = ANSWERS | NONSENSE | NO_JSON_RPC

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                name = self.path.partition("?")[0].strip("/")
                self.wfile.write(GOOD if rubbish.is_healed else self.answers[name])
                self.close_connection = True

            do_POST = do_GET

            def log_message(self, *_args: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_args: object) -> None:
                """Who called has gone, not having wanted all of it."""

        with Server(("127.0.0.1", self.port), Handler) as server:
            self.port = server.server_port
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()


def assert_nothing_is_stuck(server: Process) -> None:
    """Each transaction that was taken has ended, or says when and why it goes on; it can be ended; the server lives."""
    with httpx.Client(base_url=f"{server.url}/api/dtmsvr", timeout=20) as http:
        unfinished = _unfinished(http)
        _wait_until_explained(http, unfinished)
        for gid in unfinished:
            assert http.post("/forceStop", json={"gid": gid}).status_code in (200, 409)
        assert not _unfinished(http)
        last = {"gid": f"last-{uuid4().hex}", "trans_type": "saga", "wait_result": True}
        assert http.post("/submit", json=last).json() == {"dtm_result": "SUCCESS"}
    log = server.log.read_text()
    assert "unexpected error" not in log
    assert "Traceback" not in log


def _unfinished(http: httpx.Client) -> list[str]:
    return [
        transaction["gid"]
        for status in ("prepared", "submitted", "aborting")
        for transaction in http.get("/all", params={"status": status, "limit": 1000}).json()["transactions"]
    ]


def _wait_until_explained(http: httpx.Client, gids: list[str]) -> None:
    """Until each has ended, says when it goes on and why, or is seen to be called again and again."""
    deadline = time.monotonic() + 20
    calls_at_first: dict[str, list[Any]] = {}
    while gids:
        unexplained = {}
        for gid in gids:
            found = http.get("/query", params={"gid": gid}).json()
            calls = _calls(found)
            goes_on = calls != calls_at_first.setdefault(gid, calls)
            says_why = bool(calls) or any("held_off" in operation for operation in _operations(found))
            if not (goes_on or _is_explained(found["transaction"], says_why=says_why)):
                unexplained[gid] = found
        assert time.monotonic() < deadline, unexplained
        gids = list(unexplained)
        time.sleep(0.05)


def _calls(found: dict[str, Any]) -> list[Any]:
    return [call for operation in _operations(found) for call in operation.get("attempts", ())]


def _operations(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [*found["branches"], *(found["transaction"].get(name, {}) for name in ("check_back", "resume"))]


def _is_explained(transaction: dict[str, Any], *, says_why: bool) -> bool:
    if transaction["status"] in ("succeed", "failed") or "needs_operator" in transaction:
        return True
    is_waiting = transaction["status"] == "prepared" or "delay" in transaction.get("custom_data", "")
    return "next_cron_time" in transaction and (says_why or is_waiting)
