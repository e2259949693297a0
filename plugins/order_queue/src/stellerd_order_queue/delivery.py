"""From due orders to confirmed messages: claim, publish, mark, in one stream of bounded memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from stellerd import Context, errors
from stellerd_order_queue.ahead import Ahead, Behind, persistently
from stellerd_order_queue.envelope import Envelopes, Message, iso_utc
from stellerd_order_queue.ledger import CLAIM, Ledger
from stellerd_order_queue.publisher import Outcome, Publisher
from stellerd_order_queue.records import Claimed, Refusal, Span

RECHECK_S = 1.0
"""So long after its claim an order is looked at again before it is published: it may have been placed."""


FAILURES = ("nacked", "blocked", "unknown")
NAMED = 100
"""Failures of a run that the log tells one by one; of more it tells the number."""


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
    unnamed: Counter[str] = field(default_factory=Counter)
    """Failures beyond the first `NAMED`."""

    def add(self, kind: str, reason: str = "") -> None:
        """Count one."""
        self.counts[kind] += 1
        if reason:
            self.reasons.setdefault(kind, reason)

    @property
    def failed(self) -> int:
        """Messages that no broker answers for and that did not come back either."""
        return sum(self.counts[kind] for kind in FAILURES)


class Batch(NamedTuple):
    """Orders of ours, and those that are not to be published; `claimed_at` is monotonic seconds."""

    claimed: list[Claimed]
    refusals: list[Refusal]
    claimed_at: float


class Delivery:
    """One run's stream: call `publish` once; `tally` says what happened, also when it raised.

    `share`: so many settled orders are written down in one transaction, while as many more are settled; after as many
    messages in a row without success no more are taken.
    """

    def __init__(self, ctx: Context, ledger: Ledger, envelopes: Envelopes, share: int) -> None:
        self._ctx, self._ledger, self._envelopes, self._share = ctx, ledger, envelopes, share
        self._earlier: dict[str, int] = {}
        """Orders claimed and not settled, with their earlier publications; bounded by CLAIM and the window."""
        self._confirmed: list[str] = []
        self._unsent: list[str] = []
        self._unpublished: dict[str, list[str]] = {}
        """Orders whose messages nobody answers for, by the reason."""
        self._waiting = 0
        """How many are to be written down."""
        self._failures = 0
        self._writing = Behind()
        self._trouble: errors.StellerdError | None = None
        self._debug = ctx.log.debug
        self.tally = Tally()

    def publish(self, publisher: Publisher, passes: Iterable[Pass], total: int) -> None:
        """Deliver what the passes take; what is known is written down whatever happens.

        Raises: what the publisher and the ledger raise.
        """
        batches = Ahead(self._batches(passes), self._unused)
        try:
            for outcome in publisher.publish(self._messages(batches)):
                self._settle(outcome)
                if self._waiting >= self._share:
                    self._write_down()
                    self._ctx.progress(self.tally.counts["published"], total, "orders")
            if self._trouble:
                raise self._trouble
        finally:
            batches.close()
            self._unsent += self._earlier
            try:
                self._write_down()
            finally:
                self._writing.close()
                if self.tally.unnamed:
                    self._ctx.log.warning("orders not published, more of them", **self.tally.unnamed)

    def _batches(self, passes: Iterable[Pass]) -> Iterator[Batch]:
        """In the thread of `Ahead`."""
        for each in passes:
            pages = self._ledger.pages(self._ctx.now(), each.span, partial(persistently, self._ctx))
            candidates = islice(chain.from_iterable(pages), each.quota)
            while not self._hopeless and not self._ctx.stopping and (batch := list(islice(candidates, CLAIM))):
                claimed_at = time.monotonic()
                answer = persistently(self._ctx, self._ledger.claim, batch, self._ctx.now())
                yield Batch(*answer, claimed_at)

    def _messages(self, batches: Iterable[Batch]) -> Iterator[Message]:
        try:
            for each in batches:
                self._earlier.update((order.key, order.attempts) for order in each.claimed)
                self._put_aside(each.refusals)
                yield from self._valid(each)
        except errors.StellerdError as error:  # the database's: what is on its way still gets its answer
            self._trouble = error

    def _valid(self, batch: Batch) -> Iterator[Message]:
        """The batch's messages, as long as its claims hold; orders placed meanwhile are left out."""
        sent, checked_at = iso_utc(self._ctx.now()), batch.claimed_at
        good_until = batch.claimed_at + self._ctx.settings.claim / 2  # the other half is for the confirms
        changed: set[str] = set()
        for n, each in enumerate(batch.claimed):
            now = time.monotonic()
            if self._hopeless or now > good_until:
                self._give_back([order for order in batch.claimed[n:] if order.key not in changed])
                return
            if now > checked_at + RECHECK_S:
                changed |= self._changed([order for order in batch.claimed[n:] if order.key not in changed])
                checked_at = time.monotonic()
            if each.key not in changed:
                yield self._envelopes.build(each.key, each.request_id, each.message_id, sent)

    def _changed(self, rest: Sequence[Claimed]) -> set[str]:
        pending = persistently(self._ctx, self._ledger.still_pending, rest, self._ctx.now())
        gone = [each for each in rest if each.key not in pending]
        reason = "placed, closed or given another RequestId since it was claimed"
        for each in gone:
            self._record("changed", each.key, reason, {"RequestId": each.request_id})
        self._give_back(gone)
        return {each.key for each in gone}

    def _give_back(self, rest: Sequence[Claimed]) -> None:
        for each in rest:
            del self._earlier[each.key]
        persistently(self._ctx, self._ledger.release, [each.key for each in rest])

    def _unused(self, batch: Batch) -> None:
        self._unsent += [each.key for each in batch.claimed]

    def _put_aside(self, refusals: Sequence[Refusal]) -> None:
        for each in refusals:
            seen = {"RequestId": str(each.candidate.request), "CreateDate": each.candidate.created}
            self._record("changed" if each.changed else "refused", each.candidate.key, each.reason, seen)
        refused = [each for each in refusals if not each.changed]
        persistently(self._ctx, self._ledger.refuse, refused, self._ctx.now())

    def _record(self, kind: str, key: str, reason: str, seen: dict[str, str]) -> None:
        self.tally.add(kind, f"order {key}: {reason}")
        self._ctx.quarantine("order", key, reason, seen)

    def _settle(self, outcome: Outcome) -> None:
        key = outcome.message.key
        earlier = self._earlier.pop(key)
        self._waiting += 1
        if outcome.state == "published":
            self._failures = 0
            self._confirmed.append(key)
            self.tally.add("published")
            if earlier:
                self.tally.add("republished")
            self._debug("order published", order=key, request=outcome.message.correlation_id, earlier=earlier)
            return
        self._failures += 1
        self._unpublished.setdefault(f"{outcome.state}: {outcome.reason}", []).append(key)
        self.tally.add(outcome.state, outcome.reason)
        self._name(outcome)

    def _name(self, outcome: Outcome) -> None:
        if self.tally.failed + self.tally.counts["returned"] > NAMED:
            self.tally.unnamed[outcome.state] += 1
            return
        self._ctx.log.warning(
            "order not published", order=outcome.message.key, request=outcome.message.correlation_id,
            outcome=outcome.state, reason=outcome.reason,
        )  # fmt: skip

    @property
    def _hopeless(self) -> bool:
        return self._failures >= self._share

    def _write_down(self) -> None:
        confirmed, self._confirmed = self._confirmed, []
        unsent, self._unsent = self._unsent, []
        unpublished, self._unpublished = self._unpublished, {}
        self._waiting = 0
        self._writing.do(self._write, confirmed, unsent, unpublished)

    def _write(self, confirmed: list[str], unsent: list[str], unpublished: dict[str, list[str]]) -> None:
        """In the thread of `Behind`."""
        persistently(self._ctx, self._ledger.mark_published, confirmed, self._ctx.now())
        persistently(self._ctx, self._ledger.release, unsent)
        persistently(self._ctx, self._ledger.fail, unpublished, self._ctx.now())
