"""`make setup` where a person has the clone: blanks in its path, renamed later, an environment made by uv.

pip and ensurepip are stand-ins, since the real ones take ten seconds; `make matrix` has the real ones in such a folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PYTHON = """\
#!/bin/sh
if [ "$1 $2 $3" = "-m venv --clear" ]; then
    "%(python)s" -m venv --without-pip --clear "$4" && exec "$4/bin/python" -m ensurepip
fi
exec "%(python)s" "$@"
"""
ENSUREPIP = """\
import pathlib, shutil, sys, sysconfig
if __name__ == "__main__":
    assert sys.prefix != sys.base_prefix
    shutil.copy(pathlib.Path(__file__).with_name("pip_stand_in"), sysconfig.get_path("purelib") + "/pip.py")
"""
PIP = """\
import os, pathlib, sys
for constraint in os.environ.get("PIP_CONSTRAINT", "").split():  # as pip does
    open(constraint).close()
if "--editable" in sys.argv:
    pathlib.Path(sys.prefix, "where").write_text(os.getcwd())
"""


class Clone:
    """A folder with our Makefile and scripts/setup."""

    def __init__(self, folder: Path, stand_ins: Path) -> None:
        self.folder, self.stand_ins = folder, stand_ins

    def setup(self, **environment: str) -> str:
        """What `make setup` prints: nothing when there is nothing to do."""
        done = subprocess.run(
            ["make", "--no-print-directory", "setup"], cwd=self.folder, capture_output=True, text=True, check=False,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self.stand_ins), **environment}, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def made_for(self) -> Path:
        """The folder whose packages are installed."""
        return Path((self.folder / ".venv" / "where").read_text())


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    stand_ins, folder = tmp_path / "bin", tmp_path / "a folder"
    stand_ins.mkdir()
    (stand_ins / "ensurepip.py").write_text(ENSUREPIP)
    (stand_ins / "pip_stand_in").write_text(PIP)
    python = stand_ins / "python3"
    python.write_text(PYTHON % {"python": Path(sys.executable).resolve()})
    python.chmod(0o755)
    for file in ("Makefile", "scripts/setup", "constraints.txt", "setup.cfg", "pyproject.toml"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, folder / file)
    return Clone(folder, stand_ins)


@pytest.fixture(autouse=True)
def the_stand_in_is_python3(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{clone.stand_ins}:{os.environ['PATH']}")


def test_a_folder_with_blanks_in_its_name(clone: Clone) -> None:
    assert "is ready" in clone.setup()
    assert clone.made_for() == clone.folder
    assert clone.setup() == ""


def test_a_folder_that_was_renamed_or_copied(clone: Clone) -> None:
    clone.setup()
    clone.folder = clone.folder.rename(clone.folder.with_name("another folder"))
    assert "is ready" in clone.setup()
    assert clone.made_for() == clone.folder
    clone.folder = Path(shutil.copytree(clone.folder, clone.folder.with_name("copy"), symlinks=True))
    assert "is ready" in clone.setup()
    assert clone.made_for() == clone.folder


def test_an_environment_without_pip(clone: Clone) -> None:
    """As `uv venv` leaves it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone.folder / ".venv"], check=True)
    (own := clone.folder / ".venv" / "own").touch()
    assert "is ready" in clone.setup()
    assert clone.made_for() == clone.folder
    assert own.exists()  # it was somebody's: completed, not made anew


def test_an_environment_whose_interpreter_is_gone(clone: Clone) -> None:
    clone.setup()
    (clone.folder / ".venv" / "bin" / "python").unlink()
    assert "is ready" in clone.setup()
    assert clone.setup() == ""


def test_another_interpreter_is_asked_for(clone: Clone) -> None:
    clone.setup()
    other = clone.stand_ins / "other"
    other.write_text(f'#!/bin/sh\n[ "$1" != -c ] || echo 3.99\nexec {clone.stand_ins}/python3 "$@"\n')
    other.chmod(0o755)
    assert "is ready" in clone.setup(PYTHON=str(other))
    assert clone.setup(PYTHON=str(clone.stand_ins / "python3")) == ""


def test_a_changed_file_is_set_up_again(clone: Clone) -> None:
    clone.setup()
    os.utime(clone.folder / "constraints.txt")
    assert "is ready" in clone.setup()
    assert clone.setup() == ""


def test_two_at_once(clone: Clone) -> None:
    """`make demo` in one terminal, `make status` in the other."""
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda _: clone.setup(), range(2)))
    assert sorted("is ready" in each for each in said) == [False, True]
