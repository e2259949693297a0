"""What a job's process may be given of its own: environment, folder, mask, niceness, limits, user."""

from __future__ import annotations

import os
import pwd
import resource

from stellerd.errors import ConfigError
from stellerd.settings import JobSettings


def apply(job: JobSettings, where: str) -> None:
    """Change this process; the user last, since it may not change the rest any more.

    Raises: ConfigError when something cannot be had; `where` names the job's table.
    """
    os.environ.update(job.env)
    try:
        if job.cwd:
            os.chdir(job.cwd)
        if job.umask:
            os.umask(int(job.umask, 8))
        if job.nice:
            os.nice(job.nice)
        _no_core_file()
        for name, value in job.rlimits.items():
            _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value if os.geteuid() == 0 else hard))
        if job.user:
            _become(job.user, where)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _no_core_file() -> None:
    """It would hold the job's secrets: there is one only where `rlimits` says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if soft:
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _become(user: str, where: str) -> None:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f'{where}: user: there is no user "{user}"') from None
    if os.geteuid() == entry.pw_uid:
        return
    if os.geteuid() != 0:
        raise ConfigError(f"{where}: user: only root can start a job as another user")
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ |= {"HOME": entry.pw_dir, "USER": user, "LOGNAME": user}
