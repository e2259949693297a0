"""Transactions of the state store on bare driver connections: opened after the fork, kept for the next, never shared
by two threads at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stellerd import database
from stellerd.durable import DurableConnection
from stellerd.errors import Unreachable
from stellerd.statements import Compiled, Statement, dialect_of

# said in full, since a database or a role may have another default: with a snapshot from before it waited for a lock, a
# transaction would not see what the one it waited for has done
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"


class Result:
    """The rows of one statement; all of them were read already."""

    def __init__(self, rows: list[Any], rowcount: int) -> None:
        self._rows, self.rowcount = rows, rowcount

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def all(self) -> list[Any]:
        """Every row."""
        return self._rows

    def first(self) -> Any:
        """The first row, or None."""
        return self._rows[0] if self._rows else None

    def one(self) -> Any:
        """The only row. Raises: LookupError when there is another number of them."""
        if len(self._rows) != 1:
            raise LookupError(f"{len(self._rows)} rows instead of one")
        return self._rows[0]

    def scalar(self) -> Any:
        """The first column of the first row, or None."""
        return self._rows[0][0] if self._rows else None

    def scalars(self) -> list[Any]:
        """The first column of every row."""
        return [row[0] for row in self._rows]

    def scalar_one(self) -> Any:
        """The first column of the only row. Raises: LookupError when there is another number of them."""
        return self.one()[0]


class Transaction:
    """Runs statements of SQLAlchemy Core; begins with the first of them."""

    def __init__(self, pool: Pool, *, writes: bool, patience_s: float) -> None:
        self._pool, self._writes, self._patience_s = pool, writes, patience_s
        self._connection: Any = None
        self.dialect = pool.dialect

    def execute(self, statement: Statement | Any, **values: Any) -> Result:
        """Run one statement. A `Statement` is compiled already; anything else of SQLAlchemy Core is now."""
        backend = self.dialect.name
        compiled = statement.compiled(backend) if isinstance(statement, Statement) else Compiled(statement, backend)
        cursor = self._run(compiled.text, compiled.parameters(values))
        return Result(compiled.rows(cursor) if cursor.description else [], cursor.rowcount)

    def exec_driver_sql(self, text: str) -> Result:
        """Run text without parameters; rows are plain tuples."""
        cursor = self._run(text, None)
        return Result(list(cursor) if cursor.description else [], cursor.rowcount)

    def _run(self, text: str, parameters: dict[str, Any] | None) -> Any:
        if self._connection is None:
            self._begin()
        return self._connection.execute(text, *(() if parameters is None else (parameters,)))

    def _begin(self) -> None:
        """With a kept connection if it is still one: the server may have gone and come back meanwhile."""
        while (kept := self._pool.take()) is not None:
            try:
                self._pool.begin(kept, self._writes, self._patience_s)
            except Exception:
                kept.close()
                if self._pool.is_sqlite:  # a file does not come back; it is busy or broken
                    raise
                continue
            self._connection = kept
            return
        fresh = self._pool.open()
        try:
            self._pool.begin(fresh, self._writes, self._patience_s)
        except BaseException:
            fresh.close()
            raise
        self._connection = fresh

    def commit(self) -> None:
        """End well; the connection is kept for the next transaction."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.execute("COMMIT")
            if self._writes:
                self._pool.flush(connection)
        except BaseException:
            connection.close()  # what is not committed is rolled back by that
            raise
        self._pool.keep(connection)

    def abandon(self) -> None:
        """End badly: nothing of it stays. A connection in an unknown state is not used again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Pool:
    """The connections of one process to one database."""

    def __init__(self, url: str, name: str, *, reads_only: bool = False) -> None:
        self.name, self.reads_only = name, reads_only
        self.url = database.parse(url, name)
        self.shown = database.shown(self.url)
        self.dialect = dialect_of(self.url.get_backend_name())
        self.patience_s = 10.0
        """Longest time for one statement on PostgreSQL, its wait for a lock included."""
        self._idle: list[Any] = []  # append and pop are atomic
        self.is_sqlite = self.dialect.name == "sqlite"
        self.open: Callable[[], Any] = self._open_sqlite if self.is_sqlite else self._open_postgres

    def _open_sqlite(self) -> Any:
        [path], options = self.dialect.create_connect_args(self.url)
        if self.reads_only:
            return database.open_to_read(path, options)
        database.make_folder(self.url, self.name)
        connection = sqlite3.connect(
            path,
            **{**options, "check_same_thread": False, "timeout": database.BUSY_TIMEOUT_S},
            factory=DurableConnection,
        )
        if database.prepare_sqlite(connection):
            connection.flush_after_commits()
        return connection

    def flush(self, connection: Any) -> None:
        """After a commit: nobody may act on it before it would survive a power cut.

        Raises: Unreachable when the disk does not take it.
        """
        if self.is_sqlite:
            try:
                connection.flush()
            except OSError as error:
                raise Unreachable(f"{self.name} ({self.shown}): {error.strerror}") from error

    def _open_postgres(self) -> Any:
        from stellerd.patient import PatientConnection

        _, options = self.dialect.create_connect_args(self.url)
        return PatientConnection.connect(**{**database.POSTGRES_OPTIONS, **options}, autocommit=True)

    def begin(self, connection: Any, writes: bool, patience_s: float) -> None:
        """Begin a transaction; SQLite's writers queue up at once, or two could not upgrade.

        PostgreSQL is told to give up too: a process that was stopped or cut off must not keep its row locks.
        """
        if self.is_sqlite:
            if writes:
                database.begin_immediate(connection)
            else:
                connection.execute("BEGIN")
            return
        connection.patience_s = patience_s
        limits = ("statement_timeout", "idle_in_transaction_session_timeout") if writes else ()
        connection.execute(_BEGIN + "".join(f"; SET LOCAL {limit} = {int(patience_s * 1000)}" for limit in limits))

    def take(self) -> Any:
        """A kept connection, or None."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def keep(self, connection: Any) -> None:
        """For the next transaction."""
        self._idle.append(connection)

    def close(self) -> None:
        """Close what is kept; the pool can be used again."""
        while (connection := self.take()) is not None:
            connection.close()

    @contextmanager
    def transaction(self, *, writes: bool, patience_s: float | None = None) -> Iterator[Transaction]:
        """One transaction; commits at the end, rolls back on an error. `patience_s`: see the attribute.

        Raises: Unreachable when the database cannot be reached or used; the message holds no password.
        """
        work = Transaction(self, writes=writes, patience_s=patience_s or self.patience_s)
        try:
            try:
                yield work
            except BaseException:
                work.abandon()
                raise
            work.commit()
        except Exception as error:
            if database.is_of_server(error):
                raise Unreachable(f"{self.name} ({self.shown}): {database.first_line(error)}") from error
            raise
