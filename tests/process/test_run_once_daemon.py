"""`run-once` beside a running daemon: the daemon runs it, whoever asks, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import QUIET, Daemon, alive, job, until

from stellerd import client

NOBODY = 65534
TELLS = job("return Skipped(f'{os.getppid()} {os.environ.get(\"ONLY\")} {ctx.dry_run}')")
STAYS = job(  # on a person's run: until it is asked to end; it has a grandchild
    """
    if ctx.trigger != 'manual':
        return
    child = subprocess.Popen(['sleep', '1000'])
    ctx.count(grandchild=child.pid)
    open(os.environ['GO'], 'w').write(f'{os.getpid()} {child.pid}')
    ctx.progress(1, 10, 'rows')
    while not ctx.wait(60): pass
    raise errors.JobFailed('cut')
    """
)
STUBBORN = job(
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(os.environ['GO'], 'w').write(f'{os.getpid()} 0')
    while True: time.sleep(1)
    """
)


class Visitor:
    """A client that asked for a run."""

    def __init__(self, daemon: Daemon, name: str, **fields: Any) -> None:
        self.connection = client.Connection(daemon.socket, 30.0)
        self.reply = self.connection.ask("run-once", job=name, **fields)

    def until(self, event: str) -> dict[str, Any]:
        """The next message of this kind."""
        while (message := self.connection.next()).get("event") != event:
            pass
        return message

    def close(self) -> None:
        self.connection.socket.close()


@pytest.fixture
def go(tmp_path: Path) -> Path:
    return tmp_path / "go"


@contextlib.contextmanager
def running(folder: Path, source: str, toml: str = "", **env: str) -> Iterator[Daemon]:
    """A daemon whose job "it" an operator stopped before it ran."""
    holds = folder / "holds.json"
    holds.write_text('{"stopped": ["it"], "paused": []}')
    with Daemon(folder, {"it": source}, f"[jobs.it]\n{toml}", env={"GO": str(folder / "go"), **env}) as daemon:
        yield daemon


def pids(go: Path) -> list[int]:
    """Of the job's process and its grandchild, once the run is on."""
    return [int(pid) for pid in until(lambda: go.exists() and go.read_text()).split() if int(pid)]


def last_run(daemon: Daemon) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(daemon.cli("history", "it", "--json").stdout)["runs"][0]
    return run


def test_the_daemon_is_its_parent_and_its_environment_the_daemons(tmp_path: Path) -> None:
    with running(tmp_path, TELLS, ONLY="the daemon's") as daemon:
        daemon.env.pop("ONLY")
        done = daemon.cli("run-once", "it", "--dry-run", "--json")
        shown = json.loads(done.stdout)
        assert (done.returncode, shown["exit_code"]) == (0, 0)
        [line] = done.stderr.splitlines()  # no word of another configuration
        assert json.loads(line)["event"] == "run finished"
        assert shown["run"]["reason"] == f"{daemon.pid} the daemon's True"
        assert shown["run"]["trigger"] == "dry-run"
        assert shown["run"] == last_run(daemon)
        assert daemon.job("it")["state"] == "STOPPED"
        daemon.config.write_text(daemon.config.read_text() + "every = '2h'\n")
        assert f"{daemon.config} was changed since it was read" in daemon.cli("run-once", "it").stderr
        other = tmp_path / "other.toml"
        other.write_text(daemon.config.read_text())
        daemon.config = other
        assert "under its own configuration" in daemon.cli("run-once", "it").stderr


def test_a_job_in_any_state_can_be_run(tmp_path: Path) -> None:
    crashes = job("if ctx.trigger != 'manual': os._exit(3)")
    broken = "[jobs.broken]\nevery = '1s'\nmax_restarts = 1\nbackoff = '10ms'\n"
    toml = f"[jobs.quiet]\n[jobs.held]\n{broken}[jobs.off]\nenabled = false\n"
    plugins = {"quiet": QUIET, "held": QUIET, "broken": crashes, "off": QUIET}
    (tmp_path / "holds.json").write_text('{"stopped": [], "paused": ["held"]}')
    with Daemon(tmp_path, plugins, toml) as daemon:
        states = {"quiet": "RUNNING", "held": "RUNNING", "broken": "FATAL", "off": None}
        for name, state in states.items():
            if state:
                daemon.until_state(name, state)
            result = Visitor(daemon, name, wait=10).until("result")
            assert (result["exit_code"], result["run"]["state"]) == (0, "ok"), name
        assert [entry["state"] for entry in daemon.status()["jobs"]] == ["RUNNING", "RUNNING", "FATAL"]
        assert daemon.job("held")["paused"]


def test_settings_progress_and_mistakes_go_over_the_socket(tmp_path: Path, go: Path) -> None:
    source = job("ctx.progress(1, 2, 'rows')\nctx.progress(2, 2, 'rows')\nreturn Skipped(f'{ctx.settings.n}')").replace(
        "class TheJob(Job):",
        "from stellerd import Settings\nclass S(Settings):\n    n: int = 1\nclass TheJob(Job):\n    Settings = S",
    )
    with running(tmp_path, source) as daemon:
        visitor = Visitor(daemon, "it", sets=["n=7"])
        assert visitor.until("run_started")["run"]["trigger"] == "manual"
        assert visitor.until("progress")["total"] == 2
        assert visitor.until("result")["run"]["reason"] == "7"
        wrong = Visitor(daemon, "it", sets=["n=seven"]).until("result")
        assert (wrong["exit_code"], wrong["run"]) == (78, None)
        assert "must be a whole number" in wrong["reason"]
        assert Visitor(daemon, "it", sets=["n=" + "9" * 5000]).until("result")["exit_code"] == 78
        for fields, said in (
            ({"job": "that"}, "no job"), ({"job": None}, "job: "), ({"sets": ["n"]}, "KEY=VALUE"),
            ({"sets": "n=1"}, "sets: "),
            ({"wait": float("nan")}, "wait: "), ({"wait": -1}, "wait: "),
        ):  # fmt: skip
            with pytest.raises(client.Refused, match=said) as caught:
                daemon.ask("run-once", **({"job": "it"} | fields))
            assert caught.value.exit_code == 2


def test_a_lost_client_ends_the_run_and_nothing_is_left(tmp_path: Path, go: Path) -> None:
    with running(tmp_path, STAYS) as daemon:
        visitor = Visitor(daemon, "it")
        mine = pids(go)
        [shown] = daemon.status()["run_once"]
        assert (shown["job"], shown["pid"], shown["uid"]) == ("it", mine[0], os.getuid())
        assert mine[0] in daemon.children()
        assert f"run-once it: running, pid {mine[0]}, user {os.getuid()}" in daemon.cli("status").stdout
        visitor.close()
        until(lambda: not daemon.status()["run_once"])
        assert not any(map(alive, mine))
        assert (last_run(daemon)["state"], last_run(daemon)["reason"]) == ("failed", "cut")


def test_ctrl_c_at_the_client_ends_the_run_and_exits_130(tmp_path: Path, go: Path) -> None:
    with running(tmp_path, STAYS) as daemon:
        arguments = [sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), "run-once", "it"]
        process = subprocess.Popen(arguments, env=daemon.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        mine = pids(go)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, json.loads(err)["event"]) == (130, "run finished")
        assert "it: failed in" in out
        assert not any(map(alive, mine))


def test_asked_twice_it_is_killed(tmp_path: Path, go: Path) -> None:
    with running(tmp_path, STUBBORN, "stop_grace = '1h'\n") as daemon:
        visitor = Visitor(daemon, "it")
        pids(go)
        visitor.connection.send("end")
        visitor.connection.send("end")
        result = visitor.until("result")
        assert (result["exit_code"], result["reason"], result["run"]["state"]) == (130, "interrupted", "crashed")


def test_a_killed_child_is_recorded_and_told(tmp_path: Path, go: Path) -> None:
    with running(tmp_path, STAYS) as daemon:
        visitor = Visitor(daemon, "it")
        mine = pids(go)
        os.kill(mine[0], signal.SIGKILL)
        result = visitor.until("result")
        assert (result["exit_code"], result["run"]["state"]) == (70, "crashed")
        assert "SIGKILL" in result["reason"]
        assert result["run"] == last_run(daemon)
        assert not any(map(alive, mine))


def test_what_the_run_prints_and_logs_reaches_whoever_asked(tmp_path: Path) -> None:
    """A dry run is there for its lines."""
    source = job("for n in range(3000): print('line', n)\nctx.log.info('logged', n=1)\nraise ValueError('a bug')")
    with running(tmp_path, source) as daemon:
        done = daemon.cli("run-once", "it")
        assert done.returncode == 70
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert [line["event"] for line in lines[:3000]] == [f"line {n}" for n in range(3000)]
        assert [line["event"] for line in lines[3000:]] == ["logged", "the plugin's run raised", "run finished"]
        assert "ValueError: a bug" in lines[-2]["traceback"]


def test_a_flood_of_lines_for_a_client_that_does_not_read_is_bounded(tmp_path: Path) -> None:
    with running(tmp_path, job("for n in range(200_000): print('x' * 100)")) as daemon:
        visitor = Visitor(daemon, "it")
        until(lambda: not daemon.status()["run_once"], timeout=60)
        messages = [message := visitor.connection.next()]
        while message["event"] != "result":
            messages.append(message := visitor.connection.next())
        assert sum(message.get("missed", 0) for message in messages) > 100_000
        assert sum(len(message.get("text", "")) for message in messages) < 4 * 1024 * 1024


def test_a_run_that_takes_too_long_times_out(tmp_path: Path, go: Path) -> None:
    with running(tmp_path, STUBBORN, "timeout = '200ms'\n") as daemon:
        result = Visitor(daemon, "it").until("result")
        assert (result["exit_code"], result["run"]["state"]) == (1, "timeout")
        assert result["run"]["reason"] == "timeout: the run took longer than 200ms"
        assert "most recent call first" in daemon.log_file.read_text()


def test_a_stopped_process_is_noticed(tmp_path: Path, go: Path) -> None:
    with running(tmp_path, STAYS, "heartbeat_timeout = '300ms'\n") as daemon:
        visitor = Visitor(daemon, "it")
        os.kill(pids(go)[0], signal.SIGSTOP)
        result = visitor.until("result")
        assert (result["exit_code"], result["run"]["state"]) == (1, "timeout")
        assert result["reason"].startswith("heartbeat: ")


@pytest.mark.parametrize("enabled", ["true", "false"])
def test_stop_ends_it(tmp_path: Path, go: Path, enabled: str) -> None:
    toml = f"enabled = {enabled}\n[jobs.other]\nplugin = 'it'\n"
    with running(tmp_path, STAYS, toml) as daemon:
        visitor = Visitor(daemon, "it")
        pids(go)
        daemon.ask("stop", job="it")
        assert visitor.until("ending")["reason"] == "stopped by an operator"
        result = visitor.until("result")
        assert (result["exit_code"], result["run"]["state"]) == (75, "failed")


def test_a_reload_without_the_job_ends_it(tmp_path: Path, go: Path) -> None:
    with running(tmp_path, STAYS) as daemon:
        visitor = Visitor(daemon, "it")
        pids(go)
        daemon.write("[jobs.other]\nplugin = 'it'\n")
        daemon.ask("reload")
        assert visitor.until("ending")["reason"] == "the job was removed from the configuration"
        assert visitor.until("result")["exit_code"] == 75


def test_a_daemon_that_stops_takes_it_along_and_says_so(tmp_path: Path, go: Path) -> None:
    with running(tmp_path, STAYS) as daemon:
        visitor = Visitor(daemon, "it")
        mine = pids(go)
        daemon.ask("shutdown")
        assert visitor.until("ending")["reason"] == "the daemon is stopping"
        assert visitor.until("result")["exit_code"] == 75
        assert daemon.process
        assert daemon.process.wait(20) == 0
        assert not any(map(alive, mine))


def test_a_daemon_that_was_killed_takes_it_along(tmp_path: Path, go: Path) -> None:
    with running(tmp_path, STAYS) as daemon:
        arguments = [sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), "run-once", "it"]
        process = subprocess.Popen(arguments, env=daemon.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        mine = pids(go)
        os.kill(daemon.pid, signal.SIGKILL)
        err = process.communicate(timeout=20)[1]
        assert process.returncode == 69
        assert "how the run ended is in: stellerd history it" in err
        until(lambda: not any(map(alive, mine)))


def test_of_two_at_once_one_is_busy_or_waits(tmp_path: Path, go: Path) -> None:
    with running(tmp_path, STAYS) as daemon:
        first = Visitor(daemon, "it")
        mine = pids(go)
        busy = Visitor(daemon, "it").until("result")
        assert (busy["exit_code"], busy["run"]) == (75, None)
        assert f"held by pid {mine[0]}" in busy["reason"]
        go.unlink()
        waiting = Visitor(daemon, "it", wait=60)
        until(lambda: len(daemon.status()["run_once"]) == 2)
        first.connection.send("end")
        assert first.until("result")["exit_code"] == 130
        assert waiting.until("run_started")
        pids(go)
        waiting.connection.send("end")
        assert waiting.until("result")["exit_code"] == 130


def test_a_plugin_that_breaks_the_protocol_harms_nobody(tmp_path: Path) -> None:
    breaks = job(
        """
        import gc
        from stellerd.channel import Channel
        for one in gc.get_objects():
            if isinstance(one, Channel):
                one.send('told', run={'made': 'up'})
                one.send('run_finished', id=1, state='ok', trigger='manual', reason='', counters={}, exit_code='x')
        time.sleep(60)
        """
    )
    with running(tmp_path, breaks) as daemon:
        result = Visitor(daemon, "it").until("result")
        assert (result["exit_code"], result["run"]["state"]) == (70, "crashed")
        assert result["reason"].startswith("protocol violation: ")
        assert daemon.status()["run_once"] == []


def test_a_refused_user_is_told_and_runs_nothing_itself(tmp_path: Path, go: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name, running(Path(name), STAYS, GO=str(go)) as daemon:
        Path(name).chmod(0o755)
        said = []
        for mode in (0o660, 0o666):  # may not connect; may connect
            daemon.socket.chmod(mode)
            done = as_nobody(daemon, "run-once", "it")
            assert (done.returncode, done.stdout) == (1, "")
            said.append(done.stderr)
        assert "permission denied" in said[0]
        assert said[1] == f"stellerd: run-once is for root and the user {getpass.getuser()}\n"
        assert not go.exists()


def as_nobody(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of another user; what it imports was imported before."""
    code = (
        "import os, sys, click\n"
        "from stellerd import attended, cli, client, config, store\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        f"sys.argv = ['stellerd', '-c', {str(daemon.config)!r}, *{arguments!r}]\ncli.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env=daemon.env, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_silent_visitor_may_stay(tmp_path: Path) -> None:
    """A hundred other clients do not push out the one that a run is for."""
    with running(tmp_path, job("while not os.path.exists(os.environ['GO']): time.sleep(0.01)")) as daemon:
        visitor = Visitor(daemon, "it")
        visitor.until("run_started")
        others = [client.Connection(daemon.socket) for _ in range(100)]
        assert daemon.status()["run_once"]
        (tmp_path / "go").touch()
        assert visitor.until("result")["exit_code"] == 0
        for other in others:
            other.socket.close()


def test_the_daemons_lines_tell_of_it(tmp_path: Path) -> None:
    with running(tmp_path, job("print('printed')\nctx.log.info('logged')")) as daemon:
        assert Visitor(daemon, "it").until("result")["exit_code"] == 0
        events = [(line["event"], line.get("job")) for line in daemon.logs()]
        for event in ("run-once", "printed", "logged", "run finished", "run-once ended"):
            assert (event, "it") in events


def test_a_terminal_that_goes_away_ends_a_run_without_daemon_gracefully(tmp_path: Path, go: Path) -> None:
    daemon = Daemon(tmp_path, {"it": STAYS}, "[jobs.it]\n", env={"GO": str(go)})
    arguments = [sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), "run-once", "it"]
    process = subprocess.Popen(arguments, env=daemon.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    mine = pids(go)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert not any(map(alive, mine))
    assert (last_run(daemon)["state"], last_run(daemon)["reason"]) == ("failed", "cut")


def test_a_killed_command_leaves_no_process(tmp_path: Path, go: Path) -> None:
    daemon = Daemon(tmp_path, {"it": STAYS}, "[jobs.it]\n", env={"GO": str(go)})
    arguments = [sys.executable, "-m", "stellerd.cli", "-c", str(daemon.config), "run-once", "it"]
    process = subprocess.Popen(arguments, env=daemon.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    mine = pids(go)
    process.kill()
    process.wait()
    until(lambda: not any(map(alive, mine)))
