"""Fixtures of the whole repository: real servers, started when the first test asks, ended with the test session."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import structlog
from servers import PostgresServer, RabbitServer


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


@pytest.fixture
def rabbitmq(rabbit_server: RabbitServer) -> Rabbit:
    """The session's RabbitMQ: `.url` of the vhost "/", `.ctl(*args)`."""
    return Rabbit(rabbit_server, rabbit_server.url())


@pytest.fixture
def rabbitmq_vhost(rabbit_server: RabbitServer) -> str:
    """URL of a fresh vhost, its name percent-encoded."""
    return rabbit_server.new_vhost()
