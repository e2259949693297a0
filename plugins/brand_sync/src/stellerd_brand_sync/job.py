"""The job: categories first, then the catalogue; each of the two halves fails alone."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar

import sqlalchemy as sa

from stellerd import Context, Deferred, Done, Job, errors
from stellerd_brand_sync import catalogue, diff, digests, kept, problems, session, source, tables
from stellerd_brand_sync.aside import Aside
from stellerd_brand_sync.categories import read_list
from stellerd_brand_sync.fetched import Fetched
from stellerd_brand_sync.merge import Merge
from stellerd_brand_sync.settings import BrandSyncSettings

_OLDEST_SQLITE = (3, 39, 0)
_LAST = "catalogue"
_NEAR = timedelta(seconds=2)
"""A slot nearer than this is waited for in place: the paged API's window is a second."""


class Refused(errors.JobFailed):
    """A catalogue that is not to be stored, whatever the database says."""


class Incomplete(errors.JobFailed):
    """What came is stored; it was not all."""


class BrandSync(Job):
    """Pulls the vendor's categories and catalogue and writes the rows that changed."""

    every: ClassVar[str] = "30m"
    Settings = BrandSyncSettings
    buckets: ClassVar[tuple[str, ...]] = (source.BUCKET_V1,)
    limits: ClassVar[Mapping[str, str]] = {
        source.BUCKET_V1: "2/1h",
        source.BUCKET_CATEGORIES: "1/1s",
        source.BUCKET_V2: "1/1s",
    }

    def check(self, ctx: Context) -> None:
        """Credentials can be read; the database has the tables, columns, rights and rows that the sync needs.

        Raises: ConfigError, Unreachable or JobFailed.
        """
        _require_ready(ctx, create=False)

    def needs(self, ctx: Context) -> Iterable[str]:
        """The limit of the configured API; none while a catalogue is kept."""
        usable = kept.there(ctx) and source.Vendor(ctx, _full_due(ctx)).kept.look()
        return () if usable else (source.CATALOGUES[ctx.settings.catalog_api].bucket,)

    def database_problems(self, ctx: Context) -> list[tuple[str, str]]:
        """Tables, columns, types, seed rows, rights, sequences and our own table, each with the SQL that mends it.

        Raises: Unreachable or JobFailed when the database cannot be asked.
        """
        settings: BrandSyncSettings = ctx.settings
        engine = ctx.engine(settings.database)
        with session.transaction(engine, settings.database, keep=False, alone=False) as connection:
            return problems.for_people(problems.find(connection, ours=settings.create_tables))

    def run(self, ctx: Context) -> Done | Deferred:
        """One sync; what comes before the first half costs no request.

        Raises: JobFailed when both halves failed or the database is not ready; Unreachable when it does not answer.
        """
        settings: BrandSyncSettings = ctx.settings
        vendor = source.Vendor(ctx, _full_due(ctx))
        closed = ctx.limiter.closed_until(vendor.bucket)
        if closed is not None and closed - ctx.now() > _NEAR and not vendor.kept.look():
            return Deferred(closed, f"the limit {vendor.bucket} is used up; no request was sent")
        _require_ready(ctx, create=settings.create_tables)
        ctx.count(quarantined=0)  # said even when it is nothing
        first = _half(ctx, "categories", sync_categories)
        second = _half(ctx, "catalogue", sync_catalogue)
        return _outcome(first, second)


def _half(ctx: Context, name: str, work: Callable[[Context], None]) -> errors.StellerdError | None:
    """Do one half; its error, if it had one, is a value: the other half goes on without it."""
    if ctx.stopping:
        return errors.JobFailed(f"{name}: not begun, this process is stopping")
    try:
        work(ctx)
    except errors.StellerdError as error:
        ctx.log.debug("half failed", half=name, reason=str(error))
        return error
    except Exception as error:
        ctx.log.exception("half failed, which is a fault of brand_sync: please report it", half=name)
        return errors.JobFailed(f"{name}: a fault of brand_sync, {type(error).__name__}: {error}; see the log")
    return None


def _outcome(first: errors.StellerdError | None, second: errors.StellerdError | None) -> Done | Deferred:
    """What two halves make together: a closed catalogue limit defers, one failure is a problem, two fail.

    Raises: Unreachable when neither half reached its server, else JobFailed.
    """
    problems = tuple(
        f"{name}: {error}" if not str(error).startswith(f"{name}:") else str(error)
        for name, error in (("categories", first), ("catalogue", second))
        if error is not None
    )
    if isinstance(second, errors.RateLimited) and second.until is not None:
        return Deferred(second.until, "; ".join(problems))
    if first is not None and second is not None and not isinstance(second, Incomplete):
        away = isinstance(first, errors.Unreachable) and isinstance(second, errors.Unreachable)
        raise (errors.Unreachable if away else errors.JobFailed)("; ".join(problems))
    return Done(problems=problems)


def sync_categories(ctx: Context) -> None:
    """Fetch the vendor's categories and store what changed.

    Raises: any stellerd error; then nothing of this half is stored.
    """
    aside = Aside()
    began = time.monotonic()
    try:
        rows = read_list(source.categories(ctx), aside)
        with _transaction(ctx) as connection:
            merge = Merge(connection, ctx.now(), write=not ctx.dry_run)
            if ctx.dry_run:
                diff.show_categories(ctx.log, merge.known_categories().stored, rows)
            written = merge.categories(rows)
    finally:
        aside.report(ctx)
    ctx.count(categories=len(rows), rows=written, categories_ms=catalogue.ms(began, time.monotonic()))


def sync_catalogue(ctx: Context) -> None:
    """Fetch the vendor's catalogue and store what changed.

    Raises: any stellerd error; then nothing of this half is stored.
    """
    began = time.monotonic()
    vendor = source.Vendor(ctx, _full_due(ctx))
    fetched = vendor.catalogue()
    ctx.count(bytes=fetched.size, fetch_ms=catalogue.ms(began, time.monotonic()))
    last = ctx.cursor.get(_LAST) or {}
    order = _order(ctx, last, fetched)
    aside = Aside()
    try:
        with _transaction(ctx) as connection:
            stored = catalogue.store(connection, fetched.brands, order, aside)
            merged = time.monotonic()
        ctx.count(commit_ms=catalogue.ms(merged, time.monotonic()), **stored.counters)
    except Refused as error:
        vendor.kept.drop(str(error))
        raise
    except Exception as error:
        if isinstance(error, session.Unstorable) or not isinstance(error, errors.StellerdError):
            vendor.kept.failed(fetched.facts, f"{type(error).__name__}: {error}")
        raise
    finally:
        aside.report(ctx)
    if stored.blind:
        ctx.log.warning("nothing counts as vanished: it cannot be told which brand a bad one is; see the quarantine")
    if not ctx.dry_run and order.complete:
        full_at = ctx.now().timestamp() if order.full else last["full_at"]
        ctx.cursor.set(_LAST, {"products": stored.usable, "full_at": full_at})
    vendor.stored(fetched.facts)
    ctx.progress(stored.counters["products"], stored.counters["products"], "products")
    if fetched.facts.problem:
        raise Incomplete(f"catalogue: {fetched.facts.problem}")


def _full_due(ctx: Context) -> bool:
    """Everything is to be compared."""
    settings: BrandSyncSettings = ctx.settings
    age = ctx.now().timestamp() - float((ctx.cursor.get(_LAST) or {}).get("full_at", 0))
    return settings.full_compare or not 0 <= age < settings.full_compare_every


def _order(ctx: Context, last: Mapping[str, Any], fetched: Fetched) -> catalogue.Order:
    settings: BrandSyncSettings = ctx.settings
    total = len(fetched.brands)

    def guard(usable: int, stored: int) -> None:
        if fetched.facts.complete:
            refuse_shrunk(usable, int(last.get("products", 0)) or stored, settings)

    def look(found: catalogue.Findings) -> None:
        diff.show(ctx.log, found, out_of_stock=settings.on_missing == "out-of-stock")

    return catalogue.Order(
        now=ctx.now(),
        write=not ctx.dry_run,
        full=_full_due(ctx),
        complete=fetched.facts.complete,
        out_of_stock=settings.on_missing == "out-of-stock",
        guard=guard,
        progress=lambda done, of: ctx.progress(total - of + done, total, "brands"),
        look=look if ctx.dry_run else None,
    )


def refuse_shrunk(usable: int, last: int, settings: BrandSyncSettings) -> None:
    """A catalogue that is empty or lost too much at once is the vendor's mistake more often than the truth.

    Raises: Refused; the caller's transaction is undone.
    """
    if usable < settings.min_products:
        raise Refused(
            f"catalogue: {usable:,} usable products came, min_products is {settings.min_products:,}: refused, nothing "
            "was changed; what was put aside says why rows were not usable"
        )
    if usable < last * (1 - settings.max_shrink):
        raise Refused(
            f"catalogue: {usable:,} usable products came, the last one had {last:,}, and max_shrink is "
            f"{settings.max_shrink:.0%}: refused, nothing was changed; if the vendor really dropped so many, run "
            "once with --set max_shrink=1"
        )


def _require_ready(ctx: Context, *, create: bool) -> None:
    """Prove, before anything is fetched, that it could be stored."""
    settings: BrandSyncSettings = ctx.settings
    source.require_credentials(settings)
    engine = ctx.engine(settings.database)
    if engine.dialect.name == "sqlite" and sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise errors.JobFailed(f"SQLite {sqlite3.sqlite_version} is too old, 3.39 is needed; use PostgreSQL")
    with session.transaction(engine, settings.database, keep=create and not ctx.dry_run) as connection:
        _prepare(connection, settings)
    if not ctx.dry_run:
        _own_table(ctx, engine)


def _own_table(ctx: Context, engine: sa.Engine) -> None:
    """The table of digests is ours to make and to bring up to date; without it all goes on, only slower."""
    settings: BrandSyncSettings = ctx.settings
    with session.transaction(engine, settings.database) as connection:
        usable, rekeying = digests.Digests(connection).usable, digests.rekeying(connection)
    if usable and not rekeying:
        return
    try:
        with session.transaction(engine, settings.database) as connection:
            if rekeying:
                connection.exec_driver_sql(rekeying)
            else:
                digests.create(connection)
    except errors.JobFailed as error:
        if rekeying:
            ctx.log.warning(
                "brands with long internalIds cannot be stored: stellerd db check says why", reason=str(error)
            )
        else:
            ctx.log.warning("every run compares everything: no table to keep digests in", reason=str(error))


def _prepare(connection: sa.Connection, settings: BrandSyncSettings) -> None:
    """Owned tables are created (a dry run or a check undoes it); in either case they must be as needed."""
    if settings.create_tables:
        tables.create_missing(connection)
    problems.require(connection)


@contextmanager
def _transaction(ctx: Context) -> Iterator[sa.Connection]:
    """One transaction: all of it is stored, or nothing; nothing in a dry run."""
    settings: BrandSyncSettings = ctx.settings
    engine = ctx.engine(settings.database)
    with session.transaction(engine, settings.database, keep=not ctx.dry_run) as connection:
        if ctx.dry_run:
            _prepare(connection, settings)
        yield connection
