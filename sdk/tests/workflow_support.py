"""A coordinator and participants within the process, on the coordinator's own rules, and crashes anywhere."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from typing import Any

import httpx

from txcoord.api import answers, replies
from txcoord.api.views import branch_views, transaction_view
from txcoord.api.wire import decode_branch, decode_trans
from txcoord.errors import TransactionNotFoundError, TxcoordError
from txcoord.model import GlobalTransaction
from txcoord.request import Limits
from txcoord.workflow.decide import RESUME
from txcoord.workflow.request import build_workflow, ended, registered
from txcoord_sdk import AsyncCoordinator, Coordinator
from txcoord_sdk.workflow import AsyncWorkflows, Workflows

RESUME_URL = "http://me/workflow/resume"
SHOP = "http://shop"
OK = (200, '{"dtm_result":"SUCCESS"}')
REFUSED = (409, '{"dtm_result":"FAILURE","message":"sold out"}')
PATIENCE = (425, '{"dtm_result":"ONGOING"}')
BROKEN = (500, "out of order")


class Crash(BaseException):
    """The participant's process is gone."""


class World:
    """What stays when a participant's process dies."""

    def __init__(self) -> None:
        self.stored: dict[str, GlobalTransaction] = {}
        self.reports: list[tuple[str, ...]] = []
        """What was stored, in order: `(branch_id, op, status)` or `(status,)`."""
        self.calls: list[str] = []
        """What participants were asked for, in order: `path op`."""
        self.requests: list[httpx.Request] = []
        self.crash_at: int | None = None
        self._events = 0
        self._answers: dict[str, deque[tuple[int, str]]] = defaultdict(deque)

    def answer(self, path: str, *answers: tuple[int, str]) -> None:
        """Set the next answers of a participant's path."""
        self._answers[path].extend(answers)

    def away(self, path: str, times: int = 1) -> None:
        """Have the coordinator give no usable answer at one of its paths."""
        self.answer(f"/api/dtmsvr{path}", *[(503, "{}")] * times)

    def event(self) -> None:
        """Die here, if it is time."""
        self._events += 1
        if self._events == self.crash_at:
            raise Crash

    def restart(self, crash_at: int | None = None) -> None:
        self.crash_at, self._events = crash_at, 0

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.event()
        response = self._coordinator(request) if request.url.host == "txcoord" else self._participant(request)
        self.event()
        return response

    def workflows(self, **options: Any) -> Workflows:
        """The registry of a participant that has just started."""
        http = httpx.Client(transport=httpx.MockTransport(self.handle))
        return Workflows(
            Coordinator("http://txcoord", http=http, attempts=2, backoff=0), resume_url=RESUME_URL, **options
        )

    def async_workflows(self, **options: Any) -> AsyncWorkflows:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self.handle))
        coordinator = AsyncCoordinator("http://txcoord", http=http, attempts=2, backoff=0)
        return AsyncWorkflows(coordinator, resume_url=RESUME_URL, **options)

    def request_to_resume(self, gid: str) -> tuple[dict[str, str], bytes]:
        tx = self.stored[gid]
        name = json.loads(tx.custom_data)["name"]
        query = {"gid": gid, "trans_type": "workflow", "branch_id": "00", "op": name}
        return query, tx.branches[RESUME].payload

    def _participant(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.calls.append(f"{path} {request.url.params['op']}")
        self.requests.append(request)
        status, body = self._answers[path].popleft() if self._answers[path] else OK
        return httpx.Response(status, text=body)

    def _coordinator(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if self._answers[path]:
            status, text = self._answers[path].popleft()
            return httpx.Response(status, text=text)
        try:
            return httpx.Response(200, json=self._served(path.rpartition("/")[2], request))
        except TxcoordError as error:
            answer = answers.of_reply(replies.of_error(error))
            return httpx.Response(answer.status, content=answer.body)

    def _served(self, operation: str, request: httpx.Request) -> dict[str, Any]:
        limits = Limits()
        match operation:
            case "prepareWorkflow":
                asked = decode_trans(request.content)
                if asked.gid not in self.stored:
                    self.stored[asked.gid] = build_workflow(asked, limits, now_us=1, interval_s=10)
                tx = self.stored[asked.gid]
                return {"transaction": transaction_view(tx), "progresses": branch_views(tx)}
            case "query":
                found = self.stored.get(request.url.params["gid"])
                if found is None:
                    return {"transaction": None, "branches": []}
                return {"transaction": transaction_view(found), "branches": branch_views(found)}
            case "registerBranch":
                step = decode_branch(request.content)
                tx = self._tx(step.gid)
                after = registered(tx, step, limits, now_us=1, interval_s=10)
                if after is not tx:
                    self.reports.append((step.branch_id, step.op, step.status))
                self.stored[step.gid] = after
            case "submit":
                report = decode_trans(request.content)
                tx = self._tx(report.gid)
                self.stored[report.gid] = ended(tx, report, limits, now_us=1)
                self.reports.append((self.stored[report.gid].status,))
        return {"dtm_result": "SUCCESS"}

    def _tx(self, gid: str) -> GlobalTransaction:
        try:
            return self.stored[gid]
        except KeyError:
            raise TransactionNotFoundError(gid) from None
