"""Categories in every form that brands and the list bring them in."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from stellerd_brand_sync.aside import Aside
from stellerd_brand_sync.categories import KNOWN, read_list

from stellerd import errors

Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("categories", "links"),
    [
        ([{"id": 2, "name": "Gaming", "description": ""}, {"id": 28, "name": "New"}], [2, 28]),
        ([2, 28], [2, 28]),
        (["Gaming", " gaming ", "MOBILE APPLICATION", "2", "28"], [2, 22, 28]),
        ([{"id": 2, "name": "Gaming"}, 2, "Gaming"], [2]),
        ([], []),
    ],
)
def test_categories_in_every_form(categories: list[Any], links: list[int], brand: Make, decoded: Any) -> None:
    rows = decoded(brand("1", categories=categories))
    assert rows.links == links
    assert rows.only.brand[-1] == 1
    assert rows.aside.items == []


@pytest.mark.parametrize("changes", [{"categories": None}, {}])
def test_unsaid_categories_leave_links_alone(changes: dict[str, Any], brand: Make, decoded: Any) -> None:
    made = brand("1")
    del made["categories"]
    assert decoded(made | changes).only.brand[-1] == 0


def test_unknown_categories_are_created_with_the_best_name_known(brand: Make, decoded: Any) -> None:
    rows = decoded(
        brand("1", categories=[2, 77, 78]),
        brand("2", categories=[{"id": 77, "name": "Real", "description": "d"}, {"id": 5, "name": "Other"}]),
        stored={5: "Tools"},
    )
    assert rows.book.new == {2: (2, "Gaming", None), 77: (77, "Real", "d"), 78: (78, "Category 78", None)}


def test_a_stored_name_wins_over_the_documented_one(brand: Make, decoded: Any) -> None:
    assert decoded(brand("1", categories=["Gaming"]), stored={99: "Gaming"}).links == [99]


def test_a_name_without_an_id_costs_that_link_alone(brand: Make, decoded: Any) -> None:
    rows = decoded(brand("1", categories=["Gaming", "Basket Weaving"]))
    assert rows.links == [2]
    assert (rows.bad.entity, rows.bad.key) == ("category", "Basket Weaving")
    assert "cannot be created" in rows.bad.reason


@pytest.mark.parametrize(
    "categories", ["Gaming", 5, [{"name": "no id"}], [0], [2**31], [None], [{"id": 1, "name": "\0"}]]
)
def test_categories_that_cannot_be_read_cost_the_links_not_the_brand(
    categories: Any, brand: Make, product: Make, decoded: Any
) -> None:
    rows = decoded(brand("1", product(1), categories=categories))
    assert (rows.only.links, rows.only.brand[-1], len(rows.only.products)) == ([], 0, 1)
    assert rows.bad.entity == "category"
    assert "links stay" in rows.bad.reason


def test_the_categories_list_loses_only_its_bad_items() -> None:
    aside = Aside()
    items = [{"id": 1, "name": "One", "description": ""}, {"id": 2, "name": "Two"}, {"id": 1, "name": "Twin"},
             {"id": None, "name": "Nil"}, {"id": 0, "name": "Zero"}, "text", {"id": 8, "name": "a\0"}]  # fmt: skip
    assert read_list(json.dumps(items).encode(), aside) == [(1, "One", ""), (2, "Two", None)]
    assert [item.key for item in aside.items] == ["1", "Nil", "0", "item 5", "8"]


@pytest.mark.parametrize("body", [b"[]", b"{}", b"[null]", b"", b"oops"])
def test_a_list_without_a_category_is_refused(body: bytes) -> None:
    with pytest.raises(errors.BadReply, match=r"^categories: "):
        read_list(body, Aside())


def test_the_known_categories_are_27_and_have_gaps() -> None:
    assert len(KNOWN) == 27
    assert {8, 28, 29}.isdisjoint(KNOWN)
