"""What one run is handed."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from stellerd import Context
from stellerd.context import Services
from stellerd.errors import Unreachable

NOW = datetime(2026, 2, 1, tzinfo=UTC)


class World:
    """Services that remember what they were asked."""

    def __init__(self) -> None:
        self.put_aside: list[tuple[Any, ...]] = []
        self.progress: list[tuple[Any, ...]] = []
        self.waits: list[float] = []
        self.stopping = False

    def services(self) -> Services:
        nothing: Any = None
        return Services(
            log=structlog.get_logger(), limiter=nothing, cursor=nothing, engine=nothing,
            broker_urls=lambda: ["spool:///x"], wait=self.wait, progress=lambda *a: self.progress.append(a),
            quarantine=lambda *a: self.put_aside.append(a), now=lambda: NOW,
        )  # fmt: skip

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return self.stopping


@pytest.fixture
def world() -> World:
    return World()


def context(world: World, **more: Any) -> Context:
    return Context(world.services(), job="a", settings=None, **{"run_id": 7} | more)


def test_counters_add_up(world: World) -> None:
    ctx = context(world)
    ctx.count(new=2, changed=1)
    ctx.count(new=3)
    assert ctx.counters == {"new": 5, "changed": 1}


def test_the_counters_of_the_outcome_win(world: World) -> None:
    ctx = context(world)
    ctx.count(new=2, seen=9)
    ctx.merge({"new": 5})
    assert ctx.counters == {"new": 5, "seen": 9}


def test_stopping_asks_without_waiting(world: World) -> None:
    ctx = context(world)
    assert not ctx.stopping
    world.stopping = True
    assert ctx.stopping
    assert world.waits == [0, 0]


def test_a_wait_is_as_long_as_asked(world: World) -> None:
    context(world).wait(2.5)
    assert world.waits == [2.5]


def test_a_quarantined_item_belongs_to_the_run_and_is_counted(world: World) -> None:
    ctx = context(world)
    ctx.quarantine("brand", "X", "no id", {"a": 1})
    assert world.put_aside == [(7, "brand", "X", "no id", {"a": 1})]
    assert ctx.counters == {"quarantined": 1}


def test_a_dry_run_counts_but_puts_nothing_aside(world: World) -> None:
    ctx = context(world, dry_run=True)
    ctx.quarantine("brand", "X", "no id")
    assert (world.put_aside, ctx.counters) == ([], {"quarantined": 1})


def test_a_quarantined_items_key_may_be_a_number(world: World) -> None:
    ctx = context(world)
    ctx.quarantine("brand", 5, ValueError("no id"))  # type: ignore[arg-type]
    assert world.put_aside == [(7, "brand", "5", "no id", None)]


def test_what_could_not_be_put_aside_is_not_counted(world: World) -> None:
    def away(*_: Any) -> None:
        raise Unreachable("away")

    ctx = Context(replace(world.services(), quarantine=away), job="a", settings=None, run_id=7)
    with pytest.raises(Unreachable):
        ctx.quarantine("brand", "X", "no id")
    assert ctx.counters == {}


class Memory:
    """A cursor that the store would keep."""

    def __init__(self, **kept: Any) -> None:
        self.kept = kept

    def get(self, key: str, default: Any = None) -> Any:
        return self.kept.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.kept[key] = value


def with_cursor(world: World, memory: Memory, **more: Any) -> Context:
    cursor: Any = memory
    return Context(replace(world.services(), cursor=cursor), job="a", settings=None, **more)


def test_a_dry_run_reads_cursors_and_moves_none(world: World) -> None:
    memory = Memory(page=3)
    cursor = with_cursor(world, memory, dry_run=True).cursor
    assert cursor.get("page") == 3
    cursor.set("page", 4)
    assert cursor.setdefault("seen", [1]) == [1]
    assert (cursor.get("page"), cursor.get("seen")) == (4, [1])
    assert memory.kept == {"page": 3}
    assert with_cursor(world, memory, dry_run=True).cursor.get("page") == 3


def test_a_dry_run_refuses_what_a_real_one_could_not_remember(world: World) -> None:
    with pytest.raises(TypeError):
        with_cursor(world, Memory(), dry_run=True).cursor.set("x", object())


def test_a_real_run_moves_them(world: World) -> None:
    memory = Memory()
    with_cursor(world, memory).cursor.set("page", 4)
    assert memory.kept == {"page": 4}


def test_progress_is_handed_on(world: World) -> None:
    context(world).progress(3, 10, "brands")
    assert world.progress == [(3, 10, "brands")]


def test_a_run_without_a_slot_has_the_present_as_its_slot(world: World) -> None:
    assert context(world).slot == context(world).now() == NOW


def test_a_run_has_the_slot_it_is_for(world: World) -> None:
    slot = datetime(2026, 1, 1, tzinfo=UTC)
    assert context(world, slot=slot).slot == slot


def test_a_job_has_a_folder_of_its_own(world: World, tmp_path: Path) -> None:
    ctx = Context(replace(world.services(), folder=tmp_path), job="a", settings=None)
    assert ctx.folder == ctx.folder == tmp_path / "jobs" / "a"
    assert stat.S_IMODE(ctx.folder.stat().st_mode) == 0o700


def _link(path: Path) -> None:
    (path.parent / "real").mkdir(mode=0o700)
    path.symlink_to(path.parent / "real")


def _open_to_others(path: Path) -> None:
    path.mkdir()
    path.chmod(0o750)


@pytest.mark.parametrize("spoil", [_link, _open_to_others, Path.touch, lambda path: path.parent.rmdir()])
def test_a_folder_that_is_not_the_jobs_alone_is_not_used(
    world: World, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    (tmp_path / "jobs").mkdir()
    spoil(tmp_path / "jobs" / "a")
    if not (tmp_path / "jobs").exists():
        (tmp_path / "jobs").touch()
    with pytest.raises(Unreachable):
        _ = Context(replace(world.services(), folder=tmp_path), job="a", settings=None).folder


def test_without_a_place_for_it_a_job_has_no_folder(world: World) -> None:
    with pytest.raises(Unreachable, match=r"set \[state\] folder"):
        _ = context(world).folder
