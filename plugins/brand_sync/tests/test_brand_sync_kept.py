"""A catalogue that was fetched and not stored: it is used instead of a call, or it is not used at all."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stellerd_brand_sync import kept

Make = Callable[..., dict[str, Any]]


class Answers(dict[str, tuple[int, bytes]]):
    """Answers that do something before the catalogue leaves."""

    act: Callable[[], None] | None = None

    def get(self, path: str, default: Any = None) -> Any:
        if path.endswith("v1.0/catalog") and self.act:
            self.act()
        return super().get(path, default)


class Failing:
    """A sync whose database can be made to fail between the fetch and the storing."""

    def __init__(self, world: Any, vendor: Any) -> None:
        self.world, self.vendor = world, vendor
        self.answers = vendor.answers = Answers(vendor.answers)
        self.file: Path = world.harness.folder / "jobs" / "brand_sync" / kept.NAME

    def fail(self) -> Any:
        """A run whose catalogue cannot be stored."""
        self.answers.act = lambda: self.world.do('ALTER TABLE "Products" RENAME TO "Gone"')
        record = self.world.harness.run()
        self.answers.act = None
        self.world.do('ALTER TABLE "Gone" RENAME TO "Products"')
        assert "Products" in record.reason
        assert self.file.exists()
        self.world.harness.clock.advance(1)
        return record

    def calls(self) -> int:
        """Catalogues that were asked for."""
        return int(self.vendor.paths.count(self.vendor.V1))

    def used(self) -> bool:
        """Run; whether it took the kept catalogue instead of a call."""
        before = self.calls()
        record = self.world.harness.run()
        assert "catalogue:" not in record.reason
        return self.calls() == before


@pytest.fixture
def failing(sqlite_url: str, worlds: Any, vendor: Any) -> Failing:
    world = worlds(sqlite_url, vendor.base_url)
    world.create()
    return Failing(world, vendor)


@pytest.fixture(params=["postgres_url", "sqlite_url"])
def on_both(request: pytest.FixtureRequest, worlds: Any, vendor: Any) -> Failing:
    world = worlds(request.getfixturevalue(request.param), vendor.base_url)
    world.create()
    return Failing(world, vendor)


def test_the_next_run_stores_it_and_spends_no_slot(on_both: Failing) -> None:
    on_both.fail()
    assert stat.S_IMODE(on_both.file.stat().st_mode) == 0o600
    record = on_both.world.harness.run()
    assert (record.state, record.counters["new"], record.counters["bytes"]) == ("ok", 2, 0)
    assert on_both.calls() == 1
    assert not on_both.file.exists()
    assert on_both.world.query('SELECT count(*) FROM "Products"') == [(2,)]


def test_a_closed_limit_is_no_reason_to_wait_then(failing: Failing) -> None:
    failing.world.harness.runner.limiter.try_acquire("bamboo_catalog")
    failing.fail()
    runner = failing.world.harness.runner
    assert runner.limiter.closed_until("bamboo_catalog") is not None
    assert runner.plan().why == ""
    assert failing.used()
    assert runner.plan().why == "waits for the limit bamboo_catalog"
    assert failing.world.harness.run().state == "deferred"


def test_a_failed_start_does_not_touch_it(failing: Failing) -> None:
    failing.fail()
    failing.world.do('ALTER TABLE "Products" RENAME TO "Gone"')
    failing.world.reconfigure(create_tables=False)
    assert failing.world.harness.run().state == "failed"
    failing.world.do('ALTER TABLE "Gone" RENAME TO "Products"')
    assert failing.used()


def test_brands_come_back_byte_for_byte(failing: Failing, brand: Make, product: Make) -> None:
    text = 'ünïcode \\"quoted\\" \\ud83c half, \\u0000 NUL, 🎁'
    odd = json.dumps([brand("1", product(1, price={"min": 9.12345678, "max": 9.5, "currencyCode": "USD"}))])
    body = b'\xef\xbb\xbf  {"x": 1, "brands" : ' + odd.encode().replace(b"Shop 1", text.encode()) + b" }"
    failing.answers[failing.vendor.V1] = (200, body)
    failing.fail()
    record = failing.world.harness.run()
    assert record.counters["quarantined"] == 1  # for its NUL, as it would have been at once
    assert failing.calls() == 1


def _age(failing: Failing) -> None:
    failing.world.harness.clock.advance(3601)


def _set_back(failing: Failing) -> None:
    failing.world.harness.clock.advance(-60)


def _other_user(failing: Failing) -> None:
    failing.world.reconfigure(client_id=type(failing.world.harness.runner.settings.client_id)("plain", "another"))


def _other_host(failing: Failing) -> None:
    failing.world.reconfigure(
        base_url_v1=failing.vendor.base_url.replace("127.0.0.1", "localhost") + "/api/integration/v1.0"
    )


def _cut(failing: Failing) -> None:
    failing.file.write_bytes(failing.file.read_bytes()[:-1])


def _more(failing: Failing) -> None:
    failing.file.write_bytes(failing.file.read_bytes().replace(b'"length":', b'"length":1'))


def _readable(failing: Failing) -> None:
    failing.file.chmod(0o640)


def _foreign(failing: Failing) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(failing.file, 12345, -1)


def _link(failing: Failing) -> None:
    real = failing.file.with_name("real")
    failing.file.rename(real)
    failing.file.symlink_to(real)


def _pipe(failing: Failing) -> None:
    failing.file.unlink()
    os.mkfifo(failing.file, 0o600)


def _off(failing: Failing) -> None:
    failing.world.reconfigure(keep_payload=False)


def _empty(failing: Failing) -> None:
    failing.file.write_bytes(b"")


SPOILS = [_age, _set_back, _other_user, _other_host, _cut, _more, _readable, _foreign, _link, _pipe, _off, _empty]


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__.strip("_"))
def test_one_that_cannot_be_trusted_is_removed_with_a_line_and_fetched_again(
    failing: Failing, spoil: Callable[[Failing], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.fail()
    spoil(failing)
    capsys.readouterr()
    assert not failing.used()
    assert "the kept catalogue is not used" in capsys.readouterr().out
    assert not failing.file.is_symlink()
    assert not failing.file.exists()
    assert failing.world.query('SELECT count(*) FROM "Products"') == [(2,)]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_changed_byte_anywhere_makes_it_useless(failing: Failing, share: float) -> None:
    failing.fail()
    data = bytearray(failing.file.read_bytes())
    data[int(len(data) * share)] ^= 0x41
    failing.file.write_bytes(data)
    assert not failing.used()


def test_one_that_proves_broken_while_the_limit_is_closed_is_waited_for_like_any(failing: Failing) -> None:
    failing.world.harness.runner.limiter.try_acquire("bamboo_catalog")
    failing.fail()
    data = bytearray(failing.file.read_bytes())
    data[-20] ^= 0x41
    failing.file.write_bytes(data)
    record = failing.world.harness.run()
    assert (record.state, failing.calls()) == ("deferred", 1)
    assert failing.world.harness.runner.plan().why == "waits for the limit bamboo_catalog"


def test_what_is_stored_already_is_not_stored_again(failing: Failing) -> None:
    failing.fail()
    old = failing.file.read_bytes()
    assert failing.used()
    failing.file.write_bytes(old)  # as if the process had been killed before it removed the file
    failing.file.chmod(0o600)
    assert not failing.used()


def test_a_dry_run_reads_it_and_leaves_it(failing: Failing) -> None:
    failing.fail()
    content = failing.file.read_bytes()
    record = failing.world.harness.run(dry_run=True)
    assert (record.state, record.counters["new"], failing.calls()) == ("ok", 2, 1)
    assert failing.file.read_bytes() == content
    failing.world.harness.clock.advance(4000)
    failing.world.harness.run(dry_run=True)
    assert failing.calls() == 2
    assert failing.file.read_bytes() == content


def test_a_dry_run_keeps_nothing(failing: Failing) -> None:
    assert failing.world.harness.run(dry_run=True).state == "ok"
    assert not failing.file.exists()


def test_a_catalogue_that_is_refused_is_not_tried_again(failing: Failing, brand: Make, product: Make) -> None:
    failing.world.reconfigure(max_shrink=0.1)
    failing.vendor.catalogue([brand("1", *(product(n) for n in range(1, 11)))])
    failing.world.ok()
    failing.vendor.catalogue([brand("1", product(1))])
    assert "max_shrink is 10%" in failing.world.run().reason
    assert not failing.file.exists()


def test_where_nothing_can_be_kept_the_run_goes_on(failing: Failing, capsys: pytest.CaptureFixture[str]) -> None:
    (failing.world.harness.folder / "jobs").write_text("in the way")
    assert not failing.used()
    assert "the catalogue is not kept" in capsys.readouterr().out


def test_what_a_killed_writer_left_is_swept(failing: Failing) -> None:
    failing.fail()
    old, young = (failing.file.with_name(f".{kept.NAME}.{n}.tmp") for n in (1, 2))
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    _age(failing)
    assert not failing.used()
    assert [file.name for file in failing.file.parent.iterdir()] == [young.name]


def test_one_that_failed_twice_for_what_is_in_it_is_set_aside_and_the_vendor_asked(
    on_both: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(*args: Any) -> Any:
        raise ArithmeticError("a price of a kind that nobody knows")

    run = on_both.world.harness.run
    with monkeypatch.context() as patch:
        patch.setattr("stellerd_brand_sync.catalogue.store", poison)
        reasons = [run().reason for _ in range(2)]
    assert all("ArithmeticError: a price of a kind" in reason for reason in reasons)
    assert (on_both.calls(), on_both.file.exists()) == (1, False)
    aside = on_both.file.with_name(kept.ASIDE)
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    [item] = on_both.world.harness.quarantined()
    assert item["entity"] == "catalogue"
    assert str(aside) in item["reason"]
    assert "a price of a kind that nobody knows" in item["reason"]
    on_both.world.harness.clock.advance(1800)
    assert (run().state, on_both.calls()) == ("ok", 2)
    assert on_both.world.query('SELECT count(*) FROM "Products"') == [(2,)]


def test_a_database_that_fails_thrice_is_not_the_fault_of_what_is_kept(
    failing: Failing, brand: Make, product: Make
) -> None:
    failing.vendor.catalogue([brand(str(n), product(n)) for n in (1, 2)])
    failing.fail()
    failing.world.reconfigure(create_tables=False)
    for _ in range(3):
        failing.world.do('CREATE TRIGGER trouble BEFORE INSERT ON "Brands" BEGIN SELECT no_such_function(1); END')
        assert "no_such_function" in failing.world.harness.run().reason
        failing.world.do("DROP TRIGGER trouble")
    assert failing.file.exists()
    assert failing.used()


def test_one_that_refuses_a_hundred_times_over_is_set_aside(
    failing: Failing, brand: Make, product: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stellerd_brand_sync.apart.MOST", 1)
    failing.vendor.catalogue([brand(str(n), product(n)) for n in range(1, 4)])
    failing.world.do("CREATE TRIGGER no BEFORE INSERT ON \"Brands\" BEGIN SELECT raise(abort, 'no'); END")
    assert "refuses more than 1 brands" in failing.world.harness.run().reason
    assert failing.file.exists()
    failing.world.harness.run()
    assert (failing.calls(), failing.file.exists()) == (1, False)
