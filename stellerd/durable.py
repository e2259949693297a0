"""A connection to an SQLite file whose commits are flushed to the disk when others may write again.

SQLite does so while it keeps all others from writing; here fifty jobs that end at once wait for the disk together.
`synchronous = NORMAL` writes the log and leaves its flushing to us (sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path


class DurableConnection(sqlite3.Connection):
    """As SQLite's own until `flush_after_commits`; then whoever commits calls `flush` before acting on it."""

    _defers = False
    _log: int | None = None
    """The write-ahead log; it is the same file for as long as this connection is open."""

    def flush_after_commits(self) -> None:
        """For a file with a write-ahead log."""
        self.execute("PRAGMA synchronous = NORMAL")
        self._defers = True

    def flush(self) -> None:
        """See to it that what was committed survives a power cut. Raises: OSError when the disk does not take it."""
        if not self._defers:
            return
        if self._log is None:
            log = self._path_of_log()
            self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
            with contextlib.suppress(PermissionError):  # a folder that may be written to but not be read
                _flush_folder(log.parent)  # the log's name may be as young as what is in it
        os.fdatasync(self._log)

    def _path_of_log(self) -> Path:
        """SQLite alone knows: there may be links, or a URL with options, and the name of a folder may be any bytes."""
        self.text_factory = os.fsdecode
        try:
            _, _, file = self.execute("PRAGMA database_list").fetchone()
        finally:
            self.text_factory = str
        return Path(f"{file}-wal")

    def close(self) -> None:
        """Close the connection and the log."""
        super().close()
        if self._log is not None:
            os.close(self._log)
            self._log = None


def _flush_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
