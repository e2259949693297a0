"""How long to wait before a restart. Pure."""

from __future__ import annotations


def delay(crashes: int, settled: bool, *, base: float, cap: float, chance: float) -> float:
    """Seconds before the next try after `crashes` (from 1) in a row.

    A job that had settled comes back at once; further crashes wait base, 2·base, 4·base … up to cap, spread by ±10 %
    (`chance` from 0 to 1), so that jobs that fell together do not come back together.
    """
    if settled:
        return 0.0
    doublings = min(crashes - 1, 30)
    return min(cap, base * 2.0**doublings) * (0.9 + 0.2 * chance)


def until_store(failures: int, chance: float) -> float:
    """Seconds before the store is asked again that was away `failures` times in a row: it is come back to within a
    second of its return, by many processes not at the same moment (`chance` from 0 to 1)."""
    return min(1.0, 0.125 * 2.0 ** min(failures, 3)) * (0.7 + 0.3 * chance)
