"""Storing the catalogue: stellerd against the ORM way, a batched upsert and the database's own floor.

    python bench/catalog.py [PRODUCTS]      default 8026; 100000 and 1000000 are the other usual sizes

Every way stores two bodies (1 % of the prices differ) in three steps: into empty tables, again, and the changed one.
Decoding counts, fetching does not. Each way has a process and a database of its own, the ways take turns, and medians
are shown; only the upsert's tables get the unique indexes that ON CONFLICT needs. "rows" and "WAL" are PostgreSQL's own
figures of what a step wrote to the platform's tables. Above 100,000 products the peers are left out: the ORM way alone
takes ten minutes.

The two floors: rows into bare tables is what COPY alone takes; "INSERT … SELECT" is the server putting the same rows,
already staged, into the platform's own tables: most of it are the ten foreign keys of each product that PostgreSQL has
to prove, row by row, whoever writes them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import sqlalchemy as sa
from _table import Table, peak_mib
from servers import PostgresServer
from sqlalchemy import orm
from stellerd_brand_sync import catalogue, digests, session, tables, wire
from stellerd_brand_sync.aside import Aside
from stellerd_brand_sync.decode import Decoder
from stellerd_brand_sync.merge import Merge
from stellerd_brand_sync.staging import STAGES, Staging

from stellerd import database

STEPS = ("first", "same", "changed")
BATCH = 1_000
PEERS_UP_TO = 100_000
TARGETS = {  # PERFORMANCE.md, PostgreSQL: how many times faster than the ORM way; below 100,000 and from there on
    "first": (7, 7),
    "same": (40, 80),
    "changed": (10, 15),
}
MEMORY_OVER_BODY_MIB = 64
AUDIT = ("CreatedAt", "UpdatedAt", "CreatedBy", "UpdatedBy")
CATALOGUE = ("Brands", "Products", "ProductPricings", "ProductPricingConfigurations", "BrandCategories")


def stellerd(engine: sa.Engine) -> Callable[[bytes], None]:
    def store(body: bytes) -> None:
        with session.transaction(engine, "bench") as connection:
            catalogue.store(connection, wire.decode_v1(body), catalogue.Order(datetime.now(UTC)), Aside())

    return store


def inserts(engine: sa.Engine) -> Callable[[bytes], float]:
    """Floor of a first load: nothing but the server's own work on rows that are staged."""

    def store(body: bytes) -> float:
        with session.transaction(engine, "bench", keep=False) as connection:
            merge = Merge(connection, datetime.now(UTC))
            decoder = Decoder(merge.known_categories(), Aside())
            raws = wire.decode_v1(body)
            merge.stage(decoder.read(enumerate(raws)), [""] * len(raws), lambda done: None)
            merge.staging.analyse()
            began = time.perf_counter()
            merge.apply([])
            return time.perf_counter() - began

    return store


def full_compare(engine: sa.Engine) -> Callable[[bytes], None]:
    def store(body: bytes) -> None:
        with session.transaction(engine, "bench") as connection:
            order = catalogue.Order(datetime.now(UTC), full=True)
            catalogue.store(connection, wire.decode_v1(body), order, Aside())

    return store


# --- floor: the rows, decoded beforehand, into tables without anything


def floor(engine: sa.Engine) -> Callable[[bytes], float]:
    def store(body: bytes) -> float:
        with session.transaction(engine, "bench") as connection:
            decoder = Decoder(Merge(connection, datetime.now(UTC)).known_categories(), Aside())
            brands = list(decoder.read(enumerate(wire.decode_v1(body))))
            staged = {
                "bs_brands": [(*item.brand, None, 0) for item in brands],
                "bs_products": [row for item in brands for row in item.products],
                "bs_links": [row for item in brands for row in item.links],
            }
            for table in STAGES:
                unlogged = "UNLOGGED" if engine.dialect.name == "postgresql" else ""
                types = tables.TYPES[engine.dialect.name]
                columns = ", ".join(f'"{name}" {types[kind]}' for name, kind in STAGES[table])
                connection.exec_driver_sql(f"CREATE {unlogged} TABLE {table} ({columns})")
            began = time.perf_counter()
            loader = Staging.__new__(Staging)
            loader.connection, loader._postgres = connection, engine.dialect.name == "postgresql"
            loader._copying = ExitStack()
            with loader.loading():
                for table, rows in staged.items():
                    loader.load(table, rows)
            took = time.perf_counter() - began
            for table in STAGES:
                connection.exec_driver_sql(f"DROP TABLE {table}")
            return took

    return store


# --- the ORM way: load everything, set attributes, commit


def orm_way(engine: sa.Engine) -> Callable[[bytes], None]:
    base = orm.declarative_base()
    models = {name: _model(base, name, engine.dialect.name) for name in CATALOGUE}

    def store(body: bytes) -> None:
        now = _time(engine, datetime.now(UTC))
        with orm.Session(engine) as work:
            stored = {
                name: {_key(name, row): row for row in work.scalars(sa.select(models[name]))} for name in CATALOGUE
            }
            for name, key, values in _values(body, engine):
                row = stored[name].get(key)
                if row is None:
                    row = stored[name][key] = models[name](CreatedAt=now, UpdatedAt=now, CreatedBy=1, UpdatedBy=1)
                    work.add(row)
                for column, value in values.items():
                    setattr(row, column, value)
                if name == "Brands" and row.Id is None:
                    work.flush()
                if name == "Products":
                    row.BrandId = stored["Brands"][values["BrandInternalId"]].Id
            _link(work, models, stored, body)
            work.commit()

    return store


def _model(base: Any, name: str, dialect: str) -> Any:
    kinds: dict[str, Any] = {
        "key": sa.Integer, "integer": sa.Integer, "text": sa.Text,
        "time": sa.DateTime(timezone=True) if dialect == "postgresql" else sa.Text,
        "money4": sa.Numeric(18, 4) if dialect == "postgresql" else sa.Text,
        "money8": sa.Numeric(18, 8) if dialect == "postgresql" else sa.Text,
    }  # fmt: skip
    keys = ("BrandId", "CategoryId") if name == "BrandCategories" else ("Id",)
    parents = {"ProductId": "Products.Id", "BrandId": "Brands.Id"}  # in which order to insert

    def column(field: str, kind: str) -> Any:
        foreign = [sa.ForeignKey(parents[field])] if field in parents else []
        return sa.Column(field, kinds[kind], *foreign, primary_key=field in keys)

    columns = {field: column(field, kind) for field, kind, _ in tables.TABLES[name]}
    relation = {"owner": orm.relationship("Products")} if "ProductId" in columns else {}  # orders the inserts
    return type(name, (base,), {"__tablename__": name, **columns, **relation})


def _key(name: str, row: Any) -> Any:
    if name == "Brands":
        return row.InternalId
    if name == "BrandCategories":
        return (row.BrandId, row.CategoryId)
    return row.Id if name == "Products" else row.ProductId


def _link(work: Any, models: Any, stored: Any, body: bytes) -> None:
    for key, number in _links(body):
        pair = (stored["Brands"][key].Id, number)
        if pair not in stored["BrandCategories"]:
            stored["BrandCategories"][pair] = row = models["BrandCategories"](BrandId=pair[0], CategoryId=number)
            work.add(row)


# --- the batched upsert: every row is sent and rewritten


def upsert(engine: sa.Engine) -> Callable[[bytes], None]:
    def store(body: bytes) -> None:
        now = _time(engine, datetime.now(UTC))
        with engine.begin() as connection:
            rows: dict[str, list[dict[str, Any]]] = {}
            ids: dict[str, int] = {}
            for name, _, values in _values(body, engine):
                if name == "Products" and not ids:
                    _flush(connection, "Brands", rows.pop("Brands"), "InternalId", now)
                    ids = dict(
                        tuple(row) for row in connection.exec_driver_sql('SELECT "InternalId", "Id" FROM "Brands"')
                    )
                if name == "Products":
                    values["BrandId"] = ids[values["BrandInternalId"]]
                rows.setdefault(name, []).append(values)
            for name, conflict in (("Products", "Id"), ("ProductPricings", "ProductId"),
                                   ("ProductPricingConfigurations", "ProductId")):  # fmt: skip
                _flush(connection, name, rows[name], conflict, now)
            links = [{"BrandId": ids[key], "CategoryId": number} for key, number in _links(body)]
            _flush(connection, "BrandCategories", links, "", None)

    return store


def _flush(connection: sa.Connection, name: str, rows: list[dict[str, Any]], conflict: str, now: Any) -> None:
    audit = {} if now is None else dict.fromkeys(AUDIT[:2], now) | dict.fromkeys(AUDIT[2:], 1)
    columns = [*rows[0], *audit]
    updates = ", ".join(f'"{c}" = excluded."{c}"' for c in columns if c not in (conflict, "CreatedAt", "CreatedBy"))
    then = f'("{conflict}") DO UPDATE SET {updates}' if conflict else "DO NOTHING"
    into = ", ".join(f'"{column}"' for column in columns)
    marks = ", ".join(f":{column}" for column in columns)
    statement = sa.text(f'INSERT INTO "{name}" ({into}) VALUES ({marks}) ON CONFLICT {then}')
    for at in range(0, len(rows), BATCH):
        connection.execute(statement, [row | audit for row in rows[at : at + BATCH]])


# --- what both peers share


def _time(engine: sa.Engine, at: datetime) -> Any:
    return at if engine.dialect.name == "postgresql" else at.replace(tzinfo=None).isoformat(" ", "microseconds")


def _values(body: bytes, engine: sa.Engine) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(table, key, column values): all brands, then each product with its price and configuration."""
    exact: Callable[[Any, int], Any] = lambda value, places: (  # noqa: E731
        Decimal(value) if engine.dialect.name == "postgresql" else f"{Decimal(value):.{places}f}"
    )
    brands = json.loads(body, parse_float=Decimal)["brands"]
    for brand in brands:
        yield "Brands", brand["internalId"], {
            "InternalId": brand["internalId"], "Name": brand["name"], "CountryCode": brand["countryCode"],
            "CurrencyCode": brand["currencyCode"], "Description": brand["description"],
            "Disclaimer": brand["disclaimer"], "RedemptionInstructions": brand["redemptionInstructions"],
            "Terms": brand["terms"], "LogoUrl": brand["logoUrl"], "ModifiedDate": _moment(engine, brand),
        }  # fmt: skip
    for brand in brands:
        for item in brand["products"]:
            price, number = item["price"], item["id"]
            yield "Products", number, {
                "Id": number, "BrandInternalId": brand["internalId"], "Name": item["name"],
                "MinFaceValue": exact(item["minFaceValue"], 4), "MaxFaceValue": exact(item["maxFaceValue"], 4),
                "Count": item["count"], "ModifiedDate": _moment(engine, item),
            }  # fmt: skip
            yield "ProductPricings", number, {
                "ProductId": number, "Min": exact(price["min"], 8), "Max": exact(price["max"], 8),
                "CurrencyCode": price["currencyCode"],
            }  # fmt: skip
            commission = 1 if Decimal(item["maxFaceValue"]) - Decimal(price["max"]) > 0 else 2
            yield "ProductPricingConfigurations", number, {"ProductId": number, "CommissionTypeId": commission}


def _moment(engine: sa.Engine, item: dict[str, Any]) -> Any:
    return _time(engine, datetime.fromisoformat(item["modifiedDate"]).replace(tzinfo=UTC))


def _links(body: bytes) -> list[tuple[str, int]]:
    brands = json.loads(body)["brands"]
    return [(b["internalId"], c["id"]) for b in brands for c in b["categories"]]


WAYS: dict[str, Callable[[sa.Engine], Callable[[bytes], Any]]] = {
    "ORM: load all, set, commit": orm_way,
    "batched ON CONFLICT upsert": upsert,
    "stellerd": stellerd,
    "stellerd, full compare": full_compare,
    "floor: INSERT ... SELECT": inserts,
    "floor: rows into bare tables": floor,
}


def child(way: str, url: str, folder: Path) -> None:
    """One way, three times; prints its seconds, what it wrote, and by how many MiB its peak grew over the imports."""
    engine = database.open_engine(url, "bench")
    store = WAYS[way](engine)
    with engine.connect():
        before = peak_mib()
    took: dict[str, float] = {}
    steps = list(zip(STEPS, ("a", "a", "b"), strict=True))
    for step, name in steps[:1] if WAYS[way] is inserts else steps:  # always a first load, undone each time
        body = b""  # not two bodies at once: the peak is one of the figures
        body = (folder / name).read_bytes()
        written = _written(engine)
        began = time.perf_counter()
        own = store(body)
        took[step] = time.perf_counter() - began if own is None else own
        for what, count in _written(engine).items():
            took[f"{step} {what}"] = count - written[what]
    print(json.dumps(took | {"peak": peak_mib() - before}))


def _written(engine: sa.Engine) -> dict[str, float]:
    """Rows inserted, updated and deleted in the platform's tables so far, and MiB of write-ahead log; {} on SQLite."""
    if engine.dialect.name == "sqlite":
        return {}
    names = ", ".join(f"'{name}'" for name in CATALOGUE)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    with engine.connect() as connection:
        rows, log = connection.exec_driver_sql(
            "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::int, "
            "(pg_current_wal_insert_lsn() - '0/0')::float8 / 1048576 FROM pg_stat_user_tables "
            f"WHERE relname IN ({names})"
        ).one()
    return {"rows": rows, "WAL": log}


def prepare(way: str, url: str, folder: Path) -> None:
    """Empty tables as the platform has them, all categories, and what the upsert needs."""
    engine = database.open_engine(url, "bench")
    brands = json.loads((folder / "a").read_bytes())["brands"]
    categories = {c["id"]: c["name"] for brand in brands for c in brand["categories"]}
    with engine.begin() as connection:
        tables.create_missing(connection)
        digests.create(connection)
        insert = 'INSERT INTO "Categories" ("Id", "Name", "CreatedAt", "UpdatedAt") VALUES (:i, :n, :t, :t)'
        now = _time(engine, datetime.now(UTC))
        connection.execute(sa.text(insert), [{"i": i, "n": name, "t": now} for i, name in categories.items()])
        keys = {"Brands": "InternalId", "ProductPricings": "ProductId", "ProductPricingConfigurations": "ProductId"}
        for table, column in keys.items() if WAYS[way] is upsert else ():
            connection.exec_driver_sql(f'CREATE UNIQUE INDEX "one_{table}" ON "{table}" ("{column}")')
    engine.dispose()


def measure(ways: list[str], new_url: Callable[[], str], folder: Path, tries: int) -> dict[str, dict[str, float]]:
    """Medians of some tries, each in a process and a database of its own; the ways take turns."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(tries):
        for way in ways:
            url = new_url()
            prepare(way, url, folder)
            command = [sys.executable, __file__, "--child", way, url, str(folder)]
            found[way].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    return {way: {name: median(one[name] for one in runs) for name in runs[0]} for way, runs in found.items()}


def write_bodies(folder: Path, products: int) -> float:
    """Bodies "a" and "b" in `folder`; MiB of the first."""
    from stellerd_bamboo_sandbox.catalog import Catalog, Shape

    catalog = Catalog(Shape(products=products, price_drift=0.01, product_drift=0, categories="objects"))
    for name in ("a", "b"):
        with (folder / name).open("wb") as file:
            file.writelines(catalog.whole().blocks())
        catalog.advance()
    return (folder / "a").stat().st_size / 2**20


def report(table: Table, name: str, found: dict[str, dict[str, float]], products: int, body_mib: float) -> None:
    """The rows of one database. `found`: figures by way; only PostgreSQL has promises to keep."""
    large = products >= PEERS_UP_TO
    peer = found.get("ORM: load all, set, commit")
    for step in STEPS:
        for way, figures in found.items():
            if WAYS[way] is inserts and step != "first":
                continue
            ratio = peer[step] / figures[step] if peer else None
            promised = peer and name == "PostgreSQL" and way == "stellerd"
            target = TARGETS[step][large] if promised else None
            written = [figures.get(f"{step} {what}") for what in ("rows", "WAL")]
            table.row(f"{name}, {step}: {way}", [figures[step], figures["peak"], *written], target=target, ratio=ratio)
    most = body_mib + MEMORY_OVER_BODY_MIB
    peak = found["stellerd"]["peak"]
    table.row(
        f"{name}, stellerd: peak MiB over the interpreter", [None, peak, None, None], f"<= {most:.0f}", ok=peak <= most
    )
    if "same rows" in found["stellerd"]:
        rows = found["stellerd"]["same rows"]
        table.row(f"{name}, stellerd: rows written for no change", [None, None, rows, None], "0", ok=rows == 0)


def main(products: int, tries: int) -> None:
    ways = [way for way in WAYS if products <= PEERS_UP_TO or way.startswith(("stellerd", "floor"))]
    with tempfile.TemporaryDirectory() as name, PostgresServer() as server:
        folder = Path(name)
        body_mib = write_bodies(folder, products)
        fresh = iter(range(1_000))
        databases: dict[str, Callable[[], str]] = {
            "PostgreSQL": server.create_database,
            "SQLite": lambda: f"sqlite:///{folder}/{next(fresh)}.db",
        }
        table = Table(
            f"Catalogue, {products:,} products, body {body_mib:.1f} MiB, median of {tries}",
            ["s", "peak MiB", "rows", "WAL MiB"],
        )
        for database_name, new_url in databases.items():
            found = measure(ways, new_url, folder, tries)
            report(table, database_name, found, products, body_mib)
    table.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        count = int(sys.argv[1]) if len(sys.argv) > 1 else 8_026
        main(count, tries=5 if count < PEERS_UP_TO else 1)
