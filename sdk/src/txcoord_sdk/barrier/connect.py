"""Open a plain connection from a database URL, for the command line."""

from __future__ import annotations

import sqlite3
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from txcoord.barrier.tables import Database
from txcoord.errors import InvalidRequestError
from txcoord_sdk.barrier.errors import BarrierError

_DATABASES = {
    "sqlite": Database.SQLITE,
    "mysql": Database.MYSQL,
    "mariadb": Database.MYSQL,
    "postgresql": Database.POSTGRESQL,
    "postgres": Database.POSTGRESQL,
}

_MYSQL_OPTIONS = ("charset", "unix_socket", "ssl_ca", "ssl_cert", "ssl_key")


def connect(url: str) -> tuple[Database, Any]:
    """Connect to the database at a URL.

    Raises:
        InvalidRequestError: the URL is not understood.
        BarrierError: the driver is not installed.
    """
    scheme, _, rest = url.partition("://")
    database = _DATABASES.get(scheme.partition("+")[0])
    if database is None or not rest:
        raise InvalidRequestError(
            "not a database URL: use sqlite:///file.db, mysql://user:password@host:3306/database or "
            "postgresql://user:password@host:5432/database"
        )
    match database:
        case Database.SQLITE:
            return database, _sqlite(rest)
        case Database.MYSQL:
            return database, _mysql(url)
        case Database.POSTGRESQL:
            return database, _postgresql(rest)


def cannot_be_used(error: Exception) -> str:
    """Say that a database failed: each driver has its own tree of errors, and the user wants the sentence."""
    words = str(error).strip() or type(error).__name__
    return f"the database cannot be used: {words}: see that it runs, and that the URL is right"


def _sqlite(rest: str) -> sqlite3.Connection:
    path = rest.partition("?")[0]
    if not path.startswith("/") or path in ("/", "/:memory:"):
        raise InvalidRequestError("name a file: sqlite:///relative.db or sqlite:////absolute.db")
    return sqlite3.connect(unquote(path[1:]))


def _mysql(url: str) -> Any:
    try:
        import pymysql
    except ImportError as error:
        raise BarrierError("PyMySQL is missing: pip install 'txcoord-sdk[mysql]'") from error
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    for name in options:
        if name not in _MYSQL_OPTIONS:
            raise InvalidRequestError(f"unknown option {name} in the URL: it may have {', '.join(_MYSQL_OPTIONS)}")
    return pymysql.connect(
        host=parts.hostname or "localhost",
        port=parts.port or 3306,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password or ""),
        database=unquote(parts.path[1:]) or None,
        **options,
    )


def _postgresql(rest: str) -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise BarrierError("psycopg is missing: pip install 'txcoord-sdk[postgres]'") from error
    return psycopg.connect(f"postgresql://{rest}")
