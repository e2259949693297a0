"""Values that reach no log, no traceback and no page: where they come from and how they are read."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from stellerd import redaction
from stellerd.texts import reason_of

_held: dict[str, str] = {}
"""Credentials that were read while this process still might."""
_SOURCES = ("env", "file", "credential")
_HARMLESS_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^@?#]*")
_HOW = 'write { env = "NAME" }, { file = "path" } or { credential = "name" }'


class Secret:
    """A secret's source; `reveal()` reads it anew each time, so that a rotated one is picked up.

    In TOML: `{ env = "NAME" }`, `{ file = "path" }` (mode 0600 or stricter, relative to the configuration file),
    `{ credential = "name" }` (systemd's $CREDENTIALS_DIRECTORY), or a plain string for what is not secret.
    """

    __slots__ = ("_value", "base", "source")

    def __init__(self, source: str, value: str, base: Path | None = None) -> None:
        self.source, self._value, self.base = source, value, base or Path()

    def __repr__(self) -> str:
        return f"Secret({self.shown()!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self.source, self._value) == (other.source, other._value)

    def __hash__(self) -> int:
        return hash((self.source, self._value))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    def __reduce__(self) -> Any:
        if self.source == "plain":
            raise TypeError("a Secret with a plain value cannot be pickled: it would take the value along")
        return Secret, (self.source, self._value, self.base)

    @staticmethod
    def redact(text: str) -> str:
        """A text from outside without any secret that this process has read; to be called before it is cut."""
        return redaction.redact(text)

    def shown(self) -> str | dict[str, str]:
        """What a person may see: the source, or the plain value when it is a URL without a password."""
        if self.source != "plain":
            return {self.source: self._value}
        return self._value if _HARMLESS_URL.fullmatch(self._value) else "***"

    def reveal(self) -> str:
        """The value itself. Hold it for as short as possible, put it nowhere.

        Raises: ValueError saying what is missing, without the value.
        """
        value = self._read_source()
        if self.shown() != value:
            redaction.remember(value)
        return value

    def _read_source(self) -> str:
        if self.source == "plain":
            return self._value
        if self.source == "env":
            if self._value not in os.environ:
                raise ValueError(f"environment variable {self._value} is not set")
            return os.environ[self._value]
        if self.source == "credential" and self._value in _held:
            return _held[self._value]
        if self.source == "file":
            return self.read(self.base / self._value, check_mode=True)
        return self.read(self._credential(), check_mode=False)

    def _credential(self) -> Path:
        """Where systemd put it; what it does not find it leaves out, if the unit names no path."""
        name, folder = self._value, os.environ.get("CREDENTIALS_DIRECTORY")
        if folder and os.path.exists(os.path.join(folder, name)):  # a closed folder raises on some Pythons only
            return Path(folder) / name
        cause = "" if folder else ": $CREDENTIALS_DIRECTORY is not set; a command beside the service finds it as root"
        raise ValueError(
            f'credential "{name}" is missing{cause}; a unit takes it by LoadCredential={name}:stellerd.{name} '
            f"from /etc/credstore/stellerd.{name} when it starts"
        )

    @staticmethod
    def read(path: Path, check_mode: bool) -> str:
        """The text of a secret file. Raises: ValueError saying why there is none."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hang
        except OSError as error:
            raise ValueError(f"secret file {path}: {reason_of(error)}") from None
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"secret file {path}: not a regular file")
            if check_mode and stat.S_IMODE(mode) & 0o077:
                raise ValueError(f"secret file {path} is readable by others: chmod 600 {path}")
            with open(fd, "rb", closefd=False) as stream:
                value = stream.read().decode().rstrip("\r\n")
            if not value:
                raise ValueError(f"secret file {path} is empty")
            return value
        except UnicodeDecodeError:
            raise ValueError(f"secret file {path}: not UTF-8") from None
        finally:
            os.close(fd)

    @classmethod
    def parse(cls, raw: Any, info: ValidationInfo) -> Secret:
        """A TOML value as a Secret.

        Raises: ValueError when it is neither a string nor a table with one known source.
        """
        if isinstance(raw, Secret):
            return raw
        base = (info.context or {}).get("base")
        if isinstance(raw, str):
            return cls("plain", raw, base)
        if isinstance(raw, dict) and len(raw) == 1:
            [(source, value)] = raw.items()
            if source in _SOURCES and isinstance(value, str) and value:
                return cls(source, value, base)
        raise ValueError(f"not a secret: {_HOW}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(cls.shown)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        one = [
            {"type": "object", "properties": {s: {"type": "string"}}, "required": [s], "additionalProperties": False}
            for s in _SOURCES
        ]
        return {"anyOf": [*one, {"type": "string"}]}


def hold_credentials(folder: Path) -> None:
    """Read what there is of a folder of credentials, before this process becomes one that may not."""
    with contextlib.suppress(OSError):  # there is none, or it is not for us
        for path in folder.iterdir():
            with contextlib.suppress(ValueError):
                _held[path.name] = Secret.read(path, check_mode=False)
