"""Engines: one a process and database, opened after the fork, with failures that name the server and no password."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from stellerd.errors import ConfigError, Unreachable

BUSY_TIMEOUT_S = 10
CONNECT_TIMEOUT_S = 10
# No server-side prepared statements: a transaction pooler hands the next statement to another session
POSTGRES_OPTIONS = {
    "connect_timeout": CONNECT_TIMEOUT_S, "prepare_threshold": None, "application_name": "stellerd",
    "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 30_000,
}  # fmt: skip
_OF_STATEMENT = {"DataError", "IntegrityError", "NotSupportedError", "ProgrammingError"}  # PEP 249


def open_engine(url: str, name: str) -> sa.Engine:
    """An engine for SQLite (WAL, writers queue up) or PostgreSQL (psycopg; safe behind a transaction pooler).

    Raises: ConfigError when the URL cannot be used; the message holds no password.
    """
    parsed = parse(url, name)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed, name)
    return sa.create_engine(
        parsed, pool_pre_ping=True, pool_size=2, max_overflow=3, hide_parameters=True, connect_args=POSTGRES_OPTIONS
    )


def parse(url: str, name: str) -> URL:
    """The URL of a database that stellerd can use.

    Raises: ConfigError when it is none; the message holds no password.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise ConfigError(f"{name}: not a database URL; write postgresql+psycopg://user@host/name") from None
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        return parsed
    raise ConfigError(f"{name}: {backend} is not supported; use postgresql+psycopg://… or sqlite:///…")


def _sqlite(url: URL, name: str) -> sa.Engine:
    make_folder(url, name)
    engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def file_of(url: URL) -> Path | None:
    """The plain file that an SQLite URL names; None: there is none, or it is a URI (sqlite.org/uri.html)."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return None if url.database.startswith("file:") else Path(url.database)


def make_folder(url: URL, name: str) -> None:
    """The folder of an SQLite file, for this user alone.

    Raises: Unreachable when it cannot be made.
    """
    if file := file_of(url):
        folder = file.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unreachable(f"{name}: cannot create {folder}: {os.strerror(error.errno or 0)}") from None


def open_to_read(path: str, options: Mapping[str, Any]) -> sqlite3.Connection:
    """A connection to an SQLite file that is there already; it changes nothing in it.

    Not SQLite's own mode=ro for whoever may write: such a connection leaves the log's files behind, made anew, where it
    was the only one. Whoever may not takes a file without a log for one that nobody changes, or would leave files too.
    """
    if not options.get("uri"):
        mode = "mode=rw"
        if not os.access(path, os.W_OK):
            mode = "mode=ro" if os.path.exists(f"{path}-wal") else "immutable=1"
        path = f"file:{quote(path)}?{mode}"
    connection: sqlite3.Connection = sqlite3.connect(
        path, **{**options, "uri": True, "check_same_thread": False, "timeout": BUSY_TIMEOUT_S}, isolation_level=None
    )
    connection.execute("PRAGMA query_only = ON")
    return connection


def prepare_sqlite(connection: sqlite3.Connection, record: Any = None) -> bool:
    """What each connection to an SQLite file begins with; whether the file has a write-ahead log."""
    connection.isolation_level = None  # sqlite3 must not begin by itself: BEGIN IMMEDIATE is ours
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    has_log = _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = FULL")  # what was committed must survive a power cut too
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()
    return has_log


def _write_ahead(cursor: sqlite3.Cursor) -> bool:
    """Turn WAL on. SQLite does not wait for this by itself, and several processes may open a new file at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            return bool(cursor.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def begin_immediate(connection: sqlite3.Connection) -> None:
    """Become the one writer. SQLite's own waiting sleeps for up to 100 ms a time, so that of fifty jobs which record
    their end at once the last is a second late; this looks again after 1 to 4 ms, and later up to 20 ms: many who
    look all the time keep the one who writes from its work.

    Raises: sqlite3.OperationalError when somebody else keeps writing for BUSY_TIMEOUT_S.
    """
    deadline, longest_s = time.monotonic() + BUSY_TIMEOUT_S, 0.004
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.001, longest_s))
                longest_s = min(longest_s * 1.3, 0.02)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")


def _begin_sqlite(connection: sa.Connection) -> None:
    if connection.get_execution_options().get("stellerd_reads_only"):
        connection.exec_driver_sql("BEGIN")
    else:
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        begin_immediate(raw)


@contextmanager
def transaction(engine: sa.Engine, name: str, *, reads_only: bool = False) -> Iterator[sa.Connection]:
    """One transaction; commits at the end, rolls back on an error.

    Raises: Unreachable when the database cannot be reached or used; the message holds no password.
    """
    try:
        with engine.connect().execution_options(stellerd_reads_only=reads_only) as connection, connection.begin():
            yield connection
    except DBAPIError as error:
        if error.connection_invalidated or is_of_server(error.orig):
            raise Unreachable(f"{name} ({shown(engine.url)}): {first_line(error.orig)}") from error
        raise
    except NoSuchModuleError as error:
        raise ConfigError(f"{name}: {error}") from None


def shown(url: URL) -> str:
    """The URL as messages may name it: no user, no password, no options."""
    host = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    return f"{url.get_backend_name()}://{host}/{url.database or ''}"


def is_of_server(error: BaseException | None) -> bool:
    """Whether a driver's error is the server's (away, read-only, no database), not a mistake of the statement's."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"DatabaseError", "InterfaceError"}) and not kinds & _OF_STATEMENT


def first_line(error: BaseException | None) -> str:
    """What the driver said, in one line."""
    return " ".join(str(error).split("\n")[0].split())
