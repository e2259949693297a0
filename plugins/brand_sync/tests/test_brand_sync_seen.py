"""The small set of ids does what a set does."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st
from stellerd_brand_sync.seen import Seen

_numbers = st.lists(st.integers(1, 200) | st.integers(1, 2**31 - 1), max_size=30)


@given(groups=st.lists(_numbers, max_size=8))
def test_it_takes_in_what_a_set_would(groups: list[list[int]]) -> None:
    seen, model = Seen(), set[int]()
    for numbers in groups:
        fresh = len(set(numbers)) == len(numbers) and model.isdisjoint(numbers)
        assert seen.add_all(numbers) is fresh
        if fresh:
            model |= set(numbers)
        elif numbers:
            seen.add(numbers[0])
            model.add(numbers[0])
        for number in {*model, *numbers, 1, 63, 64, 2**31 - 1}:
            assert (number in seen) is (number in model)


def test_neighbours_take_little_room() -> None:
    tracemalloc.start()
    seen = Seen()
    for start in range(1, 100_001, 20):
        assert seen.add_all(range(start, start + 20))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 500_000
