"""What `check` says of a job is what the daemon says: one judgement."""

from __future__ import annotations

import json
from pathlib import Path

from daemon import QUIET, Daemon, job

BROKEN = {
    "no_limit": job("return Done()", extra="buckets = ('vendor',)"),
    "text_buckets": job("return Done()", extra="buckets = 'text'"),
    "cron": job("return Done()", extra="kind = 'cron'"),
    "no_call": QUIET.replace("@hookimpl", "TheJob.run = 5\n@hookimpl"),
    "no_run": QUIET.replace("@hookimpl", "del TheJob.run\n@hookimpl"),
    "no_context": QUIET.replace("def run(self, ctx)", "def run(self)"),
    "misspelt": job("return Done()", extra="evry = '5m'"),
    "negative": job("return Done()", extra="every = -300"),
    "raises": job("return Done()", extra="def __init__(self):\n    raise KeyError('no such thing')"),
    "settings": job("return Done()", extra="Settings = dict"),
}


def test_check_refuses_what_the_daemon_calls_fatal_and_with_the_same_words(tmp_path: Path) -> None:
    toml = "".join(f"[jobs.{name}]\n" for name in (*BROKEN, "good"))
    with Daemon(tmp_path, {**BROKEN, "good": QUIET}, toml) as daemon:
        done = daemon.cli("check", "--json")
        assert done.returncode == 78
        judged = {row["job"]: row for row in json.loads(done.stdout)["jobs"]}
        assert judged.pop("good")["ok"]
        for name, row in judged.items():
            assert (row["exit_code"], row["ok"]) == (78, False), row
            assert daemon.until_state(name, "FATAL")["reason"] == row["reason"]
            assert bool(row["detail"]) == (name == "raises")
        assert daemon.until_state("good", "RUNNING")


def test_a_limit_that_the_settings_make_necessary_is_missed_by_a_check_that_connects(tmp_path: Path) -> None:
    needs = "def needs(self, ctx):\n    return ('vendor',)"
    with Daemon(tmp_path, {"it": job("return Done()", extra=needs)}, "[jobs.it]\n") as daemon:
        assert daemon.cli("check").returncode == 0
        done = daemon.cli("check", "--connect")
        assert (done.returncode, 'it: needs the limit "vendor"' in done.stdout) == (78, True)


def test_a_module_that_cannot_be_preloaded_is_a_warning_of_both(tmp_path: Path) -> None:
    toml = (
        "[supervisor]\nsocket = 'control.sock'\nholds = 'holds.json'\npreload = ['json', 'no_such', 'a.b']\n[jobs.it]\n"
    )
    with Daemon(tmp_path, {"it": QUIET}, toml) as daemon:
        done = daemon.cli("check", "--json")
        warnings = json.loads(done.stdout)["warnings"]
        assert done.returncode == 0
        assert [line.rpartition("no module ")[2].split(" ")[0] for line in warnings] == ['"no_such"', '"a.b"']
        assert daemon.cli("check").stderr.count("stellerd: warning: ") == 2
        said = [line["module"] for line in daemon.logs() if line["event"] == "could not preload"]
        assert said == ["no_such", "a.b"]
