"""README, reference, --help and etc/stellerd.toml say what the code does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import jsonschema
import pytest
from daemon import REPOSITORY

from stellerd import config, errors
from stellerd.cli import cli
from stellerd.config import Config
from stellerd.managed import Managed
from stellerd.settings import JobSettings
from stellerd.status import RunRecord

CREDENTIALS = ("steller_database_url", "amqp_url", "bamboo_client_id", "bamboo_client_secret")


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as systemd's LoadCredential makes it."""
    for name in CREDENTIALS:
        (tmp_path / name).write_text("postgresql://localhost/x" if "url" in name else "a-value")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))


def commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    """Every command by its words."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


def test_derived_files_are_up_to_date() -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("credentials")
def test_the_example_is_a_valid_configuration_with_every_secret_named_in_the_unit() -> None:
    loaded = config.load(str(REPOSITORY / "etc" / "stellerd.toml"))
    assert loaded.problems_of_secrets() == []
    assert list(loaded.jobs) == ["brand_sync", "order_queue"]
    unit = (REPOSITORY / "etc" / "systemd" / "stellerd.service").read_text()
    assert all(f"LoadCredential={name}" in unit for name in CREDENTIALS)


@pytest.mark.usefixtures("credentials")
def test_the_example_is_still_valid_with_every_line_switched_on() -> None:
    text = (REPOSITORY / "etc" / "stellerd.toml").read_text()
    switched_on = re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE)
    assert switched_on.count("\n") == text.count("\n")
    loaded = config.parse(switched_on, Path("stellerd.toml"))
    assert set(tomllib.loads(switched_on)["jobs"]["brand_sync"]) == set(JobSettings.model_fields)
    assert loaded.supervisor == Config().supervisor
    assert loaded.state == Config().state


def test_the_demo_is_a_valid_configuration() -> None:
    loaded = config.load(str(REPOSITORY / "etc" / "demo.toml"))
    assert loaded.problems_of_secrets() == []


def test_the_readme_names_every_command_and_no_other() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    section = readme.split("## Commands")[1].split("\n## ")[0]
    named: set[str] = set()
    for cell in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE):
        for text in re.findall(r"`([^`]+)`", cell):
            words = [
                word
                for word in text.removeprefix("stellerd").split()
                if (word.isalpha() and word.islower()) or ("-" in word[1:] and word[0].isalpha())
            ]
            named |= {" ".join(words)} if words else set()
    assert named == set(commands(cli))


def test_every_command_and_option_has_a_help_text() -> None:
    for name, command in commands(cli).items():
        assert command.help, name
        assert all(option.help for option in command.params if isinstance(option, click.Option)), name


def test_the_readme_names_every_exit_code() -> None:
    line = (REPOSITORY / "README.md").read_text().split("Exit codes: ")[1].split("\n\n")[0]
    named = {int(code) for code in re.findall(r"(?:^|· )(\d+) ", line.replace("\n", " "))}
    codes = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)}
    assert named == codes | {0, 130}


def test_toml_in_the_readme_is_valid() -> None:
    for text in re.findall(r"```toml\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL):
        config.parse(text, Path("stellerd.toml"))


def test_the_json_page_names_every_field_of_a_run_and_a_job() -> None:
    page = (REPOSITORY / "docs" / "reference" / "json.md").read_text()
    run, job = page.split("## Run\n")[1].split("\n## ")[0], page.split("JOB:\n")[1].split("\n## ")[0]

    def fields(section: str) -> set[str]:
        return {
            name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
        }

    assert fields(run) == set(RunRecord(1, "j", "ok", "manual").to_json())
    assert fields(job) == set(Managed("j", JobSettings()).to_json(0.0))


def test_the_schema_accepts_the_files_that_the_loader_accepts_and_refuses_a_misspelt_key() -> None:
    schema = json.loads((REPOSITORY / "docs" / "reference" / "stellerd.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    for name in ("stellerd.toml", "demo.toml"):
        tables = tomllib.loads((REPOSITORY / "etc" / name).read_text())
        assert [error.message for error in validator.iter_errors(tables)] == []
    tables["jobs"]["brand_sync"]["evry"] = "1m"
    assert any("evry" in error.message for error in validator.iter_errors(tables))


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_architecture_page_names_every_module() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text().split("## Layers")[1]
    modules = {path.stem for path in (REPOSITORY / "stellerd").glob("*.py")} - {"__init__"}
    assert modules <= set(re.findall(r"\w+", page))
