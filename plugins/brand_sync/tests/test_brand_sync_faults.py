"""Everything the vendor may do to us: the real job in a process of its own, against the sandbox's server.

Each case says what the run is to end as. Whatever it is, the database is as it was or exactly right, nothing is asked
before a wait is over that the vendor named, and memory stays below the cap of the body and 64 MB.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from stellerd_bamboo_sandbox import Sandbox

from stellerd.testing import open_engine

APIS = {"v1": "catalog", "v2": "catalog_v2"}
CAP = 32 * 2**20
ROOM = 64 * 10**6
PRODUCTS = 260
START = datetime(2026, 11, 2, 3, 4, 5, tzinfo=UTC)
FORMS = ("plain_short", "json_string", "message", "error", "detail")
_ROWS = """
SELECT p."Id", p."Name", p."MinFaceValue", p."MaxFaceValue", q."Min", q."Max"
  FROM "Products" p LEFT JOIN "ProductPricings" q ON q."ProductId" = p."Id" """


@dataclass
class Case:
    """A fault, and what a run says of it. `wait`: seconds until the next call, by API; none: any time."""

    kind: str
    said: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    form: str = "plain_long"
    wait: dict[str, float] = field(default_factory=dict)
    header: str = "none"
    apis: tuple[str, ...] = tuple(APIS)

    def __str__(self) -> str:
        return "-".join([self.kind, *map(str, self.options.values()), *([self.form] if self.wait else [])])


def _wait(seconds: float) -> dict[str, float]:
    return dict.fromkeys(APIS, seconds)


_SHORT = {"timeout": "2s"}  # two minutes are the same to a deadline that is over
CASES = [
    Case("early_429", "answered 429", {"wait": 3406}, wait=_wait(3406)),
    *(Case("early_429", "answered 429", {"wait": 3406}, form=form, wait=_wait(3406), apis=("v1",)) for form in FORMS),
    Case("early_429", "answered 429", {"wait": 9}, form="unreadable", wait={"v1": 3600}, apis=("v1",)),
    Case("early_429", "answered 429", {"wait": 10**12}, wait=_wait(86_400)),
    Case("early_429", "answered 429", {"wait": 10**30}, form="message", wait=_wait(86_400)),
    Case("early_429", "answered 429", {"wait": 77}, form="unreadable", header="seconds", wait=_wait(77)),
    Case("bad_gateway", 'answered 502: "502 Bad Gateway'),
    Case("server_error", "answered 500"),
    Case("forbidden", "answered 403; no access"),
    Case("redirect", "answered 302, a redirect; stellerd follows none"),
    Case("reset", "reset by peer"),
    Case("cut", "more expected"),
    Case("stall", "no whole answer within", {"seconds": "2m"}, _SHORT),
    Case("silent", "no whole answer within", {"seconds": "2m"}, _SHORT),
    Case("drip", "no whole answer within", {"pause": "1s"}, _SHORT),
    Case("truncated", "the answer cannot be read"),
    Case("not_json", "the answer cannot be read"),
    Case("wrong_shape", "the answer cannot be read"),
    Case("wrong_types", "the answer cannot be read"),
    Case("empty", "it is empty"),
    Case("gzip_bomb", "the body is larger than", {"size": 2**30}),
]  # fmt: skip


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    """What forks the processes of the runs."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("one_run.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    ) as made:  # fmt: skip
        yield made
        assert made.stdin
        made.stdin.close()


class Site:
    """A platform's database and state, and runs on them."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, url: str, sandbox: Sandbox, api: str) -> None:
        self.process, self.folder, self.url, self.sandbox, self.api = process, folder, url, sandbox, api
        self.now = START
        user, password = sandbox.auth
        self.settings: dict[str, Any] = {
            "base_url_v1": sandbox.base_url, "base_url_v2": sandbox.base_url, "client_id": user,
            "client_secret": password, "create_tables": True, "catalog_api": api, "full_compare": True,
            "max_body": CAP, "max_shrink": 0.01,
        }  # fmt: skip

    def run(self, later: float = 1.0, **settings: Any) -> dict[str, Any]:
        """A run so many seconds later; its memory is looked at, whatever else it is for."""
        self.now += timedelta(seconds=later)
        order = {"folder": str(self.folder), "url": self.url, "at": self.now.isoformat()}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order | {"settings": self.settings | settings}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer.strip(), "the run's process died"
        assert self.process.stdout.readline() == "\n"
        record: dict[str, Any] = json.loads(answer)
        assert record["grown"] < self.settings["max_body"] + ROOM, f"{record['grown'] / 2**20:.0f} MiB"
        self.now = datetime.fromisoformat(record["at"])
        return record

    def rows(self) -> dict[int, tuple[Any, ...]]:
        """What is stored of each product."""
        engine = open_engine(self.url, "test")
        with engine.connect() as connection:
            found = {
                number: (name, *(value if value is None else Decimal(value) for value in amounts))
                for number, name, *amounts in connection.execute(sa.text(_ROWS))
            }
        engine.dispose()
        return found

    def right(self) -> dict[int, tuple[Any, ...]]:
        """What the vendor's catalogue says of each product."""
        return {
            item["id"]: (
                item["name"], item["minFaceValue"], item["maxFaceValue"], item["price"]["min"], item["price"]["max"],
            )
            for brand in self.sandbox.snapshot()
            for item in brand["products"]
        }  # fmt: skip

    def calls(self) -> int:
        """How often the catalogue was asked for."""
        return len(self.sandbox.calls(APIS[self.api]))


@pytest.fixture(scope="module")
def filled(process: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the first edition stored, by API."""
    folders = {}
    for api in APIS:
        folders[api] = folder = tmp_path_factory.mktemp(api)
        with Sandbox(products=PRODUCTS, brands=250, limits=False, drift=False) as sandbox:
            site = Site(process, folder, f"sqlite:///{folder}/steller.db", sandbox, api)
            record = site.run()
            assert (record["state"], record["counters"]["new"]) == ("ok", PRODUCTS), record["reason"]
    return folders


@pytest.fixture
def site(api: str, process: subprocess.Popen[str], filled: dict[str, Path], tmp_path: Path) -> Iterator[Site]:
    """The first edition is stored, the second one is what the vendor has now; two hours went by."""
    shutil.copytree(filled[api], tmp_path, dirs_exist_ok=True)
    with Sandbox(products=PRODUCTS, brands=250, limits=False, drift=False) as sandbox:
        sandbox.catalog.advance()
        made = Site(process, tmp_path, f"sqlite:///{tmp_path}/steller.db", sandbox, api)
        made.now += timedelta(hours=2)
        yield made


@pytest.mark.parametrize(("api", "case"), [(api, case) for case in CASES for api in case.apis], ids=str)
def test_a_fault_of_the_vendor(site: Site, case: Case) -> None:
    before = site.rows()
    sandbox, first = site.sandbox, 1 if site.api == "v1" else 2  # of the paged one the second page is hit
    sandbox.refuse_as(case.form, case.header)
    with Sandbox(products=1) as elsewhere:
        more = {"location": f"{elsewhere.v1_url}/catalog"} if case.kind == "redirect" else case.options
        sandbox.fail(case.kind, endpoint=APIS[site.api], calls=[first], **more)  # type: ignore[arg-type]
        record = site.run(**case.settings)
        assert elsewhere.requests == 0
    assert record["state"] == ("deferred" if case.wait else "partial"), record["reason"]
    print(f"{record['state']}, {record['grown'] / 2**20:.0f} MiB: {record['reason']}")
    assert case.said in record["reason"]
    assert site.rows() == before
    assert site.calls() == first
    _nothing_before(site, record, case.wait.get(site.api, 0.0))
    record = site.run(4.0)
    assert record["state"] == "ok", record["reason"]
    assert site.rows() == before | site.right()


def _nothing_before(site: Site, record: dict[str, Any], wait: float) -> None:
    """Go to the end of the wait; nothing is asked meanwhile."""
    if not wait:
        return
    told = datetime.fromisoformat(record["not_before"]) - site.now
    assert told.total_seconds() == pytest.approx(wait, abs=1.5)
    calls = site.calls()
    if wait > 10:
        assert site.run(wait - 3)["state"] == "deferred"
        assert site.calls() == calls


@pytest.mark.parametrize(("api", "database"), [("v1", "postgres_url"), ("v2", "sqlite_url")])
def test_8025_good_rows_and_one_bad(
    request: pytest.FixtureRequest, process: subprocess.Popen[str], tmp_path: Path, database: str, api: str
) -> None:
    url = request.getfixturevalue(database)
    with Sandbox(products=8025, brands=500, limits=False, drift=False) as sandbox:
        calls = list(range(1, 100, 5)) if api == "v2" else []  # the first page of each pass
        sandbox.fail("bad_rows", endpoint=APIS[api], calls=calls, rows=["face_text"])
        site = Site(process, tmp_path, url, sandbox, api)
        record = site.run()
        assert (record["state"], record["counters"]["fetched"]) == ("ok", 8026), record["reason"]
        [bad] = record["quarantined"]
        assert (bad["entity"], "minFaceValue" in bad["reason"]) == ("product", True)
        assert site.rows() == site.right()
        assert len(site.rows()) == 8025


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("products", [30_000, pytest.param(200_000, marks=pytest.mark.soak)])
def test_a_body_nearly_as_large_as_the_cap(
    process: subprocess.Popen[str], tmp_path: Path, sqlite_url: str, api: str, products: int
) -> None:
    with Sandbox(products=products, limits=False, drift=False) as sandbox:
        size = sandbox.catalog.whole().length
        sandbox.fail("bad_rows", endpoint="catalog", rows=["name_half_surrogate"])
        site = Site(process, tmp_path, sqlite_url, sandbox, api)
        site.settings["max_body"] = size + 2**17
        record = site.run()
        print(f"body {size / 2**20:.0f} MiB, memory {record['grown'] / 2**20:.0f} MiB")
        assert (record["state"], record["counters"]["products"]) == ("ok", products), record["reason"]
        assert record["grown"] < size + ROOM
