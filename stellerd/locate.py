"""Where the configuration is, and the control socket it names: all that a client of a running daemon needs.

A mistake in the file must not keep an operator from the daemon, so nothing is validated here; and nothing heavy is
imported, so that `stellerd status` is quick.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stellerd.errors import ConfigError

SEARCH = ("./stellerd.toml", "/etc/stellerd/stellerd.toml")
DEFAULT_SOCKET = "/run/stellerd/control.sock"
DEFAULT_ADMIN_SOCKET = "/run/stellerd-admin/control.sock"
_SOCKETS = {"socket": DEFAULT_SOCKET, "admin_socket": DEFAULT_ADMIN_SOCKET}


def config_file(named: str | None) -> Path:
    """The configuration file: `-c`, then $STELLERD_CONFIG, then ./stellerd.toml, then /etc/stellerd/stellerd.toml.

    Raises: ConfigError when none was named and none is found.
    """
    chosen = named or os.environ.get("STELLERD_CONFIG")
    if chosen:
        return Path(chosen)
    for candidate in map(Path, SEARCH):
        with contextlib.suppress(PermissionError):
            if not candidate.is_file():
                continue
        return candidate  # or its folder is closed to this user: then `read` says to whom it is open
    raise ConfigError(f"no configuration found: looked for {' and '.join(SEARCH)}; name one with -c FILE")


def read(file: Path) -> str:
    """Its text.

    Raises: ConfigError when it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except PermissionError:
        raise ConfigError(f"{file} is for {readers(file)}: permission denied") from None
    except OSError as error:
        raise ConfigError(f"{file}: {os.strerror(error.errno or 0)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 at byte {error.start}") from None


def digest(text: str) -> str:
    """By which a client of the daemon sees whether its file is the configuration in force."""
    return hashlib.sha256(text.encode()).hexdigest()


def readers(file: Path) -> str:
    """Who may read it, for whoever may not: root, and whom the folder that is closed lets in, or the file."""
    place = next((folder for folder in reversed(file.parents) if not os.access(folder, os.X_OK)), file)
    found = place.stat()
    names = ["root"] if found.st_uid == 0 else ["root", f"the user {_name(pwd.getpwuid, found.st_uid)}"]
    if found.st_mode & stat.S_IRGRP:
        names.append(f"the members of {_name(grp.getgrgid, found.st_gid)}")
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _name(look_up: Callable[[int], tuple[Any, ...]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)


def control_socket(named: str | None) -> Path:
    """The control socket that this user is to use, also when the rest of the file is wrong.

    Raises: ConfigError when there is no file.
    """
    file = config_file(named)
    table = _supervisor_table(read(file))
    common, admins = (
        Path(os.path.normpath(file.parent.absolute() / table.get(key, default))) for key, default in _SOCKETS.items()
    )
    return admins if "admin_group" in table and _is_admin(admins, common) else common


def _supervisor_table(text: str) -> dict[str, str]:
    """What is written of the sockets, as far as it is usable."""
    keys = (*_SOCKETS, "admin_group")
    try:
        table = tomllib.loads(text).get("supervisor")
    except tomllib.TOMLDecodeError:
        pattern = r"^\s*(?:supervisor\s*\.\s*)?{}\s*=\s*[\"']([^\"']+)[\"']"
        return {key: match[1] for key in keys if (match := re.search(pattern.format(key), text, re.MULTILINE))}
    found = table if isinstance(table, dict) else {}
    return {key: value for key in keys if isinstance(value := found.get(key), str) and value}


def _is_admin(admins: Path, common: Path) -> bool:
    """Whether only the admins' socket gives all rights: root and the daemon's user have them at the common one."""
    try:
        return os.geteuid() not in (0, common.stat().st_uid) and os.access(admins, os.W_OK)
    except OSError:
        return os.access(admins, os.W_OK)
