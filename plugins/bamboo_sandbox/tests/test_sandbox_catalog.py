"""The generator: size, exactness, variety, drift, reproducibility."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stellerd_bamboo_sandbox.catalog import BLOCK, Body, Catalog, Query, Shape
from stellerd_bamboo_sandbox.words import CATEGORIES

DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,7})?")
TEXTS = ("description", "disclaimer", "redemptionInstructions", "terms")


def decoded(catalog: Catalog) -> list[dict[str, Any]]:
    brands: list[dict[str, Any]] = json.loads(catalog.whole().joined(), parse_float=Decimal)["brands"]
    return brands


def products_of(brands: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {product["id"]: product for brand in brands for product in brand["products"]}


@pytest.fixture(scope="module")
def brands() -> list[dict[str, Any]]:
    return decoded(Catalog())


@pytest.fixture(scope="module")
def products(brands: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [product for brand in brands for product in brand["products"]]


def test_default_catalogue_has_8026_products_in_500_brands(brands, products):
    assert (len(brands), len(products)) == (500, 8026)
    assert len({product["id"] for product in products}) == 8026
    assert len({brand["internalId"] for brand in brands}) == 500


def test_every_brand_fits_the_platforms_table(brands):
    for brand in brands:
        assert brand["internalId"]
        assert brand["name"]
        assert re.fullmatch("[A-Z]{2}", brand["countryCode"])
        assert re.fullmatch("[A-Z]{3}", brand["currencyCode"])
        assert DATE.fullmatch(brand["modifiedDate"])
        assert "\x00" not in brand["name"] + "".join(brand[field] or "" for field in TEXTS)


def test_every_product_fits_the_platforms_tables(products):
    for product in products:
        low, high, price = Decimal(product["minFaceValue"]), Decimal(product["maxFaceValue"]), product["price"]
        assert 0 < product["id"] < 2**31
        assert 0 < low <= high < 10**14
        assert all(value == value.quantize(Decimal("0.0001")) for value in (low, high))
        assert 0 < price["min"] <= price["max"] < 10**10
        assert all(value.as_tuple().exponent >= -8 for value in (price["min"], price["max"]))
        assert product["count"] is None or 0 <= product["count"] < 2**31
        assert product["name"]
        assert DATE.fullmatch(product["modifiedDate"])


def test_fixed_denomination_has_one_price_and_a_range_two(products):
    for product in products:
        fixed = product["minFaceValue"] == product["maxFaceValue"]
        assert fixed == (product["price"]["min"] == product["price"]["max"]), product
    ranges = sum(product["minFaceValue"] != product["maxFaceValue"] for product in products)
    assert 0.08 < ranges / len(products) < 0.16


def test_products_come_in_every_allowed_form(products):
    counts = Counter("null" if p["count"] is None else "0" if p["count"] == 0 else "int" for p in products)
    assert all(counts[kind] > 100 for kind in ("null", "0", "int"))
    digits = {-p["price"]["min"].as_tuple().exponent for p in products}
    assert digits == {2, 4, 6, 8}
    faces = {type(p["minFaceValue"]) for p in products}
    assert faces == {int, Decimal}
    both_commissions = {Decimal(p["maxFaceValue"]) > p["price"]["max"] for p in products}
    assert both_commissions == {True, False}


def test_dates_have_0_to_7_digits_of_fraction(brands, products):
    seen = {len(row["modifiedDate"].partition(".")[2]) for row in [*brands, *products]}
    assert seen == set(range(8))


def test_face_value_is_written_with_four_decimals_at_times():
    assert re.search(rb'"minFaceValue":\d+\.\d000,', Catalog().whole().joined())


def test_texts_are_null_empty_or_long_html(brands):
    texts = [brand[field] for brand in brands for field in TEXTS]
    assert texts.count(None) > 20
    assert texts.count("") > 20
    long = [len(text) for text in texts if text]
    assert min(long) >= 300
    assert max(long) <= 4096
    assert max(long) > 3500
    assert all("</p>" in text for text in texts if text)


def test_logo_is_empty_at_times(brands):
    assert 10 < sum(not brand["logoUrl"] for brand in brands) < 100


def test_some_brands_have_no_product(brands):
    assert 1 <= sum(not brand["products"] for brand in brands) <= 25


def test_categories_come_in_every_form_the_contract_names(brands):
    def form(brand: dict[str, Any]) -> str:
        rows = brand.get("categories")
        return "missing" if rows is None else type(rows[0]).__name__ if rows else "empty"

    assert set(map(form, brands)) == {"missing", "dict", "int", "str", "empty"}


@pytest.mark.parametrize(("style", "kind"), [("objects", dict), ("ids", int), ("names", str)])
def test_categories_can_be_of_one_form(style, kind):
    rows = [row for brand in decoded(Catalog(Shape(products=200, categories=style))) for row in brand["categories"]]
    assert {type(row) for row in rows} == {kind}


def test_named_categories_are_known_ones():
    known = {number for number, _ in CATEGORIES}
    brands = decoded(Catalog(Shape(products=500, categories="ids")))
    assert {number for brand in brands for number in brand["categories"]} <= known
    assert not known & {8, 28, 29}


def test_same_seed_same_bytes_another_seed_other_bytes():
    first, again, other = (Catalog(Shape(products=300, seed=seed)).whole().joined() for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_bytes_are_the_same_on_every_machine():
    body = Catalog(Shape(products=100)).whole().joined()
    assert hashlib.sha256(body).hexdigest() == "91a1e8ee36fa97f8f3363a49d6d8b7ee815274446a7208c8f1a1ca3a2e4f03b5", (
        "the generator changed: benches are not comparable any more"
    )


def test_drift_moves_one_percent_of_prices_and_swaps_a_few_products():
    catalog = Catalog()
    before = products_of(decoded(catalog))
    for _ in range(4):
        catalog.advance()
        after = products_of(decoded(catalog))
        stayed = before.keys() & after.keys()
        assert len(after) == 8026
        assert len(after.keys() - before.keys()) == len(before.keys() - after.keys()) == 4
        assert sum(before[key]["price"] != after[key]["price"] for key in stayed) == 80
        assert sum(before[key] != after[key] for key in stayed) == 80
        before = after


def test_drift_never_brings_back_an_id():
    catalog, gone = Catalog(Shape(products=300, product_drift=5)), set()
    before = set(products_of(decoded(catalog)))
    for _ in range(20):
        catalog.advance()
        after = set(products_of(decoded(catalog)))
        gone |= before - after
        assert not gone & after
        before = after


def test_drift_depends_on_seed_and_edition_alone():
    one, two = Catalog(Shape(products=300)), Catalog(Shape(products=300))
    for _ in range(5):
        one.advance()
        one.whole()  # rendering in between leaves no trace
        two.advance()
    assert one.whole().joined() == two.whole().joined()


def test_drifted_price_has_a_newer_date():
    catalog = Catalog(Shape(products=300, product_drift=0))
    before = products_of(decoded(catalog))
    catalog.advance()
    after = products_of(decoded(catalog))
    moved = [key for key in before if before[key]["price"] != after[key]["price"]]
    assert len(moved) == 3
    assert all(after[key]["modifiedDate"] > max(row["modifiedDate"] for row in before.values()) for key in moved)


def test_no_drift_of_a_price_is_rounded_away():
    catalog = Catalog(Shape(products=3_000, price_drift=1.0, product_drift=0))
    before = products_of(decoded(catalog))
    for _ in range(6):
        catalog.advance()
        after = products_of(decoded(catalog))
        assert [key for key in before if before[key]["price"] == after[key]["price"]] == []
        before = after


def test_price_drift_alone_keeps_the_products():
    catalog = Catalog(Shape(products=300, product_drift=0))
    before = set(products_of(decoded(catalog)))
    catalog.advance()
    assert set(products_of(decoded(catalog))) == before


def test_odd_rows_are_allowed_forms_only():
    rows = products_of(decoded(Catalog(Shape(products=1000, odd_rows=0.5)))).values()
    nulls = sum(row["price"] is None for row in rows)
    strings = [row["count"] for row in rows if isinstance(row["count"], str)]
    assert 150 < nulls < 350
    assert 150 < len(strings) < 350
    assert all(count.isdecimal() for count in strings)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 2_000), st.integers(0, 50), st.integers(0, 2**40))
def test_any_size_is_exact(products, brands, seed):
    rows = decoded(Catalog(Shape(products=products, brands=brands, seed=seed)))
    assert len(products_of(rows)) == products
    assert brands in (0, len(rows))


def test_pages_hold_what_the_whole_holds():
    catalog = Catalog(Shape(products=900, brands=57))
    paged = []
    for index in range(7):
        page = json.loads(catalog.page(Query(page_index=index, page_size=10)).joined(), parse_float=Decimal)
        assert page["count"] == 57
        paged += page["items"]
    assert paged == decoded(catalog)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=BLOCK)), st.data())
def test_blocks_are_the_body_up_to_a_limit(pieces, data):
    whole = b"".join(pieces)
    limit = data.draw(st.none() | st.integers(0, len(whole)))
    blocks = list(Body(pieces).blocks(limit))
    assert b"".join(blocks) == whole[:limit]
    assert all(len(block) < 2 * BLOCK for block in blocks)


def test_a_new_edition_of_8026_is_made_quickly():
    catalog = Catalog()
    catalog.whole()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        catalog.advance()
        catalog.whole().joined()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15
