"""What one run may use: settings, log, limits, HTTP, databases, cursors, and how to say what happened."""

from __future__ import annotations

import json
import operator
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stellerd.errors import Unreachable
from stellerd.redaction import redact, redact_all
from stellerd.texts import reason_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from stellerd.http import Http
    from stellerd.limiter import Limiter
    from stellerd.secret import Secret
    from stellerd.store import Cursor


@dataclass
class Services:
    """What the child process holds for all runs of its job; the context hands it out."""

    log: Any
    limiter: Limiter
    cursor: Cursor
    engine: Callable[[str], Engine]
    broker_urls: Callable[[], list[str]]
    wait: Callable[[float], bool]
    progress: Callable[[int, int | None, str], None]
    quarantine: Callable[[int, str, str, str, Any], None]
    host: str = ""
    folder: Path | None = None
    now: Callable[[], datetime] = field(default=partial(datetime.now, UTC))


class Context:
    """Handed to `Job.run` and `Job.check`; valid for that one call."""

    def __init__(
        self,
        services: Services,
        *,
        job: str,
        settings: Any,
        run_id: int = 0,
        trigger: str = "manual",
        slot: datetime | None = None,
        attempt: int = 1,
        dry_run: bool = False,
        epoch: int = 0,
        proved: Callable[[], bool] = lambda: True,
    ) -> None:
        self._services = services
        self.job = job
        self.settings = settings
        self.run_id = run_id
        self.trigger = trigger
        """"schedule", "catch-up", "deferred", "operator" (`stellerd trigger`) or "manual" (`run-once`)."""
        self.slot = slot or services.now()
        self.attempt = attempt
        self.dry_run = dry_run
        """True: read and compare, change nothing outside, spend limits as ever."""
        self.epoch = epoch
        """Grows with each run of this job on any host: a server that refuses a smaller one than it saw last is safe
        from a run that was stopped, lost its lease to another and woke up."""
        self._proved = proved
        self.counters: dict[str, int] = {}
        self.log = services.log.bind(run=run_id) if run_id else services.log
        self._cursor = Unsaved(services.cursor) if dry_run else services.cursor

    def now(self) -> datetime:
        """The time, aware UTC."""
        return self._services.now()

    @property
    def stopping(self) -> bool:
        """True once this process was asked to end, or its lease may be another's: finish the current item, return."""
        return not self._proved() or self._services.wait(0)

    def wait(self, seconds: float) -> bool:
        """Sleep up to `seconds`; True, at once, when this process was asked to end."""
        return not self._proved() or self._services.wait(seconds) or not self._proved()

    @property
    def host(self) -> str:
        """This host's name, as the records show it; what a job that all hosts run may share its work out by."""
        return self._services.host

    @property
    def limiter(self) -> Limiter:
        """The buckets, shared by every process and host."""
        return self._services.limiter

    @property
    def cursor(self) -> Cursor | Unsaved:
        """What this job remembers between runs: `get(key, default)`, `set(key, value)`; values are JSON. What a dry run
        sets is forgotten with it."""
        return self._cursor

    @property
    def folder(self) -> Path:
        """A folder of this job's own on this host, which no other user can look into; made when first asked for.

        Raises: Unreachable when it cannot be had.
        """
        if self._services.folder is None:
            raise Unreachable("there is no folder for jobs while the state store is in memory; set [state] folder")
        return _own(self._services.folder / "jobs" / self.job)

    def http(
        self,
        bucket: str,
        *,
        auth: tuple[str, Secret] | tuple[Secret, Secret] | None = None,
        timeout: float = 300.0,
        max_bytes: int = 256 * 1024 * 1024,
    ) -> Http:
        """A client that spends one slot of `bucket` before each request.

        `timeout`: seconds for the whole exchange, at most a day; `max_bytes`: the largest body, decompressed.
        """
        from stellerd.http import Http

        return Http(self.limiter, bucket, self.wait, auth=auth, timeout=timeout, max_bytes=max_bytes, log=self.log)

    def engine(self, name: str) -> Engine:
        """The SQLAlchemy engine of `[databases.name]`, one a process.

        Raises: ConfigError when there is no such database.
        """
        return self._services.engine(name)

    def broker_url(self) -> str:
        """The first URL of `[broker]`; may hold a password: never log it.

        Raises: ConfigError when there is none.
        """
        return self.broker_urls()[0]

    def broker_urls(self) -> list[str]:
        """The URLs of `[broker]`, to be tried in turn; they may hold passwords: never log them.

        Raises: ConfigError when there is none.
        """
        return self._services.broker_urls()

    def progress(self, done: int, total: int | None = None, unit: str = "") -> None:
        """Say how far the run is; cheap enough for every item."""
        self._services.progress(done, total, unit)

    def count(self, **amounts: int) -> None:
        """Add to the run's counters, which every record, `status` and `history` show.

        Raises: TypeError when an amount is no whole number.
        """
        for name, amount in amounts.items():
            self.counters[name] = self.counters.get(name, 0) + operator.index(amount)

    def quarantine(self, entity: str, key: str, reason: str, payload: Any = None) -> None:
        """Put one bad item aside with its reason; the run goes on. `payload`: JSON-able, for a person to look at."""
        entity, key, reason = (redact(str(text)) for text in (entity, key, reason))  # a number is a key too
        if not self.dry_run:
            self._services.quarantine(self.run_id, entity, key, reason, redact_all(payload))
        self.count(quarantined=1)
        self.log.warning("quarantined", entity=entity, key=key, reason=reason)

    def merge(self, counters: Mapping[str, int]) -> None:
        """Take over the counters of a `Done`."""
        self.counters.update(counters)


class Unsaved:
    """The cursor of a dry run: it reads what the job remembers and keeps what is set to itself."""

    def __init__(self, cursor: Cursor) -> None:
        self._kept = cursor
        self._new: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """The value last set, in this run or before, or `default`."""
        return self._new[key] if key in self._new else self._kept.get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Remember a JSON value until this run is over. Raises: TypeError when it is none."""
        self._new[key] = json.loads(json.dumps(value))

    def setdefault(self, key: str, value: Any) -> Any:
        """The value there is; `value` when there was none."""
        there = self.get(key)
        if there is None:
            self.set(key, value)
        return self.get(key)


def _own(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise Unreachable(f"{path}: {reason_of(error)}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise Unreachable(f"{path}: must be a folder that belongs to user id {os.geteuid()} alone (mode 0700)")
    return path
