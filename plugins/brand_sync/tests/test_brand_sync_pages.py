"""Paging by the echoed values, and pages that move while they are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stellerd_brand_sync import wire
from stellerd_brand_sync.fetched import fingerprint
from stellerd_brand_sync.pages import PASSES, Pages

from stellerd import errors

Change = Callable[[list[str]], None]


class Server:
    """A vendor with brands of these keys; `changes` happen before the page of that number (from 1) is answered."""

    def __init__(self, keys: Iterable[str], most: int = 3, changes: dict[int, list[Change]] | None = None) -> None:
        self.keys, self.most, self.changes = list(keys), most, changes or {}
        self.asked: list[tuple[int, int]] = []
        self.always, self.ever = set(self.keys), set(self.keys)
        self.answer: Callable[[dict[str, Any], int], dict[str, Any]] = lambda answer, number: answer

    def __call__(self, index: int, size: int) -> wire.Page:
        self.asked.append((index, size))
        for change in self.changes.get(len(self.asked), []):
            change(self.keys)
            self.always &= set(self.keys)
            self.ever |= set(self.keys)
        size = min(size, self.most)
        items = [{"internalId": key, "products": []} for key in self.keys[index * size : (index + 1) * size]]
        answer = {"pageIndex": index, "pageSize": size, "count": len(self.keys), "items": items}
        return wire.decode_page(json.dumps(self.answer(answer, len(self.asked))).encode())


def read(server: Server, page_size: int = 3, known: Iterable[str] = ()) -> Pages:
    pages = Pages(server, page_size)
    pages.read(lambda found: found == fingerprint(known))
    return pages


def ids(server: Server) -> list[int]:
    return [index for index, _ in server.asked]


def test_one_page_is_one_answer() -> None:
    server = Server("abc")
    pages = read(server)
    assert (pages.whole, "".join(pages.brands), ids(server)) == (True, "abc", [0])


def test_nothing_at_all_is_an_answer_too() -> None:
    pages = read(Server(""))
    assert (pages.whole, pages.total, pages.pages) == (True, 0, 1)


def test_brands_that_are_known_are_read_once_and_news_twice() -> None:
    assert ids(server := Server("abcdefg")) == []
    assert read(server, known="abcdefg").whole
    assert ids(server) == [0, 1, 2]
    server = Server("abcdefg")
    assert read(server, known="abcdefgh").whole
    assert ids(server) == [0, 1, 2, 0, 1, 2]


def test_a_clamped_page_size_is_gone_on_with() -> None:
    server = Server("abcdefg", most=2)
    assert read(server, page_size=50, known="abcdefg").total == 7
    assert server.asked == [(0, 50), (1, 2), (2, 2), (3, 2)]


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: {"pageindex" if key == "pageIndex" else key: value for key, value in answer.items()},
        lambda answer: {key: value for key, value in answer.items() if key != "pageIndex"},
        lambda answer: {**answer, "pageSize": None},
        lambda answer: {**answer, "count": str(answer["count"])},
        lambda answer: {**answer, "items": answer["items"] or None},
    ],
    ids=["small letters", "no index", "no size", "count as text", "null for an empty page"],
)
def test_what_is_echoed_may_vary(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    server = Server("abcdefg")
    server.answer = lambda answer, number: change(answer)
    pages = read(server, known="abcdefg")
    assert (pages.whole, "".join(sorted(pages.brands)), ids(server)) == (True, "abcdefg", [0, 1, 2])


@pytest.mark.parametrize(
    "body", [{"count": 1}, {"items": []}, {"count": -1, "items": []}, {"count": 1, "items": {}}, []]
)
def test_a_body_that_is_no_page(body: Any) -> None:
    with pytest.raises(errors.BadReply, match="catalogue: the answer cannot be read"):
        wire.decode_page(json.dumps(body).encode())


def test_an_empty_page_ends_it_though_more_were_announced() -> None:
    server = Server("abcdef")
    server.answer = lambda answer, number: {**answer, "count": 60}
    pages = read(server, known="abcdef")
    assert (pages.whole, pages.total, ids(server)) == (False, 6, [0, 1, 2] * PASSES)


def test_a_vendor_that_ignores_the_index_does_not_keep_us_for_ever() -> None:
    server = Server("abcdefg")
    server.answer = lambda answer, number: {**answer, "pageIndex": 0}
    pages = read(server)
    assert (pages.whole, len(server.asked)) == (False, 2 * PASSES)


def test_a_brand_that_comes_twice_pushes_another_out_and_a_second_look_finds_it() -> None:
    def to_the_front(keys: list[str]) -> None:
        keys.insert(0, keys.pop())

    server = Server("abcdefg", changes={2: [to_the_front]})
    pages = read(server, known="abcdefg")
    assert (pages.whole, sorted(pages.brands), pages.passes) == (True, list("abcdefg"), 2)


def test_a_brand_that_goes_while_one_comes_is_noticed_though_the_number_is_right() -> None:
    def swap(keys: list[str]) -> None:
        keys.remove("a")
        keys.append("z")

    server = Server("abcdefg", changes={2: [swap]})
    pages = read(server)
    assert (pages.whole, sorted(pages.brands)) == (True, list("bcdefgz"))


def test_a_change_of_the_number_starts_again() -> None:
    server = Server("abcdefg", changes={3: [lambda keys: keys.remove("a")]})
    pages = read(server)
    assert (pages.whole, sorted(pages.brands), pages.count) == (True, list("bcdefg"), 6)


def test_one_page_may_have_two_brands_of_one_id() -> None:
    server = Server("aabcdef")
    pages = read(server)
    assert (pages.whole, pages.total, len(pages.brands["a"])) == (True, 7, 2)


def test_brands_without_an_id_are_told_apart_by_their_bytes() -> None:
    server = Server("abc")
    server.answer = lambda answer, number: {
        **answer, "items": [{"name": "x"}, {"internalId": None, "name": "y"}, {"internalId": 7}],
    }  # fmt: skip
    assert (read(server).whole, len(read(server).brands)) == (True, 3)


def test_the_newest_page_is_what_counts() -> None:
    server = Server("abcdefg")
    server.answer = lambda answer, number: {
        **answer, "items": [{**item, "name": f"page {number}"} for item in answer["items"]],
    }  # fmt: skip
    pages = read(server)
    assert json.loads(bytes(pages.brands["a"][0]))["name"] == "page 4"


def test_pages_that_never_agree_are_not_whole() -> None:
    new = iter(range(1000))

    def replace(keys: list[str]) -> None:
        keys.pop(0)
        keys.append(f"new-{next(new)}")

    server = Server("abcdefgh", changes={number: [replace] for number in range(1, 100)})
    pages = read(server)
    assert (pages.whole, pages.passes) == (False, PASSES)


def _insert(at: int, key: str) -> Change:
    return lambda keys: keys.insert(at % (len(keys) + 1), key)


def _remove(at: int) -> Change:
    def remove(keys: list[str]) -> None:
        if keys:
            keys.pop(at % len(keys))

    return remove


def _move(at: int, to: int) -> Change:
    return lambda keys: keys.insert(to % len(keys), keys.pop(at % len(keys))) if keys else None


@st.composite
def _changes(draw: st.DrawFn) -> dict[int, list[Change]]:
    found: dict[int, list[Change]] = {}
    for number in range(draw(st.integers(0, 8))):
        at, to = draw(st.integers(0, 20)), draw(st.integers(0, 20))
        change = draw(st.sampled_from([_insert(at, f"new-{number}"), _remove(at), _move(at, to)]))
        found.setdefault(draw(st.integers(2, 25)), []).append(change)
    return found


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 14), _changes(), st.booleans())
def test_whatever_moves_nothing_that_stayed_counts_as_vanished(
    brands: int, changes: dict[int, list[Change]], known: bool
) -> None:
    server = Server([f"b{n}" for n in range(brands)], changes=changes)
    start = list(server.keys)
    pages = read(server, known=start if known else ())
    assert len(pages.brands) <= max(pages.count, 0) or not pages.whole
    assert set(pages.brands) <= server.ever
    if pages.whole:
        stayed = server.always & (set(start) if known else server.always)
        assert stayed <= set(pages.brands)
