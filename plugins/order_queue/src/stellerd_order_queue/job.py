"""The job: find the orders that wait for their vendor, publish each once, and again while it stays pending."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from stellerd import Context, Done, Job, Skipped, errors
from stellerd_order_queue.ahead import persistently
from stellerd_order_queue.check import check
from stellerd_order_queue.delivery import Delivery, Pass, Tally
from stellerd_order_queue.envelope import Envelopes, message_id
from stellerd_order_queue.ledger import Ledger
from stellerd_order_queue.problems import database_problems
from stellerd_order_queue.publisher import open_publisher
from stellerd_order_queue.records import Span, Survey
from stellerd_order_queue.settings import OrderQueueSettings
from stellerd_order_queue.verdict import verdict

INCOMPLETE = 1_000
"""Orders with nulls that are put aside; `stellerd db check` counts them all."""
PREVIEW = 1_000
"""Orders that a dry run names; of more it tells how many."""
_ALWAYS_SHOWN = {"published": 0, "republished": 0, "returned": 0, "refused": 0, "failed": 0}
_TIDY_EVERY = timedelta(hours=1)
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

    def database_problems(self, ctx: Context) -> Iterable[tuple[str, str]]:
        """Tables, columns, types, rights and the index, each with the SQL that mends it."""
        return database_problems(ctx)

    def run(self, ctx: Context) -> Done | Skipped:
        """Prepare, survey, deliver, sum up.

        Raises: Unreachable for database and broker; JobFailed when nothing could be published.
        """
        settings = ctx.settings
        wanted = settings.wanted(by_hand=ctx.trigger == "manual")
        ledger = Ledger(ctx.engine(settings.database), settings.database, settings.rules(), wanted=wanted)
        if ctx.dry_run:
            return _preview(ctx, ledger)
        persistently(ctx, self._prepare, ctx, ledger)
        try:
            if settings.order and (skipped := _look_at(ctx, ledger)):
                return skipped
            survey = persistently(ctx, _survey, ctx, ledger)
            tally = _deliver(ctx, ledger, survey)
            persistently(ctx, _tidy, ctx, ledger, tally)
            return verdict(ctx, ledger, survey, tally)
        except errors.StellerdError:
            self._prepared = False  # a table may be gone: look again
            raise

    def _prepare(self, ctx: Context, ledger: Ledger) -> None:
        ledger.follow_clock()
        if self._prepared:
            return
        if ctx.settings.create_tables:
            ledger.create_orders()
        ledger.create()
        self._prepared = True


def due(survey: Survey, fallback: str) -> int:
    """How many orders a run may take."""
    return survey.recent_due + (0 if fallback == "never" else survey.older_due)


def plan(survey: Survey, settings: OrderQueueSettings, now: datetime) -> list[Pass]:
    """The run's walks over the due orders: the chosen ones, or by lookback and fallback."""
    if settings.asks_for_some:
        return [Pass(_chosen(settings, now), settings.limit or None)]
    return passes(survey, settings.fallback, settings.limit, _recent(settings, now), _young(settings, now))


def _recent(settings: OrderQueueSettings, now: datetime) -> datetime:
    return now - timedelta(seconds=settings.lookback)


def _young(settings: OrderQueueSettings, now: datetime) -> datetime | None:
    return now - timedelta(seconds=settings.min_age) if settings.min_age else None


def _chosen(settings: OrderQueueSettings, now: datetime) -> Span:
    if settings.asks_for_some:
        return Span(settings.since, settings.until)
    return Span(before=_young(settings, now))


def passes(survey: Survey, fallback: str, limit: int, since: datetime, before: datetime | None = None) -> list[Pass]:
    """In which order a run walks over the due orders that were created before `before`.

    "when-empty": published orders are not due for a while, so the newer ones do run out, and then it is the older
    ones' turn in the same run. With a limit, a tenth of it is kept for them.
    """
    recent, older, everything = Span(since, before), Span(before=min(since, before or since)), Span(before=before)
    quota = limit or None
    if fallback == "always":
        return [Pass(everything, quota)]
    if fallback == "never":
        return [Pass(recent, quota)]
    if quota is None:
        return [Pass(recent), Pass(older)]
    kept = min(survey.older_due, max(min(1, quota - 1), quota // _SHARE_OF_OLDER, quota - survey.recent_due))
    return [Pass(recent, quota - kept), Pass(older, kept)]


def _survey(ctx: Context, ledger: Ledger) -> Survey:
    now = ctx.now()
    return ledger.survey(now, _recent(ctx.settings, now), _chosen(ctx.settings, now))


def _due(ctx: Context, survey: Survey) -> int:
    return due(survey, "always" if ctx.settings.asks_for_some else ctx.settings.fallback)


def _look_at(ctx: Context, ledger: Ledger) -> Skipped | None:
    """Why the order that a person named is not published; None when it can be.

    Raises: JobFailed when there is no such order.
    """
    found = ledger.named(ctx.now())
    if found is None:
        raise errors.JobFailed(f'order {ctx.settings.order}: no order has this "Id" or "RequestId"')
    if found.lacking:
        return Skipped(f"order {found.key} is not to be judged: its {' and '.join(found.lacking)} is null")
    if found.vendor_id:
        return Skipped(f"order {found.key} is placed: the vendor's order id is {found.vendor_id}")
    if not found.pending:
        return Skipped(f'order {found.key} is not pending: its status is "{found.status}"')
    if found.claimed:
        return Skipped(f"order {found.key} is being published by another process just now")
    return None


def _preview(ctx: Context, ledger: Ledger) -> Done | Skipped:
    """Say what a run would do; nothing is created, written or sent."""
    ledger.follow_clock()
    seen, now = ledger if ledger.exists() else ledger.without_table(), ctx.now()
    if ctx.settings.order and (skipped := _look_at(ctx, seen)):
        return skipped
    survey = _survey(ctx, seen)
    ctx.count(pending=_due(ctx, survey), stuck=survey.stuck, refused=survey.refused)
    listed = 0
    for each in plan(survey, ctx.settings, now):
        size = PREVIEW - listed if each.quota is None else min(PREVIEW - listed, each.quota)
        named = seen.first(now, each.span, size) if size else []
        listed += len(named)
        for order in named:
            request = order.request_id
            fate = {"message_id": message_id(request)} if request else {"refused": "its RequestId is unusable"}
            ctx.log.info(
                "would publish", order=order.key, request=order.request, created=order.created,
                attempts=order.attempts, **fate,
            )  # fmt: skip
    total = min(_due(ctx, survey), ctx.settings.limit or _due(ctx, survey))
    if total > listed:
        ctx.log.info("would publish more", orders=total - listed)
    return Done()


def _deliver(ctx: Context, ledger: Ledger, survey: Survey) -> Tally:
    settings = ctx.settings
    total = _due(ctx, survey)
    ctx.count(pending=total, stuck=survey.stuck)
    if not total:
        ctx.count(**_ALWAYS_SHOWN)
        return Tally()  # an idle run does not bother the broker
    urls = ctx.broker_urls()
    with open_publisher(urls, settings.wishes()) as publisher:
        envelopes = Envelopes(urls[0], settings.message_type, settings.message_property)
        delivery = Delivery(ctx, ledger, envelopes, settings.share)
        try:
            delivery.publish(publisher, plan(survey, settings, ctx.now()), total)
        finally:
            ctx.count(**_ALWAYS_SHOWN | dict(delivery.tally.counts) | {"failed": delivery.tally.failed})
    return delivery.tally


def _tidy(ctx: Context, ledger: Ledger, tally: Tally) -> None:
    """Once an hour: what would read all orders for a few."""
    now = ctx.now()
    last = ctx.cursor.get("pruned_at", None)
    if last is not None and timedelta() <= now - datetime.fromisoformat(last) < _TIDY_EVERY:
        return
    _tell_incomplete(ctx, ledger, tally)
    removed = ledger.prune(now - timedelta(seconds=ctx.settings.keep))
    ctx.cursor.set("pruned_at", now.isoformat())
    if removed:
        ctx.log.info("ledger pruned", orders=removed)


def _tell_incomplete(ctx: Context, ledger: Ledger, tally: Tally) -> None:
    """Put orders aside that nobody can judge: each once, and again when it was whole in between."""
    told = set(ctx.cursor.get("incomplete", ()))
    found = ledger.incomplete(ctx.now(), INCOMPLETE)
    for order in found:
        if order.key not in told:
            reason = f"{' and '.join(order.lacking)} is null: whether it is pending cannot be told"
            tally.add("refused", f"order {order.key}: {reason}")
            ctx.count(refused=1)
            ctx.quarantine("order", order.key, reason, dict.fromkeys(order.lacking))
    if told or found:
        ctx.cursor.set("incomplete", [order.key for order in found])
