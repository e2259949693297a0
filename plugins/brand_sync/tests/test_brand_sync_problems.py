"""`stellerd db check`: each problem of the platform's database is named, and the SQL beside it mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from stellerd_brand_sync import digests, tables


def mended(world: Any, owner: Any) -> list[str]:
    """Run the SQL of each problem as the owner until there is none; what the problems were."""
    said: list[str] = []
    for _ in range(5):
        found = world.harness.database_problems()
        if not found:
            return said
        said += [problem for problem, _ in found]
        owner.do(*(sql for _, sql in found))
        owner.engine.dispose()
        world.harness.runner.services.engine("steller").dispose()
    raise AssertionError(found)


@pytest.fixture
def platform(postgres_url: str, worlds: Any, vendor: Any) -> Any:
    """A PostgreSQL with the tables as the platform makes them."""
    world = worlds(postgres_url, vendor.base_url, create_tables=False)
    world.create()
    return world


def test_a_database_as_it_should_be_has_no_problems(any_url: str, worlds: Any, vendor: Any) -> None:
    world = worlds(any_url, vendor.base_url, create_tables=False)
    world.create()
    assert world.harness.database_problems() == []
    world.ok()
    assert world.harness.database_problems() == []


def test_what_the_job_may_create_is_no_problem(any_url: str, worlds: Any, vendor: Any) -> None:
    world = worlds(any_url, vendor.base_url)
    assert world.harness.database_problems() == []
    world.create()
    world.do('ALTER TABLE "Products" DROP COLUMN "Count"')
    assert mended(world, world) == ['table "Products" has no column "Count"']


def test_an_empty_database_is_filled_by_what_it_says(any_url: str, worlds: Any, vendor: Any) -> None:
    world = worlds(any_url, vendor.base_url, create_tables=False)
    said = mended(world, world)
    assert len(said) == len(tables.TABLES) + 3
    assert said[0] == 'no table "Users" (run the platform\'s migrations)'
    assert said[-3:] == [
        'table "CommissionTypes" lacks row 1', 'table "CommissionTypes" lacks row 2', 'table "Users" lacks row 1',
    ]  # fmt: skip
    world.ok()


SHAPE = {
    "column": ('ALTER TABLE "Brands" DROP "LogoUrl"', 'table "Brands" has no column "LogoUrl"'),
    "key": ('ALTER TABLE "ProductPricings" DROP "Id"', 'table "ProductPricings" has no column "Id"'),
    "float": (
        'ALTER TABLE "ProductPricings" ALTER "Min" TYPE double precision',
        '"ProductPricings"."Min" is double precision, not numeric(18,8)',
    ),
    "rounds": (
        'ALTER TABLE "Products" ALTER "MinFaceValue" TYPE numeric(18,2)',
        '"Products"."MinFaceValue" is numeric(18,2), not numeric(18,4)',
    ),
    "small": ('ALTER TABLE "Products" ALTER "Count" TYPE smallint', '"Products"."Count" is smallint, not integer'),
    "coarse": (
        'ALTER TABLE "Brands" ALTER "ModifiedDate" TYPE timestamptz(3)',
        '"Brands"."ModifiedDate" is timestamp(3) with time zone, not timestamp with time zone',
    ),
    "padded": ('ALTER TABLE "Brands" ALTER "CountryCode" TYPE char(5)', '"Brands"."CountryCode" is character(5)'),
    "unknown column": (
        'ALTER TABLE "Brands" ADD "Tenant" integer NOT NULL',
        '"Brands"."Tenant" must have a value, has no default, and is not filled by brand_sync',
    ),
    "known column": (
        'ALTER TABLE "Products" ALTER "Description" SET NOT NULL',
        '"Products"."Description" must have a value, has no default, and is not filled by brand_sync',
    ),
    "no identity": (
        'ALTER TABLE "Brands" ALTER "Id" DROP IDENTITY',
        '"Brands"."Id" must have a value, has no default, and is not filled by brand_sync',
    ),
    "always": (
        'ALTER TABLE "Products" ALTER "Id" SET GENERATED ALWAYS',
        '"Products"."Id" takes no id from outside',
    ),
    "taken": (
        'INSERT INTO "Brands" ("Id", "Name", "CountryCode", "CurrencyCode", "ModifiedDate", "CreatedAt", "UpdatedAt") '
        "VALUES (1, 'x', 'DE', 'EUR', now(), now(), now())",
        'the sequence of "Brands"."Id" gives out ids that are taken',
    ),
    "digests": (
        f"CREATE SCHEMA stellerd; CREATE TABLE stellerd.{digests.TABLE} (internal_id text)",
        f"stellerd.{digests.TABLE} has not the columns of this version",
    ),
    "type row": ('DELETE FROM "CommissionTypes" WHERE "Id" = 1', 'table "CommissionTypes" lacks row 1'),
    "user row": ('DELETE FROM "Users"', 'table "Users" lacks row 1'),
}


@pytest.mark.parametrize("kind", SHAPE)
def test_the_sql_mends_what_is_wrong_with_the_shape(kind: str, platform: Any, vendor: Any) -> None:
    damage, said = SHAPE[kind]
    platform.do(damage)
    record = platform.run()
    assert (record.state, vendor.paths) == ("failed", [])  # found before a slot is spent
    assert said in record.reason
    [problem] = mended(platform, platform)
    assert problem.startswith(said)
    assert platform.ok()["new"] == 2
    assert platform.ok()["rows"] == 0


def test_times_without_a_zone_are_said_and_used(platform: Any) -> None:
    platform.do('ALTER TABLE "Brands" ALTER "ModifiedDate" TYPE timestamp')
    assert platform.ok()["new"] == 2
    platform.reconfigure(full_compare=True)
    assert platform.ok()["rows"] == 0
    assert mended(platform, platform) == ['"Brands"."ModifiedDate" is timestamp without time zone, not '
                                          'timestamp with time zone']  # fmt: skip
    assert platform.ok()["rows"] == 0


@pytest.mark.parametrize(
    "statement",
    ['ALTER TABLE "Brands" ALTER "Name" TYPE varchar(200)', 'ALTER TABLE "Products" ALTER "Count" TYPE bigint',
     'ALTER TABLE "Products" ALTER "MinFaceValue" TYPE numeric', 'ALTER TABLE "Users" DROP "Email"',
     'ALTER TABLE "ProductPricings" ALTER "Min" TYPE numeric(20,8)',
     'ALTER TABLE "Brands" ADD "Tenant" integer NOT NULL DEFAULT 5'],
)  # fmt: skip
def test_what_holds_every_value_is_no_problem(statement: str, platform: Any) -> None:
    platform.do(statement)
    assert platform.harness.database_problems() == []
    platform.ok()


@pytest.fixture
def poor(platform: Any, worlds: Any, vendor: Any) -> Iterator[Any]:
    """The same database, seen by a user who may do exactly what brand_sync needs."""
    name = make_url(platform.url).database
    role = f"R {name}"  # has to be quoted
    platform.do(
        f'CREATE ROLE "{role}" LOGIN', f'GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO "{role}"',
        f'GRANT DELETE ON "BrandCategories" TO "{role}"', f'CREATE SCHEMA stellerd AUTHORIZATION "{role}"',
    )  # fmt: skip
    url = make_url(platform.url).set(username=role).render_as_string()
    world = worlds(url, vendor.base_url, create_tables=False)
    world.role = f'"{role}"'
    yield world
    world.close()
    platform.do(f'DROP OWNED BY "{role}" CASCADE', f'DROP ROLE "{role}"')


RIGHTS = {
    "read": ('REVOKE SELECT ON "Users" FROM {role}', '{role} lacks SELECT on "Users"'),
    "write": ('REVOKE INSERT, UPDATE ON "Brands" FROM {role}', '{role} lacks INSERT, UPDATE on "Brands"'),
    "links": ('REVOKE DELETE ON "BrandCategories" FROM {role}', '{role} lacks DELETE on "BrandCategories"'),
    "sequence": (
        'ALTER TABLE "Brands" ALTER "Id" DROP IDENTITY; CREATE SEQUENCE public.keys OWNED BY "Brands"."Id"; '
        "ALTER TABLE \"Brands\" ALTER \"Id\" SET DEFAULT nextval('public.keys')",
        '{role} may not use the sequence of "Brands"."Id"',
    ),
    "temporary": ('REVOKE TEMPORARY ON DATABASE "{name}" FROM PUBLIC', "{role} may not make temporary tables"),
    "schema": (
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC",
        '{role} may not enter the schema of "Users", public',
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHTS)
def test_the_sql_mends_what_is_not_allowed(kind: str, poor: Any, platform: Any, vendor: Any) -> None:
    assert poor.harness.database_problems() == []
    damage, said = RIGHTS[kind]
    names = {"role": poor.role, "name": make_url(platform.url).database}
    platform.do(damage.format(**names))
    record = poor.run()
    assert (record.state, vendor.paths) == ("failed", [])
    assert said.format(**names) in record.reason
    problems = mended(poor, platform)
    assert set(problems) == {said.format(**names).replace('"Users"', f'"{table}"') for table in
                             (tables.TABLES if kind == "schema" else ["Users"])}  # fmt: skip
    assert poor.ok()["new"] == 2


DIGESTS = {
    "no schema": ("DROP SCHEMA stellerd CASCADE", "may not make stellerd.stellerd_brand_digests"),
    "another's schema": ("ALTER SCHEMA stellerd OWNER TO {owner}", "may not make stellerd.stellerd_brand_digests"),
    "no entry": ("{run}; ALTER SCHEMA stellerd OWNER TO {owner}", "may not enter the schema stellerd"),
    "no rights": (
        "{run}; ALTER TABLE stellerd.stellerd_brand_digests OWNER TO {owner}",
        "lacks SELECT, INSERT, UPDATE, DELETE on stellerd.stellerd_brand_digests",
    ),
}


@pytest.mark.parametrize("kind", DIGESTS)
def test_without_digests_all_works_and_it_is_said_what_mends_it(kind: str, poor: Any, platform: Any) -> None:
    damage, said = DIGESTS[kind]
    if "{run}" in damage:
        poor.ok()
    platform.do(damage.format(run="SELECT 1", owner=make_url(platform.url).username))
    assert poor.run().state == "ok"
    [problem] = mended(poor, platform)
    assert problem == f"{poor.role} {said}: every run compares everything"
    poor.ok()
    assert poor.query("SELECT internal_id FROM stellerd.stellerd_brand_digests") == [("100",)]
