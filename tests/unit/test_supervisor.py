"""The supervisor hears nonsense from a job and lives on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stellerd import config
from stellerd.control import Occupied
from stellerd.logpump import Sink
from stellerd.supervisor import Supervisor


class Stub:
    """Stands for a job's process: only whether it was killed matters here."""

    pid = 0

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    null = os.open(os.devnull, os.O_WRONLY)
    text = f'[supervisor]\nholds = "{tmp_path}/holds.json"\nsocket = "{tmp_path}/s"\n[jobs.a]\n'
    made = Supervisor(config.parse(text, tmp_path / "x.toml"), Sink(null), "json")
    yield made
    made.loop.close()
    os.close(null)


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "ready"}, {"kind": "ready", "job_kind": 5}, {"kind": "trouble"}, {"kind": "recycle"},
        {"kind": "run_started"}, {"kind": "run_started", "id": 1}, {"kind": "progress"},
    ],
    ids=str,
)  # fmt: skip
def test_a_message_that_no_job_sends_kills_its_sender_alone(supervisor: Supervisor, message: dict[str, Any]) -> None:
    job, process = supervisor.fleet.jobs["a"], Stub()
    job.process = process  # type: ignore[assignment]
    supervisor.fleet.on_message(job, message)
    assert process.killed


@pytest.mark.parametrize("message", [{"kind": "unheard of"}, {"kind": ""}, {"kind": "_heed"}], ids=str)
def test_a_message_that_means_nothing_changes_nothing(supervisor: Supervisor, message: dict[str, Any]) -> None:
    job, process = supervisor.fleet.jobs["a"], Stub()
    job.process = process  # type: ignore[assignment]
    supervisor.fleet.on_message(job, message)
    assert not process.killed


def test_a_place_that_stays_occupied_ends_the_start(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stellerd.supervisor._OCCUPIED_S", 0.2)
    fd = os.open(tmp_path / "s.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(Occupied):
        supervisor._open_control()
    os.close(fd)
