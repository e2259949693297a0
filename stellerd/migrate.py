"""The state store's tables from version to version: `stellerd db init|upgrade|sql`, with alembic."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.sql import quoted_name

from stellerd import database, reading, rights
from stellerd.schema import REVISION, bookkeeping, metadata
from stellerd.statements import create_all
from stellerd.store import CREATE_LOCK, Store, of_another_version

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


def problems(url: str) -> list[tuple[str, str]] | None:
    """(problem, the SQL that mends it, safe to run twice) of the store as this user sees it; None: it was not made yet.

    Raises: ConfigError when its tables are of a newer stellerd; Unreachable.
    """
    store = Store(url, reads_only=True)
    try:
        if store.on_postgres:
            with store.reading() as connection:
                if found := list(rights.missing(connection)):
                    return found
        if (before := reading.revision(url)) is None:
            return None
        if before < REVISION:
            return [(of_another_version(database.shown(store.url), before), _upgrade_by_owner(store, before))]
        store.create()
        return differences(url)
    finally:
        store.close()


def _upgrade_by_owner(store: Store, since: str) -> str:
    """For one who may; whoever only uses the tables needs its rights to the new ones, too."""
    text = sql(store.url.render_as_string(hide_password=False), since)
    if not store.on_postgres:
        return text
    with store.reading() as connection:
        there = rights.place(connection)
    assert there is not None
    return f"SET search_path = {there.schema};\n{text}{there.grant_all()}\n"


def differences(url: str) -> list[tuple[str, str]]:
    """(how the tables differ from what this version needs, the SQL that adds what is missing, where that is safe)."""
    from alembic.autogenerate import compare_metadata

    engine = database.open_engine(url, _NAME)
    schema = _schema(url)
    try:
        with database.transaction(engine, _NAME, reads_only=True) as connection:
            options = {**_OPTIONS, "compare_type": True, "include_name": _is_ours}
            found = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        return [(_said(one), _added(one, engine.dialect, schema)) for one in found]
    finally:
        engine.dispose()


def _schema(url: str) -> rights.Place | None:
    store = Store(url)
    try:
        if not store.on_postgres:
            return None
        with store.reading() as connection:
            return rights.place(connection)
    finally:
        store.close()


def _added(difference: Any, dialect: sa.Dialect, there: rights.Place | None) -> str:
    """The SQL that adds a table, an index or a column; nothing for what would take something away."""
    if isinstance(difference, list):
        return ""
    what, one = difference[0], difference[-1]
    schema: Any = quoted_name(there.schema, False) if there else None
    copies = {name: table.to_metadata(sa.MetaData(), schema=schema) for name, table in metadata.tables.items()}
    made: list[Any] = []
    if what == "add_table":
        made = [sa.schema.CreateTable(copies[one.name], if_not_exists=True)]
        made += [sa.schema.CreateIndex(index, if_not_exists=True) for index in copies[one.name].indexes]
    elif what == "add_index":
        index = next(index for index in copies[one.table.name].indexes if index.name == one.name)
        made = [sa.schema.CreateIndex(index, if_not_exists=True)]
    elif what == "add_column" and (one.nullable or one.server_default is not None):
        table = f"{there.schema}.{difference[2]}" if there else difference[2]
        unless = "IF NOT EXISTS " if there else ""  # SQLite has no such words, and says so the second time
        column = sa.schema.CreateColumn(copies[difference[2]].c[one.name]).compile(dialect=dialect)
        return f"ALTER TABLE {table} ADD COLUMN {unless}{column};"
    text = "".join(f"{str(one.compile(dialect=dialect)).strip()};\n" for one in made)
    return text + (there.grant_all() if there and what == "add_table" else "")


_OPTIONS: dict[str, Any] = {"version_table": "stellerd_version"}


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
