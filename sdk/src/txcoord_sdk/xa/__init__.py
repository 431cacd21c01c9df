"""XA for participants: local transactions that are prepared, and ended by the coordinator's decision."""

from __future__ import annotations

from txcoord.xa.xid import XaKey
from txcoord_sdk.xa.errors import XaError
from txcoord_sdk.xa.links import Source
from txcoord_sdk.xa.participant import take_part, take_part_sync
from txcoord_sdk.xa.phases import Prepared, finish, finish_sync, prepare, prepare_sync
from txcoord_sdk.xa.recovery import Fate, Leftover, recover, recover_sync

__all__ = [
    "Fate",
    "Leftover",
    "Prepared",
    "Source",
    "XaError",
    "XaKey",
    "finish",
    "finish_sync",
    "prepare",
    "prepare_sync",
    "recover",
    "recover_sync",
    "take_part",
    "take_part_sync",
]
