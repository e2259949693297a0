"""`stellerd db …` as an administrator uses it, and what the daemon says of a store of another version."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from daemon import QUIET, Daemon, job

from stellerd.schema import REVISION

TOML = "[jobs.it]\n"
PICKY = job("return Done()").replace(
    "    def run(",
    "    def database_problems(self, ctx):\n"
    '        yield \'table "Orders": no index for pending orders\', \'CREATE INDEX pending ON "Orders" ("Id");\'\n'
    "    def run(",
)


def outdate(folder: Path) -> None:
    """Make the store one of the first version."""
    with sqlite3.connect(folder / "state.db") as store:
        store.executescript(
            "DROP TABLE stellerd_version; CREATE TABLE stellerd_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);"
            "DROP TABLE operations; ALTER TABLE buckets DROP COLUMN override_rates;"
            "ALTER TABLE buckets DROP COLUMN override_until; ALTER TABLE buckets DROP COLUMN boot;"
            "ALTER TABLE buckets DROP COLUMN ahead;"
        )
    store.close()


def test_a_store_is_made_once(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, {"it": QUIET}, TOML)
    assert "were made" in daemon.cli("db", "init").stdout
    assert "up to date" in daemon.cli("db", "init").stdout
    assert "up to date" in daemon.cli("db", "upgrade").stdout


def test_all_is_well(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, {"it": QUIET}, TOML)
    daemon.cli("db", "init")
    result = daemon.cli("db", "check")
    assert (result.returncode, result.stdout) == (0, "state store: ok\nit: ok\n")


def test_a_jobs_problem_comes_with_the_sql_that_mends_it(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, {"it": PICKY}, TOML)
    result = daemon.cli("db", "check")
    assert result.returncode == 1
    assert '  table "Orders": no index for pending orders\n    CREATE INDEX pending' in result.stdout
    [store, it] = json.loads(daemon.cli("db", "check", "--json").stdout)["databases"]
    assert (store["of"], store["ok"], it["of"], it["ok"]) == ("state store", True, "it", False)
    assert it["problems"][0]["sql"].startswith("CREATE INDEX pending")


def test_a_database_that_cannot_be_reached_is_69(tmp_path: Path) -> None:
    away = job("return Done()").replace(
        "    def run(",
        "    def database_problems(self, ctx):\n        raise errors.Unreachable('no server')\n    def run(",
    )
    daemon = Daemon(tmp_path, {"it": away}, TOML)
    daemon.cli("db", "init")
    result = daemon.cli("db", "check")
    assert (result.returncode, result.stdout) == (69, "state store: ok\nit: no server\n")


def test_an_old_store_stops_its_jobs_until_it_is_upgraded(tmp_path: Path) -> None:
    with Daemon(tmp_path, {"it": QUIET}, TOML) as daemon:
        daemon.until_job("it", lambda entry: entry["last_run"])
        daemon.ask("stop", job="it")
        daemon.until_state("it", "STOPPED")
        outdate(tmp_path)
        daemon.ask("start", job="it")
        assert "run: stellerd db upgrade" in daemon.until_state("it", "FATAL")["reason"]
        refused = daemon.cli("history")
        assert (refused.returncode, "run: stellerd db upgrade" in refused.stderr) == (78, True)
        assert daemon.cli("db", "upgrade").stdout == f"0001 → {REVISION}\n"
        daemon.ask("reload")
        daemon.until_state("it", "RUNNING")
    assert json.loads(daemon.cli("history", "--json").stdout)["runs"]


def test_the_sql_of_an_upgrade_can_be_read_before_it_is_run(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, {"it": QUIET}, TOML)
    daemon.cli("db", "init")
    outdate(tmp_path)
    assert "DROP TABLE stellerd_meta" in daemon.cli("db", "sql").stdout
    assert "CREATE TABLE runs" in daemon.cli("db", "sql", "--from", "base").stdout
