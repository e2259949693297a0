"""A run from claim to record, for every way it can end, in the test kit that plugin authors use."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from stellerd import Context, Deferred, Done, Job, Secret, Settings, Skipped, errors, log
from stellerd.errors import Busy, ConfigError
from stellerd.runner import retry_s
from stellerd.schema import leases, runs
from stellerd.status import RunRecord
from stellerd.store import Claim, Held, Store, Taken
from stellerd.testing import Harness

LATER = datetime(2030, 1, 1, tzinfo=UTC)
PASSWORD = "kanarie-1147-blau"


@pytest.fixture(scope="module")
def postgres_database(postgres_server: Any) -> Iterator[str]:
    made = postgres_server.create_database()
    yield made
    postgres_server.drop_database(made)


@pytest.fixture(params=["sqlite", "postgresql"])
def state_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store: a file, or a schema of its own, which is quicker to have than a database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    database, schema = request.getfixturevalue("postgres_database"), f"s{uuid.uuid4().hex}"
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{database}?options=-csearch_path%3D{schema}"


def job(run: Callable[[Context], Any], **attributes: Any) -> type[Job]:
    return type("TheJob", (Job,), {"run": lambda self, ctx: run(ctx), **attributes})


def outcome(run: Callable[[Context], Any], folder: Path) -> RunRecord:
    return Harness(job(run), folder=folder).run()


def raises(error: BaseException) -> Callable[[Context], Any]:
    def run(ctx: Context) -> None:
        raise error

    return run


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


# --- outcomes

OUTCOMES: dict[str, tuple[Callable[[Context], Any], str, str, int]] = {
    "nothing": (lambda ctx: None, "ok", "", 0),
    "done": (lambda ctx: Done({"new": 2}), "ok", "", 0),
    "problems": (lambda ctx: Done(problems=("brands: 500", "categories: 502")), "partial",
                 "brands: 500; categories: 502", 1),
    "skipped": (lambda ctx: Skipped("nothing to do"), "skipped", "nothing to do", 0),
    "deferred": (lambda ctx: Deferred(LATER, "not before 2030"), "deferred", "not before 2030", 75),
    "rate limited": (raises(errors.RateLimited("b", LATER)), "deferred",
                     "b: limit used up, next slot at 2030-01-01 00:00:00 UTC", 75),
    "unreachable": (raises(errors.Unreachable("db is away")), "failed", "db is away", 69),
    "configuration": (raises(errors.ConfigError(["a: wrong", "b: wrong"])), "failed", "a: wrong\nb: wrong", 78),
    "busy": (raises(errors.Busy("held")), "failed", "held", 75),
    "http": (raises(errors.HttpStatus(401, "x: answered 401")), "failed", "x: answered 401", 1),
    "bad reply": (raises(errors.BadReply("too large")), "failed", "too large", 1),
    "job failed": (raises(errors.JobFailed("says why")), "failed", "says why", 1),
    "crash": (raises(ValueError("oops")), "failed", "ValueError: oops", 70),
    "skipped for no reason": (lambda ctx: Skipped(None), "failed",  # type: ignore[arg-type]
                              "TypeError: Skipped.reason must be a text, not NoneType", 70),
    "deferred for no reason": (lambda ctx: Deferred(LATER, None), "failed",  # type: ignore[arg-type]
                               "TypeError: Deferred.reason must be a text, not NoneType", 70),
    "a text for problems": (lambda ctx: Done(problems="one problem"), "partial",  # type: ignore[arg-type]
                            "one problem", 1),
    "decimal counted": (lambda ctx: ctx.count(rows=Decimal(1)), "failed",  # type: ignore[arg-type]
                        "TypeError: 'decimal.Decimal' object cannot be interpreted as an integer", 70),
    "decimal done": (lambda ctx: Done({"rows": Decimal(1)}), "failed",  # type: ignore[dict-item]
                     "counters must be whole numbers: rows", 70),
    "decimal put there": (lambda ctx: ctx.counters.update(rows=Decimal(1), ok=1), "failed",
                          "counters must be whole numbers: rows", 70),
    "more than any column holds": (lambda ctx: ctx.count(rows=10**5000), "failed",
                                   "counters must be whole numbers: rows", 70),
    "cancelled": (raises(asyncio.CancelledError()), "failed", "CancelledError", 70),
    "generator exit": (raises(GeneratorExit()), "failed", "GeneratorExit", 70),
    "an error without a text": (raises(Mute()), "failed", "Mute: it cannot be shown", 70),
    "crash without words": (raises(KeyError()), "failed", "KeyError", 70),
    "exit": (raises(SystemExit(3)), "failed", "SystemExit: 3", 70),
    "wrong type": (lambda ctx: 5, "failed",
                   "TypeError: run() returned int; it may return Done, Skipped, Deferred or None", 70),
    "no time zone": (lambda ctx: Deferred(datetime(2030, 1, 1), "x"), "failed",  # noqa: DTZ001  the mistake itself
                     "TypeError: Deferred.until has no time zone; write datetime.now(UTC) + …", 70),
    "wrong counters": (lambda ctx: Done({"price": 1.5}), "failed",  # type: ignore[dict-item]
                       "counters must be whole numbers: price", 70),
    "group": (raises(ExceptionGroup("many", [ValueError("one")])), "failed",
              "ExceptionGroup: many (1 sub-exception)", 70),
    "nul and half a pair": (raises(ValueError("a\0b\udcff")), "failed", "ValueError: a\\x00b\\udcff", 70),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_way_out_of_a_run_is_recorded(name: str, tmp_path: Path) -> None:
    run, state, reason, code = OUTCOMES[name]
    harness = Harness(job(run), folder=tmp_path)
    record = harness.run()
    assert (record.state, record.reason, record.exit_code) == (state, reason, code)
    assert harness.store.history() == [record]


def test_a_deferral_says_until_when(tmp_path: Path) -> None:
    assert outcome(lambda ctx: Deferred(LATER, "x"), tmp_path).not_before == LATER


def test_a_rate_limit_says_until_when(tmp_path: Path) -> None:
    assert outcome(raises(errors.RateLimited("b", LATER)), tmp_path).not_before == LATER


def test_counters_of_the_run_and_its_outcome_are_recorded(tmp_path: Path) -> None:
    def run(ctx: Context) -> Done:
        ctx.count(seen=3)
        return Done({"new": 2})

    assert outcome(run, tmp_path).counters == {"seen": 3, "new": 2}


def test_counters_of_a_failed_run_are_recorded(tmp_path: Path) -> None:
    def run(ctx: Context) -> None:
        ctx.count(seen=3)
        raise errors.JobFailed("later")

    assert outcome(run, tmp_path).counters == {"seen": 3}


def test_an_endless_reason_is_cut(tmp_path: Path) -> None:
    assert len(outcome(raises(ValueError("x" * 100_000)), tmp_path).reason) <= 2000


@pytest.mark.parametrize("name", ["ok", "crash"])
def test_a_run_gives_its_lease_back(name: str, tmp_path: Path) -> None:
    harness = Harness(job(raises(ValueError("x")) if name == "crash" else lambda ctx: None), folder=tmp_path)
    harness.run()
    with harness.store.reading() as connection:
        assert connection.execute(sa.select(leases.c.expires_at)).scalar_one() <= harness.clock()


def test_an_interrupt_ends_the_process_once_it_is_recorded(tmp_path: Path) -> None:
    harness = Harness(job(raises(KeyboardInterrupt())), folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        harness.run()
    assert [(run.state, run.reason) for run in harness.store.history()] == [("failed", "KeyboardInterrupt")]


def test_an_end_that_no_store_takes_is_recorded_as_one_that_says_so(tmp_path: Path) -> None:
    class Worst(errors.JobFailed):
        exit_code = {1, 2}  # type: ignore[assignment]

    record = outcome(raises(Worst("says why")), tmp_path)
    assert (record.state, record.reason.startswith("its end, failed, could not be recorded: ")) == ("failed", True)


def test_a_thread_that_cannot_be_had_ends_the_run_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    harness = Harness(job(lambda ctx: None), folder=tmp_path)
    monkeypatch.setattr(threading.Thread, "start", cannot)
    with contextlib.suppress(RuntimeError):
        harness.run()
    assert [(run.state, run.reason) for run in harness.store.history()] == [
        ("failed", "RuntimeError: can't start new thread")
    ]


class WithSecret(Settings):
    password: Secret


def test_a_crash_is_logged_with_its_stack_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_PASSWORD", PASSWORD)
    lines: list[str] = []

    def run(ctx: Context) -> None:
        password = ctx.settings.password.reveal()
        raise ValueError(f"cannot log in with {password}")

    log.configure("debug", "json", write=lines.append)
    harness = Harness(job(run, Settings=WithSecret), settings={"password": {"env": "THE_PASSWORD"}}, folder=tmp_path)
    try:
        record = harness.run()
    finally:
        log.configure("info", "json")
    said = "\n".join(lines)
    assert record.reason == "ValueError: cannot log in with ***"
    assert "Traceback (most recent call last)" in said
    assert 'raise ValueError(f\\"cannot log in' in said
    assert PASSWORD not in said + repr(record) + repr(harness.events)


# --- what a run is told, and tells


def test_a_run_knows_what_it_is_for(tmp_path: Path) -> None:
    seen: list[Any] = []

    def run(ctx: Context) -> None:
        seen.append((ctx.job, ctx.trigger, ctx.slot, ctx.attempt, ctx.dry_run))

    harness = Harness(job(run), folder=tmp_path)
    harness.run(slot=LATER)
    harness.run(dry_run=True)
    assert seen[0] == ("job", "schedule", LATER, 1, False)
    assert seen[1][1:] == ("manual", harness.clock(), 1, True)


def test_a_dry_run_is_recorded_as_one(tmp_path: Path) -> None:
    harness = Harness(job(lambda ctx: None), folder=tmp_path)
    assert harness.run(dry_run=True).trigger == "dry-run"


def test_the_parent_hears_of_start_progress_and_end(tmp_path: Path) -> None:
    harness = Harness(job(lambda ctx: ctx.progress(1, 2, "rows")), folder=tmp_path)
    record = harness.run()
    assert [kind for kind, _ in harness.events] == ["run_started", "progress", "run_finished"]
    assert harness.events[-1][1] == record.to_json()


def test_quarantine_of_the_last_run_can_be_read(tmp_path: Path) -> None:
    harness = Harness(job(lambda ctx: ctx.quarantine("brand", "X", "no id", {"a": 1})), folder=tmp_path)
    harness.run()
    assert harness.quarantined() == [{"entity": "brand", "key": "X", "reason": "no id", "payload": {"a": 1}}]


def test_a_dry_run_puts_nothing_aside(tmp_path: Path) -> None:
    harness = Harness(job(lambda ctx: ctx.quarantine("brand", "X", "no id")), folder=tmp_path)
    assert harness.run(dry_run=True).counters == {"quarantined": 1}
    assert harness.quarantined() == []


def test_check_raises_what_the_plugin_found(tmp_path: Path) -> None:
    def check(self: Job, ctx: Context) -> None:
        raise errors.Unreachable("no broker")

    with pytest.raises(errors.Unreachable, match="no broker"):
        Harness(job(lambda ctx: None, check=check), folder=tmp_path).check()


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"jobs\.job\.settings\.pasword: unknown key, did you mean"):
        Harness(job(lambda ctx: None, Settings=WithSecret), settings={"pasword": "x", "password": "y"}, folder=tmp_path)


def test_limits_of_the_plugin_hold_unless_the_configuration_has_others(tmp_path: Path) -> None:
    def run(ctx: Context) -> None:
        for _ in range(2):
            ctx.limiter.acquire("b", ctx.wait)

    one = job(run, limits={"b": "1/1h"})
    assert Harness(one, folder=tmp_path / "1").run().state == "deferred"
    assert Harness(one, limits={"b": "2/1h"}, folder=tmp_path / "2").run().state == "ok"


def test_a_held_job_and_a_run_slot_are_busy(tmp_path: Path) -> None:
    harness = Harness(job(lambda ctx: None), folder=tmp_path)
    harness.run(slot=LATER)
    with pytest.raises(Busy):
        harness.run(slot=LATER)
    other = Store(f"sqlite:///{tmp_path}/state.db", harness.clock)
    assert isinstance(other.claim("job", None, "manual"), Claim)
    assert isinstance(harness.runner.run("manual"), Held)
    other.close()


# --- when


class Times:
    """A job every ten minutes, and what its plan says."""

    def __init__(self, folder: Path, url: str, every: str = "10m", **attributes: Any) -> None:
        self.answer: Any = None
        made = job(lambda ctx: self.answer, every=every, **attributes)
        self.harness = Harness(made, folder=folder, state_url=url, limits={"b": "1/1h", "c": "1/2h"})
        self.clock, self.runner = self.harness.clock, self.harness.runner
        self.clock.time = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
        self.start = self.clock.time

    def plan(self) -> tuple[float, float, str]:
        """(minutes until, minutes of the slot since the start, trigger)."""
        plan = self.runner.plan()
        minute = timedelta(minutes=1)
        return (plan.at - self.clock()) / minute, (plan.slot - self.start) / minute, plan.trigger

    def go(self) -> RunRecord | Held | Taken:
        """Wait for the planned run and do it."""
        plan = self.runner.plan()
        self.clock.time = max(self.clock.time, plan.at)
        return self.runner.run(plan.trigger, plan.slot)

    def passes(self, minutes: float) -> None:
        self.clock.advance(minutes * 60)


@pytest.fixture
def times(tmp_path: Path, state_url: str) -> Times:
    return Times(tmp_path, state_url)


def test_the_first_run_is_now(times: Times) -> None:
    assert times.plan() == (0, 0, "schedule")


def test_a_first_run_that_nobody_did_stays_due(times: Times) -> None:
    times.plan()
    times.passes(3)
    assert times.plan() == (0, 0, "schedule")


def test_a_restart_inside_an_interval_waits_for_the_rest_of_it(times: Times) -> None:
    times.go()
    times.passes(4)
    assert times.plan() == (6, 10, "schedule")


def test_slots_do_not_drift_with_the_time_runs_take(times: Times) -> None:
    for _ in range(3):
        times.go()
        times.passes(3)
    assert times.plan() == (7, 30, "schedule")


def test_a_missed_slot_is_caught_up_once_for_the_latest(times: Times) -> None:
    times.go()
    times.passes(47)
    assert times.plan() == (0, 40, "catch-up")
    times.go()
    assert times.plan() == (3, 50, "schedule")


def test_a_missed_slot_may_be_skipped_with_a_record(times: Times) -> None:
    times.go()
    times.runner.misfire = "skip"
    times.passes(47)
    assert times.plan() == (3, 50, "schedule")
    newest = times.harness.store.history()[0]
    assert (newest.state, newest.reason) == ("skipped", 'missed since 2026-03-29T00:40:00Z; misfire = "skip"')


def test_a_slot_skipped_is_recorded_once_however_often_one_asks(times: Times) -> None:
    times.go()
    times.runner.misfire = "skip"
    times.passes(47)
    for _ in range(3):
        times.plan()
    assert [run.state for run in times.harness.store.history()] == ["skipped", "ok"]


def test_a_slot_that_is_due_this_second_is_not_missed(times: Times) -> None:
    times.go()
    times.passes(10.01)
    assert times.plan() == (0, 10, "schedule")


def test_a_run_that_a_person_asked_for_does_not_move_the_grid(times: Times) -> None:
    times.go()
    times.passes(4)
    times.harness.run()
    assert times.plan() == (6, 10, "schedule")


def test_a_deferred_run_goes_on_at_its_time_in_its_slot(times: Times) -> None:
    times.answer = Deferred(times.start + timedelta(minutes=4), "busy")
    times.go()
    assert times.plan() == (4, 0, "deferred")
    times.answer = None
    assert getattr(times.go(), "attempt", None) == 2


@pytest.mark.parametrize("hours", [-12, -5, 0, 5, 12])
def test_a_deferral_to_the_end_of_all_days_is_kept_in_any_zone(times: Times, hours: int) -> None:
    times.answer = Deferred(datetime.max.replace(tzinfo=timezone(timedelta(hours=hours))), "never")
    record = times.go()
    assert isinstance(record, RunRecord)
    assert (record.state, record.reason) == ("deferred", "never")
    assert record.not_before == datetime(9000, 1, 1, tzinfo=UTC)
    assert times.runner.plan().at == record.not_before


def test_a_deferral_over_several_slots_is_one_run(times: Times) -> None:
    times.answer = Deferred(times.start + timedelta(minutes=35), "busy")
    times.go()
    assert times.plan() == (35, 30, "deferred")
    times.answer = None
    times.go()
    assert times.plan() == (5, 40, "schedule")


def test_a_deferral_into_the_past_is_not_spun_on(times: Times) -> None:
    times.answer = Deferred(times.start - timedelta(minutes=5), "confused")
    times.go()
    assert times.plan()[0] > 0


def test_a_changed_interval_holds_at_once_on_a_grid_of_its_own(times: Times) -> None:
    times.go()
    times.passes(4)
    times.runner.every = 360.0
    assert times.plan() == (2, 6, "schedule")
    times.runner.every = 3600.0
    assert times.plan() == (56, 60, "schedule")


@pytest.mark.parametrize("misfire", ["once", "skip"])
def test_a_shorter_interval_has_no_slots_from_before_it_was_set(times: Times, misfire: str) -> None:
    times.runner.misfire = misfire
    times.go()
    times.passes(8.5)
    for every in (60.0, 30.0):  # ten minutes before
        times.runner.every = every
        assert times.plan() == (0.5, 9, "schedule")
    assert [run.state for run in times.harness.store.history()] == ["ok"]
    times.passes(0.5)
    times.go()
    times.passes(1.25)
    assert times.plan() == ((0, 10, "catch-up") if misfire == "once" else (0.25, 10.5, "schedule"))


def test_a_slot_that_was_missed_before_the_interval_changed_is_still_missed(times: Times) -> None:
    times.runner.misfire = "skip"
    times.go()
    times.passes(12.2)
    times.runner.every = 60.0
    assert times.plan() == (0.8, 13, "schedule")
    newest = times.harness.store.history(limit=1)[0]
    assert (newest.state, newest.slot) == ("skipped", times.start + timedelta(minutes=10))


def test_an_interval_that_was_set_by_a_clock_far_ahead_does_not_hold_up_the_schedule(times: Times) -> None:
    times.go()
    times.passes(60 * 24)
    times.runner.every = 60.0
    times.plan()
    times.passes(-60 * 24 + 5)
    assert times.plan()[0] <= 1


@pytest.mark.parametrize("hours", [0.01, 1, 30])
def test_a_clock_set_back_never_repeats_a_slot(times: Times, hours: float) -> None:
    for _ in range(3):
        times.go()
    done = {run.slot for run in times.harness.store.history()}
    times.passes(-60 * hours)
    plan = times.runner.plan()
    assert plan.slot not in done
    assert plan.slot > max(slot for slot in done if slot)


def test_every_slot_is_run_once_whatever_the_clock_does(times: Times) -> None:
    for step in (0, -15, 3, 40, -90, 7, 200, -1):
        times.passes(step)
        times.go()
    with times.harness.store.reading() as connection:
        slots = connection.execute(sa.select(runs.c.slot)).scalars()
    assert len(slots) == len(set(slots)) == 8


# --- buckets that a run cannot do without


@pytest.fixture
def limited(tmp_path: Path, state_url: str) -> Times:
    return Times(tmp_path, state_url, buckets=("b", "c"))


def test_a_closed_bucket_moves_the_plan(limited: Times) -> None:
    limited.runner.limiter.try_acquire("b")
    plan = limited.runner.plan()
    assert plan.at == limited.start + timedelta(hours=1, seconds=1)
    assert plan.why == "waits for the limit b"
    assert plan.slot == limited.start + timedelta(hours=1)


def test_the_bucket_that_is_closed_longest_counts(limited: Times) -> None:
    for bucket in ("b", "c"):
        limited.runner.limiter.try_acquire(bucket)
    plan = limited.runner.plan()
    assert (plan.at, plan.why) == (limited.start + timedelta(hours=2, seconds=1), "waits for the limit c")


def test_a_bucket_that_opens_before_the_slot_moves_nothing(limited: Times) -> None:
    limited.go()
    limited.runner.limiter.learn("b", 120)
    assert limited.plan() == (10, 10, "schedule")


def test_planning_spends_no_slot(limited: Times) -> None:
    for _ in range(5):
        limited.plan()
    assert limited.runner.limiter.closed_until("b") is None


def test_a_job_may_say_for_itself_which_limits_it_needs(limited: Times) -> None:
    asked: list[Context] = []
    limited.runner.job.needs = lambda ctx: asked.append(ctx) or ("c",)  # type: ignore[method-assign,func-returns-value]
    limited.runner.limiter.try_acquire("b")
    limited.plan()
    assert limited.runner.plan().why == ""
    assert {ctx.dry_run for ctx in asked} == {True}
    limited.runner.limiter.try_acquire("c")
    assert limited.runner.plan().why == "waits for the limit c"


def test_a_job_that_cannot_say_so_waits_for_all_it_has_declared(limited: Times) -> None:
    limited.runner.job.needs = lambda ctx: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    limited.runner.limiter.try_acquire("b")
    assert limited.runner.plan().why == "waits for the limit b"


def test_a_bucket_without_a_rate_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'jobs\.job: needs the limit "zzz"; add \[limits\.zzz\]'):
        Harness(job(lambda ctx: None, buckets=("zzz",)), folder=tmp_path)


# --- the lease during a run


def test_a_long_run_keeps_its_lease(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    lost: list[str] = []
    claims: list[Any] = []

    def run(ctx: Context) -> None:
        other = Store(url)
        for _ in range(6):
            ctx.wait(0.1)
            claims.append(type(other.claim("job", None, "manual")).__name__)
        other.close()

    harness = Harness(job(run), folder=tmp_path)
    harness.store.clock = None
    harness.store.set_lease(0.3)
    harness.runner.step_down = lambda: lost.append("x")
    assert harness.run().state == "ok"
    assert (set(claims), lost) == ({"Held"}, [])


def test_a_run_whose_lease_is_gone_is_told_to_end_and_recorded_as_lost(tmp_path: Path) -> None:
    heard = threading.Event()

    def run(ctx: Context) -> None:
        with harness.store.begin() as connection:
            connection.execute(sa.update(leases).values(expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
        other = Store(f"sqlite:///{tmp_path}/state.db", harness.clock)
        assert isinstance(other.claim("job", None, "manual"), Claim)
        other.close()
        assert heard.wait(10)

    harness = Harness(job(run), folder=tmp_path)
    harness.store.set_lease(0.15)
    harness.runner.step_down = heard.set
    record = harness.run()
    assert heard.is_set()
    assert record.state == "lost"


# --- when the store is away


@pytest.mark.parametrize(("failures", "most_s"), [(1, 0.25), (2, 0.5), (3, 1), (5, 1), (100_000, 1)])
def test_a_store_that_is_away_is_asked_again_within_a_second_however_long_it_was(failures: int, most_s: float) -> None:
    waits = [retry_s(errors.Unreachable("x"), failures) for _ in range(200)]
    assert most_s * 0.7 <= min(waits) < max(waits) <= most_s


def test_a_held_job_is_asked_for_once_a_second() -> None:
    assert retry_s(Held("h", 1, LATER), 0) == 1


def test_a_run_whose_end_cannot_be_recorded_at_first_is_recorded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(job(lambda ctx: Done({"n": 1})), folder=tmp_path)
    finish, failures = harness.store.finish, [errors.Unreachable("away")] * 2

    def away(*args: Any, **kwargs: Any) -> RunRecord:
        if failures:
            raise failures.pop()
        return finish(*args, **kwargs)

    monkeypatch.setattr(harness.store, "finish", away)
    assert harness.run().state == "ok"


def test_a_run_whose_end_can_never_be_recorded_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stellerd.runner._RECORD_S", 0.01)
    harness = Harness(job(lambda ctx: None), folder=tmp_path)

    def away(*args: Any, **kwargs: Any) -> RunRecord:
        raise errors.Unreachable("away")

    monkeypatch.setattr(harness.store, "finish", away)
    with pytest.raises(errors.Unreachable, match="run 1 ended as ok, which could not be recorded"):
        harness.run()


def test_the_kit_imports_no_test_library() -> None:
    import subprocess

    code = "import sys, stellerd.testing; print([name for name in ('pytest', 'hypothesis') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
