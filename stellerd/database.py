"""Engines: one a process and database, opened after the fork, with failures that name the server and no password."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from stellerd.errors import ConfigError, Unreachable

BUSY_TIMEOUT_S = 10
CONNECT_TIMEOUT_S = 10
_SERVER_SIDE = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.InternalError,  # read-only after a failover
    sa.exc.DatabaseError,  # SQLite: the file is no database
)  # of the server; the others are mistakes of the statement


def open_engine(url: str, name: str) -> sa.Engine:
    """An engine for SQLite (WAL, writers queue up) or PostgreSQL (psycopg; safe behind a transaction pooler).

    Raises: ConfigError when the URL cannot be used; the message holds no password.
    """
    parsed = _parse(url, name)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed, name)
    # No server-side prepared statements: a transaction pooler hands the next statement to another session
    options = {"connect_timeout": CONNECT_TIMEOUT_S, "prepare_threshold": None, "application_name": "stellerd"}
    return sa.create_engine(
        parsed, pool_pre_ping=True, pool_size=2, max_overflow=3, hide_parameters=True, connect_args=options
    )


def _parse(url: str, name: str) -> URL:
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
    if url.database and url.database != ":memory:":
        folder = Path(url.database).parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unreachable(f"{name}: cannot create {folder}: {os.strerror(error.errno or 0)}") from None
    engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # sqlite3 must not begin by itself: BEGIN IMMEDIATE is ours
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = FULL")  # a spent slot must survive a power cut too
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Turn WAL on. SQLite does not wait for this by itself, and several processes may open a new file at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: sa.Connection) -> None:
    reads_only = connection.get_execution_options().get("stellerd_reads_only")
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


@contextmanager
def transaction(engine: sa.Engine, name: str, *, reads_only: bool = False) -> Iterator[sa.Connection]:
    """One transaction; commits at the end, rolls back on an error.

    Raises: Unreachable when the database cannot be reached or used; the message holds no password.
    """
    try:
        with engine.connect().execution_options(stellerd_reads_only=reads_only) as connection, connection.begin():
            yield connection
    except DBAPIError as error:
        if type(error) in _SERVER_SIDE or error.connection_invalidated:
            raise Unreachable(f"{name} ({shown(engine.url)}): {first_line(error)}") from error
        raise
    except NoSuchModuleError as error:
        raise ConfigError(f"{name}: {error}") from None


def shown(url: URL) -> str:
    """The URL as messages may name it: no user, no password, no options."""
    host = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    return f"{url.get_backend_name()}://{host}/{url.database or ''}"


def first_line(error: DBAPIError) -> str:
    """What the driver said, in one line."""
    return " ".join(str(error.orig).split("\n")[0].split())
