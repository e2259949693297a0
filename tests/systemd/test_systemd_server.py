"""The service where it is used: installed by README.md's own commands under a booted systemd, in the order of a life.

Each test goes on from where the one before it left the machine.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from daemon import until
from systemd.machine import Machine, readme_blocks, why_not

pytestmark = [pytest.mark.gate, pytest.mark.timeout(240)]

SECRETS = {
    "steller_database_url": "sqlite:////var/lib/stellerd/steller.db",
    "amqp_url": "spool:///var/lib/stellerd/spool",
    "bamboo_client_id": "server-client",
    "bamboo_client_secret": "server-password",
}
SETTINGS = """\
[supervisor]
admin_group = "stellerd-admin"
[databases.steller]
url = {{ credential = "steller_database_url" }}
[broker]
url = {{ credential = "amqp_url" }}
[limits.bamboo_catalog]
rate = "9/1h"
[jobs.bamboo_sandbox.settings]
port = {port}
client_id = "server-client"
client_secret = {{ credential = "bamboo_client_secret" }}
call_log = "/var/lib/stellerd/calls.jsonl"
catalog_calls = 9
[jobs.brand_sync]
every = "30m"
after = ["bamboo_sandbox"]
[jobs.brand_sync.settings]
base_url_v1 = "http://127.0.0.1:{port}"
base_url_v2 = "http://127.0.0.1:{port}"
client_id = {{ credential = "bamboo_client_id" }}
client_secret = {{ credential = "bamboo_client_secret" }}
create_tables = true
[jobs.order_queue]
every = "1h"
[jobs.order_queue.settings]
create_tables = true
[jobs.demo_orders]
every = "10s"
after = ["order_queue"]
[jobs.probe]
every = "1h"
enabled = false
"""
PROBE = '''
import contextlib, errno, os, socket, subprocess
from stellerd import Done, Job, hookimpl

def attempt(what, act):
    """The name of the error, or "done"."""
    try:
        act()
    except OSError as error:
        return f"{what}={errno.errorcode.get(error.errno, error.errno)}"
    return f"{what}=done"

def script(folder):
    path = f"{folder}/probe.sh"
    with open(path, "w") as file:
        file.write("#!/bin/sh\\nexit 0\\n")
    os.chmod(path, 0o700)
    subprocess.run([path], check=True)

class Probe(Job):
    def run(self, ctx):
        places = ("/", "/etc", "/etc/stellerd", "/etc/stellerd/stellerd.toml", "/opt/stellerd", "/usr/local/bin",
                  "/run", "/run/stellerd-admin/..", "/root", "/srv", "/var/log", "/dev", "/sys/fs/cgroup", "/proc/sys")
        for place in places:
            path = place if place.endswith(".toml") else f"{place}/written-by-a-job"
            print(attempt(f"write {path}", lambda: open(path, "a").close()))
        for folder in ("/var/lib/stellerd", "/tmp", "/var/tmp"):
            print(attempt(f"execute in {folder}", lambda: script(folder)))
        print(attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)))
        print(attempt("read another's credential store", lambda: os.listdir("/etc/credstore")))
        print(attempt("signal the manager", lambda: os.kill(1, 0)))
        ctx.log.error("the probe has found something wrong")
        ctx.log.warning("the probe warns")
        raise ValueError("the probe breaks")

@hookimpl
def stellerd_job():
    return Probe
'''


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted, with nothing on it."""
    if reason := why_not():
        # CI runs as root; there a test that was left out must not look like one that passed
        (pytest.fail if os.geteuid() == 0 and os.environ.get("CI") else pytest.skip)(reason)
    with Machine(tmp_path_factory.mktemp("machine")) as booted:
        yield booted


@pytest.fixture(scope="module")
def before(fresh: Machine) -> set[str]:
    """The listing of the fresh machine, with people on it."""
    fresh.run("for name in member admin stranger; do useradd --no-create-home $name; done")
    return listing(fresh)


@pytest.fixture(scope="module")
def machine(fresh: Machine, before: set[str]) -> Machine:
    """With stellerd on it, by README.md's commands."""
    program, credentials, unit, _ = readme_blocks("For a server")
    fresh.run(program, timeout=200)
    fresh.run(credentials, input="".join(f"{SECRETS[name]}\n" for name in SECRETS))
    fresh.run("/opt/stellerd/bin/pip install -q ./plugins/bamboo_sandbox", timeout=100)  # the stand-in for the vendor
    assert 'admin_group = "stellerd-admin"' in fresh.out("stellerd config show")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        text = SETTINGS.format(port=free.getsockname()[1])
    fresh.run("cat >/etc/stellerd/stellerd.toml", input=text)
    fresh.run(unit)
    return fresh


def status(machine: Machine) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(machine.out("stellerd status --json"))
    return said


def entry(machine: Machine, job: str) -> dict[str, Any]:
    done = machine.run("stellerd status --json", check=False)
    jobs = json.loads(done.stdout)["jobs"] if done.returncode == 0 else []
    return next((each for each in jobs if each["job"] == job), {})


def last_run(machine: Machine, job: str) -> dict[str, Any]:
    return entry(machine, job).get("last_run") or {}


def ended_since(machine: Machine, job: str, before: int) -> dict[str, Any] | None:
    """The last run, once one that is newer than this has ended."""
    run = last_run(machine, job)
    return run if run.get("id", before) > before else None


def shown(machine: Machine, key: str) -> str:
    """A property of the service."""
    return machine.out(f"systemctl show --value --property={key} stellerd")


def pids(machine: Machine) -> set[int]:
    """Every process of the service, as PID 1 counts them."""
    group = machine.run(
        "cat /sys/fs/cgroup$(systemctl show --value -p ControlGroup stellerd)/cgroup.procs", check=False
    )
    return {int(pid) for pid in group.stdout.split()}


def catalog_calls(machine: Machine) -> list[dict[str, Any]]:
    """The calls of the catalogue that reached the vendor."""
    lines = machine.run("cat /var/lib/stellerd/calls.jsonl", check=False).stdout.splitlines()
    return [call for call in map(json.loads, lines) if call["endpoint"].startswith("catalog")]


def settings(machine: Machine, *changes: tuple[str, str]) -> None:
    """Edit the settings in place, as an editor does."""
    text = machine.out("cat /etc/stellerd/stellerd.toml") + "\n"
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    machine.run("cat >/etc/stellerd/stellerd.toml", input=text)


def listing(machine: Machine) -> set[str]:
    """What an installation could leave behind: paths, owners and modes; users and groups.

    But for the backups that useradd makes of its tables, the journal, and the clone itself.
    """
    skip = "-name '*-' -o -name .pwd.lock -o -path '/run/systemd/*' -o -path '/run/log/*' -o -name 'systemd-private-*'"
    files = f"find /etc /opt /usr/local /var/lib /var/tmp /run /tmp \\( {skip} \\) -prune -o -printf '%p %u %g %m\\n'"
    return {*machine.out(files).splitlines(), *machine.out("getent passwd; getent group").splitlines()}


# --- the installation


def test_what_was_installed_is_for_those_it_is_meant_for(machine: Machine) -> None:
    facts = machine.out(
        "stat -c '%n %U:%G %a' /etc/stellerd /etc/stellerd/* /etc/credstore /etc/credstore/* /run/stellerd*"
    )
    assert set(facts.splitlines()) == {
        "/etc/stellerd root:stellerd 750", "/etc/stellerd/stellerd.toml root:stellerd 640",
        "/etc/credstore root:root 700",
        *(f"/etc/credstore/stellerd.{name} root:root 600" for name in SECRETS),
        "/run/stellerd stellerd:stellerd 750", "/run/stellerd-admin stellerd:stellerd-admin 2750",
    }  # fmt: skip
    assert machine.out("getent passwd stellerd").endswith(":/var/lib/stellerd:/usr/sbin/nologin")
    assert {shown(machine, "ActiveState"), machine.out("systemctl is-enabled stellerd")} == {"active", "enabled"}


def test_what_was_installed_is_pinned(machine: Machine) -> None:
    pinned = [line.split(" ;")[0] for line in (machine.clone / "constraints.txt").read_text().splitlines()]
    installed = machine.out("/opt/stellerd/bin/pip freeze --exclude pip --exclude setuptools").lower().replace("_", "-")
    assert [each for each in installed.splitlines() if " @ " not in each and each not in pinned] == []


def test_each_demo_job_runs_well_under_the_unit(machine: Machine) -> None:
    for job in ("brand_sync", "order_queue", "demo_orders"):
        until(lambda job=job: last_run(machine, job).get("state") == "ok", 60, f"{job} ok")
    assert entry(machine, "bamboo_sandbox")["state"] == "RUNNING"
    assert len(catalog_calls(machine)) == 1
    machine.run("stellerd trigger order_queue")
    until(lambda: machine.out("ls /var/lib/stellerd/spool"), what="a message in the spool")
    assert machine.out("find /var/lib/stellerd ! -user stellerd") == ""
    assert machine.out("find /var/lib/stellerd -type f -perm /077") == ""
    print(machine.said())
    assert 'Status: "4 of 4 jobs up' in machine.out("systemctl status stellerd")


def test_the_exposure_is_low(machine: Machine) -> None:
    assert machine.run("systemd-analyze security --no-pager --threshold=11 stellerd", check=False).returncode == 0


# --- settings


def test_a_reload_of_wrong_settings_fails_and_says_why(machine: Machine) -> None:
    pid = shown(machine, "MainPID")
    settings(machine, ('every = "10s"', 'evry = "10s"'))
    try:
        done = machine.run("systemctl reload stellerd", check=False)
        assert done.returncode != 0
        assert 'evry: unknown key, did you mean "every"?' in machine.journal("-p err").replace("\\", "")
        assert "reload refused: " in machine.out("systemctl status stellerd; stellerd status")
        assert (shown(machine, "MainPID"), shown(machine, "ActiveState")) == (pid, "active")
    finally:
        settings(machine, ('evry = "10s"', 'every = "10s"'))


def test_a_reload_changes_an_interval_without_a_restart(machine: Machine) -> None:
    old = entry(machine, "demo_orders")
    settings(machine, ('every = "10s"', 'every = "2s"'))
    machine.run("systemctl reload stellerd")
    first = last_run(machine, "demo_orders")["started_at"]
    until(lambda: last_run(machine, "demo_orders")["started_at"] > first, what="another run")
    second = time.monotonic()
    first = last_run(machine, "demo_orders")["started_at"]
    until(lambda: last_run(machine, "demo_orders")["started_at"] > first, what="another run")
    assert time.monotonic() - second < 6
    assert entry(machine, "demo_orders")["pid"] == old["pid"]
    assert shown(machine, "NRestarts") == "0"


# --- trouble


def test_a_stopped_daemon_is_restarted_by_the_watchdog(machine: Machine) -> None:
    calls, pid = len(catalog_calls(machine)), shown(machine, "MainPID")
    old = pids(machine)
    machine.run(f"kill -STOP {pid}")
    until(lambda: shown(machine, "NRestarts") == "1", 60, "a restart")
    until(lambda: entry(machine, "brand_sync").get("state") == "RUNNING", 30, "up again")
    assert "Watchdog timeout" in machine.journal()
    assert not old & pids(machine)
    assert machine.run(f"kill -0 {' '.join(map(str, old))}", check=False).stderr.count("No such process") == len(old)
    assert len(catalog_calls(machine)) == calls


def test_a_killed_daemon_leaves_no_orphan_and_repeats_no_call(machine: Machine) -> None:
    calls, pid = len(catalog_calls(machine)), shown(machine, "MainPID")
    old, before = pids(machine), last_run(machine, "brand_sync")["id"]
    log = "/var/lib/stellerd/calls.jsonl"
    called = f"[ $(grep -c catalog {log}) -gt $before ]"
    machine.run(
        f"before=$(grep -c catalog {log}); stellerd trigger brand_sync; until {called}; do :; done; kill -KILL {pid}"
    )
    until(lambda: shown(machine, "NRestarts") == "2", 30, "a restart")
    # It is not taken up again: an operator asked for it, and no slot of the schedule. On a slow machine it was quicker
    # than the kill
    run = until(lambda: ended_since(machine, "brand_sync", before), 30, "up again, with the run's record")
    assert run["state"] in ("crashed", "ok")
    assert not old & pids(machine)
    assert machine.run(f"kill -0 {' '.join(map(str, old))}", check=False).stderr.count("No such process") == len(old)
    assert len(catalog_calls(machine)) == calls + 1


# --- people


ONLY = "root, the user stellerd and the members of stellerd-admin"


@pytest.fixture(scope="module")
def operators(machine: Machine) -> None:
    """The users of the machine, by README.md's commands."""
    text = (machine.clone / "README.md").read_text()
    looks, does_all = re.findall(r"`(usermod .*?) alice`", text)
    machine.run(f"{looks} member; {does_all} admin")


def test_root_runs_a_job_beside_the_unit(machine: Machine) -> None:
    """With its credentials, its sandbox and its user: by the daemon."""
    calls = len(catalog_calls(machine))
    done = machine.run("stellerd run-once brand_sync --json")
    assert json.loads(done.stdout)["run"]["state"] == "ok"
    assert len(catalog_calls(machine)) == calls + 1
    assert machine.out("find /var/lib/stellerd ! -user stellerd") == ""


def test_of_two_at_once_one_says_busy(machine: Machine) -> None:
    run = "stellerd run-once brand_sync"
    done = machine.run(f"{run} & first=$!; {run} || echo second=$?; wait $first || echo first=$?")
    assert [done.stdout.count("=75"), "busy" in done.stdout + done.stderr] == [1, True], done


LOOKS = ["status", "next", "logs order_queue"]


@pytest.mark.parametrize("user", ["root", "stellerd", "admin"])
@pytest.mark.parametrize("command", [*LOOKS, "trigger order_queue", "run-once order_queue"])
def test_who_may_do_all(machine: Machine, operators: None, user: str, command: str) -> None:
    machine.run(f"stellerd {command}", user=user)
    assert machine.out("find /var/lib/stellerd ! -user stellerd") == ""


@pytest.mark.parametrize("user", ["root", "stellerd"])
def test_who_may_read_the_store_itself(machine: Machine, operators: None, user: str) -> None:
    assert "order_queue" in machine.out("stellerd history", user=user)
    assert machine.out("find /var/lib/stellerd ! -user stellerd") == ""


@pytest.mark.parametrize("user", ["member", "admin"])
def test_others_are_told_who_may_read_the_store(machine: Machine, operators: None, user: str) -> None:
    done = machine.run("stellerd history", user=user, check=False)
    store = "/var/lib/stellerd/state.db is for root and the user stellerd: permission denied"
    assert (done.returncode, done.stderr) == (69, f"stellerd: state store: {store}\n")


@pytest.mark.parametrize("command", LOOKS)
def test_a_member_of_the_group_may_look(machine: Machine, operators: None, command: str) -> None:
    machine.run(f"stellerd {command}", user="member")


@pytest.mark.parametrize("command", ["trigger order_queue", "stop order_queue", "reload", "run-once order_queue"])
def test_a_member_of_the_group_is_told_who_may_do_more(machine: Machine, operators: None, command: str) -> None:
    done = machine.run(f"stellerd {command}", user="member", check=False)
    assert (done.returncode, done.stderr) == (1, f"stellerd: {command.split()[0]} is for {ONLY}\n")


@pytest.mark.parametrize("command", ["status", "history", "trigger order_queue", "run-once order_queue"])
def test_a_stranger_is_refused(machine: Machine, operators: None, command: str) -> None:
    done = machine.run(f"stellerd {command}", user="stranger", check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("stellerd: /etc/stellerd/stellerd.toml is for root and the members of stellerd: ")


def test_who_asked_stands_in_the_journal(machine: Machine, operators: None) -> None:
    machine.run("stellerd pause order_queue && stellerd resume order_queue", user="admin")
    assert '"by": "a member of stellerd-admin"' in machine.journal()


# --- the sandbox, the journal


def test_writes_outside_are_refused(machine: Machine) -> None:
    site = machine.out("echo /opt/stellerd/lib/python3*/site-packages")
    machine.run(f"mkdir {site}/probe-1.dist-info; cat >{site}/probe.py", input=PROBE)
    metadata = "Metadata-Version: 2.1\nName: probe\nVersion: 1\n"
    machine.run(f"cat >{site}/probe-1.dist-info/METADATA", input=metadata)
    machine.run(f"cat >{site}/probe-1.dist-info/entry_points.txt", input="[stellerd]\nprobe = probe\n")
    settings(machine, ("enabled = false", "enabled = true"))
    machine.run("systemctl reload stellerd")
    until(lambda: last_run(machine, "probe"), what="a run of the probe")
    found = re.findall(r"\"event\": \"(.*?)=(\w+)\"", machine.out("stellerd logs probe"))
    assert len(found) > 15
    assert [what for what, how in found if how == "done"] == []


def test_the_journal_knows_how_bad_each_line_is(machine: Machine) -> None:
    lines = [json.loads(line) for line in machine.journal("-o json").splitlines()]
    ours = [line for line in lines if line.get("_COMM") != "systemd" and "MESSAGE" in line]
    level = {str(line["MESSAGE"]): line["PRIORITY"] for line in ours}
    priorities = {
        words: {number for message, number in level.items() if words in message}
        for words in ("the probe has found something wrong", "the probe warns", "the probe breaks", '"event": "ready"')
    }
    assert priorities["the probe has found something wrong"] == {"3"}
    assert priorities["the probe warns"] == {"4"}
    assert priorities["the probe breaks"] == {"3"}
    assert priorities['"event": "ready"'] == {"6"}
    tracebacks = [line["MESSAGE"] for line in ours if "Traceback (most recent call last)" in str(line["MESSAGE"])]
    assert tracebacks
    assert all("ValueError: the probe breaks" in text for text in tracebacks if "probe.py" in text)


# --- a credential that is missing


def test_a_missing_credential_of_the_daemon_is_named_once(machine: Machine) -> None:
    settings(machine, ("enabled = true", "enabled = false"))
    machine.run("mv /etc/credstore/stellerd.amqp_url /root/kept-aside")
    try:
        assert machine.run("systemctl restart stellerd", check=False).returncode != 0
        until(lambda: shown(machine, "ActiveState") == "failed", what="failed, and not tried again")
        assert (shown(machine, "ExecMainStatus"), shown(machine, "NRestarts")) == ("78", "0")
        assert 'credential "amqp_url" is missing' in machine.out("systemctl status stellerd || true")
        assert "/etc/credstore/stellerd.amqp_url" in machine.journal("-p err")
    finally:
        machine.run("mv /root/kept-aside /etc/credstore/stellerd.amqp_url")
    machine.run("systemctl restart stellerd")


def test_a_missing_credential_of_one_job_stops_that_job_alone(machine: Machine) -> None:
    machine.run("mv /etc/credstore/stellerd.bamboo_client_id /root/kept-aside")
    try:
        machine.run("systemctl restart stellerd")
        until(lambda: entry(machine, "brand_sync").get("state") == "FATAL", what="FATAL")
        assert 'credential "bamboo_client_id" is missing' in machine.out("stellerd status --wide")
        assert entry(machine, "demo_orders")["state"] == "RUNNING"
    finally:
        machine.run("mv /root/kept-aside /etc/credstore/stellerd.bamboo_client_id")
    machine.run("systemctl restart stellerd")
    until(lambda: entry(machine, "brand_sync").get("state") == "RUNNING", what="up again")


# --- the end


def test_stops_within_its_time(machine: Machine) -> None:
    began, old = time.monotonic(), pids(machine)
    machine.run("systemctl stop stellerd")
    assert time.monotonic() - began < 20
    assert (shown(machine, "Result"), shown(machine, "ExecMainStatus")) == ("success", "0")
    assert machine.run(f"kill -0 {' '.join(map(str, old))}", check=False).stderr.count("No such process") == len(old)


def test_the_commands_of_the_readme_leave_nothing(machine: Machine, before: set[str]) -> None:
    machine.run("systemctl start stellerd")
    machine.run(readme_blocks("For a server")[-1])
    after = listing(machine)
    assert (after - before, before - after) == (set(), set())
    assert "stellerd" not in machine.out("systemctl list-units --all; systemctl list-unit-files")
