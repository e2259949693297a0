"""Plugins that are installed, broken, wrong or missing: told as what they are, with their traceback."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stellerd import registry
from stellerd.errors import ConfigError, StellerdError
from stellerd.registry import Loaded

GOOD = """
from stellerd import Job, hookimpl
class TheJob(Job):
    def run(self, ctx): pass
@hookimpl
def stellerd_job(): return TheJob
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a distribution with one plugin on sys.path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(name: str, source: str) -> None:
        (tmp_path / f"plugin_{name}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"dist_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[stellerd]\n{name} = plugin_{name}\n")
        monkeypatch.delitem(sys.modules, f"plugin_{name}", raising=False)

    return put


def test_an_installed_plugin_is_known_without_being_imported(install: Any) -> None:
    install("known", "raise RuntimeError('imported')")
    point = registry.installed()["known"]
    assert (point.value, point.dist.name) == ("plugin_known", "dist-known")
    assert "plugin_known" not in sys.modules


def test_two_distributions_with_one_plugin_name_are_both_named(install: Any, tmp_path: Path) -> None:
    install("twin", GOOD)
    other = tmp_path / "other_twin-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-twin\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[stellerd]\ntwin = elsewhere\n")
    with pytest.raises(ConfigError, match='x: more than one distribution has a plugin "twin": ') as caught:
        registry.find("twin", "x")
    assert "dist-twin (plugin_twin)" in str(caught.value)
    assert "other-twin (elsewhere)" in str(caught.value)


def test_one_distribution_that_is_found_twice_is_one(
    install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("once", GOOD)
    again = tmp_path / "again"
    again.mkdir()
    (again / "dist_once-1.0.dist-info").symlink_to(tmp_path / "dist_once-1.0.dist-info")
    monkeypatch.syspath_prepend(str(again))
    assert registry.find("once", "x").value == "plugin_once"


def test_a_good_plugin_gives_its_job(install: Any) -> None:
    install("good", GOOD)
    assert Loaded("good", "x.toml:1:1").job.__name__ == "TheJob"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("raise ValueError('at import')", "ValueError: at import"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("from stellerd import hookimpl\n@hookimpl\ndef stellerd_job(unknown): pass", "PluginValidationError: "),
        ("from stellerd import hookimpl\n@hookimpl\ndef stellerd_job(): raise KeyError('x')", "KeyError: 'x'"),
    ],
    ids=["missing library", "raises", "exits", "syntax", "divides", "wrong hook", "hook raises"],
)
def test_a_broken_plugin_says_why_with_its_traceback(install: Any, source: str, why: str) -> None:
    install("broken", source)
    with pytest.raises(StellerdError) as caught:
        Loaded("broken", "x.toml:1:1")
    assert str(caught.value).startswith(f'plugin "broken" (plugin_broken) cannot be loaded: {why}')
    assert caught.value.exit_code == 78
    assert "Traceback" in caught.value.detail  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "source",
    [
        "", "from stellerd import hookimpl\n@hookimpl\ndef stellerd_job(): return None",
        "from stellerd import hookimpl\n@hookimpl\ndef stellerd_job(): return dict",
        "from stellerd import Job, hookimpl\n@hookimpl\ndef stellerd_job(): return Job()",
        "def stellerd_job(): return None",
    ],
    ids=["no hook", "nothing", "other class", "an object", "no marker"],
)  # fmt: skip
def test_a_plugin_without_a_job_says_so(install: Any, source: str) -> None:
    install("empty", source)
    with pytest.raises(StellerdError, match=r'plugin "empty" .*: stellerd_job\(\) returned no subclass'):
        Loaded("empty", "x.toml:1:1")


def test_an_unknown_plugin_names_those_there_are(install: Any) -> None:
    install("one", GOOD)
    with pytest.raises(ConfigError, match=r'^x\.toml:3:1: no plugin "tow" is installed; installed are: .*\bone\b'):
        Loaded("tow", "x.toml:3:1")


def test_a_plugin_that_ends_its_process_at_import_ends_only_that(install: Any, tmp_path: Path) -> None:
    install("exits", "import os; os._exit(9)")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    code = path + "from stellerd.registry import Loaded; Loaded('exits', '')"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9


OBSERVER = (
    GOOD
    + """
seen = []
@hookimpl
def stellerd_run_started(job, run): seen.append((job, run["id"]))
@hookimpl
def stellerd_run_finished(job, run): raise RuntimeError("observer")
"""
)


class Log:
    def __init__(self) -> None:
        self.errors: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.errors.append((event, fields))


def test_an_observer_is_told(install: Any) -> None:
    install("observer", OBSERVER)
    Loaded("observer", "").observe(Log())("stellerd_run_started", "a", {"id": 5})
    assert sys.modules["plugin_observer"].seen == [("a", 5)]


def test_an_observer_that_raises_is_logged_and_nothing_else(install: Any) -> None:
    install("observer", OBSERVER)
    log = Log()
    Loaded("observer", "").observe(log)("stellerd_run_finished", "a", {"id": 5})
    [(event, fields)] = log.errors
    assert (event, fields["hook"]) == ("an observer raised", "stellerd_run_finished")
    assert "RuntimeError: observer" in fields["traceback"]
