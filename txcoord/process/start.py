"""How a process ends, and what is said when it could not even start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from txcoord.errors import SchemaError, StoreUnavailableError

EXIT_OK: Final = 0
EXIT_NOT_STARTED: Final = 1


class StartError(Exception):
    """The coordinator could not start; the sentence says why and what to do."""


@contextmanager
def sentences(store: str) -> Iterator[None]:
    """Turn what can be wrong at start into the sentence that is printed.

    Args:
        store: the store's URL.
    """
    # Here, because most commands do without the store and shall be quick.
    from txcoord.store.url import cannot_be_used

    try:
        yield
    except StoreUnavailableError as error:
        raise StartError(cannot_be_used(store, error)) from error
    except (ValueError, SchemaError) as error:
        raise StartError(str(error)) from error
