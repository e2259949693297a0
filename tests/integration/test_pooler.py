"""The store, the limiter and whole jobs behind PgBouncer in transaction mode."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import sqlalchemy as sa
from daemon import Daemon, job, until
from grants import grants, in_any, keep_grants
from pooler import POOL_SIZE, PgBouncer

from stellerd import database
from stellerd.durations import parse_rate
from stellerd.limiter import Limit, Limiter
from stellerd.store import Claim, Cursor, Store


def test_clients_have_no_session_of_their_own(pgbouncer: PgBouncer) -> None:
    """What the other tests here stand on."""
    url = pgbouncer.url().replace("+psycopg", "")
    clients = [psycopg.connect(url, autocommit=True, prepare_threshold=None) for _ in range(POOL_SIZE * 3)]
    sessions = {row[0] for client in clients for row in client.execute("SELECT pg_backend_pid()")}
    for client in clients:
        client.close()
    assert len(sessions) <= POOL_SIZE


def in_processes(count: int, work: Callable[[], None]) -> list[int]:
    """Exit codes of so many forked processes."""
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_many_processes_create_the_store_and_keep_a_limit(pooled_url: str) -> None:
    assert in_processes(8, Store(pooled_url).create) == [0] * 8
    state = Store(pooled_url)
    keep_grants(state)
    ends = time.monotonic() + 2.5

    def hammer() -> None:
        bucket = Limiter(Store(pooled_url), {"b": Limit((parse_rate("20/1s"),))})
        while time.monotonic() < ends:
            if bucket.try_acquire("b") is not None:
                time.sleep(0.01)

    assert in_processes(POOL_SIZE * 3, hammer) == [0] * (POOL_SIZE * 3)
    assert 40 <= len(grants(state)) <= 60
    assert in_any(1.0, grants(state)) <= 20
    state.close()


def test_runs_are_claimed_once(pooled_url: str) -> None:
    state = Store(pooled_url)
    state.create()
    slot = datetime(2026, 3, 29, tzinfo=UTC)

    def claim() -> None:
        mine = Store(pooled_url)
        claimed = mine.claim("j", slot, "schedule")
        if isinstance(claimed, Claim):
            mine.renew(claimed)
            Cursor(mine, "j").set("claims", Cursor(mine, "j").get("claims", 0) + 1)
            mine.finish(claimed, "ok", reason="", counters={"n": 1})

    assert in_processes(6, claim) == [0] * 6
    assert [run.state for run in state.history()] == ["ok"]
    assert Cursor(state, "j").get("claims") == 1
    state.close()


def test_an_engine_of_a_job_prepares_nothing(pooled_url: str) -> None:
    engine = database.open_engine(pooled_url, "databases.x")
    try:
        for n in range(20):  # psycopg prepares a statement that it sees for the fifth time
            with database.transaction(engine, "databases.x") as connection:
                assert connection.execute(sa.select(sa.literal(n))).scalar_one() == n
    finally:
        engine.dispose()


def test_whole_jobs_run_behind_it(pooled_url: str, tmp_path: Path) -> None:
    body = """
        assert ctx.limiter.try_acquire("b") is None
        with ctx.engine("x").begin() as connection:
            connection.exec_driver_sql("SELECT 1")
        ctx.cursor.set("n", ctx.cursor.get("n", 0) + 1)
        ctx.quarantine("e", "k", "r", {"a": 1})
        return Done({"n": ctx.cursor.get("n")})
    """
    names = [f"j{n}" for n in range(POOL_SIZE * 2)]
    toml = f'[state]\nurl = "{pooled_url}"\n[databases.x]\nurl = "{pooled_url}"\n[limits.b]\nrate = "100000/1s"\n'
    toml += "".join(f'[jobs.{name}]\nevery = "200ms"\n' for name in names)
    state = Store(pooled_url)
    state.create()
    with Daemon(tmp_path, {name: job(body) for name in names}, toml):
        until(lambda: [run.state for run in state.history(limit=500)].count("ok") >= 60)
        runs = state.history(limit=500)
    state.close()
    assert {run.state for run in runs} <= {"ok", "running"}, {run.reason for run in runs}
    assert {run.job for run in runs} == set(names)
