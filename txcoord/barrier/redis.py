"""The barrier in Redis: its keys, and the scripts that test and set them together with the work.

A key (a *mark*) stands for what is a row of the table elsewhere; its value is the op that wrote it,
as `reason` is there. Redis runs a script alone and whole, so that marks and work cannot be seen, nor
persisted, apart from each other. What a script has written is not undone when it then breaks off:
marks are set last, and work is to check before it writes.

DTM's script asks for the balance first and for the mark after, so that the repetition of a deduction
that took the last piece is refused. Here the mark comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from hashlib import sha1
from urllib.parse import quote

from msgspec import Struct

from txcoord.barrier.rule import BarrierCall, Row
from txcoord.errors import InvalidRequestError
from txcoord.model import Op

DEFAULT_EXPIRY_S = 7 * 24 * 3600


class Verdict(StrEnum):
    """The first word of what a script of ours returns."""

    RUN = "run"
    EMPTY = "empty"
    FOUND = "found"
    """The own mark was there; its value follows."""
    REFUSED = "refused"
    """The work refused and no mark was set; its reason follows."""


class Script(Struct, frozen=True, kw_only=True):
    """A Lua script, and the name under which Redis keeps it."""

    text: str
    sha: str


# KEYS: own mark, origin's mark (the own one again: there is none), those of the work.
# ARGV: value of the own mark, value of the origin's mark, seconds to keep them, those of the work.
#
# A call that comes again shows that more may come: it keeps the marks from expiring. TTL is asked, since
# EXPIRE would also shorten, and its option GT came with Redis 7.
_AROUND = """\
local own, origin, keep_s = KEYS[1], KEYS[2], tonumber(ARGV[3])
local function renew(key)
  local left_s = redis.call('TTL', key)
  if left_s >= 0 and left_s < keep_s then redis.call('EXPIRE', key, keep_s) end
  return left_s ~= -2
end
local function rest(list, first)
  local found = {}
  for number = first, #list do found[#found + 1] = list[number] end
  return found
end
local function refuse(reason) error({refused = tostring(reason)}, 0) end
local function work(KEYS, ARGV)
%s
end
local found = redis.call('GET', own)
local is_empty = origin ~= own and not renew(origin)
if is_empty then redis.call('SET', origin, ARGV[2], 'EX', keep_s) end
if found then
  renew(own)
  return {'found', found}
end
if is_empty then
  redis.call('SET', own, ARGV[1], 'EX', keep_s)
  return {'empty'}
end
local done, value = pcall(work, rest(KEYS, 3), rest(ARGV, 4))
if type(value) == 'table' and value.refused then return {'refused', value.refused} end
if type(value) == 'table' and value.err then return value end
if not done then return redis.error_reply(tostring(value)) end
redis.call('SET', own, ARGV[1], 'EX', keep_s)
return {'run', value}
"""

# Before writing, and compared as the doubles that Lua has: `MAX_AMOUNT` keeps that exact.
INCREMENT = """\
local amount, floor = ARGV[1], ARGV[2]
if floor ~= '' then
  local before = redis.call('GET', KEYS[1])
  if not before then refuse(KEYS[1] .. ' is not there') end
  if (tonumber(before) or math.huge) + tonumber(amount) < tonumber(floor) then
    refuse(KEYS[1] .. ' is ' .. before .. ': adding ' .. amount .. ' would bring it below ' .. floor)
  end
end
return redis.call('INCRBY', KEYS[1], amount)"""
"""Add ARGV[1] to KEYS[1] unless that brings it below ARGV[2] (empty: no such bound)."""

MAX_AMOUNT = 2**52 - 1

_CHECK_BACK = """\
local found = redis.call('GET', KEYS[1])
if found then
  local left_s = redis.call('TTL', KEYS[1])
  if left_s >= 0 and left_s < tonumber(ARGV[2]) then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
  return found
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return ARGV[1]
"""


@lru_cache(maxsize=256)
def around(work: str) -> Script:
    """The barrier's script around the body of a Lua function, which sees KEYS and ARGV of its own, and `refuse`."""
    return _script(_AROUND % work)


def _script(text: str) -> Script:
    return Script(text=text, sha=sha1(text.encode(), usedforsecurity=False).hexdigest())


CHECK_BACK = _script(_CHECK_BACK)
"""Return the value of a message's mark; write it if there is none."""


def keys_of(call: BarrierCall, *, beside: str | None) -> Sequence[str]:
    """The marks of a call: its own, and that of what it undoes (the own one again if it undoes nothing).

    Args:
        beside: the key in whose slot of a cluster they are to be; None for DTM's names, which
            are in a slot of their own each.
    """
    return [mark(call.own, beside=beside), mark(call.origin or call.own, beside=beside)]


def mark(row: Row, *, beside: str | None) -> str:
    """The key that stands for a row."""
    parts = (row.gid, row.branch_id, row.op, row.barrier_id)
    if beside is None:
        return "-".join(parts)
    # Quoted, no part holds a colon: unlike DTM's, two names are one only if all parts are.
    return f"{{{tag_of(beside)}}}:barrier:{':'.join(quote(part, safe='') for part in parts)}"


def tag_of(key: str) -> str:
    """The part of a key that decides about its slot in a cluster, in a form that can be the tag of others.

    Raises:
        InvalidRequestError: it is empty, or has a closing brace, but not as the end of a tag.
    """
    opening = key.find("{")
    closing = key.find("}", opening + 1)
    if opening >= 0 and closing > opening + 1:
        return key[opening + 1 : closing]
    if not key or "}" in key:
        raise InvalidRequestError(
            f"{key!r} cannot say in which slot the barrier's keys belong: give it a hash tag, as in {{stock}}:3"
        )
    return key


def committed_value(token: str) -> str:
    """The value of the mark that a message's local transaction sets; the token tells this attempt from others."""
    return f"{Op.MSG} {token}"
