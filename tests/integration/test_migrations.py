"""The state store from version to version: what is there stays there, who is too old or too new is told."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import suppress
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
    found = dict(migrate.problems(url) or ())
    assert said in found
    run_script(url, found[said])
    run_script(url, found[said].replace("ALTER", "-- ALTER") if url.startswith("sqlite") else found[said])
    assert migrate.problems(url) == []


def test_tables_of_others_are_nobodys_business(url: str, store: Store) -> None:
    store.create()
    execute(url, "CREATE TABLE others (a INTEGER)")
    assert migrate.differences(url) == []


STRANGE = '"o\'brien ""x"" %s NUMBER"'
FOREIGN = {  # what its owner did, the schema, what the user is told
    "nothing there, no right to create": ("", "public", "schema public: no right to CREATE"),
    "no right to the schema": ("REVOKE ALL ON SCHEMA {schema} FROM public", "public", "no right to USAGE, CREATE"),
    "no such schema": ("", "elsewhere", 'search_path: there is no schema "elsewhere"'),
    "no rights at all": ("MAKE", "public", "public.runs: no right to SELECT, INSERT, UPDATE, DELETE"),
    "rights to read": ("MAKE; GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {user}", "public",
                       "public.runs: no right to INSERT, UPDATE, DELETE"),
    "the version alone": ("MAKE; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {user}; GRANT ALL ON ALL SEQUENCES IN "
                          "SCHEMA {schema} TO {user}; REVOKE ALL ON stellerd_version FROM {user}", "public",
                          "public.stellerd_version: no right to SELECT"),
    "no sequence": ("MAKE; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {user}", "public",
                    "public.runs_id_seq: no right to USAGE"),
    "a schema of its own": ("CREATE SCHEMA jobs; MAKE", "jobs", "schema jobs: no right to USAGE"),
    "a strange schema": ('CREATE SCHEMA "My Jobs"; MAKE', '"My Jobs"', 'schema "My Jobs": no right to USAGE'),
    "an older version": ("MAKE; OLD", "public", "was made by an older stellerd (0004"),
    "an older version elsewhere": ("CREATE SCHEMA jobs; MAKE; GRANT USAGE ON SCHEMA {schema} TO {user}; OLD", "jobs",
                                   "was made by an older stellerd (0004"),
    "no index": ("MAKE; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {user}; GRANT ALL ON ALL SEQUENCES IN SCHEMA "
                 "{schema} TO {user}; DROP INDEX runs_unfinished", "public", "missing index: runs_unfinished"),
    "no table": ("MAKE; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {user}; GRANT ALL ON ALL SEQUENCES IN SCHEMA "
                 "{schema} TO {user}; DROP TABLE operations", "public", "missing table: operations"),
}  # fmt: skip
OLD = (
    "DROP INDEX runs_unfinished; ALTER TABLE leases DROP COLUMN life; UPDATE stellerd_version SET version_num = '0004';"
    "GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {user}; GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {user}"
)


@pytest.fixture(params=[STRANGE], ids=["strange"])
def user(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[tuple[str, str]]:
    """A role that owns nothing: its name, and quoted for SQL."""
    quoted = str(request.param).replace("NUMBER", uuid.uuid4().hex)
    run_script(postgres_url, f"CREATE ROLE {quoted} LOGIN")
    yield quoted[1:-1].replace('""', '"'), quoted
    run_script(postgres_url, f"DROP OWNED BY {quoted}; DROP ROLE {quoted}")


@pytest.mark.parametrize(("done", "schema", "said"), FOREIGN.values(), ids=FOREIGN.keys())
def test_the_sql_for_the_owner_of_a_database_makes_the_next_check_clean(
    postgres_url: str, user: tuple[str, str], done: str, schema: str, said: str
) -> None:
    name, quoted = user
    path = sa.make_url(postgres_url).update_query_dict(
        {"options": f"-csearch_path={schema.replace(' ', chr(92) + ' ')}"}
    )
    owners = path.render_as_string(hide_password=False)
    theirs = path.set(username=name).render_as_string(hide_password=False)
    for statement in done.replace("OLD", OLD).split("; "):
        if statement == "MAKE":
            Store(owners).create()
        elif statement:
            run_script(owners, statement.format(schema=schema, user=quoted))
    with suppress(ConfigError):  # and nothing else
        Store(theirs).create()
    found = migrate.problems(theirs)
    assert found is not None
    assert any(said in problem for problem, _ in found), found
    for turn in range(2):  # safe to run twice, as far as it is no upgrade
        if turn == 0 or "OLD" not in done:
            run_script(postgres_url, "\n".join(sql for _, sql in found))
    store = Store(theirs)
    if migrate.problems(theirs) is None:  # there was nothing: now it may be made
        store.create()
    assert migrate.problems(theirs) == []
    claim = store.claim("j", SLOT, "schedule")
    assert isinstance(claim, Claim)
    store.put_aside(claim.run_id, "e", "k", "r", None)
    store.close()


def test_an_upgrade_by_another_than_the_owner_is_refused_with_a_sentence(
    postgres_url: str, user: tuple[str, str]
) -> None:
    Store(postgres_url).create()
    run_script(postgres_url, OLD.format(schema="public", user=user[1]))
    theirs = sa.make_url(postgres_url).set(username=user[0]).render_as_string(hide_password=False)
    with pytest.raises(
        ConfigError, match=r"must be owner of .*; `stellerd db check` prints the SQL for the database's"
    ):
        migrate.upgrade(theirs)
    run_script(postgres_url, f"DROP OWNED BY {user[1]}")
