"""What is imported before the fork: failures are warnings, threads are refused, the children's part is warm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stellerd import config, preload, queries, registry, statements

RUN = """
import gc, sys
from stellerd import preload
from stellerd.errors import ConfigError
warnings = []
try:
    preload.preload(sys.argv[1:], "sqlite", lambda module, why: warnings.append((module, why)))
except ConfigError as error:
    print("refused:", error)
else:
    print(warnings, gc.get_freeze_count() > 10_000)
"""


def preloaded(folder: Path, *modules: str) -> str:
    command = [sys.executable, "-c", RUN, *modules]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_module_that_cannot_be_imported_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    said = preloaded(tmp_path, "broken", "not_there", "json")
    assert "('broken', 'ZeroDivisionError: division by zero')" in said
    assert "ModuleNotFoundError: No module named 'not_there'" in said
    assert said.rstrip().endswith("True")


def test_a_module_that_starts_a_thread_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
    )
    said = preloaded(tmp_path, "json", "busy")
    assert said.startswith("refused: ")
    assert "preload: busy starts a thread" in said


def wanted(jobs: str, more: str = "") -> list[str]:
    return preload.wanted(config.parse(f"{more}\n[state]\nurl = 'sqlite:///x.db'\n{jobs}", Path("/x.toml")))


def test_only_what_these_jobs_need_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, needs in {"plain": [], "sends": ["pika>=1.3", "Some.Thing", 'msgspec ; extra == "fast"']}.items():
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        lines = "".join(f"Requires-Dist: {need}\n" for need in needs)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{lines}")
        (info / "entry_points.txt").write_text(f"[stellerd]\n{name} = {name}\n")
    assert registry.requirements("sends") == {"pika", "some.thing"}
    assert wanted("[jobs.plain]") == []
    assert wanted("[jobs.not_installed]") == []
    assert wanted("[jobs.plain]\n[jobs.it]\nplugin = 'sends'") == ["pika"]
    assert wanted("[jobs.plain]\n[jobs.it]\nplugin = 'sends'\nenabled = false") == []
    assert wanted("[jobs.plain]\n[limits.api]\nrate = '1/1h'") == ["requests"]
    database = "[databases.shop]\nurl = 'postgresql://nobody@localhost/shop'"
    assert wanted(f"[jobs.plain]\n{database}") == ["psycopg", "sqlalchemy.dialects.postgresql.psycopg"]


@pytest.mark.parametrize("metadata", [None, b"", b"\xff\xfe\x00", b"Requires-Dist: ;;;[\nRequires-Dist:\n"])
def test_a_broken_installation_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: bytes | None
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    info = tmp_path / "bad-1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[stellerd]\nbad = bad\n")
    if metadata is not None:
        (info / "METADATA").write_bytes(metadata)
    assert wanted("[jobs.bad]\n[limits.api]\nrate = '1/1h'") == ["requests"]


def test_modules_of_ones_own_are_added_or_stand_alone() -> None:
    more = "[limits.api]\nrate = '1/1h'\n[supervisor]\npreload = ['auto', 'json']"
    assert wanted("[jobs.x]", more) == ["requests", "json"]
    assert wanted("[jobs.x]", more.replace("'auto', ", "")) == ["json"]


def test_what_no_job_needs_is_not_loaded() -> None:
    """For SQLite alone, with no limits: a third of the imports."""
    code = RUN + 'print([name for name in ("psycopg", "requests", "pika") if name in sys.modules])'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_rehearsal_that_fails_is_a_warning() -> None:
    code = RUN.replace("try:", "from stellerd import child\ndel child.ticker_of\ntry:", 1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (
        "('stellerd.warmup', \"AttributeError: module 'stellerd.child' has no attribute 'ticker_of'\")" in done.stdout
    )
    assert done.stdout.rstrip().endswith("True"), "the rest is done"


def test_the_rehearsal_leaves_nothing_behind() -> None:
    code = """
import os, signal, threading
from stellerd import log, preload, rehearsal
name, lines = open("/proc/self/comm").read(), []
log.configure("debug", "json", write=lines.append)
preload.preload([], "sqlite", print)
def state():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    assert open("/proc/self/comm").read() == name, open("/proc/self/comm").read()
    return sorted(os.listdir("/proc/self/fd")), handlers, threading.active_count(), dict(os.environ), os.getcwd()
before = state()
rehearsal.run()
assert state() == before, (before, state())
assert signal.set_wakeup_fd(-1) == -1
assert lines == [], lines
print("nothing")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "nothing\n", done.stderr


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_every_statement_is_compiled_before_the_fork(backend: str) -> None:
    import stellerd.warmup

    stellerd.warmup.run(backend)
    foreign = [statement for name, statement in queries.TELLERS.items() if name != backend]
    cold = [s for s in statements.Statement.known if backend not in s._compiled and s not in foreign]
    assert cold == []
    assert registry._spare
