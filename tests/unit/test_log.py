"""Log lines: one event a line in every form, whatever somebody put into it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from stellerd import log, texts

HOSTILE = 'a\r\nb\x1b[31m\x9b2J\x7f\u2028\u2029\x85\x00 "q" \\'
FORGED = "2026-01-01T00:00:00Z [error    ] forged"


@pytest.fixture(autouse=True)
def undo() -> Iterator[None]:
    yield
    log.configure("info", "json")
    logging.basicConfig(handlers=[], force=True)


def logged(style: str, level: str = "debug", **options: Any) -> list[str]:
    lines: list[str] = []
    log.configure(level, style, write=lines.append, **options)
    return lines


def test_json_has_time_level_and_event_first() -> None:
    lines = logged("json")
    log.get(job="a", run=5).info("hello", other=1)
    assert list(json.loads(lines[0])) == ["ts", "level", "event", "job", "run", "other"]


def test_json_says_what_was_said() -> None:
    lines = logged("json")
    log.get().warning(HOSTILE, field=HOSTILE)
    row = json.loads(lines[0])
    assert (row["event"], row["field"], row["level"]) == (HOSTILE, HOSTILE, "warning")


def test_text_names_event_and_fields() -> None:
    lines = logged("text")
    log.get(job="brand_sync").info("ready", pid=7)
    assert lines[0].split()[1:] == ["[info", "]", "ready", "job=brand_sync", "pid=7"]


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("where", ["event", "value", "key", "nested"])
def test_no_field_can_forge_a_line_or_drive_the_terminal(style: str, where: str) -> None:
    lines = logged(style)
    hostile: dict[str, Any] = {"value": {"x": HOSTILE}, "key": {HOSTILE: 1}, "nested": {"x": [HOSTILE]}}.get(where, {})
    log.get().info(HOSTILE if where == "event" else "event", **hostile)
    [line] = lines
    assert line.isprintable(), repr(line)


@pytest.mark.parametrize("style", ["json", "text"])
def test_no_exception_can_drive_the_terminal(style: str) -> None:
    lines = logged(style)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.get().exception("it raised")
    assert all(part.isprintable() for part in lines[0].split("\n"))


def test_no_exception_can_forge_a_line_of_text() -> None:
    lines = logged("text")
    try:
        raise ValueError(f"x\n{FORGED}")
    except ValueError:
        log.get().exception("it raised")
    own, *rest = lines[0].split("\n")
    assert "it raised" in own
    assert rest
    assert all(line.startswith("  ") for line in rest)


@pytest.mark.parametrize("style", ["json", "text", "color"])
def test_an_exception_is_logged_with_its_stack_and_without_local_variables(style: str) -> None:
    lines = logged(style)
    hidden_local = "value-of-a-local"  # noqa: F841  a traceback with locals would show it
    try:
        raise ValueError("what went wrong")
    except ValueError:
        log.get().exception("it raised")
    assert "ValueError: what went wrong" in lines[0]
    assert sys._getframe().f_code.co_name in lines[0]
    assert "value-of-a" + "-local" not in lines[0].replace('hidden_local = "value-of-a-local"', "")


def test_lines_of_a_job_are_marked_each() -> None:
    lines = logged("text", mark=log.RECORD)
    log.get().error("x", traceback="Traceback\n  File\nValueError")
    assert all(line.startswith(log.RECORD) for line in lines[0].split("\n"))


def test_what_is_less_severe_than_the_level_is_not_logged() -> None:
    lines = logged("json", "warning")
    log.get().info("no")
    log.get().warning("yes")
    assert [json.loads(line)["event"] for line in lines] == ["yes"]


@pytest.mark.parametrize(("number", "level"), [(logging.WARNING, "warning"), (logging.CRITICAL, "error")])
def test_lines_of_libraries_have_our_form(number: int, level: str) -> None:
    lines = logged("json")
    logging.getLogger("library.x").log(number, "lost %s", "it")
    row = json.loads(lines[0])
    assert (row["event"], row["level"], row["logger"]) == ("lost it", level, "library.x")


def test_chatter_of_libraries_is_not_logged() -> None:
    lines = logged("json", "debug")
    logging.getLogger("library.x").info("connected")
    assert lines == []


def test_a_library_that_logs_an_exception_shows_its_stack() -> None:
    lines = logged("json")
    try:
        raise KeyError("gone")
    except KeyError:
        logging.getLogger("x").exception("oops")
    assert "KeyError: 'gone'" in json.loads(lines[0])["traceback"]


def test_a_library_that_logs_nonsense_fails_nobody() -> None:
    lines = logged("json")
    logging.getLogger("x").warning("%d of %d", "one")
    assert json.loads(lines[0])["format"] == "%d of %d"


def test_auto_means_json_unless_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.isatty", lambda fd: fd == 2)
    assert log.style_of("auto") == "color"
    monkeypatch.setattr("os.isatty", lambda fd: False)
    assert log.style_of("auto") == "json"
    assert log.style_of("text") == "text"


@pytest.mark.parametrize("value", ["plain text", "ünïcode €", 5, None, ["\x1b"]])
def test_clean_leaves_harmless_values_alone(value: Any) -> None:
    assert texts.clean(value) == value


def test_clean_shows_control_characters_as_escapes() -> None:
    assert texts.clean("a\nb\x1b\x9b\u202e") == "a\\nb\\x1b\\x9b\\u202e"
