"""The state store on SQLite and PostgreSQL: leases, slots, fencing and recovery, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from pruned import prune

from stellerd import claims, hosts
from stellerd.errors import StellerdError, Unreachable
from stellerd.schema import leases, quarantine, runs
from stellerd.store import Claim, Cursor, Held, Store, Taken
from stellerd.testing import Clock

SLOT = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def postgres_database(postgres_server: Any) -> Iterator[str]:
    made = postgres_server.create_database()
    yield made
    postgres_server.drop_database(made)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store: a file, or a schema of its own, which is quicker to have than a database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    database, schema = request.getfixturevalue("postgres_database"), f"s{uuid.uuid4().hex}"
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{database}?options=-csearch_path%3D{schema}"


@contextmanager
def opened(url: str, clock: Callable[[], datetime] | None = None) -> Iterator[Store]:
    made = Store(url, clock)
    try:
        made.create()
        yield made
    finally:
        made.close()


@pytest.fixture
def state(url: str) -> Iterator[Store]:
    with opened(url) as made:
        yield made


@pytest.fixture
def other(url: str, state: Store) -> Iterator[Store]:
    """Another process's store, as far as the lease can tell."""
    with opened(url) as made:
        yield made


def claimed(state: Store, slot: datetime | None = SLOT, job: str = "a") -> Claim:
    claim = state.claim(job, slot, "schedule")
    assert isinstance(claim, Claim)
    return claim


def end(state: Store, claim: Claim, how: str = "ok", **more: Any) -> Any:
    return state.finish(claim, how, reason="", counters={}, **more)


def set_lease(state: Store, **values: Any) -> None:
    with state.begin() as connection:
        connection.execute(sa.update(leases).values(**values))


class Forked:
    """A process of its own that does one thing with a store of its own, says the answer and waits to be killed."""

    def __init__(self, url: str, act: Callable[[Store], object], gate: tuple[int, int] | None = None) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            answer: object = "it failed"
            try:
                made = Store(url)
                if gate is not None:
                    os.close(gate[1])
                    os.read(gate[0], 1)  # returns at the end of the pipe: for all at the same moment
                answer = act(made)
            finally:
                os.write(write, f"{answer}\n".encode())
                signal.pause()
                os._exit(0)
        os.close(write)

    def answer(self) -> str:
        with os.fdopen(self._read) as stream:
            return stream.readline().strip()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def died_after(url: str, act: Callable[[Store], object]) -> str:
    """What a process said that did something and was killed."""
    process = Forked(url, act)
    try:
        return process.answer()
    finally:
        process.kill()


def race(url: str, acts: list[Callable[[Store], object]]) -> list[str]:
    """All at the same moment."""
    gate = os.pipe()
    racers = [Forked(url, act, gate) for act in acts]
    for end_of_gate in gate:
        os.close(end_of_gate)
    try:
        return [racer.answer() for racer in racers]
    finally:
        for racer in racers:
            racer.kill()


# --- claiming


def test_of_many_processes_exactly_one_gets_the_slot(url: str, state: Store) -> None:
    answers = race(url, [lambda made: type(made.claim("a", SLOT, "schedule")).__name__] * 6)
    assert sorted(answers) == ["Claim"] + ["Held"] * 5
    assert len(state.history("a")) == 1


def test_a_job_that_somebody_has_is_held_by_name(state: Store, other: Store) -> None:
    claimed(state)
    held = other.claim("a", SLOT, "schedule")
    assert isinstance(held, Held)
    assert held.pid == os.getpid()
    assert str(held) == f"held by pid {os.getpid()} on {held.host}"


def test_whoever_loses_the_race_records_nothing(state: Store, other: Store) -> None:
    claimed(state)
    other.claim("a", None, "manual")
    assert len(other.history()) == 1


def test_jobs_do_not_hold_each_other(state: Store, other: Store) -> None:
    claimed(state, job="a")
    assert isinstance(other.claim("b", SLOT, "schedule"), Claim)


def test_a_finished_run_gives_the_job_back_at_once(state: Store, other: Store) -> None:
    end(state, claimed(state, None))
    assert isinstance(other.claim("a", None, "manual"), Claim)


@pytest.mark.parametrize("how", ["ok", "partial", "failed", "skipped"])
def test_a_slot_that_was_run_is_taken(state: Store, other: Store, how: str) -> None:
    end(state, claimed(state), how)
    assert other.claim("a", SLOT, "schedule") == Taken()


def test_a_taken_slot_leaves_the_job_free(state: Store, other: Store) -> None:
    end(state, claimed(state))
    other.claim("a", SLOT, "schedule")
    assert isinstance(state.claim("a", None, "manual"), Claim)


def test_a_deferred_slot_gets_another_attempt(state: Store, other: Store) -> None:
    end(state, claimed(state), "deferred", not_before=SLOT + timedelta(minutes=1))
    second = claimed(other)
    end(other, second, "deferred", not_before=SLOT + timedelta(minutes=2))
    assert (second.attempt, claimed(state).attempt) == (2, 3)


def test_runs_that_a_person_asked_for_need_no_slot(state: Store) -> None:
    for _ in range(2):
        end(state, claimed(state, None))
    assert [run.slot for run in state.history()] == [None, None]


def test_a_lease_that_ran_out_is_free(state: Store, other: Store) -> None:
    claimed(state)
    set_lease(state, expires_at=datetime.now(UTC) - timedelta(seconds=5))
    assert isinstance(other.claim("a", None, "manual"), Claim)


def test_the_lease_of_a_killed_process_is_free_at_once(url: str, state: Store) -> None:
    process = Forked(url, claimed)
    try:
        assert process.answer().startswith("Claim")
        assert isinstance(state.claim("a", None, "manual"), Held)
    finally:
        process.kill()
    assert isinstance(state.claim("a", None, "manual"), Claim)


def test_a_reused_pid_does_not_keep_a_lease(state: Store, other: Store) -> None:
    claimed(state)
    set_lease(state, pid_started=1.0)
    assert isinstance(other.claim("a", None, "manual"), Claim)


def test_the_lease_of_a_foreign_host_counts_whatever_its_pid(state: Store, other: Store) -> None:
    claimed(state)
    set_lease(state, machine="elsewhere/pid:[1]", pid=2**22 - 1, pid_started=1.0)
    assert isinstance(other.claim("a", None, "manual"), Held)


# --- fencing


def overtaken(state: Store, other: Store) -> tuple[Claim, Claim]:
    """A run whose lease ran out, and the run that took its job."""
    old = claimed(state)
    set_lease(state, expires_at=datetime.now(UTC) - timedelta(seconds=5))
    return old, claimed(other, SLOT + timedelta(hours=1))


def test_a_holder_can_renew(state: Store) -> None:
    claim = claimed(state)
    set_lease(state, expires_at=datetime.now(UTC) + timedelta(seconds=1))
    assert state.renew(claim)
    with state.reading() as connection:
        until = connection.execute(sa.select(leases.c.expires_at)).scalar_one()
    assert until > datetime.now(UTC) + timedelta(seconds=claims.LEASE_S - 10)


def test_a_holder_that_was_overtaken_cannot_renew(state: Store, other: Store) -> None:
    old, _ = overtaken(state, other)
    assert not state.renew(old)


def test_the_run_of_a_holder_that_was_overtaken_is_lost(state: Store, other: Store) -> None:
    old, new = overtaken(state, other)
    assert {run.id: run.state for run in state.history()} == {old.run_id: "lost", new.run_id: "running"}


def test_a_late_writer_cannot_change_its_lost_run(state: Store, other: Store) -> None:
    old, _ = overtaken(state, other)
    assert end(state, old, "ok").state == "lost"


def test_a_late_writer_does_not_give_away_the_lease_of_the_next(state: Store, other: Store) -> None:
    old, new = overtaken(state, other)
    end(state, old)
    assert other.renew(new)
    assert isinstance(state.claim("a", None, "manual"), Held)


def test_epochs_only_grow(state: Store, other: Store) -> None:
    epochs = []
    for turn in (state, other, state):
        claim = claimed(turn, None)
        epochs.append(claim.epoch)
        end(turn, claim)
    assert epochs == sorted(set(epochs))


# --- recovery


def test_the_run_of_a_dead_process_is_recorded_as_crashed(url: str, state: Store) -> None:
    died_after(url, claimed)
    assert state.recover("a") == 1
    [run] = state.history()
    assert (run.state, run.reason) == ("crashed", "the process ended without a word")


def test_what_the_supervisor_saw_is_recorded(url: str, state: Store) -> None:
    run_id = int(died_after(url, lambda made: claimed(made).run_id))
    state.recover("a", "signal 9 (SIGKILL)", "timeout", run_id, datetime.now(UTC) + timedelta(hours=1))
    [run] = state.history()
    assert (run.state, run.reason) == ("timeout", "signal 9 (SIGKILL)")
    assert run.finished_at is not None
    assert run.finished_at <= datetime.now(UTC) + timedelta(seconds=5)


def test_the_run_of_a_foreign_host_with_an_expired_lease_is_lost(state: Store, other: Store) -> None:
    claimed(state)
    past = datetime.now(UTC) - timedelta(seconds=5)
    set_lease(state, machine="elsewhere/pid:[1]", expires_at=past)
    assert other.recover("a") == 1
    assert [(run.state, run.reason) for run in other.history()] == [("lost", "its lease ran out")]


@pytest.fixture
def uptime(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """This machine's uptime."""
    passed = [0.0]
    monkeypatch.setattr(claims, "boottime", lambda: passed[0])
    return passed


def ahead(state: Store, seconds: float = 0.0) -> None:
    """The lease is one of a dead host elsewhere, whose clock was years ahead."""
    far = datetime.now(UTC) + timedelta(days=900, seconds=seconds)
    set_lease(state, machine="elsewhere/pid:[1]", expires_at=far)


def test_a_lease_by_a_clock_that_was_years_ahead_does_not_block_for_years(
    state: Store, other: Store, uptime: list[float]
) -> None:
    claimed(state)
    ahead(state)
    assert isinstance(other.claim("a", None, "manual"), Held)
    uptime[0] = 59
    assert isinstance(other.holder("a"), Held)
    uptime[0] = 61
    assert other.holder("a") is None
    assert isinstance(other.claim("a", None, "manual"), Claim)


def test_a_lease_that_is_renewed_by_a_clock_years_ahead_is_left_alone(
    state: Store, other: Store, uptime: list[float]
) -> None:
    claimed(state)
    for turn in range(50):
        ahead(state, 20.0 * turn)
        assert isinstance(other.holder("a"), Held)
        uptime[0] += 20


def test_a_lease_is_judged_by_what_its_row_says_not_by_who_looks(
    state: Store, other: Store, uptime: list[float]
) -> None:
    state.set_lease(300)
    claim = claimed(state)
    for lease_s in (5, 3600):
        other.set_lease(lease_s)
        assert isinstance(other.holder("a"), Held)
    uptime[0] = 299
    assert isinstance(other.claim("a", None, "manual"), Held)
    assert other.recover("a") == 0
    uptime[0] = 301
    assert other.holder("a") is None
    assert state.renew(claim)
    assert isinstance(other.holder("a"), Held)


def test_a_lease_that_was_taken_before_a_reload_is_renewed_for_as_long_as_before(state: Store) -> None:
    claim = claimed(state)
    state.set_lease(1)
    assert state.renew(claim)
    with state.reading() as connection:
        until = connection.execute(sa.select(leases.c.expires_at)).scalar_one()
    assert until > datetime.now(UTC) + timedelta(seconds=claims.LEASE_S - 10)


@pytest.mark.parametrize("step_s", [30, 3600])
@pytest.mark.parametrize("looked_at_it", [True, False])
def test_a_clock_that_is_set_forward_frees_no_job(
    url: str, uptime: list[float], step_s: float, looked_at_it: bool
) -> None:
    clock = Clock()

    def passes(seconds: float) -> None:
        clock.advance(seconds)
        uptime[0] += seconds

    with opened(url, clock) as state, opened(url, clock) as other:
        state.set_lease(20)
        claim = claimed(state)
        set_lease(state, machine="elsewhere/pid:[1]")
        other.holder("a" if looked_at_it else "b")
        with other.reading() as connection:
            other.now(connection)
        clock.advance(step_s)
        passes(5)
        assert isinstance(other.holder("a"), Held)
        assert isinstance(other.claim("a", None, "manual"), Held)
        assert other.recover("a") == 0
        assert state.renew(claim)
        assert isinstance(other.holder("a"), Held)
        passes(19)
        assert isinstance(other.claim("a", None, "manual"), Held)
        passes(2)
        assert isinstance(other.claim("a", None, "manual"), Claim)


@pytest.mark.parametrize("machine", ["here", "elsewhere/pid:[1]"])
def test_a_run_that_goes_on_is_left_alone(state: Store, other: Store, machine: str) -> None:
    claim = claimed(state)
    if machine != "here":
        set_lease(state, machine=machine)
    assert other.recover("a") == 0
    assert state.renew(claim)
    assert [run.state for run in other.history()] == ["running"]


def test_recovery_leaves_other_jobs_alone(url: str, state: Store) -> None:
    died_after(url, lambda made: claimed(made, job="b"))
    assert state.recover("a") == 0
    assert [run.state for run in state.history()] == ["running"]


def test_recovery_of_an_unknown_job_does_nothing(state: Store) -> None:
    assert state.recover("never-seen") == 0


# --- records


def test_a_record_comes_back_as_it_was_written(state: Store) -> None:
    claim = claimed(state)
    later = datetime(2026, 3, 29, 2, 30, 0, 123000, tzinfo=UTC)
    state.finish(claim, "deferred", reason="grüße €", counters={"n": 1}, code=75, not_before=later)
    [run] = state.history("a")
    assert (run.slot, run.not_before, run.reason, run.counters, run.code) == (SLOT, later, "grüße €", {"n": 1}, 75)
    assert run.started_at is not None
    assert run.started_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("text", ["nul \x00", "half \udcff", "escape \x1b[31m"], ids=["nul", "half a pair", "escape"])
def test_any_text_can_be_recorded(state: Store, text: str) -> None:
    record = state.finish(claimed(state), "failed", reason=text, counters={})
    assert record.state == "failed"
    assert text.split()[0] in record.reason


@pytest.mark.parametrize("text", ["nul \x00 byte", "lone surrogate \udcff"], ids=["nul", "sur"])
def test_any_item_can_be_put_aside(state: Store, text: str) -> None:
    claim = claimed(state)
    state.put_aside(claim.run_id, text, text, text, {"text": text})
    [item] = state.quarantined(claim.run_id)
    assert item["reason"].startswith(text.split()[0])
    assert item["payload"]["text"].startswith(text.split()[0])


def test_the_newest_scheduled_run_ignores_those_a_person_asked_for(state: Store) -> None:
    for slot in (SLOT, SLOT + timedelta(hours=1), None):
        end(state, claimed(state, slot))
    last = state.last_scheduled("a")
    assert last is not None
    assert last.slot == SLOT + timedelta(hours=1)


def test_the_newest_finished_run_is_not_the_running_one(state: Store) -> None:
    first = claimed(state)
    end(state, first)
    claimed(state, None)
    last = state.last_finished("a")
    assert last is not None
    assert last.id == first.run_id


def test_a_slot_passed_over_is_recorded_once(state: Store) -> None:
    for _ in range(2):
        state.record("a", SLOT, "schedule", "skipped", "missed")
    assert [(run.state, run.reason) for run in state.history()] == [("skipped", "missed")]


def test_quarantine_keeps_order_and_payload(state: Store) -> None:
    claim = claimed(state)
    payloads: list[Any] = [{"price": "1.10", "list": [1, None, "ü"]}, None, "text"]
    for number, payload in enumerate(payloads):
        state.put_aside(claim.run_id, "product", str(number), "why", payload)
    assert [row["payload"] for row in state.quarantined(claim.run_id)] == payloads
    assert state.quarantined(claim.run_id + 1) == []


# --- pruning


def test_pruning_forgets_old_runs_with_their_quarantine(state: Store) -> None:
    for hour in range(3):
        claim = claimed(state, SLOT + timedelta(hours=hour))
        state.put_aside(claim.run_id, "e", "k", "r", None)
        end(state, claim)
    assert prune(state, -10) == 2
    with state.reading() as connection:
        left = [row.run for row in connection.execute(sa.select(quarantine.c.run))]
    assert left == [run.id for run in state.history()]


def test_pruning_keeps_the_newest_scheduled_run_of_each_job(state: Store) -> None:
    for job in ("a", "b"):
        for slot in (SLOT, SLOT + timedelta(hours=1), None):
            end(state, claimed(state, slot, job))
    prune(state, -10)
    assert {(run.job, run.slot) for run in state.history()} == {(j, SLOT + timedelta(hours=1)) for j in ("a", "b")}


def test_pruning_keeps_what_runs_and_what_is_young(state: Store) -> None:
    end(state, claimed(state, None))
    claimed(state, None)
    assert prune(state, 3600) == 0
    assert prune(state, -10) == 1
    assert [run.state for run in state.history()] == ["running"]


# --- the store itself


def test_eight_processes_can_create_it_at_once(url: str) -> None:
    def create(name: str) -> Callable[[Store], object]:
        return lambda made: (made.create(), claimed(made, job=name).attempt)

    assert race(url, [create(f"job{n}") for n in range(8)]) == ["(None, 1)"] * 8
    with opened(url) as state:
        assert len(state.history()) == 8


def test_a_turned_clock_is_the_time_of_every_record(url: str) -> None:
    at = datetime(2020, 1, 1, tzinfo=UTC)
    with opened(url, lambda: at) as state:
        record = end(state, claimed(state))
    assert (record.started_at, record.finished_at) == (at, at)


def test_postgresql_gives_its_own_time(postgres_url: str) -> None:
    with opened(postgres_url) as state, state.reading() as connection:
        first = state.now(connection)
        connection.execute(sa.text("SET TIME ZONE 'Asia/Tokyo'"))
        assert timedelta(0) < state.now(connection) - first < timedelta(seconds=5)
        assert state.now(connection).utcoffset() == timedelta(0)


def test_a_time_without_a_zone_never_reaches_the_store(state: Store) -> None:
    with pytest.raises(ValueError, match="a time without a zone"), state.begin() as connection:
        connection.execute(sa.select(runs).where(runs.c.slot == SLOT.replace(tzinfo=None)))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:canary-4711@127.0.0.1:1/db",
        "postgresql://user:canary-4711@127.0.0.1:1/db?connect_timeout=2",
        "sqlite:////proc/nowhere/state.db?x=canary-4711",
        "sqlite:////dev/null/state.db?x=canary-4711",
    ],
)
def test_a_store_that_is_away_says_so_without_its_password(url: str) -> None:
    with pytest.raises(Unreachable, match="state store") as caught, opened(url):
        pass
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("content", [b"this is no database, it is a text file " * 200, b""])
def test_a_file_that_is_no_database_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(content)
    if not content:
        with opened(f"sqlite:///{path}") as state:  # an empty file is an empty database
            assert state.history() == []
        return
    with (
        pytest.raises(Unreachable, match=f"state store .*{path}.*: file is not a database"),
        opened(f"sqlite:///{path}"),
    ):
        pass


def test_a_store_that_only_reads_is_unreachable(postgres_url: str) -> None:
    """As after a failover, when the old primary has become a standby."""
    with opened(postgres_url) as state:
        claim = claimed(state)
        with state.begin() as connection:
            name = connection.execute(sa.text("SELECT current_database()")).scalar_one()
            connection.execute(sa.text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
        state.close()
        with pytest.raises(Unreachable, match="read-only"):
            state.renew(claim)


def test_connections_that_were_cut_are_replaced(postgres_url: str, postgres_server: Any) -> None:
    with opened(postgres_url) as state:
        claim = claimed(state)
        postgres_server.terminate_backends(postgres_url)
        assert state.renew(claim)


def test_a_server_that_is_killed_in_a_transaction_is_unreachable(postgres_url: str, postgres_server: Any) -> None:
    def ask(state: Store) -> None:
        with state.begin() as connection:
            connection.execute(sa.text("SELECT 1"))
            postgres_server.terminate_backends(postgres_url)
            connection.execute(sa.text("SELECT 1"))

    with opened(postgres_url) as state, pytest.raises(Unreachable, match="state store"):
        ask(state)


@pytest.mark.parametrize("url", ["mysql://u:canary-4711@h/db", "canary-4711", "postgresql://u:canary-4711@h:port/db"])
def test_a_url_that_cannot_be_used_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(StellerdError) as caught:
        Store(url)
    assert caught.value.exit_code == 78
    assert "canary" not in str(caught.value)


def test_a_database_file_of_ours_is_for_us_alone(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/new/folder/state.db"):
        pass
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o777 == 0o700


# --- what a job remembers


@pytest.mark.parametrize("value", [0, None, "text", [1, 2.5, {"a": None}], {"k": "ü"}, True])
def test_a_cursor_gives_back_what_it_was_given(state: Store, value: Any) -> None:
    Cursor(state, "a").set("key", value)
    assert Cursor(state, "a").get("key", "nothing") == value


NO_JSON = {"nan": float("nan"), "infinity": [1, {"a": float("-inf")}], "decimal": Decimal(1), "object": object(),
           "tuple key": {(1, 2): 3}}  # fmt: skip


@pytest.mark.parametrize("value", NO_JSON.values(), ids=NO_JSON.keys())
def test_a_cursor_refuses_what_would_not_come_back(state: Store, value: Any) -> None:
    for act in (Cursor(state, "a").set, Cursor(state, "a").setdefault):
        with pytest.raises((ValueError, TypeError), match="cursor 'key': only JSON can be remembered: "):
            act("key", value)
    assert Cursor(state, "a").get("key", "nothing") == "nothing"


@pytest.mark.parametrize("key", ["nul\0", "half \udcff", 5, None])
def test_a_cursor_refuses_a_key_that_a_database_cannot_hold(state: Store, key: Any) -> None:
    cursor = Cursor(state, "a")
    for act in (cursor.get, lambda key: cursor.set(key, 1), lambda key: cursor.setdefault(key, 1)):
        with pytest.raises((ValueError, TypeError), match="cursor"):
            act(key)


@pytest.mark.parametrize(
    "value", ["nul \0", "half \udcff", 2**63 - 1, [10**400], -0.0, 1e308, ["\0"], {"\0": {"ü": None}}], ids=ascii
)
def test_a_cursor_keeps_all_other_json(state: Store, value: Any) -> None:
    Cursor(state, "a").set("schlüssel 日本", value)
    assert Cursor(state, "a").get("schlüssel 日本") == value


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def test_a_cursor_refuses_what_is_nested_too_deeply(state: Store) -> None:
    with pytest.raises(ValueError, match="cursor 'key': the value is nested too deeply"):
        Cursor(state, "a").set("key", nested(100_000))


def test_a_cursor_refuses_a_number_that_sqlite_would_round(state: Store) -> None:
    with pytest.raises(ValueError, match="more than 64 bits"):
        Cursor(state, "a").set("key", 2**63)


ANY_PAYLOAD = {
    "nan": ({"price": float("nan"), "a": [float("inf"), float("-inf")]},
            {"price": "NaN", "a": ["Infinity", "-Infinity"]}),
    "decimal": ({"price": Decimal("1.10")}, {"price": "1.10"}), "time": ([SLOT], [str(SLOT)]),
    "bytes": (b"\0\xff", "b'\\x00\\xff'"), "nul": ({"\0": "\0"}, {"\0": "\0"}), "half": ("\ud800", "\ud800"),
}  # fmt: skip


@pytest.mark.parametrize(("payload", "kept"), ANY_PAYLOAD.values(), ids=ANY_PAYLOAD.keys())
def test_any_payload_can_be_put_aside(state: Store, payload: Any, kept: Any) -> None:
    claim = claimed(state)
    state.put_aside(claim.run_id, "e", "k", "r", payload)
    assert [item["payload"] for item in state.quarantined(claim.run_id)] == [kept]
    record = state.finish(claim, "ok", reason="", counters={"n": payload})
    assert record.counters == {"n": kept}


@pytest.mark.parametrize("payload", [nested(100_000), {(1, 2): 3}, [10**5000]], ids=["deep", "tuple key", "digits"])
def test_a_payload_that_cannot_be_kept_is_put_aside_with_the_reason(state: Store, payload: Any) -> None:
    claim = claimed(state)
    state.put_aside(claim.run_id, "e", "k", "r", payload)
    [item] = state.quarantined(claim.run_id)
    assert item["payload"].startswith("not kept, since it is no JSON: ")


def test_a_cursor_has_a_default_and_only_its_own_job(state: Store) -> None:
    Cursor(state, "a").set("key", 1)
    assert Cursor(state, "b").get("key", "nothing") == "nothing"


def test_a_cursor_keeps_the_newest_value(state: Store, other: Store) -> None:
    Cursor(state, "a").set("key", 1)
    Cursor(other, "a").set("key", 2)
    assert Cursor(state, "a").get("key") == 2


def test_of_two_defaults_the_first_one_stays(state: Store, other: Store) -> None:
    assert Cursor(state, "a").setdefault("key", 1) == 1
    assert Cursor(other, "a").setdefault("key", 2) == 1


# --- which process is which


def test_this_process_is_not_gone() -> None:
    me = hosts.this_process()
    assert not hosts.is_gone(me["machine"], me["pid"], me["pid_started"])


def test_a_zombie_is_gone() -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    started = hosts.started(pid)
    assert started is not None
    assert not hosts.is_gone(hosts.machine(), pid, started)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert hosts.is_gone(hosts.machine(), pid, started)
    finally:
        os.waitpid(pid, 0)


def test_a_process_with_brackets_in_its_name_is_found(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as process:
        started = hosts.started(process.pid)
        process.kill()
    assert started == json.loads(json.dumps(started))
    assert started is not None
    assert started > 0
