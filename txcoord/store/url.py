"""From a store's URL to the store."""

from __future__ import annotations

from txcoord.store.base import Store
from txcoord.store.memory import MemoryStore

ALLOWED = (
    "memory://, sqlite:///relative.db, sqlite:////absolute.db, mysql://user:password@host:3306/database, "
    "mariadb://…, postgresql://user:password@host:5432/database"
)


def open_store(url: str, *, timeout_s: float = 10.0, pool_size: int = 4) -> Store:
    """Make the store that `url` names. It connects in its `open()`.

    Args:
        timeout_s: bound of each call of the database.
        pool_size: connections to the database, besides the journal's own.

    Raises:
        ValueError: the URL is not one of those allowed; the sentence names them.
    """
    if url == "memory://":
        return MemoryStore()
    raise ValueError(f"the store URL is not one of: {ALLOWED}")
