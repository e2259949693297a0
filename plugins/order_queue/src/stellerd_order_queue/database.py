"""Transactions whose failures name the database and hold no password; tables that are ours to make."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from stellerd import errors

_CREATED_BY_SOMEBODY_ELSE = ("23505", "42P06", "42P07", "42710")
"""unique_violation (in the catalogue), duplicate_schema, duplicate_table, duplicate_object: PostgreSQL checks IF NOT
EXISTS before it takes a lock, so two creators at a time see these."""
_CREATE_ATTEMPTS = 5


@contextmanager
def transaction(engine: sa.Engine, name: str, *, reads_only: bool = False) -> Iterator[sa.Connection]:
    """One transaction of the database that the configuration calls `name`.

    Raises: Unreachable when it cannot be reached or is locked; JobFailed when something in it is missing or forbidden.
    """
    try:
        with engine.connect().execution_options(stellerd_reads_only=reads_only) as connection, connection.begin():
            yield connection
    except DBAPIError as error:
        raise explained(error, engine, name) from None


def explained(error: DBAPIError, engine: sa.Engine, name: str) -> errors.StellerdError:
    """What people should read of a driver's error."""
    where = f'database "{name}" ({shown(engine)})'
    said, state = _first_line(error), getattr(error.orig, "sqlstate", None)
    if state in ("42P01", "3F000") or said.startswith("no such table"):
        return errors.JobFailed(
            f"{where}: {said}; point the job's setting `database` at the platform's database, or let stellerd make "
            f"its own with create_tables = true"
        )
    if state == "42703" or said.startswith("no such column"):
        return errors.JobFailed(f'{where}: {said}; the table "Orders" is not the one this job was written for')
    if state == "42501":
        return errors.JobFailed(f"{where}: {said}; see the grants in the plugin's README")
    if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
        return errors.Unreachable(f"{where}: {said}")
    return errors.JobFailed(f"{where}: {said}")


def shown(engine: sa.Engine) -> str:
    """scheme://host:port/database of an engine: no user, no password."""
    url = engine.url
    host = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    return f"{url.get_backend_name()}://{host}/{url.database or ''}"


def _first_line(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split("\n")[0].split())


def create(engine: sa.Engine, name: str, statements: Sequence[str]) -> None:
    """Run CREATE … IF NOT EXISTS statements, in one transaction; safe while another process does the same.

    Raises: as `transaction`.
    """
    for attempt in range(_CREATE_ATTEMPTS):
        try:
            with engine.begin() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement)
            return
        except DBAPIError as error:
            raced = getattr(error.orig, "sqlstate", None) in _CREATED_BY_SOMEBODY_ELSE
            if (not raced and not isinstance(error, IntegrityError)) or attempt == _CREATE_ATTEMPTS - 1:
                raise explained(error, engine, name) from None
            time.sleep(0.05 * 2**attempt)


def missing_columns(engine: sa.Engine, name: str, table: str, columns: Sequence[str]) -> list[str] | None:
    """Those of `columns` that the table lacks; None when there is no such table.

    Raises: as `transaction`.
    """
    with transaction(engine, name, reads_only=True) as connection:
        inspector = sa.inspect(connection)
        if not inspector.has_table(table):
            return None
        there = {column["name"] for column in inspector.get_columns(table)}
    return [column for column in columns if column not in there]
