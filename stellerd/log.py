"""Structured log lines: JSON when not a terminal, readable colours when it is; no secret gets through."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import structlog

from stellerd.secret import redact
from stellerd.texts import clean

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
        render = structlog.dev.ConsoleRenderer(
            colors=style == "color", pad_event_to=24, timestamp_key="ts",
            exception_formatter=structlog.dev.plain_traceback,  # the default one shows local variables: secrets
        )  # fmt: skip
    prefix = RECORD if marked else ""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            _with_traceback,
            _in_order,
            _redacted if style == "json" else _one_line,
            render,
            lambda logger, name, line: prefix + _tame(redact(str(line)), style).replace("\n", f"\n{prefix}"),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *args: _Writer(write),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=max(_LEVELS[level], logging.WARNING), force=True)


def set_level(level: str) -> None:
    """Change the least severe level of this process from now on."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]))


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
        try:
            exc_info = {"exc_info": record.exc_info} if record.exc_info else {}
            getattr(get(logger=record.name), level)(record.getMessage(), **exc_info)
        except Exception as error:  # noqa: BLE001  a wrong format in somebody's library is not the caller's failure
            get(logger=record.name).warning("unreadable log line", format=str(record.msg), reason=str(error))


def _in_order(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """When, how bad and what first; then who, then the rest."""
    first = {key: event.pop(key) for key in ("ts", "level", "event", "job", "run") if key in event}
    return first | dict(event)


def _with_traceback(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """`log.exception` and `exc_info`: the stack without local variables, which may hold secrets."""
    event = structlog.processors.format_exc_info(logger, name, event)
    if "exception" in event:
        event["traceback"] = event.pop("exception")
    return event


def _redacted(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Before a renderer quotes them, since a quoted secret looks different."""
    return {key: _without_secrets(value) for key, value in event.items()}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _without_secrets(item) for key, item in value.items()}
    return [_without_secrets(item) for item in value] if isinstance(value, list | tuple) else value


def _tame(line: str, style: str) -> str:
    """JSON escapes control characters below a blank only; terminals obey some above it too."""
    if style != "json" or line.isprintable():
        return line
    return "".join(char if char.isprintable() or ord(char) < 32 else _json_escape(char) for char in line)


def _json_escape(char: str) -> str:
    return json.dumps(char)[1:-1] if ord(char) != 127 else "\\u007f"


def _one_line(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Text from outside must not forge lines or drive the terminal; only tracebacks have line ends."""
    texts = _redacted(logger, name, event)
    stack = texts.pop("traceback", None)
    lines = {} if stack is None else {"exception": "\n".join(f"  {clean(line)}" for line in str(stack).split("\n"))}
    return {clean(key): clean(_for_people(key, value)) for key, value in texts.items()} | lines


def _for_people(key: str, value: Any) -> Any:
    """The time without its date, counters without zeros and braces."""
    if key == "ts":
        return str(value)[11:19] + "Z"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {amount:,}" if isinstance(amount, int) else f"{name} {amount}"
                         for name, amount in value.items() if amount)  # fmt: skip
    return value
