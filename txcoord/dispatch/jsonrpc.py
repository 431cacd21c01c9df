"""Calls branch operations over JSON-RPC: one POST each; the rules are in `txcoord.jsonrpc`."""

from __future__ import annotations

from txcoord.dispatch.base import BranchRequest, CallResult
from txcoord.dispatch.headers import BadHeaderError
from txcoord.dispatch.limited import NoAnswer
from txcoord.dispatch.over_http import OverHttp
from txcoord.jsonrpc import BadParamsError, make_request, method_of, read_params, understand_reply
from txcoord.url import BadUrlError


class JsonRpcDispatcher(OverHttp):
    """The JSON-RPC dispatcher (see `base.Dispatcher`), for URLs that name a method."""

    async def call(self, request: BranchRequest) -> CallResult:
        """Call one branch operation (see `base.Dispatcher.call`)."""
        now = self._clock()
        try:
            url = self._client.url(request.url)
            headers = self._headers_for(request, url)
            params = read_params(request.payload)
        except BadParamsError as error:
            return self._unknown(f"the payload {error}", now)
        except (BadUrlError, BadHeaderError) as error:
            return self._unknown(str(error), now)

        call = {
            "gid": request.gid,
            "trans_type": request.pattern.value,
            "branch_id": request.branch_id,
            "op": request.op,
        }
        body = make_request(method_of(request.url), params, call=call)
        result = await self._client.fetch("POST", url, url.target, headers, body, now + request.timeout_s, now)

        if isinstance(result, NoAnswer):
            return self._without_answer(result, now)
        outcome, detail = understand_reply(
            result.status,
            result.body,
            limit=self._settings.detail_bytes,
            anywhere=self._settings.failure_word_anywhere,
        )
        if result.flaw:
            return self._with_flaw(result, outcome, now)
        return CallResult(outcome=outcome, code=result.status, detail=detail, duration_us=self._elapsed_us(now))
