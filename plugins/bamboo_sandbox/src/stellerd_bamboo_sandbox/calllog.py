"""The sandbox's own log: how many calls really arrived, when, and what each was answered."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter, deque
from dataclasses import dataclass
from datetime import UTC, datetime

KEPT = 10_000


@dataclass
class Call:
    """One request; `at` is its arrival (aware UTC), `number` counts the arrivals at its endpoint from 1."""

    endpoint: str
    number: int
    at: datetime
    method: str
    path: str
    query: str
    status: int = 0
    outcome: str = ""
    """"ok", "limited", "unauthorized", "invalid", "unknown" or the fault's name."""
    wait: int = 0
    """Seconds that a 429 named."""
    edition: int = 0
    sent: int = 0
    """Bytes of the body that left, as far as known now."""

    def line(self) -> str:
        """The JSON line; no header is ever in it, so no credentials."""
        row = {
            "at": self.at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "endpoint": self.endpoint, "number": self.number, "method": self.method, "path": self.path,
            "query": self.query, "status": self.status, "outcome": self.outcome, "wait": self.wait,
            "edition": self.edition,
        }  # fmt: skip
        return json.dumps(row, ensure_ascii=True) + "\n"


class CallLog:
    """Calls in memory (the last 10,000) and, after `open`, as JSON lines in a file; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: deque[Call] = deque(maxlen=KEPT)
        self._numbers: Counter[str] = Counter()
        self._file = -1

    def open(self, path: str) -> None:
        """Append to this file from now; "": to none.

        Raises: OSError.
        """
        if path:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def arrived(self, endpoint: str, now: float, method: str, path: str, query: str) -> Call:
        """Note an arrival. `now`: seconds since 1970."""
        with self._lock:
            self._numbers[endpoint] += 1
            at = datetime.fromtimestamp(now, UTC)
            call = Call(endpoint, self._numbers[endpoint], at, method, path, query)
            self._calls.append(call)
            return call

    def decided(self, call: Call) -> None:
        """Write the call's line; done before the first byte of the answer leaves."""
        if self._file >= 0:
            os.write(self._file, call.line().encode())  # one write with O_APPEND: whole lines, no buffer to lose

    def calls(self, endpoint: str | None = None) -> list[Call]:
        """The calls of an endpoint, or all, oldest first."""
        with self._lock:
            return [call for call in self._calls if endpoint in (None, call.endpoint)]

    @property
    def total(self) -> int:
        """Arrivals in all."""
        with self._lock:
            return self._numbers.total()

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
