"""Processes that end with the process that wanted them, even when that ends by `kill -9`.

    watched = Watched(folder, [["server", …], ["helper"]], env, signal.SIGQUIT)
    watched.pid; watched.alive(); watched.end(signal.SIGTERM)

Between the two stands a watchdog, this file run as a script: it starts the commands and sleeps, without a tick, until
the first of them or the owner is gone. A pidfd and not the end of a pipe tells it so, because forked children of the
owner would hold a pipe open; PR_SET_PDEATHSIG is no use here, a command loses it when it gives up root.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

GRACE_S = 10.0
STOP_TIMEOUT_S = 30.0


class Watched:
    """The owner's side. The first command is the server; `how` is sent to what is left when it or the owner is gone.

    All run in `folder`, their output goes to `folder`/out. Raises: RuntimeError when a command cannot be run.
    """

    def __init__(self, folder: Path, commands: list[list[str]], env: Mapping[str, str], how: signal.Signals) -> None:
        plan = {"owner": os.getpid(), "folder": str(folder), "commands": commands, "signal": int(how)}
        self.watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps(plan)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=env,
            start_new_session=True,  # Ctrl-C is meant for the owner, which ends the server when it is done with it
        )
        assert self.watchdog.stdout is not None
        with self.watchdog.stdout as pipe:
            pids: list[int] = json.loads(pipe.readline() or b"[]")
        if not pids:
            raise RuntimeError(f"could not run {' '.join(command[0] for command in commands)}")
        self.pid = pids[0]

    def alive(self) -> bool:
        """False once the server has ended and its helpers with it."""
        return self.watchdog.poll() is None

    def end(self, how: signal.Signals) -> None:
        """Send `how` to the server and wait until all is gone; who does not listen is killed."""
        if self.alive():
            os.kill(self.pid, how)
        try:
            self.watchdog.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            self.watchdog.wait(STOP_TIMEOUT_S)


def watch(owner: int, folder: Path, commands: list[list[str]], how: int) -> None:
    """The watchdog's side: say the process ids as a JSON list, sleep, end what is left, tidy up after a dead owner."""
    owner_fd = os.pidfd_open(owner)
    if os.getppid() != owner:
        return  # it died before the pidfd was there; the number may be somebody else's by now
    children: list[subprocess.Popen[bytes]] = []
    ready: list[int] = []
    try:
        with (folder / "out").open("ab") as out:
            for command in commands:
                children.append(subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out))
        os.write(1, json.dumps([child.pid for child in children]).encode() + b"\n")
        ready, _, _ = select.select([owner_fd, os.pidfd_open(children[0].pid)], [], [])
    finally:
        for child in children:
            end(child, how)
        if owner_fd in ready:
            shutil.rmtree(folder, ignore_errors=True)


def end(child: subprocess.Popen[bytes], how: int) -> None:
    """Ask one child to end, kill it after the grace, reap it."""
    child.send_signal(how)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    plan = json.loads(sys.argv[1])
    watch(plan["owner"], Path(plan["folder"]), plan["commands"], plan["signal"])
