"""The shapes of runs: what programs get as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellerd.status import EXIT_OF_STATE, RUN_STATES, RunRecord, from_iso, iso

AT = datetime(2026, 2, 1, 12, 0, tzinfo=UTC)


def record(state: str = "ok", **more: object) -> RunRecord:
    return RunRecord(1, "a", state, "schedule", **more)  # type: ignore[arg-type]


@given(st.datetimes(timezones=st.timezones()))
def test_a_time_survives_as_text_to_the_millisecond(at: datetime) -> None:
    try:
        at.astimezone(UTC)
    except OverflowError:
        return
    back = from_iso(iso(at))
    assert timedelta(0) <= at - back < timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (AT, "2026-02-01T12:00:00Z"),
        (AT + timedelta(milliseconds=5), "2026-02-01T12:00:00.005Z"),
        (datetime(2026, 2, 1, 13, 0, tzinfo=timezone(timedelta(hours=1))), "2026-02-01T12:00:00Z"),
    ],
)
def test_a_time_is_shown_in_utc(at: datetime, text: str) -> None:
    assert iso(at) == text


@pytest.mark.parametrize("state", [state for state in RUN_STATES if state != "running"])
def test_every_end_has_an_exit_code(state: str) -> None:
    assert record(state).exit_code == EXIT_OF_STATE[state]


def test_the_code_of_an_error_says_more_than_the_state() -> None:
    assert record("failed", code=69).exit_code == 69


def test_a_run_as_json_has_every_key() -> None:
    shown = record(started_at=AT, finished_at=AT + timedelta(seconds=1.5), counters={"n": 1}).to_json()
    assert json.loads(json.dumps(shown)) == {
        "id": 1, "job": "a", "state": "ok", "trigger": "schedule", "slot": None, "attempt": 1, "reason": "",
        "counters": {"n": 1}, "host": "", "pid": 0, "started_at": "2026-02-01T12:00:00Z",
        "finished_at": "2026-02-01T12:00:01.500Z", "not_before": None, "seconds": 1.5, "exit_code": 0,
    }  # fmt: skip


def test_a_run_that_goes_on_has_neither_seconds_nor_an_exit_code() -> None:
    shown = record("running", started_at=AT).to_json()
    assert (shown["seconds"], shown["exit_code"]) == (None, None)
