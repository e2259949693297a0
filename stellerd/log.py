"""Structured log lines: JSON when not a terminal, readable colours when it is; no secret gets through."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from stellerd.secret import redact

RECORD = "\x1e"
"""Starts each line that a job process logged itself, so that the parent can tell it from printed text (RFC 7464)."""
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def style_of(log_format: str) -> str:
    """json, text or color: what `[supervisor] log_format` means for this process's standard error."""
    return ("color" if os.isatty(2) else "json") if log_format == "auto" else log_format


def write_to_stderr(line: str) -> None:
    """One write a line: whole lines even when several processes share the output."""
    data = line.encode("utf-8", "replace") + b"\n"
    while data:
        data = data[os.write(2, data) :]


def configure(
    level: str = "info", style: str = "json", *, write: Callable[[str], None] = write_to_stderr, marked: bool = False
) -> None:
    """Set up this process's logging. `style`: see `style_of`; `marked`: start each line with RECORD."""
    render: Any = structlog.processors.JSONRenderer(default=str, ensure_ascii=False)
    if style != "json":
        render = structlog.dev.ConsoleRenderer(colors=style == "color", pad_event_to=24, timestamp_key="ts")
    prefix = RECORD if marked else ""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            _in_order,
            _keep if style == "json" else _one_line,
            render,
            lambda logger, name, line: prefix + redact(str(line)).replace("\n", f"\n{prefix}"),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *args: _Writer(write),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=max(_LEVELS[level], logging.WARNING), force=True)


def get(**fields: Any) -> Any:
    """A logger that adds `fields` to each line."""
    return structlog.get_logger().bind(**fields)


class _Writer:
    def __init__(self, write: Callable[[str], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = self.msg = write


class _Bridge(logging.Handler):
    """Lines of third-party libraries, with our fields."""

    def emit(self, record: logging.LogRecord) -> None:
        level = (
            "error" if record.levelno >= logging.ERROR else "warning" if record.levelno >= logging.WARNING else "info"
        )
        getattr(get(logger=record.name), level)(record.getMessage())


def _in_order(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """When, how bad and what first; then who, then the rest."""
    first = {key: event.pop(key) for key in ("ts", "level", "event", "job", "run") if key in event}
    return first | dict(event)


def _keep(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return event


def _one_line(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Text from outside must not forge lines or drive the terminal; only our own tracebacks have line ends."""
    return {key: clean(value) if key != "traceback" else value for key, value in event.items()}


def clean(value: Any) -> Any:
    """A text without control characters; anything else as it is."""
    if not isinstance(value, str):
        return value
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in value)
