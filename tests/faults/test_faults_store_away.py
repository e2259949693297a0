"""PostgreSQL is stopped under a running daemon: nothing is sent without a spent slot, and all goes on by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from daemon import QUIET, WAITS, Daemon, job, until
from grants import grants, in_any, keep_grants
from servers import PostgresServer

from stellerd.status import RunRecord
from stellerd.store import Store

LIMIT, WINDOW_S = 10, 1.0
CALLS = """
    for _ in range(8):
        ctx.http("vendor").get(ctx.settings.url)
    return Done({"calls": 8})
"""
SETTINGS = """
    from stellerd import Settings
    class Settings(Settings):
        url: str = ""
"""


@contextmanager
def vendor() -> Iterator[tuple[str, list[datetime]]]:
    """Answers everything at once; its URL, and when requests came."""
    seen: list[datetime] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(datetime.now(UTC))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def toml(state_url: str, vendor_url: str) -> str:
    jobs = "".join(
        f'[jobs.{name}]\nevery = "300ms"\n[jobs.{name}.settings]\nurl = "{vendor_url}"\n' for name in ("one", "two")
    )
    return f'[state]\nurl = "{state_url}"\n[limits.vendor]\nrate = "{LIMIT}/{WINDOW_S:g}s"\nmargin = "100ms"\n{jobs}'


def each_request_had_its_slot(seen: list[datetime], spent: list[datetime]) -> None:
    """The n-th request came after at least n slots were spent, and no window of the vendor's saw too many."""
    for number, at in enumerate(sorted(seen), start=1):
        assert sum(slot <= at for slot in spent) >= number, f"request {number} at {at} had no slot"
    assert in_any(WINDOW_S, sorted(seen)) <= LIMIT


def complaining(daemon: Daemon) -> set[str]:
    """The jobs whose log names the store as away."""
    return {str(line.get("job")) for line in daemon.logs() if "state store" in str(line.get("reason"))}


def without_a_store(folder: Path, away_s: float) -> list[RunRecord]:
    """All runs around an outage of so many seconds."""
    source = job(CALLS, extra=SETTINGS)
    with PostgresServer(durable=True) as server, vendor() as (url, seen):
        state_url = server.create_database()
        state = Store(state_url)
        state.create()
        keep_grants(state)
        with Daemon(folder, {"one": source, "two": source}, toml(state_url, url)) as daemon:
            until(lambda: len(seen) > LIMIT)
            server.stop("immediate")
            gone = datetime.now(UTC)
            until(lambda: {"one", "two"} <= complaining(daemon), away_s + 20)
            until(lambda: (datetime.now(UTC) - gone).total_seconds() > away_s, away_s + 5)
            back = datetime.now(UTC)
            server.start()
            for name in ("one", "two"):
                daemon.until_job(name, lambda entry: entry["last_run"] and entry["last_run"]["state"] == "ok"
                                 and entry["last_run"]["started_at"] > back.isoformat(), timeout=60)  # fmt: skip
            assert daemon.process
            assert daemon.process.poll() is None
            restarts = [daemon.job(name)["restarts"] for name in ("one", "two")]
        time_to_answer_s = 1.0  # a request that had its slot already may still be on its way
        assert [at for at in seen if time_to_answer_s < (at - gone).total_seconds() and at < back] == []
        each_request_had_its_slot(seen, grants(state))
        assert away_s > 30 or restarts == [0, 0]
        runs = state.history(limit=10_000)
        state.close()
    return runs


def test_a_store_that_is_away_for_seconds(tmp_path: Path) -> None:
    begin = time.monotonic()
    runs = without_a_store(tmp_path, 3.0)
    assert time.monotonic() - begin < 60
    cut = [run for run in runs if run.state not in ("ok", "running")]
    assert cut, "the outage met no run"
    assert {run.state for run in cut} <= {"failed", "deferred"}
    assert all("state store" in run.reason or "next slot at" in run.reason for run in cut), cut


def test_a_daemon_that_is_started_without_its_store_runs_its_jobs_a_second_after_it_is_back(tmp_path: Path) -> None:
    with PostgresServer() as server:
        url = server.create_database()
        server.stop()
        toml = f'[state]\nurl = "{url}"\n[jobs.it]\nbackoff = "100ms"\nsettle = "100ms"\n[jobs.web]\n'
        with Daemon(tmp_path, {"it": QUIET, "web": WAITS}, toml) as daemon:
            for name in ("it", "web"):
                daemon.until_job(name, lambda entry: entry["state"] == "RUNNING" and "state store" in entry["reason"])
            until(lambda: len([line for line in daemon.logs() if line["event"] == "the state store is away"]) >= 6)
            server.start()
            back = time.monotonic()
            daemon.until_job("it", lambda entry: entry["last_run"] and entry["last_run"]["state"] == "ok")
            daemon.until_job("web", lambda entry: entry["run"])
            took = time.monotonic() - back
            print(f"back in {took:.2f} s")
            assert took < 3
            assert [daemon.job(name)["restarts"] for name in ("it", "web")] == [0, 0]


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_store_that_is_away_for_a_minute(tmp_path: Path) -> None:
    runs = without_a_store(tmp_path, 60.0)
    cut = [run for run in runs if run.state not in ("ok", "running")]
    assert {run.state for run in cut} <= {"failed", "deferred", "crashed", "lost"}
    assert all(run.reason for run in cut), cut
