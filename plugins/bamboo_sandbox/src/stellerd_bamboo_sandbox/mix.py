"""Reproducible chance: a number that depends on its inputs alone, cheap enough for a million products."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """64 well-stirred bits of an int (the finaliser of SplitMix64)."""
    x = (value + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def mix_of(*values: int) -> int:
    """64 bits that depend on every value and on their order."""
    state = 0
    for value in values:
        state = mix(state ^ (value & _MASK))
    return state


class Draw:
    """A row of draws from one seed: `below(n)` gives ints in 0..n-1."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed

    def below(self, bound: int) -> int:
        """The next int in 0..bound-1."""
        self._state = mix(self._state)
        return self._state % bound
