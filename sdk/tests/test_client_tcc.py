"""TCC transactions of both clients, against a coordinator and participants of the test's own: one list of scenarios."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sdk.tests.client_support import (
    Answer,
    Drop,
    Reply,
    ScriptedCoordinator,
    Silence,
    unused_url,
)
from txcoord_sdk import (
    AsyncCoordinator,
    AsyncTcc,
    Coordinator,
    CoordinatorUnreachableError,
    Outcome,
    RequestRefusedError,
    Status,
    Tcc,
    TransactionFailedError,
    TransactionRunningError,
    TryFailedError,
)
from txcoord_sdk._rules import MAX_REASON
from txcoord_sdk.branch import BranchContext, answer_to

OK = Answer()
TIMED_OUT = Answer(409, {"dtm_result": "FAILURE", "message": "cannot register g1: this tcc is aborting FAILURE"})
DUPLICATE_AT_DTM = Answer(500, {"message": "Error 1062: Duplicate entry 'g1-01-cancel' for key 'gid_branch_uniq'"})


def standing(status: str, *branch_ids: str, reason: str = "") -> Answer:
    branches = [
        {"branch_id": id_, "op": op, "status": "prepared"} for id_ in branch_ids for op in ("cancel", "confirm")
    ]
    transaction = {"gid": "g1", "trans_type": "tcc", "status": status, "rollback_reason": reason}
    return Answer(200, {"branches": branches, "transaction": transaction})


def context(op: str = "try", branch_id: str = "01", trans_type: str = "tcc") -> BranchContext:
    query = {"gid": "g1", "trans_type": trans_type, "branch_id": branch_id, "op": op, "dtm": "http://c/api/dtmsvr"}
    return BranchContext.from_query(query)


class Block:
    """The `with` block of either client, in blocking words: `block.run(lambda call: …)`."""

    def __init__(self, kind: type[Coordinator] | type[AsyncCoordinator], url: str) -> None:
        self.url = url
        self._kind = kind
        self._runner = asyncio.Runner()
        self._coordinator = kind(url, backoff=0.001, attempts=3, timeout=5)

    def run(self, work: Callable[[Opened], object] = lambda _: None, *, gid: str = "g1", **options: Any) -> Any:
        return self.run_in(self._coordinator.tcc(gid, **options), work)

    def run_nested(self, branch: BranchContext, work: Callable[[Opened], object], **options: Any) -> Any:
        return self.run_in(self._coordinator.nested_tcc(branch, **options), work)

    def run_in(self, tcc: Tcc | AsyncTcc, work: Callable[[Opened], object]) -> Any:
        opened = Opened(self, tcc)
        opened.await_(tcc.__aenter__() if isinstance(tcc, AsyncTcc) else tcc.__enter__())
        error: BaseException | None = None
        result: object = None
        try:
            result = work(opened)
        except BaseException as raised:  # noqa: BLE001 (as a with statement does)
            error = raised
        kind = type(error) if error else None
        trace = error.__traceback__ if error else None
        leave = tcc.__aexit__ if isinstance(tcc, AsyncTcc) else tcc.__exit__
        assert opened.await_(leave(kind, error, trace)) is None, "what was raised in the block goes on"
        if error is not None:
            raise error
        return result

    def await_(self, given: Any) -> Any:
        return self._runner.run(given) if inspect.iscoroutine(given) else given

    def close(self) -> None:
        self.await_(self._coordinator.close())
        self._runner.close()


class Opened:
    """A transaction within its block."""

    def __init__(self, block: Block, tcc: Tcc | AsyncTcc) -> None:
        self.await_ = block.await_
        self.url = block.url
        self.tcc = tcc

    def call(self, name: str = "order", payload: object = None) -> Any:
        base = f"{self.url}/{name}"
        return self.await_(self.tcc.call(f"{base}/try", f"{base}/confirm", f"{base}/cancel", payload))

    def submit(self) -> None:
        self.await_(self.tcc.submit())


@pytest.fixture(params=[Coordinator, AsyncCoordinator], ids=["sync", "async"])
def block(request: pytest.FixtureRequest, served: tuple[ScriptedCoordinator, str]) -> Iterator[Block]:
    block = Block(request.param, served[1])
    yield block
    block.close()


# -- the block ------------------------------------------------------------------------


def test_both_branches_are_registered_before_they_are_tried_and_then_submitted(
    server: ScriptedCoordinator, block: Block
) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", OK, OK)
    server.answers("/order/try", Answer(200, {"order_id": 7}))
    server.answers("/storage/try", Answer(200, b""))
    server.answers("/submit", OK)

    def work(opened: Opened) -> list[Any]:
        return [opened.call("order", {"id": 3}), opened.call("storage", {"id": 3})]

    order, storage = block.run(work, timeout_to_fail=60, branch_headers={"X-Tenant": "t1", "Host": "elsewhere"})

    assert server.paths == ["/prepare", "/registerBranch", "/order/try", "/registerBranch", "/storage/try", "/submit"]
    prepare, register, tried, *_, submit = server.requests
    opened_as = {
        "gid": "g1",
        "trans_type": "tcc",
        "timeout_to_fail": 60,
        "branch_headers": {"X-Tenant": "t1", "Host": "elsewhere"},
    }
    assert prepare.body == submit.body == opened_as
    assert register.body == {
        "gid": "g1",
        "trans_type": "tcc",
        "branch_id": "01",
        "confirm": f"{block.url}/order/confirm",
        "cancel": f"{block.url}/order/cancel",
        "data": '{"id":3}',
    }
    assert (tried.method, tried.body) == ("POST", {"id": 3})
    assert tried.query == {
        "branch_id": "01",
        "dtm": f"{block.url}/api/dtmsvr",
        "gid": "g1",
        "op": "try",
        "trans_type": "tcc",
    }
    assert list(tried.query) == sorted(tried.query)
    assert (tried.headers["x-tenant"], tried.headers["content-type"]) == ("t1", "application/json")
    assert tried.headers["host"] in block.url
    assert (order.branch_id, order.json(), storage.branch_id, storage.json()) == ("01", {"order_id": 7}, "02", None)


def test_participants_are_not_told_the_password_of_the_coordinator(served: tuple[ScriptedCoordinator, str]) -> None:
    server, url = served
    for path in ("/prepare", "/registerBranch", "/order/try", "/submit"):
        server.answers(path, OK)
    with Coordinator(url.replace("//", "//me:secret@")) as coordinator, coordinator.tcc() as tcc:
        tcc.call(f"{url}/order/try", "", "", {})
    prepare, _, tried, _ = server.requests

    assert prepare.headers["authorization"].startswith("Basic ")
    assert tried.query["dtm"] == f"{url}/api/dtmsvr"
    assert "authorization" not in tried.headers
    assert not any("secret" in word for word in (str(tried.query), str(tried.headers)))
    # One of another SDK may tell it.
    told = {**tried.query, "dtm": "http://me:secret@c/api/dtmsvr"}
    assert "secret" not in repr(BranchContext.from_query(told))


def test_an_exception_aborts_with_its_words_and_goes_on(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", OK)
    server.answers("/order/try", OK)
    server.answers("/abort", OK)

    def work(opened: Opened) -> None:
        opened.call()
        raise LookupError("no such customer\n" + "x" * 5000)

    with pytest.raises(LookupError, match="no such customer"):
        block.run(work)

    abort = server.requests[-1].body
    assert (abort["gid"], abort["trans_type"]) == ("g1", "tcc")
    assert abort["rollback_reason"].startswith("LookupError: no such customer x")
    assert len(abort["rollback_reason"]) == MAX_REASON


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()], ids=["keyboard", "cancelled"])
def test_being_interrupted_aborts_but_is_not_held_up(
    server: ScriptedCoordinator, block: Block, error: BaseException
) -> None:
    server.answers("/prepare", OK)
    server.answers("/abort", Answer(503, {"message": "busy"}))

    def work(_: Opened) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        block.run(work)

    assert server.requests[-1].body["rollback_reason"] == type(error).__name__
    assert server.paths == ["/prepare", "/abort"]
    assert "the deadline cancels it" in caught.value.__notes__[0]


def test_a_block_without_a_call_is_submitted_all_the_same(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", OK)

    block.run()


def test_a_gid_is_made_if_none_is_given(block: Block) -> None:
    first, second = (block._coordinator.tcc() for _ in range(2))

    assert len({first.gid, second.gid}) == 2
    assert len(first.gid) == 22
    assert first.gid in repr(first)


# -- tries ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        pytest.param(Answer(409, {"message": "no stock"}), Outcome.FAILURE, "no stock", id="409"),
        pytest.param(Answer(409, b""), Outcome.FAILURE, "no further word", id="409 without a word"),
        pytest.param(
            Answer(200, {"dtm_result": "FAILURE", "message": "no stock"}), Outcome.FAILURE, "no stock", id="old style"
        ),
        pytest.param(Answer(200, b"FAILURE"), Outcome.FAILURE, "FAILURE", id="bare word"),
        pytest.param(Answer(425, {"message": "wait"}), Outcome.ONGOING, "wait", id="425"),
        pytest.param(Answer(500, {"message": "a FAILURE"}), Outcome.UNKNOWN, "HTTP 500: a FAILURE", id="500"),
        pytest.param(Answer(503, b""), Outcome.UNKNOWN, "HTTP 503: no further word", id="503"),
        pytest.param(Answer(201, b"{}"), Outcome.UNKNOWN, "HTTP 201: {}", id="201"),
        pytest.param(Answer(404, b"not here"), Outcome.UNKNOWN, "HTTP 404: not here", id="404"),
    ],
)
def test_a_try_that_did_not_succeed_aborts_all(
    server: ScriptedCoordinator, block: Block, answer: Answer, outcome: Outcome, reason: str
) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", OK)
    server.answers("/order/try", answer)
    server.answers("/abort", OK)

    with pytest.raises(TryFailedError) as caught:
        block.run(Opened.call)

    error = caught.value
    assert (error.gid, error.branch_id, error.url) == ("g1", "01", f"{block.url}/order/try")
    assert (error.outcome, error.reason, error.status) == (outcome, reason, Status.ABORTING)
    assert server.requests[-1].body["rollback_reason"] == f"the try of branch 01 had the outcome {outcome}: {reason}"


def test_a_success_may_speak_of_failure(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", OK)
    server.answers("/order/try", Answer(200, {"note": "no FAILURE here"}))
    server.answers("/submit", OK)

    block.run(Opened.call)


@pytest.mark.parametrize("answer", [Drop(), Answer(307, b"", headers=(("Location", "/order/try2"),))])
def test_a_try_that_may_have_arrived_is_not_repeated(server: ScriptedCoordinator, block: Block, answer: Reply) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", OK)
    server.answers("/order/try", answer)
    server.answers("/abort", OK)

    with pytest.raises(TryFailedError) as caught:
        block.run(Opened.call)

    assert caught.value.outcome is Outcome.UNKNOWN
    assert server.paths == ["/prepare", "/registerBranch", "/order/try", "/abort"]


def test_a_participant_that_does_not_listen_is_an_unknown_outcome(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", OK)
    server.answers("/abort", OK)

    with unused_url() as url, pytest.raises(TryFailedError, match="no answer") as caught:
        block.run(lambda opened: opened.await_(opened.tcc.call(f"{url}/try")))

    assert caught.value.outcome is Outcome.UNKNOWN


def test_a_try_has_the_time_of_its_request(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", OK)
    server.answers("/order/try", Silence())
    server.answers("/abort", OK)

    with pytest.raises(TryFailedError, match="ReadTimeout"):
        block.run(Opened.call, request_timeout=1)


def test_a_failure_that_was_caught_is_not_confirmed_all_the_same(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", OK, OK)
    server.answers("/order/try", OK)
    server.answers("/storage/try", Answer(409, {"message": "no stock"}))
    server.answers("/abort", OK)

    def work(opened: Opened) -> None:
        opened.call("order")
        with pytest.raises(TryFailedError):
            opened.call("storage")
        with pytest.raises(TryFailedError):
            opened.submit()

    with pytest.raises(TryFailedError, match="no stock"):
        block.run(work)
    assert server.paths[-1] == "/abort"


async def test_a_try_that_was_broken_off_is_not_confirmed(served: tuple[ScriptedCoordinator, str]) -> None:
    server, url = served
    server.answers("/prepare", OK)
    server.answers("/registerBranch", OK)
    server.answers("/order/try", Silence())
    server.answers("/abort", OK)

    async def block(coordinator: AsyncCoordinator) -> None:
        async with coordinator.tcc("g1") as tcc:
            call = asyncio.create_task(tcc.call(f"{url}/order/try"))
            while "/order/try" not in server.paths:
                await asyncio.sleep(0.005)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    async with AsyncCoordinator(url) as coordinator:
        with pytest.raises(TryFailedError, match="broken off"):
            await block(coordinator)


async def test_tries_may_run_at_once(served: tuple[ScriptedCoordinator, str]) -> None:
    server, url = served
    server.answers("/prepare", OK)
    server.answers("/registerBranch", *[OK] * 5)
    server.answers("/order/try", *[OK] * 5)
    server.answers("/submit", OK)

    async with AsyncCoordinator(url) as coordinator, coordinator.tcc("g1") as tcc:
        answers = await asyncio.gather(*(tcc.call(f"{url}/order/try") for _ in range(5)))

    assert [answer.branch_id for answer in answers] == ["01", "02", "03", "04", "05"]


def test_a_url_keeps_its_own_query_and_ours_comes_last(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", OK)
    server.answers("/try", OK)
    server.answers("/submit", OK)

    block.run(lambda opened: opened.await_(opened.tcc.call(f"{block.url}/try?shop=berlin&a=%26#top", payload="")))

    tried = server.requests[2]
    assert list(tried.query) == ["shop", "a", "branch_id", "dtm", "gid", "op", "trans_type"]
    assert (tried.query["a"], tried.body) == ("&", None)


def test_without_a_try_url_nothing_is_called(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", OK)
    server.answers("/submit", OK)

    block.run(lambda opened: opened.await_(opened.tcc.call("", "http://order/confirm")))

    assert server.requests[1].body["confirm"] == "http://order/confirm"


# -- the coordinator in between -----------------------------------------------------------


@pytest.mark.parametrize("first", [Drop(), Answer(503, {"message": "busy"}), Answer(500, {"message": "?"})])
def test_a_prepare_is_repeated_until_it_is_answered(server: ScriptedCoordinator, block: Block, first: Reply) -> None:
    server.answers("/prepare", first, OK)
    server.answers("/submit", OK)

    block.run()


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        pytest.param([Answer(400, {"message": "gid is too long"})], RequestRefusedError, id="refused"),
        pytest.param([Answer(503, {"message": "busy"})] * 3, CoordinatorUnreachableError, id="away"),
    ],
)
def test_a_prepare_that_failed_is_not_aborted(
    server: ScriptedCoordinator, block: Block, answers: list[Answer], error: type[Exception]
) -> None:
    server.answers("/prepare", *answers)

    with pytest.raises(error):
        block.run()

    assert set(server.paths) == {"/prepare"}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("aborting", TransactionFailedError),
        ("failed", TransactionFailedError),
        ("submitted", RequestRefusedError),
        ("succeed", RequestRefusedError),
    ],
)
def test_a_gid_that_was_used_is_not_used_again(
    server: ScriptedCoordinator, block: Block, status: str, error: type[Exception]
) -> None:
    server.answers("/prepare", Answer(409, {"message": "cannot prepare g1"}))
    server.answers("/query", standing(status))

    with pytest.raises(error) as caught:
        block.run()

    assert getattr(caught.value, "status", None) == status


@pytest.mark.parametrize("lost", [Drop(), DUPLICATE_AT_DTM], ids=["no answer", "DTM has it already"])
def test_a_registration_that_took_effect_without_an_answer_is_found(
    server: ScriptedCoordinator, block: Block, lost: Reply
) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", lost)
    server.answers("/query", standing("prepared", "01"))
    server.answers("/order/try", OK)
    server.answers("/submit", OK)

    block.run(Opened.call)

    assert server.paths.count("/registerBranch") == 1


def test_a_registration_that_was_lost_is_sent_again(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", Drop(), OK)
    server.answers("/query", standing("prepared"))
    server.answers("/order/try", OK)
    server.answers("/submit", OK)

    block.run(Opened.call)

    first, second = (request.body for request in server.requests if request.path.endswith("/registerBranch"))
    assert first == second


@pytest.mark.parametrize(
    ("register", "query"),
    [
        ([TIMED_OUT], [standing("aborting", reason="Timeout after 35 seconds")]),
        ([Drop()], [standing("failed", "01", reason="Timeout after 35 seconds")]),
    ],
    ids=["told", "found out"],
)
def test_after_the_deadline_nothing_is_tried_any_more(
    server: ScriptedCoordinator, block: Block, register: list[Reply], query: list[Answer]
) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", *register)
    server.answers("/query", *query, standing("failed"))
    server.answers("/abort", TIMED_OUT)

    with pytest.raises(TransactionFailedError, match="Timeout after 35 seconds") as caught:
        block.run(Opened.call)

    assert not hasattr(caught.value, "__notes__"), "it is undone, which is what an abort is for"
    assert "/order/try" not in server.paths


def test_a_branch_that_cannot_be_registered_is_not_tried(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/registerBranch", Answer(413, {"message": "data has too many bytes"}))
    server.answers("/abort", OK)

    def work(opened: Opened) -> None:
        with pytest.raises(RequestRefusedError):
            opened.call()

    with pytest.raises(TransactionFailedError, match="too many bytes"):
        block.run(work)


def test_a_submit_whose_answer_was_lost_is_looked_up(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", Drop())
    server.answers("/query", standing("submitted"))

    block.run()

    assert server.paths.count("/submit") == 1


def test_a_submit_that_was_lost_is_sent_again(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", Drop(), OK)
    server.answers("/query", standing("prepared"))

    block.run()


def test_a_submit_of_what_is_not_there_any_more_makes_no_new_one(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", Drop())
    server.answers("/query", Answer(200, {"branches": [], "transaction": None}))

    with pytest.raises(RequestRefusedError, match="no global transaction"):
        block.run()

    assert server.paths.count("/submit") == 1


def test_a_submit_that_fails_is_not_aborted_and_may_be_repeated(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", *[Answer(503, {"message": "busy"})] * 3)
    kept: list[Opened] = []

    with pytest.raises(CoordinatorUnreachableError, match="the deadline cancels it"):
        block.run(kept.append)

    assert "/abort" not in server.paths
    server.answers("/submit", OK)
    kept[0].submit()


def test_a_submit_by_hand_is_not_done_twice(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", OK)

    def work(opened: Opened) -> None:
        opened.submit()
        raise LookupError("afterwards")

    with pytest.raises(LookupError):
        block.run(work)

    assert server.paths == ["/prepare", "/submit"]


@pytest.mark.parametrize(
    ("answer", "found", "error"),
    [
        pytest.param(Answer(425, {"message": "wait"}), "submitted", TransactionRunningError, id="still running"),
        pytest.param(Answer(409, {"message": "?"}), "succeed", None, id="ended already"),
        pytest.param(Answer(409, {"message": "?"}), "aborting", TransactionFailedError, id="the deadline came first"),
        pytest.param(Answer(409, {"message": "?"}), "prepared", RequestRefusedError, id="refused"),
    ],
)
def test_a_waiting_submit_tells_how_it_stands(
    server: ScriptedCoordinator, block: Block, answer: Answer, found: str, error: type[Exception] | None
) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", answer)
    server.answers("/query", standing(found))

    if error is None:
        block.run(wait_result=True)
    else:
        with pytest.raises(error):
            block.run(wait_result=True)

    prepare, submit, _ = server.requests
    assert "wait_result" not in prepare.body
    assert submit.body["wait_result"] is True


def test_a_transaction_says_what_an_operator_has_to_mend(server: ScriptedCoordinator, block: Block) -> None:
    words = "confirm of branch 02 was refused 10 times: no such account"
    answer = standing("submitted", "02")
    answer.body["transaction"]["needs_operator"] = words
    server.answers("/query", answer)

    found = block.await_(block._coordinator.query("g1"))

    assert found.needs_operator == words
    with pytest.raises(TransactionRunningError, match="no such account"):
        found.raise_for_status()


def test_a_time_out_before_the_submit_is_a_failure(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", Answer(409, {"message": "cannot submit g1: this tcc is failed"}))
    server.answers("/query", standing("failed", reason="Timeout after 60 seconds"))

    with pytest.raises(TransactionFailedError, match="Timeout after 60 seconds"):
        block.run(timeout_to_fail=60)


def test_an_abort_that_fails_leaves_a_note_on_what_went_wrong_first(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/abort", *[Answer(503, {"message": "busy"})] * 3)

    def work(_: Opened) -> None:
        raise LookupError

    with pytest.raises(LookupError) as caught:
        block.run(work)

    assert "could not be aborted" in caught.value.__notes__[0]
    assert server.requests[-1].body["rollback_reason"] == "LookupError"


# -- branches within a branch ---------------------------------------------------------------


def test_a_participant_adds_branches_under_its_own(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/registerBranch", OK, OK)
    server.answers("/order/try", OK, OK)

    block.run_nested(context(), lambda opened: [opened.call(), opened.call()], branch_headers={"X-Tenant": "t1"})

    assert server.paths == ["/registerBranch", "/order/try"] * 2
    assert [request.body["branch_id"] for request in server.requests[::2]] == ["0101", "0102"]
    assert [request.query["branch_id"] for request in server.requests[1::2]] == ["0101", "0102"]
    assert {request.query["gid"] for request in server.requests[1::2]} == {"g1"}
    assert server.requests[1].headers["x-tenant"] == "t1"


def test_what_is_nested_is_not_aborted_but_fails(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/registerBranch", OK)
    server.answers("/order/try", Answer(409, {"message": "no stock"}))

    def work(opened: Opened) -> None:
        with pytest.raises(TryFailedError):
            opened.call()
        with pytest.raises(ValueError, match="submitted only by whoever opened it"):
            opened.submit()

    with pytest.raises(TryFailedError) as caught:
        block.run_nested(context(), work)

    assert server.paths == ["/registerBranch", "/order/try"]
    answer = answer_to(caught.value, {})
    assert (answer.status, answer.body) == (409, {"dtm_result": "FAILURE", "message": "no stock"})


def test_an_unknown_outcome_within_a_branch_is_unknown_for_it_too() -> None:
    assert answer_to(TryFailedError("g1", None, "?", outcome=Outcome.UNKNOWN), {}).status == 500


@pytest.mark.parametrize(
    ("branch", "sentence"),
    [
        pytest.param(context(op="confirm"), "by its try, not by the confirm of a tcc", id="confirm"),
        pytest.param(context(trans_type="saga", op="action"), "not by the action of a saga", id="saga"),
        pytest.param(context(branch_id="01" * 10), "nested too deeply", id="depth"),
    ],
)
def test_only_a_try_may_have_branches_within(block: Block, branch: BranchContext, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        block.run_nested(branch, lambda _: None)


@pytest.mark.parametrize("op", ["try", "confirm", "cancel"])
def test_a_context_knows_the_coordinator(op: str) -> None:
    found = context(op)

    assert (found.op, found.coordinator_url) == (op, "http://c/api/dtmsvr")
    assert found.barrier.op == op


# -- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gid": "a;b"}, "semicolon"),
        ({"timeout_to_fail": 0}, "timeout_to_fail must be"),
        ({"request_timeout": 1.5}, "request_timeout must be"),
        ({"branch_headers": {"A B": "c"}}, "not a header name"),
    ],
)
def test_an_option_that_cannot_work_is_named_at_once(block: Block, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        block._coordinator.tcc(**options)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("order/try",), "try_url"),
        (("http://order/try", "http://"), "confirm_url"),
        (("http://order/try", "", "ftp://order"), "cancel_url"),
        (("http://order/try", "", "", object()), "no form in JSON"),
    ],
)
def test_a_call_that_cannot_work_sends_nothing_and_spoils_nothing(
    server: ScriptedCoordinator, block: Block, arguments: tuple[Any, ...], sentence: str
) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", OK)

    def work(opened: Opened) -> None:
        with pytest.raises(ValueError, match=sentence):
            opened.await_(opened.tcc.call(*arguments))

    block.run(work)


def test_ninety_nine_branches_are_the_most(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/registerBranch", *[OK] * 99)

    def work(opened: Opened) -> None:
        for _ in range(99):
            opened.await_(opened.tcc.call(""))
        with pytest.raises(ValueError, match="99 branches"):
            opened.await_(opened.tcc.call(""))

    block.run_nested(context(), work)

    assert server.requests[-1].body["branch_id"] == "0199"


def test_a_transaction_is_used_once_and_within_its_block(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/submit", OK)
    tcc = block._coordinator.tcc("g1")
    opened = Opened(block, tcc)

    with pytest.raises(ValueError, match="has not begun"):
        opened.call()
    block.run_in(tcc, lambda _: None)
    with pytest.raises(ValueError, match="has been submitted"):
        opened.call()
    with pytest.raises(ValueError, match="open a new one"):
        block.run_in(tcc, lambda _: None)


def test_what_was_aborted_cannot_be_submitted(server: ScriptedCoordinator, block: Block) -> None:
    server.answers("/prepare", OK)
    server.answers("/abort", Answer(425, {"message": "cancels are under way"}))
    kept: list[Opened] = []

    def work(opened: Opened) -> None:
        kept.append(opened)
        raise LookupError

    with pytest.raises(LookupError):
        block.run(work)
    with pytest.raises(ValueError, match="has ended"):
        kept[0].submit()


def test_the_error_says_what_happened_and_survives_pickling() -> None:
    error = TryFailedError("g1", Status.ABORTING, "no stock", "02", "http://storage/try", Outcome.FAILURE)

    copy = pickle.loads(pickle.dumps(error))

    assert str(copy) == str(error)
    assert (copy.branch_id, copy.url, copy.outcome, copy.reason) == ("02", error.url, Outcome.FAILURE, "no stock")
    assert json.dumps(copy.outcome) == '"failure"'
