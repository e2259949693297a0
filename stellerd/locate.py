"""Where the configuration is, and the control socket it names: all that a client of a running daemon needs.

A mistake in the file must not keep an operator from the daemon, so nothing is validated here; and nothing heavy is
imported, so that `stellerd status` is quick.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from pathlib import Path

from stellerd.errors import ConfigError

SEARCH = ("./stellerd.toml", "/etc/stellerd/stellerd.toml")
DEFAULT_SOCKET = "/run/stellerd/control.sock"
_SOCKET = re.compile(r"^\s*(?:supervisor\s*\.\s*)?socket\s*=\s*[\"']([^\"']+)[\"']", re.MULTILINE)


def config_file(named: str | None) -> Path:
    """The configuration file: `-c`, then $STELLERD_CONFIG, then ./stellerd.toml, then /etc/stellerd/stellerd.toml.

    Raises: ConfigError when none was named and none is found.
    """
    chosen = named or os.environ.get("STELLERD_CONFIG")
    if chosen:
        return Path(chosen)
    for candidate in map(Path, SEARCH):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"no configuration found: looked for {' and '.join(SEARCH)}; name one with -c FILE")


def read(file: Path) -> str:
    """Its text.

    Raises: ConfigError when it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: {os.strerror(error.errno or 0)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 at byte {error.start}") from None


def digest(text: str) -> str:
    """By which a client of the daemon sees whether its file is the configuration in force."""
    return hashlib.sha256(text.encode()).hexdigest()


def control_socket(named: str | None) -> Path:
    """The control socket, also when the rest of the file is wrong.

    Raises: ConfigError when there is no file.
    """
    file = config_file(named)
    text = read(file)
    try:
        table = tomllib.loads(text).get("supervisor")
        path = table.get("socket") if isinstance(table, dict) else None
    except tomllib.TOMLDecodeError:
        match = _SOCKET.search(text)
        path = match[1] if match else None
    return Path(os.path.normpath(file.parent.absolute() / (path if isinstance(path, str) else DEFAULT_SOCKET)))
