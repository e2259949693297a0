"""The spool: a file is whole from the moment it has its name, and the same order is the same file."""

from __future__ import annotations

import json
import os
import stat
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from stellerd_order_queue.envelope import Envelopes, Message, iso_utc, message_id
from stellerd_order_queue.spool import SpoolPublisher

from stellerd import errors


def messages(count: int) -> list[Message]:
    made = Envelopes("spool:///x", "A:B", "orderId")
    return [made.build(str(n), r := str(uuid.uuid4()), message_id(r), iso_utc(datetime.now(UTC))) for n in range(count)]


def publish(folder: Path, batch: list[Message], size: int = 500) -> list[tuple[str, str]]:
    with SpoolPublisher(f"spool://{folder}", size) as publisher:
        return [(each.state, each.reason) for each in publisher.publish(batch)]


def test_one_file_a_message_named_by_its_id(spool: Path) -> None:
    batch = messages(7)
    assert publish(spool, batch, 3) == [("published", "")] * 7
    assert {file.name: file.read_bytes() for file in spool.iterdir()} == {f"{m.id}.json": m.body for m in batch}


def test_a_second_publish_is_the_same_file(spool: Path) -> None:
    (first,) = messages(1)
    later = Envelopes("spool:///x", "A:B", "orderId").build("0", first.correlation_id, first.id, "2099-01-01T00:00:00Z")
    publish(spool, [first, later])
    (file,) = spool.iterdir()
    assert json.loads(file.read_bytes())["sentTime"] == "2099-01-01T00:00:00Z"


def test_written_synced_renamed_synced_in_this_order(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut may leave depends on the order of these calls, which no test can cut at."""
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        whole = is_folder or os.fstat(fd).st_size == len(message.body)
        calls.append(("folder" if is_folder else "file") + ("" if whole else " too early"))
        real_fsync(fd)

    def replace(*args: Any, **named: Any) -> None:
        calls.append("rename")
        real_replace(*args, **named)

    (message,) = messages(1)
    with SpoolPublisher(f"spool://{spool}") as publisher:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace)
        outcomes = publisher.publish([message])
        assert next(outcomes).state == "published"
    assert calls == ["file", "rename", "folder"]


def test_a_reader_never_sees_half_a_file(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_fsync = os.fsync

    def fsync(fd: int) -> None:
        assert not list(spool.glob("*.json")) or stat.S_ISDIR(os.fstat(fd).st_mode)
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    publish(spool, messages(1))
    assert len(list(spool.glob("*.json"))) == 1


def test_a_message_that_cannot_be_written_fails_alone_and_leaves_nothing(spool: Path) -> None:
    good, bad, other = messages(3)
    spool.mkdir()
    (spool / f"{bad.id}.json").mkdir()  # a folder is in its place: the rename fails
    outcomes = publish(spool, [good, bad, other])
    assert [state for state, _ in outcomes] == ["published", "nacked", "published"]
    assert "Is a directory" in outcomes[1][1]
    assert list(spool.glob(".*.tmp")) == []


def test_a_disk_that_breaks_at_the_end_makes_all_of_the_batch_unknown(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_fsync = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(5, "Input/output error")
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    outcomes = publish(spool, messages(2))
    assert [state for state, _ in outcomes] == ["unknown", "unknown"]
    assert "Input/output error" in outcomes[0][1]


def test_what_a_killed_writer_left_is_removed_after_an_hour(spool: Path) -> None:
    spool.mkdir()
    old, new = spool / ".old.1.tmp", spool / ".new.2.tmp"
    for file in (old, new):
        file.write_text("{")
    os.utime(old, (0, 0))
    publish(spool, [])
    assert list(spool.iterdir()) == [new]


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.Unreachable, match=f"spool folder {tmp_path}/file/spool: Not a directory"):
        SpoolPublisher(f"spool://{tmp_path}/file/spool")


def test_names_in_the_url_may_be_percent_encoded(tmp_path: Path) -> None:
    publish(tmp_path / "a%20b", messages(1))
    assert len(list((tmp_path / "a b").iterdir())) == 1
