"""Global transactions and the nodes that drive them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    big_id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    long_text = sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
    gid = (
        sa.String(128)
        .with_variant(mysql.VARCHAR(128, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
        .with_variant(postgresql.VARCHAR(128, collation="C"), "postgresql")
    )
    op.create_table(
        "node",
        sa.Column("id", big_id, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
    )
    op.create_table(
        "global_transaction",
        sa.Column("id", big_id, primary_key=True, autoincrement=True),
        sa.Column("gid", gid, nullable=False, unique=True),
        sa.Column("pattern", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("owner", sa.BigInteger),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
        sa.Column("due_us", sa.BigInteger),
        sa.Column("deadline_us", sa.BigInteger),
        sa.Column("finished_us", sa.BigInteger),
        sa.Column("definition", long_text, nullable=False),
        sa.Column("progress", long_text, nullable=False),
        sa.Column("rollback_reason", long_text, nullable=False),
        sa.Column("result", long_text, nullable=False),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
    )
    unfinished = sa.text("owner IS NOT NULL")
    op.create_index(
        "ix_global_transaction_owner_due",
        "global_transaction",
        ["owner", "due_us"],
        postgresql_where=unfinished,
        sqlite_where=unfinished,
    )
