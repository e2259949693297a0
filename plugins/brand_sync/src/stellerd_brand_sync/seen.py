"""A set of ids that stays small: a vendor's ids lie close together, and there may be a million of them."""

from __future__ import annotations

from collections.abc import Iterable


class Seen:
    """Positive integers, 64 of them in one: a fiftieth of the memory of a set of a million that follow each other."""

    def __init__(self) -> None:
        self._words: dict[int, int] = {}

    def __contains__(self, number: int) -> bool:
        return bool(self._words.get(number >> 6, 0) >> (number & 63) & 1)

    def add(self, number: int) -> None:
        """Take one in."""
        self._words[number >> 6] = self._words.get(number >> 6, 0) | 1 << (number & 63)

    def add_all(self, numbers: Iterable[int]) -> bool:
        """Take all of them in; False, and none is, when one is there already or comes twice."""
        words: dict[int, int] = {}
        for number in numbers:
            key, bit = number >> 6, 1 << (number & 63)
            word = words[key] if key in words else self._words.get(key, 0)
            if word & bit:
                return False
            words[key] = word | bit
        self._words.update(words)
        return True
