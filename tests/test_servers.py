"""The throw-away servers: real, restartable, and gone with whoever wanted them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pika
import psycopg
import pytest
import servers
from servers import PostgresServer, RabbitServer, ServerError

HERE = Path(__file__).parent


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """True when the process has ended; a zombie that nobody reaps here has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def owner(kind: str) -> tuple[subprocess.Popen[str], int, Path]:
    """A process that has started a server and sleeps; with the server's pid and folder."""
    code = (
        "import signal, servers\n"
        f"server = servers.{kind}()\nserver.start()\n"
        "print(server.pid, server.folder, flush=True)\nsignal.pause()"
    )
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    pid, folder = process.stdout.readline().split()
    return process, int(pid), Path(folder)


def test_url_is_a_fresh_empty_database(postgres_url: str) -> None:
    assert postgres_url.startswith("postgresql+psycopg://")
    with connect(postgres_url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [(0,)]


def test_a_template_is_copied(postgres_server: PostgresServer, postgres_url: str) -> None:
    with connect(postgres_url) as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS answer")
    copy = postgres_server.create_database(template=postgres_url)
    try:
        with connect(copy) as connection:
            assert connection.execute("SELECT answer FROM t").fetchall() == [(42,)]
    finally:
        postgres_server.drop_database(copy)


def test_terminate_backends_cuts_only_that_database(postgres_server: PostgresServer, postgres_url: str) -> None:
    with connect(postgres_url) as victim, connect(postgres_server.url()) as bystander:
        assert postgres_server.terminate_backends(postgres_url) == 1
        with pytest.raises(psycopg.OperationalError):
            victim.execute("SELECT 1")
        bystander.execute("SELECT 1")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgres_restart_keeps_port_and_data(own_postgres: PostgresServer, mode: str) -> None:
    url, before = own_postgres.create_database(), own_postgres.pid
    own_postgres.restart(mode)  # type: ignore[arg-type]
    assert own_postgres.pid != before
    connect(url).close()


def test_postgres_comes_back_after_kill_9(own_postgres: PostgresServer) -> None:
    url = own_postgres.create_database()
    own_postgres.kill()
    assert not own_postgres.running
    with pytest.raises(psycopg.OperationalError):
        connect(url)
    own_postgres.start()
    connect(url).close()


def test_a_first_start_tries_another_port(own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    free = servers.free_port()
    ports = iter([own_postgres.port, free])
    monkeypatch.setattr(servers, "free_port", lambda count: next(ports))
    with PostgresServer() as second:
        assert second.port == free
        connect(second.url()).close()


@pytest.mark.parametrize(("durable", "fsync"), [(False, "off"), (True, "on")])
def test_fsync_is_off_unless_durable(durable: bool, fsync: str) -> None:
    with PostgresServer(durable=durable) as server:
        assert server.execute("SHOW fsync") == [(fsync,)]


def test_closing_leaves_neither_process_nor_folder() -> None:
    with PostgresServer() as server:
        pid, folder = server.pid, server.folder
    assert gone(pid)
    assert not folder.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_postgres_ends_with_its_owner(how: signal.Signals) -> None:
    process, pid, folder = owner("PostgresServer")
    process.send_signal(how)
    process.communicate()
    wait_until(lambda: gone(pid) and not folder.exists())


def test_rabbit_ends_with_its_owner_and_leaves_no_epmd() -> None:
    process, pid, folder = owner("RabbitServer")
    family = [other for other in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _names(other, folder)]
    assert pid in family
    process.kill()
    process.communicate()
    wait_until(lambda: all(gone(member) for member in family) and not folder.exists())


def _names(pid: int, folder: Path) -> bool:
    """True when the process was started for that folder; epmd and the VM's helpers have it as HOME."""
    try:
        return f"HOME={folder}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def test_rabbit_vhosts_are_apart(rabbit_server: RabbitServer, rabbitmq_vhost: str) -> None:
    assert "%2F" in rabbitmq_vhost
    for url, messages in ((rabbitmq_vhost, 1), (rabbit_server.new_vhost(), 0)):
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        channel.queue_declare("q")
        for _ in range(messages):
            channel.basic_publish("", "q", b"x")
        wait_until(lambda channel=channel, messages=messages: queued(channel) == messages)
        connection.close()


def queued(channel: pika.adapters.blocking_connection.BlockingChannel) -> int:
    return int(channel.queue_declare("q", passive=True).method.message_count)


def test_rabbit_ctl_speaks_to_the_session_server(rabbitmq: object) -> None:
    url, ctl = rabbitmq.url, rabbitmq.ctl  # type: ignore[attr-defined]
    assert url.endswith("/%2F")
    assert f"t{urlsplit(url).port}@localhost" in ctl("eval", "node().")
    with pytest.raises(ServerError, match="no_such_command"):
        ctl("no_such_command")


def test_free_port_skips_what_is_taken(own_postgres: PostgresServer) -> None:
    port = own_postgres.port
    with pytest.raises(ServerError, match="no 3 free"):
        servers.free_port(3, [port - 2, port - 1, port])


@pytest.mark.parametrize(
    ("name", "package"),
    [("initdb", "postgresql"), ("rabbitmq-server", "rabbitmq-server"), ("epmd", "erlang-base")],
)
def test_a_missing_server_says_what_to_install(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match=f"apt-get install {package} .*\n.*STELLERD_TEST_[A-Z]*_URL"):
        servers.program(name, str(tmp_path))


def test_the_newest_installed_version_is_taken(tmp_path: Path) -> None:
    for version in ("9.6", "15", "16"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "initdb").touch()
    assert servers.program("initdb", f"{tmp_path}/*") == f"{tmp_path}/16/initdb"


def test_an_existing_server_is_used_and_left_alone(
    own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PostgresServer.variable, own_postgres.url())
    with PostgresServer.of_environment() as named:
        connect(named.create_database()).close()
        with pytest.raises(ServerError, match="not ours"):
            named.stop()
    assert own_postgres.running
