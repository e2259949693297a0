"""The control socket's wire, for both ends: one JSON object a line, each way."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as it is sent."""
    return json.dumps(message).encode() + b"\n"


class Lines:
    """What has arrived and was not taken yet, cut into lines."""

    def __init__(self) -> None:
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def add(self, data: bytes) -> None:
        """Take in what a read returned."""
        self._data += data

    def has_line(self) -> bool:
        """Whether `take` would return one."""
        return b"\n" in self._data

    def take(self) -> bytes | None:
        """The next whole line without its end; None when there is none."""
        end = self._data.find(b"\n")
        if end < 0:
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of a socket's path that fits the 107 bytes of unix(7), however deep its folder is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
