"""The vendor's limits: a window that the first call opens, and the words of a refusal."""

from __future__ import annotations

import json
import math
from collections import deque
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime


class Window:
    """At most `calls` granted calls in any `period` seconds; refused ones don't count.

    Measured on the live platform: two calls within 10 s, and the third is told to wait until 3600 s after the first.
    """

    def __init__(self, calls: int, period: float) -> None:
        self.calls, self.period = calls, period
        self._granted: deque[float] = deque()

    def take(self, now: float) -> int:
        """0: granted; else the whole seconds to wait, rounded up. `now`: seconds on any clock that goes forward."""
        while self._granted and self._granted[0] + self.period <= now:
            self._granted.popleft()
        if len(self._granted) < self.calls:
            self._granted.append(now)
            return 0
        return max(1, math.ceil(self._granted[0] + self.period - now))


def refusal(form: str, wait: int) -> tuple[str, bytes]:
    """Content type and body of a 429 in one of the forms that were seen; `unreadable` names no time."""
    if form == "plain_short":
        text = f"Please wait for {wait} seconds."
    elif form == "unreadable":
        text = "Too many requests."
    else:
        minutes = math.ceil(wait / 60)
        text = f"Too many requests. Please wait for {wait} seconds (≈{minutes} minutes) for the next request"
    if form in ("plain_long", "plain_short", "unreadable"):
        return "text/plain; charset=utf-8", text.encode()
    value = text if form == "json_string" else {form: text}
    return "application/json; charset=utf-8", json.dumps(value, ensure_ascii=False).encode()


def retry_after(form: str, wait: int, now: float) -> dict[str, str]:
    """The Retry-After header: "none", "seconds" or "date". `now`: seconds since 1970."""
    if form == "seconds":
        return {"Retry-After": str(wait)}
    if form == "date":
        at = datetime.fromtimestamp(now, UTC) + timedelta(seconds=wait)
        return {"Retry-After": format_datetime(at, usegmt=True)}
    return {}
