"""Servers that are away, refuse us or are not what they should be: readable, with the right exit code, no password."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stellerd_order_queue.publisher import Wishes, open_publisher

from stellerd import errors

PASSWORD = "s3cr3t-pass"
WISHES = Wishes("SharedContracts:OrderCreated", connect_timeout=3.0)


def refused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def failure(url: str, wishes: Wishes = WISHES) -> errors.StellerdError:
    with pytest.raises(errors.StellerdError) as caught, open_publisher([url], wishes):
        pass
    whole = "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in whole
    return caught.value


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of somebody who accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_nobody_listens() -> None:
    port = refused_port()
    error = failure(f"amqp://steller:{PASSWORD}@127.0.0.1:{port}/x")
    assert error.exit_code == 69
    assert str(error) == f"amqp://127.0.0.1:{port}/x: Connection refused; is the broker up?"


def test_somebody_listens_and_says_nothing(mute: int) -> None:
    error = failure(f"amqp://steller:{PASSWORD}@127.0.0.1:{mute}/x", Wishes("X:Y", connect_timeout=0.3))
    assert error.exit_code == 69
    assert f"127.0.0.1:{mute}" in str(error)
    assert "no answer" in str(error)


def test_a_name_that_does_not_exist() -> None:
    error = failure(f"amqp://steller:{PASSWORD}@no-such-host.invalid/x")
    assert error.exit_code == 69
    assert "amqp://no-such-host.invalid/x: the name cannot be resolved" in str(error)


def test_wrong_credentials(rabbitmq: Any) -> None:
    error = failure(rabbitmq.url.replace("guest:guest", f"steller:{PASSWORD}"))
    assert isinstance(error, errors.JobFailed)
    assert "the broker refused the user name or password" in str(error)


def test_a_virtual_host_that_is_not_there(rabbitmq: Any) -> None:
    error = failure(rabbitmq.url.replace("%2F", "nowhere"))
    assert isinstance(error, errors.JobFailed)
    assert "no access to the virtual host" in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "http://mq/",
        PASSWORD,
        f"amqp://u:{PASSWORD}@mq:notaport/",
        f"amqp://u:{PASSWORD}@mq/?what=1",
        f"amqp://u:{PASSWORD}/more@mq/x",
        f"amqp://u:12?{PASSWORD}@mq/x",
        f"amqp://u:12#{PASSWORD}@mq/x",
        f"amqp://[{PASSWORD}@mq/x",
        "amqp://user-alone@mq/x",
    ],
)
def test_a_url_that_is_none(url: str) -> None:
    error = failure(url)
    assert isinstance(error, errors.ConfigError)
    assert "broker.url" in str(error)


def new_certificate(folder: Path, options: str) -> None:
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 {options}"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


class TlsServer:
    """A TLS server with a certificate of its own making, or `by` somebody, for 127.0.0.1."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", by: str = "") -> None:
        self.certificate = folder / "cert.pem"
        new_certificate(folder, f"-subj /CN=test -addext subjectAltName=IP:{host} {by} -keyout key.pem -out cert.pem")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.certificate, folder / "key.pem")
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.handshakes: list[bool] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        plain, _ = self._server.accept()
        try:
            with self._context.wrap_socket(plain, server_side=True) as secure:
                self.handshakes.append(secure.recv(8) == b"AMQP\x00\x00\x09\x01")
        except (ssl.SSLError, OSError):
            self.handshakes.append(False)

    def ended(self) -> list[bool]:
        self._thread.join(5)
        self._server.close()
        return self.handshakes


@pytest.mark.parametrize("options", ["", "?ssl_options=%7B%27ca_certs%27%3A%20{}%7D"])
def test_a_certificate_of_an_unknown_authority_is_refused(options: str, tmp_path: Path) -> None:
    server = TlsServer(tmp_path)
    chosen = options.format(f"'{server.certificate}'".replace("/", "%2F"))  # an URL cannot weaken what is verified
    error = failure(f"amqps://steller:{PASSWORD}@127.0.0.1:{server.port}/x{chosen}")
    assert "the broker's certificate is not trusted: self-signed certificate" in str(error)
    assert server.ended() == [False]


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    server = TlsServer(tmp_path, host="10.1.2.3")
    wishes = Wishes("X:Y", connect_timeout=3.0, ca_file=str(server.certificate))
    error = failure(f"amqps://steller:{PASSWORD}@127.0.0.1:{server.port}/x", wishes)
    assert "IP address mismatch" in str(error)
    assert server.ended() == [False]


def test_a_certificate_of_the_authority_in_the_settings_is_accepted(tmp_path: Path) -> None:
    server = TlsServer(tmp_path)
    wishes = Wishes("X:Y", connect_timeout=3.0, ca_file=str(server.certificate))
    failure(f"amqps://steller:{PASSWORD}@127.0.0.1:{server.port}/x", wishes)  # it hangs up after the greeting
    assert server.ended() == [True]


def test_an_authority_that_only_an_older_python_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 3.13 on the default context is strict; here it is on every version."""

    def strict(**options: Any) -> ssl.SSLContext:
        context = default(**options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    default = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", strict)
    new_certificate(tmp_path, "-subj /CN=authority -keyout ca.key -out ca.pem")
    server = TlsServer(tmp_path, by="-CA ca.pem -CAkey ca.key")
    wishes = Wishes("X:Y", connect_timeout=3.0, ca_file=str(tmp_path / "ca.pem"))
    error = failure(f"amqps://steller:{PASSWORD}@127.0.0.1:{server.port}/x", wishes)
    assert "the broker's certificate is not trusted: CA cert does not include key usage extension" in str(error)
    assert "renew the CA's certificate" in str(error)
    assert "keyUsage=critical,keyCertSign,cRLSign" in str(error)
    assert server.ended() == [False]


def test_a_run_against_a_database_that_is_away(job: Any, spool: Path) -> None:
    port = refused_port()
    url = f"postgresql+psycopg://steller:{PASSWORD}@127.0.0.1:{port}/steller"
    record = job(url, f"spool://{spool}").run()
    assert (record.state, record.exit_code) == ("failed", 69)
    assert f'database "steller" (postgresql://127.0.0.1:{port}/steller): connection failed' in record.reason
    assert PASSWORD not in record.reason


def test_a_run_with_the_broker_away_claims_nothing(orders: Any, job: Any) -> None:
    orders.add(3)
    port = refused_port()
    record = job(orders.url, f"amqp://steller:{PASSWORD}@127.0.0.1:{port}/x").run()
    assert (record.state, record.exit_code, record.counters["pending"]) == ("failed", 69, 3)
    assert PASSWORD not in record.reason
    assert orders.ledger("order_id") == []


def test_a_database_without_orders(job: Any, spool: Path, tmp_path: Path, postgres_url: str) -> None:
    for url in (f"sqlite:///{tmp_path}/empty.db", postgres_url):
        record = job(url, f"spool://{spool}").run()
        assert (record.state, record.exit_code) == ("failed", 1)
        assert "create_tables = true" in record.reason


def test_tables_of_our_own_on_request(job: Any, spool: Path, tmp_path: Path, postgres_url: str) -> None:
    for url in (f"sqlite:///{tmp_path}/empty.db", postgres_url):
        record = job(url, f"spool://{spool}", create_tables=True).run()
        assert (record.state, record.counters["pending"]) == ("ok", 0)


def test_a_ledger_that_vanishes_is_made_again(orders: Any, job: Any, spool: Path) -> None:
    orders.add(2)
    harness = job(orders.url, f"spool://{spool}")
    assert harness.run().state == "ok"
    with orders.engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE {orders.ledger_table}")
    assert harness.run().state == "failed"
    assert harness.run().counters["published"] == 2
