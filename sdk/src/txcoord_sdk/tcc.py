"""TCC transactions as the initiator writes them: one block, within which the tries are called.

    async with coordinator.tcc(timeout_to_fail=60) as tcc:
        await tcc.call(f"{order}/try", f"{order}/confirm", f"{order}/cancel", purchase)
        await tcc.call(f"{storage}/try", f"{storage}/confirm", f"{storage}/cancel", purchase)

Two thin shells around the rules in `txcoord_sdk._tcc_rules`; the coordinator clients make them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable

from txcoord_sdk._tcc_rules import TccRules
from txcoord_sdk._two_phase import AsyncBlock, Block, BlockOperations
from txcoord_sdk.results import TryAnswer


class TccOperations(BlockOperations[TccRules]):
    """A TCC transaction, open within its `with` block. The async one awaits what the sync one returns.

    Entering prepares it. Leaving the block submits it: every branch is then confirmed, however
    long that takes. Leaving by an exception aborts it: every branch is cancelled, and the
    exception goes on. What is neither (this process died, nothing gets through) is cancelled
    by the coordinator when `timeout_to_fail` is over.

    Entering raises, and nothing is to be undone:
        TransactionFailedError: a transaction of this gid has failed, or is being undone.
        CoordinatorUnreachableError, RequestRefusedError: it could not be opened.

    Leaving raises, unless another exception is on its way:
        TransactionFailedError: the deadline came first, or a try did not succeed (caught or
            not: what may not be reserved must not be confirmed). All is cancelled.
        TransactionRunningError: with `wait_result`: submitted, and not all is confirmed yet.
        CoordinatorUnreachableError: whether the submit arrived is not known. It is not
            aborted; `submit()` may be repeated, and `coordinator.wait(gid)` tells the end.
    """

    @abstractmethod
    def call(
        self, try_url: str, confirm_url: str = "", cancel_url: str = "", payload: object = None
    ) -> TryAnswer | Awaitable[TryAnswer]:
        """Add a branch: register it with the coordinator, then call its try.

        Confirm and cancel are called by the coordinator, at the end, with the same body. Each of
        the three may be called more than once, and a cancel even if its try never arrived:
        protect them with a barrier. Several calls may be under way at once.

        Args:
            try_url: called now, to reserve; an empty URL stands for success without a call.
            confirm_url: called to use what was reserved; it has no way to fail.
            cancel_url: called to give it back; it has no way to fail.
            payload: as for a saga's step. All three are called with POST, except that the
                coordinator's calls with an empty body are a GET.

        Returns:
            The try's answer.

        Raises:
            TryFailedError: the participant refuses, or what it did is not known (`outcome`).
            TransactionFailedError: the deadline has passed.
            CoordinatorUnreachableError, RequestRefusedError: the branch could not be registered,
                and the try was not called.
            ValueError: a URL or the payload cannot work, or there are 99 branches already.

        After any of these but `ValueError` all is cancelled at the end of the block.
        """


class AsyncTcc(AsyncBlock[TccRules], TccOperations):
    """A TCC transaction, for asyncio; `AsyncCoordinator.tcc` makes it."""

    async def call(
        self, try_url: str, confirm_url: str = "", cancel_url: str = "", payload: object = None
    ) -> TryAnswer:
        return await self._drive(self._rules.call(try_url, confirm_url, cancel_url, payload))


class Tcc(Block[TccRules], TccOperations):
    """A TCC transaction, for synchronous code; `Coordinator.tcc` makes it."""

    def call(self, try_url: str, confirm_url: str = "", cancel_url: str = "", payload: object = None) -> TryAnswer:
        return self._drive(self._rules.call(try_url, confirm_url, cancel_url, payload))
