"""What a second daemon does while the first one has the job: wait cheaply, take over at once when it may, name it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.hosts import WRITES_DOWN, Cluster, Host, cluster
from daemon import SERVICE, job, until

NOTES = """
from sqlalchemy import text
def note(ctx, what):
    row = {"epoch": ctx.epoch, "host": ctx.host, "slot": ctx.slot.isoformat(), "what": what, "at": time.time()}
    with ctx.engine("ledger").begin() as ledger:
        ledger.execute(text("INSERT INTO ledger VALUES (:epoch, :host, :slot, :what, :at)"), row)
"""
SERVES = NOTES + job("note(ctx, 'step')\nwhile not ctx.wait(60): pass", extra=SERVICE)
LONG = NOTES + job("note(ctx, 'step')\nif ctx.wait(60): raise errors.JobFailed('interrupted')\nnote(ctx, 'done')")
EVERYWHERE = NOTES + job("note(ctx, 'step')\nctx.wait(1)", every="1s", extra="concurrent = True")
DEFERS = NOTES + job(
    "note(ctx, 'step')\nif ctx.attempt == 1 and ctx.trigger != 'deferred':\n"
    "    from datetime import timedelta\n    return Deferred(ctx.now() + timedelta(seconds=8), 'the vendor asks')\n",
)


@pytest.fixture
def urls(postgres_server: Any) -> Iterator[tuple[str, str]]:
    """A store and a ledger."""
    made = postgres_server.create_database(), postgres_server.create_database()
    yield made
    for url in made:
        postgres_server.drop_database(url)


def on_both(them: Cluster, name: str, condition: Any) -> None:
    for host in them.hosts:
        host.until_job(name, condition)


def first(them: Cluster) -> Host:
    """The host that is at the job."""
    [row] = until(lambda: them.ledger.rows("step"))
    return next(host for host in them.hosts if host.name == row.host)


@pytest.mark.parametrize("plugin", [SERVES, LONG], ids=["service", "run"])
def test_a_stopping_host_hands_over_within_two_seconds(tmp_path: Path, urls: tuple[str, str], plugin: str) -> None:
    with cluster(tmp_path, *urls, {"one": plugin}, "[jobs.one]\n", lease="60s") as them:
        host = first(them)
        other = them.other(host)
        entry = other.until_job("one", lambda entry: "on " + host.name in json.dumps(entry))
        assert entry["run"] is None
        began = time.time()
        assert host.process is not None
        host.process.send_signal(signal.SIGTERM)
        took = them.seconds_until_step_of(other, began, 10)
        print(f"handed over in {took:.2f} s")
        assert took < 2
        assert host.process.wait(10) == 0


def test_a_run_that_is_stopped_is_deferred_and_gone_on_with(tmp_path: Path, urls: tuple[str, str]) -> None:
    with cluster(tmp_path, *urls, {"one": LONG}, "[jobs.one]\n", lease="60s") as them:
        host = first(them)
        host.ask("stop", job="one")
        them.seconds_until_step_of(them.other(host), time.time() - 5, 10)
        newest, before = them.store.history("one")[:2]
        assert (before.state, newest.state, newest.attempt, newest.slot) == ("deferred", "running", 2, before.slot)
        assert before.reason == "stopped before its end, to be gone on with: interrupted"


def test_a_service_of_a_host_that_is_cut_off_is_taken_over(tmp_path: Path, urls: tuple[str, str]) -> None:
    with cluster(tmp_path, *urls, {"one": SERVES}, "[jobs.one]\n", lease="2s") as them:
        host = first(them)
        began = time.time()
        host.proxy.hole()
        took = them.seconds_until_step_of(them.other(host), began, 12)
        print(f"taken over in {took:.2f} s")
        assert took < 2 + 5
        host.proxy.heal()
        host.until_job("one", lambda entry: "held by" in entry["reason"])
        states = [run.state for run in reversed(them.store.history("one"))]
        assert states[0] in ("ok", "lost"), "it stepped down, or its run was taken from it"
        assert states[-1] == "running"


def test_an_idle_cluster_and_a_waiting_standby_cost_next_to_nothing(
    tmp_path: Path, urls: tuple[str, str], postgres_server: Any
) -> None:
    database = urls[0].rsplit("/", 1)[1]
    count = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"

    def transactions_in(seconds: float) -> int:
        begin = postgres_server.execute(count, (database,))[0][0]
        time.sleep(seconds)  # the span itself is what is measured
        return int(postgres_server.execute(count, (database,))[0][0] - begin)

    quiet = job("return Done()")
    toml = "[jobs.one]\n[jobs.idle]\n"
    with cluster(tmp_path, *urls, {"one": SERVES, "idle": quiet}, toml, lease="60s") as them:
        host = first(them)
        on_both(them, "idle", lambda entry: entry["next_run"])
        them.other(host).until_job("one", lambda entry: "held by" in entry["reason"])
        until(lambda: transactions_in(1) <= 3)  # PostgreSQL tells of what was before with a delay
        assert transactions_in(5) <= 8  # the standby's one SELECT a second, of two services and two idle jobs


ATTENDED = job("while ctx.trigger == 'manual' and not ctx.wait(60): pass", every="2s")


@pytest.mark.parametrize(("plugin", "attended"), [(LONG.replace("'1h'", "'2s'"), False), (ATTENDED, True)])
def test_whoever_waits_for_a_run_asks_once_a_second_though_slots_pass(
    tmp_path: Path, urls: tuple[str, str], plugin: str, attended: bool
) -> None:
    with cluster(tmp_path, *urls, {"one": plugin}, "[jobs.one]\n", lease="60s") as them:
        if attended:
            until(lambda: them.store.history("one"))
            waiting = them.hosts
            command = [sys.executable, "-m", "stellerd.cli", "-c", str(waiting[0].config), "run-once", "one"]
            run = subprocess.Popen(command, env=waiting[0].env, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        else:
            run, waiting = None, [them.other(first(them))]
        try:
            for host in waiting:
                host.until_job("one", lambda entry: "held by" in json.dumps(entry))
            time.sleep(2.1)  # a slot has passed
            before = [host.proxy.selects for host in waiting]
            time.sleep(3)  # the span itself is what is measured
            assert max(host.proxy.selects - count for host, count in zip(waiting, before, strict=True)) <= 4
        finally:
            if run is not None:
                run.terminate()
                run.communicate(timeout=20)


def test_run_once_names_the_holder_and_waits_for_it(tmp_path: Path, urls: tuple[str, str]) -> None:
    with cluster(tmp_path, *urls, {"one": LONG}, "[jobs.one]\n", lease="60s") as them:
        host = first(them)
        other = them.other(host)
        pid = host.until_job("one", lambda entry: entry["run"])["pid"]
        refused = other.cli("run-once", "one")
        assert refused.returncode == 75
        assert f"one is busy: held by pid {pid} on {host.name}" in refused.stderr
        other.ask("stop", job="one")
        command = [*refused.args, "--wait=30s"]
        waiting = subprocess.Popen(command, env=other.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            host.ask("stop", job="one")
            until(lambda: [row for row in them.ledger.rows("step") if row.host == other.name])
        finally:
            waiting.terminate()
            waiting.communicate(timeout=20)
        assert {run.host for run in them.store.history("one")} == {host.name, other.name}


def test_a_concurrent_job_runs_on_every_host_at_once(tmp_path: Path, urls: tuple[str, str]) -> None:
    with cluster(tmp_path, *urls, {"one": EVERYWHERE}, "[jobs.one]\n") as them:
        for host in them.hosts:
            them.seconds_until_step_of(host, 0, 20)
        both = until(lambda: (lambda runs: runs if len(runs) >= 4 else None)(them.store.history("one")))
        assert {run.job for run in both} == {"one@north", "one@south"}
        listed = json.loads(them.hosts[0].cli("history", "one", "--json").stdout)["runs"]
        assert {run["job"] for run in listed} == {"one"}
        assert {run["host"] for run in listed} == {"north", "south"}
        assert [run.state for run in both if run.state not in ("ok", "running")] == []


def test_a_deferral_is_known_to_both_hosts_and_waited_for(tmp_path: Path, urls: tuple[str, str]) -> None:
    with cluster(tmp_path, *urls, {"one": DEFERS}, "[jobs.one]\n", lease="60s") as them:
        until(lambda: them.store.history("one") and them.store.history("one")[-1].state == "deferred")
        [deferred] = them.store.history("one")
        planned = [host.until_job("one", lambda entry: entry["next_run"] and entry["next_run"]["trigger"] == "deferred")
                   for host in them.hosts]  # fmt: skip
        assert {entry["next_run"]["why"] for entry in planned} == {"the vendor asks"}
        until(lambda: len(them.store.history("one")) == 2)
        again = them.store.history("one")[0]
        assert again.started_at is not None
        assert deferred.not_before is not None
        assert again.started_at >= deferred.not_before
        assert (again.slot, again.attempt) == (deferred.slot, 2)


def test_two_daemons_of_one_machine_share_a_file(tmp_path: Path) -> None:
    state, ledger = (f"sqlite:///{tmp_path}/{name}.db" for name in ("state", "ledger"))
    with cluster(tmp_path, state, ledger, {"ledger": WRITES_DOWN}, "[jobs.ledger]\n", "1s", False) as them:
        until(lambda: len(them.store.history("ledger", 100)) >= 3)
        [busy] = until(lambda: [host for host in them.hosts if host.job("ledger")["run"]][:1])
        busy.kill()
        since = time.time()
        until(lambda: them.ledger.rows("done", since), 7, "the other daemon takes over")
        busy.start_again()
        them.hosts[0].signal(signal.SIGSTOP)
        since = time.time()
        until(lambda: them.ledger.rows("done", since + 1.5), 12, "the other daemon takes over")
        them.hosts[0].signal(signal.SIGCONT)
        since = time.time()
        until(lambda: them.ledger.rows("done", since), 12)
        epochs = [row.epoch for row in them.ledger.rows("step")]
        assert epochs == sorted(epochs)
        ran = [run.slot for run in them.store.history("ledger", 1000) if run.state == "ok"]
        assert len(ran) == len(set(ran))
