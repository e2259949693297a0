"""Tables for people: right numbers, and no text from outside that drives the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellerd import views
from stellerd.status import RunRecord, iso

HOSTILE = "x\x1b[2J\x1b]0;title\x07\x9b31m\r\x00[bold red]markup[/bold red][/] [link=https://evil]y[/link]\\"
NOW = datetime.now(UTC)


def run(**more: Any) -> dict[str, Any]:
    record = RunRecord(1, "a", "ok", "schedule", started_at=NOW, finished_at=NOW + timedelta(seconds=2))
    return record.to_json() | more


def job(**more: Any) -> dict[str, Any]:
    return {
        "job": "a", "plugin": "a", "kind": "periodic", "state": "RUNNING", "since": iso(NOW), "pid": 5, "uptime": 7.0,
        "restarts": 0, "degraded": False, "paused": False, "reason": "", "detail": "", "every": 60.0, "run": None,
        "progress": None, "last_run": None, "next_run": None,
    } | more  # fmt: skip


def status(*jobs: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "1", "pid": 4, "started_at": iso(NOW), "uptime": 3.0, "config": "/x.toml", "stopping": False,
        "reload_refused": None, "log_lines_dropped": 0, "jobs": list(jobs),
    }  # fmt: skip


VIEWS: dict[str, Callable[[str], None]] = {
    "status reason": lambda text: views.status(status(job(reason=text)), False),
    "status detail": lambda text: views.status(status(job(detail=f"Traceback\n{text}")), False),
    "status reload": lambda text: views.status(status() | {"reload_refused": {"at": iso(NOW), "reason": text}}, False),
    "status last run": lambda text: views.status(status(job(last_run=run(reason=text))), False),
    "status counters": lambda text: views.status(status(job(last_run=run(counters={text: 1}))), False),
    "status next run": lambda text: views.status(
        status(job(next_run={"at": iso(NOW), "slot": iso(NOW), "trigger": "schedule", "why": text})), False
    ),
    "history reason": lambda text: views.history([run(reason=text)], [], False),
    "history counters": lambda text: views.history([run(counters={text: 1})], [], False),
    "outcome reason": lambda text: views.outcome(run(reason=text)),
    "outcome counters": lambda text: views.outcome(run(counters={text: 1})),
    "check reason": lambda text: views.check("f", [
        {"job": "a", "enabled": True, "ok": False, "reason": text, "exit_code": 78, "detail": text}], False, False),
    "plugins": lambda text: views.plugins([{"plugin": "a", "entry_point": text, "distribution": text}], False),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
def test_no_text_from_outside_drives_the_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    VIEWS[name](HOSTILE)
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))


@pytest.mark.parametrize("name", VIEWS)
def test_no_text_from_outside_is_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    VIEWS[name]("[bold red]m[/bold red]")
    assert "[bold red]m[/bold red]" in "".join(capsys.readouterr().out.split("\n"))


@pytest.mark.parametrize("text", ["[", "]", "[/", "[/]", "\\", "[red]\\", "[a][b", ""])
@pytest.mark.parametrize("name", VIEWS)
def test_no_text_from_outside_breaks_a_view(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    VIEWS[name](text)
    assert text.strip() in capsys.readouterr().out


def test_json_is_what_the_daemon_said(capsys: pytest.CaptureFixture[str]) -> None:
    reply = status(job(reason=HOSTILE))
    views.status(reply, True)
    assert json.loads(capsys.readouterr().out) == reply


def test_counters_that_are_zero_are_left_out() -> None:
    values = {"products": 8026, "new": 0, "gone": 12, "merge_ms": 7}
    assert views.counters(values) == "products 8,026, gone 12"
    assert views.counters(values, phases=True) == "products 8,026, gone 12, merge_ms 7"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (9.96, "10.0s"), (59, "59s"), (60, "1m"), (3599, "59m59s"), (7530, "2h5m"), (90061, "1d1h"),
     (86400 * 400, "400d")],
)  # fmt: skip
def test_a_duration_is_shown_with_its_two_largest_units(seconds: float, text: str) -> None:
    assert views.short(seconds) == text


@given(st.floats(0, 10**9))
def test_every_duration_can_be_shown_shortly(seconds: float) -> None:
    assert 2 <= len(views.short(seconds)) <= 9


def test_status_shows_each_job_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    running = run(state="running", kind_of_job="periodic")
    views.status(
        status(
            job(job="one", run=running, progress={"done": 1500, "total": 8026, "unit": "products"}),
            job(job="two", state="BACKOFF", pid=None, uptime=None, restarts=4, degraded=True, reason="exit code 3"),
            job(job="three", kind="service", run=running),
        ),
        False,
    )
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "running 1,500/8,026" in rows["one"]
    assert "degraded; 4 restarts; exit code 3" in rows["two"]
    assert "serving" in rows["three"]


def test_history_shows_a_run_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    views.history([run(state="partial", reason="brands: no answer", counters={"new": 3})], [], False)
    line = capsys.readouterr().out.splitlines()[1]
    assert [word for word in line.split() if word in ("a", "partial", "schedule", "2.0s")] == [
        "a", "partial", "schedule", "2.0s",
    ]  # fmt: skip
    assert line.split()[-5:] == ["new", "3", "brands:", "no", "answer"]
