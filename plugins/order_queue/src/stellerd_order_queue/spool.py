"""A broker for one machine: a folder with one durable file a message."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

from stellerd import errors
from stellerd_order_queue.envelope import Message
from stellerd_order_queue.publisher import Outcome

SUFFIX = ".json"
_STALE_S = 3600.0


class SpoolPublisher:
    """Writes `<message id>.json`: the same order is the same file, however often it is published.

    A file is complete from the moment it has its name: written and synced under a temporary one, then renamed; a
    message counts as published once the folder is synced too.
    Raises: Unreachable when the folder is not there and cannot be made, or cannot be written.
    """

    def __init__(self, url: str, batch: int = 500) -> None:
        self.folder = Path(unquote(urlsplit(url).path))
        self._batch = batch
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._folder_fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise errors.Unreachable(f"spool folder {self.folder}: {os.strerror(error.errno or 0)}") from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            self.close()
            raise errors.Unreachable(f"spool folder {self.folder}: not writable for user id {os.geteuid()}")
        self._sweep()

    def __enter__(self) -> SpoolPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if self._folder_fd >= 0:
            os.close(self._folder_fd)
            self._folder_fd = -1

    def publish(self, messages: Iterable[Message]) -> Iterator[Outcome]:
        """See `Publisher.publish`; the folder is synced once a batch."""
        waiting = iter(messages)
        while batch := list(islice(waiting, self._batch)):
            outcomes = [self._write(message) for message in batch]
            try:
                os.fsync(self._folder_fd)
            except OSError as error:
                reason = f"{self.folder}: {os.strerror(error.errno or 0)}"
                outcomes = [Outcome(message, "unknown", reason) for message in batch]
            yield from outcomes

    def _write(self, message: Message) -> Outcome:
        temporary = f".{message.id}.{os.getpid()}.tmp"
        try:
            self._write_whole(temporary, message.body)
            os.replace(temporary, message.id + SUFFIX, src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
        except OSError as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._folder_fd)
            return Outcome(message, "nacked", f"{self.folder}: {os.strerror(error.errno or 0)}")
        return Outcome(message, "published")

    def _write_whole(self, name: str, body: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(name, flags, 0o640, dir_fd=self._folder_fd)
        with os.fdopen(fd, "wb") as stream:
            stream.write(body)
            stream.flush()
            os.fsync(fd)

    def _sweep(self) -> None:
        """Remove what a writer left that was killed in the middle; nobody writes one file for an hour."""
        old = time.time() - _STALE_S
        for file in self.folder.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # another process sweeps too
                if file.stat().st_mtime < old:
                    file.unlink()
