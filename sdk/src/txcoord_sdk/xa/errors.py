"""What can go wrong in XA besides what the database and the caller's own work raise."""

from __future__ import annotations

from txcoord.errors import TxcoordError


class XaError(TxcoordError):
    """This database, or this source of connections, cannot do XA. Nothing was done."""
