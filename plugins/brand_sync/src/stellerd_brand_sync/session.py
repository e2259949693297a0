"""One transaction on the platform's database; whatever goes wrong in it becomes an error for people."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from stellerd import errors

LOCK = 7_305_812_166
"""Key of the advisory lock that lets one sync at a time into a PostgreSQL database; any number, always the same."""
_SQLITE_AWAY = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT,
}  # fmt: skip
# Statements that are run once are not worth compiling
_LOCAL = "SET LOCAL lock_timeout = '120s'; SET LOCAL timezone = 'UTC'; SET LOCAL jit = off"


@contextmanager
def transaction(engine: sa.Engine, database: str, *, keep: bool = True, alone: bool = True) -> Iterator[sa.Connection]:
    """A transaction that excludes any other sync; commits at the end if `keep`, otherwise undoes everything.

    `alone` False: it does not wait for a sync that is going on.
    On PostgreSQL an advisory lock of the transaction, on SQLite BEGIN IMMEDIATE (the core's engine begins so).
    Raises: Unreachable when the database does not answer, JobFailed when it refuses; neither holds a password.
    """
    where = f'database "{database}" ({shown(engine.url)})'
    try:
        with engine.connect() as connection, connection.begin() as begun:
            if alone:
                _exclude_others(connection)
            yield connection
            if not keep:
                begun.rollback()
    except DBAPIError as error:
        raise _for_people(where, error.orig, error.connection_invalidated or _is_away(error)) from None
    except psycopg.Error as error:  # COPY goes past SQLAlchemy
        raise _for_people(where, error, isinstance(error, psycopg.OperationalError)) from None


def _exclude_others(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_LOCAL)
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})


def _is_away(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):  # its OperationalError also means wrong SQL
        return (error.orig.sqlite_errorcode & 0xFF) in _SQLITE_AWAY
    return isinstance(error, OperationalError | InterfaceError)


def _for_people(where: str, cause: Any, away: bool) -> errors.StellerdError:
    said = " ".join(str(cause).split("\n")[0].split())
    if isinstance(cause, psycopg.errors.LockNotAvailable):
        return errors.JobFailed(f"{where}: a table was locked by somebody else for two minutes; nothing was changed")
    if away:
        return errors.Unreachable(f"{where}: {said}")
    return errors.JobFailed(f"{where}: {said}; nothing was changed")


def shown(url: sa.URL) -> str:
    """The URL as messages may name it: no user, no password, no options."""
    host = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    return f"{url.get_backend_name()}://{host}/{url.database or ''}"
