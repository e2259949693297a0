"""Fixtures of the whole repository: real servers, started when the first test asks, ended with the test session."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import structlog
from pooler import PgBouncer
from servers import PostgresServer, RabbitServer

from stellerd import log, redaction


@dataclass(frozen=True)
class Rabbit:
    """The session's RabbitMQ as tests of one vhost use it: `url` is that of the vhost "/"."""

    server: RabbitServer
    url: str

    def ctl(self, *args: str) -> str:
        """Run rabbitmqctl; returns what it printed."""
        return self.server.ctl(*args)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Logging belongs to the process: what one test configures must not be another's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def no_secret_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets are known to a process: what one test reveals must not be taken out of another's texts."""
    monkeypatch.setattr(redaction, "_forms", [])
    monkeypatch.setattr(redaction, "_in_base64", [])


@pytest.fixture
def logged() -> Callable[[str], list[str]]:
    """`logged(style)`: log as a job's process does ("json" or "text"); the list that its lines go into."""

    def configure(style: str) -> list[str]:
        lines: list[str] = []
        log.configure("info", style, write=lines.append)
        return lines

    return configure


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL. A test that stops or kills it starts it again, or has one of its own."""
    with PostgresServer.of_environment() as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[RabbitServer]:
    """The session's RabbitMQ. A test that stops or kills it starts it again, or has one of its own."""
    with RabbitServer.of_environment() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of a fresh, empty database, dropped after the test."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(scope="session")
def pgbouncer(postgres_server: PostgresServer) -> Iterator[PgBouncer]:
    """A pooler in transaction mode in front of the session's PostgreSQL."""
    with PgBouncer(postgres_server) as server:
        yield server


@pytest.fixture
def pooled_url(pgbouncer: PgBouncer, postgres_url: str) -> str:
    """URL of the fresh database `postgres_url`, by way of the pooler."""
    return pgbouncer.url(postgres_url)


@pytest.fixture
def rabbitmq(rabbit_server: RabbitServer) -> Rabbit:
    """The session's RabbitMQ: `.url` of the vhost "/", `.ctl(*args)`."""
    return Rabbit(rabbit_server, rabbit_server.url())


@pytest.fixture
def rabbitmq_vhost(rabbit_server: RabbitServer) -> str:
    """URL of a fresh vhost, its name percent-encoded."""
    return rabbit_server.new_vhost()


_APART = {
    "soak": "minutes long; only with -m soak",
    "gate": "what a change has to pass beside `make test`; only with -m gate",
}


def pytest_configure(config: pytest.Config) -> None:
    """Tests that stay out of every other run: `pytest -m soak`, `pytest -m gate`."""
    for name, meaning in _APART.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without -m they are left out."""
    asked = str(config.getoption("markexpr", ""))
    apart = [item for item in items if any(item.get_closest_marker(name) and name not in asked for name in _APART)]
    if apart:
        items[:] = [item for item in items if item not in apart]
        config.hook.pytest_deselected(items=apart)
