"""What a fetch brought, wherever it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be known of a catalogue without looking into it.

    `at`: when its fetch began, seconds since 1970; `full`: everything was asked for, not only what was modified;
    `whole`: all that was asked for came; `keys`: fingerprint of the brands of a full one; `problem`: what is amiss.
    """

    at: float
    full: bool = True
    whole: bool = True
    keys: str = ""
    problem: str = ""

    @property
    def complete(self) -> bool:
        """What is not in it has vanished."""
        return self.full and self.whole


@dataclass(frozen=True)
class Fetched:
    """Brands, undecoded; `size`: bytes that came over the network for them, 0 when they were kept from before."""

    brands: list[msgspec.Raw]
    size: int
    facts: Facts


def fingerprint(keys: Iterable[str]) -> str:
    """Tells one set of brands from another."""
    return hashlib.blake2b("\0".join(sorted(keys)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
