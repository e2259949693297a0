"""What a database, a role or a pooler has set, and what the store makes of it; sessions that nobody reads any more."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from daemon import until
from pooler import PgBouncer
from servers import PostgresServer

from stellerd import database
from stellerd.durations import parse_rate
from stellerd.errors import ConfigError, Unreachable
from stellerd.limiter import Limit, Limiter
from stellerd.store import Claim, Cursor, Store

NEVER = datetime.max.replace(tzinfo=UTC)
TEXT = "… “quoted” 日本 é"
SETTINGS = {
    "datestyle": "DateStyle = 'SQL, DMY'", "german": "DateStyle = 'German'", "east": "TimeZone = 'Asia/Tokyo'",
    "west": "TimeZone = 'America/New_York'", "latin1": "client_encoding = 'LATIN1'",
    "ascii": "client_encoding = 'SQL_ASCII'", "serializable": "default_transaction_isolation = 'serializable'",
    "asynchronous": "synchronous_commit = off", "floats": "extra_float_digits = -3",
    "impatient": "statement_timeout = '1ms'",
}  # fmt: skip


@pytest.fixture(scope="module")
def named(postgres_server: PostgresServer) -> Iterator[Any]:
    """Databases made with options of their own."""
    made: list[str] = []

    def make(options: str) -> str:
        name = f"t_session_{len(made)}"
        postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE template0 {options}")
        made.append(postgres_server.url(name))
        return made[-1]

    yield make
    for url in made:
        postgres_server.drop_database(url)


def round_trip(store: Store) -> None:
    """All that a run writes comes back as it was."""
    store.create()
    claim = store.claim("j", datetime(2026, 3, 29, 1, tzinfo=UTC), "schedule")
    assert isinstance(claim, Claim)
    assert store.renew(claim)
    store.put_aside(claim.run_id, "e", TEXT, TEXT, {"text": TEXT})
    record = store.finish(claim, "deferred", reason=TEXT, counters={TEXT: 1}, not_before=NEVER)
    assert (record.reason, record.not_before, record.slot) == (TEXT, NEVER, claim.slot)
    Cursor(store, "j").set(TEXT, TEXT)
    assert Cursor(store, "j").get(TEXT) == TEXT
    assert store.quarantined(claim.run_id)[0]["payload"] == {"text": TEXT}
    limiter = Limiter(store, {"b": Limit((parse_rate("1/1h"),))})
    assert limiter.try_acquire("b") is None
    free = limiter.try_acquire("b")
    with store.reading() as connection:
        assert free is not None
        assert timedelta(minutes=59) < free - store.now(connection) < timedelta(minutes=61)
        assert abs((datetime.now(UTC) - store.now(connection)).total_seconds()) < 60


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
def test_the_store_works_whatever_the_database_has_set(
    postgres_url: str, pgbouncer: PgBouncer, postgres_server: PostgresServer, setting: str, pooled: bool
) -> None:
    name = sa.make_url(postgres_url).database
    postgres_server.execute(f'ALTER DATABASE "{name}" SET {setting}')
    store = Store(pgbouncer.url(postgres_url) if pooled else postgres_url)
    round_trip(store)
    store.close()


def test_a_database_without_an_encoding_keeps_text_as_text(named: Any) -> None:
    store = Store(named("ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"))
    round_trip(store)
    store.close()


def test_a_database_that_cannot_hold_every_text_is_refused_before_a_run(named: Any) -> None:
    store = Store(named("ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"))
    with pytest.raises(ConfigError, match=r"its encoding is LATIN1, .* CREATE DATABASE … ENCODING 'UTF8' TEMPLATE"):
        store.create()


@pytest.mark.parametrize("setting", ["DateStyle = 'German'", "TimeZone = 'Asia/Tokyo'", "client_encoding = 'LATIN1'"])
def test_an_engine_of_a_job_has_the_same(postgres_url: str, postgres_server: PostgresServer, setting: str) -> None:
    postgres_server.execute(f'ALTER DATABASE "{sa.make_url(postgres_url).database}" SET {setting}')
    engine = database.open_engine(postgres_url, "databases.x")
    at = datetime(2026, 3, 29, 1, 2, 3, tzinfo=UTC)
    with engine.connect() as connection:
        for _ in range(2):
            with connection.begin():
                found = connection.execute(sa.select(sa.literal(at), sa.literal(NEVER), sa.literal(TEXT))).one()
                assert tuple(found) == (at, NEVER, TEXT)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1
    engine.dispose()


@pytest.mark.parametrize(("default", "used"), [("off", "on"), ("on", "on"), ("local", "local"), ("remote_apply",) * 2])
def test_what_is_committed_is_on_disk_whatever_the_default(
    postgres_url: str, postgres_server: PostgresServer, default: str, used: str
) -> None:
    postgres_server.execute(f'ALTER DATABASE "{sa.make_url(postgres_url).database}" SET synchronous_commit = {default}')
    store, engine = Store(postgres_url), database.open_engine(postgres_url, "databases.x")
    with store.begin() as writing, engine.begin() as job:
        shown = sa.text("SHOW synchronous_commit")
        assert (writing.execute(shown).scalar_one(), job.execute(shown).scalar_one()) == (used, used)
    store.close()
    engine.dispose()


def test_no_grant_is_lost_with_a_server_that_commits_asynchronously() -> None:
    with PostgresServer(durable=True) as server:
        for setting in ("synchronous_commit = off", "wal_writer_delay = '10s'"):
            server.execute(f"ALTER SYSTEM SET {setting}")
        server.restart()
        store = Store(server.create_database())
        store.create()
        limiter = Limiter(store, {"b": Limit((parse_rate("1000/1h"),))})
        assert [limiter.try_acquire("b") for _ in range(20)] == [None] * 20
        server.stop("immediate")
        server.start()
        with store.reading() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM hits")).scalar_one() == 20
        store.close()


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
def test_readers_that_gave_up_leave_no_session_at_a_lock(postgres_url: str, pgbouncer: PgBouncer, pooled: bool) -> None:
    store = Store(pgbouncer.url(postgres_url) if pooled else postgres_url)
    store.create()
    store.set_lease(1)
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as locker:

        def waiting() -> int:
            return int((locker.execute(asked).fetchone() or (0,))[0])

        with locker.transaction():
            locker.execute("LOCK TABLE leases")
            for _ in range(4):
                with pytest.raises(Unreachable, match="statement timeout"):
                    store.holder("j")
            until(lambda: waiting() == 0, 1)
    assert store.holder("j") is None
    store.close()
