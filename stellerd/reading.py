"""The state store for commands that only look at it: they make nothing and change nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import sqlalchemy as sa

from stellerd import database, locate
from stellerd.errors import Unreachable
from stellerd.session import Transaction
from stellerd.store import Store

_NAME = "state store"


@contextmanager
def store(url: str, host: str = "") -> Iterator[tuple[Store, bool]]:
    """The store and True; where none was made yet an empty one in memory and False.

    Raises: Unreachable; ConfigError when it is of another version of stellerd.
    """
    is_there = revision(url) is not None
    found = Store(url, host=host, reads_only=True) if is_there else Store("sqlite://", host=host)
    try:
        found.create()  # of one that is there it only says that it is of another version
        yield found, is_there
    finally:
        found.close()  # whoever closes an SQLite file last takes its log away


def revision(url: str) -> str | None:
    """The version of the store's tables; None: there are none. Raises: Unreachable."""
    if (file := database.file_of(database.parse(url, _NAME))) is not None:
        try:
            file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            raise Unreachable(f"{_NAME}: {file} is for {locate.readers(file)}: permission denied") from None
        except OSError as error:
            raise Unreachable(f"{_NAME} {file}: {error.strerror}") from None
    found = Store(url, reads_only=True)
    try:
        return found.revision()
    finally:
        found.close()


def prove(url: str, host: str = "") -> None:
    """The store is there and of this version, or could be made.

    Raises: Unreachable, ConfigError.
    """
    with store(url, host) as (found, is_there):
        if is_there:
            return
    file = database.file_of(database.parse(url, _NAME))
    if file is not None:
        _prove_folder(file.parent)
    elif not url.startswith("sqlite"):
        found = Store(url, host=host)
        with found.reading() as connection:
            may = connection.execute(sa.select(sa.func.has_schema_privilege(sa.func.current_schema(), "CREATE")))
            allowed = may.scalar()
        found.close()
        if not allowed:
            raise Unreachable(f"{_NAME}: this user may not make its tables; run what `stellerd db sql` prints as owner")


def _prove_folder(folder: Path) -> None:
    there = next(one for one in (folder, *folder.parents) if os.path.exists(one))
    if not os.access(there, os.W_OK | os.X_OK):
        raise Unreachable(f"{_NAME}: cannot write into {there}: Permission denied")


class MadeWhenNeeded(Store):
    """Made when something is asked of it: for a plugin's `check`, which seldom does."""

    _is_made = False

    def _make(self) -> None:
        if not self._is_made:
            self._is_made = True
            self.create()

    def begin(self, patience_s: float | None = None) -> AbstractContextManager[Transaction]:
        """As Store.begin."""
        self._make()
        return super().begin(patience_s)

    def reading(self) -> AbstractContextManager[Transaction]:
        """As Store.reading."""
        self._make()
        return super().reading()
