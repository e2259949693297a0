"""A throw-away PgBouncer in transaction mode, in front of a test PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg
from servers import PostgresServer, Server, program
from serverwatch import Watched

POOL_SIZE = 3
"""Fewer sessions of PostgreSQL than any of the tests has clients."""


class PgBouncer(Server):
    """Hands each transaction to another session of `postgres`, on a port of its own; the same databases and users."""

    variable = "STELLERD_TEST_PGBOUNCER_URL"
    _ports = 1
    _quick = signal.SIGKILL

    def __init__(self, postgres: PostgresServer) -> None:
        super().__init__(os.environ.get(self.variable) or None)
        self.postgres = postgres

    def _start(self) -> None:
        (self.folder / "users.txt").write_text(f'"{self._user()}" ""\n')
        (self.folder / "pgbouncer.ini").write_text(self._settings())
        prefix: list[str] = []
        if os.geteuid() == 0:  # it does not run as root
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, "postgres", "postgres")
            prefix = ["/usr/bin/setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]
        command = [*prefix, program("pgbouncer"), str(self.folder / "pgbouncer.ini")]
        self._watched = Watched(self.folder, [command], self._env(), self._quick)
        self._wait(self._answers)

    def _settings(self) -> str:
        """See pgbouncer(5)."""
        server = urlsplit(self.postgres.url())
        login = f"user={self._user()}" + (f" password={unquote(server.password)}" if server.password else "")
        return (
            f"[databases]\n* = host={server.hostname} port={server.port or 5432} {login}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {self.folder}/users.txt\n"
            f"pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\nmax_client_conn = 200\n"
        )

    def _user(self) -> str:
        return unquote(urlsplit(self.postgres.url()).username or "stellerd")

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url().replace("+psycopg", ""), connect_timeout=5, prepare_threshold=None):
                return True
        except psycopg.OperationalError:
            return False

    def url(self, database: str = "postgres") -> str:
        """URL of a database, its name or its URL at PostgreSQL, by way of the pooler."""
        name = urlsplit(database).path[1:] if "://" in database else database
        base = urlsplit(self.existing or f"postgresql://{self._user()}@127.0.0.1:{self.port}")
        return urlunsplit(base._replace(scheme="postgresql+psycopg", path=f"/{name}"))
