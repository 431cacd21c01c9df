"""Which call a transaction takes at each status, and in which of DTM's words it is refused."""

from __future__ import annotations

import httpx

Verdict = tuple[int, str]
"""The status of the answer, and the message of a refusal."""

OK = (200, "")
UNKNOWN = (404, "no global transaction has the gid {gid}")
TAKEN = (409, "no trans with gid: {gid} status: prepared found FAILURE")


def cannot_prepare(status: str) -> Verdict:
    return 409, f"current status '{status}', cannot prepare. FAILURE"


def cannot_submit(status: str) -> Verdict:
    # DTM's own spelling.
    return 409, f"current status '{status}', cannot sumbmit. FAILURE"


def cannot_abort(pattern: str, status: str) -> Verdict:
    return 409, f"trans type: '{pattern}' current status '{status}', cannot abort. FAILURE"


def cannot_stop(status: str) -> Verdict:
    return 409, f"global transaction force stop error. status: {status}. error: FAILURE"


def two_phase_calls(pattern: str) -> dict[str, dict[str, Verdict]]:
    """What each call comes to at each status, of a transaction whose branches register one by one: TCC and XA."""
    return {
        "none": {
            "prepare": OK,
            "submit": OK,
            "abort": UNKNOWN,
            "registerBranch": TAKEN,
            "forceStop": UNKNOWN,
            "resetNextCronTime": UNKNOWN,
        },
        "prepared": dict.fromkeys(
            ["prepare", "submit", "abort", "registerBranch", "forceStop", "resetNextCronTime"], OK
        ),
        "submitted": {
            "prepare": cannot_prepare("submitted"),
            "submit": OK,
            "abort": cannot_abort(pattern, "submitted"),
            "registerBranch": TAKEN,
            "forceStop": OK,
            "resetNextCronTime": OK,
        },
        "aborting": {
            "prepare": cannot_prepare("aborting"),
            "submit": cannot_submit("aborting"),
            "abort": OK,
            "registerBranch": TAKEN,
            "forceStop": OK,
            "resetNextCronTime": OK,
        },
        **{
            status: {
                "prepare": cannot_prepare(status),
                "submit": cannot_submit(status),
                "abort": cannot_abort(pattern, status),
                "registerBranch": TAKEN,
                "forceStop": cannot_stop(status),
                "resetNextCronTime": OK,
            }
            for status in ("succeed", "failed")
        },
    }


def workflow_calls() -> dict[str, dict[str, Verdict]]:
    """The same of a workflow, which its participant ends."""
    return {
        "none": {
            "prepareWorkflow": OK,
            "prepare": OK,
            "submit": UNKNOWN,
            "abort": UNKNOWN,
            "registerBranch": TAKEN,
            "forceStop": UNKNOWN,
            "resetNextCronTime": UNKNOWN,
        },
        "prepared": {
            "prepareWorkflow": OK,
            "prepare": OK,
            "submit": OK,
            "abort": cannot_abort("workflow", "prepared"),
            "registerBranch": OK,
            "forceStop": OK,
            "resetNextCronTime": OK,
        },
        **{
            status: {
                "prepareWorkflow": OK,
                "prepare": cannot_prepare(status),
                "submit": OK if status == "succeed" else cannot_submit(status),
                "abort": cannot_abort("workflow", status),
                "registerBranch": TAKEN,
                "forceStop": cannot_stop(status),
                "resetNextCronTime": OK,
            }
            for status in ("succeed", "failed")
        },
    }


def message_calls() -> dict[str, dict[str, Verdict]]:
    """The same of a message, which nothing turns round once it was submitted."""
    return {
        "none": {"prepare": OK, "submit": OK, "abort": UNKNOWN},
        "prepared": {"prepare": OK, "submit": OK, "abort": OK},
        "submitted": {
            "prepare": cannot_prepare("submitted"),
            "submit": OK,
            "abort": cannot_abort("msg", "submitted"),
        },
        **{
            status: {
                "prepare": cannot_prepare(status),
                "submit": cannot_submit(status),
                "abort": cannot_abort("msg", status),
            }
            for status in ("succeed", "failed")
        },
    }


def check_refusal(answer: httpx.Response, verdict: Verdict, gid: str) -> None:
    """It is refused in DTM's words; only a definite failure says so in `dtm_result`."""
    code, message = verdict
    body = answer.json()
    assert (answer.status_code, body["message"]) == (code, message.format(gid=gid))
    assert body.get("dtm_result") == ("FAILURE" if code == 409 else None)
