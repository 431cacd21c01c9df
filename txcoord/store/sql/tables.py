"""The tables, as SQLAlchemy sees them. `txcoord/store/migrations` makes them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text, UniqueConstraint
from sqlalchemy.dialects import mysql, postgresql

metadata = MetaData()

_BIG_ID = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts rows by INTEGER PRIMARY KEY only, which has 64 bits there."""

_LONG_TEXT = Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")


def _name(length: int) -> String:
    """Compared byte by byte: names that differ in case are different, and so are é and e."""
    return (
        String(length)
        .with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
        .with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")
    )


global_transaction = Table(
    "global_transaction",
    metadata,
    Column("id", _BIG_ID, primary_key=True, autoincrement=True),
    Column("gid", _name(128), nullable=False, unique=True),
    Column("pattern", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    # The node that drives it; 0: nobody, it is parked; NULL: it is final.
    Column("owner", BigInteger),
    Column("epoch", Integer, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("due_us", BigInteger),
    Column("deadline_us", BigInteger),
    Column("finished_us", BigInteger),
    # JSON, see txcoord/store/codec.py: the definition seldom changes, the progress with each save.
    Column("definition", _LONG_TEXT, nullable=False),
    Column("progress", _LONG_TEXT, nullable=False),
    Column("rollback_reason", _LONG_TEXT, nullable=False),
    Column("result", _LONG_TEXT, nullable=False),
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
)

# The one index besides the keys: due scans (owner = 0), take-over (owner = a dead node), and all that is
# unfinished (owner IS NOT NULL). Finished rows are not in it where the database can leave them out, so that it
# stays small however many there are.
Index(
    "ix_global_transaction_owner_due",
    global_transaction.c.owner,
    global_transaction.c.due_us,
    postgresql_where=global_transaction.c.owner.is_not(None),
    sqlite_where=global_transaction.c.owner.is_not(None),
)

node = Table(
    "node",
    metadata,
    Column("id", _BIG_ID, primary_key=True, autoincrement=True),
    Column("name", String(255), nullable=False),
    # The end of its lease by the database's clock; 0: it was fenced, and nothing brings it back.
    Column("expires_us", BigInteger, nullable=False),
    sqlite_autoincrement=True,
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
)

# Documents that all coordinators share, such as the topics. Columns are named as clients of DTM see them; the table
# is not, so that a database in which DTM has its own "kv" can be ours as well.
kv = Table(
    "txcoord_kv",
    metadata,
    # Never given out again: id and version together say whether a row is still the one that was read.
    Column("id", _BIG_ID, primary_key=True, autoincrement=True),
    Column("cat", _name(64), nullable=False),
    Column("k", _name(128), nullable=False),
    Column("v", _LONG_TEXT, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    UniqueConstraint("cat", "k", name="uq_txcoord_kv_cat_k"),
    sqlite_autoincrement=True,
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
)
