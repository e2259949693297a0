"""What `import stellerd` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import stellerd

NAMES = {"Context", "Deferred", "Done", "Duration", "Job", "Secret", "Settings", "Skipped", "errors", "hookimpl"}


def test_the_public_surface_is_exactly_these_names() -> None:
    assert set(stellerd.__all__) == NAMES
    assert len(stellerd.__all__) <= 10


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(stellerd, name) is not None


def test_there_is_no_other_name() -> None:
    with pytest.raises(AttributeError, match="module 'stellerd' has no attribute 'Store'"):
        stellerd.Store  # noqa: B018


@pytest.mark.parametrize("module", ["stellerd", "stellerd.cli", "stellerd.client", "stellerd.job", "stellerd.errors"])
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    heavy = ["pydantic", "sqlalchemy", "requests", "pika", "structlog", "rich", "multiprocess", "msgspec", "psycopg"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_job_shows_nothing_of_itself_but_its_name() -> None:
    class Holder(stellerd.Job):
        pass

    job = Holder()
    job.settings = "canary"  # type: ignore[attr-defined]
    assert repr(job) == "<Holder>"


def test_a_job_without_a_run_says_so() -> None:
    class Empty(stellerd.Job):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty\.run is not implemented"):
        Empty().run(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "code"),
    [("StellerdError", 1), ("UsageError", 2), ("Unreachable", 69), ("PluginCrashed", 70), ("Busy", 75),
     ("RateLimited", 75), ("ConfigError", 78), ("JobFailed", 1), ("HttpStatus", 1), ("BadReply", 1)],
)  # fmt: skip
def test_every_error_has_its_exit_code_and_its_place_in_the_tree(name: str, code: int) -> None:
    kind = getattr(stellerd.errors, name)
    assert kind.exit_code == code
    assert issubclass(kind, stellerd.errors.StellerdError)
    assert f"{name} " in (stellerd.errors.__doc__ or "")


def test_an_error_without_a_message_says_what_its_class_means() -> None:
    assert str(stellerd.errors.Unreachable()) == "A server does not answer."
