"""One job's runs: when the next one is due, and what happens from claim to record."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from stellerd import backoff, slots
from stellerd.claims import Claim, Held, Taken
from stellerd.context import Context, Services
from stellerd.endings import PLUGIN_ERROR, Ending, of_outcome, said, unforeseen, with_countable
from stellerd.errors import RateLimited, StellerdError, Unreachable
from stellerd.job import Job
from stellerd.keeper import Keeper
from stellerd.limiter import Limiter
from stellerd.redaction import redact
from stellerd.status import LOST, OPERATOR, RunRecord, from_iso, iso
from stellerd.store import Cursor, Store

Emit = Callable[[str, dict[str, Any]], None]
HELD_POLL_S = 1.0
"""How often a process looks whether a job that another runs is free: one small SELECT. A stop is handed over in that
time and a little, a dead host's run is taken over that soon after its lease."""
_REASON_CHARS = 2000
_INTERVAL = "schedule.interval"
"""Name of the cursor that keeps it."""
_LEAST_DEFERRAL = timedelta(seconds=1)  # a plugin that defers into the past shall not spin
_RECORD_S = 15.0
_ASKED = "schedule.asked"
"""Cursor: when the run is due that an operator asked for. It is kept until that run has begun, and again when it ends
as deferred: no accepted trigger is lost with a process, a host, or a limit that is used up."""


@dataclass(frozen=True)
class Plan:
    """The next run of the schedule: when to wake, and what for."""

    at: datetime
    slot: datetime
    trigger: str
    why: str = ""
    held: Held | None = None
    """Somebody runs the job now: look again soon, a run that is lost or handed over is to be taken over."""

    def to_json(self) -> dict[str, str | None]:
        """For the supervisor and `stellerd next`."""
        why = self.why or (f"runs now, {self.held}" if self.held else "")
        return {"at": iso(self.at), "slot": iso(self.slot), "trigger": self.trigger, "why": why}


@dataclass(frozen=True)
class Asked:
    """The run that an operator asked for; it has no slot. Otherwise as `Plan`."""

    at: datetime
    why: str = ""
    slot: None = None
    trigger: str = OPERATOR
    held: None = None

    def to_json(self) -> dict[str, str | None]:
        """For the supervisor and `stellerd next`."""
        return {"at": iso(self.at), "slot": None, "trigger": self.trigger, "why": self.why or "triggered"}


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
        self._interval: slots.Interval | None = None
        self._unrecorded: Callable[[], RunRecord] | None = None
        self._cursor = Cursor(store, self.key)

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

    def ask(self) -> None:
        """An operator wants a run; several wishes before it begins are one.

        Raises: Unreachable when the store is: it is not kept.
        """
        self._cursor.set(_ASKED, iso(self.store_now()))

    def asked(self) -> Asked | None:
        """The run that an operator asked for and that has not begun, or was deferred.

        Raises: Unreachable when the store is.
        """
        at = self._cursor.get(_ASKED)
        return None if at is None else Asked(from_iso(at))

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
        interval = self._interval_now(last, first, now)
        slot = first if last is None or last.slot is None else interval.next_after(first, last.slot)
        if last is None or not slots.is_missed(slot, now):
            newest = max(slot, slots.slot_at(first, self.every, now))
            return self._not_before_buckets(Plan(max(newest, now) if newest <= now else newest, newest, "schedule"))
        return self._not_before_buckets(self._after_missed(first, slot, interval.latest(first, slot, now), now))

    def _interval_now(self, last: RunRecord | None, first: datetime, now: datetime) -> slots.Interval:
        """The interval, and since when it is in force if another one was before."""
        if self._interval is None or self._interval.every != self.every:
            cursor = Cursor(self.store, self.key)
            known = cursor.setdefault(_INTERVAL, {"every": self.every, "since": None, "due": None})
            self._interval = slots.Interval(
                known["every"], *(at and from_iso(at) for at in (known["since"], known["due"]))
            )
            if self._interval.every != self.every:
                self._interval = new = self._interval.changed(self.every, first, last.slot if last else None, now)
                since, due = (at and iso(at) for at in (new.since, new.due))
                cursor.set(_INTERVAL, {"every": new.every, "since": since, "due": due})
        since = self._interval.since
        return (
            self._interval if since is None or since <= now else replace(self._interval, since=now)
        )  # a clock set back

    def _after_missed(self, first: datetime, slot: datetime, latest: datetime, now: datetime) -> Plan:
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
        except BaseException as error:  # noqa: BLE001  a mistake of the plugin's must not end the schedule
            self.services.log.error("the plugin cannot say which limits it needs", reason=said(error))
            return self.job.buckets

    def of_no_run(self) -> Context:
        """A context for what the plugin is asked outside of its runs."""
        return Context(self.services, job=self.name, settings=self.settings, dry_run=True)

    def _first_slot(self, now: datetime) -> datetime:
        text = self._cursor.setdefault("schedule.first_slot", iso(now.replace(microsecond=0)))
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
        try:
            ending = self._attempt(keeper, claim, context)
            ending = with_countable(ending, context)
        except BaseException as error:
            ending = unforeseen(error, context)
            if isinstance(error, KeyboardInterrupt):  # for whoever pressed Ctrl-C, once it is recorded
                self._record(claim, ending, context)
                raise
        record = self._record(claim, ending, context)
        self._tell(context, record)
        return record

    def _attempt(self, keeper: Keeper, claim: Claim, context: Context) -> Ending:
        if context.trigger == OPERATOR:
            self._cursor.set(_ASKED, None)
        at = iso(claim.slot) if claim.slot else None
        started = {
            "id": claim.run_id, "trigger": context.trigger, "slot": at, "kind_of_job": self.job.kind, "key": self.key,
        }  # fmt: skip
        if self.alive:
            self.alive()
        self.emit("run_started", started)
        self.observe("stellerd_run_started", started)
        with keeper:
            ending = self._work(claim, context)
        if keeper.why:
            context.log.error("the lease could not be renewed; the run had to end", reason=keeper.why)
        return ending

    def _work(self, claim: Claim, context: Context) -> Ending:
        """The plugin's part, fenced: what it writes to the store is refused once the lease is gone."""
        self.store.run = claim
        try:
            ending = self._call(context)
        finally:
            self.store.run = None
        again = claim.slot or (self.services.now() if context.trigger == OPERATOR else None)
        if ending.state == "failed" and again is not None and self.services.wait(0):
            reason = f"stopped before its end, to be gone on with: {ending.reason}"
            return Ending("deferred", reason, not_before=again)
        return ending

    def _record(self, claim: Claim, ending: Ending, context: Context) -> RunRecord:
        """The work is done, so a store that is away for a moment must not make it unknown.

        Raises: Unreachable when it stays away.
        """
        self._unrecorded = finish = partial(self._finish, claim, ending, context)
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
            except Exception as error:  # it holds what no store takes; an end that is less says so
                if time.monotonic() > deadline or failures > 2:
                    raise
                context.counters.clear()
                why = f"its end, {ending.state}, could not be recorded: {said(error)}"
                ending = Ending("failed", why, PLUGIN_ERROR)
                self._unrecorded = finish = partial(self._finish, claim, ending, context)
        raise Unreachable(f"run {claim.run_id} ended as {ending.state}, which could not be recorded")

    def _finish(self, claim: Claim, ending: Ending, context: Context) -> RunRecord:
        if context.trigger == OPERATOR and ending.state == "deferred":
            soonest = self.services.now() + _LEAST_DEFERRAL
            self._cursor.set(_ASKED, iso(max(ending.not_before or soonest, soonest)))
        return self.store.finish(
            claim, ending.state, reason=redact(ending.reason)[:_REASON_CHARS], counters=context.counters,
            code=ending.code, not_before=ending.not_before,
        )  # fmt: skip

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
            return of_outcome(self.job.run(context), context)
        except RateLimited as error:
            return Ending("deferred", str(error), not_before=error.until)
        except StellerdError as error:
            return Ending("failed", str(error), error.exit_code)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a mistake of the plugin's; not all of them are Exceptions
            return unforeseen(error, context)

    def _tell(self, context: Context, record: RunRecord) -> None:
        fields = record.to_json()
        level = "info" if record.state in ("ok", "skipped") else "warning" if record.state == "deferred" else "error"
        shown = {key: fields[key] for key in ("state", "seconds") if fields[key] is not None}
        reason = {"reason": record.reason} if record.reason else {}
        level = "debug" if self.attended else level  # there the command line says it
        getattr(context.log, level)("run finished", trigger=record.trigger, **shown, **reason, counters=record.counters)
        self.emit("run_finished", fields)
        self.observe("stellerd_run_finished", fields)


def retry_s(error: Unreachable | Held, failures: int) -> float:
    """Seconds until the next try after the store was away, `failures` times in a row, or somebody had the job."""
    return HELD_POLL_S if isinstance(error, Held) else backoff.until_store(failures, random.random())
