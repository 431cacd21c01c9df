"""Both clients against a coordinator of the test's own, over real connections: one list of scenarios."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from sdk.tests.client_support import (
    Answer,
    Client,
    Drop,
    ScriptedCoordinator,
    Silence,
    unused_url,
)
from txcoord_sdk import (
    AsyncCoordinator,
    Coordinator,
    CoordinatorUnreachableError,
    Op,
    OpStatus,
    Outcome,
    Pattern,
    RequestRefusedError,
    Saga,
    Status,
    TransactionFailedError,
    TransactionNotFoundError,
    TransactionRunningError,
)

Kind = type[Coordinator] | type[AsyncCoordinator]
DTM_STILL_RUNNING = Answer(409, {"dtm_result": "FAILURE", "message": "wait result not return success: FAILURE"})
ENDED_ALREADY = Answer(409, {"dtm_result": "FAILURE", "message": "current status 'succeed', cannot sumbmit. FAILURE"})
UNKNOWN_GID = Answer(200, {"branches": [], "transaction": None})


@pytest.fixture(params=[Coordinator, AsyncCoordinator], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def client(served: tuple[ScriptedCoordinator, str], kind: Kind) -> Iterator[Client]:
    client = Client(kind, served[1], backoff=0.001, attempts=3)
    yield client
    client.close()


def make_saga(gid: str = "g1", **options: Any) -> Saga:
    saga = Saga(gid, **options)
    saga.step("http://order/create", "http://order/undo", {"id": 3})
    return saga


def standing(status: str, gid: str = "g1", **more: Any) -> Answer:
    transaction = {"id": 1, "gid": gid, "trans_type": "saga", "status": status, "concurrent": False, **more}
    return Answer(200, {"branches": [], "transaction": transaction})


# -- submit ---------------------------------------------------------------------------


def test_a_submit_sends_the_saga_and_returns_its_gid(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/submit", Answer())

    assert client.do("submit", make_saga()) == "g1"

    [request] = server.requests
    assert (request.method, request.path) == ("POST", "/api/dtmsvr/submit")
    assert request.body == {
        "gid": "g1",
        "trans_type": "saga",
        "steps": [{"action": "http://order/create", "compensate": "http://order/undo"}],
        "payloads": ['{"id":3}'],
    }


def test_a_submit_that_a_busy_coordinator_turned_away_is_sent_again(
    server: ScriptedCoordinator, client: Client
) -> None:
    busy = Answer(503, {"message": "the store is away"}, headers=(("Retry-After", "0"),))
    server.answers("/submit", busy, busy, Answer())

    assert client.do("submit", make_saga()) == "g1"
    assert server.paths == ["/submit"] * 3


def test_a_submit_whose_answer_was_lost_is_looked_up_and_not_sent_again(
    server: ScriptedCoordinator, client: Client
) -> None:
    server.answers("/submit", Drop())
    server.answers("/query", standing("submitted"))

    assert client.do("submit", make_saga()) == "g1"
    assert server.paths == ["/submit", "/query"]


def test_a_submit_that_was_lost_itself_is_sent_again(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/submit", Drop(), Answer())
    server.answers("/query", UNKNOWN_GID)

    assert client.do("submit", make_saga()) == "g1"
    assert server.paths == ["/submit", "/query", "/submit"]


def test_a_repeated_submit_of_a_saga_that_succeeded_is_no_error(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/submit", ENDED_ALREADY)
    server.answers("/query", standing("succeed"))

    assert client.do("submit", make_saga(wait_result=True)) == "g1"


@pytest.mark.parametrize("status", [Status.ABORTING, Status.FAILED])
def test_a_waiting_submit_tells_of_a_failure(server: ScriptedCoordinator, client: Client, status: Status) -> None:
    server.answers("/submit", Answer(409, {"dtm_result": "FAILURE", "message": "no stock FAILURE"}))
    server.answers("/query", standing(status, rollback_reason="no stock"))

    with pytest.raises(TransactionFailedError, match=r"g1.*no stock") as caught:
        client.do("submit", make_saga(wait_result=True))

    assert (caught.value.gid, caught.value.status, caught.value.reason) == ("g1", status, "no stock")
    assert server.requests[0].body["wait_result"] is True


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(
            Answer(425, {"dtm_result": "ONGOING", "message": "storage is down"}), "storage is down", id="txcoord"
        ),
        pytest.param(DTM_STILL_RUNNING, "wait result not return success: FAILURE", id="DTM"),
    ],
)
def test_a_waiting_submit_tells_that_the_saga_still_runs(
    server: ScriptedCoordinator, client: Client, answer: Answer, reason: str
) -> None:
    server.answers("/submit", answer)
    server.answers("/query", standing("submitted"))

    with pytest.raises(TransactionRunningError, match="g1 is still submitted") as caught:
        client.do("submit", make_saga(wait_result=True))

    assert (caught.value.gid, caught.value.status, caught.value.reason) == ("g1", Status.SUBMITTED, reason)


@pytest.mark.parametrize("status", [400, 413])
def test_a_refused_submit_says_what_to_change(server: ScriptedCoordinator, client: Client, status: int) -> None:
    server.answers(
        "/submit",
        Answer(status, {"message": "the payload of branch 01 has 2000000 bytes: at most 1048576 are allowed"}),
    )

    with pytest.raises(RequestRefusedError, match=r"g1.*at most 1048576") as caught:
        client.do("submit", make_saga())

    assert caught.value.gid == "g1"
    assert caught.value.status is None
    assert server.paths == ["/submit"]


def test_a_coordinator_that_does_not_listen_is_unreachable(kind: Kind) -> None:
    with unused_url() as url:
        client = Client(kind, url, backoff=0, attempts=2)
        with pytest.raises(CoordinatorUnreachableError, match=url) as caught:
            client.do("submit", make_saga())
        client.close()

    assert (caught.value.gid, caught.value.status) == ("g1", None)
    assert "safe" in str(caught.value)


def test_a_coordinator_that_says_nothing_is_unreachable(served: tuple[ScriptedCoordinator, str], kind: Kind) -> None:
    server, url = served
    server.answers("/submit", Silence())
    server.answers("/query", Silence())
    client = Client(kind, url, timeout=0.05, attempts=1)

    with pytest.raises(CoordinatorUnreachableError, match="Timeout"):
        client.do("submit", make_saga())
    client.close()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(200, b"<html>welcome</html>"), id="a web page"),
        pytest.param(Answer(200, {"dtm_result": "?"}), id="another word"),
        pytest.param(Answer(404, b"404 page not found"), id="not found"),
        pytest.param(Answer(404, {"message": "no Route matched with those values"}), id="a gateway's not found"),
        pytest.param(Answer(307, b"", headers=(("Location", "/elsewhere"),)), id="a redirect"),
    ],
)
def test_a_server_that_is_no_coordinator_is_not_believed(
    server: ScriptedCoordinator, client: Client, answer: Answer
) -> None:
    server.answers("/submit", answer)

    with pytest.raises(CoordinatorUnreachableError, match=r"http://127\.0\.0\.1"):
        client.do("submit", make_saga())


# -- run and wait ---------------------------------------------------------------------


def test_a_run_returns_when_the_coordinator_says_success(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/submit", Answer())

    assert client.do("run", make_saga()) == "g1"
    assert server.requests[0].body["wait_result"] is True
    assert server.paths == ["/submit"]


@pytest.mark.parametrize("first", [DTM_STILL_RUNNING, Answer(425, {"message": "wait"}), Drop()])
def test_a_run_goes_on_asking_until_the_saga_has_ended(
    server: ScriptedCoordinator, client: Client, first: Answer | Drop
) -> None:
    server.answers("/submit", first)
    server.answers("/query", standing("submitted"), standing("submitted"), standing("succeed"))

    assert client.do("run", make_saga()) == "g1"
    assert server.paths == ["/submit", "/query", "/query", "/query"]


def test_a_run_raises_when_everything_is_undone(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/submit", Answer(409, {"message": "no stock FAILURE"}))
    server.answers("/query", standing("aborting"), standing("failed", rollback_reason="no stock"))

    with pytest.raises(TransactionFailedError, match="no stock") as caught:
        client.do("run", make_saga())

    assert caught.value.status is Status.FAILED


@pytest.mark.parametrize("status", ["submitted", "aborting"])
def test_a_wait_ends_when_its_time_is_up(server: ScriptedCoordinator, client: Client, status: str) -> None:
    server.answers("/query", standing(status))

    with pytest.raises(TransactionRunningError, match=f"g1 is still {status}") as caught:
        client.do("wait", "g1", timeout=0)

    assert caught.value.status == status


def test_a_run_whose_time_is_up_says_that_it_cannot_succeed_any_more(
    server: ScriptedCoordinator, client: Client
) -> None:
    server.answers("/submit", Answer(409, {"message": "no stock FAILURE"}))
    server.answers("/query", standing("aborting", rollback_reason="no stock"))

    with pytest.raises(TransactionFailedError, match="being undone: no stock"):
        client.do("run", make_saga(), timeout=0)


def test_a_wait_returns_a_transaction_that_failed_and_leaves_the_verdict_to_the_caller(
    server: ScriptedCoordinator, client: Client
) -> None:
    server.answers("/query", standing("failed", rollback_reason="no stock"))

    found = client.do("wait", "g1")

    assert (found.status, found.reason) == (Status.FAILED, "no stock")
    with pytest.raises(TransactionFailedError, match="no stock"):
        found.raise_for_status()


def test_a_wait_returns_the_transaction_and_outlasts_a_coordinator_that_is_away(
    server: ScriptedCoordinator, client: Client
) -> None:
    away = Answer(503, {"message": "the store is away"})
    server.answers("/query", Drop(), away, away, away, standing("succeed"))

    found = client.do("wait", "g1")

    assert found.raise_for_status() is found


# -- query, list and steering ---------------------------------------------------------


def test_a_query_shows_the_transaction_with_its_branches_and_attempts(
    server: ScriptedCoordinator, client: Client
) -> None:
    branch = {
        "id": 2,
        "gid": "g1",
        "url": "http://order/create",
        "bin_data": "eyJpZCI6M30=",
        "branch_id": "01",
        "op": "action",
        "status": "prepared",
        "attempts": [
            {
                "at": "2025-01-02T03:04:05.123456Z",
                "duration_ms": 12.5,
                "outcome": "unknown",
                "code": 500,
                "detail": "oops",
            }
        ],
    }
    transaction = {
        "id": 1,
        "gid": "g1",
        "trans_type": "saga",
        "status": "submitted",
        "create_time": "2025-01-02T03:04:05Z",
        "next_cron_time": "2025-01-02T03:04:15Z",
        "options": '{"concurrent":false}',
    }
    server.answers("/query", Answer(200, {"branches": [branch], "transaction": transaction}))

    found = client.do("query", "g1")

    assert server.requests[0].query == {"gid": "g1"}
    assert (found.gid, found.pattern, found.status) == ("g1", Pattern.SAGA, Status.SUBMITTED)
    assert found.created_at == datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert found.due_at == datetime(2025, 1, 2, 3, 4, 15, tzinfo=UTC)
    action = found.branch("01", Op.ACTION)
    assert (action.status, action.payload) == (OpStatus.PREPARED, b'{"id":3}')
    assert (action.attempts[0].outcome, action.attempts[0].duration_ms) == (Outcome.UNKNOWN, 12.5)
    assert found.waiting_for == "action of branch 01 answered unknown 500: oops"

    held_off = [branch | {"held_off": "http://b: not called"}]
    server.answers("/query", Answer(200, {"branches": held_off, "transaction": transaction}))
    assert client.do("query", "g1").waiting_for == "action of branch 01 is put off: http://b: not called"


def test_a_query_of_dtm_is_understood(server: ScriptedCoordinator, client: Client) -> None:
    branch = {"id": 0, "create_time": None, "update_time": None, "branch_id": "01", "op": "business"}
    transaction = {
        "id": 0,
        "create_time": "2025-01-02T03:04:05.123456789+08:00",
        "update_time": None,
        "gid": "g1",
        "trans_type": "workflow",
        "status": "prepared",
    }
    server.answers("/query", Answer(200, {"branches": [branch], "transaction": transaction}))

    found = client.do("query", "g1")

    assert found.pattern is Pattern.WORKFLOW
    assert found.branches[0].attempts == ()
    assert found.updated_at is None


@pytest.mark.parametrize("operation", ["query", "wait"])
def test_an_unknown_gid_is_not_found(server: ScriptedCoordinator, client: Client, operation: str) -> None:
    server.answers("/query", UNKNOWN_GID)

    with pytest.raises(TransactionNotFoundError, match="g1"):
        client.do(operation, "g1")


@pytest.mark.parametrize(("operation", "path"), [("force_stop", "/forceStop"), ("retry_now", "/resetNextCronTime")])
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(404, {"message": "no global transaction has the gid g1"}), id="txcoord"),
        pytest.param(Answer(500, {"message": "no TransGlobal with gid: g1 found"}), id="DTM"),
    ],
)
def test_steering_an_unknown_gid_finds_nothing(
    server: ScriptedCoordinator, client: Client, operation: str, path: str, answer: Answer
) -> None:
    server.answers(path, answer)

    with pytest.raises(TransactionNotFoundError, match="g1"):
        client.do(operation, "g1")


@pytest.mark.parametrize(("operation", "path"), [("force_stop", "/forceStop"), ("retry_now", "/resetNextCronTime")])
def test_steering_names_the_transaction(server: ScriptedCoordinator, client: Client, operation: str, path: str) -> None:
    server.answers(path, Answer())

    assert client.do(operation, "g1") is None
    assert server.requests[0].body == {"gid": "g1"}


def test_a_transaction_that_succeeded_cannot_be_stopped(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/forceStop", Answer(409, {"message": "global transaction force stop error. FAILURE"}))
    server.answers("/query", standing("succeed"))

    with pytest.raises(RequestRefusedError, match="force stop error") as caught:
        client.do("force_stop", "g1")

    assert caught.value.status is Status.SUCCEEDED


def test_a_stop_whose_first_answer_was_lost_is_no_error(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/forceStop", Drop(), Answer(409, {"message": "status: failed. error: FAILURE"}))
    server.answers("/query", standing("failed"))

    assert client.do("force_stop", "g1") is None


def test_a_list_goes_through_all_pages(server: ScriptedCoordinator, client: Client) -> None:
    def row(gid: str) -> dict[str, Any]:
        return {"id": 1, "gid": gid, "trans_type": "saga", "status": "failed"}

    server.answers(
        "/all",
        Answer(200, {"next_position": "7", "transactions": [row("a"), row("b")]}),
        Answer(200, {"next_position": "5", "transactions": [row("c"), row("d")]}),
        Answer(200, {"next_position": "", "transactions": None}),
    )

    found = client.do(
        "list",
        status=Status.FAILED,
        pattern=Pattern.SAGA,
        created_from=datetime(2025, 1, 1, tzinfo=UTC),
        page_size=2,
    )

    assert [transaction.gid for transaction in found] == ["a", "b", "c", "d"]
    first, second, third = (request.query for request in server.requests)
    assert first == {"limit": "2", "status": "failed", "transType": "saga", "createTimeStart": "1735689600000"}
    assert (second["position"], third["position"]) == ("7", "5")


def test_ping_and_version(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/api/ping", Answer(200, {"msg": "pong"}))
    server.answers("/version", Answer(200, {"version": "1.2.3"}))

    assert client.do("ping") is None
    assert client.do("version") == "1.2.3"


# -- the clients themselves -----------------------------------------------------------


def test_requests_share_a_connection(server: ScriptedCoordinator, client: Client) -> None:
    server.answers("/submit", *[Answer()] * 5)

    for number in range(5):
        client.do("submit", make_saga(f"g{number}"))

    assert server.connections == 1


@pytest.mark.parametrize("suffix", ["", "/", "/api/dtmsvr", "/api/dtmsvr/"])
def test_the_url_may_name_the_path_of_the_api(served: tuple[ScriptedCoordinator, str], kind: Kind, suffix: str) -> None:
    server, url = served
    server.answers("/version", Answer(200, {"version": "1"}))
    client = Client(kind, url + suffix)

    assert client.do("version") == "1"
    assert server.requests[0].path == "/api/dtmsvr/version"
    client.close()


def test_without_a_url_the_environment_decides(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TXCOORD_URL", raising=False)
    assert kind().url == "http://127.0.0.1:36789"

    monkeypatch.setenv("TXCOORD_URL", "http://coordinator:8000/api/dtmsvr")
    assert kind().url == "http://coordinator:8000"


@pytest.mark.parametrize("url", ["coordinator:36789", "ftp://coordinator", "http://", "http://c/?a=1", "http://[c"])
def test_a_url_that_cannot_work_is_refused_at_once(kind: Kind, url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        kind(url)


def test_a_sync_client_is_a_context_and_leaves_a_borrowed_http_client_open() -> None:
    with httpx.Client() as borrowed:
        with Coordinator(http=borrowed) as coordinator:
            assert coordinator.saga("g1").gid == "g1"
            assert len(coordinator.new_gid()) == 22
        assert not borrowed.is_closed

    with Coordinator() as coordinator:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        coordinator.ping()


async def test_an_async_client_is_a_context_and_leaves_a_borrowed_http_client_open() -> None:
    async with httpx.AsyncClient() as borrowed:
        async with AsyncCoordinator(http=borrowed) as coordinator:
            assert coordinator.saga("g1").gid == "g1"
            assert len(coordinator.new_gid()) == 22
        assert not borrowed.is_closed

    async with AsyncCoordinator() as coordinator:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await coordinator.ping()


def public(kind: Kind) -> dict[str, object]:
    return {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}


def test_both_clients_have_the_same_operations_with_the_same_parameters() -> None:
    sync, async_ = public(Coordinator), public(AsyncCoordinator)

    assert sync.keys() == async_.keys()
    for name in sync:
        if callable(sync[name]):
            ours, theirs = inspect.signature(sync[name]), inspect.signature(async_[name])
            assert ours.parameters == theirs.parameters, name
            if name in ("list", "tcc", "nested_tcc", "xa"):
                assert theirs.return_annotation == f"Async{ours.return_annotation}"
            else:
                assert ours.return_annotation == theirs.return_annotation, name


def test_every_operation_says_what_it_promises() -> None:
    for kind in (Coordinator, AsyncCoordinator):
        assert all(inspect.getdoc(member) for member in public(kind).values())


async def test_a_connection_that_breaks_when_it_is_made_is_no_answer() -> None:
    answers: list[httpx.Response | Exception] = [
        AttributeError("'NoneType' object has no attribute 'getpeername'"),
        httpx.Response(200, json={"msg": "pong"}),
    ]

    def handle(_: httpx.Request) -> httpx.Response:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
        await AsyncCoordinator("http://txcoord", http=http, backoff=0).ping()

    assert answers == []
