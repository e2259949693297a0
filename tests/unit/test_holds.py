"""Which jobs an operator stopped or paused is remembered, and a broken file holds nobody."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from stellerd.holds import Holds


def test_holds_survive_a_restart(tmp_path: Path) -> None:
    first = Holds(tmp_path / "new" / "holds.json")
    assert first.set("a", stopped=True) == ""
    first.set("b", paused=True)
    first.set("c", stopped=True)
    first.set("c", stopped=False)
    again = Holds(tmp_path / "new" / "holds.json")
    assert (again.stopped, again.paused) == ({"a"}, {"b"})


def test_the_file_is_for_the_daemon_alone(tmp_path: Path) -> None:
    Holds(tmp_path / "holds.json").set("a", stopped=True)
    assert stat.S_IMODE((tmp_path / "holds.json").stat().st_mode) == 0o600


def test_no_half_written_file_is_left(tmp_path: Path) -> None:
    Holds(tmp_path / "holds.json").set("a", stopped=True)
    assert [path.name for path in tmp_path.iterdir()] == ["holds.json"]


BROKEN = ["", "{", "[]", "5", "null", "{}", '{"stopped": 5, "paused": []}', '{"stopped": [["a"]], "paused": []}',
          '{"stopped": [5, "a"], "paused": []}', '{"stopped": ["a"], "paused": "b"}']  # fmt: skip


@pytest.mark.parametrize("text", [*BROKEN, "\udcff", "[" * 100_000], ids=range(12))
def test_a_file_that_cannot_be_used_holds_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "holds.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    holds = Holds(tmp_path / "holds.json")
    assert (holds.stopped, holds.paused) == (set(), set())
    assert holds.set("a", stopped=True) == ""


def test_a_folder_that_cannot_be_written_is_said_and_fails_nobody() -> None:
    holds = Holds(Path("/proc/no/holds.json"))
    assert holds.set("a", stopped=True).startswith("not remembered over a restart: /proc/no/holds.json: ")
    assert holds.stopped == {"a"}


@pytest.mark.parametrize("path", ["/", "a\0b"])
def test_a_name_that_no_file_can_have_is_said_and_fails_nobody(path: str) -> None:
    holds = Holds(Path(path))
    assert holds.set("a", stopped=True).startswith("not remembered over a restart: ")
    assert holds.stopped == {"a"}


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "holds.new").symlink_to("precious")
    Holds(tmp_path / "holds.json").set("a", stopped=True)
    assert (tmp_path / "precious").read_text() == "precious"
