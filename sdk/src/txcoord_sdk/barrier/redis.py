"""The barrier in Redis: marks and work in one script, which Redis runs alone and whole. See docs/barrier.md.

    passage, left = await branch.barrier.redis_call(client, Increment("stock:3", -20))

`BranchBarrier.redis_call` says what it does; the scripts are in `txcoord.barrier.redis`. Clients are
those of the package redis: async or not, of one server or of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, NamedTuple, cast

import redis
import redis.asyncio as aredis
import redis.asyncio.client
import redis.asyncio.cluster
import redis.client
import redis.cluster
from redis.exceptions import NoScriptError

from txcoord.barrier import redis as scripts
from txcoord.barrier import rule
from txcoord.barrier.redis import DEFAULT_EXPIRY_S, Script, Verdict
from txcoord.barrier.rule import BarrierCall, Found, Passage
from txcoord_sdk._branch_errors import BranchFailed
from txcoord_sdk._checks import Duration, whole_seconds
from txcoord_sdk.barrier.errors import BarrierError, DuplicatedError

__all__ = ["DEFAULT_EXPIRY_S", "Increment", "LuaWork", "Passed", "RedisWork"]

Value = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Increment:
    """Work: add to a counter, which may not fall below a floor.

    Args:
        floor: the least that the counter may be afterwards; else, and if the counter is not there, the
            operation is refused (`BranchFailed`). None: no such bound, and a counter that is not there is 0.
            Where there is no way to refuse, as in a compensation, a floor means "call again until it fits".
    """

    key: str
    amount: int
    floor: int | None = 0

    def __post_init__(self) -> None:
        for name, number in (("amount", self.amount), ("floor", self.floor or 0)):
            if abs(number) > scripts.MAX_AMOUNT:
                raise ValueError(f"{name} {number} is beyond what a script of Redis counts exactly: 2**52")

    @property
    def script(self) -> str:
        return scripts.INCREMENT

    @property
    def keys(self) -> Sequence[str]:
        return (self.key,)

    @property
    def args(self) -> Sequence[Value]:
        return (self.amount, "" if self.floor is None else self.floor)


@dataclass(frozen=True, slots=True)
class LuaWork:
    """Work: a script of your own.

    It is the body of a Lua function, written as for EVAL: with `KEYS` and `ARGV`, and a value to return.
    `refuse(reason)` ends it with `BranchFailed`, and leaves no mark. Look first and write after: what it
    has written before it refuses or breaks off is not taken back by Redis.

    Args:
        script: constant; values that change are args. Redis keeps each different one.
        keys: all that it uses. The first says in which slot of a cluster the barrier's marks are, so that
            the operations of one branch need the same first key, or one with the same hash tag.
    """

    script: str
    keys: Sequence[str]
    args: Sequence[Value] = ()

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError("a script needs at least one key: beside it the barrier keeps its marks")


RedisWork = Increment | LuaWork


class Passed(NamedTuple):
    """What became of a call."""

    passage: Passage
    value: Any
    """What the work returned, if it ran now: the new balance of an `Increment`, or what a script said."""


class Marks:
    """The marks of one call in one Redis."""

    def __init__(self, client: object, call: BarrierCall, *, is_async: bool, expiry: Duration | None) -> None:
        check_client(client, is_async=is_async)
        self._client: Any = client
        self._call = call
        self._expiry_s = DEFAULT_EXPIRY_S if expiry is None else whole_seconds(expiry, name="expiry")

    async def run(self, work: RedisWork, *, dtm_keys: bool, token: str = "") -> Passed:
        """Run the work unless a mark says otherwise.

        Args:
            token: tells this attempt of a message's local transaction from others, also where the client
                sends the script again because the answer was lost.
        """
        call = self._call
        beside = None if dtm_keys else work.keys[0]
        value = scripts.committed_value(token) if call.refuses_duplicates else call.own.reason
        args = (value, call.own.reason, self._expiry_s, *work.args)
        reply = await self._eval(scripts.around(work.script), (*scripts.keys_of(call, beside=beside), *work.keys), args)
        verdict, rest = Verdict(_text(reply[0])), reply[1:]
        match verdict:
            case Verdict.RUN:
                return Passed(Passage.RUN, rest[0] if rest else None)
            case Verdict.EMPTY:
                return Passed(Passage.EMPTY, None)
            case Verdict.REFUSED:
                raise BranchFailed(_text(rest[0]))
            case Verdict.FOUND:
                return Passed(self._found(_text(rest[0]), value), None)

    def _found(self, value: str, own: str) -> Passage:
        call = self._call
        if not call.refuses_duplicates:
            return rule.judge_existing(call, Found(gid=call.gid, reason=value))
        if value == own:
            return Passage.RUN
        raise DuplicatedError(call.gid)

    async def check_back(self, key: str | None) -> bool:
        """Say whether the local transaction has set its mark, and if not, set it in its stead."""
        row = self._call.check_back
        found = await self._eval(scripts.CHECK_BACK, [scripts.mark(row, beside=key)], [row.reason, self._expiry_s])
        return rule.has_committed(Found(gid=row.gid, reason=_text(found)))

    async def _eval(self, script: Script, keys: Sequence[str], args: Sequence[Value]) -> Any:
        try:
            return await self._send("EVALSHA", script.sha, len(keys), *keys, *args)
        except NoScriptError:
            # Not kept: a new server, or one that was told to forget. Nothing of it has run.
            return await self._send("EVAL", script.text, len(keys), *keys, *args)

    async def _send(self, *words: Value) -> Any:
        answer = self._client.execute_command(*words)
        return await answer if isawaitable(answer) else answer


def is_async_client(client: object) -> bool:
    return isinstance(client, _ASYNC_CLIENTS)


def check_client(client: object, *, is_async: bool) -> None:
    """Let a client pass that runs commands at once, and in the way that is wanted.

    Raises:
        BarrierError: it is not a client, or gathers commands, or is async where a blocking one is wanted, or the
            reverse.
    """
    kind = f"{type(client).__module__}.{type(client).__qualname__}"
    if isinstance(client, _PIPELINES):
        raise BarrierError(f"a {kind} sends its commands later: give the barrier the client itself")
    if is_async_client(client):
        if not is_async:
            raise BarrierError(f"a {kind} is async: use the method without _sync, and await it")
    elif not isinstance(client, _BLOCKING_CLIENTS):
        raise BarrierError(f"a {kind} is not a client of the package redis, async or not, of a server or a cluster")
    elif is_async:
        raise BarrierError(f"a {kind} blocks: use the method that ends in _sync, outside the event loop")


_PIPELINES = (
    redis.client.Pipeline,
    redis.cluster.ClusterPipeline,
    redis.asyncio.client.Pipeline,
    redis.asyncio.cluster.ClusterPipeline,
)
_ASYNC_CLIENTS = (aredis.Redis, aredis.RedisCluster)
_BLOCKING_CLIENTS = (redis.Redis, redis.RedisCluster)


def _text(value: object) -> str:
    # Clients answer in text or in bytes, as they were made (`decode_responses`).
    return value.decode() if isinstance(value, bytes) else cast(str, value)
