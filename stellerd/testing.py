"""A kit for plugin authors: run a job for real against a throw-away state store, with a clock you can turn."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from stellerd import assembly, config, jobcheck, log
from stellerd.database import open_engine
from stellerd.errors import Busy, ConfigError
from stellerd.job import Job
from stellerd.status import RunRecord
from stellerd.store import Store

__all__ = ["Clock", "Harness", "RunRecord", "open_engine"]


@dataclass
class Clock:
    """A time that moves only when told to (aware UTC)."""

    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self.time += timedelta(seconds=seconds)


class Harness:
    """One job with its settings, databases, broker and limits; state is an SQLite file in `folder`.

    `settings` and `limits` are what `[jobs.NAME.settings]` and `[limits]` would hold; mistakes in them or in the
    class raise ConfigError.
    """

    def __init__(
        self,
        job: type[Job],
        *,
        settings: Mapping[str, Any] | None = None,
        databases: Mapping[str, str] | None = None,
        broker: str | Sequence[str] | None = None,
        limits: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        state_url: str | None = None,
        name: str = "job",
    ) -> None:
        if problems := jobcheck.problems(job):
            raise ConfigError(problems)
        self.folder = folder or Path(tempfile.mkdtemp(prefix="stellerd-test-"))
        self.clock = Clock()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stopping = False
        raw: dict[str, Any] = {
            "state": {
                "url": state_url or f"sqlite:///{self.folder.absolute()}/state.db",
                "folder": str(self.folder.absolute()),
            },
            "databases": {key: {"url": url} for key, url in (databases or {}).items()},
            "limits": {key: {"rate": rate} for key, rate in (limits or {}).items()},
            "jobs": {name: {"settings": dict(settings or {})}},
        }
        if broker:
            raw["broker"] = {"url": broker if isinstance(broker, str) else list(broker)}
        self.config = config.from_tables(raw, self.folder / "stellerd.toml")
        self.store = Store(self.config.state_url(), self.clock)
        self.store.create()
        self.runner = assembly.runner(
            self.config,
            name,
            job,
            self.store,
            log.get(job=name),
            emit=lambda kind, data: self.events.append((kind, data)),
            wait=self._wait,
        )

    def run(self, *, dry_run: bool = False, slot: datetime | None = None) -> RunRecord:
        """One run, as `stellerd run-once` does it (or the schedule, with a `slot`).

        Raises: Busy when the job is held or the slot was run.
        """
        record = self.runner.run("manual" if slot is None else "schedule", slot, dry_run=dry_run)
        if not isinstance(record, RunRecord):
            raise Busy(f"{self.runner.name}: {record}")
        return record

    def stop(self) -> None:
        """From now on `ctx.stopping` is true and `ctx.wait` returns at once: how a service's `run` comes to its end."""
        self._stopping = True

    def _wait(self, seconds: float) -> bool:
        """`ctx.wait`: the clock is turned instead of waiting."""
        if not self._stopping:
            self.clock.advance(seconds)
        return self._stopping

    def check(self) -> None:
        """`Job.check`; raises what it raises."""
        assembly.check(self.runner)

    def database_problems(self) -> list[tuple[str, str]]:
        """`Job.database_problems`, as `stellerd db check` asks for them."""
        return assembly.database_problems(self.runner)

    def quarantined(self) -> list[dict[str, Any]]:
        """entity, key, reason and payload of what the last run put aside."""
        runs = self.store.history(limit=1)
        return self.store.quarantined(runs[0].id) if runs else []
