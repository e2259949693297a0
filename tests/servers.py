"""Throw-away PostgreSQL and RabbitMQ for tests and benches: free ports, a temporary folder, ended whatever happens.

Each server has a watchdog (scripts/serverwatch.py) that ends it and removes its folder when this process is gone, be it
by `kill -9`. STELLERD_TEST_POSTGRES_URL and STELLERD_TEST_RABBITMQ_URL name servers to use instead.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import quote, unquote, urlsplit, urlunsplit

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
from serverwatch import Watched

START_TIMEOUT_S = 90.0
_PORTS = range(20000, 32000)  # below the ephemeral range: no outgoing connection takes one meanwhile
_STOP_SIGNAL = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}  # man postgres
_VHOST_BATCH = 8
_POSTGRES = ("postgresql", "/usr/lib/postgresql/*/bin", "STELLERD_TEST_POSTGRES_URL")
# the wrappers of the same names in /usr/sbin insist on root and on the system's settings
_RABBIT = ("rabbitmq-server", "/usr/lib/rabbitmq/bin", "STELLERD_TEST_RABBITMQ_URL")
_ERLANG = ("erlang-base", "/usr/bin", "STELLERD_TEST_RABBITMQ_URL")
_PROGRAMS = {  # each with its Debian package, where that puts it, and the variable that makes it needless
    **dict.fromkeys(("initdb", "postgres"), _POSTGRES),
    **dict.fromkeys(("rabbitmq-server", "rabbitmqctl"), _RABBIT),
    "epmd": _ERLANG,
    "pgbouncer": ("pgbouncer", "/usr/sbin", "STELLERD_TEST_PGBOUNCER_URL"),
}


class ServerError(Exception):
    """A test server cannot be had; the message says what to do."""


def free_port(count: int = 1, candidates: Iterable[int] | None = None) -> int:
    """The first of `count` neighbouring ports of 127.0.0.1 that nobody holds.

    Raises: ServerError when no candidate is free.
    """
    for port in candidates or random.sample(_PORTS, 200):
        if all(_is_free(port + n) for n in range(count)):
            return port
    raise ServerError(f"found no {count} free neighbouring ports on 127.0.0.1 from {_PORTS.start} to {_PORTS.stop}")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()  # sets SO_REUSEADDR
    except OSError:
        return False
    return True


def new_folder() -> Path:
    """A fresh folder whose parents every user may pass: root's PostgreSQL runs as another user. Raises: ServerError."""
    for base in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):
        if os.geteuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in (base, *base.parents)):
            return Path(tempfile.mkdtemp(prefix="stellerd-server-", dir=base))
    raise ServerError("other users cannot enter the temporary folder: set TMPDIR to one that has mode 1777, as /tmp")


class Server:
    """A folder and the server in it, or the URL of an `existing` one, left alone. `with` starts and closes it."""

    variable: ClassVar[str]
    """The environment variable that names an existing server."""
    _ports: ClassVar[int]
    _quick: ClassVar[signal.Signals]
    """Ends it at once, all its children included."""

    def __init__(self, existing: str | None = None) -> None:
        self.existing = existing
        self.folder = Path("/nonexistent") if existing else new_folder()
        self.port = (urlsplit(existing).port or 0) if existing else 0
        self._watched: Watched | None = None

    @classmethod
    def of_environment(cls) -> Self:
        """The server that the environment names, otherwise a new one; not yet started."""
        return cls(os.environ.get(cls.variable) or None)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """False once the server process has ended."""
        return self._watched is not None and self._watched.alive()

    @property
    def pid(self) -> int:
        """Process id of the running server. Raises: ServerError when it is stopped, or not ours."""
        if self._watched is None or not self._watched.alive():
            raise ServerError(f"{type(self).__name__} is not running, or not ours to touch ({self.variable} is set)")
        return self._watched.pid

    def start(self) -> None:
        """Start it and wait until it answers; a restarted server keeps its port. Raises: ServerError."""
        if self.existing or self.running:
            return
        known = self.port
        for attempt in range(3):
            self.port = known or free_port(self._ports)
            try:
                self._start()
                return
            except (ServerError, RuntimeError):
                self._end(self._quick)
                if attempt == 2:
                    raise

    def _start(self) -> None:
        """Begin to run and return when it answers."""
        raise NotImplementedError

    def kill(self) -> None:
        """kill -9, as a crash does it; the data stay for `start`."""
        self._end(signal.SIGKILL, ours=True)

    def close(self) -> None:
        """End it at once and remove its folder; nothing for a server that is not ours."""
        if not self.existing:
            self._end(self._quick)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: signal.Signals, *, ours: bool = False) -> None:
        if ours and self.existing:
            raise ServerError(f"the server of {self.variable} is not ours to stop: unset it for this test")
        if self._watched is not None:
            self._watched.end(how)
            self._watched = None

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if not self.running:
                raise ServerError(f"{type(self).__name__} ended while it started{self._said()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{type(self).__name__} was not up in {START_TIMEOUT_S:g} s{self._said()}")
            time.sleep(0.05)

    def _said(self) -> str:
        text = "".join(out.read_text(errors="replace")[-2000:].strip() for out in self.folder.glob("out"))
        return f"; it said:\n{text}" if text else ""

    def _env(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "LANG": "C.UTF-8"}


class PostgresServer(Server):
    """A PostgreSQL; superuser `stellerd`, no password. `durable` keeps fsync on; `settings` are "name=value"."""

    variable = "STELLERD_TEST_POSTGRES_URL"
    _ports = 1
    _quick = signal.SIGQUIT

    def __init__(self, existing: str | None = None, *, durable: bool = False, settings: Iterable[str] = ()) -> None:
        super().__init__(existing)
        relaxed = () if durable else ("fsync=off", "full_page_writes=off", "synchronous_commit=off")
        self.settings = ("unix_socket_directories=", *relaxed, *settings)

    def _start(self) -> None:
        data = self.folder / "data"
        prefix = self._give_up_root() if os.geteuid() == 0 else []
        if not data.exists():
            initdb = f"{program('initdb')} -U stellerd -A trust -E UTF8 --locale=C --no-sync --no-instructions -D"
            _run([*prefix, *initdb.split(), str(data)], self._env())
        options = [word for setting in self.settings for word in ("-c", setting)]
        postgres = [program("postgres"), "-D", str(data), "-p", str(self.port), "-h", "127.0.0.1", *options]
        self._watched = Watched(self.folder, [[*prefix, *postgres]], self._env(), self._quick)
        self._wait(self._answers)

    def _give_up_root(self) -> list[str]:
        shutil.chown(self.folder, "postgres", "postgres")
        return ["/usr/bin/setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]

    def _answers(self) -> bool:
        # Lines 1 and 8, as pg_ctl reads them (PostgreSQL, src/include/utils/pidfile.h); the file may be an old one
        file = self.folder / "data" / "postmaster.pid"
        lines = file.read_text().split("\n") if file.exists() else []
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """End it and wait; the data stay for `start`. "immediate" is a crash: the next start recovers."""
        self._end(_STOP_SIGNAL[mode], ours=True)

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop and start, on the same port."""
        self.stop(mode)
        self.start()

    def url(self, database: str = "postgres") -> str:
        """URL of a database for SQLAlchemy with psycopg."""
        base = urlsplit(self.existing or f"postgresql://stellerd@127.0.0.1:{self.port}")
        return urlunsplit(base._replace(scheme="postgresql+psycopg", path=f"/{database}"))

    def create_database(self, template: str | None = None) -> str:
        """A fresh database, empty or a copy of `template` (its name or URL); returns its URL."""
        name = f"t_{uuid.uuid4().hex}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{_database(template) or "template0"}"')
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop it, with whoever is still connected."""
        self.execute(f'DROP DATABASE IF EXISTS "{_database(url)}" WITH (FORCE)')

    def terminate_backends(self, database: str | None = None) -> int:
        """Cut the connections of clients to `database` (its name or URL), or all; returns how many."""
        cut = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND coalesce(datname = %s, true)"""
        return len(self.execute(cut, (_database(database),)))

    def execute(self, sql: str, parameters: tuple[Any, ...] | None = None) -> list[tuple[Any, ...]]:
        """One statement as superuser in the database `postgres`, without a transaction around it; returns its rows."""
        import psycopg

        with psycopg.connect(self.url().replace("+psycopg", ""), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []


class RabbitServer(Server):
    """A RabbitMQ with an epmd of its own; user guest, password guest, from 127.0.0.1 only."""

    variable = "STELLERD_TEST_RABBITMQ_URL"
    _ports = 3  # AMQP, Erlang distribution, epmd
    _quick = signal.SIGKILL

    def __init__(self, existing: str | None = None) -> None:
        super().__init__(existing)
        self._vhosts: list[str] = []

    def _start(self) -> None:
        (self.folder / "rabbitmq.conf").write_text("\n".join(self.configuration()) + "\n")
        (self.folder / "enabled_plugins").write_text("[].\n")
        shutil.rmtree(self.folder / "log", ignore_errors=True)  # _complete reads a fresh one
        epmd = [program("epmd"), "-address", "127.0.0.1", "-port", str(self.port + 2)]
        self._watched = Watched(self.folder, [[program("rabbitmq-server")], epmd], self._env(), self._quick)
        self._wait(self._complete)

    def configuration(self) -> list[str]:
        """Lines of rabbitmq.conf."""
        return [f"listeners.tcp.1 = 127.0.0.1:{self.port}", "disk_free_limit.absolute = 50MB", "log.console = false"]

    def _complete(self) -> bool:
        return any("Server startup complete" in log.read_text() for log in self.folder.glob("log/*.log"))

    def _env(self) -> dict[str, str]:
        files = """CONFIG_FILE=rabbitmq ADVANCED_CONFIG_FILE=none.config ENABLED_PLUGINS_FILE=enabled_plugins
            GENERATED_CONFIG_DIR=gen FEATURE_FLAGS_FILE=ff MNESIA_BASE=mnesia LOG_BASE=log PID_FILE=rabbit.pidfile"""
        pairs = (item.split("=") for item in files.split())
        return super()._env() | {f"RABBITMQ_{key}": f"{self.folder}/{name}" for key, name in pairs} | {
            "RUNNING_UNDER_SYSTEMD": "true",  # makes the start script become the Erlang VM instead of waiting for it
            "ERL_EPMD_PORT": str(self.port + 2), "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._node(), "RABBITMQ_DIST_PORT": str(self.port + 1),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
        }  # fmt: skip

    def _node(self) -> str:
        return f"t{self.port}@localhost"

    def stop(self) -> None:
        """Shut it down and wait; vhosts and durable queues stay for `start`."""
        self._end(signal.SIGTERM, ours=True)

    def url(self, vhost: str = "/") -> str:
        """amqp URL of a vhost; its name is percent-encoded, so "/" is "%2F"."""
        base = urlsplit(self.existing or f"amqp://guest:guest@127.0.0.1:{self.port}")
        return urlunsplit(base._replace(path="/" + quote(vhost, safe="")))

    def ctl(self, *args: str, timeout_s: float = 60.0) -> str:
        """Run rabbitmqctl (a second or two each time); returns what it printed.

        For a server that is not ours the command is STELLERD_TEST_RABBITMQ_CTL. Raises: ServerError with its output.
        """
        if self.existing:
            command = shlex.split(os.environ.get("STELLERD_TEST_RABBITMQ_CTL", "rabbitmqctl"))
            return _run([*command, *args], dict(os.environ), timeout_s)
        assert self.pid  # without a server rabbitmqctl would start an epmd that nobody ends
        return _run([program("rabbitmqctl"), "-n", self._node(), *args], self._env(), timeout_s)

    def new_vhost(self) -> str:
        """URL of a fresh vhost; its name holds a "/", as real ones do. One rabbitmqctl makes eight of them."""
        if not self._vhosts:
            names = [f"test/{uuid.uuid4().hex[:12]}" for _ in range(_VHOST_BATCH)]
            user = unquote(urlsplit(self.url()).username or "guest")
            self.ctl("eval", " ".join(_erlang_add_vhost(name, user) for name in names) + " ok.")
            self._vhosts = names
        return self.url(self._vhosts.pop())


def _erlang_add_vhost(name: str, user: str) -> str:
    everything = ", ".join(['<<".*">>'] * 3)  # configure, write, read
    add = f'rabbit_vhost:add(<<"{name}">>, <<"{user}">>),'
    return (
        f'{add} rabbit_auth_backend_internal:set_permissions(<<"{user}">>, <<"{name}">>, {everything}, <<"{user}">>),'
    )


def _database(name_or_url: str | None) -> str | None:
    return urlsplit(name_or_url).path[1:] if name_or_url and "://" in name_or_url else name_or_url


def program(name: str, places: str = "") -> str:
    """Path of a server's program: where Debian keeps it, newest version last; else in PATH if it works from there.

    Raises: ServerError that says what to install.
    """
    package, debian, variable = _PROGRAMS[name]
    found = sorted(
        Path("/").glob(f"{places or debian}/{name}".lstrip("/")),
        key=lambda path: [int(number) for number in re.findall(r"\d+", str(path))],
    )
    in_path = None if debian.startswith("/usr/lib/rabbitmq") else shutil.which(name)
    if not found and not in_path:
        raise ServerError(
            f"this test needs {name}, which is not installed (looked for {places or debian}/{name}).\n"
            f"Install it: sudo apt-get install {package} (`make test` as root does that by itself),\n"
            f"or name a running server: export {variable}=URL"
        )
    return str(found[-1] if found else in_path)


def _run(command: list[str], env: dict[str, str], timeout_s: float = 60.0) -> str:
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        raise ServerError(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
