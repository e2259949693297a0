"""Statements of SQLAlchemy Core that run on a bare driver.

A job's process forks often and dies often: an engine, its pool and the compiler dirty about 9 MB of shared memory and
take 20 ms before the first row. So a statement is compiled once, before the fork if it is a constant, and then is
text, binds and a row class.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

Convert = Callable[[Any], Any]
_FLOAT8, _NUMERIC = 701, 1700  # PostgreSQL's type ids, by which psycopg's dialect converts numbers
Insert = Callable[[sa.Table], Any]


@cache
def dialect_of(backend: str) -> sa.Dialect:
    """The dialect with named parameters; `backend` is "sqlite" or "postgresql". Only that one is imported."""
    if backend == "postgresql":
        from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

        return PGDialect_psycopg()  # type: ignore[no-untyped-call]
    from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

    return SQLiteDialect_pysqlite(paramstyle="named")


def insert_of(backend: str) -> Insert:
    """An INSERT that knows ON CONFLICT."""
    if backend == "postgresql":
        from sqlalchemy.dialects.postgresql import insert

        return insert
    from sqlalchemy.dialects.sqlite import insert as insert_of_sqlite

    return insert_of_sqlite


class Compiled:
    """One statement for one kind of database."""

    def __init__(self, statement: Any, backend: str, columns: Sequence[str] = ()) -> None:
        dialect = dialect_of(backend)
        options = {"render_postcompile": True}
        compiled = statement.compile(dialect=dialect, column_keys=list(columns) or None, compile_kwargs=options)
        self.text = str(compiled)
        binds = {name: bind for bind, name in compiled.bind_names.items()}
        asked = {name for name, bind in binds.items() if bind.required}
        held = compiled.construct_params(_check=False)
        self._constants = {name: value for name, value in held.items() if name not in asked}
        self._binds = {name: convert for name, bind in binds.items() if (convert := _into(bind.type, dialect))}
        returned = list(getattr(statement, "exported_columns", ()))
        self._row = _row_class(tuple(column.key for column in returned)) if returned else None
        self._results = [
            (at, convert) for at, column in enumerate(returned) if (convert := _from(column.type, dialect))
        ]

    def parameters(self, given: dict[str, Any]) -> dict[str, Any]:
        """The driver's values; `given` over those the statement holds."""
        values = {**self._constants, **given}
        for name, convert in self._binds.items():
            values[name] = convert(values[name])
        return values

    def rows(self, raw: Iterable[Sequence[Any]]) -> list[Any]:
        """What the driver returned, as named tuples with Python's values; of plain text, as it came."""
        if self._row is None:
            return list(raw)
        made = []
        for values in raw:
            if self._results:
                values = list(values)
                for at, convert in self._results:
                    values[at] = convert(values[at])
            made.append(self._row._make(values))
        return made


class Statement:
    """A constant: built by `build(insert)` from SQLAlchemy Core, compiled once for each kind of database.

    `columns` of an INSERT or UPDATE are given by name at each run; so are its `sa.bindparam`s.
    """

    known: list[Statement] = []

    def __init__(self, build: Callable[[Insert], Any], columns: Sequence[str] = ()) -> None:
        self._build, self._columns = build, columns
        self._compiled: dict[str, Compiled] = {}
        self.known.append(self)

    def compiled(self, backend: str) -> Compiled:
        """For "sqlite" or "postgresql"."""
        if backend not in self._compiled:
            self._compiled[backend] = Compiled(self._build(insert_of(backend)), backend, self._columns)
        return self._compiled[backend]


@cache
def create_all(metadata: sa.MetaData, backend: str) -> tuple[str, ...]:
    """The statements that create what is missing of all tables and indexes."""
    made: list[sa.schema.ExecutableDDLElement] = []
    for table in metadata.sorted_tables:
        made.append(sa.schema.CreateTable(table, if_not_exists=True))
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        made += [sa.schema.CreateIndex(index, if_not_exists=True) for index in indexes]
    return tuple(str(one.compile(dialect=dialect_of(backend))) for one in made)


@cache
def _row_class(names: tuple[str, ...]) -> Any:
    return namedtuple("Row", names, rename=True)


def _into(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Convert | None:
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _from(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Convert | None:
    oid = _FLOAT8 if isinstance(kind, sa.Float) else _NUMERIC
    return kind.dialect_impl(dialect).result_processor(dialect, oid)
