"""Operators' commands beside the service: reads make nothing, and root leaves no file of its own in the state."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import QUIET, Daemon, job

OWNER = pwd.getpwnam("daemon").pw_uid  # of the base system; stands for the service's user
READS = (
    ("history",), ("limits", "show"), ("check", "--connect"), ("db", "check"), ("history", "--json"),
    ("config", "show"), ("db", "sql"), ("status",),
)  # fmt: skip
TOML = "[limits.b]\nrate = '2/1h'\n[jobs.it]\n"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")


def files(folder: Path) -> dict[str, int]:
    """Each file of the state with its owner."""
    return {path.name: path.lstat().st_uid for path in folder.iterdir() if path.name.startswith("state")}


def test_reads_of_a_store_that_is_not_there_make_nothing(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, {"it": QUIET}, TOML)
    before = sorted(tmp_path.iterdir())
    said = {}
    for command in READS:
        done = said[command] = daemon.cli(*command)
        assert "Traceback" not in done.stderr
        assert sorted(tmp_path.iterdir()) == before, command
    assert said["history",].returncode == 0
    assert said["history",].stderr == "stellerd: there is no state store yet: nothing was run\n"
    assert json.loads(said["history", "--json"].stdout) == {"runs": [], "operations": []}
    assert "2/1h" in said["limits", "show"].stdout
    assert said["check", "--connect"].returncode == 0
    assert (said["db", "check"].returncode, "not made yet" in said["db", "check"].stdout) == (0, True)


def test_reads_of_a_store_that_nobody_uses_leave_nothing(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, {"it": QUIET}, TOML)
    assert daemon.cli("run-once", "it").returncode == 0
    daemon.cli("db", "check")  # takes the log's files away, where there are any
    before = sorted(tmp_path.iterdir())
    for command in READS[:4]:
        assert daemon.cli(*command).returncode == 0
        assert sorted(tmp_path.iterdir()) == before, command


def test_a_folder_that_cannot_be_written_is_told_before_the_daemon_needs_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    daemon = Daemon(tmp_path, {"it": QUIET}, "[state]\nurl = 'sqlite:///file/state.db'\n[jobs.it]\n")
    done = daemon.cli("check", "--connect")
    assert (done.returncode, "cannot write into" in done.stdout) == (69, True)


def test_a_check_that_spends_a_limit_makes_the_store(tmp_path: Path) -> None:
    """What a request spends must be known to the next one, whoever sends it."""
    source = job("return Done()", extra="def check(self, ctx): ctx.limiter.acquire('b', ctx.wait)")
    daemon = Daemon(tmp_path, {"it": source}, TOML.replace("2/1h", "1/1h"))
    assert daemon.cli("check", "--connect").returncode == 0
    assert daemon.cli("check", "--connect").returncode == 75


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that other users reach; pytest's own is closed to them by any session of the same user that starts."""
    with tempfile.TemporaryDirectory(prefix="stellerd-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder of the service's user."""
    folder = tmp_path / "lib"
    folder.mkdir(mode=0o700)
    os.chown(folder, OWNER, OWNER)
    return folder


def command(daemon: Daemon, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """As `daemon.cli`, with all that it imports imported before: the interpreter may be where only root gets."""
    code = (
        "import sys\n"
        "from stellerd import acting, attended, buckets, cli, log, migrate, preload, reading, upkeep, views\n"
        "import alembic.autogenerate, sqlalchemy.dialects.sqlite.pysqlite\n"
        "log.configure('error'); preload.preload([], 'sqlite', print)\n"
        f"acting.CREDENTIALS = tuple(map(acting.Path, {env.pop('CREDENTIALS', '').split()!r}))\n"
        f"import os; os.setuid({env.pop('USER', 0)})\n"
        f"sys.argv = ['stellerd', '-c', {str(daemon.config)!r}, *{arguments!r}]\ncli.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env=daemon.env | env, capture_output=True, text=True, timeout=60, check=False
    )


@needs_root
def test_root_acts_for_the_owner_of_the_state(tmp_path: Path, state: Path) -> None:
    source = job("return Skipped(f'{os.getuid()} {os.getgid()} {os.getgroups()} {os.geteuid()}')")
    daemon = Daemon(tmp_path, {"it": source}, f"[state]\nurl = 'sqlite:///{state}/state.db'\n{TOML}")
    daemon.env["LOGNAME"] = getpass.getuser()
    done = command(daemon, "run-once", "it", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["run"]["reason"] == f"{OWNER} {OWNER} [{OWNER}] {OWNER}"
    assert set(files(state)) >= {"state.db"}
    for arguments in (("limits", "set", "b", "--close", "1s"), ("check", "--connect")):
        done = command(daemon, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert set(files(state).values()) == {OWNER}
    [done] = json.loads(command(daemon, "history", "--json").stdout)["operations"]
    assert done["actor"] == getpass.getuser()


@needs_root
def test_a_store_of_others_is_told_to_be_theirs(tmp_path: Path, state: Path) -> None:
    daemon = Daemon(tmp_path, {"it": QUIET}, f"[state]\nurl = 'sqlite:///{state}/state.db'\n{TOML}")
    assert command(daemon, "db", "init").returncode == 0
    done = command(daemon, "history", USER="65534")
    assert done.returncode == 69
    told = f"{state}/state.db is for root and the user {pwd.getpwuid(OWNER).pw_name}: permission denied"
    assert done.stderr == f"stellerd: state store: {told}\n"


@needs_root
def test_whoever_may_only_read_leaves_no_file_either(tmp_path: Path, state: Path) -> None:
    """Not even in a folder where he may make some: the service could not write its own store any more."""
    daemon = Daemon(tmp_path, {"it": QUIET}, f"[state]\nurl = 'sqlite:///{state}/state.db'\n{TOML}")
    assert command(daemon, "run-once", "it").returncode == 0
    assert command(daemon, "history").returncode == 0  # takes the log away
    state.chmod(0o777)
    (state / "state.db").chmod(0o644)
    done = command(daemon, "history", "--json", USER="65534")
    assert (done.returncode, len(json.loads(done.stdout)["runs"])) == (0, 1)
    assert files(state) == {"state.db": OWNER}


@needs_root
def test_root_reading_the_service_store_leaves_no_file_of_its_own(tmp_path: Path, state: Path) -> None:
    daemon = Daemon(tmp_path, {"it": QUIET}, f"[state]\nurl = 'sqlite:///{state}/state.db'\n{TOML}")
    for arguments in (("history",), ("db", "check")):
        assert command(daemon, *arguments).returncode == 0
        assert list(state.iterdir()) == []
    assert command(daemon, "db", "init").returncode == 0
    assert files(state) == {"state.db": OWNER} or set(files(state).values()) == {OWNER}


@needs_root
def test_root_finds_the_credentials_of_the_service(tmp_path: Path, state: Path) -> None:
    source = job("return Skipped(str(ctx.engine('x').url.database))", extra="def check(self, ctx): ctx.engine('x')")
    toml = f"[state]\nurl = {{ credential = 'state_url' }}\n[databases.x]\nurl = {{ credential = 'x_url' }}\n{TOML}"
    daemon = Daemon(tmp_path, {"it": source}, toml)
    in_use, kept = tmp_path / "in_use", tmp_path / "kept"
    for folder, name in ((kept, "old"), (in_use, "new")):
        folder.mkdir(mode=0o700)
        (folder / "x_url").write_text(f"sqlite:///{state}/{name}.db\n")
        (folder / "x_url").chmod(0o400)
    (kept / "state_url").write_text(f"sqlite:///{state}/state.db\n")
    folders = f"{in_use} {kept}"
    for arguments in (("check", "--connect"), ("db", "check"), ("history",)):
        done = command(daemon, *arguments, CREDENTIALS=folders)
        assert done.returncode == 0, (arguments, done)
    assert f"{state}/new.db" in command(daemon, "run-once", "it", CREDENTIALS=folders).stdout
    assert set(files(state).values()) == {OWNER}
    missing = command(daemon, "run-once", "it")
    assert missing.returncode == 78
    assert "$CREDENTIALS_DIRECTORY is not set" in missing.stderr
    assert "as root" in missing.stderr
