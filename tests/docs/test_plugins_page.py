"""docs/plugins.md, followed to the letter: its files written, its commands run, its output seen."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from daemon import REPOSITORY

STEP = re.compile(r"(?:^File `(?P<file>[^`]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def steps() -> list[tuple[str, str, str]]:
    """(kind, file, text) of each fenced block of the page, in order."""
    page = (REPOSITORY / "docs" / "plugins.md").read_text()
    return [(match["kind"], match["file"] or "", match["text"]) for match in STEP.finditer(page)]


def test_the_page_has_files_and_commands() -> None:
    assert [kind for kind, _, _ in steps()].count("console") >= 4
    assert all(file for kind, file, _ in steps() if kind != "console")


@pytest.mark.timeout(300)
def test_a_third_party_gets_a_supervised_job_by_following_the_page(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {
        "STELLERD": str(REPOSITORY),
        "PIP_CONSTRAINT": (REPOSITORY / "constraints.txt").as_uri(),  # pip splits it at blanks
        "COLUMNS": "160",
    }
    try:
        follow(tmp_path, environment)
    finally:  # a step that failed must not leave the page's daemon running
        subprocess.run(
            [".venv/bin/stellerd", "shutdown"], cwd=tmp_path / "disk-watch", capture_output=True, check=False
        )


def follow(folder: Path, environment: dict[str, str]) -> None:
    """Write the page's files and run its commands."""
    for kind, file, text in steps():
        if kind != "console":
            (folder / file).write_text(text)
            continue
        for command, expected in commands(text):
            done = subprocess.run(
                ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False,
                timeout=200,
            )  # fmt: skip
            output = done.stdout + done.stderr
            assert done.returncode == 0, f"$ {command}\n{output}"
            for line in expected:
                assert re.search(r"\s+".join(map(re.escape, line.split())), output), f"$ {command}\n{output}"
            if " cd " in command:
                folder = folder / command.rsplit(" cd ", 1)[1].strip()


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(command, lines that its output must hold) of a console block."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found
