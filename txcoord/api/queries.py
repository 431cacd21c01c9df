"""What can be asked about transactions and topics, by the names in DTM's query strings; the answers are JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from txcoord.api.views import JsonObject, branch_views, kv_view, stored_view
from txcoord.api.wire import INT64_MAX, clean_gid
from txcoord.errors import InvalidRequestError
from txcoord.model import MICROSECONDS, Pattern, Status
from txcoord.service import Service
from txcoord.store.base import KvQuery, ListQuery

Query = Mapping[str, str]

LIST_LIMIT: Final = 100
LIST_LIMIT_MAX: Final = 1000
_YEAR_10000_MS: Final = 253_402_300_800_000


async def query_transaction(service: Service, gid: str) -> JsonObject:
    """A transaction with its branches; null for what does not exist, as DTM has it."""
    stored = await service.query(gid_of(gid))
    if stored is None:
        return {"branches": [], "transaction": None}
    return {"branches": branch_views(stored.tx), "transaction": stored_view(stored)}


async def list_transactions(service: Service, query: Query) -> JsonObject:
    """The transactions that match, newest first, without their branches."""
    gid = clean_gid(query.get("gid", ""))
    if gid:
        stored = await service.query(gid)
        return {"next_position": "", "transactions": None if stored is None else [stored_view(stored)]}
    wanted = _list_query(query)
    if wanted is None:
        return {"next_position": "", "transactions": []}
    page = await service.list_transactions(wanted)
    return {
        "next_position": str(page.items[-1].id) if page.has_more else "",
        "transactions": [stored_view(stored) for stored in page.items],
    }


async def query_kv(service: Service, query: Query) -> JsonObject:
    """The document with a key; without one those of a category, or all there are: the newest thousand, or fewer
    if they are large; `scan_kv` tells those behind them.
    """
    category, key = query.get("cat", ""), query.get("key", "")
    if not key:
        found = (await service.topics.scan_kv(KvQuery(limit=LIST_LIMIT_MAX, category=category or None))).items
    elif category:
        found = await service.topics.query_kv(category, key)
    else:
        raise InvalidRequestError(f"no cat specified: name the category of the key {key[:200]!r}")
    return {"kv": [kv_view(document) for document in found]}


async def scan_kv(service: Service, query: Query) -> JsonObject:
    """The documents of a category, or all there are, newest first."""
    limit = min(whole_number(query, "limit", default=LIST_LIMIT, lowest=1), LIST_LIMIT_MAX)
    position = optional_number(query, "position")
    page = await service.topics.scan_kv(KvQuery(limit=limit, before_id=position, category=query.get("cat", "") or None))
    return {
        "kv": [kv_view(document) for document in page.items],
        "next_position": str(page.items[-1].id) if page.has_more else "",
    }


def gid_of(gid: str) -> str:
    """Return the gid that is asked for, cleaned as it was when it was written.

    Raises:
        InvalidRequestError: there is none.
    """
    gid = clean_gid(gid)
    if not gid:
        raise InvalidRequestError("no gid specified: name the global transaction")
    return gid


_WHOLE_NUMBER: Final = re.compile(r"-?[0-9]{1,19}")


def optional_number(query: Query, name: str, *, lowest: int = 0, highest: int = INT64_MAX) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    if _WHOLE_NUMBER.fullmatch(text) and lowest <= int(text) <= highest:
        return int(text)
    raise InvalidRequestError(f"{name} must be a whole number from {lowest} to {highest}, not {text[:40]!r}")


def whole_number(query: Query, name: str, *, default: int, lowest: int = 0, highest: int = INT64_MAX) -> int:
    number = optional_number(query, name, lowest=lowest, highest=highest)
    return default if number is None else number


def _list_query(query: Query) -> ListQuery | None:
    """Return what to list; None: a status or pattern that nothing can have."""
    limit = whole_number(query, "limit", default=LIST_LIMIT, lowest=1)
    position = optional_number(query, "position")
    from_ms = optional_number(query, "createTimeStart", highest=_YEAR_10000_MS)
    to_ms = optional_number(query, "createTimeEnd", highest=_YEAR_10000_MS)
    status, pattern = query.get("status", ""), query.get("transType", "")
    try:
        return ListQuery(
            limit=min(limit, LIST_LIMIT_MAX),
            before_id=position,
            status=Status(status) if status else None,
            pattern=Pattern(pattern) if pattern else None,
            created_from_us=None if from_ms is None else from_ms * (MICROSECONDS // 1000),
            # A bound in milliseconds takes in the whole of its last one.
            created_to_us=None if to_ms is None else (to_ms + 1) * (MICROSECONDS // 1000) - 1,
        )
    except ValueError:
        return None
