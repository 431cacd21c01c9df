"""The barrier table for each database, and the statements on it.

Columns and unique key are DTM's, so a table that DTM's scripts made will do, and services in
other languages can use one that was made here. Values are always bound. The table's name
cannot be, so it is checked to be a plain name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache

from msgspec import Struct

from txcoord.barrier.rule import Row
from txcoord.errors import InvalidRequestError


class Database(StrEnum):
    MYSQL = "mysql"
    """MariaDB too."""
    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"


class Placeholders(StrEnum):
    """How a driver wants bound values marked."""

    FORMAT = "%s"
    QMARK = "?"
    NUMBERED = "$"
    NAMED = ":"


COLUMNS = ("trans_type", "gid", "branch_id", "op", "barrier_id", "reason")
KEY_COLUMNS = ("gid", "branch_id", "op", "barrier_id")

DEFAULT_TABLES: Mapping[Database, str] = {
    Database.MYSQL: "dtm_barrier.barrier",
    Database.POSTGRESQL: "dtm_barrier.barrier",
    Database.SQLITE: "barrier",
}

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?")

_CREATION_LOCK = 7_206_611_358_204_316
"""Any number; PostgreSQL's `if not exists` does not keep two creators from colliding."""


class Statements(Struct, frozen=True, kw_only=True):
    """What the barrier says to one database through one driver."""

    insert: str
    """Insert unless the key is there, and count 1 or 0. Waits for a transaction that is inserting the same key."""
    find: str
    """Read gid and reason of a key."""
    peek: str
    """The same of what is committed, whoever holds a lock on it."""


def insert_values(row: Row) -> Sequence[str]:
    """The values that `Statements.insert` binds, in order."""
    return (row.trans_type, row.gid, row.branch_id, row.op, row.barrier_id, row.reason)


def find_values(row: Row) -> Sequence[str]:
    """The values that `Statements.find` binds, in order."""
    return (row.gid, row.branch_id, row.op, row.barrier_id)


def table_name(database: Database, table: str | None) -> str:
    """Return the table's name, checked; None stands for DTM's own.

    Raises:
        InvalidRequestError: it is not `name` or `schema.name` of letters, digits and underscores.
    """
    if table is None:
        return DEFAULT_TABLES[database]
    if not _NAME.fullmatch(table):
        raise InvalidRequestError(
            f"{table!r} cannot name the barrier table: use letters, digits and _, and at most one dot"
        )
    if database is Database.SQLITE and "." in table:
        raise InvalidRequestError(f"{table!r} cannot name the barrier table: SQLite has no schemas; leave out the dot")
    return table


@lru_cache(maxsize=64)
def statements(database: Database, table: str | None, placeholders: Placeholders) -> Statements:
    name = table_name(database, table)
    columns, values = ", ".join(COLUMNS), ", ".join(placeholders_for(placeholders, COLUMNS))
    key = " and ".join(
        f"{column} = {mark}"
        for column, mark in zip(KEY_COLUMNS, placeholders_for(placeholders, KEY_COLUMNS), strict=True)
    )
    # The name has passed `table_name`; everything else here is constant.
    find = f"select gid, reason from {name} where {key}"  # noqa: S608
    peek = find
    match database:
        case Database.MYSQL:
            insert = f"insert ignore into {name} ({columns}) values ({values})"  # noqa: S608
            # A locking read: under REPEATABLE READ a plain one would not show a row that
            # was committed after this transaction's first read.
            find += " lock in share mode"
        case Database.POSTGRESQL:
            # By columns rather than by DTM's `on constraint uniq_barrier`: the same
            # index, whatever a table made elsewhere calls it. DTM's columns for the
            # times have no default here.
            insert = (
                f"insert into {name} ({columns}, create_time, update_time) values ({values}, now(), now()) "  # noqa: S608
                f"on conflict ({', '.join(KEY_COLUMNS)}) do nothing"
            )
        case Database.SQLITE:
            insert = (
                f"insert into {name} ({columns}) values ({values}) "  # noqa: S608
                f"on conflict ({', '.join(KEY_COLUMNS)}) do nothing"
            )
    return Statements(insert=insert, find=find, peek=peek)


def placeholders_for(placeholders: Placeholders, names: Sequence[str]) -> Sequence[str]:
    match placeholders:
        case Placeholders.FORMAT | Placeholders.QMARK:
            return [placeholders.value] * len(names)
        case Placeholders.NUMBERED:
            return [f"${number}" for number, _ in enumerate(names, start=1)]
        case Placeholders.NAMED:
            return [f":{name}" for name in names]


def exists_statement(database: Database, placeholders: Placeholders) -> str:
    """A query for a table that returns a row if it is there; see `exists_values`."""
    schema, name = placeholders_for(placeholders, ("schema", "name"))
    match database:
        case Database.MYSQL:
            of_schema = f"table_schema = coalesce(nullif({schema}, ''), database())"
            return f"select 1 from information_schema.tables where {of_schema} and table_name = {name}"  # noqa: S608
        case Database.POSTGRESQL:
            # Quietly nothing for a schema that is not there.
            regclass = f"to_regclass(concat(cast({schema} as text), cast({name} as text)))"
            return f"select 1 from (select {regclass} as found) t where found is not null"  # noqa: S608
        case Database.SQLITE:
            return f"select 1 from sqlite_master where type = 'table' and {schema} = '' and name = {name}"  # noqa: S608


def exists_values(database: Database, table: str) -> Sequence[str]:
    schema, name = _parts(table)
    if database is Database.POSTGRESQL and schema:
        schema += "."
    return (schema, name)


def create_statements(database: Database, table: str | None) -> Sequence[str]:
    """The statements that make the table unless it is there, to be run in order."""
    full = table_name(database, table)
    schema, name = _parts(full)
    match database:
        case Database.MYSQL:
            create_schema = [f"create database if not exists {schema} default character set utf8mb4"] if schema else []
            # A binary collation, unlike DTM's script: gids that differ by case only are
            # two transactions, and must not pass for one another's duplicates.
            create_table = f"""create table if not exists {full} (
  id bigint primary key auto_increment,
  trans_type varchar(45) default '',
  gid varchar(128) default '',
  branch_id varchar(128) default '',
  op varchar(45) default '',
  barrier_id varchar(45) default '',
  reason varchar(45) default '' comment 'the op that inserted this row',
  create_time datetime default current_timestamp,
  update_time datetime default current_timestamp,
  key (create_time),
  key (update_time),
  unique key (gid, branch_id, op, barrier_id)
) engine=InnoDB default charset=utf8mb4 collate=utf8mb4_bin"""
            return [*create_schema, create_table]
        case Database.POSTGRESQL:
            sequence = f"{schema}.{name}_seq" if schema else f"{name}_seq"
            create_schema = [f"create schema if not exists {schema}"] if schema else []
            return [
                f"select pg_advisory_xact_lock({_CREATION_LOCK})",
                *create_schema,
                f"create sequence if not exists {sequence}",
                f"""create table if not exists {full} (
  id bigint not null default nextval('{sequence}'),
  trans_type varchar(45) default '',
  gid varchar(128) default '',
  branch_id varchar(128) default '',
  op varchar(45) default '',
  barrier_id varchar(45) default '',
  reason varchar(45) default '',
  create_time timestamp(0) with time zone default null,
  update_time timestamp(0) with time zone default null,
  primary key (id),
  constraint uniq_barrier unique (gid, branch_id, op, barrier_id)
)""",
            ]
        case Database.SQLITE:
            return [
                f"""create table if not exists {full} (
  id integer primary key autoincrement,
  trans_type varchar(45) default '',
  gid varchar(128) default '',
  branch_id varchar(128) default '',
  op varchar(45) default '',
  barrier_id varchar(45) default '',
  reason varchar(45) default '',
  create_time datetime default current_timestamp,
  update_time datetime default current_timestamp,
  unique (gid, branch_id, op, barrier_id)
)"""
            ]


def _parts(table: str) -> tuple[str, str]:
    schema, _, name = table.rpartition(".")
    return schema, name
