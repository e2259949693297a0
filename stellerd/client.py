"""The operator's end of the control socket."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from stellerd.errors import StellerdError, Unreachable


class Refused(StellerdError):
    """The daemon said no; `exit_code` is what it named."""


def ask(path: Path, command: str, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
    """Send one command, return the daemon's reply.

    Raises: Unreachable when no daemon answers; Refused with the daemon's own words.
    """
    try:
        reply = _exchange(path, json.dumps({"command": command, **fields}).encode() + b"\n", timeout)
    except (FileNotFoundError, ConnectionRefusedError):
        raise Unreachable(f"no daemon answers at {path}; start it with: stellerd run") from None
    except PermissionError:
        raise Unreachable(f"{path}: permission denied; use the daemon's user or root") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Unreachable(f"the daemon at {path} does not answer: {error}") from None
    if not reply.pop("ok", False):
        refused = Refused(str(reply.get("error", "refused")))
        refused.exit_code = int(reply.get("code", 1))
        raise refused
    return reply


def _exchange(path: Path, request: bytes, timeout: float) -> dict[str, Any]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            # through the folder's descriptor: the path itself may be longer than unix(7) allows
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")
            connection.sendall(request)
            with connection.makefile("rb") as replies:
                line = replies.readline()
    finally:
        os.close(folder)
    if not line:
        raise ValueError("it hung up")
    reply = json.loads(line)
    if not isinstance(reply, dict) or not isinstance(reply.get("code", 1), int):
        raise ValueError("what it says is no reply")
    return reply
