"""The name of a branch's transaction in its database, and the way back from it.

DTM's name is `<gid>-<branch_id>`, and so is ours wherever that is short, harmless within quotes and
can be read back: then participants in other languages, and people, find what they expect. Anything
else gets a name made of the start of the gid and a hash. The two kinds cannot meet: the first always
has a hyphen, the second never. Two branches never have the same name, for the first kind is split at
its last hyphen, and the second hashes both parts with their lengths.
"""

from __future__ import annotations

import re
from base64 import b32encode
from collections.abc import Mapping
from hashlib import sha256

from msgspec import Struct

from txcoord.barrier.tables import Database
from txcoord.errors import InvalidRequestError
from txcoord.model import Pattern

LONGEST: Mapping[Database, int] = {Database.MYSQL: 64, Database.POSTGRESQL: 199}
"""Bytes. MySQL has as many again in a second part, which DTM's clients leave empty."""

# No quote, no backslash; nothing that a driver might take for the mark of a value; no blank, which
# databases may trim.
_PLAIN_GID = re.compile(r"[A-Za-z0-9_.@/+=#-]+")
_PLAIN_BRANCH = re.compile(r"[A-Za-z0-9_.]+")
_HASHED = re.compile(r"txcoord\.([A-Za-z0-9_.]*)\.([a-z2-7]{32})")

_HASH_BYTES = 20
_PREFIX_LENGTH = 23


class XaKey(Struct, frozen=True, kw_only=True):
    """Which branch of which global transaction a local transaction belongs to."""

    gid: str
    branch_id: str
    trans_type: str = Pattern.XA
    """Stored with the barrier's row; no part of the name."""

    def __str__(self) -> str:
        return f"branch {self.branch_id} of {self.trans_type} {self.gid}"


class HashedXid(Struct, frozen=True, kw_only=True):
    """A name of ours that does not tell its gid."""

    prefix: str
    """How the gid begins, up to its first unusual character."""


def xid_of(key: XaKey, database: Database) -> str:
    """Return the name: letters, digits and `_ . @ / + = # -` only, never longer than the database takes.

    Raises:
        InvalidRequestError: the database has no prepared transactions.
    """
    longest = LONGEST.get(database)
    if longest is None:
        raise InvalidRequestError(f"{database} has no prepared transactions: XA works on MySQL, MariaDB and PostgreSQL")
    plain = f"{key.gid}-{key.branch_id}"
    if _PLAIN_GID.fullmatch(key.gid) and _PLAIN_BRANCH.fullmatch(key.branch_id) and len(plain) <= longest:
        return plain
    # Of a gid that came through JSON, half a character may be left: it is hashed as it stands.
    gid, branch_id = (text.encode(errors="surrogatepass") for text in (key.gid, key.branch_id))
    digest = sha256(b"%d:%b%b" % (len(gid), gid, branch_id)).digest()[:_HASH_BYTES]
    start = re.match(r"[A-Za-z0-9_.]*", key.gid)
    assert start is not None, "the pattern takes nothing, too"
    return f"txcoord.{start[0][:_PREFIX_LENGTH]}.{b32encode(digest).decode().lower()}"


def read_xid(xid: str) -> XaKey | HashedXid | None:
    """Return what a name tells; None if it is not of our form.

    A name of our form can still be somebody else's: whoever ends transactions has to look further.
    """
    if hashed := _HASHED.fullmatch(xid):
        return HashedXid(prefix=hashed[1])
    gid, hyphen, branch_id = xid.rpartition("-")
    if hyphen and _PLAIN_GID.fullmatch(gid) and _PLAIN_BRANCH.fullmatch(branch_id):
        return XaKey(gid=gid, branch_id=branch_id)
    return None
