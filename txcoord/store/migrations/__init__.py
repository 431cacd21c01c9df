"""The schema's versions: where a database stands, and how it gets to where this program needs it.

A version has four digits: two of a *generation*, two of a step in it. Within a generation a program runs on the schema
of any later step, and starts on it, so that coordinators are upgraded one by one while the others go on. A step may
therefore add a table, an index, or a column that has a default; nothing that an older program reads or writes
changes. What cannot be done like that begins a generation, and no program runs on the schema of another one.
"""

from __future__ import annotations

from importlib.resources import files

from sqlalchemy import Connection, column, inspect, select, table, text

VERSION_TABLE = "txcoord_schema"

HEAD = "0002"
"""The version that this program is written for."""

_LOCK_NAME = "txcoord_schema"
_LOCK_NUMBER = 0x7478636F
_LOCK_WAIT_S = 60


def version_of(connection: Connection) -> str | None:
    """The version of the schema in this database; None: it has none."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version: str | None = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
    return version


def runs_on(version: str) -> bool:
    """Whether this program runs on a schema of that version: its own, or a later step of the same generation."""
    return version >= HEAD and version[:_GENERATION] == HEAD[:_GENERATION]


_GENERATION = 2
"""Digits."""


def migrate(connection: Connection) -> None:
    """Bring the schema to `HEAD`; harmless where it is there already. A later one is left as it is.

    Several processes may do it at once: MySQL and PostgreSQL let one through at a time; a SQLite file belongs to one.
    """
    dialect = connection.dialect.name
    if dialect == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
    elif dialect == "mysql":
        connection.execute(text("SELECT GET_LOCK(:name, :wait)"), {"name": _LOCK_NAME, "wait": _LOCK_WAIT_S})
    try:
        found = version_of(connection)
        if found is not None and found >= HEAD:
            return
        # Loaded here: it takes a sixth of a start, and one that finds its schema in place needs none of it.
        from alembic import command
        from alembic.config import Config

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
