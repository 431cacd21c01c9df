"""Every outcome of the service has its answer: DTM's status, words and texts."""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from random import Random
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from txcoord import errors
from txcoord.api import replies
from txcoord.api.http import HttpApi
from txcoord.engine.clock import SystemClock
from txcoord.errors import (
    InvalidRequestError,
    LeaseLostError,
    OverloadedError,
    RequestTooLargeError,
    SchemaError,
    StatusConflictError,
    StoreUnavailableError,
    TransactionNotFoundError,
    TxcoordError,
)
from txcoord.model import (
    MICROSECONDS,
    Attempt,
    BranchOp,
    GlobalTransaction,
    Op,
    OpStatus,
    Options,
    Outcome,
    Pattern,
    Status,
)
from txcoord.request import BranchRegistration, Limits, SubmitResult, TransRequest
from txcoord.service import Service
from txcoord.store.base import ListQuery, Page, Stored
from txcoord.store.memory import MemoryStore
from txcoord.topic_service import TopicService
from txcoord.unfinished import UnfinishedCount

NOON_US = 1_767_268_800 * MICROSECONDS  # 2026-01-01T12:00:00Z
BASE = "/api/dtmsvr"
SUCCESS = {"dtm_result": "SUCCESS"}


class FakeService(Service):
    """Answers what the test says, and notes what it was asked."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.result = SubmitResult(waited=False, status=Status.SUBMITTED)
        self.found: Sequence[Stored] = ()
        self.count = 0
        self.asked: list[Any] = []
        self.store = MemoryStore(now_us=lambda: NOON_US)
        self.unfinished = UnfinishedCount(self.store)
        clock = SystemClock()
        self.topics = TopicService(store=self.store, limits=Limits(max_branches=3), clock=clock, random=Random(1))

    def _note(self, asked: Any) -> None:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error

    def new_gid(self) -> str:
        return "a-new-gid"

    async def submit(self, request: TransRequest) -> SubmitResult:
        self._note(request)
        return self.result

    async def abort(self, request: TransRequest) -> SubmitResult:
        self._note(request)
        return self.result

    async def prepare(self, request: TransRequest) -> None:
        self._note(request)

    async def register_branch(self, branch: BranchRegistration) -> None:
        self._note(branch)

    async def force_stop(self, gid: str) -> None:
        self._note(gid)

    async def reset_next_cron_time(self, gid: str) -> None:
        self._note(gid)

    async def reset_cron_time(self, *, timeout_s: int | None, limit: int) -> int:
        self._note((timeout_s, limit))
        return self.count

    async def query(self, gid: str) -> Stored | None:
        self._note(gid)
        return self.found[0] if self.found else None

    async def list_transactions(self, query: ListQuery) -> Page[Stored]:
        self._note(query)
        found = self.found[: query.limit]
        return Page(items=found, has_more=len(found) == query.limit)

    async def check_ready(self) -> None:
        self._note("ready")


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def http(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    api = HttpApi(service, max_body_bytes=1000)
    transport = httpx.ASGITransport(app=api)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://coordinator") as client:
        yield client


def stored(gid: str = "g1", *, number: int = 7, owner: int | None = None, **changes: Any) -> Stored:
    tx = GlobalTransaction(
        gid=gid, pattern=Pattern.SAGA, status=Status.SUBMITTED, created_us=NOON_US, updated_us=NOON_US + 250_000
    )
    return Stored(id=number, tx=tx.replace(**changes), owner=owner, epoch=1)


# -- outcomes -------------------------------------------------------------------------

FAILED = {"dtm_result": "FAILURE", "message": "url:http://x return failed: no money FAILURE"}


@pytest.mark.parametrize(
    ("path", "result", "code", "body"),
    [
        pytest.param("submit", SubmitResult(waited=False, status=Status.SUBMITTED), 200, SUCCESS, id="accepted"),
        pytest.param("submit", SubmitResult(waited=True, status=Status.SUCCEEDED), 200, SUCCESS, id="succeeded"),
        pytest.param(
            "submit",
            SubmitResult(waited=True, status=Status.FAILED, reason="url:http://x return failed: no money FAILURE"),
            409,
            FAILED,
            id="failed",
        ),
        pytest.param(
            "submit",
            SubmitResult(waited=True, status=Status.ABORTING, reason="url:http://x return failed: no money"),
            409,
            FAILED,
            id="aborting",
        ),
        pytest.param(
            "submit",
            SubmitResult(waited=True, status=Status.FAILED, reason=""),
            409,
            {"dtm_result": "FAILURE", "message": "g1 is rolled back FAILURE"},
            id="no reason",
        ),
        pytest.param(
            "submit",
            SubmitResult(waited=True, status=Status.SUBMITTED, reason="step 1 is ongoing"),
            425,
            {
                "dtm_result": "ONGOING",
                "message": "g1 is submitted and goes on by itself (step 1 is ongoing);"
                " ask /api/dtmsvr/query?gid=g1 how it ends",
            },
            id="still running",
        ),
        pytest.param("abort", SubmitResult(waited=False, status=Status.ABORTING), 200, SUCCESS, id="abort accepted"),
        pytest.param("abort", SubmitResult(waited=True, status=Status.FAILED), 200, SUCCESS, id="rollback done"),
        pytest.param(
            "abort",
            SubmitResult(waited=True, status=Status.ABORTING),
            425,
            {
                "dtm_result": "ONGOING",
                "message": "g1 is aborting and goes on by itself; ask /api/dtmsvr/query?gid=g1 how it ends",
            },
            id="abort still running",
        ),
    ],
)
async def test_the_result_of_a_submit_or_abort(
    http: httpx.AsyncClient, service: FakeService, path: str, result: SubmitResult, code: int, body: dict[str, str]
) -> None:
    service.result = result

    answer = await http.post(f"{BASE}/{path}", json={"gid": "g1", "trans_type": "saga"})

    assert (answer.status_code, answer.json()) == (code, body)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


def conflict(wanted: str) -> StatusConflictError:
    return StatusConflictError("g1", status=Status.SUCCEEDED, wanted=wanted, pattern=Pattern.SAGA)


ERRORS: Mapping[str, tuple[Exception, int, Mapping[str, str]]] = {
    "invalid": (InvalidRequestError("steps is empty"), 400, {"message": "steps is empty"}),
    "too large": (RequestTooLargeError("too many"), 413, {"message": "too many"}),
    "not found": (TransactionNotFoundError("g1"), 404, {"message": "no global transaction has the gid g1"}),
    "submit": (
        conflict("submit"),
        409,
        {"dtm_result": "FAILURE", "message": "current status 'succeed', cannot sumbmit. FAILURE"},
    ),
    "prepare": (
        conflict("prepare"),
        409,
        {"dtm_result": "FAILURE", "message": "current status 'succeed', cannot prepare. FAILURE"},
    ),
    "abort": (
        conflict("abort"),
        409,
        {"dtm_result": "FAILURE", "message": "trans type: 'saga' current status 'succeed', cannot abort. FAILURE"},
    ),
    "force stop": (
        conflict("force stop"),
        409,
        {
            "dtm_result": "FAILURE",
            "message": "global transaction force stop error. status: succeed. error: FAILURE",
        },
    ),
    "another wish": (
        conflict("x {status}"),
        409,
        {"dtm_result": "FAILURE", "message": "cannot x {status} g1: this saga is succeed FAILURE"},
    ),
    "store away": (StoreUnavailableError("the store is away"), 503, {"message": "the store is away"}),
    "overloaded": (OverloadedError("draining"), 503, {"message": "draining"}),
    "schema": (SchemaError("run txcoord db upgrade"), 503, {"message": "run txcoord db upgrade"}),
    "lease lost": (LeaseLostError("another has it"), 503, {"message": "another has it"}),
}


@pytest.mark.parametrize(("error", "code", "body"), ERRORS.values(), ids=ERRORS)
async def test_an_error_of_the_service(
    http: httpx.AsyncClient, service: FakeService, error: Exception, code: int, body: dict[str, str]
) -> None:
    service.error = error

    answer = await http.post(f"{BASE}/submit", json={"gid": "g1"})

    assert (answer.status_code, answer.json()) == (code, body)
    assert answer.headers.get("retry-after") == ("1" if code == 503 else None)


def test_every_error_has_a_row() -> None:
    classes = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, TxcoordError)} - {
        TxcoordError
    }

    assert set(replies.ERROR_ROWS) == classes


async def test_what_nobody_expected_is_an_incident_in_the_log(http: httpx.AsyncClient, service: FakeService) -> None:
    service.error = KeyError("secret detail")

    with structlog.testing.capture_logs() as lines:
        answer = await http.post(f"{BASE}/submit", json={"gid": "g1"})

    assert answer.status_code == 500
    [line] = lines
    assert line["exc_info"] is service.error
    assert line["incident"] in answer.json()["message"]
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("message", "ended"),
    [
        ("no money", "no money FAILURE"),
        ("no money FAILURE", "no money FAILURE"),
        ("no money FAILURE FAILURE FAILURE ", "no money FAILURE"),
        ("FAILURE", "FAILURE"),
        ("", "FAILURE"),
        ("FAILURES", "FAILURES FAILURE"),
    ],
)
def test_a_failure_ends_with_the_word_once(message: str, ended: str) -> None:
    assert replies.ending_in_failure(message) == ended


@given(st.text())
def test_a_failure_always_ends_with_the_word_once(message: str) -> None:
    ended = replies.ending_in_failure(message)

    assert ended.endswith("FAILURE")
    assert not ended.removesuffix("FAILURE").rstrip().endswith("FAILURE")


# -- paths ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/dtmsvr/submit"),
        ("POST", "/api/dtmsvr/submit/"),
        ("POST", "/api/dtmsvr//submit"),
        ("POST", "//api//dtmsvr///submit//"),
    ],
)
async def test_extra_slashes_do_not_matter(http: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await http.request(method, f"http://coordinator{path}", json={"gid": "g1"})

    assert (answer.status_code, answer.json()) == (200, SUCCESS)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/api/dtmsvr"),
        ("GET", "/api/dtmsvr/submit"),
        ("POST", "/api/dtmsvr/newGid"),
        ("PUT", "/x"),
    ],
)
async def test_an_unknown_path_is_404_as_dtm_says_it(http: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await http.request(method, path)

    assert (answer.status_code, answer.text) == (404, "404 page not found")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_ping_answers_any_method(http: httpx.AsyncClient, method: str) -> None:
    assert (await http.request(method, "/api/ping")).json() == {"msg": "pong"}


async def test_new_gid_holds_only_strings(http: httpx.AsyncClient) -> None:
    assert (await http.get(f"{BASE}/newGid")).json() == {"dtm_result": "SUCCESS", "gid": "a-new-gid"}


async def test_ready_and_healthy(http: httpx.AsyncClient, service: FakeService) -> None:
    assert (await http.get("/readyz")).json() == {"status": "ready"}

    service.error = OverloadedError("draining: this coordinator is stopping")

    assert (await http.get("/readyz")).status_code == 503
    assert (await http.get("/healthz")).json() == {"status": "ok"}


async def test_metrics_have_no_label_from_a_client(http: httpx.AsyncClient) -> None:
    await http.get(f"{BASE}/all?limit=2")
    await http.get("/some/unheard-of/path")

    answer = await http.get("/api/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'dtm_server_process_total{api="all",status="ok",type="http"}' in answer.text
    assert 'api="other"' in answer.text
    assert "limit=2" not in answer.text
    assert "unheard-of" not in answer.text


@pytest.mark.parametrize("is_down", [False, True])
async def test_what_the_store_does_not_say_is_left_out(
    http: httpx.AsyncClient, service: FakeService, is_down: bool
) -> None:
    service.store.is_down = is_down

    answer = await http.get("/api/metrics")

    assert answer.status_code == 200
    assert ('txcoord_unfinished{status="aborting"} 0.0' in answer.text) is not is_down


# -- bodies ---------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
async def test_the_content_type_does_not_matter(
    http: httpx.AsyncClient, service: FakeService, content_type: str
) -> None:
    answer = await http.post(f"{BASE}/submit", content=b'{"gid":"g;1"}', headers={"content-type": content_type})

    assert answer.status_code == 200
    assert service.asked == [TransRequest(gid="g1")]


@pytest.mark.parametrize("path", ["submit", "prepare", "abort", "forceStop", "resetNextCronTime"])
async def test_a_body_that_cannot_be_read_is_400(http: httpx.AsyncClient, service: FakeService, path: str) -> None:
    answer = await http.post(f"{BASE}/{path}", content=b"hello")

    assert answer.status_code == 400
    assert answer.json()["message"].startswith("the body is not JSON")
    assert service.asked == []


async def in_pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_body_in_pieces_is_put_together(http: httpx.AsyncClient, service: FakeService) -> None:
    await http.post(f"{BASE}/submit", content=in_pieces(b'{"gid":', b'"g1"', b"}"))

    assert service.asked == [TransRequest(gid="g1")]


@pytest.mark.parametrize("pieces", [1, 11], ids=["at once", "in pieces"])
async def test_a_body_beyond_the_bound_is_413(http: httpx.AsyncClient, service: FakeService, pieces: int) -> None:
    answer = await http.post(f"{BASE}/submit", content=in_pieces(*[b"x" * (1100 // pieces)] * pieces))

    assert answer.status_code == 413
    assert answer.json() == {"message": "the body is larger than 1000 bytes, the most that max_body_bytes allows"}
    assert service.asked == []


async def test_a_client_that_left_is_not_answered(service: FakeService) -> None:
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": f"{BASE}/submit", "query_string": b""}
    await HttpApi(service, max_body_bytes=1000)(scope, receive, send)

    assert (sent, service.asked) == ([], [])


@pytest.mark.parametrize("path", ["forceStop", "resetNextCronTime"])
async def test_a_gid_is_needed(http: httpx.AsyncClient, service: FakeService, path: str) -> None:
    assert (await http.post(f"{BASE}/{path}", json={})).status_code == 400
    assert (await http.post(f"{BASE}/{path}", json={"gid": "g;1"})).json() == SUCCESS
    assert service.asked == ["g1"]


# -- stored objects -------------------------------------------------------------------


async def test_a_transaction_as_dtm_shows_it(http: httpx.AsyncClient, service: FakeService) -> None:
    service.found = [
        stored(
            owner=3,
            status=Status.FAILED,
            options=Options(timeout_to_fail_s=2, retry_interval_s=1, branch_headers={"a": "<b>"}, concurrent=True),
            custom_data='{"concurrent":true}',
            due_us=NOON_US + 1,
            finished_us=NOON_US + 2,
            rollback_reason="url:http://x return failed: no <money> & more FAILURE",
            branches=(
                BranchOp(
                    branch_id="01",
                    op=Op.COMPENSATE,
                    url="http://a/2",
                    payload=b"\xff\x00",
                    status=OpStatus.SUCCEEDED,
                    finished_us=NOON_US + 2,
                ),
                BranchOp(
                    branch_id="01",
                    op=Op.ACTION,
                    url="",
                    attempts=(
                        Attempt(
                            at_us=NOON_US, duration_us=1500, outcome=Outcome.UNKNOWN, code=500, detail="out of order"
                        ),
                    ),
                ),
            ),
        )
    ]

    answer = await http.get(f"{BASE}/query?gid=g%3B1")

    assert service.asked == ["g1"]
    assert answer.json() == {
        "branches": [
            {
                "id": 1,
                "create_time": "2026-01-01T12:00:00.000000Z",
                "update_time": "2026-01-01T12:00:00.000002Z",
                "gid": "g1",
                "url": "http://a/2",
                "bin_data": base64.b64encode(b"\xff\x00").decode(),
                "branch_id": "01",
                "op": "compensate",
                "status": "succeed",
                "finish_time": "2026-01-01T12:00:00.000002Z",
            },
            {
                "id": 2,
                "create_time": "2026-01-01T12:00:00.000000Z",
                "update_time": "2026-01-01T12:00:00.001500Z",
                "gid": "g1",
                "branch_id": "01",
                "op": "action",
                "status": "prepared",
                "attempts": [
                    {
                        "at": "2026-01-01T12:00:00.000000Z",
                        "duration_ms": 1.5,
                        "outcome": "unknown",
                        "code": 500,
                        "detail": "out of order",
                    }
                ],
            },
        ],
        "transaction": {
            "id": 7,
            "create_time": "2026-01-01T12:00:00.000000Z",
            "update_time": "2026-01-01T12:00:00.250000Z",
            "gid": "g1",
            "trans_type": "saga",
            "status": "failed",
            "protocol": "http",
            "rollback_time": "2026-01-01T12:00:00.000002Z",
            "rollback_reason": "url:http://x return failed: no <money> & more FAILURE",
            "options": '{"timeout_to_fail":2,"retry_interval":1,"branch_headers":{"a":"<b>"},"concurrent":true}',
            "custom_data": '{"concurrent":true}',
            "next_cron_time": "2026-01-01T12:00:00.000001Z",
            "owner": "3",
            "concurrent": True,
        },
    }
    assert "\\u003cmoney\\u003e \\u0026 more" in answer.text


async def test_a_bare_transaction_has_no_empty_and_no_null_keys(http: httpx.AsyncClient, service: FakeService) -> None:
    service.found = [stored(number=0, owner=0, status=Status.SUCCEEDED, finished_us=NOON_US)]

    transaction = (await http.get(f"{BASE}/query?gid=g1")).json()["transaction"]

    assert transaction == {
        "id": 0,
        "create_time": "2026-01-01T12:00:00.000000Z",
        "update_time": "2026-01-01T12:00:00.250000Z",
        "gid": "g1",
        "trans_type": "saga",
        "status": "succeed",
        "protocol": "http",
        "finish_time": "2026-01-01T12:00:00.000000Z",
        "options": '{"concurrent":false}',
        "concurrent": False,
    }


async def test_an_instant_beyond_the_calendar_is_its_end(http: httpx.AsyncClient, service: FakeService) -> None:
    service.found = [stored(due_us=2**63 - 1)]

    transaction = (await http.get(f"{BASE}/query?gid=g1")).json()["transaction"]

    assert transaction["next_cron_time"] == "9999-12-31T23:59:59.999999Z"


async def test_an_unknown_gid_is_a_null_transaction(http: httpx.AsyncClient) -> None:
    assert (await http.get(f"{BASE}/query?gid=zzz")).json() == {"branches": [], "transaction": None}
    assert (await http.get(f"{BASE}/all?gid=zzz")).json() == {"next_position": "", "transactions": None}


async def test_a_query_without_gid_is_400(http: httpx.AsyncClient) -> None:
    answer = await http.get(f"{BASE}/query")

    assert answer.status_code == 400
    assert "no gid specified" in answer.json()["message"]


# -- lists ----------------------------------------------------------------------------


async def test_a_full_page_names_the_next_position(http: httpx.AsyncClient, service: FakeService) -> None:
    service.found = [stored(f"g{number}", number=number) for number in (9, 8, 7)]

    page = (await http.get(f"{BASE}/all?limit=2")).json()
    last = (await http.get(f"{BASE}/all?limit=4&position=8")).json()

    assert [transaction["gid"] for transaction in page["transactions"]] == ["g9", "g8"]
    assert (page["next_position"], last["next_position"]) == ("8", "")
    assert service.asked[1] == ListQuery(limit=4, before_id=8)


async def test_the_filters_of_a_list(http: httpx.AsyncClient, service: FakeService) -> None:
    page = await http.get(
        f"{BASE}/all?status=succeed&transType=saga&createTimeStart=1000&createTimeEnd=2000&position=5"
    )

    assert page.json() == {"next_position": "", "transactions": []}
    assert service.asked == [
        ListQuery(
            limit=100,
            before_id=5,
            status=Status.SUCCEEDED,
            pattern=Pattern.SAGA,
            created_from_us=1_000_000,
            created_to_us=2_000_999,
        )
    ]


@pytest.mark.parametrize("filters", ["status=finished", "transType=cron", "status=&transType=SAGA"])
async def test_a_filter_that_nothing_matches_is_an_empty_list(
    http: httpx.AsyncClient, service: FakeService, filters: str
) -> None:
    assert (await http.get(f"{BASE}/all?{filters}")).json() == {"next_position": "", "transactions": []}
    assert service.asked == []


async def test_a_page_has_an_upper_bound_and_goes_on(http: httpx.AsyncClient, service: FakeService) -> None:
    service.found = [stored(number=number) for number in range(2000, 0, -1)]

    page = (await http.get(f"{BASE}/all?limit=5000")).json()

    assert (len(page["transactions"]), page["next_position"]) == (1000, "1001")


@pytest.mark.parametrize(
    "query",
    [
        "all?limit=x",
        "all?limit=0",
        "all?limit=-1",
        "all?limit=1_0",
        "all?limit=%D9%A1",
        "all?position=x",
        "all?position=-1",
        "all?position=9223372036854775808",
        "all?position=1" + "0" * 5000,
        "all?createTimeStart=yesterday",
        "all?createTimeEnd=99999999999999999",
        "resetCronTime?timeout=x",
        "resetCronTime?timeout=-1",
        "resetCronTime?timeout=9223372036854775807",
        "resetCronTime?limit=0",
        "query?" + "&".join(f"a{number}=1" for number in range(200)),
    ],
    ids=lambda query: query[:40],
)
async def test_a_number_that_is_none_is_400(http: httpx.AsyncClient, service: FakeService, query: str) -> None:
    answer = await http.get(f"{BASE}/{query}")

    assert answer.status_code == 400
    assert len(answer.json()["message"]) < 200
    assert service.asked == []


async def test_reset_cron_time_and_its_defaults(http: httpx.AsyncClient, service: FakeService) -> None:
    service.count = 9

    by_default = await http.get(f"{BASE}/resetCronTime")
    bounded = await http.get(f"{BASE}/resetCronTime?timeout=200&limit=9")

    assert by_default.json() == {"has_remaining": False, "succeed_count": 9}
    assert bounded.json() == {"has_remaining": True, "succeed_count": 9}
    assert service.asked == [(None, 100), (200, 9)]


# -- rubbish --------------------------------------------------------------------------

SEGMENTS = st.sampled_from(
    ["submit", "prepare", "abort", "forceStop", "resetNextCronTime", "registerBranch", "registerTccBranch", "all", ""]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
BODIES = st.binary(max_size=100) | st.dictionaries(
    st.sampled_from(["gid", "GID", "trans_type", "steps", "payloads", "custom_data", "wait_result", "retry_limit"])
    | st.sampled_from(["branch_id", "data", "confirm", "cancel"]),
    VALUES,
).map(lambda body: json.dumps(body).encode())


@given(method=st.sampled_from(["GET", "POST"]), segment=SEGMENTS, body=BODIES, query=st.binary(max_size=60))
async def test_nothing_that_a_client_sends_is_a_500(method: str, segment: str, body: bytes, query: bytes) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": f"{BASE}/{segment}", "query_string": query}
    await HttpApi(FakeService(), max_body_bytes=1000)(scope, receive, send)

    assert sent[0]["status"] in (200, 400, 404, 413)


# -- topics ---------------------------------------------------------------------------


def news(url: str = "http://p/a", **more: str) -> dict[str, str]:
    return {"topic": "news", "url": url, **more}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_topic_is_subscribed_to_and_shown_as_dtm_does(http: httpx.AsyncClient, method: str) -> None:
    subscribed = await http.request(method, f"{BASE}/subscribe", params=news(remark="<r>"))

    assert (subscribed.status_code, subscribed.json()) == (200, SUCCESS)
    [shown] = (await http.get(f"{BASE}/queryKV", params={"cat": "topics", "key": "news"})).json()["kv"]
    assert set(shown) == {"id", "create_time", "update_time", "cat", "k", "v", "version"}
    assert (shown["cat"], shown["k"], shown["version"]) == ("topics", "news", 1)
    assert json.loads(shown["v"]) == [{"url": "http://p/a", "remark": "<r>"}]

    unsubscribed = await http.request(method, f"{BASE}/unsubscribe", params=news())

    assert (unsubscribed.status_code, unsubscribed.json()) == (200, SUCCESS)
    [shown] = (await http.get(f"{BASE}/queryKV", params={"cat": "topics", "key": "news"})).json()["kv"]
    assert (shown["v"], shown["version"]) == ("[]", 2)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "subscribe?url=http://p/b", 400, "empty topic"),
        ("GET", "subscribe?topic=news", 400, "empty url"),
        ("GET", "subscribe?topic=news&url=ftp://p/b", 400, "url 'ftp://p/b' cannot be called"),
        ("GET", "subscribe?topic=a%2Fb&url=http://p/b", 400, "the topic's name 'a/b' has slashes"),
        ("GET", f"subscribe?topic=news&url=http://p/b&remark={'r' * 201}", 400, "remark has 201 characters"),
        ("POST", "subscribe?topic=news&url=http://p/a", 409, "this url exists"),
        ("GET", "subscribe?topic=full&url=http://p/4", 413, "max_branches"),
        ("GET", "unsubscribe?url=http://p/b", 400, "empty topic"),
        ("GET", "unsubscribe?topic=news", 400, "empty url"),
        ("GET", "unsubscribe?topic=nobody&url=http://p/a", 404, "no such a topic"),
        ("GET", "unsubscribe?topic=news&url=http://p/b", 404, "no such an url "),
        ("POST", "unsubscribe?topic=empty&url=http://p/a", 404, "this topic is empty"),
        ("DELETE", "topic/nobody", 404, "no such a topic"),
        ("DELETE", "topic/x/news", 400, "has slashes"),
        ("DELETE", "topic/x%00", 400, "control characters"),
        ("GET", "queryKV?key=news", 400, "no cat specified"),
        ("GET", "scanKV?limit=x", 400, "limit must be a whole number"),
        ("GET", "scanKV?position=x", 400, "position must be a whole number"),
    ],
)
async def test_what_cannot_be_done_with_a_topic_is_said_in_dtms_words(
    http: httpx.AsyncClient, method: str, path: str, status: int, message: str
) -> None:
    await http.get(f"{BASE}/subscribe", params=news())
    for number in range(3):
        await http.get(f"{BASE}/subscribe", params={"topic": "full", "url": f"http://p/{number}"})
    await http.get(f"{BASE}/subscribe", params={"topic": "empty", "url": "http://p/a"})
    await http.get(f"{BASE}/unsubscribe", params={"topic": "empty", "url": "http://p/a"})

    answer = await http.request(method, f"{BASE}/{path}")

    assert answer.status_code == status
    assert message in answer.json()["message"]
    assert answer.json()["message"].endswith("FAILURE") == (status == 409)
    assert (await http.get(f"{BASE}/queryKV?cat=topics&key=news")).json()["kv"][0]["version"] == 1


@pytest.mark.parametrize("name", ["news", "with space", "ü?&#%"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_topic_is_deleted_by_its_name(http: httpx.AsyncClient, name: str, slash: str) -> None:
    await http.get(f"{BASE}/subscribe", params={"topic": name, "url": "http://p/a"})

    deleted = await http.delete(f"{BASE}/{slash}topic/{quote(name, safe='')}{slash}")

    assert (deleted.status_code, deleted.json()) == (200, SUCCESS)
    assert (await http.get(f"{BASE}/queryKV", params={"cat": "topics", "key": name})).json() == {"kv": []}


@pytest.mark.parametrize("path", ["topic", "topic/"])
async def test_deleting_a_topic_without_a_name_is_404_as_dtm_has_it(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.delete(f"{BASE}/{path}")

    assert (answer.status_code, answer.text) == (404, "404 page not found")


async def test_documents_are_listed_page_by_page(http: httpx.AsyncClient) -> None:
    for topic in "abc":
        await http.get(f"{BASE}/subscribe", params={"topic": topic, "url": "http://p/a"})

    seen, position, positions = [], "", []
    while True:
        page = (await http.get(f"{BASE}/scanKV", params={"cat": "topics", "limit": 1, "position": position})).json()
        seen += [document["k"] for document in page["kv"]]
        if not (position := page["next_position"]):
            break
        positions.append(position)

    assert seen == ["c", "b", "a"]
    assert len(set(positions)) == 3
    assert (await http.get(f"{BASE}/scanKV?cat=topics&limit=1000")).json()["next_position"] == ""
    assert len((await http.get(f"{BASE}/queryKV?cat=topics")).json()["kv"]) == 3
    assert len((await http.get(f"{BASE}/queryKV")).json()["kv"]) == 3
    assert (await http.get(f"{BASE}/queryKV?cat=other")).json() == {"kv": []}


async def test_a_topic_that_others_change_all_the_time_is_left_for_later(
    http: httpx.AsyncClient, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def overtaken(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(service.store, "put_kv", overtaken)

    answer = await http.get(f"{BASE}/subscribe", params=news())

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "try it again" in answer.json()["message"]
