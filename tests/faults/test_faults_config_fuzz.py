"""Mutants of the configuration through the commands themselves, and the accepted ones through a run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from configfuzz import Fuzzer, in_json
from daemon import REPOSITORY, install
from faults.helpers import FaultDaemon

from stellerd import config, tomlschema
from stellerd.errors import StellerdError

SEED = 20260301
PLUGIN = """
from pydantic import Field
from stellerd import Done, Duration, Job, Secret, Settings, hookimpl

class Inner(Settings):
    waits: list[Duration] = []
    key: Secret | None = None

class ItsSettings(Settings):
    amount: int = Field(1, ge=0, le=10)
    pause: Duration = 0.0
    inner: Inner = Inner()
    by_name: dict[str, Inner] = {}

class It(Job):
    every = "1h"
    Settings = ItsSettings

    def run(self, ctx):
        ctx.count(amount=ctx.settings.amount)
        return Done()

@hookimpl
def stellerd_job():
    return It
"""
COMMANDS = """
import json, os, sys, tempfile
from stellerd import attended, cli, config, once
results = []
for line in sys.stdin:
    with tempfile.TemporaryFile() as out:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
            sys.argv = ["stellerd", *json.loads(line)]
            try:
                cli.main()
            except SystemExit as end:
                code = end.code
            except BaseException as error:
                print("Traceback", repr(error))
                code = 255
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        results.append([code, out.read().decode("utf-8", "replace")])
print(json.dumps(results))
"""
"""The entry point of the command, in a fork of a process that has done the imports."""


def plugin_schema() -> dict[str, Any]:
    space: dict[str, Any] = {}
    exec(compile(PLUGIN, "plugin", "exec", dont_inherit=True), space)
    return tomlschema.build({"it": tomlschema.of_settings(space["ItsSettings"], "it")})


def commands(folder: Path, lines: list[list[str]]) -> list[tuple[Any, str]]:
    """Exit code and output of each command."""
    env = {**os.environ, "PYTHONPATH": f"{install(folder, {'it': PLUGIN})}:{REPOSITORY}"}
    given = "".join(f"{json.dumps(line)}\n" for line in lines)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], input=given, env=env, cwd=folder, capture_output=True, text=True, timeout=170,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout.splitlines()[-1])]


def files(folder: Path, seed: int, count: int, fixed: dict[str, Any]) -> list[Path]:
    made = []
    for number, text in enumerate(itertools.islice(Fuzzer(plugin_schema(), seed, fixed).texts(), count)):
        made.append(folder / f"{number}.toml")
        made[-1].write_text(text, encoding="utf-8")
    return made


def test_fifty_mutants_end_no_command_and_no_daemon(tmp_path: Path) -> None:
    """0 tracebacks in `check` and `reload`; what check refuses, reload refuses, and the daemon stays."""
    made = files(tmp_path, SEED, 50, {})
    results = commands(tmp_path, [["-c", str(file), "check"] for file in made])
    for file, (code, output) in zip(made, results, strict=True):
        assert code in (0, 69, 78), f"{code}\n{output}\n{in_json(file.read_text())}"
        assert "Traceback" not in output, f"{output}\n{in_json(file.read_text())}"
        assert output
    with FaultDaemon(tmp_path, {"it": PLUGIN}, "[jobs.it]\n") as daemon:
        refused = "reload refused; the old configuration stays in force"
        for file in made:
            daemon.config.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
            with contextlib.suppress(StellerdError):
                daemon.ask("reload")
        assert daemon.status()["jobs"]
        assert daemon.events(refused)


def can_run(text: str) -> str:
    """The end that a run of this accepted file may have."""
    entry = config.parse(text, Path("x.toml")).jobs["it"]
    return "timeout" if min(entry.timeout, entry.heartbeat_timeout or 3600) < 3 else "ok"


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_what_is_accepted_runs_a_job(tmp_path: Path, count: int) -> None:
    fixed = {"state": {"url": "sqlite:///state.db", "folder": "", "lease": "1m"}}
    fuzzer = Fuzzer(plugin_schema(), SEED + count, fixed)
    ready: list[Path] = []
    while len(ready) < count:
        made = []
        for text in itertools.islice(fuzzer.texts(), 2 * count):
            if "[jobs.it]" in text and "rlimits" not in text and "enabled = false" not in text:
                made.append(tmp_path / f"{len(ready)}-{len(made)}.toml")
                made[-1].write_text(text, encoding="utf-8")
        results = commands(tmp_path, [["-c", str(file), "check"] for file in made])
        ready += [file for file, (code, _) in zip(made, results, strict=True) if code == 0]
    runs = commands(tmp_path, [["-c", str(file), "run-once", "it", "--json"] for file in ready[:count]])
    for file, (code, output) in zip(ready[:count], runs, strict=True):
        text = file.read_text()
        assert "Traceback" not in output, f"{output}\n{in_json(text)}"
        assert code == 0 or can_run(text) == "timeout", f"{code} {output}\n{in_json(text)}"
