"""One job's runs: when the next one is due, and what happens from claim to record."""

from __future__ import annotations

import itertools
import random
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from stellerd import backoff, slots
from stellerd.claims import Claim, Held, Taken
from stellerd.context import Context, Services
from stellerd.errors import RateLimited, StellerdError, Unreachable
from stellerd.job import Deferred, Done, Job, Skipped
from stellerd.keeper import Keeper
from stellerd.limiter import Limiter
from stellerd.redaction import redact
from stellerd.status import LOST, RunRecord, from_iso, iso
from stellerd.store import Cursor, Store

Emit = Callable[[str, dict[str, Any]], None]
HELD_POLL_S = 1.0
"""How often a process looks whether a job that another runs is free: one small SELECT. A stop is handed over in that
time and a little, a dead host's run is taken over that soon after its lease."""
_REASON_CHARS = 2000
PLUGIN_ERROR = 70
_LEAST_DEFERRAL = timedelta(seconds=1)  # a plugin that defers into the past shall not spin
_EVER, _NEVER = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
_RECORD_S = 15.0


@dataclass(frozen=True)
class Plan:
    """The next run of the schedule: when to wake, and what for."""

    at: datetime
    slot: datetime
    trigger: str
    why: str = ""
    held: Held | None = None
    """Somebody runs the job now: look again soon, a run that is lost or handed over is to be taken over."""

    def to_json(self) -> dict[str, str]:
        """For the supervisor and `stellerd next`."""
        why = self.why or (f"runs now, {self.held}" if self.held else "")
        return {"at": iso(self.at), "slot": iso(self.slot), "trigger": self.trigger, "why": why}


@dataclass(frozen=True)
class Ending:
    """How a run ended, before it is recorded."""

    state: str
    reason: str = ""
    code: int | None = None
    not_before: datetime | None = None


class Runner:
    """Runs one job; the daemon's child, `run-once` and the test kit all go through it.

    `emit(kind, fields)` tells the parent; `observe(hook, run)` calls the observers' hooks.
    """

    keeper = Keeper

    def __init__(
        self,
        name: str,
        job: Job,
        settings: Any,
        store: Store,
        limiter: Limiter,
        services: Services,
        emit: Emit,
        *,
        every: float,
        key: str = "",
        misfire: str = "once",
        retry_lost: int = 1,
        observe: Callable[[str, dict[str, Any]], None] = lambda hook, run: None,
        step_down: Callable[[], None] = lambda: None,
        end: Callable[[str], None] = lambda why: None,
        alive: Callable[[], None] | None = None,
        alive_every: float = 0.0,
        attended: bool = False,
    ) -> None:
        self.name, self.job, self.settings = name, job, settings
        self.store, self.limiter, self.services = store, limiter, services
        self.key = key or name
        """What the store knows the job by."""
        self.emit, self.observe, self.step_down, self.end = emit, observe, step_down, end
        self.every, self.misfire, self.retry_lost = every, misfire, retry_lost
        self.alive, self.alive_every = alive, alive_every
        self.attended = attended
        self._unrecorded: Callable[[], RunRecord] | None = None

    # --- when

    def plan(self) -> Plan:
        """The next run by the persisted grid, never before the buckets it needs are open.

        Raises: Unreachable when the store is.
        """
        self._catch_up_on_records()
        now = self.store_now()
        first = self._first_slot(now)
        last, taken = self._last_scheduled(now)
        held = self.store.holder(self.key) if last is not None and last.state == "running" else None
        if held is None and (again := self._after_loss(last, first, now)):
            return again
        plan = self._following(last, first, now)
        while plan.slot in taken:
            plan = replace(plan, at=(slot := slots.slot_after(first, self.every, plan.slot)), slot=slot)
        return replace(plan, held=held)

    def _last_scheduled(self, now: datetime) -> tuple[RunRecord | None, set[datetime]]:
        """The newest scheduled run, and later slots that were run already: by a clock that was far ahead and was set
        back meanwhile. The job must not wait for the time that it showed."""
        last = self.store.last_scheduled(self.key)
        if last is None or last.slot is None or last.slot - now <= timedelta(seconds=self.every):
            return last, set()
        return self.store.scheduled_around(self.key, now)

    def _after_loss(self, last: RunRecord | None, first: datetime, now: datetime) -> Plan | None:
        """A slot whose run was lost with its process is tried again, unless the next one has come already."""
        if last is None or last.slot is None or last.state not in ("running", *LOST):
            return None
        if slots.slot_at(first, self.every, now) > last.slot or (
            last.state in LOST and not self.store.may_retry(self.key, last.slot, self.retry_lost)
        ):
            return None
        return self._not_before_buckets(Plan(now, last.slot, "retry", f"its run on {last.host} was lost"))

    def _following(self, last: RunRecord | None, first: datetime, now: datetime) -> Plan:
        if last is not None and last.slot is not None and last.state == "deferred" and last.not_before is not None:
            due = max(last.not_before, (last.finished_at or now) + _LEAST_DEFERRAL, now)
            return self._not_before_buckets(
                Plan(due, max(slots.slot_at(first, self.every, due), last.slot), "deferred", last.reason)
            )
        slot = first if last is None or last.slot is None else slots.slot_after(first, self.every, last.slot)
        if last is None or not slots.is_missed(slot, now):
            newest = max(slot, slots.slot_at(first, self.every, now))
            return self._not_before_buckets(Plan(max(newest, now) if newest <= now else newest, newest, "schedule"))
        return self._not_before_buckets(self._after_missed(first, slot, now))

    def _after_missed(self, first: datetime, slot: datetime, now: datetime) -> Plan:
        latest = slots.slot_at(first, self.every, now)
        if self.misfire == "once" or not slots.is_missed(latest, now):
            return Plan(now, latest, "catch-up", f"slot of {iso(slot)} was missed")
        self.store.record(self.key, latest, "schedule", "skipped", f'missed since {iso(slot)}; misfire = "skip"')
        following = slots.slot_after(first, self.every, now)
        return Plan(following, following, "schedule")

    def _not_before_buckets(self, plan: Plan) -> Plan:
        for bucket in self._needed():
            free = self.limiter.closed_until(bucket)
            if free is not None and free > plan.at:
                first = self._first_slot(free)
                slot = max(plan.slot, slots.slot_at(first, self.every, free))
                plan = Plan(free, slot, plan.trigger, f"waits for the limit {bucket}")
        return plan

    def _needed(self) -> Iterable[str]:
        try:
            return tuple(self.job.needs(self.of_no_run()))
        except (Exception, SystemExit) as error:  # noqa: BLE001  a mistake of the plugin's must not end the schedule
            self.services.log.error("the plugin cannot say which limits it needs", reason=redact(str(error)))
            return self.job.buckets

    def of_no_run(self) -> Context:
        """A context for what the plugin is asked outside of its runs."""
        return Context(self.services, job=self.name, settings=self.settings, dry_run=True)

    def _first_slot(self, now: datetime) -> datetime:
        text = Cursor(self.store, self.key).setdefault("schedule.first_slot", iso(now.replace(microsecond=0)))
        return from_iso(text)

    def store_now(self) -> datetime:
        """The store's time (aware UTC)."""
        with self.store.reading() as connection:
            return self.store.now(connection)

    # --- what

    def run(self, trigger: str, slot: datetime | None = None, *, dry_run: bool = False) -> RunRecord | Held | Taken:
        """Claim, run, record. `slot` None: asked for by a person, the grid does not move.

        Raises: Unreachable when the store is, before or after the run.
        """
        self._catch_up_on_records()
        claim = self.store.claim(self.key, slot, "dry-run" if dry_run else trigger, self.retry_lost)
        if not isinstance(claim, Claim):
            return claim
        keeper = self.keeper(
            self.store, claim, lambda why: self.step_down(), self.end, alive=self.alive,
            alive_every=self.alive_every, stubborn=self.key != self.name,
        )  # fmt: skip
        context = Context(
            self.services, job=self.name, settings=self.settings, run_id=claim.run_id, trigger=trigger,
            slot=slot, attempt=claim.attempt, dry_run=dry_run, epoch=claim.epoch, proved=keeper.proved,
        )  # fmt: skip
        at = iso(slot) if slot else None
        started = {
            "id": claim.run_id, "trigger": trigger, "slot": at, "kind_of_job": self.job.kind, "key": self.key,
        }  # fmt: skip
        if self.alive:
            self.alive()
        self.emit("run_started", started)
        self.observe("stellerd_run_started", started)
        with keeper:
            ending = self._work(claim, context)
        if keeper.why:
            context.log.error("the lease could not be renewed; the run had to end", reason=keeper.why)
        record = self._record(claim, ending, context)
        self._tell(context, record)
        return record

    def _work(self, claim: Claim, context: Context) -> Ending:
        """The plugin's part, fenced: what it writes to the store is refused once the lease is gone."""
        self.store.run = claim
        try:
            ending = self._call(context)
        finally:
            self.store.run = None
        if ending.state == "failed" and claim.slot is not None and self.services.wait(0):
            reason = f"stopped before its end, to be gone on with: {ending.reason}"
            return Ending("deferred", reason, not_before=claim.slot)
        return ending

    def _record(self, claim: Claim, ending: Ending, context: Context) -> RunRecord:
        """The work is done, so a store that is away for a moment must not make it unknown.

        Raises: Unreachable when it stays away.
        """
        self._unrecorded = finish = partial(
            self.store.finish, claim, ending.state, reason=redact(ending.reason)[:_REASON_CHARS],
            counters=context.counters, code=ending.code, not_before=ending.not_before,
        )  # fmt: skip
        deadline = time.monotonic() + _RECORD_S
        for failures in itertools.count(1):
            try:
                record = finish()
                self._unrecorded = None
                return record
            except Unreachable as error:
                if failures == 1:
                    context.log.warning("the run's end is not recorded yet", state=ending.state, reason=str(error))
                if time.monotonic() > deadline:
                    break
                time.sleep(retry_s(error, failures))
        raise Unreachable(f"run {claim.run_id} ended as {ending.state}, which could not be recorded")

    def _catch_up_on_records(self) -> None:
        """What could not be recorded while the store was away is, before anything else.

        Raises: Unreachable when it still is.
        """
        if self._unrecorded is not None:
            self._unrecorded()
            self._unrecorded = None

    def _call(self, context: Context) -> Ending:
        """The plugin's `run`; every way out of it becomes an ending."""
        try:
            return _ending_of(self.job.run(context), context)
        except RateLimited as error:
            return Ending("deferred", str(error), not_before=error.until)
        except StellerdError as error:
            return Ending("failed", str(error), error.exit_code)
        except (Exception, SystemExit) as error:  # noqa: BLE001  a mistake of the plugin's, logged and recorded
            context.log.error("the plugin's run raised", traceback=redact(traceback.format_exc()))
            return Ending("failed", f"{type(error).__name__}: {error}".removesuffix(": "), PLUGIN_ERROR)

    def _tell(self, context: Context, record: RunRecord) -> None:
        fields = record.to_json()
        level = "info" if record.state in ("ok", "skipped") else "warning" if record.state == "deferred" else "error"
        shown = {key: fields[key] for key in ("state", "seconds") if fields[key] is not None}
        reason = {"reason": record.reason} if record.reason else {}
        level = "debug" if self.attended else level  # there the command line says it
        getattr(context.log, level)("run finished", trigger=record.trigger, **shown, **reason, counters=record.counters)
        self.emit("run_finished", fields)
        self.observe("stellerd_run_finished", fields)


def _ending_of(outcome: Any, context: Context) -> Ending:
    if outcome is None:
        return Ending("ok")
    if isinstance(outcome, Done):
        if wrong := [name for name, amount in outcome.counters.items() if not isinstance(amount, int)]:
            raise TypeError(f"counters must be whole numbers: {', '.join(map(str, wrong))}")
        context.merge(outcome.counters)
        return Ending("partial", "; ".join(outcome.problems)) if outcome.problems else Ending("ok")
    if isinstance(outcome, Skipped):
        return Ending("skipped", outcome.reason)
    if isinstance(outcome, Deferred):
        if outcome.until.tzinfo is None:
            raise TypeError("Deferred.until has no time zone; write datetime.now(UTC) + …")
        return Ending("deferred", outcome.reason, not_before=_utc(outcome.until))
    raise TypeError(f"run() returned {type(outcome).__name__}; it may return Done, Skipped, Deferred or None")


def _utc(at: datetime) -> datetime:
    """In UTC, with room in the calendar for other zones and for slots around it: a plugin may mean never."""
    return at.astimezone(UTC) if _EVER.year < at.year < _NEVER.year else _NEVER if at.year > _EVER.year else _EVER


def retry_s(error: Unreachable | Held, failures: int) -> float:
    """Seconds until the next try after the store was away, `failures` times in a row, or somebody had the job."""
    return HELD_POLL_S if isinstance(error, Held) else backoff.until_store(failures, random.random())
