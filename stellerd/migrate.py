"""The state store's tables from version to version: `stellerd db init|upgrade|sql`, with alembic."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext

from stellerd import database, reading
from stellerd.schema import REVISION, bookkeeping, metadata
from stellerd.session import Transaction
from stellerd.statements import create_all
from stellerd.store import CREATE_LOCK, Store

_NAME = "state store"
_FIRST = "0001"
_NOTE_FIRST = (
    "INSERT INTO stellerd_version (version_num) SELECT '0001' WHERE NOT EXISTS (SELECT 1 FROM stellerd_version);"
)


def init(url: str) -> bool:
    """Create the tables; False when they are there already, in this version.

    Raises: ConfigError when they are of another version; Unreachable.
    """
    store = Store(url)
    new = store.revision() is None
    store.create()
    store.close()
    return new


def upgrade(url: str) -> tuple[str | None, str]:
    """Bring the tables to this version, in one transaction; (from, to). Several at once wait for each other.

    Raises: ConfigError when they are of a newer stellerd; Unreachable.
    """
    store = Store(url)
    before = store.revision()
    if before is None or before > REVISION:
        store.create()  # says what is wrong with a newer one
        return None, REVISION
    store.close()
    engine = database.open_engine(url, _NAME)
    try:
        with database.transaction(engine, _NAME) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CREATE_LOCK)))
            config = _config(connection=connection)
            if MigrationContext.configure(connection, opts=_OPTIONS).get_current_revision() is None:
                command.stamp(config, _FIRST)  # its number was in stellerd_meta
            command.upgrade(config, "head")
    finally:
        engine.dispose()
    return before, REVISION


def sql(url: str, since: str | None) -> str:
    """What `upgrade` would do, as SQL for somebody else to run; `since` None: from the version that is there."""
    backend = database.parse(url, _NAME).get_backend_name()
    if since is None:
        since = reading.revision(url)
    out = io.StringIO()
    if since == _FIRST:  # its number was in stellerd_meta
        out.write(f"{create_all(bookkeeping, backend)[0].strip()};\n\n{_NOTE_FIRST}\n\n")
    command.upgrade(_config(out, dialect=backend), f"{since}:head" if since else "head", sql=True)
    return out.getvalue()


def differences(url: str) -> list[str]:
    """How the tables differ from what this version needs; empty: not at all."""
    from alembic.autogenerate import compare_metadata

    engine = database.open_engine(url, _NAME)
    try:
        with database.transaction(engine, _NAME, reads_only=True) as connection:
            options = {**_OPTIONS, "compare_type": True, "include_name": _is_ours}
            found = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    finally:
        engine.dispose()
    return [_said(one) for one in found]


_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_OPTIONS: dict[str, Any] = {"version_table": "stellerd_version"}


def missing_grants(url: str) -> list[tuple[str, str]]:
    """(what the user may not do, the SQL that allows it), on PostgreSQL; one that owns the tables may do everything."""
    if database.parse(url, _NAME).get_backend_name() != "postgresql":
        return []
    store = Store(url)
    with store.reading() as connection:
        user = connection.execute(sa.select(sa.func.current_user().label("user"))).scalar_one()
        found = [
            (f"{name}: no right to {rights}", f'GRANT {rights} ON {kind} {name} TO "{user}";')
            for table in metadata.tables.values()
            if connection.execute(sa.select(sa.func.to_regclass(table.name).label("there"))).scalar()
            for kind, name, rights in _lacking(connection, table)
        ]
    store.close()
    return found


def _lacking(connection: Transaction, table: sa.Table) -> Iterator[tuple[str, str, str]]:
    """("TABLE" or "SEQUENCE", its name, the rights that are missing)."""
    asked = sa.select(*(sa.func.has_table_privilege(table.name, right).label(right) for right in _RIGHTS))
    row = connection.execute(asked).one()._asdict()
    if lacking := [right for right in _RIGHTS if not row[right]]:
        yield "TABLE", table.name, ", ".join(lacking)
    if isinstance(table.autoincrement_column, sa.Column):
        sequence = sa.func.pg_get_serial_sequence(table.name, table.autoincrement_column.name)
        asked = sa.select(sequence.label("name"), sa.func.has_sequence_privilege(sequence, "USAGE").label("may"))
        row = connection.execute(asked).one()
        if row.may is False:
            yield "SEQUENCE", row.name, "USAGE"


def _is_ours(name: str | None, kind: str, parents: Any) -> bool:
    """Others may have tables beside ours."""
    return kind != "table" or name in metadata.tables


def _said(difference: Any) -> str:
    """alembic's tuple in words: ("add_column", None, "runs", Column(…))."""
    if isinstance(difference, list):
        return "; ".join(_said(one) for one in difference)
    what, *about = difference
    names = [getattr(one, "name", one) for one in about if one is not None and not isinstance(one, dict)]
    missing = what.replace("add_", "missing ").replace("remove_", "unknown ").replace("modify_", "other ")
    return f"{missing.replace('_', ' ')}: {'.'.join(map(str, names))}"


def _config(out: io.StringIO | None = None, **attributes: Any) -> Config:
    config = Config(output_buffer=out, attributes=attributes) if out else Config(attributes=attributes)
    config.set_main_option("path_separator", "os")  # a folder's name may hold a blank
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("version_locations", str(Path(__file__).with_name("migrations") / "versions"))
    return config
