"""A machine that systemd boots, in namespaces of this one, and the commands that README.md has for it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Self

from daemon import REPOSITORY, until

BOOT = Path(__file__).parent / "boot"
_LOGIN = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root", "LANG": "C.UTF-8", "COLUMNS": "200", "SYSTEMD_PAGER": "",
}  # fmt: skip
_OPERATORS_LOOK = (
    "systemctl --no-pager --full status stellerd",
    "stellerd status",
    "journalctl --no-pager -o short -u stellerd -n 200",
)


def why_not() -> str:
    """What keeps this user or kernel from booting one; "" when nothing does."""
    if os.geteuid() != 0:
        return "booting systemd needs root"
    if not Path("/lib/systemd/systemd").exists():
        return "there is no /lib/systemd/systemd: apt-get install systemd"
    script = "mount -t cgroup2 none /mnt && mkdir /mnt/$0 && rmdir /mnt/$0 && mount -t tmpfs none /mnt"
    flags = ["--mount", "--pid", "--fork", "--cgroup", "--uts", "--ipc", "--mount-proc"]
    command = ["unshare", *flags, "sh", "-c", script, f"stellerd-probe-{os.getpid()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() and f"namespaces are not allowed here: {done.stderr.strip()}"


def readme_blocks(section: str) -> list[str]:
    """The shell blocks of a section of README.md, in order."""
    text = (REPOSITORY / "README.md").read_text()
    found = re.search(rf"^### {section}\n(.*?)^##", text, re.DOTALL | re.MULTILINE)
    assert found, f"README.md has no section {section}"
    return re.findall(r"^```sh\n(.*?)^```", found[1], re.DOTALL | re.MULTILINE)


class Machine:
    """A context manager: booted, and gone without a trace at the end, whatever happened in between.

    `/srv` is a copy of this repository without what git ignores, as a clone would be.
    """

    def __init__(self, folder: Path) -> None:
        self.work, self.clone = folder / "work", folder / "clone"
        self.cgroup = f"stellerd-test-{uuid.uuid4().hex[:8]}"
        self._log = folder / "boot.log"

    def __enter__(self) -> Self:
        self.work.mkdir()
        self.clone.mkdir()
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY, capture_output=True, check=True,
        ).stdout  # fmt: skip
        present = [name for name in names.decode().split("\0") if name and (REPOSITORY / name).exists()]
        subprocess.run(["cp", "--parents", "-t", str(self.clone), *present], cwd=REPOSITORY, check=True)
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", str(BOOT)]
        command += [str(self.work), str(self.clone), self.cgroup]
        with self._log.open("wb") as log:
            self._unshare = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            self.pid = until(self._systemd, what="systemd")
            until(lambda: self.run("systemctl is-system-running", check=False).stdout.strip() == "running", what="boot")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _systemd(self) -> int:
        """Pid of its PID 1 as seen from here, once it is systemd."""
        assert self._unshare.poll() is None, self._log.read_text()
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        if not children:
            return 0
        with contextlib.suppress(OSError):
            return int(children[0]) if Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n" else 0
        return 0

    def run(
        self, script: str, *, user: str = "root", input: str = "", check: bool = True, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """A bash script inside, in the clone, by this user with no more environment than a login has and pip's here."""
        env = {name: value for name, value in os.environ.items() if name.startswith("PIP_")} | _LOGIN | {"USER": user}
        env.pop("PIP_CONSTRAINT", None)
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--cgroup", "--uts", "--ipc"]
        become = [] if user == "root" else ["runuser", "-u", user, "--"]
        command = [*enter, "env", "-i", "-C", "/srv", *(f"{name}={value}" for name, value in env.items()), *become]
        done = subprocess.run(
            [*command, "bash", "-euo", "pipefail", "-c", script],
            input=input, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"exit {done.returncode}: {script}\n{done.stdout}\n{done.stderr}")
        return done

    def out(self, script: str, **options: str) -> str:
        """What it printed."""
        return self.run(script, **options).stdout.strip()  # type: ignore[arg-type]

    def journal(self, options: str = "") -> str:
        """The journal of the service."""
        return self.run(f"journalctl --no-pager -o short-precise -u stellerd {options}", check=False).stdout

    def said(self) -> str:
        """What an operator would look at."""
        return "\n".join(f"# {each}\n{self.run(each, check=False).stdout}" for each in _OPERATORS_LOOK)

    def close(self) -> None:
        """End every process, remove the control group."""
        self._unshare.send_signal(signal.SIGKILL)  # takes PID 1 along, and that all others
        self._unshare.wait()
        script = 'mount -t cgroup2 none "$1" && { [ ! -d "$1/$2" ] || find "$1/$2" -depth -type d -exec rmdir {} +; }'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", str(self.work), self.cgroup]
        until(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, what=self.cgroup)
