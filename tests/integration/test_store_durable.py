"""What the state store has committed on SQLite is on the disk before anybody acts on it."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from stellerd import durable
from stellerd.durable import DurableConnection
from stellerd.errors import Unreachable
from stellerd.session import Pool
from stellerd.store import Store


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was flushed to the disk, in order."""
    paths: list[str] = []

    def instead_of(real: Callable[[int], None]) -> Callable[[int], None]:
        def flush(fd: int) -> None:
            paths.append(os.readlink(f"/proc/self/fd/{fd}"))
            real(fd)

        return flush

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(durable.os, name, instead_of(getattr(os, name)))
    return paths


def test_the_log_is_flushed_after_each_commit_and_its_folder_once(tmp_path: Path, flushed: list[str]) -> None:
    store = Store(f"sqlite:///{tmp_path}/state.db")
    store.create()
    assert flushed == [str(tmp_path), f"{tmp_path}/state.db-wal"]
    store.claim("job", None, "manual")
    assert flushed[2:] == [f"{tmp_path}/state.db-wal"]
    store.history()
    assert len(flushed) == 3, "reading needs no disk"
    store.close()


def test_nobody_has_to_wait_for_the_disk_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flush comes when the lock is free again."""
    one, other = (Store(f"sqlite:///{tmp_path}/state.db") for _ in range(2))
    one.create()
    found = []

    def flush(connection: DurableConnection) -> None:
        if not found:
            found.append("")
            found.append(type(other.claim("other", None, "manual")).__name__)

    monkeypatch.setattr(DurableConnection, "flush", flush)
    one.claim("job", None, "manual")
    assert found[1] == "Claim"
    for store in (one, other):
        store.close()


def test_a_disk_that_does_not_take_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"sqlite:///{tmp_path}/state.db")
    store.create()

    def full(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable.os, "fdatasync", full)
    with pytest.raises(Unreachable, match=r"state store \(sqlite://.*state.db\): Input/output error"):
        store.claim("job", None, "manual")
    store.close()


def test_a_folder_that_may_not_be_read_is_left_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Path, flags: int) -> int:
        if path == tmp_path:
            raise PermissionError(13, "Permission denied")
        return real(path, flags)

    monkeypatch.setattr(durable.os, "open", refuse)
    store = Store(f"sqlite:///{tmp_path}/state.db")
    store.create()
    assert store.history() == []
    store.close()


def test_a_process_without_a_free_descriptor_can_still_record(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/state.db")
    store.create()
    claim = store.claim("job", None, "manual")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        record = store.finish(claim, "ok", reason="", counters={})  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert record.state == "ok"
    store.close()


def test_closing_gives_all_descriptors_back(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        store = Store(f"sqlite:///{tmp_path}/state.db")
        store.create()
        store.claim("job", None, "manual")
        store.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    monkeypatch.chdir(os.fsdecode(folder))
    store = Store("sqlite:///state.db")
    store.create()
    assert store.history() == []
    store.close()


def test_in_memory_there_is_nothing_to_flush(flushed: list[str]) -> None:
    pool = Pool("sqlite://", "store")
    with pool.transaction(writes=True) as work:
        assert work.exec_driver_sql("PRAGMA synchronous").scalar() == 2, "FULL"
    pool.close()
    assert flushed == []


@pytest.mark.parametrize("url", ["{}/link.db", "file:{}/real/state.db?uri=true", "{}/real/../link.db?timeout=5"])
def test_the_log_is_found_where_sqlite_keeps_it(
    tmp_path: Path, flushed: list[str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "real/state.db")
    store = Store(f"sqlite:///{url.format(tmp_path)}")
    store.create()
    assert sorted(os.listdir(tmp_path)) == ["link.db", "real"]
    assert flushed == [f"{tmp_path}/real", f"{tmp_path}/real/state.db-wal"]
    store.close()
