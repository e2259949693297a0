"""The state store: runs, slots, leases, cursors and quarantine, on SQLite or PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from stellerd import database, hosts
from stellerd.errors import StellerdError
from stellerd.schema import VERSION, cursors, leases, meta, metadata, quarantine, runs
from stellerd.status import RunRecord

LEASE_S = 60.0
_CREATE_LOCK = 7_305_812_064  # any number, the same in every stellerd


@dataclass(frozen=True)
class Claim:
    """The right to do one run, fenced by `epoch`."""

    run_id: int
    job: str
    owner: str
    epoch: int
    slot: datetime | None
    attempt: int


@dataclass(frozen=True)
class Held:
    """Somebody else has the job until `until` unless they renew it."""

    host: str
    pid: int
    until: datetime

    def __str__(self) -> str:
        return f"held by pid {self.pid} on {self.host}"


@dataclass(frozen=True)
class Taken:
    """This slot was run already."""


class Store:
    """One a process. `clock` is for tests; without it PostgreSQL's clock, or on SQLite this host's, is the time."""

    def __init__(self, url: str, clock: Callable[[], datetime] | None = None) -> None:
        self.engine = database.open_engine(url, "state store")
        self.clock = clock
        self.owner = str(uuid.uuid4())

    def begin(self) -> AbstractContextManager[sa.Connection]:
        """A transaction that may write.

        Raises: Unreachable, always with the server's name.
        """
        return database.transaction(self.engine, "state store")

    def reading(self) -> AbstractContextManager[sa.Connection]:
        """A transaction that only reads."""
        return database.transaction(self.engine, "state store", reads_only=True)

    def now(self, connection: sa.Connection) -> datetime:
        """The store's time: one clock for all hosts."""
        if self.clock is not None:
            return self.clock()
        if connection.dialect.name == "postgresql":
            at: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
            return at.astimezone(UTC)
        return datetime.now(UTC)

    def insert(self, table: sa.Table) -> Any:
        """An INSERT of this dialect, with ON CONFLICT."""
        return (postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert)(table)

    def create(self) -> None:
        """Create what is missing; safe when several processes do it at once.

        Raises: StellerdError when the tables are of another version of stellerd.
        """
        if self._version() == VERSION:
            return
        with self.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATE_LOCK)))
            metadata.create_all(connection)
            connection.execute(self.insert(meta).values(key="schema", value=str(VERSION)).on_conflict_do_nothing())
        found = self._version()
        if found != VERSION:
            raise StellerdError(f"the state store has version {found}, this stellerd knows version {VERSION}")

    def _version(self) -> int | None:
        with self.reading() as connection:
            if not sa.inspect(connection).has_table(meta.name):
                return None
            value = connection.execute(sa.select(meta.c.value).where(meta.c.key == "schema")).scalar()
            return int(value) if value else None

    def claim(self, job: str, slot: datetime | None, trigger: str) -> Claim | Held | Taken:
        """Take the job's lease and open a run, in one transaction; whoever loses the race changes nothing."""
        with self.begin() as connection:
            now = self.now(connection)
            lease = self._lock_lease(connection, job, now)
            if lease.owner != self.owner and lease.expires_at > now and not _owner_is_gone(lease):
                return Held(lease.host, lease.pid, lease.expires_at)
            attempt = 1
            if slot is not None:
                attempt = self._next_attempt(connection, job, slot)
                if not attempt:
                    return Taken()
            epoch = lease.epoch + 1
            me = hosts.this_process()
            connection.execute(
                sa.update(leases).where(leases.c.job == job).values(
                    owner=self.owner, epoch=epoch, expires_at=now + timedelta(seconds=LEASE_S), **me
                )
            )  # fmt: skip
            connection.execute(
                sa.update(runs).where(runs.c.job == job, runs.c.state == "running", runs.c.epoch < epoch).values(
                    state="lost", reason="its lease went to another run", finished_at=now
                )
            )  # fmt: skip
            run_id = connection.execute(
                sa.insert(runs).values(
                    job=job, slot=slot, attempt=attempt, trigger=trigger, state="running", reason="", counters={},
                    host=me["host"], pid=me["pid"], owner=self.owner, epoch=epoch, started_at=now,
                ).returning(runs.c.id)
            ).scalar_one()  # fmt: skip
            return Claim(run_id, job, self.owner, epoch, slot, attempt)

    def _lock_lease(self, connection: sa.Connection, job: str, now: datetime) -> Any:
        free = {"owner": "", "epoch": 0, "expires_at": now, "host": "", "machine": "", "pid": 0, "pid_started": 0.0}
        connection.execute(self.insert(leases).values(job=job, **free).on_conflict_do_nothing())
        return connection.execute(sa.select(leases).where(leases.c.job == job).with_for_update()).one()

    def _next_attempt(self, connection: sa.Connection, job: str, slot: datetime) -> int:
        """1 for a new slot, the next number for one that was only deferred, 0 for one that was run."""
        last = connection.execute(
            sa.select(runs.c.attempt, runs.c.state)
            .where(runs.c.job == job, runs.c.slot == slot)
            .order_by(runs.c.attempt.desc())
            .limit(1)
        ).first()
        if last is None:
            return 1
        return last.attempt + 1 if last.state == "deferred" else 0

    def renew(self, claim: Claim) -> bool:
        """Prolong the lease; False when it is somebody else's by now: the run must end."""
        with self.begin() as connection:
            until = self.now(connection) + timedelta(seconds=LEASE_S)
            mine = (leases.c.job == claim.job) & (leases.c.owner == claim.owner) & (leases.c.epoch == claim.epoch)
            return connection.execute(sa.update(leases).where(mine).values(expires_at=until)).rowcount == 1

    def finish(
        self, claim: Claim, state: str, *, reason: str, counters: dict[str, int], code: int | None = None,
        not_before: datetime | None = None,
    ) -> RunRecord:  # fmt: skip
        """Record how the run ended and give the lease back. A run that was fenced off meanwhile keeps its `lost`."""
        with self.begin() as connection:
            now = self.now(connection)
            connection.execute(
                sa.update(runs).where(runs.c.id == claim.run_id, runs.c.state == "running").values(
                    state=state, reason=reason, counters=counters, code=code, not_before=not_before, finished_at=now
                )
            )  # fmt: skip
            mine = (leases.c.job == claim.job) & (leases.c.owner == claim.owner) & (leases.c.epoch == claim.epoch)
            connection.execute(sa.update(leases).where(mine).values(expires_at=now))
            return _record(connection.execute(sa.select(runs).where(runs.c.id == claim.run_id)).one())

    def record(self, job: str, slot: datetime | None, trigger: str, state: str, reason: str) -> None:
        """A run that never began, with its reason (a slot that was passed over). Does nothing if the slot has one."""
        with self.begin() as connection:
            now, me = self.now(connection), hosts.this_process()
            connection.execute(
                self.insert(runs).values(
                    job=job, slot=slot, attempt=1, trigger=trigger, state=state, reason=reason, counters={},
                    host=me["host"], pid=me["pid"], owner=self.owner, epoch=0, started_at=now, finished_at=now,
                ).on_conflict_do_nothing()
            )  # fmt: skip

    def recover(
        self, job: str, cause: str = "", state: str = "crashed", run_id: int | None = None, at: datetime | None = None
    ) -> int:
        """Close the rows of runs whose process is gone; `cause` and `at` are what the supervisor saw of `run_id`."""
        with self.begin() as connection:
            now = self.now(connection)
            lease = connection.execute(sa.select(leases).where(leases.c.job == job).with_for_update()).first()
            unfinished = connection.execute(
                sa.select(runs.c.id, runs.c.owner).where(runs.c.job == job, runs.c.state == "running")
            ).all()
            closed = 0
            for run in unfinished:
                held = lease is not None and lease.owner == run.owner
                gone = held and _owner_is_gone(lease)
                if lease is not None and held and not gone and lease.expires_at > now:
                    continue
                end, why = ("crashed", "the process ended without a word") if gone else ("lost", "its lease ran out")
                when = now
                if run.id == run_id:
                    end, why, when = state, cause, min(at or now, now)
                connection.execute(
                    sa.update(runs).where(runs.c.id == run.id).values(state=end, reason=why, finished_at=when)
                )
                closed += 1
                if gone:
                    connection.execute(sa.update(leases).where(leases.c.job == job).values(expires_at=now))
            return closed

    def last_scheduled(self, job: str) -> RunRecord | None:
        """The newest run of the schedule (not those a person asked for)."""
        return self._one(sa.select(runs).where(runs.c.job == job, runs.c.slot.is_not(None))
                         .order_by(runs.c.slot.desc(), runs.c.attempt.desc()))  # fmt: skip

    def last_finished(self, job: str) -> RunRecord | None:
        """The newest run that ended."""
        ended = (runs.c.job == job) & (runs.c.state != "running")
        return self._one(sa.select(runs).where(ended).order_by(runs.c.id.desc()))

    def _one(self, query: sa.Select[Any]) -> RunRecord | None:
        with self.reading() as connection:
            row = connection.execute(query.limit(1)).first()
        return None if row is None else _record(row)

    def history(self, job: str | None = None, limit: int = 20) -> list[RunRecord]:
        """The newest runs first."""
        query = sa.select(runs).order_by(runs.c.id.desc()).limit(limit)
        with self.reading() as connection:
            return [_record(row) for row in connection.execute(query.where(runs.c.job == job) if job else query)]

    def prune(self, keep_s: float) -> int:
        """Forget finished runs older than `keep_s` seconds with their quarantine; each job's newest scheduled run
        stays, since the slots hang on it."""
        with self.begin() as connection:
            old = self.now(connection) - timedelta(seconds=keep_s)
            newest = sa.select(sa.func.max(runs.c.id)).where(runs.c.slot.is_not(None)).group_by(runs.c.job)
            gone = sa.select(runs.c.id).where(runs.c.finished_at < old, runs.c.id.not_in(newest))
            connection.execute(sa.delete(quarantine).where(quarantine.c.run.in_(gone)))
            return connection.execute(sa.delete(runs).where(runs.c.id.in_(gone))).rowcount

    def put_aside(self, run_id: int, entity: str, key: str, reason: str, payload: Any) -> None:
        """One quarantined item."""
        with self.begin() as connection:
            connection.execute(
                sa.insert(quarantine).values(
                    run=run_id, entity=entity, key=key, reason=reason, payload=payload, at=self.now(connection)
                )
            )

    def quarantined(self, run_id: int) -> list[dict[str, Any]]:
        """What a run put aside."""
        columns = (quarantine.c.entity, quarantine.c.key, quarantine.c.reason, quarantine.c.payload)
        query = sa.select(*columns).where(quarantine.c.run == run_id).order_by(quarantine.c.id)
        with self.reading() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]


class Cursor:
    """What one job remembers between runs; values are JSON."""

    def __init__(self, store: Store, job: str) -> None:
        self._store, self._job = store, job

    def get(self, key: str, default: Any = None) -> Any:
        """The value last set, or `default`."""
        query = sa.select(cursors.c.value).where(cursors.c.job == self._job, cursors.c.key == key)
        with self._store.reading() as connection:
            row = connection.execute(query).first()
        return default if row is None else row.value

    def set(self, key: str, value: Any) -> None:
        """Remember a JSON value."""
        with self._store.begin() as connection:
            insert = self._store.insert(cursors).values(job=self._job, key=key, value=value)
            connection.execute(insert.on_conflict_do_update(index_elements=["job", "key"], set_={"value": value}))

    def setdefault(self, key: str, value: Any) -> Any:
        """The value there is; `value`, now remembered, when there was none. Two processes get the same one."""
        with self._store.begin() as connection:
            insert = self._store.insert(cursors).values(job=self._job, key=key, value=value)
            connection.execute(insert.on_conflict_do_nothing())
            query = sa.select(cursors.c.value).where(cursors.c.job == self._job, cursors.c.key == key)
            return connection.execute(query).scalar_one()


def _owner_is_gone(lease: Any) -> bool:
    """Whether the holder was a process that can be looked up from here and is no more."""
    return bool(lease.pid) and hosts.is_gone(lease.machine, lease.pid, lease.pid_started)


def _record(row: Any) -> RunRecord:
    names = RunRecord.__dataclass_fields__
    return RunRecord(**{name: value for name, value in row._mapping.items() if name in names})
