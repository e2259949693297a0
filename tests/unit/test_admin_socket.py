"""The admin group's own socket: who is let in there, and which folder it must stand in."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stellerd import client, control, locate
from stellerd.control import Control
from stellerd.errors import StellerdError
from stellerd.loop import Loop

OUTSIDER, ANYBODY = 65533, 65532
ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def group() -> grp.struct_group:
    """One that this user may give to a folder, and that is not its own."""
    mine = os.getgroups()
    for each in grp.getgrall():
        if each.gr_gid not in (0, os.getgid(), 65534) and (os.geteuid() == 0 or each.gr_gid in mine):
            return each
    pytest.skip("this user belongs to one group only")


@pytest.fixture
def daemon() -> Iterator[Control]:
    """In a folder that other users reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        loop = Loop()
        made = Control(loop, Path(name) / "control.sock", {
            "look": (False, lambda request: {}), "change": (True, lambda request: {"done": True}),
        })  # fmt: skip
        yield made
        made.close()
        loop.close()


def folder_of(daemon: Control, gid: int, mode: int = 0o2750) -> Path:
    folder = daemon.path.parent / "admin"
    folder.mkdir()
    os.chown(folder, -1, gid)
    folder.chmod(mode)
    return folder / "control.sock"


def as_user(daemon: Control, path: Path, command: str, uid: int, gids: list[int]) -> str:
    """What another user is told; "" when it was done."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.setgroups(gids)
            os.setgid(ANYBODY)
            os.setuid(uid)
            try:
                client.ask(path, command)
            except StellerdError as error:
                os.write(writing, str(error).encode())
            os._exit(0)
        os._exit(1)
    os.close(writing)
    ended: tuple[int, int] = (0, 0)
    deadline = time.monotonic() + 10
    while not ended[0]:
        assert time.monotonic() < deadline
        tick = daemon.loop.after(0.01, lambda: None)
        daemon.loop.turn()
        tick.cancel()
        ended = os.waitpid(pid, os.WNOHANG)
    assert ended[1] == 0
    with open(reading) as said:
        return said.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_members_of_the_group_may_change_and_others_may_not(daemon: Control, group: grp.struct_group) -> None:
    path = folder_of(daemon, group.gr_gid)
    daemon.admit(group.gr_name, path)
    assert as_user(daemon, path, "change", OUTSIDER, [group.gr_gid]) == ""
    assert "ermission denied" in as_user(daemon, path, "change", OUTSIDER, [])
    os.chmod(daemon.path, 0o666)  # what the other group would get
    assert as_user(daemon, daemon.path, "look", OUTSIDER, []) == ""
    assert as_user(daemon, daemon.path, "change", OUTSIDER, [group.gr_gid]) == (
        f"change is for root, the user {ME} and the members of {group.gr_name}"
    )


def test_who_asked_is_logged(daemon: Control, group: grp.struct_group, logged: Any) -> None:
    lines = logged("json")
    request = b'{"command": "change", "job": "a"}'
    assert daemon.answer(request, os.getuid())["ok"]
    assert (f'"by": "{ME}"' in lines[-1], '"job": "a"' in lines[-1]) == (True, True)
    member = type("Member", (), {"group": group.gr_name})()
    assert daemon.answer(request, 65534, member)["ok"]
    assert f'"by": "a member of {group.gr_name}"' in lines[-1]


def test_the_socket_belongs_to_the_group_and_goes_with_the_daemon(daemon: Control, group: grp.struct_group) -> None:
    path = folder_of(daemon, group.gr_gid)
    daemon.admit(group.gr_name, path)
    assert (path.stat().st_gid, path.stat().st_mode & 0o777) == (group.gr_gid, 0o660)
    daemon.close()
    assert not path.exists()
    daemon._sockets.clear()


@pytest.mark.parametrize("mode", [0o750, 0o2755, 0o2751])
def test_a_folder_that_lets_others_in_is_refused(daemon: Control, group: grp.struct_group, mode: int) -> None:
    path = folder_of(daemon, group.gr_gid, mode)
    with pytest.raises(StellerdError, match=f"is not the folder of {group.gr_name} alone; make it with: install -d"):
        daemon.admit(group.gr_name, path)
    assert not path.exists()


def test_the_folder_of_another_group_is_refused(daemon: Control, group: grp.struct_group) -> None:
    path = folder_of(daemon, os.getgid())
    with pytest.raises(StellerdError, match="is not the folder of"):
        daemon.admit(group.gr_name, path)


def test_our_own_group_is_never_the_admin_group(daemon: Control) -> None:
    own = grp.getgrgid(os.getgid()).gr_name
    with pytest.raises(StellerdError, match="is not the folder of"):
        daemon.admit(own, folder_of(daemon, os.getgid()))


def test_no_group_and_no_folder_are_told(daemon: Control, group: grp.struct_group) -> None:
    with pytest.raises(StellerdError, match="there is no group no-such-group"):
        daemon.admit("no-such-group", daemon.path.parent / "x" / "s")
    with pytest.raises(StellerdError, match=r"x: No such file or directory; make it with: install -d -o"):
        daemon.admit(group.gr_name, daemon.path.parent / "x" / "s")


@pytest.mark.parametrize("hidden", [True, False])
def test_nobody_in_a_namespace_takes_no_stranger_for_itself(
    daemon: Control, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 65534)
    monkeypatch.setattr(control, "_users_are_hidden", lambda: hidden)
    assert daemon.answer(b'{"command": "change"}', 65534)["ok"] is not hidden
    assert daemon.answer(b'{"command": "change"}', 0)["ok"]


def test_a_user_namespace_is_noticed() -> None:
    look = [sys.executable, "-c", "from stellerd import control; print(control._users_are_hidden())"]
    inside = subprocess.run(
        ["unshare", "--user", "--map-root-user", *look], capture_output=True, text=True, check=False
    )
    assert inside.stdout in ("True\n", "")  # "": this kernel does not allow one


# --- which socket a command goes to


def settings(folder: Path, more: str = "") -> str:
    file = folder / "stellerd.toml"
    file.write_text(f'[supervisor]\nsocket = "s"\nadmin_socket = "admin"\nadmin_group = "some"\n{more}')
    return str(file)


@pytest.mark.parametrize("more", ["", "[broken"])
def test_a_member_goes_to_the_admin_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    for name in ("s", "admin"):
        (tmp_path / name).touch()
    file = settings(tmp_path, more)
    assert locate.control_socket(file) == tmp_path / "s", "the daemon's own user and root have all rights anyway"
    monkeypatch.setattr(os, "geteuid", lambda: OUTSIDER)
    assert locate.control_socket(file) == tmp_path / "admin"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert locate.control_socket(file) == tmp_path / "s"


def test_without_an_admin_group_there_is_one_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OUTSIDER)
    file = tmp_path / "stellerd.toml"
    file.write_text('supervisor.socket = "s"\nsupervisor.admin_socket = "admin"\n')
    (tmp_path / "admin").touch()
    assert locate.control_socket(str(file)) == tmp_path / "s"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_settings_for_others_say_whose_they_are(group: grp.struct_group, daemon: Control) -> None:
    folder = daemon.path.parent / "etc"
    folder.mkdir(mode=0o750)
    (folder / "stellerd.toml").touch()
    os.chown(folder, 0, group.gr_gid)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setuid(OUTSIDER)
            try:
                locate.SEARCH = (str(folder / "stellerd.toml"),)
                locate.read(locate.config_file(None))
            except StellerdError as error:
                said = f"{folder}/stellerd.toml is for root and the members of {group.gr_name}: permission denied"
                os._exit(0 if str(error) == said else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
