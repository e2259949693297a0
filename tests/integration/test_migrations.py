"""The state store from version to version: what is there stays there, who is too old or too new is told."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from stellerd import database, migrate
from stellerd.errors import ConfigError
from stellerd.schema import REVISION
from stellerd.store import Claim, Store

SLOT = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    made: str = request.getfixturevalue("postgres_url")
    return made


def execute(url: str, *statements: str) -> None:
    engine = database.open_engine(url, "test")
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture
def first(url: str) -> str:
    """A store as the first version of stellerd left it, with a run in it."""
    engine = database.open_engine(url, "test")
    with database.transaction(engine, "test") as connection:
        command.upgrade(migrate._config(connection=connection), "0001")
    engine.dispose()
    execute(
        url,
        "DROP TABLE stellerd_version",
        "INSERT INTO stellerd_meta VALUES ('schema', '1')",
        "INSERT INTO runs (job, slot, attempt, trigger, state, reason, counters, host, pid, owner, epoch, started_at, "
        "finished_at) VALUES ('brand_sync', '2026-03-29 00:30:00.000000', 1, 'schedule', 'ok', '', '{\"new\": 5}', "
        "'h', 1, 'o', 1, '2026-03-29 00:30:01.000000', '2026-03-29 00:30:02.000000')",
        "INSERT INTO buckets (name, rates, failures) VALUES ('bamboo_catalog', '2/1h', 0)",
    )
    return url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.close()


def test_the_newest_migration_is_the_version_of_a_new_store() -> None:
    assert ScriptDirectory.from_config(migrate._config()).get_current_head() == REVISION


def test_a_new_store_is_what_all_migrations_make(url: str, store: Store) -> None:
    assert migrate.init(url)
    assert migrate.differences(url) == []
    assert store.revision() == REVISION
    assert not migrate.init(url)


def test_an_upgraded_store_is_what_a_new_one_is_and_holds_what_it_held(first: str, store: Store) -> None:
    assert migrate.upgrade(first) == ("0001", REVISION)
    assert migrate.differences(first) == []
    store.create()
    [run] = store.history("brand_sync")
    assert (run.slot, run.state, run.counters) == (SLOT, "ok", {"new": 5})
    assert isinstance(store.claim("brand_sync", None, "manual"), Claim)
    assert migrate.upgrade(first) == (REVISION, REVISION)


def test_an_old_store_is_refused_with_the_command_that_helps(first: str, store: Store) -> None:
    with pytest.raises(ConfigError, match=r"older stellerd \(0001, this one needs .*run: stellerd db upgrade"):
        store.create()


def test_a_newer_store_is_refused_and_left_alone(url: str, store: Store) -> None:
    store.create()
    execute(url, "UPDATE stellerd_version SET version_num = '9999'")
    for attempt in (store.create, lambda: migrate.upgrade(url), lambda: migrate.init(url)):
        with pytest.raises(ConfigError, match="upgraded by a newer stellerd"):
            attempt()
    assert store.revision() == "9999"


def test_upgrades_at_the_same_time_are_one_upgrade(first: str, store: Store) -> None:
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                migrate.upgrade(first)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert migrate.differences(first) == []
    assert len(store.history()) == 1


def test_the_sql_does_what_the_upgrade_does(first: str, tmp_path: Path) -> None:
    text = migrate.sql(first, None)
    assert "stellerd_meta" in text
    assert Store(first).revision() == "0001"
    run_script(first, text)
    assert migrate.differences(first) == []
    assert Store(first).revision() == REVISION


def test_the_sql_makes_a_store_from_nothing(url: str) -> None:
    run_script(url, migrate.sql(url, None))
    assert migrate.differences(url) == []
    assert Store(url).revision() == REVISION


def run_script(url: str, text: str) -> None:
    """As an administrator would, with the database's own tool."""
    parsed = database.parse(url, "test")
    if parsed.get_backend_name() == "sqlite":
        connection = sqlite3.connect(str(parsed.database))
        connection.executescript(text)
        connection.close()
    else:
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as session:
            session.execute(text.encode())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DROP INDEX hits_by_bucket", "missing index: hits_by_bucket"),
        ("ALTER TABLE runs DROP COLUMN not_before", "missing column: runs.not_before"),
        ("DROP TABLE quarantine", "missing table: quarantine"),
    ],
)
def test_what_differs_is_named(url: str, store: Store, damage: str, said: str) -> None:
    store.create()
    execute(url, damage)
    assert said in migrate.differences(url)


def test_tables_of_others_are_nobodys_business(url: str, store: Store) -> None:
    store.create()
    execute(url, "CREATE TABLE others (a INTEGER)")
    assert migrate.differences(url) == []


def test_rights_that_are_missing_are_named_with_their_grant(postgres_url: str) -> None:
    Store(postgres_url).create()
    user = f"reader_{os.getpid()}"
    execute(postgres_url, f"CREATE ROLE {user} LOGIN", f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}")
    try:
        theirs = sa.make_url(postgres_url).set(username=user).render_as_string(hide_password=False)
        found = dict(migrate.missing_grants(theirs))
        assert found["runs: no right to INSERT, UPDATE, DELETE"] == (
            f'GRANT INSERT, UPDATE, DELETE ON TABLE runs TO "{user}";'
        )
        assert found["public.runs_id_seq: no right to USAGE"]
        execute(postgres_url, *found.values())
        assert migrate.missing_grants(theirs) == []
        store = Store(theirs)
        claim = store.claim("j", SLOT, "schedule")
        assert isinstance(claim, Claim)
        store.put_aside(claim.run_id, "e", "k", "r", None)
        store.close()
    finally:
        execute(postgres_url, f"DROP OWNED BY {user}", f"DROP ROLE {user}")


def test_rights_to_a_table_that_is_missing_are_not_asked_for(postgres_url: str) -> None:
    Store(postgres_url).create()
    execute(postgres_url, "DROP TABLE quarantine")
    assert migrate.missing_grants(postgres_url) == []
