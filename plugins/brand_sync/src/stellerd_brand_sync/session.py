"""One transaction on the platform's database; whatever goes wrong in it becomes an error for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from stellerd import errors
from stellerd_brand_sync import refusal

LOCK = 7_305_812_166
"""Key of the advisory lock that lets one sync at a time into a PostgreSQL database; any number, always the same."""
# Statements that are run once are not worth compiling
_LOCAL = (
    "SET LOCAL lock_timeout = '120s'; SET LOCAL timezone = 'UTC'; SET LOCAL jit = off; "
    "SET LOCAL client_encoding = 'UTF8'"  # what COPY is sent in; by default it is the database's own
)


class Unstorable(errors.JobFailed):
    """The catalogue cannot be stored for what is in it."""


@contextmanager
def transaction(engine: sa.Engine, database: str, *, keep: bool = True, alone: bool = True) -> Iterator[sa.Connection]:
    """A transaction that excludes any other sync; commits at the end if `keep`, otherwise undoes everything.

    `alone` False: it does not wait for a sync that is going on.
    On PostgreSQL an advisory lock of the transaction, on SQLite BEGIN IMMEDIATE (the core's engine begins so).
    Raises: Unreachable when the database does not answer, Unstorable when it refuses what it was given, else JobFailed;
    none of them holds a password.
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
        raise _for_people(where, error.orig, refusal.is_server(error)) from None
    except psycopg.Error as error:  # COPY goes past SQLAlchemy
        away = isinstance(error, psycopg.OperationalError) and not refusal.is_of_rows(error)
        raise _for_people(where, error, away) from None


def _exclude_others(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_LOCAL)
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})


def _for_people(where: str, cause: Any, away: bool) -> errors.StellerdError:
    said = " ".join(str(cause).split("\n")[0].split())
    if isinstance(cause, psycopg.errors.LockNotAvailable):
        return errors.JobFailed(f"{where}: a table was locked by somebody else for two minutes; nothing was changed")
    if away:
        return errors.Unreachable(f"{where}: {said}")
    kind = Unstorable if refusal.is_of_rows(cause) else errors.JobFailed
    return kind(f"{where}: {said}; nothing was changed")


def shown(url: sa.URL) -> str:
    """The URL as messages may name it: no user, no password, no options."""
    host = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    return f"{url.get_backend_name()}://{host}/{url.database or ''}"
