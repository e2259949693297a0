"""From due orders to confirmed messages: claim, publish, mark, in one stream of bounded memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from stellerd import Context
from stellerd_order_queue.envelope import Envelopes, Message, iso_utc
from stellerd_order_queue.ledger import CLAIM, Candidate, Claimed, Ledger, Refusal, Span
from stellerd_order_queue.publisher import Outcome, Publisher

MARK = 2_000
"""Settled orders written down in one transaction."""


@dataclass(frozen=True)
class Pass:
    """One walk over the due orders of a span; takes `quota` orders at most, None: all."""

    span: Span
    quota: int | None = None


@dataclass
class Tally:
    """What became of the orders of a run, and the first reason of each kind of failure."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, reason: str = "") -> None:
        """Count one."""
        self.counts[kind] += 1
        if reason:
            self.reasons.setdefault(kind, reason)


class Delivery:
    """One run's stream: call `publish` once; `tally` says what happened, also when it raised.

    `patience`: messages in a row without success after which no more are taken.
    """

    def __init__(self, ctx: Context, ledger: Ledger, envelopes: Envelopes, patience: int) -> None:
        self._ctx, self._ledger, self._envelopes, self._patience = ctx, ledger, envelopes, patience
        self._earlier: dict[str, int] = {}
        """Orders claimed and not settled, with their earlier publications; bounded by CLAIM and the window."""
        self._confirmed: list[str] = []
        self._unsent: list[str] = []
        self._failures = 0
        self.tally = Tally()

    def publish(self, publisher: Publisher, passes: Iterable[Pass], total: int) -> None:
        """Deliver what the passes take; what is known is written down whatever happens.

        Raises: what the publisher and the ledger raise.
        """
        try:
            for outcome in publisher.publish(self._messages(passes)):
                self._settle(outcome)
                if len(self._confirmed) + len(self._unsent) >= MARK:
                    self._write_down()
                    self._ctx.progress(self.tally.counts["published"], total, "orders")
        finally:
            self._unsent += self._earlier
            self._write_down()

    def _messages(self, passes: Iterable[Pass]) -> Iterator[Message]:
        for each in passes:
            pages = self._ledger.pages(self._ctx.now(), each.span)
            candidates = islice(chain.from_iterable(pages), each.quota)
            while not self._hopeless and not self._ctx.stopping and (batch := list(islice(candidates, CLAIM))):
                yield from self._claimed(batch)

    def _claimed(self, batch: Sequence[Candidate]) -> Iterator[Message]:
        now = self._ctx.now()
        claimed, refusals = self._ledger.claim(batch, now)
        self._put_aside(refusals)
        self._earlier.update((each.key, each.attempts) for each in claimed)
        sent = iso_utc(now)
        good_until = time.monotonic() + self._ctx.settings.claim / 2  # the other half is for the confirms
        for n, each in enumerate(claimed):
            if self._hopeless or time.monotonic() > good_until:
                self._give_back(claimed[n:])
                return
            yield self._envelopes.build(each.key, each.request_id, each.message_id, sent)

    def _give_back(self, rest: Sequence[Claimed]) -> None:
        for each in rest:
            del self._earlier[each.key]
        self._ledger.release([each.key for each in rest])

    def _put_aside(self, refusals: Sequence[Refusal]) -> None:
        for each in refusals:
            if each.changed:
                self.tally.add("changed")
                self._ctx.log.info("no longer pending, not published", order=each.candidate.key, reason=each.reason)
            else:
                self.tally.add("refused", f"order {each.candidate.key}: {each.reason}")
                seen = {"RequestId": str(each.candidate.request), "CreateDate": each.candidate.created}
                self._ctx.quarantine("order", each.candidate.key, each.reason, seen)
        self._ledger.refuse([each for each in refusals if not each.changed], self._ctx.now())

    def _settle(self, outcome: Outcome) -> None:
        key = outcome.message.key
        earlier = self._earlier.pop(key)
        if outcome.state == "published":
            self._failures = 0
            self._confirmed.append(key)
            self.tally.add("published")
            if earlier:
                self.tally.add("republished")
            return
        self._failures += 1
        self._unsent.append(key)
        self.tally.add("returned" if outcome.state == "returned" else "failed", outcome.reason)

    @property
    def _hopeless(self) -> bool:
        return self._failures >= self._patience

    def _write_down(self) -> None:
        confirmed, self._confirmed = self._confirmed, []
        unsent, self._unsent = self._unsent, []
        self._ledger.mark_published(confirmed, self._ctx.now())
        self._ledger.release(unsent)
