"""The job: categories first, then the catalogue; each of the two halves fails alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import sqlalchemy as sa

from stellerd import Context, Deferred, Done, Job, errors
from stellerd_brand_sync import session, source, tables
from stellerd_brand_sync.aside import Aside
from stellerd_brand_sync.categories import read_list
from stellerd_brand_sync.decode import Decoder
from stellerd_brand_sync.merge import Merge
from stellerd_brand_sync.settings import BrandSyncSettings

_OLDEST_SQLITE = (3, 39, 0)
_LAST = "catalogue"


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

    def run(self, ctx: Context) -> Done | Deferred:
        """One sync; what comes before the first half costs no request.

        Raises: JobFailed when both halves failed or the database is not ready; Unreachable when it does not answer.
        """
        settings: BrandSyncSettings = ctx.settings
        bucket = source.CATALOGUES[settings.catalog_api].bucket
        closed = ctx.limiter.closed_until(bucket)
        if closed is not None:
            return Deferred(closed, f"the limit {bucket} is used up; no request was sent")
        _require_ready(ctx, create=settings.create_tables)
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
    if first is not None and second is not None:
        away = isinstance(first, errors.Unreachable) and isinstance(second, errors.Unreachable)
        raise (errors.Unreachable if away else errors.JobFailed)("; ".join(problems))
    return Done(problems=problems)


def sync_categories(ctx: Context) -> None:
    """Fetch the vendor's categories and store what changed.

    Raises: any stellerd error; then nothing of this half is stored.
    """
    aside = Aside()
    try:
        rows = read_list(source.categories(ctx), aside)
        with _merge(ctx) as merge:
            merge.categories(rows)
    finally:
        aside.report(ctx)
    ctx.count(categories=len(rows), rows=merge.rows)


def sync_catalogue(ctx: Context) -> None:
    """Fetch the vendor's catalogue and store what changed.

    Raises: any stellerd error; then nothing of this half is stored.
    """
    settings: BrandSyncSettings = ctx.settings
    fetched = source.CATALOGUES[settings.catalog_api].fetch(ctx)
    ctx.count(bytes=fetched.size)
    last = int((ctx.cursor.get(_LAST) or {}).get("products", 0))
    aside = Aside()
    try:
        with _merge(ctx) as merge:
            decoder = Decoder(merge.known_categories(), aside)
            total = len(fetched.brands)
            usable = merge.stage(decoder.read(fetched.brands), lambda done: ctx.progress(done, total, "brands"))
            ctx.count(fetched=decoder.fetched)
            refuse_shrunk(usable, last or merge.stored("products"), settings)
            counters = merge.catalogue(list(decoder.book.new.values()))
    finally:
        aside.report(ctx)
    if not ctx.dry_run:
        ctx.cursor.set(_LAST, {"products": usable})
    ctx.count(**counters, rows=merge.rows)
    ctx.progress(counters["products"], counters["products"], "products")


def refuse_shrunk(usable: int, last: int, settings: BrandSyncSettings) -> None:
    """A catalogue that is empty or lost too much at once is the vendor's mistake more often than the truth.

    Raises: JobFailed; the caller's transaction is undone.
    """
    if usable < settings.min_products:
        raise errors.JobFailed(
            f"catalogue: {usable:,} usable products came, min_products is {settings.min_products:,}: refused, nothing "
            "was changed; what was put aside says why rows were not usable"
        )
    if usable < last * (1 - settings.max_shrink):
        raise errors.JobFailed(
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


def _prepare(connection: sa.Connection, settings: BrandSyncSettings) -> None:
    """Owned tables are created (a dry run or a check undoes it); in either case they must be as needed."""
    if settings.create_tables:
        tables.create_missing(connection)
    tables.require(connection)


@contextmanager
def _merge(ctx: Context) -> Iterator[Merge]:
    """A merge in one transaction: all of it is stored, or nothing; nothing in a dry run."""
    settings: BrandSyncSettings = ctx.settings
    engine = ctx.engine(settings.database)
    with session.transaction(engine, settings.database, keep=not ctx.dry_run) as connection:
        if ctx.dry_run:
            _prepare(connection, settings)
        merge = Merge(connection, ctx.now(), write=not ctx.dry_run)
        yield merge
        merge.finish()
