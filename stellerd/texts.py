"""Text for people: from outside, made harmless for logs and terminals, and from the operating system."""

from __future__ import annotations

import os
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


def reason_of(error: OSError | ValueError) -> str:
    """Why a call of the operating system failed; Python's own refusals have no number, only words."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error) or type(error).__name__
