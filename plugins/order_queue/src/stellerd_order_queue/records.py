"""What the ledger tells of orders, and what it is told to go by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class Candidate(NamedTuple):  # made by the ten thousand: a frozen dataclass takes three times as long
    """A due order as the page query saw it; `request` and `known_request` are text as stored, None is null."""

    key: str
    request: str | None
    created: str
    known_request: str | None
    attempts: int
    was_refused: bool
    request_id: str | None
    """`request` in the canonical form, None when no message could carry it."""

    @property
    def obsolete(self) -> bool:
        """What the ledger holds is about a refusal, or about a request id that the order no longer has."""
        return self.known_request is not None and (self.was_refused or self.known_request != self.request_id)


class Claimed(NamedTuple):
    """An order that is ours until the claim ends."""

    key: str
    request_id: str
    message_id: str
    attempts: int
    written: str
    """The request id as "Orders" has it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An order that cannot be published, and why; `changed` when there is no need to any more."""

    candidate: Candidate
    reason: str
    changed: bool = False


@dataclass(frozen=True)
class Survey:
    """How many orders wait; due ones are neither published a short while ago nor claimed by somebody."""

    recent_due: int
    older_due: int
    stuck: int
    refused: int
    pending: int


@dataclass(frozen=True)
class Span:
    """Orders by CreateDate: `since` <= it < `before`; None is unbounded."""

    since: datetime | None = None
    before: datetime | None = None


@dataclass(frozen=True)
class Wanted:
    """What a person asked for: one order by its "Id" or "RequestId"; `forced`: also what is not due again yet."""

    order: str | None = None
    forced: bool = False


@dataclass(frozen=True)
class Found:
    """The order that a person named."""

    key: str
    vendor_id: int
    status: str
    pending: bool
    claimed: bool
    lacking: tuple[str, ...] = ()


class Incomplete(NamedTuple):
    """An order of which it cannot be told whether or when it is pending, and the columns that are null."""

    key: str
    lacking: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """What the ledger goes by; durations in seconds."""

    excluded: tuple[str, ...]
    max_attempts: int
    republish_after: float
    republish_cap: float
    claim: float
