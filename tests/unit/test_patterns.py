"""Which rules hold for which pattern."""

from __future__ import annotations

import pytest

from tests.sagas import make_saga
from txcoord.errors import InvalidRequestError, StatusConflictError
from txcoord.model import Pattern, Status
from txcoord.patterns import DECIDE, aborted, registered
from txcoord.request import BranchRegistration, Limits


def test_every_pattern_has_its_rules() -> None:
    assert set(DECIDE) == set(Pattern)


@pytest.mark.parametrize("pattern", [Pattern.SAGA, Pattern.MSG])
def test_what_is_submitted_whole_has_no_branches_to_register(pattern: Pattern) -> None:
    tx = make_saga().replace(pattern=pattern)

    with pytest.raises(InvalidRequestError, match=f"a {pattern} has no branches to register"):
        registered(tx, BranchRegistration(branch_id="01"), Limits(), now_us=1, interval_s=1)


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("pattern", [Pattern.SAGA, Pattern.WORKFLOW])
def test_what_ends_by_itself_is_never_aborted(pattern: Pattern, status: Status) -> None:
    with pytest.raises(StatusConflictError):
        aborted(make_saga(status=status).replace(pattern=pattern), "", now_us=1)
