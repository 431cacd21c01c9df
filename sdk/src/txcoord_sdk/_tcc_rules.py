"""One TCC transaction on the initiator's side. No I/O; `txcoord_sdk._two_phase_rules` says how it is ended.

A branch is registered before its try is called. A try that is under way when everything stops is
thus cancelled at the deadline; one that was never called is cancelled for nothing, which the
participant's barrier takes for an empty compensation.
"""

from __future__ import annotations

from typing import Any

from txcoord.model import Op, Outcome, Pattern, Status
from txcoord_sdk._calls import Call, Flow
from txcoord_sdk._checks import Fields, checked_url, payload_of
from txcoord_sdk._rules import Rules
from txcoord_sdk._two_phase_rules import TwoPhaseRules
from txcoord_sdk.errors import TryFailedError
from txcoord_sdk.results import TryAnswer

MAX_PARENT_LENGTH = 19


class TccRules(TwoPhaseRules):
    """The state of one `async with coordinator.tcc(…)`, or of a participant's part of one."""

    pattern = Pattern.TCC
    first_op = Op.TRY
    undoes = "cancels"

    def __init__(self, rules: Rules, gid: str, *, parent_id: str = "", **more: Any) -> None:
        if len(parent_id) > MAX_PARENT_LENGTH:
            raise ValueError(f"branch {parent_id} of {gid} is nested too deeply: no id is left for branches within it")
        super().__init__(rules, gid, parent_id=parent_id, **more)

    def call(self, try_url: str, confirm_url: str, cancel_url: str, payload: object) -> Flow[TryAnswer]:
        self._check_open()
        try_url = checked_url(try_url, name="try_url")
        confirm_url = checked_url(confirm_url, name="confirm_url")
        cancel_url = checked_url(cancel_url, name="cancel_url")
        self._check_protocol(confirm_url, cancel_url)
        data = payload_of(payload, try_url, confirm_url, cancel_url)
        branch_id = self._next_branch_id()
        # Made before it is registered, so that what cannot be called is not registered either.
        call = self._first_call(branch_id, try_url, data) if try_url else None
        branch = self._body(branch_id=branch_id, confirm=confirm_url, cancel=cancel_url, data=data)
        self._rules.check_registration(branch)
        self._opens(branch_id, try_url)
        body = yield from self._settle(branch_id, self._register_and_try(branch_id, branch, try_url, call))
        return TryAnswer(branch_id=branch_id, body=body)

    def _register_and_try(self, branch_id: str, branch: Fields, url: str, call: Call | None) -> Flow[bytes]:
        yield from self._rules.register(self.gid, branch_id, branch)
        if call is None:
            return b""
        return (yield from self._answer_to(call, branch_id, url))

    def _failed(self, branch_id: str, url: str, reason: str, outcome: Outcome = Outcome.UNKNOWN) -> TryFailedError:
        return TryFailedError(self.gid, Status.ABORTING, reason, branch_id, url, outcome)
