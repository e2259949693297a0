"""Text from outside, made harmless for logs and terminals."""

from __future__ import annotations

from typing import Any


def clean_lines(text: str) -> str:
    """A text of several lines without any other control characters."""
    return "\n".join(map(clean, text.split("\n")))


def short_line(text: str, length: int) -> str:
    """The first line of a text without control characters, cut to `length` characters with "…"."""
    line = str(clean(text.strip().partition("\n")[0]))
    return line if len(line) <= length else f"{line[: length - 1]}…"


def clean(value: Any) -> Any:
    """A text without control characters; anything else as it is."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in value)
