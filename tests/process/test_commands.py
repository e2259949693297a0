"""The command line as an operator uses it: exit codes, messages, no traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from daemon import QUIET, WAITS, Daemon, alive, job, until


def command(folder: Path, plugins: dict[str, str], toml: str, **options: dict[str, str]) -> Daemon:
    """A configuration for commands that need no daemon."""
    return Daemon(folder, plugins, toml, **options)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("return Done({'stored': 3})", 0, "stored 3"),
        ("return Skipped('nothing to do')", 0, "skipped"),
        ("return Done(problems=('half of it failed',))", 1, "half of it failed"),
        ("raise errors.JobFailed('the vendor said no')", 1, "the vendor said no"),
        ("raise errors.Unreachable('no server at example:5432')", 69, "no server at example:5432"),
        ("os._exit(3)", 70, "exit code 3"),
        ("os.kill(os.getpid(), 11)", 70, "SIGSEGV"),
        ("raise ValueError('a bug')", 70, "ValueError: a bug"),
        ("ctx.limiter.acquire('b', ctx.wait); ctx.limiter.acquire('b', ctx.wait)", 75, "next slot at"),
    ],
)
def test_exit_codes_of_run_once(tmp_path: Path, body: str, code: int, said: str) -> None:
    toml = "[limits.b]\nrate = '1/1h'\n[jobs.it]\n"
    result = command(tmp_path, {"it": job(body)}, toml).cli("run-once", "it")
    assert result.returncode == code, result.stderr
    assert said in result.stdout
    assert ("Traceback" in result.stderr) == (code == 70 and "ValueError" in said)


def test_run_once_is_recorded_like_any_run(tmp_path: Path) -> None:
    daemon = command(tmp_path, {"it": job("ctx.count(n=5)")}, "[jobs.it]\n")
    shown = json.loads(daemon.cli("run-once", "it", "--json").stdout)
    [listed] = json.loads(daemon.cli("history", "--json").stdout)["runs"]
    assert shown["run"] == listed
    assert (listed["state"], listed["trigger"], listed["counters"]) == ("ok", "manual", {"n": 5})


def test_a_crash_in_run_once_leaves_no_open_record(tmp_path: Path) -> None:
    daemon = command(tmp_path, {"it": job("os._exit(3)")}, "[jobs.it]\n")
    daemon.cli("run-once", "it")
    [run] = json.loads(daemon.cli("history", "--json").stdout)["runs"]
    assert (run["state"], run["finished_at"] is None) == ("crashed", False)


def test_run_once_times_out(tmp_path: Path) -> None:
    hangs = job("signal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(1)")
    result = command(tmp_path, {"it": hangs}, "[jobs.it]\ntimeout = '300ms'\n").cli("run-once", "it")
    assert result.returncode == 1
    assert "timeout: the run took longer than 300ms" in result.stdout


def test_settings_can_be_changed_for_one_run(tmp_path: Path) -> None:
    source = job("return Skipped(f'{ctx.settings.n} {ctx.settings.name}')").replace(
        "class TheJob(Job):",
        "from stellerd import Settings\nclass S(Settings):\n    n: int = 1\n    name: str = 'x'\n"
        "class TheJob(Job):\n    Settings = S",
    )
    daemon = command(tmp_path, {"it": source}, "[jobs.it]\n")
    assert "skipped" in daemon.cli("run-once", "it").stdout
    assert "7 left" in daemon.cli("run-once", "it", "--set", "n=7", "--set", "name=left").stdout
    wrong = daemon.cli("run-once", "it", "--set", "n=seven")
    assert (wrong.returncode, "must be a whole number" in wrong.stderr) == (78, True)
    unknown = daemon.cli("run-once", "it", "--set", "nmae=7")
    assert 'did you mean "name"?' in unknown.stderr


def test_ctrl_c_ends_the_run_and_exits_130(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = """
        open(os.environ['PID'], 'w').write(str(os.getpid()))
        while not ctx.wait(60): pass
        raise errors.JobFailed('cut')
    """
    daemon = command(tmp_path, {"it": job(body)}, "[jobs.it]\n", env={"PID": str(pid_file)})
    arguments = [sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), "run-once", "it"]
    process = subprocess.Popen(arguments, env=daemon.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pid = int(until(lambda: pid_file.exists() and pid_file.read_text()))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert not alive(pid)


def test_a_busy_job_is_refused_by_name_or_waited_for(tmp_path: Path) -> None:
    body = "open(os.environ['GO'], 'w').close()\nwhile not os.path.exists(os.environ['END']): time.sleep(0.01)"
    env = {"GO": str(tmp_path / "go"), "END": str(tmp_path / "end")}
    with Daemon(tmp_path, {"it": job(body)}, "[jobs.it]\n", env=env) as daemon:
        until(lambda: (tmp_path / "go").exists())
        pid = daemon.job("it")["pid"]
        refused = daemon.cli("run-once", "it")
        assert refused.returncode == 75
        assert f"held by pid {pid} on" in refused.stderr
        arguments = [sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), "run-once", "it", "--wait"]
        waiting = subprocess.Popen(arguments, env=daemon.env, stdout=subprocess.PIPE, text=True)
        (tmp_path / "end").touch()
        assert "ok" in waiting.communicate(timeout=20)[0]
        assert waiting.returncode == 0


def test_a_limit_is_shared_by_the_daemon_and_run_once(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    body = "ctx.limiter.acquire('b', ctx.wait)\nopen(os.environ['CALLS'], 'a').write('x')"
    with Daemon(
        tmp_path, {"it": job(body)}, "[limits.b]\nrate='2/1h'\n[jobs.it]\n", env={"CALLS": str(calls)}
    ) as daemon:
        daemon.until_job("it", lambda entry: entry["last_run"])
        assert daemon.cli("run-once", "it").returncode == 0
        third = daemon.cli("run-once", "it")
        assert third.returncode == 75
        assert "next slot at" in third.stdout
        assert calls.read_text() == "xx"


def test_a_restarted_daemon_waits_for_the_rest_of_the_interval(tmp_path: Path) -> None:
    with Daemon(tmp_path, {"it": QUIET}, "[jobs.it]\nevery = '1h'\n") as daemon:
        first = daemon.until_job("it", lambda entry: entry["last_run"] and entry["next_run"])
        os.kill(daemon.pid, signal.SIGKILL)
    with Daemon(tmp_path, {"it": QUIET}, "[jobs.it]\nevery = '1h'\n") as daemon:
        second = daemon.until_job("it", lambda entry: entry["next_run"])
        assert second["last_run"] == first["last_run"]
        assert second["next_run"]["slot"] == first["next_run"]["slot"]


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[jobs.it", "stellerd.toml:6:9: "),
        ("[jobs.it]\nevry = '1m'\n", 'stellerd.toml:7:1: jobs.it.evry: unknown key, did you mean "every"?'),
        ("[jobs.it]\nevery = 5\n", "stellerd.toml:7:1: jobs.it.every: write it as text with a unit"),
        (
            "[databases.x]\nurl = { env = 'NOT_SET' }\n[jobs.it]\n",
            "databases.x.url: environment variable NOT_SET is not set",
        ),
        ("", "there is nothing to run"),
        ("[databases.x]\nurl = 'mysql://a:sesame-open@b/c'\n[jobs.it]\n", "mysql is not supported"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line_and_78(tmp_path: Path, toml: str, said: str) -> None:
    source = job("ctx.engine('x')") if "mysql" in toml else QUIET
    result = command(tmp_path, {"it": source}, toml).cli(*(["run-once", "it"] if "mysql" in toml else ["run"]))
    assert result.returncode == 78
    assert said in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert "sesame" not in result.stderr + result.stdout


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    result = command(tmp_path, {}, "[jobs.it]\nevry = '1m'\ntimeout = 'soon'\n[limits.a]\n").cli("check")
    assert [line.split(": ")[1] for line in result.stderr.removeprefix("stellerd: ").splitlines()] == [
        "jobs.it.evry", "jobs.it.timeout", "limits.a.rate",
    ]  # fmt: skip


def test_an_unreachable_state_store_is_69_without_the_password(tmp_path: Path) -> None:
    toml = "[state]\nurl = 'postgresql://me:sesame-open@127.0.0.1:1/x'\n[jobs.it]\n"
    result = command(tmp_path, {"it": QUIET}, toml).cli("run-once", "it")
    assert result.returncode == 69
    assert "127.0.0.1:1" in result.stderr
    assert "sesame" not in result.stderr
    assert "Traceback" not in result.stderr


def test_status_without_a_daemon_is_69_and_says_what_to_do(tmp_path: Path) -> None:
    result = command(tmp_path, {"it": QUIET}, "[jobs.it]\n").cli("status")
    assert result.returncode == 69
    assert "stellerd run" in result.stderr


def test_an_unknown_job_is_named_with_those_there_are(tmp_path: Path) -> None:
    result = command(tmp_path, {"it": QUIET}, "[jobs.it]\n").cli("run-once", "that")
    assert (result.returncode, 'no job "that"; there are: it' in result.stderr) == (2, True)


def test_check_names_each_job_and_connects_only_when_asked(tmp_path: Path) -> None:
    source = job("pass", extra="def check(self, ctx):\n    raise errors.Unreachable('no broker')")
    daemon = command(tmp_path, {"a": source, "b": QUIET}, "[jobs.a]\n[jobs.b]\n")
    assert daemon.cli("check").returncode == 0
    connected = daemon.cli("check", "--connect")
    assert connected.returncode == 69
    assert "a: no broker" in connected.stdout
    assert "b: ok" in connected.stdout


def test_plugins_list_imports_none(tmp_path: Path) -> None:
    result = command(tmp_path, {"boom": "raise SystemExit(9)"}, "").cli("plugins", "list")
    assert result.returncode == 0
    assert "boom" in result.stdout


def test_config_show_has_every_default_and_of_secrets_the_source(tmp_path: Path) -> None:
    source = QUIET.replace(
        "class TheJob(Job):",
        "from stellerd import Secret, Settings\nclass S(Settings):\n    key: Secret\n    n: int = 4\n"
        "class TheJob(Job):\n    Settings = S",
    )
    toml = "[jobs.it]\n[jobs.it.settings]\nkey = 'sesame-open'\n[databases.x]\nurl = {env = 'HOME'}\n"
    shown = json.loads(command(tmp_path, {"it": source}, toml).cli("config", "show", "--json").stdout)
    assert shown["jobs"]["it"]["settings"] == {"key": "***", "n": 4}
    assert shown["jobs"]["it"]["timeout"] == "1h"
    assert shown["databases"]["x"]["url"] == {"env": "HOME"}


def test_the_configuration_is_found_in_the_documented_order(tmp_path: Path) -> None:
    daemon = command(tmp_path, {"it": WAITS}, "[jobs.it]\n")
    base = [sys.executable, "-m", "stellerd.cli"]
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "stellerd.toml").write_text("[jobs.local]\n")

    def show(*arguments: str, **env: str) -> str:
        result = subprocess.run(
            [*base, *arguments, "config", "show"], cwd=tmp_path / "here", env=daemon.env | env, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        return result.stdout + result.stderr

    assert "[jobs.local]" in show()
    assert "[jobs.it]" in show(STELLERD_CONFIG=str(daemon.config))
    assert "[jobs.it]" in show("-c", str(daemon.config), STELLERD_CONFIG="stellerd.toml")
    assert "nowhere.toml: No such file" in show("-c", "nowhere.toml")
