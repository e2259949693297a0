"""`stellerd spool flush`: what a spool holds goes to a broker; only what that broker confirmed is removed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stellerd import errors
from stellerd_order_queue.envelope import Message
from stellerd_order_queue.frames import LARGEST_BODY
from stellerd_order_queue.publisher import Outcome, open_publisher
from stellerd_order_queue.settings import OrderQueueSettings
from stellerd_order_queue.spool import SUFFIX

_SYNC_EVERY = 500
_NAMED = 5


def flush(
    folder: Path,
    urls: Sequence[str],
    settings: Callable[[type[OrderQueueSettings]], OrderQueueSettings],
    tell: Callable[[int, int], None],
) -> dict[str, Any]:
    """See `stellerd.spooling`.

    Raises: Busy when another flush is at it; Unreachable or JobFailed when no broker can be used.
    """
    with _alone(folder) as fd:
        return Flush(folder, fd, settings(OrderQueueSettings), tell).to(urls)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """The folder's descriptor, locked: two flushes would deliver everything twice."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise errors.Unreachable(f"spool folder {folder}: {os.strerror(error.errno or 0)}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    except BlockingIOError:
        raise errors.Busy(f"spool folder {folder}: another flush is at it") from None
    finally:
        os.close(fd)


class _TooLong(ValueError):
    """More than one frame."""


class Flush:
    """One delivery of what a folder holds at its start."""

    def __init__(self, folder: Path, fd: int, settings: OrderQueueSettings, tell: Callable[[int, int], None]) -> None:
        self._folder, self._fd, self._settings, self._tell = folder, fd, settings, tell
        self._counts: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}
        self._bad: list[str] = []
        self._failures = 0

    def to(self, urls: Sequence[str]) -> dict[str, Any]:
        """Deliver, oldest first; what is known is done whatever happens."""
        files = sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda file: (file.stat().st_mtime_ns, file.name))
        with open_publisher(urls, self._settings.wishes()) as publisher:
            try:
                for outcome in publisher.publish(self._messages(files)):
                    self._settle(outcome, len(files))
            finally:
                os.fsync(self._fd)
        return {
            "delivered": self._counts["published"],
            "left": len(files) - self._counts["published"],
            "problems": self._problems(),
        }

    def _messages(self, files: Sequence[Path]) -> Iterator[Message]:
        for file in files:
            if self._failures >= self._settings.window:
                return
            try:
                yield _read(file)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                self._bad.append(f"{file.name}: not a message of ours ({_why(error)})")

    def _settle(self, outcome: Outcome, total: int) -> None:
        self._counts[outcome.state] += 1
        if outcome.state != "published":
            self._failures += 1
            self._reasons.setdefault(outcome.state, outcome.reason)
            return
        self._failures = 0
        os.unlink(outcome.message.key, dir_fd=self._fd)
        if self._counts["published"] % _SYNC_EVERY == 0:
            os.fsync(self._fd)
            self._tell(self._counts["published"], total)

    def _problems(self) -> list[str]:
        problems = [f"{self._counts[state]} messages {state}: {why}" for state, why in self._reasons.items()]
        problems += self._bad[:_NAMED]
        if len(self._bad) > _NAMED:
            problems.append(f"{len(self._bad) - _NAMED} more files are no messages of ours")
        return problems


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return os.strerror(error.errno or 0)
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "no JSON"
    return str(error) if isinstance(error, _TooLong) else "messageId or correlationId is missing or no UUID"


def _read(file: Path) -> Message:
    """Raises: OSError, or one of what JSON of another shape raises."""
    body = file.read_bytes()
    envelope = json.loads(body)
    identity, correlation = (str(uuid.UUID(envelope[name])) for name in ("messageId", "correlationId"))
    if len(body) > LARGEST_BODY:
        raise _TooLong(f"{len(body)} bytes are too many")
    return Message(file.name, identity, correlation, body)
