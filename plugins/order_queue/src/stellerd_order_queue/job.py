"""The job: find the orders that wait for their vendor, publish each once, and again while it stays pending."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from stellerd import Context, Done, Job, errors
from stellerd_order_queue.check import check
from stellerd_order_queue.delivery import Delivery, Pass, Tally
from stellerd_order_queue.envelope import Envelopes, message_id
from stellerd_order_queue.ledger import Ledger, Span, Survey
from stellerd_order_queue.publisher import open_publisher
from stellerd_order_queue.settings import OrderQueueSettings

PREVIEW = 20
"""Orders that a dry run names."""
_ALWAYS_SHOWN = {"published": 0, "republished": 0, "returned": 0, "refused": 0, "failed": 0}
_PRUNE_EVERY = timedelta(hours=1)
_SHARE_OF_OLDER = 10
"""One part in this many of `limit` is for older orders: a flood of new ones must not starve them."""


class OrderQueue(Job):
    """Publishes OrderCreated for every accepted order that has no vendor order id yet; none is ever forgotten."""

    every = "1m"
    Settings = OrderQueueSettings

    def __init__(self) -> None:
        self._prepared = False

    def check(self, ctx: Context) -> None:
        """Database, tables, rights, ledger and broker are as the run needs them; advice goes to the log."""
        check(ctx)

    def run(self, ctx: Context) -> Done:
        """Prepare, survey, deliver, sum up.

        Raises: Unreachable for database and broker; JobFailed when nothing could be published.
        """
        ledger = Ledger(ctx.engine(ctx.settings.database), ctx.settings.database, ctx.settings.rules())
        now = ctx.now()
        since = now - timedelta(seconds=ctx.settings.lookback)
        if ctx.dry_run:
            return _preview(ctx, ledger, now, since)
        self._prepare(ctx, ledger)
        try:
            survey = ledger.survey(now, since)
            tally = _deliver(ctx, ledger, survey, since)
            _prune(ctx, ledger, now)
        except errors.StellerdError:
            self._prepared = False  # a table may be gone: look again
            raise
        return _verdict(ctx, survey, tally)

    def _prepare(self, ctx: Context, ledger: Ledger) -> None:
        if self._prepared:
            return
        if ctx.settings.create_tables:
            ledger.create_orders()
        ledger.create()
        self._prepared = True


def due(survey: Survey, fallback: str) -> int:
    """How many orders a run may take."""
    return survey.recent_due + (0 if fallback == "never" else survey.older_due)


def passes(survey: Survey, fallback: str, limit: int, since: datetime) -> list[Pass]:
    """In which order a run walks over the due orders.

    "when-empty": published orders are not due for a while, so the newer ones do run out, and then it is the older
    ones' turn in the same run. With a limit, a tenth of it is kept for them.
    """
    recent, older, everything = Span(since), Span(before=since), Span()
    quota = limit or None
    if fallback == "always":
        return [Pass(everything, quota)]
    if fallback == "never":
        return [Pass(recent, quota)]
    if quota is None:
        return [Pass(recent), Pass(older)]
    kept = min(survey.older_due, max(min(1, quota - 1), quota // _SHARE_OF_OLDER, quota - survey.recent_due))
    return [Pass(recent, quota - kept), Pass(older, kept)]


def _preview(ctx: Context, ledger: Ledger, now: datetime, since: datetime) -> Done:
    """Say what a run would do; nothing is created, written or sent."""
    seen = ledger if ledger.exists() else ledger.without_table()
    survey = seen.survey(now, since)
    plan = passes(survey, ctx.settings.fallback, ctx.settings.limit, since)
    ctx.count(pending=due(survey, ctx.settings.fallback), stuck=survey.stuck, refused=survey.refused)
    left = PREVIEW
    for each in plan:
        size = left if each.quota is None else min(left, each.quota)
        named = seen.first(now, each.span, size) if size else []
        left -= len(named)
        for order in named:
            request = order.request_id
            fate = {"message_id": message_id(request)} if request else {"refused": "its RequestId is unusable"}
            ctx.log.info("would publish", order=order.key, created=order.created, attempts=order.attempts, **fate)
    return Done()


def _deliver(ctx: Context, ledger: Ledger, survey: Survey, since: datetime) -> Tally:
    settings = ctx.settings
    total = due(survey, settings.fallback)
    ctx.count(pending=total, stuck=survey.stuck)
    if not total:
        ctx.count(**_ALWAYS_SHOWN)
        return Tally()  # an idle run does not bother the broker
    url = ctx.broker_url()
    plan = passes(survey, settings.fallback, settings.limit, since)
    with open_publisher(url, settings.wishes()) as publisher:
        envelopes = Envelopes(url, settings.message_type, settings.message_property)
        delivery = Delivery(ctx, ledger, envelopes, settings.window)
        try:
            delivery.publish(publisher, plan, total)
        finally:
            ctx.count(**_ALWAYS_SHOWN | dict(delivery.tally.counts))
    return delivery.tally


def _prune(ctx: Context, ledger: Ledger, now: datetime) -> None:
    last = ctx.cursor.get("pruned_at", None)
    if last is not None and now - datetime.fromisoformat(last) < _PRUNE_EVERY:
        return
    removed = ledger.prune(now - timedelta(seconds=ctx.settings.keep))
    ctx.cursor.set("pruned_at", now.isoformat())
    if removed:
        ctx.log.info("ledger pruned", orders=removed)


def _verdict(ctx: Context, survey: Survey, tally: Tally) -> Done:
    """Raises: JobFailed when there was something to publish and nothing went out."""
    problems = problems_of(tally.counts, tally.reasons, survey, ctx.settings)
    if not tally.counts["published"] and (tally.counts["returned"] or tally.counts["failed"]):
        raise errors.JobFailed("; ".join(problems))
    return Done(problems=tuple(problems))


def problems_of(
    counts: Mapping[str, int], reasons: Mapping[str, str], survey: Survey, settings: OrderQueueSettings
) -> list[str]:
    """One line for each kind of trouble."""
    problems = []
    if n := counts.get("returned", 0):
        problems.append(
            f"the broker returned {n} messages: no queue is bound to exchange {settings.message_type}; "
            f"start the consumer once or bind its queue"
        )
    if n := counts.get("failed", 0):
        problems.append(f"{n} messages are not confirmed and stay pending: {reasons['failed']}")
    if n := counts.get("refused", 0):
        problems.append(f"{n} orders cannot be published and are in quarantine, first {reasons['refused']}")
    if survey.stuck:
        problems.append(
            f"{survey.stuck} orders are still pending after {settings.max_attempts} publications: "
            f"does the consumer run, and what does {settings.message_type}'s error queue hold?"
        )
    return problems
