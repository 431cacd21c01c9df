"""Calls branch operations over HTTP: the form of the request, and the meaning of the answer."""

from __future__ import annotations

import re
from urllib.parse import quote

from txcoord.dispatch.base import BranchRequest, CallResult
from txcoord.dispatch.headers import BadHeaderError
from txcoord.dispatch.limited import NoAnswer
from txcoord.dispatch.over_http import OverHttp
from txcoord.dispatch.settings import DispatchSettings
from txcoord.model import Pattern
from txcoord.outcome import describe, understand
from txcoord.protocol import QUERY_PARAMETERS
from txcoord.url import BadUrlError

__all__ = ["DispatchSettings", "HttpDispatcher"]

_BRANCH_ID, _GID, _OP, _TRANS_TYPE = (f"{name}=" for name in QUERY_PARAMETERS)
_ALWAYS_POSTED = frozenset((Pattern.XA, Pattern.WORKFLOW))
"""Also without a body; for a workflow without input DTM says GET, which its own clients do not route."""

_is_plain = re.compile(r"[A-Za-z0-9_.~-]*\Z").match


class HttpDispatcher(OverHttp):
    """The HTTP dispatcher (see `base.Dispatcher`)."""

    async def call(self, request: BranchRequest) -> CallResult:
        """Call one branch operation (see `base.Dispatcher.call`)."""
        now = self._clock()
        try:
            url = self._client.url(request.url)
            headers = self._headers_for(request, url)
        except (BadUrlError, BadHeaderError) as error:
            return self._unknown(str(error), now)

        body = request.payload
        pattern = request.pattern
        gid, branch_id = request.gid, request.branch_id
        target = "".join(
            (
                url.target,
                "&" if url.has_query else "" if url.target[-1] == "?" else "?",
                _BRANCH_ID,
                branch_id if _is_plain(branch_id) else _encode(branch_id),
                "&",
                _GID,
                gid if _is_plain(gid) else _encode(gid),
                "&",
                _OP,
                request.op if _is_plain(request.op) else _encode(request.op),
                "&",
                _TRANS_TYPE,
                pattern,
            )
        )
        method = "POST" if body or pattern in _ALWAYS_POSTED else "GET"
        result = await self._client.fetch(method, url, target, headers, body, now + request.timeout_s, now)

        if isinstance(result, NoAnswer):
            return self._without_answer(result, now)
        status, body = result.status, result.body
        outcome = understand(status, body, anywhere=self._settings.failure_word_anywhere)
        if result.flaw:
            return self._with_flaw(result, outcome, now)
        return CallResult(
            outcome=outcome,
            code=status,
            detail=describe(status, body, outcome, limit=self._settings.detail_bytes),
            duration_us=self._elapsed_us(now),
        )


def _encode(value: str) -> str:
    return quote(value, safe="", errors="replace")
