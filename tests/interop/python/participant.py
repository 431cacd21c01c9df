"""Participant and initiator over DTM's own Python client; what it is told to do is described in ../clients.py.

Runs in a virtual environment of its own: nothing of txcoord is in it.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pymysql
from dtmcli import barrier, msg, saga, tcc, utils

OPTIONS = ("wait_result", "timeout_to_fail", "branch_headers")


class Ongoing(Exception):
    """Not done yet: ask again."""


class Refused(Exception):
    """Refused for good."""


class Books:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: set[tuple[str, ...]] = set()

    def carry_out(self, query: dict[str, str], order: dict[str, Any], note: str) -> None:
        gid, branch_id, op = query["gid"], query["branch_id"], query["op"]
        if op in order.get("never", ()) or (
            op in order.get("later", ()) and self._is_first("later", gid, branch_id, op)
        ):
            raise Ongoing
        if op in order.get("refuse", ()):
            raise Refused(f"{order['account']} refuses")
        nested = order.get("nested")
        if nested and op == "try":
            inner = tcc.tcc_from_req(order["dtm"], gid, branch_id)
            inner.call_branch(nested["body"], nested["url"], nested["url"], nested["url"])

        def write(cursor: pymysql.cursors.Cursor) -> None:
            _write(cursor, gid, branch_id, op, order["account"], order["amount"], note)

        with barrier.AutoCursor(_connect().cursor()) as cursor:
            barrier.BranchBarrier(query["trans_type"], gid, branch_id, op).call(cursor, write)
        if op in order.get("lose", ()) and self._is_first("lose", gid, branch_id, op):
            raise RuntimeError(f"the answer of {op} is lost")

    def _is_first(self, *key: str) -> bool:
        with self._lock:
            known = key in self._seen
            self._seen.add(key)
            return not known


def _named(query: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(query).items()}


def _connect() -> pymysql.Connection:
    return pymysql.connect(
        host=os.environ["BOOKS_HOST"],
        port=int(os.environ["BOOKS_PORT"]),
        user=os.environ["BOOKS_USER"],
        password=os.environ["BOOKS_PASSWORD"],
        database=os.environ["BOOKS_DB"],
    )


def _write(cursor: pymysql.cursors.Cursor, *line: Any) -> None:
    cursor.execute("insert into books(gid, branch_id, op, account, amount, note) values (%s, %s, %s, %s, %s, %s)", line)


def _send(task: dict[str, Any]) -> str:
    """Send a message that follows from a local transaction."""
    whole = msg.Msg(task["dtm"], task["gid"])
    for each in task["branches"]:
        whole.add(each["body"], each["url"])
    _set_options(whole.trans_base, task)
    question = f"http://127.0.0.1:{os.environ['PORT']}/query-prepared"
    how = task.get("local", "")

    def local(cursor: pymysql.cursors.Cursor) -> None:
        if how == "refuse":
            raise utils.DTMFailureError("the local transaction refuses")
        _write(cursor, task["gid"], "00", "msg", "local", 0, "")

    with barrier.AutoCursor(_connect().cursor()) as cursor:
        if how.startswith("vanish"):
            whole.prepare(question)
            if how == "vanish":
                barrier.BranchBarrier("msg", task["gid"], "00", "msg").call(cursor, local)
        else:
            whole.do_and_submit_db(question, cursor, local)
    return task["gid"]


def _has_committed(query: dict[str, str]) -> None:
    with barrier.AutoCursor(_connect().cursor()) as cursor:
        barrier.BranchBarrier(query["trans_type"], query["gid"], query["branch_id"], query["op"]).query_prepared(cursor)


def _set_options(trans_base: Any, task: dict[str, Any]) -> None:
    for name in OPTIONS:
        if name in task:
            setattr(trans_base, name, task[name])


def run(task: dict[str, Any]) -> str:
    """Run a global transaction; return its gid, empty when the client says that it failed."""
    if task["pattern"] == "tcc":

        def call_branches(outer: tcc.Tcc) -> None:
            for each in task["branches"]:
                outer.call_branch(each["body"], each["url"], each["url"], each["url"])

        return tcc.tcc_global_transaction(task["dtm"], task["gid"], call_branches)
    if task["pattern"] == "msg":
        return _send(task)
    whole = saga.Saga(task["dtm"], task["gid"])
    for each in task["branches"]:
        whole.add(each["body"], each["url"], each["url"])
    _set_options(whole.trans_base, task)
    whole.submit()
    return task["gid"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    books = Books()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/query-prepared":
            self._carry_out(lambda: _has_committed(_named(parts.query)))
        else:
            self._answer(200, {})

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if parts.path == "/run":
            return self._run(body)
        note = self.headers.get("Interop-Note", "")
        self._carry_out(lambda: self.books.carry_out(_named(parts.query), body, note))
        return None

    def _carry_out(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Ongoing:
            self._answer(425, {"dtm_result": "ONGOING"})
        except (Refused, utils.DTMFailureError) as error:
            self._answer(409, {"dtm_result": "FAILURE", "message": str(error)})
        except Exception as error:  # noqa: BLE001 - the coordinator is to hear of each
            self._answer(500, {"error": repr(error)})
        else:
            self._answer(200, {"dtm_result": "SUCCESS"})

    def _run(self, task: dict[str, Any]) -> None:
        error = ""
        task["gid"] = task["gid"] or utils.gen_gid(task["dtm"])
        try:
            if not run(task):
                error = "rolled back"
        except Exception as problem:  # noqa: BLE001 - whatever the client reports is the result
            error = repr(problem)
        self._answer(200, {"gid": task["gid"], "error": error})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
