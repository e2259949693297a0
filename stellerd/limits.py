"""`stellerd limits`: see and change the rate-limit buckets, on the state store itself; no daemon is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from stellerd.durations import parse_duration, parse_rate
from stellerd.errors import UsageError
from stellerd.options import JSON, load

if TYPE_CHECKING:
    from stellerd.buckets import Buckets

T = TypeVar("T")


@click.group()
def limits() -> None:
    """Rate-limit buckets, as every process and host on the state store sees them."""


@limits.command("show")
@click.argument("bucket", required=False)
@JSON
@click.pass_context
def show(context: click.Context, bucket: str | None, as_json: bool) -> int:
    """Show what is used of each limit, when the next slot is, and who closed it.

    Limits that only a plugin knows are shown once it has used them.
    """
    from stellerd import reading
    from stellerd.assembly import configured_limits
    from stellerd.buckets import Buckets

    config = load(context)
    with reading.store(config.state_url(), config.state.host) as (store, _):
        _print(Buckets(store, configured_limits(config)), bucket, as_json)
    return 0


@limits.command("set")
@click.argument("bucket")
@click.option("--rate", "rates", multiple=True, metavar="N/DURATION",
              help="Rate in place of the configured ones, as in 2/1h; may be repeated.")  # fmt: skip
@click.option("--for", "for_", metavar="DURATION", help="The rate holds for so long; default: until `limits reset`.")
@click.option("--close", metavar="DURATION", help="Grant nothing for so long; 0s opens what was closed.")
@JSON
@click.pass_context
def set_(
    context: click.Context, bucket: str, rates: tuple[str, ...], for_: str | None, close: str | None, as_json: bool
) -> int:
    """Override BUCKET's rate, or close it for a while, at once and for everybody.

    It holds over restarts and reloads. Slots that were spent stay spent. `stellerd history` shows who did it.
    """
    if not rates and close is None:
        raise UsageError("limits set: nothing to set; give --rate or --close")
    if for_ is not None and not rates:
        raise UsageError("limits set: --for says how long a --rate holds; to close the limit write --close DURATION")
    parsed = tuple(_read("--rate", parse_rate, rate) for rate in rates)
    closed_s = None if close is None else _read("--close", parse_duration, close)
    for_s = None if for_ is None else _read("--for", parse_duration, for_)
    found = _buckets(context)
    found.set(bucket, rates=parsed, closed_s=closed_s, for_s=for_s)
    _print(found, bucket, as_json)
    return 0


@limits.command("reset")
@click.argument("bucket")
@click.option("--spent", is_flag=True, help="Forget the spent slots too: only if the server has forgotten them.")
@JSON
@click.pass_context
def reset(context: click.Context, bucket: str, spent: bool, as_json: bool) -> int:
    """Open BUCKET and go back to its configured rate: undo `limits set`, a learned wait and the circuit breaker."""
    found = _buckets(context)
    found.reset(bucket, spent=spent)
    _print(found, bucket, as_json)
    return 0


def _buckets(context: click.Context) -> Buckets:
    from stellerd.assembly import configured_limits
    from stellerd.buckets import Buckets
    from stellerd.store import Store

    config = load(context)
    store = Store(config.state_url(), host=config.state.host)
    store.create()
    return Buckets(store, configured_limits(config))


def _print(found: Buckets, bucket: str | None, as_json: bool) -> None:
    from stellerd import views

    views.limits(found.show(bucket), as_json)


def _read(option: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
