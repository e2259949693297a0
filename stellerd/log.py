"""Structured log lines: JSON when not a terminal, readable colours when it is; no secret gets through."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from stellerd import systemd
from stellerd.secret import redact
from stellerd.texts import clean


@contextlib.contextmanager
def _absent(module: str) -> Iterator[None]:
    """For what would be imported because it is there, unless it was already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with _absent("rich"):  # for structlog's tracebacks, which we do not show: 60 ms of each start, 3 MiB of each daemon
    import structlog

RECORD = "\x1e"
"""Starts each line that a job process logged itself, so that the parent can tell it from printed text (RFC 7464)."""
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Of syslog(3), by the logger's method."""
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def style_of(log_format: str, journal: bool | None = None) -> str:
    """json, text, color or flat: what `[supervisor] log_format` means for this process's standard error.

    flat: text whose tracebacks stay in the line, for the journal, which makes an entry of each line.
    """
    if log_format == "auto":
        return "color" if os.isatty(2) else "json"
    if log_format != "json" and (systemd.is_journal() if journal is None else journal):
        return "flat"
    return log_format


def write_to_stderr(line: str) -> None:
    """One write a line: whole lines even when several processes share the output."""
    data = line.encode("utf-8", "replace") + b"\n"
    while data:
        data = data[os.write(2, data) :]


class _Output:
    """Where this process's lines go, and how they are made."""

    write: Callable[[str], None] = staticmethod(write_to_stderr)
    marks = journal = False
    """Whether lines go through the parent's pump; whether they go to the journal."""
    manner = "", ""
    """Level and style that logging was built for."""

    def ready(self, method: str, line: str) -> str:
        """Each line of it with what tells its priority, where somebody wants to know."""
        priority = _PRIORITIES.get(method, 6)
        if self.marks:
            prefix = f"{RECORD}<{priority}>"
            return prefix + line.replace("\n", f"\n{prefix}")
        if self.journal:
            return systemd.journal_lines(line.encode("utf-8", "replace"), b"%d" % priority).decode("utf-8", "replace")
        return line


_output = _Output()


def configure(
    level: str = "info", style: str = "json", *, write: Callable[[str], None] = write_to_stderr, marked: bool = False,
    journal: bool | None = None,
) -> None:  # fmt: skip
    """Set up this process's logging. `style`: see `style_of`; `marked`: start each line with RECORD and its priority;
    `journal`: start each line with its priority, by default when standard error is the journal.

    A forked child that logs in its parent's manner only changes where lines go: the rest is shared memory.
    """
    _output.write, _output.marks = write, marked
    _output.journal = journal if journal is not None else write is write_to_stderr and systemd.is_journal()
    if _output.manner != (level, style) or not structlog.is_configured():
        _output.manner = level, style
        _build(level, style)


def _build(level: str, style: str) -> None:
    render: Any = structlog.processors.JSONRenderer(default=str, ensure_ascii=False)
    if style != "json":
        render = structlog.dev.ConsoleRenderer(
            colors=style == "color", pad_event_to=24, timestamp_key="ts",
            exception_formatter=structlog.dev.plain_traceback,  # the default one shows local variables: secrets
        )  # fmt: skip
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            _with_traceback,
            _in_order,
            {"json": _redacted, "flat": _flat}.get(style, _one_line),
            render,
            lambda logger, method, line: _output.ready(method, _tame(redact(str(line)), style)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *args: _Writer(_output.write),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=max(_LEVELS[level], logging.WARNING), force=True)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Lines are made as ever and go nowhere."""
    before, _output.write = _output.write, lambda line: None
    try:
        yield
    finally:
        _output.write = before


def set_level(level: str) -> None:
    """Change the least severe level of this process from now on."""
    _output.manner = level, _output.manner[1]
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
    stack = event.pop("traceback", None)
    lines = (
        {} if stack is None else {"exception": "\n".join(f"  {clean(line)}" for line in redact(str(stack)).split("\n"))}
    )
    return {**_flat(logger, name, event), **lines}


def _flat(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """As `_one_line`, tracebacks included."""
    texts = _redacted(logger, name, event)
    return {clean(key): clean(_for_people(key, value)) for key, value in texts.items()}


def _for_people(key: str, value: Any) -> Any:
    """The time without its date, counters without zeros and braces."""
    if key == "ts":
        return str(value)[11:19] + "Z"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {amount:,}" if isinstance(amount, int) else f"{name} {amount}"
                         for name, amount in value.items() if amount)  # fmt: skip
    return value
