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
from stellerd.texts import reason_of

SEARCH = ("./stellerd.toml", "/etc/stellerd/stellerd.toml")
DEFAULT_SOCKET = "/run/stellerd/control.sock"
LARGEST = 1024 * 1024
"""Bytes of a configuration: a thousand jobs with all their settings fit in."""
DEFAULT_ADMIN_SOCKET = "/run/stellerd-admin/control.sock"
_SOCKETS = {"socket": DEFAULT_SOCKET, "admin_socket": DEFAULT_ADMIN_SOCKET}


def config_file(named: str | None) -> Path:
    """The configuration file: `-c`, then $STELLERD_CONFIG, then ./stellerd.toml, then /etc/stellerd/stellerd.toml.

    Root looks into /etc first, and takes a ./stellerd.toml only when nobody else could have written it: it says which
    programs run.

    Raises: ConfigError when none was named and none is found.
    """
    chosen = named or os.environ.get("STELLERD_CONFIG")
    if chosen:
        return Path(chosen)
    search = SEARCH if os.geteuid() else tuple(sorted(SEARCH, key=os.path.isabs, reverse=True))
    hint = ""
    for candidate in map(Path, search):
        if not _is_there(candidate):
            continue
        if os.geteuid() or candidate.is_absolute() or not (why := doubts(candidate)):
            return candidate
        hint = f"; root does not take ./{candidate}: {why[0]}"
    raise ConfigError(f"no configuration found: looked for {' and '.join(search)}; name one with -c FILE{hint}")


def _is_there(file: Path) -> bool:
    """Whether it is a file, or its folder is closed to this user: then `read` says to whom it is open."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except PermissionError:
        return True
    except OSError:
        return False


def doubts(file: Path) -> list[str]:
    """Why others than root and this user may say what runs here."""
    found = []
    for path in (file, file.absolute().parent):
        with contextlib.suppress(OSError):
            about = path.stat()
            sticky = stat.S_ISDIR(about.st_mode) and about.st_mode & stat.S_ISVTX
            if about.st_mode & 0o002 and not sticky:
                found.append(f"{path} can be written by every user: chmod o-w {path}")
            if about.st_uid not in (0, os.geteuid()):
                found.append(f"{path} belongs to user id {about.st_uid}, who can change what runs here")
    return found


def read(file: Path) -> str:
    """Its text.

    Raises: ConfigError when it cannot be read.
    """
    try:
        return _bytes(file).decode().replace("\r\n", "\n")
    except PermissionError:
        raise ConfigError(f"{file} is for {readers(file)}: permission denied") from None
    except OSError as error:
        raise ConfigError(f"{file}: {reason_of(error)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 at byte {error.start}") from None


def _bytes(file: Path) -> bytes:
    fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hang a reload
    with open(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"{file}: not a regular file")
        data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ConfigError(f"{file}: larger than {LARGEST:,} bytes")
    return data


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
    except (ValueError, RecursionError):  # a syntax error; a number of 5,000 digits; brackets without end
        pattern = r"^\s*(?:supervisor\s*\.\s*)?{}\s*=\s*[\"']([^\"']+)[\"']"
        return {key: match[1] for key in keys if (match := re.search(pattern.format(key), text, re.MULTILINE))}
    found = table if isinstance(table, dict) else {}
    return {key: v for key in keys if isinstance(v := found.get(key), str) and v and "\0" not in v}


def _is_admin(admins: Path, common: Path) -> bool:
    """Whether only the admins' socket gives all rights: root and the daemon's user have them at the common one."""
    try:
        return os.geteuid() not in (0, common.stat().st_uid) and os.access(admins, os.W_OK)
    except OSError:
        return os.access(admins, os.W_OK)
