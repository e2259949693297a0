"""Which errors of a database are about the rows it was given, and which about the database."""

from __future__ import annotations

import sqlite3

import psycopg
from sqlalchemy.exc import DBAPIError

SQLITE_AWAY = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
}  # fmt: skip
_SERVER = ("08", "25", "28", "40", "53", "55", "57", "58")
"""Classes of SQLSTATE: connection, transaction state, authorization, rollback (deadlock), resources, object in use,
operator, system. Whatever rows it is given, a server can say these."""
_ROWS = ("09", "21", "22", "23", "27", "2F", "38", "39", "44", "54", "P0")
"""Data, constraints, limits of the program, and what triggers say."""


def is_server(error: DBAPIError) -> bool:
    """The database cannot go on, or not now, whatever the rows are."""
    cause = error.orig
    if error.connection_invalidated:
        return True
    if isinstance(cause, sqlite3.Error):
        return (cause.sqlite_errorcode & 0xFF) in SQLITE_AWAY
    state = getattr(cause, "sqlstate", None)
    return state.startswith(_SERVER) if state else not isinstance(cause, psycopg.DataError)


def is_of_rows(cause: BaseException | None) -> bool:
    """The database understood and said no to a row."""
    state = getattr(cause, "sqlstate", None) or ""
    kinds = (psycopg.IntegrityError, psycopg.DataError, sqlite3.IntegrityError, sqlite3.DataError)
    return isinstance(cause, kinds) or state.startswith(_ROWS)
