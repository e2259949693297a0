"""Which jobs an operator stopped or paused: remembered over restarts of the daemon in a small file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from stellerd import log
from stellerd.texts import reason_of


class Holds:
    """Two sets of job names, written to `path` at each change. A file that cannot be used is only a warning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stopped: set[str] = set()
        self.paused: set[str] = set()
        self._read()

    def _read(self) -> None:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            self.stopped, self.paused = _names(data["stopped"]), _names(data["paused"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.get().error("cannot read who was stopped or paused; nobody is", file=str(self.path), reason=str(error))

    def set(self, job: str, *, stopped: bool | None = None, paused: bool | None = None) -> str:
        """Remember; the reason when it could not be written, else an empty text."""
        for names, wanted in ((self.stopped, stopped), (self.paused, paused)):
            if wanted is not None:
                (names.add if wanted else names.discard)(job)
        try:
            self._write()
        except (OSError, ValueError) as error:
            reason = f"not remembered over a restart: {self.path}: {reason_of(error)}"
            log.get().warning("hold not written", job=job, reason=reason)
            return reason
        return ""

    def _write(self) -> None:
        """Whole or not at all, also through a power cut."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            json.dump({"stopped": sorted(self.stopped), "paused": sorted(self.paused)}, stream)
            stream.flush()
            os.fsync(fd)
        new.replace(self.path)


def _names(value: object) -> set[str]:
    """Raises: TypeError when it is no list of texts."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("not a list of job names")
    return set(value)
