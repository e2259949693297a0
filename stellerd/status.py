"""What a run is and how it ended: the shapes that the store keeps, the events carry and the commands show."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

RUN_STATES = ("running", "ok", "partial", "failed", "skipped", "deferred", "timeout", "crashed", "lost")
LOST = ("crashed", "lost")
"""What became of a run whose process died, here or on another host."""
OPERATOR = "operator"
"""Trigger of a run that somebody asked the daemon for."""
EXIT_OF_STATE = {
    "ok": 0,
    "skipped": 0,
    "partial": 1,
    "failed": 1,
    "deferred": 75,
    "timeout": 1,
    "crashed": 70,
    "lost": 1,
}


@dataclass(frozen=True)
class RunRecord:
    """One run, as it is or was. Times are aware UTC."""

    id: int
    job: str
    state: str
    trigger: str
    slot: datetime | None = None
    attempt: int = 1
    reason: str = ""
    counters: dict[str, int] = field(default_factory=dict)
    host: str = ""
    pid: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    not_before: datetime | None = None
    code: int | None = None
    """Exit code of the error that ended it, where it says more than the state does."""

    @property
    def exit_code(self) -> int:
        """What `run-once` exits with."""
        return EXIT_OF_STATE.get(self.state, 1) if self.code is None else self.code

    @property
    def seconds(self) -> float | None:
        """How long it took."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON values; times as ISO 8601 in UTC, `seconds` and `exit_code` added."""
        return {name: _plain(getattr(self, name)) for name in _SHOWN} | {
            "counters": dict(self.counters),
            "job": self.job.partition("@")[0],  # "job@host" where every host runs it
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "exit_code": None if self.state == "running" else self.exit_code,
        }


_SHOWN = tuple(one.name for one in fields(RunRecord) if one.name != "code")


def _plain(value: Any) -> Any:
    return iso(value) if isinstance(value, datetime) else value


def iso(at: datetime) -> str:
    """A time as "2026-02-01T12:00:00Z", milliseconds where there are any."""
    text = at.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00").removesuffix(".000")
    return f"{text}Z"


def from_iso(text: str) -> datetime:
    """The aware UTC time in a text that `iso` wrote."""
    return datetime.fromisoformat(text).astimezone(UTC)
