"""XA transactions as the initiator writes them: one block, within which the actions are called.

    async with coordinator.xa(timeout_to_fail=60) as xa:
        await xa.call(f"{bank_a}/withdraw", transfer)
        await xa.call(f"{bank_b}/deposit", transfer)

Two thin shells around the rules in `txcoord_sdk._xa_rules`; the coordinator clients make them. What
participants need is in `txcoord_sdk.xa`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable

from txcoord_sdk._two_phase import AsyncBlock, Block, BlockOperations
from txcoord_sdk._xa_rules import XaRules
from txcoord_sdk.results import ActionAnswer


class XaOperations(BlockOperations[XaRules]):
    """An XA transaction, open within its `with` block. The async one awaits what the sync one returns.

    Entering prepares it. Leaving the block submits it: every branch is then committed, however
    long that takes. Leaving by an exception aborts it: every branch is rolled back, and the
    exception goes on. What is neither (this process died, nothing gets through) is rolled back
    by the coordinator when `timeout_to_fail` is over.

    Entering raises, and nothing is to be undone:
        TransactionFailedError: a transaction of this gid has failed, or is being undone.
        CoordinatorUnreachableError, RequestRefusedError: it could not be opened.

    Leaving raises, unless another exception is on its way:
        TransactionFailedError: the deadline came first, or an action did not succeed (caught or
            not: what may not be prepared must not be committed). All is rolled back.
        TransactionRunningError: with `wait_result`: submitted, and not all is committed yet.
        CoordinatorUnreachableError: whether the submit arrived is not known. It is not
            aborted; `submit()` may be repeated, and `coordinator.wait(gid)` tells the end.
    """

    @abstractmethod
    def call(self, url: str, payload: object = None, *, phase2_url: str = "") -> ActionAnswer | Awaitable[ActionAnswer]:
        """Add a branch: call a participant's action, which registers itself and prepares what it did.

        Until the end of the block what it wrote is seen by nobody, and locked. Several calls
        may be under way at once.

        Args:
            url: the participant's endpoint; see `txcoord_sdk.xa.take_part`.
            payload: as for a saga's step. Commit and rollback get none.
            phase2_url: where the coordinator calls commit or rollback, if not at `url`.

        Returns:
            The action's answer.

        Raises:
            ActionFailedError: the participant refuses, or what it did is not known (`outcome`).
            ValueError: a URL or the payload cannot work, or there are 99 branches already.

        After `ActionFailedError` all is rolled back at the end of the block.
        """


class AsyncXa(AsyncBlock[XaRules], XaOperations):
    """An XA transaction, for asyncio; `AsyncCoordinator.xa` makes it."""

    async def call(self, url: str, payload: object = None, *, phase2_url: str = "") -> ActionAnswer:
        return await self._drive(self._rules.call(url, payload, phase2_url))


class Xa(Block[XaRules], XaOperations):
    """An XA transaction, for synchronous code; `Coordinator.xa` makes it."""

    def call(self, url: str, payload: object = None, *, phase2_url: str = "") -> ActionAnswer:
        return self._drive(self._rules.call(url, payload, phase2_url))
