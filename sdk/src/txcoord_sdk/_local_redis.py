"""A message and a local transaction in Redis that happen both or not at all; the order of things is `_local`'s.

What decides is the script: work and mark take effect together, or neither does. Redis answers an error only
where it set no mark, so that anything it says is certain; where it said nothing, the check-back finds out.
"""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit

from redis.exceptions import ResponseError

from txcoord.barrier.redis import tag_of
from txcoord.grpc_call import as_ascii
from txcoord.model import Op, Pattern
from txcoord.protocol import CHECK_BACK_BRANCH, METADATA_PREFIX
from txcoord_sdk._checks import Duration, is_grpc_url
from txcoord_sdk._local import Carry, submit_committed
from txcoord_sdk._rules import Rules
from txcoord_sdk._two_phase_rules import reason_of
from txcoord_sdk.barrier import BranchBarrier, DuplicatedError
from txcoord_sdk.barrier.redis import Passed, RedisWork, check_client
from txcoord_sdk.branch import REDIS_KEY_PARAMETER, BranchFailed
from txcoord_sdk.message import Message


class RedisLocalTransaction:
    """One `redis_do_and_submit`."""

    def __init__(
        self,
        rules: Rules,
        carry: Carry,
        message: Message,
        client: object,
        work: RedisWork,
        *,
        expiry: Duration | None,
        dtm_keys: bool,
        is_async: bool,
    ) -> None:
        # Before anything is sent: what cannot be used is the caller's mistake.
        check_client(client, is_async=is_async)
        self._key = None if dtm_keys else work.keys[0]
        if self._key is not None:
            tag_of(self._key)
        self._rules = rules
        self._carry = carry
        self._message = message
        self._client = client
        self._work = work
        self._expiry = expiry
        self._barrier = BranchBarrier(Pattern.MSG, message.gid, CHECK_BACK_BRANCH, Op.MSG)
        self._is_async = is_async

    async def run(self, query_prepared: str) -> str:
        if self._key is not None and is_grpc_url(query_prepared):
            # A method has no query; what is sent with every call is metadata there.
            self._message.add_header(f"{METADATA_PREFIX}{REDIS_KEY_PARAMETER}", as_ascii(self._key))
        else:
            query_prepared = with_key(query_prepared, self._key)
        await self._carry(self._rules.prepare_message(self._message, query_prepared))
        try:
            await self._take_effect()
        except DuplicatedError:
            raise  # it says so itself; which of the two it was is what the check-back tells
        except BaseException as error:
            await self._give_up(error)
            raise
        return await submit_committed(self._rules, self._carry, self._message)

    async def _take_effect(self) -> Passed:
        if self._is_async:
            return await self._barrier.redis_call(
                self._client, self._work, expiry=self._expiry, dtm_keys=self._key is None
            )
        return self._barrier.redis_call_sync(self._client, self._work, expiry=self._expiry, dtm_keys=self._key is None)

    async def _give_up(self, error: BaseException) -> None:
        is_certain = isinstance(error, BranchFailed | ResponseError)
        if is_certain and await self._abort(error):
            return
        said = "nothing was written" if is_certain else "whether the local transaction has taken effect is not known"
        error.add_note(
            f"message {self._message.gid}: {said}; the coordinator's check-back finds out, and submits or ends it"
        )

    async def _abort(self, error: BaseException) -> bool:
        try:
            # Its mark keeps a second attempt with the same gid, made at the same time, from taking effect.
            if await self._has_taken_effect():
                return False
            await self._carry(self._rules.abort_message(self._message, reason_of(error)))
        except Exception as failure:  # noqa: BLE001 (what went wrong first matters more)
            error.add_note(f"message {self._message.gid} could not be aborted ({failure!r})")
            return False
        return True

    async def _has_taken_effect(self) -> bool:
        if self._is_async:
            return await self._barrier.redis_query_prepared(self._client, self._key, expiry=self._expiry)
        return self._barrier.redis_query_prepared_sync(self._client, self._key, expiry=self._expiry)


def with_key(query_prepared: str, key: str | None) -> str:
    """Have the check-back told beside which key the mark is; without it, the mark has DTM's name."""
    if key is None or not query_prepared:
        return query_prepared
    parts = urlsplit(query_prepared)
    added = urlencode({REDIS_KEY_PARAMETER: key})
    return parts._replace(query=f"{parts.query}&{added}" if parts.query else added).geturl()
