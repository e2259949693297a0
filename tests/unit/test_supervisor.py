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


def test_run_after_run_leaves_nothing_behind_in_the_daemon(supervisor: Supervisor) -> None:
    job = supervisor.fleet.jobs["a"]
    job.process, job.heartbeat = Stub(), supervisor.fleet.heartbeats.slot()  # type: ignore[assignment]
    job.heartbeat_timeout = 60.0
    finished = {"kind": "run_finished", "state": "ok", "trigger": "schedule", "reason": "", "counters": {}}
    for number in range(2000):
        started = {"kind": "run_started", "id": number, "trigger": "schedule", "kind_of_job": "periodic"}
        supervisor.fleet.on_message(job, started)
        supervisor.fleet.on_message(job, {**finished, "id": number})
    assert len(job.timers) + len(job.run_timers) <= 2
    assert len(supervisor.loop._timers) < 200


def test_a_place_that_stays_occupied_ends_the_start(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stellerd.supervisor._OCCUPIED_S", 0.2)
    fd = os.open(tmp_path / "s.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(Occupied):
        supervisor._open_control()
    os.close(fd)


def test_a_run_is_watched_by_what_its_process_knows(supervisor: Supervisor) -> None:
    job = supervisor.fleet.jobs["a"]
    job.process, job.heartbeat = Stub(), supervisor.fleet.heartbeats.slot()  # type: ignore[assignment]
    job.settings = job.settings.model_copy(update={"heartbeat_timeout": 60.0, "stop_signal": "USR1"})  # a reload
    started = {"kind": "run_started", "trigger": "schedule", "kind_of_job": "service"}
    supervisor.fleet.on_message(job, {**started, "id": 1})
    assert (job.run_timers, job.stop_signal) == ([], "TERM")
    told = {"kind": "configured", "every": 60.0, "heartbeat_timeout": 60.0, "stop_signal": "USR1"}
    supervisor.fleet.on_message(job, told)
    supervisor.fleet.on_message(job, {**started, "id": 2})
    assert (len(job.run_timers), job.stop_signal) == (1, "USR1")
