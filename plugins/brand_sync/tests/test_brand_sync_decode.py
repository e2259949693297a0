"""From the vendor's JSON to rows: every variant of the contract, and every reason to put something aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stellerd_brand_sync import mend, values, wire
from stellerd_brand_sync.aside import KEEP, Aside

from stellerd import errors

Make = Callable[..., dict[str, Any]]


def test_a_brand_becomes_rows(brand: Make, product: Make, decoded: Any) -> None:
    rows = decoded(
        brand("7", product(5, minFaceValue=1, maxFaceValue=100.5, count=3), modifiedDate="2020-09-23T15:01:00")
    )
    assert rows.only.brand[1:5] == ("7", "Shop 7", "US", "USD")
    assert rows.only.brand[-2] == "2020-09-23 15:01:00.000000"
    assert [row[:7] for row in rows.only.products] == [
        (5, 0, "Card 5", "1.0000", "100.5000", 3, "2024-05-06 07:08:09.123456")
    ]
    assert rows.prices == [(5, "9.50000000", "9.50000000", "USD", 1)]
    assert rows.aside.items == []


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("2020-09-23T15:01:00", "15:01:00.000000"),
        ("2020-09-23T15:01:00.8", "15:01:00.800000"),
        ("2020-09-23T15:01:00.84", "15:01:00.840000"),
        ("2020-09-23T15:01:00.8409", "15:01:00.840900"),
        ("2020-09-23T15:01:00.840978", "15:01:00.840978"),
        ("2020-09-23T15:01:00.8409786", "15:01:00.840978"),
        ("2020-09-23T15:01:00.9999999", "15:01:00.999999"),
        ("2020-09-23T15:01:00Z", "15:01:00.000000"),
        ("2020-09-23T15:01:00.5+02:30", "12:31:00.500000"),
    ],
)
def test_times_are_utc_and_exact_to_the_microsecond(text: str, stored: str) -> None:
    assert values.moment("t", text) == f"2020-09-23 {stored}"


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00", "9999-12-31T23:59:59.9999999"])
def test_the_vendors_extreme_times_can_be_stored(text: str) -> None:
    assert values.moment("t", text)[:4] == text[:4]


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2020-09-23", "2020-09-23 15:01:00", "2020-02-30T00:00:00", "2020-09-23T24:00:00",
     "20200923T150100", "2020-09-23T15:01:00.", "0001-01-01T00:00:00+05:00", "2020-09-23T15:01:00.12345678901"],
)  # fmt: skip
def test_what_is_no_time_is_unusable(text: str) -> None:
    with pytest.raises(values.Unusable, match="not a date and time"):
        values.moment("t", text)


@given(amount=st.decimals(min_value=0, max_value=Decimal("9999999999.99999999"), places=8))
def test_prices_are_exact(amount: Decimal, decoded: Any) -> None:
    [price] = decoded(
        b'{"brands":[{"internalId":"1","name":"n","countryCode":"US","currencyCode":"USD","modifiedDate":'
        b'"2020-01-01T00:00:00","products":[{"id":1,"name":"p","minFaceValue":1,"maxFaceValue":1,"modifiedDate":'
        b'"2020-01-01T00:00:00","price":{"min":0,"max":' + f"{amount:f}".encode() + b',"currencyCode":"USD"}}]}]}'
    ).prices
    assert Decimal(price[2]) == amount


@pytest.mark.parametrize(
    ("number", "stored"),
    [(b"100.0000", "100.0000"), (b"0.1", "0.1000"), (b"1e2", "100.0000"), (b"-0.0", "0.0000"), (b"0", "0.0000"),
     (b"100.00000000", "100.0000"), (b"99999999999999.9999", "99999999999999.9999"), (b'"12.5"', "12.5000")],
)  # fmt: skip
def test_face_values_are_exact(number: bytes, stored: str, brand: Make, product: Make, decoded: Any) -> None:
    body = json.dumps({"brands": [brand("1", product(1, minFaceValue=0, maxFaceValue="@"))]}).encode()
    assert decoded(body.replace(b'"@"', number)).only.products[0][4] == stored


@pytest.mark.parametrize(("face", "price", "commission"), [(10, "9.99999999", 1), (10, "10", 2), (10, "10.5", 2)])
def test_the_commission_type_says_whether_the_face_value_is_above_the_price(
    face: int, price: str, commission: int, brand: Make, product: Make, decoded: Any
) -> None:
    made = product(1, maxFaceValue=face, price={"min": 0, "max": price, "currencyCode": "USD"})
    assert decoded(brand("1", made)).prices[0][-1] == commission


@pytest.mark.parametrize(("count", "stock"), [(None, None), (0, 0), (17, 17), ("25", 25), (" 3 ", 3), ("0", 0)])
def test_count_in_every_form(count: Any, stock: int | None, brand: Make, product: Make, decoded: Any) -> None:
    assert decoded(brand("1", product(1, count=count))).only.products[0][5] == stock


def test_missing_keys_that_may_be_missing(brand: Make, decoded: Any) -> None:
    made = brand("1")
    for name in ("categories", "description", "disclaimer", "redemptionInstructions", "terms", "logoUrl"):
        del made[name]
    rows = decoded(made)
    assert rows.only.brand[5:10] == (None,) * 5
    assert (rows.only.products, rows.only.links, rows.only.brand[-1]) == ([], [], 0)
    assert rows.aside.items == []


BAD_BRANDS = [
    ({"internalId": ""}, "internalId is missing or empty"),
    ({"internalId": None}, "internalId is missing or empty"),
    ({"internalId": "  "}, "internalId is missing or empty"),
    ({"internalId": 5}, "internalId: Expected str | null, got int"),
    ({"name": None}, "name: Expected str, got null"),
    ({"name": "a\0b"}, "name holds a character"),
    ({"terms": "half \ud83c pair"}, "terms holds a character"),
    ({"name": "x" * 1001}, "name is too long: 1001 characters"),
    ({"description": "x" * 100_001}, "description is too long"),
    ({"countryCode": 1}, "countryCode: Expected str"),
    ({"countryCode": "Germany"}, "countryCode is not of the form"),
    ({"currencyCode": "usd"}, "currencyCode is not of the form"),
    ({"currencyCode": "US"}, "currencyCode is not of the form"),
    ({"currencyCode": "USD\n"}, "currencyCode is not of the form"),
    ({"currencyCode": ""}, "currencyCode is not of the form"),
    ({"modifiedDate": "soon"}, "modifiedDate is not a date"),
    ({"modifiedDate": None}, "modifiedDate: Expected str"),
    ({"products": "none"}, "products: Expected array"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_BRANDS)
def test_a_bad_brand_is_put_aside_alone(
    changes: dict[str, Any], reason: str, brand: Make, product: Make, decoded: Any
) -> None:
    rows = decoded(brand("1", product(1)), brand("2", product(2)) | changes, brand("3", product(3)))
    assert [row.brand[1] for row in rows.rows] == ["1", "3"]
    assert rows.bad.entity == "brand"
    assert rows.bad.reason.startswith(reason)


@pytest.mark.parametrize("name", ["name", "countryCode", "currencyCode", "modifiedDate"])
def test_a_brand_lacking_a_required_key_is_put_aside(name: str, brand: Make, decoded: Any) -> None:
    made = brand("2")
    del made[name]
    assert decoded(made).bad.reason == f"{name} is missing"


@pytest.mark.parametrize("item", [5, None, "brand", []])
def test_a_brand_that_is_no_object(item: Any, brand: Make, decoded: Any) -> None:
    rows = decoded(brand("1"), item)
    assert (len(rows.rows), rows.bad.key) == (1, "brand 1")


BAD_PRODUCTS = [
    ({"id": None}, "id: Expected int, got null"),
    ({"id": "a17"}, "id: Expected int, got str"),
    ({"id": True}, "id: Expected int, got bool"),
    ({"id": 0}, "id is out of range: 0"),
    ({"id": 2**31}, "id is out of range"),
    ({"id": 10**30}, "id is out of range"),
    ({"name": None}, "name: Expected str"),
    ({"name": "\0"}, "name holds a character"),
    ({"name": "x" * 1001}, "name is too long: 1001 characters"),
    ({"minFaceValue": None}, "minFaceValue is no number: null"),
    ({"minFaceValue": "ten"}, "minFaceValue is no number: 'ten'"),
    ({"minFaceValue": "NaN"}, "minFaceValue is no number"),
    ({"minFaceValue": "Infinity"}, "minFaceValue is no number"),
    ({"minFaceValue": "1e999999"}, "minFaceValue is no number"),
    ({"minFaceValue": -1, "maxFaceValue": -1}, "minFaceValue is negative: -1"),
    ({"maxFaceValue": -0.5}, "maxFaceValue is negative"),
    ({"minFaceValue": 50, "maxFaceValue": 10}, "minFaceValue 50.0000 is above maxFaceValue 10.0000"),
    ({"maxFaceValue": 10**14}, "maxFaceValue is no number that numeric(18,4) can hold"),
    ({"maxFaceValue": 10.00001}, "maxFaceValue has more than 4 decimals"),
    ({"count": -1}, "count is out of range"),
    ({"count": 2**31}, "count is out of range"),
    ({"count": "many"}, "count is not a number"),
    ({"count": ""}, "count is not a number"),
    ({"count": 1.5}, "count: Expected"),
    ({"modifiedDate": "31.12.2024"}, "modifiedDate is not a date"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_PRODUCTS)
def test_a_bad_product_is_put_aside_alone(
    changes: dict[str, Any], reason: str, brand: Make, product: Make, decoded: Any
) -> None:
    rows = decoded(brand("1", product(1), product(2) | changes, product(3)))
    assert [row[0] for row in rows.only.products] == [1, 3]
    assert [row[0] for row in rows.prices] == [1, 3]
    assert rows.bad.entity == "product"
    assert rows.bad.reason.startswith(reason)
    assert rows.decoder.fetched == 3


BAD_PRICES = [
    ("9.50", "Expected object"),
    ({"min": 1, "max": 1}, "currencyCode is missing"),
    ({"min": 1, "max": 1, "currencyCode": "$"}, "price.currencyCode is not of the form"),
    ({"min": 2, "max": 1, "currencyCode": "USD"}, "price.min 2.00000000 is above price.max 1.00000000"),
    ({"min": -1, "max": 1, "currencyCode": "USD"}, "price.min is negative"),
    ({"min": 0, "max": 10**10, "currencyCode": "USD"}, "price.max is no number that numeric(18,8) can hold"),
    ({"min": "0.000000001", "max": 1, "currencyCode": "USD"}, "price.min has more than 8 decimals"),
]


@pytest.mark.parametrize(("price", "reason"), BAD_PRICES)
def test_a_bad_price_costs_the_price_not_the_product(
    price: Any, reason: str, brand: Make, product: Make, decoded: Any
) -> None:
    rows = decoded(brand("1", product(1, price=price)))
    assert ([row[0] for row in rows.only.products], rows.prices) == ([1], [])
    assert (rows.bad.entity, rows.bad.key) == ("price", "1")
    assert rows.bad.reason.startswith(reason)


def test_a_price_of_null_is_the_vendors_word_for_none(brand: Make, product: Make, decoded: Any) -> None:
    rows = decoded(brand("1", product(1, price=None)))
    assert ([row[0] for row in rows.only.products], rows.prices, rows.aside.items) == ([1], [], [])
    assert rows.decoder.clean == {"1"}


@pytest.mark.parametrize("changes", [{"products": None}, {}])
def test_products_that_are_not_said_are_not_none(changes: dict[str, Any], brand: Make, decoded: Any) -> None:
    made = brand("1")
    del made["products"]
    rows = decoded(made | changes)
    assert (rows.only.products, rows.bad.key, rows.decoder.spared.brands) == ([], "1", {"1"})
    assert rows.bad.reason == "brand 1: products is missing or null; its products stay as they are"


def test_a_price_that_is_not_there_at_all(brand: Make, product: Make, decoded: Any) -> None:
    made = product(1)
    del made["price"]
    assert decoded(brand("1", made)).bad.reason.startswith("price is missing")


def test_the_first_of_two_brands_is_kept(brand: Make, product: Make, decoded: Any) -> None:
    rows = decoded(brand("1", product(1)), brand("1", product(2), name="Twin"))
    assert (rows.only.brand[2], [row[0] for row in rows.only.products]) == ("Shop 1", [1])
    assert rows.bad.reason == "internalId 1 came twice; the first one is kept"


def test_the_first_of_two_products_is_kept_even_across_brands(brand: Make, product: Make, decoded: Any) -> None:
    rows = decoded(brand("1", product(1)), brand("2", product(1, name="Twin"), product(2)))
    assert [row.products[0][2] for row in rows.rows] == ["Card 1", "Card 2"]
    assert rows.bad.reason == "id 1 came twice; the first one is kept"


def test_a_twin_of_a_bad_item_is_not_its_twin(brand: Make, product: Make, decoded: Any) -> None:
    rows = decoded(brand("1", product(1, name=None), product(1)))
    assert [row[0] for row in rows.only.products] == [1]


def test_bytes_that_are_not_utf8_cost_one_brand(brand: Make, decoded: Any) -> None:
    body = json.dumps({"brands": [brand("1"), brand("2", name="@")]}).encode().replace(b"@", b"\xff")
    rows = decoded(body)
    assert (rows.only.brand[1], rows.bad.reason) == ("1", "holds bytes that are not UTF-8")


@given(st.lists(st.sampled_from(["\ud83c", "\udf81", "🎁", "\\", "u", "x", "\\ud83c", '"']), max_size=12).map("".join))
def test_half_surrogate_pairs_spoil_only_themselves(text: str) -> None:
    body = bytearray(json.dumps({"a": text, "b": "🎁"}).encode())
    mend.half_pairs(body)
    decoded = msgspec.json.decode(body)
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert decoded["b"] == "🎁"
    assert len(decoded["a"]) == len(whole)
    assert decoded["a"].replace("\0", "\ufffd") == whole


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "it is empty"),
        (b"<html>maintenance</html>", "begin with '<html>"),
        (b'{"items":[]}', "brands is missing"),
        (b'{"brands":null}', "brands: Expected array, got null"),
        (b"[]", "Expected object, got array"),
        (b'{"brands":[{"internalId":"1","na', "cannot be read"),
        (b'{"brands":[{"a":"\\ud83c"},', "cannot be read"),
    ],
)
def test_a_body_that_is_no_catalogue(body: bytes, reason: str) -> None:
    with pytest.raises(errors.BadReply, match=r"^catalogue: ") as caught:
        wire.decode_v1(body)
    assert reason in str(caught.value)


def test_a_byte_order_mark_is_no_reason_to_fail() -> None:
    assert wire.decode_v1(b'\xef\xbb\xbf{"brands":[]}') == []


def test_a_payload_is_cut_and_a_key_is_storable() -> None:
    aside = Aside()
    aside.add("brand", "a\0b" * 100, "why", "ü".encode() * 10_000)
    [item] = aside.items
    assert (len(item.payload), "\0" in item.key, len(item.key)) == (4_096, False, 200)


def test_so_many_complaints_are_listed_and_the_rest_counted() -> None:
    aside = Aside()
    for number in range(KEEP + 7):
        aside.add("product", str(number), "why", b"{}")
    assert (len(aside.items), aside.more["product"]) == (KEEP, 7)
