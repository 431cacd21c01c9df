"""The schema's versions: where a database stands, and how it gets to where this program needs it.

A change comes in two steps, one before and one after the program that needs it: the previous release runs on the
schema of this one.
"""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

VERSION_TABLE = "txcoord_schema"

HEAD = "0001"
"""The version that this program is written for."""

_LOCK_NAME = "txcoord_schema"
_LOCK_NUMBER = 0x7478636F
_LOCK_WAIT_S = 60


def version_of(connection: Connection) -> str | None:
    """The version of the schema in this database; None: it has none."""
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def migrate(connection: Connection) -> None:
    """Bring the schema to `HEAD`; harmless where it is there already.

    Several processes may do it at once: MySQL and PostgreSQL let one through at a time; a SQLite file belongs to one.
    """
    dialect = connection.dialect.name
    if dialect == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
    elif dialect == "mysql":
        connection.execute(text("SELECT GET_LOCK(:name, :wait)"), {"name": _LOCK_NAME, "wait": _LOCK_WAIT_S})
    try:
        config = Config()
        config.set_main_option("script_location", str(files("txcoord.store.migrations")).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD)
        if dialect == "mysql":
            # Tables are there at once, the version only now: whoever gets the lock next must find both.
            connection.execute(text("COMMIT"))
    finally:
        if dialect == "mysql":
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": _LOCK_NAME})
