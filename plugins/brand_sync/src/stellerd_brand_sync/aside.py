"""What is put aside during a run: collected while a transaction is open, handed to the quarantine afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from stellerd import Context, Secret

KEEP = 1_000
"""So many are recorded one by one; of the rest each kind gets one line with its number: a catalogue in which
everything is wrong must not take hours to complain about."""
_PAYLOAD = 4_096
_TRACEBACKS = 5


@dataclass(frozen=True)
class Item:
    """One brand, product, price or category that cannot be stored; `payload` is its JSON text, cut to 4,096."""

    entity: str
    key: str
    reason: str
    payload: str


@dataclass
class Aside:
    """Not written at once: the state store may be the very SQLite file that the open transaction has locked."""

    items: list[Item] = field(default_factory=list)
    more: Counter[str] = field(default_factory=Counter)
    faults: list[Exception] = field(default_factory=list)

    def add(self, entity: str, key: str, reason: str, raw: bytes) -> None:
        """Put one aside."""
        if len(self.items) >= KEEP:
            self.more[entity] += 1
            return
        payload = Secret.redact(raw[: 4 * _PAYLOAD].decode("utf-8", "replace"))[:_PAYLOAD]
        self.items.append(Item(entity, Secret.redact(_storable(key))[:200], _storable(reason), payload))

    def unforeseen(self, error: Exception) -> None:
        """One was put aside for an error that nobody foresaw: the log gets the traceback of a few."""
        if len(self.faults) < _TRACEBACKS:
            self.faults.append(error)

    def report(self, ctx: Context) -> None:
        """Hand everything to the quarantine and forget it here."""
        for item in self.items:
            ctx.quarantine(item.entity, item.key, item.reason, item.payload)
        for entity, number in self.more.items():
            ctx.quarantine(entity, "…", f"{number} more were put aside; only the first {KEEP} are listed one by one")
            ctx.count(quarantined=number - 1)  # the line itself counted one
        for error in self.faults:
            ctx.log.error("a fault of brand_sync, please report it", exc_info=error)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.items.clear()
        self.more.clear()
        self.faults.clear()


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
