"""The state store: runs, slots, leases, cursors and quarantine, on SQLite or PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from stellerd import hosts, queries
from stellerd.claims import Claim, Held, Taken, boottime
from stellerd.errors import ConfigError, LeaseLost
from stellerd.schema import REVISION, bookkeeping, metadata, quarantine, runs, version
from stellerd.session import Pool, Transaction
from stellerd.statements import Statement, create_all, insert_of
from stellerd.status import RunRecord

LEASE_S = 60.0
_PATIENCE_S = 10.0
_AT_ONCE_S = 0.01
_LIVES = 10
_LONG_S = 300.0  # making or changing the tables may take
CREATE_LOCK = 7_305_812_064  # any number, the same in every stellerd


class Store:
    """One a process. `clock` is for tests; without it PostgreSQL's clock, or on SQLite this host's, is the time.

    `lease_s`: how long a job is this process's without being renewed; `host`: this host's name, "" for its own.
    """

    def __init__(
        self, url: str, clock: Callable[[], datetime] | None = None, *, lease_s: float = LEASE_S, host: str = "",
        reads_only: bool = False,
    ) -> None:  # fmt: skip
        self._pool = Pool(url, "state store", reads_only=reads_only)
        self.clock, self.host = clock, host
        self.uptime = boottime if clock is None and self._pool.is_sqlite else None
        """Seconds that nobody can set, beside a clock that somebody can: this host's, where the store has none."""
        self.owner = str(uuid.uuid4())
        self._watched: dict[str, tuple[Any, float]] = {}
        self.run: Claim | None = None
        """What fences the run that is on in this process."""
        self.set_lease(lease_s)

    def set_lease(self, lease_s: float) -> None:
        """How long from now on a lease holds without being renewed; a statement may take a third of that."""
        self.lease_s = lease_s
        self._pool.patience_s = min(_PATIENCE_S, max(1.0, lease_s / 3))

    def begin(self, patience_s: float | None = None) -> AbstractContextManager[Transaction]:
        """A transaction that may write; a statement of it takes at most `patience_s` seconds.

        Raises: Unreachable, always with the server's name.
        """
        return self._pool.transaction(writes=True, patience_s=patience_s)

    @contextmanager
    def fenced(self) -> Iterator[Transaction]:
        """A transaction that writes for the run that is on.

        Raises: LeaseLost once its lease went to another process; until it ends, none can take the lease.
        """
        with self.begin() as connection:
            run = self.run
            if run is not None and not connection.execute(queries.MY_LEASE, **run.fence()).first():
                raise LeaseLost(f"run {run.run_id} of {run.job}: its lease went to another process")
            yield connection

    def reading(self) -> AbstractContextManager[Transaction]:
        """A transaction that only reads."""
        return self._pool.transaction(writes=False)

    def close(self) -> None:
        """Close its connections; it can be used again."""
        self._pool.close()

    def now(self, connection: Transaction) -> datetime:
        """The store's time: one clock for all hosts."""
        if self.clock is not None:
            return self.clock()
        if connection.dialect.name == "postgresql":
            at: datetime = connection.execute(queries.CLOCK).scalar_one()
            return at.astimezone(UTC)
        return datetime.now(UTC)

    def ahead(self) -> float | None:
        """How far this host's clock is ahead of its uptime, in seconds; it changes when somebody sets the clock. None
        where the store has a clock of its own."""
        while self.uptime is not None:
            before = self.uptime()
            ahead = (self.clock() if self.clock else datetime.now(UTC)).timestamp() - before
            if self.uptime() - before < _AT_ONCE_S:  # else this process had to wait between the two
                return ahead
        return None

    def insert(self, table: sa.Table) -> Any:
        """An INSERT of this dialect, with ON CONFLICT."""
        return insert_of(self._pool.dialect.name)(table)

    def create(self) -> None:
        """Create the tables of a new store; safe when several processes do it at once.

        Raises: ConfigError when there are tables of another version of stellerd.
        """
        found = self.revision()
        if found is None:
            self._create()
            found = self.revision()
        if found != REVISION:
            raise ConfigError(_of_another_version(self._pool.shown, str(found)))

    def _create(self) -> None:
        with self.begin(_LONG_S) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CREATE_LOCK)))
            for tables in (metadata, bookkeeping):
                for statement in create_all(tables, connection.dialect.name):
                    connection.exec_driver_sql(statement)
            connection.execute(queries.MAKE_REVISION, version_num=REVISION)

    def revision(self) -> str | None:
        """The version of its tables ("0002"); None: there are none."""
        with self.reading() as connection:
            tellers = connection.execute(queries.TELLERS[connection.dialect.name]).scalars()
            if version.name in tellers:
                found: str | None = connection.execute(queries.REVISION).scalar()
                return found
            return "0001" if tellers else None

    def claim(self, job: str, slot: datetime | None, trigger: str) -> Claim | Held | Taken:
        """Take the job's lease and open a run, in one transaction; whoever loses the race changes nothing."""
        proved = boottime() + self.lease_s
        with self.begin() as connection:
            now = self.now(connection)
            lease = self._lock_lease(connection, job, now)
            if held := self._held(lease, now):
                return held
            epoch, me = lease.epoch + 1, hosts.this_process(self.host)
            connection.execute(queries.LOSE_OLDER, of_job=job, before_epoch=epoch, at=now)
            attempt = 1 if slot is None else self._next_attempt(connection, job, slot, now)
            if not attempt:
                return Taken()
            until = now + timedelta(seconds=self.lease_s)
            connection.execute(queries.TAKE_LEASE, of_job=job, owner=self.owner, epoch=epoch, expires_at=until, **me)
            run_id = connection.execute(
                queries.OPEN_RUN, job=job, slot=slot, attempt=attempt, trigger=trigger, state="running", reason="",
                counters={}, host=me["host"], pid=me["pid"], owner=self.owner, epoch=epoch, started_at=now,
            ).scalar_one()  # fmt: skip
            return Claim(run_id, job, self.owner, epoch, slot, attempt, proved)

    def holder(self, job: str) -> Held | None:
        """Who else has the job now; takes nothing and waits for nobody."""
        with self.reading() as connection:
            lease = connection.execute(queries.LEASE, of_job=job).first()
            return None if lease is None else self._held(lease, self.now(connection))

    def _held(self, lease: Any, now: datetime) -> Held | None:
        if lease.owner in ("", self.owner) or lease.expires_at <= now or self._owner_is_gone(lease):
            return None
        return None if self._is_stale(lease, now) else Held(lease.host, lease.pid, lease.expires_at)

    def _is_stale(self, lease: Any, now: datetime) -> bool:
        """Whether a lease that ends later than any can, by a clock that was ahead, was not renewed while this process
        looked on for ten times its life."""
        seen = (lease.owner, lease.epoch, lease.expires_at)
        if lease.expires_at <= now + timedelta(seconds=_LIVES * self.lease_s):
            self._watched.pop(lease.job, None)
            return False
        before, since = self._watched.get(lease.job, (None, 0.0))
        if before != seen:
            self._watched[lease.job] = seen, boottime()
            return False
        return boottime() - since > _LIVES * self.lease_s

    def _owner_is_gone(self, lease: Any) -> bool:
        """Whether the holder was a process that can be looked up from here and is no more."""
        return bool(lease.pid) and hosts.is_gone(lease.machine, lease.pid, lease.pid_started, self.host)

    def _lock_lease(self, connection: Transaction, job: str, now: datetime) -> Any:
        free = {"owner": "", "epoch": 0, "expires_at": now, "host": "", "machine": "", "pid": 0, "pid_started": 0.0}
        connection.execute(queries.MAKE_LEASE, job=job, **free)
        return connection.execute(queries.LOCK_LEASE, of_job=job).one()

    def _next_attempt(self, connection: Transaction, job: str, slot: datetime, now: datetime) -> int:
        """1 for a new slot; the next number for one whose deferral is over or that was lost once; else 0."""
        last = connection.execute(queries.LAST_ATTEMPT, of_job=job, of_slot=slot).first()
        if last is None:
            return 1
        again = last.state == "deferred" and (last.not_before is None or last.not_before <= now)
        if last.state == "lost":
            again = connection.execute(queries.TIMES_LOST, of_job=job, of_slot=slot).scalar_one() == 1
        return last.attempt + 1 if again else 0

    def may_retry(self, job: str, slot: datetime) -> bool:
        """Whether a lost slot was lost once only: nobody tries it a third time."""
        with self.reading() as connection:
            return bool(connection.execute(queries.TIMES_LOST, of_job=job, of_slot=slot).scalar_one() == 1)

    def renew(self, claim: Claim) -> bool:
        """Prolong the lease; False when it is somebody else's by now: the run must end."""
        with self.begin() as connection:
            until = self.now(connection) + timedelta(seconds=self.lease_s)
            return connection.execute(queries.PROLONG_LEASE, **claim.fence(), expires_at=until).rowcount == 1

    def finish(
        self, claim: Claim, state: str, *, reason: str, counters: dict[str, int], code: int | None = None,
        not_before: datetime | None = None,
    ) -> RunRecord:  # fmt: skip
        """Record how the run ended and give the lease back. A run that was fenced off meanwhile keeps its `lost`."""
        with self.begin() as connection:
            now = self.now(connection)
            # the lease first, as everywhere: whoever takes it over at this moment wants this run's row next
            connection.execute(queries.RELEASE_LEASE, **claim.fence(), expires_at=now)
            connection.execute(
                queries.FINISH_RUN, of_run=claim.run_id, state=state, reason=reason, counters=counters, code=code,
                not_before=not_before, finished_at=now,
            )  # fmt: skip
            return _record(connection.execute(queries.RUN, of_run=claim.run_id).one())

    def record(self, job: str, slot: datetime | None, trigger: str, state: str, reason: str) -> None:
        """A run that never began, with its reason (a slot that was passed over). Does nothing if the slot has one."""
        with self.begin() as connection:
            now, me = self.now(connection), hosts.this_process(self.host)
            connection.execute(
                queries.NOTE_RUN, job=job, slot=slot, attempt=1, trigger=trigger, state=state, reason=reason,
                counters={}, host=me["host"], pid=me["pid"], owner=self.owner, epoch=0, started_at=now,
                finished_at=now,
            )  # fmt: skip

    def recover(
        self, job: str, cause: str = "", state: str = "crashed", run_id: int | None = None, at: datetime | None = None
    ) -> int:
        """Close the rows of runs whose process is gone; `cause` and `at` are what the supervisor saw of `run_id`."""
        with self.reading() as connection:
            if not connection.execute(queries.UNFINISHED, of_job=job).all():
                return 0  # the usual start: no writer has to wait for another
        with self.begin() as connection:
            now = self.now(connection)
            lease = connection.execute(queries.LOCK_LEASE, of_job=job).first()
            closed = 0
            for run in connection.execute(queries.UNFINISHED, of_job=job).all():
                held = lease is not None and lease.owner == run.owner
                gone = held and self._owner_is_gone(lease)
                if lease is not None and held and not gone and lease.expires_at > now:
                    continue
                end, why = ("crashed", "the process ended without a word") if gone else ("lost", "its lease ran out")
                when = now
                if run.id == run_id:
                    end, why, when = state, cause, min(at or now, now)
                connection.execute(queries.CLOSE_RUN, of_run=run.id, state=end, reason=why, finished_at=when)
                closed += 1
                if held:  # whoever it was can neither renew it nor write any more
                    connection.execute(queries.FENCE_OFF, of_job=job, expires_at=now)
            return closed

    def last_scheduled(self, job: str) -> RunRecord | None:
        """The newest run of the schedule (not those a person asked for)."""
        return self._one(queries.LAST_SCHEDULED, job)

    def scheduled_around(self, job: str, at: datetime) -> tuple[RunRecord | None, set[datetime]]:
        """The newest run of the schedule whose slot is not after `at`, and all later slots: for a clock that was
        ahead of the time and was set back."""
        with self.reading() as connection:
            row = connection.execute(queries.LAST_SCHEDULED_UNTIL, of_job=job, until=at).first()
            later = connection.execute(queries.SLOTS_AFTER, of_job=job, after=at).scalars()
        return None if row is None else _record(row), set(later)

    def last_finished(self, job: str) -> RunRecord | None:
        """The newest run that ended."""
        return self._one(queries.LAST_FINISHED, job)

    def _one(self, query: Statement, job: str) -> RunRecord | None:
        with self.reading() as connection:
            row = connection.execute(query, of_job=job).first()
        return None if row is None else _record(row)

    def history(self, job: str | None = None, limit: int = 20) -> list[RunRecord]:
        """The newest runs first."""
        query = sa.select(runs).order_by(runs.c.id.desc()).limit(limit)
        with self.reading() as connection:
            return [_record(row) for row in connection.execute(query.where(_of(job)) if job else query)]

    def put_aside(self, run_id: int, entity: str, key: str, reason: str, payload: Any) -> None:
        """One quarantined item."""
        with self.fenced() as connection:
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
            return [row._asdict() for row in connection.execute(query)]


class Cursor:
    """What one job remembers between runs; values are JSON."""

    def __init__(self, store: Store, job: str) -> None:
        self._store, self._job = store, job

    def get(self, key: str, default: Any = None) -> Any:
        """The value last set, or `default`."""
        with self._store.reading() as connection:
            row = connection.execute(queries.CURSOR, of_job=self._job, of_key=key).first()
        return default if row is None else row.value

    def set(self, key: str, value: Any) -> None:
        """Remember a JSON value."""
        with self._store.fenced() as connection:
            connection.execute(queries.SET_CURSOR, job=self._job, key=key, value=value)

    def setdefault(self, key: str, value: Any) -> Any:
        """The value there is; `value`, now remembered, when there was none. Two processes get the same one."""
        with self._store.reading() as connection:
            row = connection.execute(queries.CURSOR, of_job=self._job, of_key=key).first()
        if row is not None:
            return row.value
        with self._store.begin() as connection:
            connection.execute(queries.MAKE_CURSOR, job=self._job, key=key, value=value)
            return connection.execute(queries.CURSOR, of_job=self._job, of_key=key).scalar_one()


def _of(job: str) -> Any:
    """Its runs; of a job that all hosts run, those of every host."""
    return (runs.c.job == job) | runs.c.job.startswith(f"{job}@", autoescape=True)


def _of_another_version(place: str, found: str) -> str:
    if found > REVISION:
        return (
            f"state store {place} was upgraded by a newer stellerd ({found}, this one knows {REVISION}): install that"
        )
    return (
        f"state store {place} was made by an older stellerd ({found}, this one needs {REVISION}): stop stellerd on all "
        "hosts, then run: stellerd db upgrade"
    )


def _record(row: Any) -> RunRecord:
    names = RunRecord.__dataclass_fields__
    return RunRecord(**{name: value for name, value in row._asdict().items() if name in names})
