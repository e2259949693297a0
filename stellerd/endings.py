"""How a run ended: every way out of a plugin's `run` as a state with a reason that any store can keep."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stellerd.context import Context
from stellerd.job import Deferred, Done, Skipped
from stellerd.redaction import redact

PLUGIN_ERROR = 70
_LARGEST_COUNTER = 2**63
_EVER, _NEVER = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Ending:
    """How a run ended, before it is recorded."""

    state: str
    reason: str = ""
    code: int | None = None
    not_before: datetime | None = None


def of_outcome(outcome: Any, context: Context) -> Ending:
    """What `run` returned.

    Raises: TypeError, ValueError when it is not an outcome that the store can keep.
    """
    if outcome is None:
        return Ending("ok")
    if isinstance(outcome, Done):
        context.merge(outcome.counters)
        problems: Any = outcome.problems
        problems = [problems] if isinstance(problems, str) else problems
        reason = "; ".join(_text("Done.problems", problem) for problem in problems)
        return Ending("partial", reason) if problems else Ending("ok")
    if isinstance(outcome, Skipped):
        return Ending("skipped", _text("Skipped.reason", outcome.reason))
    if isinstance(outcome, Deferred):
        if outcome.until.tzinfo is None:
            raise TypeError("Deferred.until has no time zone; write datetime.now(UTC) + …")
        return Ending("deferred", _text("Deferred.reason", outcome.reason), not_before=_utc(outcome.until))
    raise TypeError(f"run() returned {type(outcome).__name__}; it may return Done, Skipped, Deferred or None")


def _utc(at: datetime) -> datetime:
    """In UTC, with room in the calendar for other zones and for slots around it: a plugin may mean never."""
    return at.astimezone(UTC) if _EVER.year < at.year < _NEVER.year else _NEVER if at.year > _EVER.year else _EVER


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a text, not {type(value).__name__}")
    return value


def with_countable(ending: Ending, context: Context) -> Ending:
    """The ending, unless the plugin counted something that no record and no JSON can hold."""
    counters = context.counters
    wrong = [name for name, amount in counters.items() if not (isinstance(name, str) and _is_countable(amount))]
    for name in wrong:
        del counters[name]
    if not wrong:
        return ending
    return Ending("failed", f"counters must be whole numbers: {', '.join(map(str, wrong))}", PLUGIN_ERROR)


def _is_countable(amount: Any) -> bool:
    return isinstance(amount, int) and -_LARGEST_COUNTER <= amount < _LARGEST_COUNTER


def unforeseen(error: BaseException, context: Context) -> Ending:
    """A mistake of the plugin's: its traceback is logged."""
    context.log.error("the plugin's run raised", traceback=redact("".join(traceback.format_exception(error))))
    return Ending("failed", said(error), PLUGIN_ERROR)


def said(error: BaseException) -> str:
    """An error in one line, without secrets; a plugin's may not even be able to say what it is."""
    try:
        text = redact(str(error))
    except Exception:  # noqa: BLE001
        text = "it cannot be shown"
    return f"{type(error).__name__}: {text}".removesuffix(": ")
