"""What the function of a workflow is handed: the way to take steps.

    @workflows.workflow
    async def buy(wf: AsyncWorkflow, order: Order) -> str:
        await wf.call(f"{STORAGE}/deduct", order, on_rollback=f"{STORAGE}/deduct-compensate")
        payment = await wf.branch().on_rollback(refund, order).step(pay, order)
        return payment.receipt

A branch is a step and what is to follow it at the end: `on_commit` if the workflow succeeds, `on_rollback` if it
fails. With `on_rollback` alone it is like a saga's step; with both, and a step that reserves, like one of TCC.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from txcoord.model import Op
from txcoord_sdk._checks import checked_headers, checked_url, payload_of
from txcoord_sdk.barrier.drivers.base import run_now
from txcoord_sdk.branch import BranchContext
from txcoord_sdk.workflow._execution import BranchState, Execution, Numbers
from txcoord_sdk.workflow._works import CallAnswer, CallWork, LocalWork, Work

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")
B = TypeVar("B", bound="_AnyBranch")

NO_HEADERS: Mapping[str, str] = {}


class _AnyBranch:
    """One branch of a workflow: first what is to follow it, then its step; each at most once.

    What follows is called by whoever runs the workflow, when its function has ended and all its steps with it: the
    last branch first, one after another, and again until it succeeds. It has no way to refuse. That of a step
    that was refused is left out.
    """

    def __init__(self, execution: Execution, state: BranchState) -> None:
        self._execution = execution
        self._state = state

    @property
    def branch_id(self) -> str:
        return self._state.id

    def __repr__(self) -> str:
        return f"<branch {self._state.id} of workflow {self._execution.gid}>"

    @overload
    def on_commit(self, target: str, payload: object = None, /) -> Self: ...

    @overload
    def on_commit(
        self, target: Callable[Concatenate[BranchContext, P], object], /, *args: P.args, **kwargs: P.kwargs
    ) -> Self: ...

    def on_commit(self, target: Any, /, *args: Any, **kwargs: Any) -> Self:
        """Have something done if the workflow succeeds: a URL called, with a payload, or a function.

        A function is handed the branch's context, whose barrier lets it take effect once, and the arguments.
        """
        return self._follow(Op.COMMIT, target, args, kwargs)

    @overload
    def on_rollback(self, target: str, payload: object = None, /) -> Self: ...

    @overload
    def on_rollback(
        self, target: Callable[Concatenate[BranchContext, P], object], /, *args: P.args, **kwargs: P.kwargs
    ) -> Self: ...

    def on_rollback(self, target: Any, /, *args: Any, **kwargs: Any) -> Self:
        """Have something done if the workflow fails; see `on_commit`.

        May be set after the step, to use its result; then nothing that may raise must stand in between.
        """
        return self._follow(Op.ROLLBACK, target, args, kwargs)

    def _follow(self, op: Op, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Self:
        if isinstance(target, str):
            work: Work[Any] = call_work(target, *args, name=f"the URL of on_{op}")
        else:
            work = LocalWork(target, args, kwargs)
        if op in self._state.endings:
            raise ValueError(f"{self!r} has its {op} already: add another branch")
        self._state.endings[op] = work
        return self

    def _begun(self, work: Work[R]) -> Work[R]:
        if self._state.action is not None:
            raise ValueError(f"{self!r} has its step already: add another branch")
        self._state.action = work
        return work

    def _xa_work(self, source: Any, work: Callable[..., Any], args: Any, kwargs: Any) -> Work[Any]:
        # Only now: XA is not everybody's.
        from txcoord_sdk.workflow._xa import XaEnding, XaWork

        if self._state.endings:
            raise ValueError(f"{self!r} is one of XA: its database commits or rolls back, and nothing else follows")
        step: XaWork[Any] = XaWork(source, work, args, kwargs)
        self._begun(step)
        ending = XaEnding(source, step.name)
        self._state.endings = {Op.COMMIT: ending, Op.ROLLBACK: ending}
        # What a slower execution of the same may still have prepared is rolled back, too, however the workflow ends.
        self._state.rollback_if_failed = self._state.always_settled = True
        return step


def call_work(
    url: str, payload: object = None, *, headers: Mapping[str, str] = NO_HEADERS, name: str = "url"
) -> CallWork:
    return CallWork(checked_url(url, name=name), payload_of(payload, url), checked_headers(headers))


class AsyncWorkflowBranch(_AnyBranch):
    """A branch, for asyncio; `AsyncWorkflow.branch` makes it."""

    def step(
        self, function: Callable[Concatenate[BranchContext, P], Awaitable[R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Take a step of one's own; see `AsyncWorkflow.step`."""
        work: LocalWork[R] = LocalWork(function, args, kwargs)
        return self._execution.act(self._state, self._begun(work))

    def call(
        self, url: str, payload: object = None, *, headers: Mapping[str, str] = NO_HEADERS
    ) -> Coroutine[Any, Any, CallAnswer]:
        """Call a participant; see `AsyncWorkflow.call`."""
        return self._execution.act(self._state, self._begun(call_work(url, payload, headers=headers)))

    def xa(
        self, source: Any, work: Callable[Concatenate[C, P], Awaitable[R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Work in a database that prepares it; see `AsyncWorkflow.xa`."""
        return self._execution.act(self._state, self._xa_work(source, work, args, kwargs))


class WorkflowBranch(_AnyBranch):
    """A branch, for synchronous code; `Workflow.branch` makes it."""

    def step(self, function: Callable[Concatenate[BranchContext, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Take a step of one's own; see `AsyncWorkflow.step`."""
        work: LocalWork[R] = LocalWork(function, args, kwargs)
        return run_now(self._execution.act(self._state, self._begun(work)))

    def call(self, url: str, payload: object = None, *, headers: Mapping[str, str] = NO_HEADERS) -> CallAnswer:
        """Call a participant; see `AsyncWorkflow.call`."""
        return run_now(self._execution.act(self._state, self._begun(call_work(url, payload, headers=headers))))

    def xa(self, source: Any, work: Callable[Concatenate[C, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Work in a database that prepares it; see `AsyncWorkflow.xa`."""
        step: Work[R] = self._xa_work(source, work, args, kwargs)
        return run_now(self._execution.act(self._state, step))


class _AnyWorkflow(Generic[B]):
    _branch_type: Callable[[Execution, BranchState], B]

    def __init__(self, execution: Execution, name: str, numbers: Numbers) -> None:
        self._execution = execution
        self._numbers = numbers
        self.name = name
        """What it is registered as."""

    @property
    def gid(self) -> str:
        return self._execution.gid

    def __repr__(self) -> str:
        return f"<workflow {self.name} {self.gid}>"

    def branch(self, name: str | None = None, *, rollback_if_failed: bool = False) -> B:
        """Add a branch. It gets its number now: 01, 02, …, in every execution in the same order.

        Args:
            name: what its step is recorded as; else the function's name, or the path of the call. A replay
                compares it, so keep it when the code changes.
            rollback_if_failed: have its `on_rollback` done even if its own step was refused.
        """
        state = self._execution.add_branch(self._numbers.next(), name=name, rollback_if_failed=rollback_if_failed)
        return self._branch_type(self._execution, state)

    def lane(self) -> Self:
        """Open a numbering of its own, for one of several sequences of steps that run at once.

        Steps that are asked for together (`asyncio.gather`) keep their order without one. What they ask for
        afterwards comes in the order in which they end, which differs each time: give each sequence a lane.
        """
        return type(self)(self._execution, self.name, Numbers(self._numbers.next()))

    def _branch_of_call(self, on_commit: str, on_rollback: str, payload: object) -> B:
        branch = self.branch()
        if on_commit:
            branch.on_commit(on_commit, payload)
        if on_rollback:
            branch.on_rollback(on_rollback, payload)
        return branch


class AsyncWorkflow(_AnyWorkflow[AsyncWorkflowBranch]):
    """A workflow on its way, for asyncio. Its function may run many times, from the beginning; its steps not.

    So everything that depends on more than the input and on steps' results is to be done within a step: the
    clock, chance, a look into a database. What a step returns is recorded before the function gets it, and is
    what every later execution gets.

    Every step raises:
        StepFailed: it was refused, for good. Caught, the workflow may go another way; leaving the function,
            it has everything rolled back.
        WorkflowInterruptedError: it had no clear answer, or asked for patience. Let it leave the function (if it
            does not, the next step raises it again); the workflow is resumed later.
        CoordinatorUnreachableError: its result could not be recorded. As above.
        WorkflowChangedError: something else is recorded in its place.
    """

    _branch_type = AsyncWorkflowBranch

    def step(
        self, function: Callable[Concatenate[BranchContext, P], Awaitable[R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run a function of your own, and record what it returns, as JSON.

        It is handed the branch's context and the arguments. It runs once, unless the process dies, or the
        coordinator is away, between its effect and the record: then it runs again. `branch.barrier` makes its effect in
        your database exactly one:

            async def pay(branch: BranchContext, order: Order) -> None:
                async with engine.begin() as connection:
                    await branch.barrier.call(connection, partial(take_money, order))

        It may raise `BranchFailed` to refuse, `BranchOngoing` to be called again later. Anything else it raises
        interrupts the workflow: it is a fault, not an answer, and the step is tried again later.
        """
        return self.branch().step(function, *args, **kwargs)

    def call(
        self,
        url: str,
        payload: object = None,
        *,
        on_commit: str = "",
        on_rollback: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Coroutine[Any, Any, CallAnswer]:
        """Call a participant's endpoint, over HTTP, or over gRPC (`host:port/package.Service/Method`).

        It is told which branch operation it is asked for (`action`, then `commit` or `rollback`), and answers like any
        participant: a 409 refuses, a 425 asks for patience, what is not understood is asked again later. It may
        be called more than once: protect it with a barrier.

        Args:
            payload: as for a saga's step; always sent with POST. Over gRPC, a protobuf message or bytes.
            on_commit, on_rollback: URLs to be called at the end, with the same payload.
            headers: of this call, besides the workflow's own.

        Returns:
            The answer: `body`, `json()`.
        """
        return self._branch_of_call(on_commit, on_rollback, payload).call(url, payload, headers=headers)

    def xa(
        self, source: Any, work: Callable[Concatenate[C, P], Awaitable[R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Work in a database of your own that prepares it, and ends it as the workflow ends.

        `work` is handed a connection of its own and the arguments; it writes, and neither commits nor rolls back.
        What it returns is recorded. If it raises `BranchFailed`, its writes are rolled back and the step is refused.

        Until the end its locks are held: put such steps last, and make them few.

        Args:
            source: of MySQL, MariaDB or PostgreSQL: a SQLAlchemy engine, a pool, or a function that opens a connection.
        """
        return self.branch().xa(source, work, *args, **kwargs)


class Workflow(_AnyWorkflow[WorkflowBranch]):
    """A workflow on its way, for synchronous code; see `AsyncWorkflow`, whose methods block here."""

    _branch_type = WorkflowBranch

    def step(self, function: Callable[Concatenate[BranchContext, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function of your own, and record what it returns; see `AsyncWorkflow.step`."""
        return self.branch().step(function, *args, **kwargs)

    def call(
        self,
        url: str,
        payload: object = None,
        *,
        on_commit: str = "",
        on_rollback: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> CallAnswer:
        """Call a participant's endpoint; see `AsyncWorkflow.call`."""
        return self._branch_of_call(on_commit, on_rollback, payload).call(url, payload, headers=headers)

    def xa(self, source: Any, work: Callable[Concatenate[C, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Work in a database of your own that prepares it; see `AsyncWorkflow.xa`."""
        return self.branch().xa(source, work, *args, **kwargs)
