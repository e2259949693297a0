"""What a run comes to: one line for each kind of trouble, and an alarm for orders that nobody takes."""

from __future__ import annotations

from collections.abc import Mapping

from stellerd import Context, Done, errors
from stellerd_order_queue.delivery import FAILURES, Tally
from stellerd_order_queue.ledger import Ledger
from stellerd_order_queue.records import Survey
from stellerd_order_queue.settings import OrderQueueSettings

_NAMED = 5
_WHAT = {
    "nacked": "{n} messages were refused by the broker and stay pending: {why}",
    "blocked": "{n} messages were not taken and stay pending: {why}",
    "unknown": "{n} messages are not confirmed and stay pending: {why}",
}


def verdict(ctx: Context, ledger: Ledger, survey: Survey, tally: Tally) -> Done:
    """Raises: JobFailed when there was something to publish and nothing went out."""
    problems = problems_of(tally.counts, tally.reasons, survey, ctx.settings)
    if survey.stuck:
        problems.append(_alarm(ctx, ledger, survey))
    if not tally.counts["published"] and (tally.counts["returned"] or tally.failed):
        raise errors.JobFailed("; ".join(problems))
    return Done(problems=tuple(problems))


def _alarm(ctx: Context, ledger: Ledger, survey: Survey) -> str:
    oldest = ledger.stuck(ctx.now(), _NAMED)
    ctx.log.error("orders are stuck", orders=survey.stuck, oldest=oldest)
    return (
        f"{survey.stuck} orders are still pending after {ctx.settings.max_attempts} publications "
        f"(oldest {', '.join(oldest)}): does the consumer run, and what does {ctx.settings.message_type}'s error "
        f"queue hold?"
    )


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
    problems += [_WHAT[kind].format(n=n, why=reasons[kind]) for kind in FAILURES if (n := counts.get(kind, 0))]
    if n := counts.get("refused", 0):
        problems.append(f"{n} orders cannot be published and are in quarantine, first {reasons['refused']}")
    return problems
