"""The workflows of a participant: registered by name, run, and resumed when the coordinator asks.

workflows = AsyncWorkflows(coordinator, resume_url="http://shop:8080/workflow/resume")

@workflows.workflow
async def buy(wf: AsyncWorkflow, order: Order) -> Receipt:
    ...

receipt = await buy.run(Order(3, 20), gid="order-7")

app.include_router(workflow_router(workflows))   # of txcoord_sdk.fastapi
"""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar, cast, overload

import msgspec
from msgspec import Struct

from txcoord.model import Outcome, Pattern, Status
from txcoord.protocol import CHECK_BACK_BRANCH, QUERY_PARAMETERS, RESULT_KEY, STATUS_ONGOING, ResultWord
from txcoord_sdk._calls import Flow
from txcoord_sdk._checks import Duration, checked_gid, checked_url, protocol_for, seconds, wire_options
from txcoord_sdk._rules import Rules
from txcoord_sdk.barrier.drivers.base import run_now
from txcoord_sdk.branch import Answer, BranchFailed, BranchOngoing
from txcoord_sdk.coordinator import AsyncCoordinator, Coordinator
from txcoord_sdk.errors import (
    RequestRefusedError,
    TransactionFailedError,
    TransactionNotFoundError,
    TransactionRunningError,
    TxcoordSdkError,
)
from txcoord_sdk.gid import new_gid
from txcoord_sdk.results import StoredWorkflow, WorkflowAnswer
from txcoord_sdk.workflow import _codec
from txcoord_sdk.workflow._execution import Carry, Execution, Numbers, SettledElsewhere
from txcoord_sdk.workflow._works import called
from txcoord_sdk.workflow.errors import WorkflowInterruptedError
from txcoord_sdk.workflow.workflow import AsyncWorkflow, Workflow

logger = logging.getLogger("txcoord_sdk.workflow")

In = TypeVar("In")
Out = TypeVar("Out")
T = TypeVar("T")

AsyncFunction = Callable[[AsyncWorkflow, In], Awaitable[Out]]
SyncFunction = Callable[[Workflow, In], Out]


class _Plan(Struct, frozen=True):
    """A workflow's `custom_data`, as DTM's clients write it."""

    name: str = ""
    data: str | None = None


class Registered:
    """A function, and what is to be known of it."""

    def __init__(
        self, function: Callable[..., Any], name: str, options: Mapping[str, object], timeout_s: float
    ) -> None:
        self.name = name
        self.function = function
        self.options = options
        self.timeout_s = timeout_s
        self.input_type = _codec.input_type(function)
        self.result_type = _codec.result_type(function)
        _codec.check_readable(self.input_type, what=f"the input of workflow {name}")
        _codec.check_readable(self.result_type, what=f"the result of workflow {name}")

    def write(self, given: object) -> bytes:
        return _codec.encode_whole(given, self.input_type, what=f"the input of workflow {self.name}")

    def read(self, data: bytes) -> Any:
        """Return an input from what is stored of it.

        Raises:
            ValueError: it is none.
        """
        try:
            return _codec.decode_whole(data, self.input_type)
        except ValueError as error:
            error.add_note(f"this is no input of workflow {self.name}")
            raise

    @property
    def headers(self) -> Mapping[str, str]:
        return cast(Mapping[str, str], self.options.get("branch_headers", {}))


class _Ended(NamedTuple):
    """How an execution came out: with a result, or with what `run` raises."""

    result: bytes
    failure: TransactionFailedError | None = None


class _Running(NamedTuple, Generic[T]):
    """An execution that is under way in this process."""

    name: str
    """Of the workflow."""
    future: T


class _AnyWorkflows(ABC):
    """Registry, run and resume, once for both clients. Coroutines here never suspend for the sync one."""

    _is_async: bool
    _workflow_type: type[AsyncWorkflow] | type[Workflow]

    def __init__(self, rules: Rules, carry: Carry, resume_url: str, *, table: str | None) -> None:
        if not resume_url:
            raise ValueError("workflows need a resume_url: without it nobody would go on with one that was interrupted")
        self._resume_url = checked_url(resume_url, name="resume_url")
        self._rules = rules
        self._carry = carry
        self._table = table
        self._registered: dict[str, Registered] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The workflows that are registered."""
        return tuple(self._registered)

    def _register(
        self,
        function: Callable[..., Any],
        name: str | None,
        request_timeout: Duration | None,
        retry_interval: Duration | None,
        branch_headers: Mapping[str, str] | None,
    ) -> Registered:
        name = name or _codec.name_of(function)
        if name in self._registered:
            raise ValueError(f"there is a workflow {name!r} already: give this one another name")
        options = wire_options(
            timeout_to_fail=None,
            request_timeout=request_timeout,
            retry_interval=retry_interval,
            branch_headers=branch_headers,
        )
        timeout_s = (
            self._rules.timeout_s if request_timeout is None else seconds(request_timeout, name="request_timeout")
        )
        registered = Registered(function, name, options, timeout_s)
        self._registered[name] = registered
        return registered

    def _find(self, name: str) -> Registered:
        try:
            return self._registered[name]
        except KeyError:
            known = ", ".join(self._registered) or "none"
            raise LookupError(f"no workflow is registered as {name!r} here; registered: {known}") from None

    # -- run -----------------------------------------------------------------------------

    async def _run_once(self, registered: Registered, gid: str, data: bytes) -> _Ended:
        try:
            registered.read(data)
        except ValueError:
            # Opened with it, it would be resumed for ever. But of one that is known another input counts, or its end.
            try:
                found = await self._carry(self._rules.find_workflow(gid))
            except TransactionNotFoundError:
                found = None
            if found is None:
                raise
            return await self._go_on(registered, gid, found, data)
        body: dict[str, object] = {
            "gid": gid,
            "trans_type": Pattern.WORKFLOW,
            "query_prepared": self._resume_url,
            "custom_data": msgspec.json.encode(_Plan(registered.name, b64encode(data).decode())).decode(),
            **registered.options,
        }
        if protocol := protocol_for(None, (self._resume_url,)):
            body["protocol"] = protocol
        found = await self._carry(self._rules.open_workflow(gid, body))
        return await self._go_on(registered, gid, found, data)

    async def _go_on(self, registered: Registered, gid: str, found: WorkflowAnswer, data: bytes) -> _Ended:
        plan = _plan_of(found)
        if plan is not None:
            _check_name(gid, registered.name, plan.name, found.transaction.status if found.transaction else None)
        ended = _ending_of(found)
        if ended is not None:
            return ended
        # The input that it was opened with counts, whatever it is run with now.
        stored = _data_of(plan) if plan is not None else None
        execution = Execution(
            self._rules,
            self._carry,
            gid,
            found,
            headers=registered.headers,
            timeout_s=registered.timeout_s,
            table=self._table,
            is_async=self._is_async,
        )
        wf = self._workflow_type(execution, registered.name, Numbers())

        async def function() -> bytes:
            given = registered.read(data if stored is None else stored)
            value = await called(registered.function, wf, given, is_async=self._is_async)
            what = f"the result of workflow {registered.name}"
            return _codec.encode_whole(value, registered.result_type, what=what)

        try:
            return _Ended(await execution.run(function))
        except BranchFailed as refusal:
            failure = TransactionFailedError(gid, Status.FAILED, str(refusal) or "it was refused")
            failure.__cause__ = refusal
            return _Ended(b"", failure)
        except SettledElsewhere as overtaken:
            ended = _ending_of(overtaken.found) if overtaken.found is not None else None
            if ended is None:
                raise
            return ended
        except BranchOngoing as wait:
            raise WorkflowInterruptedError(
                gid, Status.PREPARED, f"it asks for patience: {wait}", Outcome.ONGOING
            ) from wait
        except TxcoordSdkError:
            raise
        except Exception as error:
            error.add_note(f"workflow {registered.name} {gid} is not ended: it is resumed when the coordinator asks")
            raise

    def _result(self, registered: Registered, gid: str, ended: _Ended) -> Any:
        if ended.failure is not None:
            raise ended.failure
        try:
            return _codec.decode_whole(ended.result, registered.result_type)
        except ValueError as error:
            error.add_note(f"workflow {registered.name} {gid} has succeeded with a result of another type")
            raise

    # -- resume --------------------------------------------------------------------------

    async def _resume_once(self, registered: Registered, gid: str, data: bytes) -> _Ended:
        # Only looked up, never opened: whoever calls this endpoint cannot start what the coordinator does not know.
        found: WorkflowAnswer = await self._carry(self._rules.find_workflow(gid))
        if found.transaction is None or found.transaction.pattern is not Pattern.WORKFLOW:
            raise TransactionNotFoundError(gid, None, "no workflow has this gid")
        return await self._go_on(registered, gid, found, data)

    def _read_request(self, query: Mapping[str, str]) -> tuple[Registered, str] | Answer:
        values = {name: query.get(name, "") for name in QUERY_PARAMETERS}
        gid, name = values["gid"], values["op"]
        if not gid or not name or values["branch_id"] != CHECK_BACK_BRANCH or values["trans_type"] != Pattern.WORKFLOW:
            return Answer(
                400, {"message": "not the request to resume a workflow: its query lacks what the coordinator adds"}
            )
        try:
            return self._find(name), checked_gid(gid)
        except LookupError as error:
            logger.error("workflow %s cannot be resumed: %s", gid, error)
            return Answer(500, {"message": "the log of this participant says why"})
        except ValueError as error:
            return Answer(400, {"message": str(error)})


_SUCCESS = Answer(200, {RESULT_KEY: ResultWord.SUCCESS})


def _ongoing(message: str) -> Answer:
    return Answer(STATUS_ONGOING, {RESULT_KEY: ResultWord.ONGOING, "message": message})


def _answer_to(error: Exception, name: str, gid: str) -> Answer:
    """Say to the coordinator what came of a resume that did not end the workflow."""
    match error:
        case WorkflowInterruptedError(outcome=Outcome.ONGOING):
            logger.info("workflow %s %s: %s", name, gid, error.reason)
            return _ongoing("not finished yet")
        case WorkflowInterruptedError():
            logger.warning("workflow %s %s is interrupted: %s", name, gid, error.reason)
        case TransactionNotFoundError():
            logger.warning("workflow %s %s is not known to the coordinator %s", name, gid, error.reason)
            return Answer(404, {"message": "no workflow has this gid"})
        case TxcoordSdkError():
            logger.error("workflow %s %s could not be resumed: %s", name, gid, error)
        case _:
            logger.error("workflow %s %s broke off", name, gid, exc_info=error)
    # A constant: the words of an exception may hold what means something to a coordinator.
    return Answer(500, {"message": "interrupted; the log of this participant says why"})


def _plan_of(found: WorkflowAnswer) -> _Plan | None:
    """Return what it was opened with; None where the coordinator does not tell."""
    if found.transaction is None or not found.transaction.custom_data:
        return None
    try:
        return msgspec.json.decode(found.transaction.custom_data, type=_Plan)
    except msgspec.MsgspecError:
        return None


def _check_name(gid: str, asked: str, known: str, status: Status | None) -> None:
    if asked != known:
        raise RequestRefusedError(gid, status, f"this gid is of the workflow {known!r}, not {asked!r}")


def _data_of(plan: _Plan) -> bytes | None:
    try:
        return b64decode(plan.data or "", validate=True)
    except (Base64Error, ValueError):
        return None


def _ending_of(found: WorkflowAnswer) -> _Ended | None:
    """Return how a workflow has ended; None if it has not."""
    tx: StoredWorkflow | None = found.transaction
    if tx is None or not tx.status.is_final:
        return None
    if tx.status is Status.FAILED:
        return _Ended(b"", TransactionFailedError(tx.gid, tx.status, tx.reason or "no reason was given"))
    return _Ended(b64decode(tx.result))


# -- asyncio -------------------------------------------------------------------------------


class AsyncWorkflowFunction(Generic[In, Out]):
    """A function that is registered as a workflow.

    Called, it is the function itself: its steps become part of the workflow that calls it.
    """

    def __init__(self, workflows: AsyncWorkflows, registered: Registered) -> None:
        self._workflows = workflows
        self._registered = registered

    @property
    def name(self) -> str:
        return self._registered.name

    def __call__(self, wf: AsyncWorkflow, given: In, /) -> Awaitable[Out]:
        return cast(Awaitable[Out], self._registered.function(wf, given))

    async def run(self, given: In, *, gid: str | None = None) -> Out:
        """Run it to its end; see `AsyncWorkflows.run`."""
        return cast(Out, await self._workflows.run(self.name, given, gid=gid))


class AsyncWorkflows(_AnyWorkflows):
    """The workflows of a participant, for asyncio.

    Args:
        coordinator: whom they are recorded with.
        resume_url: where the coordinator finds the resume endpoint of this participant (all its processes),
            which `txcoord_sdk.fastapi.workflow_router` and `txcoord_sdk.starlette.workflow_route` make.
        table: the barrier table of steps, if it is not DTM's.
    """

    _is_async = True
    _workflow_type = AsyncWorkflow

    def __init__(self, coordinator: AsyncCoordinator, *, resume_url: str, table: str | None = None) -> None:
        super().__init__(coordinator._rules, coordinator._drive, resume_url, table=table)
        self._running: dict[str, _Running[asyncio.Future[_Ended]]] = {}
        self._resumes: set[asyncio.Task[Answer]] = set()

    @overload
    def workflow(self, function: AsyncFunction[In, Out], /) -> AsyncWorkflowFunction[In, Out]: ...

    @overload
    def workflow(
        self,
        name: str | None = None,
        /,
        *,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
    ) -> Callable[[AsyncFunction[In, Out]], AsyncWorkflowFunction[In, Out]]: ...

    def workflow(
        self,
        function: AsyncFunction[In, Out] | str | None = None,
        /,
        *,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
    ) -> AsyncWorkflowFunction[In, Out] | Callable[[AsyncFunction[In, Out]], AsyncWorkflowFunction[In, Out]]:
        """Register a coroutine function of a workflow and its input: `@workflows.workflow`, or with a name and options.

        Input and result are JSON, by the types that the function declares; `bytes` are sent as they are.

        Args:
            function: or a name; if left out, the function's own. It is how the coordinator asks for it, so keep it.
            request_timeout: how long a step's call waits for its answer, and the coordinator for a resume's.
            retry_interval: how long the coordinator waits for a sign of life before it asks to go on; it grows while
                that is of no use.
            branch_headers: sent with every call of a step, and with the request to resume.
        """

        def register(function: AsyncFunction[In, Out]) -> AsyncWorkflowFunction[In, Out]:
            registered = self._register(function, name, request_timeout, retry_interval, branch_headers)
            return AsyncWorkflowFunction(self, registered)

        if callable(function):
            name = None
            return register(function)
        name = function
        return register

    async def run(self, name: str, given: object = None, *, gid: str | None = None) -> Any:
        """Run a workflow to its end, from where it stands: here, now, whatever happened to it before.

        Run again with its gid, it returns the same, and what has ended is not run again. If it is under way in this
        process, this waits for it.

        Args:
            given: its input. Of a gid that is known already, the first one's counts.
            gid: a unique name of your own, such as an order number; made for you if None.

        Returns:
            What the function returned.

        Raises:
            TransactionFailedError: it has failed, and everything is rolled back. `reason` says why.
            WorkflowInterruptedError: it cannot go on for now, and is resumed later.
            CoordinatorUnreachableError: nobody records what it does. If it was opened, it is resumed later.
            WorkflowChangedError: what is recorded does not fit the function.
            RequestRefusedError: the coordinator does not take it; or the gid is another transaction's.
            LookupError: no workflow has this name.
            ValueError, TypeError: the input is not of the type that the function declares; nothing was opened.
            Exception: what the function raised, unless it is a refusal. The workflow is resumed later: a fault
                does not undo what was done.
        """
        registered = self._find(name)
        gid = new_gid() if gid is None else checked_gid(gid)
        under_way = self._running.get(gid)
        if under_way is not None:
            _check_name(gid, name, under_way.name, None)
            ended = await asyncio.shield(under_way.future)
        else:
            data = registered.write(given)
            own = self._claim(gid, name)
            ended = await self._alone(gid, own, lambda: self._run_once(registered, gid, data))
        return self._result(registered, gid, ended)

    async def resume(self, query: Mapping[str, str], body: bytes = b"") -> Answer:
        """Answer the coordinator's request to go on with a workflow: with its end, or that it is not ended.

        For a resume endpoint of your own; see `txcoord_sdk.fastapi.workflow_router`. The workflow goes on, until
        `close`, also if this is cancelled: a server of gRPC does that when the coordinator waits no longer.
        """
        request = self._read_request(query)
        if isinstance(request, Answer):
            return request
        registered, gid = request
        if gid in self._running:
            return _ongoing("it is under way")
        own = self._claim(gid, registered.name)
        task = asyncio.create_task(self._resumed(registered, gid, own, body))
        self._resumes.add(task)
        task.add_done_callback(self._resumes.discard)
        await asyncio.wait({task})
        return _ongoing("it is broken off here") if task.cancelled() else task.result()

    async def close(self) -> None:
        """Break off what `resume` has begun, and wait until it has stopped: the coordinator asks for it again.

        To be called when the participant stops, before its coordinator client and its databases are closed.
        """
        await asyncio.sleep(0)  # what has not begun could not say that it has stopped
        for task in self._resumes:
            task.cancel()
        if self._resumes:
            await asyncio.wait(self._resumes)

    async def _resumed(self, registered: Registered, gid: str, own: asyncio.Future[_Ended], body: bytes) -> Answer:
        try:
            await self._alone(gid, own, lambda: self._resume_once(registered, gid, body))
        except Exception as error:  # noqa: BLE001 (whatever it is, the coordinator gets an answer, the log the rest)
            return _answer_to(error, registered.name, gid)
        return _SUCCESS

    def _claim(self, gid: str, name: str) -> asyncio.Future[_Ended]:
        future: asyncio.Future[_Ended] = asyncio.get_running_loop().create_future()
        self._running[gid] = _Running(name, future)
        return future

    async def _alone(
        self, gid: str, future: asyncio.Future[_Ended], execute: Callable[[], Coroutine[Any, Any, _Ended]]
    ) -> _Ended:
        """Carry out an execution, letting others of the same gid wait for it."""
        try:
            ended = await execute()
        except BaseException as error:
            # Whoever waits for it was not cancelled itself, and gets an error that says what to do.
            future.set_exception(error if isinstance(error, Exception) else _broken_off(gid))
            future.exception()  # if nobody waits for it, that is not a fault
            raise
        finally:
            del self._running[gid]
        future.set_result(ended)
        return ended


def _broken_off(gid: str) -> TransactionRunningError:
    return WorkflowInterruptedError(gid, Status.PREPARED, "its execution was broken off")


# -- synchronous ---------------------------------------------------------------------------


class WorkflowFunction(Generic[In, Out]):
    """A function that is registered as a workflow.

    Called, it is the function itself: its steps become part of the workflow that calls it.
    """

    def __init__(self, workflows: Workflows, registered: Registered) -> None:
        self._workflows = workflows
        self._registered = registered

    @property
    def name(self) -> str:
        return self._registered.name

    def __call__(self, wf: Workflow, given: In, /) -> Out:
        return cast(Out, self._registered.function(wf, given))

    def run(self, given: In, *, gid: str | None = None) -> Out:
        """Run it to its end; see `AsyncWorkflows.run`."""
        return cast(Out, self._workflows.run(self.name, given, gid=gid))


class Workflows(_AnyWorkflows):
    """The workflows of a participant, for synchronous code; threads may share it. Arguments as `AsyncWorkflows`'."""

    _is_async = False
    _workflow_type = Workflow

    def __init__(self, coordinator: Coordinator, *, resume_url: str, table: str | None = None) -> None:
        async def drive_now(flow: Flow[T]) -> T:
            return coordinator._drive(flow)

        super().__init__(coordinator._rules, drive_now, resume_url, table=table)
        self._running: dict[str, _Running[Future[_Ended]]] = {}
        self._lock = threading.Lock()

    @overload
    def workflow(self, function: SyncFunction[In, Out], /) -> WorkflowFunction[In, Out]: ...

    @overload
    def workflow(
        self,
        name: str | None = None,
        /,
        *,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
    ) -> Callable[[SyncFunction[In, Out]], WorkflowFunction[In, Out]]: ...

    def workflow(
        self,
        function: SyncFunction[In, Out] | str | None = None,
        /,
        *,
        request_timeout: Duration | None = None,
        retry_interval: Duration | None = None,
        branch_headers: Mapping[str, str] | None = None,
    ) -> WorkflowFunction[In, Out] | Callable[[SyncFunction[In, Out]], WorkflowFunction[In, Out]]:
        """Register a function of a workflow and its input; see `AsyncWorkflows.workflow`."""

        def register(function: SyncFunction[In, Out]) -> WorkflowFunction[In, Out]:
            registered = self._register(function, name, request_timeout, retry_interval, branch_headers)
            return WorkflowFunction(self, registered)

        if callable(function):
            name = None
            return register(function)
        name = function
        return register

    def run(self, name: str, given: object = None, *, gid: str | None = None) -> Any:
        """Run a workflow to its end, from where it stands; see `AsyncWorkflows.run`."""
        registered = self._find(name)
        gid = new_gid() if gid is None else checked_gid(gid)
        data = registered.write(given)
        own, under_way = self._claim(gid, name)
        if under_way is not None:
            _check_name(gid, name, under_way.name, None)
            ended = under_way.future.result()
        else:
            ended = self._alone(gid, own, lambda: run_now(self._run_once(registered, gid, data)))
        return self._result(registered, gid, ended)

    def resume(self, query: Mapping[str, str], body: bytes = b"") -> Answer:
        """Answer the coordinator's request to go on with a workflow; see `AsyncWorkflows.resume`."""
        request = self._read_request(query)
        if isinstance(request, Answer):
            return request
        registered, gid = request
        own, under_way = self._claim(gid, registered.name)
        if under_way is not None:
            return _ongoing("it is under way")
        try:
            self._alone(gid, own, lambda: run_now(self._resume_once(registered, gid, body)))
        except Exception as error:  # noqa: BLE001 (whatever it is, the coordinator gets an answer, the log the rest)
            return _answer_to(error, registered.name, gid)
        return _SUCCESS

    def _claim(self, gid: str, name: str) -> tuple[Future[_Ended], _Running[Future[_Ended]] | None]:
        own = _Running[Future[_Ended]](name, Future())
        with self._lock:
            kept = self._running.setdefault(gid, own)
        return own.future, None if kept is own else kept

    def _alone(self, gid: str, future: Future[_Ended], execute: Callable[[], _Ended]) -> _Ended:
        try:
            ended = execute()
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else _broken_off(gid))
            raise
        finally:
            with self._lock:
                del self._running[gid]
        future.set_result(ended)
        return ended
