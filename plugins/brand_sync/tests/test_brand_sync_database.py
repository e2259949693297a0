"""The database that a run needs: not ready, away, dying, locked, without rights."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from stellerd_brand_sync import digests, session

from stellerd import errors
from stellerd.testing import open_engine

Make = Callable[..., dict[str, Any]]


MISSING = [
    ('DELETE FROM "CommissionTypes" WHERE "Id" = 2', 'lacks row 2; mend it with: INSERT INTO "CommissionTypes"'),
    ('DELETE FROM "Users"', 'lacks row 1; mend it with: INSERT INTO "Users"'),
    ('DROP TABLE "ProductPricingConfigurations"', 'no table "ProductPricingConfigurations"'),
    ('ALTER TABLE "Products" DROP COLUMN "Count"', 'table "Products" has no column "Count"; mend it with: ALTER TABLE'),
    ('ALTER TABLE "Products" ADD COLUMN "Sku" text NOT NULL DEFAULT 1', None),
]


@pytest.mark.parametrize(("damage", "said"), MISSING)
def test_a_database_that_is_not_ready_costs_no_request(
    any_url: str, worlds: Any, vendor: Any, damage: str, said: str | None
) -> None:
    world = worlds(any_url, vendor.base_url, create_tables=False)
    world.create()
    world.do(damage)
    if said is None:
        world.harness.check()
        world.ok()
        return
    with pytest.raises(errors.JobFailed, match="the database is not ready") as caught:
        world.harness.check()
    record = world.run()
    assert record.state == "failed"
    assert said in record.reason == str(caught.value)
    assert vendor.paths == []
    assert world.harness.runner.limiter.closed_until("bamboo_catalog") is None


def test_nobodys_tables_are_created_unasked(any_url: str, worlds: Any, vendor: Any) -> None:
    record = worlds(any_url, vendor.base_url, create_tables=False).run()
    assert record.state == "failed"
    assert 'no table "Users" (run the platform\'s migrations)' in record.reason
    assert "and 3 more; see stellerd db check, or create_tables" in record.reason
    assert sa.inspect(open_engine(any_url, "test")).get_table_names() == []


def test_a_column_that_must_have_a_value_is_found_before_the_insert_fails(
    postgres_url: str, worlds: Any, vendor: Any
) -> None:
    world = worlds(postgres_url, vendor.base_url, create_tables=False)
    world.create()
    world.do('ALTER TABLE "Brands" ADD COLUMN "Tenant" integer NOT NULL')
    assert '"Brands"."Tenant" must have a value, has no default' in world.run().reason
    assert vendor.paths == []


def test_the_next_user_of_the_platform_gets_another_id(postgres_url: str, worlds: Any, vendor: Any) -> None:
    world = worlds(postgres_url, vendor.base_url)
    world.ok()
    world.do("""INSERT INTO "Users" ("Name", "Email") VALUES ('Eve', 'eve@example.org')""")
    assert world.query('SELECT "Id" FROM "Users" ORDER BY 1') == [(1,), (2,)]


def test_a_database_that_is_away_is_named_without_its_password(worlds: Any, vendor: Any) -> None:
    world = worlds("postgresql+psycopg://steller:hunter2@127.0.0.1:1/shop", vendor.base_url)
    record = world.run()
    assert (record.state, record.exit_code) == ("failed", 69)
    assert record.reason.startswith('database "steller" (postgresql://127.0.0.1:1/shop): ')
    assert "hunter2" not in record.reason
    assert vendor.paths == []
    with pytest.raises(errors.Unreachable):
        world.harness.check()


def test_a_file_that_is_no_database_is_named(tmp_path: Any, worlds: Any, vendor: Any) -> None:
    (tmp_path / "steller.db").write_bytes(b"this is a letter to a friend" * 100)
    record = worlds(f"sqlite:///{tmp_path}/steller.db", vendor.base_url).run()
    assert (record.state, record.exit_code) == ("failed", 69)
    assert "file is not a database" in record.reason


def test_a_mistake_in_the_sql_is_not_taken_for_an_absent_server(sqlite_url: str) -> None:
    engine = open_engine(sqlite_url, "test")
    with pytest.raises(errors.JobFailed, match="no such table: nowhere; nothing was changed"):
        with session.transaction(engine, "steller") as connection:
            connection.exec_driver_sql("SELECT * FROM nowhere")
    engine.dispose()


def test_a_database_that_dies_during_the_merge_keeps_nothing(postgres_url: str, worlds: Any, vendor: Any) -> None:
    world = worlds(postgres_url, vendor.base_url)
    world.create()
    world.do(
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END'",
        'CREATE TRIGGER die BEFORE INSERT ON "ProductPricings" FOR EACH ROW EXECUTE FUNCTION die()',
    )
    record = world.run()
    assert record.state == "partial"
    assert record.reason.startswith('catalogue: database "steller" (postgresql://')
    assert "Traceback" not in record.reason
    assert world.query('SELECT count(*) FROM "Brands"') == [(0,)]
    world.do('DROP TRIGGER die ON "ProductPricings"')
    assert world.ok()["new"] == 2


_BAD = """GENERATED ALWAYS AS (CASE WHEN "Name" = 'bad' THEN "Name" END) STORED"""
REFUSALS = {
    "check": ("""ALTER TABLE "Products" ADD CONSTRAINT trouble CHECK ("Name" <> 'bad')""", "violates check"),
    "unique": ("""CREATE UNIQUE INDEX trouble ON "Products" ("Name") WHERE "Name" = 'bad'""", "already exists"),
    "deferred": (
        f'ALTER TABLE "Products" ADD twin text {_BAD}, ADD CONSTRAINT trouble UNIQUE (twin) INITIALLY DEFERRED',
        "already exists",
    ),
    "foreign key": (
        'CREATE TABLE "Names" (name text PRIMARY KEY);'
        f'ALTER TABLE "Products" ADD wanted text {_BAD} CONSTRAINT trouble REFERENCES "Names"',
        "is not present",
    ),
}


LONG = "".join(chr(0x4E00 + n) for n in range(1_000))
"""1,000 signs, 3,000 bytes, and nothing that could be packed."""


def test_a_long_internal_id_of_wide_signs_is_stored_and_remembered(
    world: Any, vendor: Any, brand: Make, product: Make
) -> None:
    vendor.catalogue([brand(LONG, product(1), name="x"), brand("2", product(2))])
    assert (world.ok()["products"], world.ok()["rows"]) == (2, 0)
    kept = "stellerd." * (world.engine.dialect.name == "postgresql") + digests.TABLE
    assert world.query(f"SELECT internal_id FROM {kept} ORDER BY 1") == [("2",), (LONG,)]
    vendor.catalogue([brand(LONG, product(1, name="new"), name="x")])
    assert world.ok()["changed"] == 1


def test_the_table_of_an_earlier_version_gets_todays_key(
    postgres_url: str, worlds: Any, vendor: Any, brand: Make, product: Make
) -> None:
    world = worlds(postgres_url, vendor.base_url)
    world.ok()
    old = world.query("SELECT * FROM stellerd.stellerd_brand_digests")
    world.do(
        "ALTER TABLE stellerd.stellerd_brand_digests DROP CONSTRAINT stellerd_brand_digests_pkey, "
        "ADD PRIMARY KEY (internal_id)"
    )
    [(what, sql)] = world.harness.database_problems()
    assert "internalId of more than 2,700 bytes" in what
    assert "ADD PRIMARY KEY (digest)" in sql
    world.ok()
    assert world.query("SELECT * FROM stellerd.stellerd_brand_digests") == old
    assert world.harness.database_problems() == []
    vendor.catalogue([brand(LONG, product(1), name="x")])
    assert world.ok()["quarantined"] == 0


TROUBLES = {
    "an index of the platform": ('CREATE INDEX trouble ON "Brands" ("InternalId")', "exceeds btree"),
    "a mistake in a trigger": (
        "CREATE FUNCTION oops() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF length(NEW.\"InternalId\") > 99 THEN PERFORM no_such_function(); END IF; RETURN NEW; END';"
        'CREATE TRIGGER oops BEFORE INSERT ON "Brands" FOR EACH ROW EXECUTE FUNCTION oops()',
        "no_such_function() does not exist",
    ),
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_whatever_the_database_says_of_one_brand_costs_that_brand_alone(
    postgres_url: str, worlds: Any, vendor: Any, brand: Make, product: Make, kind: str
) -> None:
    damage, said = TROUBLES[kind]
    world = worlds(postgres_url, vendor.base_url)
    world.create()
    world.do(damage)
    vendor.catalogue([brand(LONG if n == 7 else str(n), product(n), name="x") for n in range(20)[1:]])
    assert (world.ok()["quarantined"], world.ok()["products"]) == (1, 18)
    [item] = world.harness.quarantined()
    assert item["key"] == LONG[:200]
    assert said in item["reason"]


def test_what_the_database_says_of_every_brand_is_said_of_the_database(
    postgres_url: str, worlds: Any, vendor: Any, brand: Make, product: Make
) -> None:
    world = worlds(postgres_url, vendor.base_url)
    world.create()
    world.do(TROUBLES["a mistake in a trigger"][0])
    vendor.catalogue([brand(LONG[n:], product(n), name="x") for n in range(1, 20)])
    record = world.run()
    assert "no_such_function() does not exist" in record.reason
    assert record.counters["quarantined"] == 0


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_constraint_costs_the_guilty_brands_alone(
    postgres_url: str, worlds: Any, vendor: Any, brand: Make, product: Make, kind: str
) -> None:
    damage, said = REFUSALS[kind]
    world = worlds(postgres_url, vendor.base_url, create_tables=False)
    world.create()
    world.do(damage)
    taken = [brand("0", product(9000, name="bad"))] if kind in ("unique", "deferred") else []
    guilty = {17: "bad", 40: "bad", 41: "bad"}
    brands = [brand(str(n), product(n, name=guilty.get(n, f"Card {n}")), categories=[n]) for n in range(1, 60)]
    vendor.catalogue(taken + brands)
    counters = world.ok()
    assert (counters["quarantined"], counters["products"]) == (3, 56 + len(taken))
    aside = world.harness.quarantined()
    assert [(item["entity"], item["key"]) for item in aside] == [("brand", "17"), ("brand", "40"), ("brand", "41")]
    assert all('constraint "trouble" of "Products"' in item["reason"] and said in item["reason"] for item in aside)
    assert {row[0] for row in world.query('SELECT "Id" FROM "Products"')}.isdisjoint(guilty)
    assert world.query('SELECT count(*) FROM "BrandCategories"') == [(56,)]
    again = world.ok()  # not forgotten: they are tried and named again
    assert (again["quarantined"], again["rows"], again["vanished"]) == (3, 0, 0)
    vendor.catalogue(taken + [brand(str(n), product(n), categories=[n]) for n in range(1, 60)])
    assert world.ok()["new"] == 3


_VIRTUAL = """GENERATED ALWAYS AS (CASE WHEN "Name" = 'bad' THEN "Name" END) VIRTUAL"""
SQLITE_REFUSALS = {  # SQLite names a check, a unique index's columns, and of a foreign key nothing
    "check": (
        """ALTER TABLE "Products" ADD wanted text CONSTRAINT trouble CHECK ("Name" <> 'bad')""",
        "CHECK constraint failed: trouble",
    ),
    "unique": (
        """CREATE UNIQUE INDEX trouble ON "Products" ("Name") WHERE "Name" = 'bad'""",
        "UNIQUE constraint failed: Products.Name",
    ),
    "foreign key": (
        f'ALTER TABLE "Products" ADD wanted text {_VIRTUAL} REFERENCES "Names" (name)',
        "FOREIGN KEY constraint failed",
    ),
}


@pytest.mark.parametrize("kind", SQLITE_REFUSALS)
def test_a_constraint_of_sqlite_costs_the_guilty_brands_alone(
    sqlite_url: str, worlds: Any, vendor: Any, brand: Make, product: Make, kind: str
) -> None:
    damage, said = SQLITE_REFUSALS[kind]
    world = worlds(sqlite_url, vendor.base_url)
    world.create()
    world.do('CREATE TABLE "Names" (name text PRIMARY KEY)', damage)
    taken = [brand("0", product(9000, name="bad"))] if kind == "unique" else []
    bad = (17, 40, 41)
    brands = [brand(str(n), product(n, name="bad" if n in bad else f"Card {n}")) for n in range(1, 60)]
    vendor.catalogue(taken + brands)
    counters = world.ok()
    assert (counters["unusable"], counters["products"]) == (3, 56 + len(taken))
    aside = world.harness.quarantined()
    assert [(item["entity"], item["key"]) for item in aside] == [("brand", str(n)) for n in bad]
    assert all(said in item["reason"] for item in aside)


def test_a_database_that_refuses_everything_is_not_searched_for_ever(
    postgres_url: str, worlds: Any, vendor: Any, brand: Make, product: Make, monkeypatch: Any
) -> None:
    monkeypatch.setattr("stellerd_brand_sync.apart.MOST", 5)
    world = worlds(postgres_url, vendor.base_url, create_tables=False)
    world.create()
    world.do('ALTER TABLE "Products" ADD CONSTRAINT cheap CHECK ("MaxFaceValue" < 5)')
    vendor.catalogue([brand(str(n), product(n)) for n in range(1, 60)])
    record = world.run()
    assert record.state == "partial"
    assert "refuses more than 5 brands" in record.reason
    assert 'constraint "cheap" of "Products"' in record.reason
    assert world.query('SELECT count(*) FROM "Brands"') == [(0,)]


def test_a_second_sync_waits_for_the_first(postgres_url: str, worlds: Any, vendor: Any) -> None:
    world = worlds(postgres_url, vendor.base_url)
    world.create()
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(world.harness.run()))
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with session.transaction(world.engine, "steller"):
        thread.start()
        watch = open_engine(postgres_url, "test")
        with watch.connect() as connection:
            world.until(lambda: connection.execute(sa.text(waiting)).scalar_one() == 1)
        watch.dispose()
        assert (outcome, vendor.paths) == ([], [])
    thread.join(20)
    assert outcome[0].state == "ok", outcome[0].reason


def test_check_creates_nothing(any_url: str, worlds: Any, vendor: Any) -> None:
    world = worlds(any_url, vendor.base_url)
    world.harness.check()
    assert sa.inspect(world.engine).get_table_names() == []
    assert vendor.paths == []


def test_what_the_databases_encoding_cannot_hold_costs_its_brand_alone(
    postgres_url: str, worlds: Any, vendor: Any, brand: Make, product: Make
) -> None:
    url = sa.make_url(postgres_url)
    name = f"{url.database}_latin"
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        options = "ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        connection.exec_driver_sql(f'CREATE DATABASE "{name}" {options}')
    world = worlds(
        url.set(database=name).render_as_string(hide_password=False), vendor.base_url, on_missing="out-of-stock"
    )
    try:
        brands = [brand(str(n), product(n), terms="für") for n in range(1, 20)]
        vendor.catalogue(brands)
        assert world.ok()["products"] == 19
        vendor.catalogue([one | {"name": "neu" if n != 7 else "新"} for n, one in enumerate(brands)])
        for rows in (18, 0):
            counters = world.ok()
            assert (counters["quarantined"], counters["vanished"], counters["rows"]) == (1, 0, rows)
            [item] = world.harness.quarantined()
            assert item["key"] == "8"
            assert "LATIN1" in item["reason"]
        assert world.query('SELECT "Id" FROM "Products" WHERE "Count" = 0') == []
    finally:
        world.close()
        with admin.connect() as connection:
            connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')
        admin.dispose()
