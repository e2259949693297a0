"""An operator's command beside the service: it sees the service's credentials and, as root, acts for its user.

Only commands that work on the state themselves need it; what the daemon is asked over its socket, it does as itself.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

from stellerd import secret
from stellerd.config import Config
from stellerd.errors import ConfigError, Unreachable

CREDENTIALS = (Path("/run/credentials/stellerd.service"), Path("/etc/stellerd/credentials"))
"""Where they are while the unit runs, and where its LoadCredential lines take them from."""


def act_for_owner(config: Config) -> None:
    """Read the service's credentials; as root, become whose state it is, so that no file of root's is left in it.

    Raises: ConfigError when the state's place cannot be told; Unreachable when that user cannot be had.
    """
    use_credentials()
    if os.geteuid() == 0:
        owner = _owner(config)
        if owner is not None and owner.st_uid != 0:
            _become(owner.st_uid, owner.st_gid)


def use_credentials() -> None:
    """Read the service's credentials, as far as this user may, unless this process has its own."""
    if "CREDENTIALS_DIRECTORY" not in os.environ:
        for folder in reversed(CREDENTIALS):  # those in use count more
            secret.hold_credentials(folder)


def _owner(config: Config) -> os.stat_result | None:
    """stat(2) of the state's folder, or of the store's file when the folder is root's, as /tmp is."""
    try:
        places = [config.state_folder(), config.state_file()]
    except ConfigError:  # a secret is missing: the command will say so
        return None
    for place in places:
        with contextlib.suppress(OSError):  # it is not there, or not for this root
            if place is not None and (found := place.stat()).st_uid != 0:
                return found
    return None


def _become(uid: int, gid: int) -> None:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # a user without a name, of a container or another host
        entry = None
    try:
        if entry:
            os.initgroups(entry.pw_name, entry.pw_gid)
            os.environ["HOME"] = entry.pw_dir  # not LOGNAME: that is who did it (`stellerd history`)
        else:
            os.setgroups([])
        os.setgid(entry.pw_gid if entry else gid)
        os.setuid(uid)
    except OSError as error:
        name = entry.pw_name if entry else uid
        raise Unreachable(f"the state is user {name}'s and this root cannot act for it: {error.strerror}") from None
