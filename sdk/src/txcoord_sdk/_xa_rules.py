"""One XA transaction on the initiator's side. No I/O; `txcoord_sdk._two_phase_rules` says how it is ended.

The participant registers its branch itself, within the local transaction that it is about to
prepare: what is prepared is thus known to the coordinator. An action that was answered with success
is registered; one whose answer was lost may be, and is then rolled back with the others.
"""

from __future__ import annotations

from txcoord.model import Op, Outcome, Pattern, Status
from txcoord_sdk._calls import Flow
from txcoord_sdk._checks import checked_url, payload_of
from txcoord_sdk._two_phase_rules import TwoPhaseRules
from txcoord_sdk.errors import ActionFailedError
from txcoord_sdk.results import ActionAnswer


class XaRules(TwoPhaseRules):
    """The state of one `async with coordinator.xa(…)`."""

    pattern = Pattern.XA
    first_op = Op.ACTION
    undoes = "rolls back"

    def call(self, url: str, payload: object, phase2_url: str) -> Flow[ActionAnswer]:
        self._check_open()
        url = checked_url(url, name="url")
        if not url:
            raise ValueError(f"an action of xa {self.gid} has no URL: name the participant's endpoint")
        phase2_url = checked_url(phase2_url, name="phase2_url") or url
        self._check_protocol(phase2_url)
        data = payload_of(payload, url)
        branch_id = self._next_branch_id()
        call = self._first_call(branch_id, url, data, phase2_url=phase2_url)
        self._opens(branch_id, url)
        body = yield from self._settle(branch_id, self._answer_to(call, branch_id, url))
        return ActionAnswer(branch_id=branch_id, body=body)

    def _failed(self, branch_id: str, url: str, reason: str, outcome: Outcome = Outcome.UNKNOWN) -> ActionFailedError:
        return ActionFailedError(self.gid, Status.ABORTING, reason, branch_id, url, outcome)
