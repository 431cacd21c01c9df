"""Run by Alembic: on the connection, and within the transaction, that `migrate` was given."""

from __future__ import annotations

from alembic import context

from txcoord.store.migrations import VERSION_TABLE
from txcoord.store.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
