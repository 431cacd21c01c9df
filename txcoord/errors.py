"""What can go wrong for the caller of txcoord: one tree, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from txcoord.model import Pattern, Status


class TxcoordError(Exception):
    """Base of all errors that a caller of the coordinator can meet."""


class InvalidRequestError(TxcoordError):
    """The request cannot succeed as it stands; the sentence says what to change."""


class RequestTooLargeError(InvalidRequestError):
    """The request exceeds a bound; the sentence names the bound and its setting."""


class TransactionNotFoundError(TxcoordError):
    """No transaction has this gid."""

    def __init__(self, gid: str) -> None:
        super().__init__(f"no global transaction has the gid {gid}")
        self.gid = gid


class TopicNotFoundError(TxcoordError):
    """There is no such topic, or it has no such subscriber; the sentence says which."""


class SubscribedAlreadyError(TxcoordError):
    """The topic has this subscriber."""

    def __init__(self, topic: str, *, url: str) -> None:
        super().__init__(f"this url exists: the topic {topic} has the subscriber {url}")
        self.topic, self.url = topic, url


class TopicBusyError(TxcoordError):
    """Others changed the topic each time this was tried; nothing was changed; try the same again."""


class StatusConflictError(TxcoordError):
    """The transaction exists, but its status does not allow what was asked."""

    def __init__(self, gid: str, *, status: Status, wanted: str, pattern: Pattern) -> None:
        super().__init__(f"cannot {wanted} {gid}: this {pattern} is {status}")
        self.gid, self.status, self.wanted, self.pattern = gid, status, wanted, pattern


class StoreUnavailableError(TxcoordError):
    """The store cannot be reached; nothing is known to be applied; try the same again later."""


class TransactionsLockedError(StoreUnavailableError):
    """Somebody's database transaction holds the rows of these; nothing was applied; try the same in a moment."""

    def __init__(self, gids: Sequence[str]) -> None:
        more = f" and {len(gids) - 1} others" if len(gids) > 1 else ""
        super().__init__(f"another transaction of the database has {gids[0]}{more} locked: try the same again")
        self.gids = frozenset(gids)


class OverloadedError(TxcoordError):
    """The coordinator has as much under way as its settings allow; try the same again later."""


class SchemaError(TxcoordError):
    """The tables are missing or of another version, or a stored transaction is; the sentence says what mends it."""


class LeaseLostError(TxcoordError):
    """Another coordinator may have it: stop, write nothing. Stays inside the process."""
