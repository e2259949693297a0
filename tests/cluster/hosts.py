"""Hosts of a cluster: daemons with names of their own and a network of their own to one state store."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import sqlalchemy as sa
from daemon import Daemon, job, until
from proxy import Proxy

from stellerd.store import Store

WRITES_DOWN = job(
    """
    from sqlalchemy import text
    engine, steps, stubborn = ctx.engine("ledger"), 0, ctx.slot.second % 4 == 0
    mine = {"epoch": ctx.epoch, "host": ctx.host, "slot": ctx.slot.isoformat()}
    while steps < (ctx.settings.stubborn if stubborn else 5 * (ctx.slot.second % 4)):
        with engine.begin() as ledger:
            accepted = ledger.execute(text("UPDATE fence SET epoch = :epoch WHERE epoch <= :epoch"), mine).rowcount
            row = mine | {"what": "step" if accepted else "refused", "at": time.time()}
            ledger.execute(text("INSERT INTO ledger VALUES (:epoch, :host, :slot, :what, :at)"), row)
        steps += 1
        if stubborn:
            time.sleep(0.05)  # does not care for being asked to end
        elif ctx.wait(0.05):
            raise errors.JobFailed("interrupted")
    with engine.begin() as ledger:
        row = mine | {"what": "done", "at": time.time()}
        ledger.execute(text("INSERT INTO ledger VALUES (:epoch, :host, :slot, :what, :at)"), row)
    return Done()
    """,
    every="1s",
    extra="""
    from stellerd import Settings as Base
    class Settings(Base):
        stubborn: int = 80
    """,
)
"""A job that writes each step with its epoch into a ledger, whose fence accepts none that is older than another. In one
of four slots it works for 4 s and does not care whether it is asked to end."""


class Ledger:
    """What the jobs wrote, and the fence. Not behind any host's network: a host that is cut off can still do harm."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(url)
        with self.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE fence (epoch BIGINT)"))
            connection.execute(sa.text("INSERT INTO fence VALUES (0)"))
            connection.execute(
                sa.text("CREATE TABLE ledger (epoch BIGINT, host TEXT, slot TEXT, what TEXT, at DOUBLE PRECISION)")
            )

    def rows(self, what: str = "", since: float = 0.0) -> list[Any]:
        """(epoch, host, slot, what, at), oldest first."""
        query = sa.text("SELECT * FROM ledger WHERE at >= :since AND (what = :what OR :what = '') ORDER BY at")
        with self.engine.begin() as connection:
            return list(connection.execute(query, {"since": since, "what": what}))

    def close(self) -> None:
        """Let go of it."""
        self.engine.dispose()


class Host(Daemon):
    """One machine of the cluster, as far as the store can tell."""

    name = ""
    proxy: Proxy

    def kill(self) -> None:
        """The power fails."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def everybody(self) -> list[int]:
        """Pids of the supervisor and its children."""
        return [self.pid, *self.children()]

    def signal(self, number: int) -> None:
        """To all processes of the host."""
        for pid in self.everybody():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def start_again(self) -> None:
        """Power on."""
        self.__enter__()


def through(url: str, port: int) -> str:
    """The URL of a database with another port."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{(parts.username or '')}@127.0.0.1:{port}"))


@dataclass
class Cluster:
    """Two hosts, their store and their jobs' ledger."""

    hosts: list[Host]
    store: Store
    ledger: Ledger

    def holder(self, stubborn: bool = False, timeout: float = 30.0) -> Host:
        """The host that is at a run now, as the ledger shows it; `stubborn`: at the beginning of a long one."""
        epochs, since = {row.epoch for row in self.ledger.rows()}, time.time()

        def found() -> list[Any]:
            new = [row for row in self.ledger.rows("step", since) if row.epoch not in epochs]
            return [row for row in new if not stubborn or datetime.fromisoformat(row.slot).second % 4 == 0]

        row = until(found, timeout, "a step of any host")[-1]
        return next(host for host in self.hosts if host.name == row.host)

    def other(self, host: Host) -> Host:
        """The one that is not this one."""
        return next(one for one in self.hosts if one is not host)

    def seconds_until_step_of(self, host: Host, since: float, timeout: float) -> float:
        """From `since` to the first step of this host after it."""
        steps = lambda: [row for row in self.ledger.rows("step", since) if row.host == host.name]  # noqa: E731
        return float(until(steps, timeout, f"{host.name} takes over")[0].at - since)


@contextmanager
def cluster(
    folder: Path, state: str, ledger: str, plugins: dict[str, str], toml: str, lease: str = "2s", named: bool = True
) -> Iterator[Cluster]:
    """Two daemons, "north" and "south", on one store; PostgreSQL through a proxy each. `named`: different hosts."""
    with contextlib.ExitStack() as stack:
        book = Ledger(ledger)
        stack.callback(book.close)
        hosts = []
        for name in ("north", "south"):
            place, url = folder / name, state
            place.mkdir()
            host = Host(place, plugins)
            if state.startswith("postgresql"):
                host.proxy = stack.enter_context(Proxy(urlsplit(state).port or 5432))
                url = through(state, host.proxy.port)
            host.name = name
            head = f'[state]\nurl = "{url}"\nlease = "{lease}"\n' + (f'host = "{name}"\n' if named else "")
            host.write(f'{head}[databases.ledger]\nurl = "{ledger}"\n{toml}')
            hosts.append(stack.enter_context(host))
        store = Store(state)
        stack.callback(store.close)
        yield Cluster(hosts, store, book)
        for host in hosts:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                host.signal(signal.SIGCONT)
