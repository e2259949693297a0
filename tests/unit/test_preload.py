"""What is imported before the fork: failures are warnings, threads are refused, the children's part is warm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stellerd import queries, registry, statements

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


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_every_statement_is_compiled_before_the_fork(backend: str) -> None:
    import stellerd.warmup

    stellerd.warmup.run(backend)
    foreign = [statement for name, statement in queries.TELLERS.items() if name != backend]
    cold = [s for s in statements.Statement.known if backend not in s._compiled and s not in foreign]
    assert cold == []
    assert registry._spare
