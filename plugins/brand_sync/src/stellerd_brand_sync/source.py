"""Fetching from the vendor, and what is remembered of it from run to run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from stellerd import Context, Secret, errors
from stellerd_brand_sync import urls, wire
from stellerd_brand_sync.fetched import Facts, Fetched, fingerprint
from stellerd_brand_sync.kept import Kept
from stellerd_brand_sync.pagelog import PageLog
from stellerd_brand_sync.pages import PASSES, Pages
from stellerd_brand_sync.settings import BrandSyncSettings

BUCKET_V1, BUCKET_CATEGORIES, BUCKET_V2 = "bamboo_catalog", "bamboo_categories", "bamboo_catalog_v2"
_MARK = "fetched"
_TRIES = 4
_SHORT_S = 10.0
"""A page that is refused for no longer than this is asked for again in the same run."""
_OVERLAP = timedelta(days=2)
"""`ModifiedDate` is a date, "modified after", by a clock and a calendar that are not ours: changes of the day itself
may not count as after it, and the vendor's day may be the one before."""


class Vendor:
    """One run's view of the vendor's catalogue. `everything`: what was not modified is wanted, too."""

    def __init__(self, ctx: Context, everything: bool) -> None:
        self._ctx = ctx
        self._settings: BrandSyncSettings = ctx.settings
        self._api = CATALOGUES[self._settings.catalog_api]
        self._source = _identity(self._settings)
        mark: dict[str, Any] = ctx.cursor.get(_MARK) or {}
        self._mark = mark if mark.get("source") == self._source else {}
        self._full = everything or self._api.whole or self._refresh_due()
        self.kept = Kept(ctx, self._source, float(self._mark.get("at", 0)), self._full)

    @property
    def bucket(self) -> str:
        """The limit that a fetch cannot do without."""
        return self._api.bucket

    def catalogue(self) -> Fetched:
        """The kept one, or one that is fetched now and kept.

        Raises: what `Http.get` does; BadReply for a body of another shape.
        """
        if kept := self.kept.load():
            self._ctx.log.info("uses the catalogue that could not be stored before; no call is spent")
            return kept
        since = None if self._full else datetime.fromtimestamp(self._mark["at"], UTC) - _OVERLAP
        fetched = self._api.fetch(self._ctx, since, self._mark.get("keys", ""))
        self.kept.put(fetched)
        return fetched

    def stored(self, facts: Facts) -> None:
        """Its rows are committed: the next fetch goes on from here. Called once more after a crash, it does no harm."""
        if self._ctx.dry_run:
            return
        if facts.whole:
            last = facts if facts.full else None
            self._ctx.cursor.set(_MARK, {
                "source": self._source, "at": facts.at, "full_at": last.at if last else self._mark["full_at"],
                "keys": last.keys if last else self._mark["keys"],
            })  # fmt: skip
        self.kept.drop()

    def _refresh_due(self) -> bool:
        age = self._ctx.now().timestamp() - float(self._mark.get("full_at", 0))
        return not 0 <= age < self._settings.full_refresh_every


def _v1(ctx: Context, since: datetime | None, keys: str) -> Fetched:
    """The whole catalogue in one body."""
    settings: BrandSyncSettings = ctx.settings
    at = ctx.now().timestamp()
    body = _get(ctx, BUCKET_V1, urls.endpoint(settings.base_url_v1, "catalog"), settings.timeout, settings.max_body)
    return Fetched(wire.decode_v1(body), len(body), Facts(at=at))


class _Asker:
    """Pages one by one, all under one deadline, and each pass under one cap; first those that came before a wait."""

    def __init__(self, ctx: Context, since: str, log: PageLog) -> None:
        self._ctx, self._log = ctx, log
        self._settings: BrandSyncSettings = ctx.settings
        self._since = {"ModifiedDate": since} if since else {}
        self._deadline = time.monotonic() + self._settings.timeout
        self._before = log.pages[::-1]
        self._pass = self.size = self.fetched = 0

    def __call__(self, index: int, size: int) -> wire.Page:
        """Raises: what `Http.get` does, Unreachable after the deadline, BadReply for a body of another shape."""
        if index == 0:
            self._pass = 0
        if self._before and self._before[-1][0] == index:
            body: wire.Body = self._before.pop()[1]
            page = wire.decode_page(body)
        else:
            if self._before:  # another page than the one asked for then
                self._before.clear()
                self._log.drop()
            body, page = self._fetch(index, size)
            self._log.add(index, body)
        self._pass += len(body)
        self._ctx.progress(min(page.count, (index + 1) * size), page.count, "brands fetched")
        return page

    def _fetch(self, index: int, size: int) -> tuple[wire.Body, wire.Page]:
        left, room = self._deadline - time.monotonic(), self._settings.max_body - self._pass
        if left <= 0:
            raise errors.Unreachable(f"catalogue: not all pages came within {self._settings.timeout:g} s")
        if room <= 0:
            raise errors.BadReply(f"catalogue: its pages are larger than {self._settings.max_body} bytes together")
        query = {"PageSize": str(size), "PageIndex": str(index), **self._since}
        url = urls.endpoint(self._settings.base_url_v2, "catalog")
        body = self._patiently(url, max(0.01, round(left, 2)), room, query)
        self.size += len(body)
        self.fetched += 1
        return body, wire.decode_page(body)

    def _patiently(self, url: str, left: float, room: int, query: dict[str, str]) -> wire.Body:
        """A 429 with a short wait is one more wait between two pages: the next try begins when it is over."""
        for _ in range(_TRIES - 1):
            try:
                return _get(self._ctx, BUCKET_V2, url, left, room, query)
            except errors.RateLimited as error:
                left_s = (error.until - self._ctx.now()).total_seconds() if error.until else _SHORT_S + 1
                if left_s > _SHORT_S or self._ctx.wait(max(0.001, left_s)):
                    raise
        return _get(self._ctx, BUCKET_V2, url, left, room, query)


def _v2(ctx: Context, since: datetime | None, keys: str) -> Fetched:
    """All pages of the catalogue, or of what was modified after a day."""
    settings: BrandSyncSettings = ctx.settings
    day = since.date().isoformat() if since else ""
    log = PageLog(ctx, _identity(settings), day, PASSES * settings.max_body)
    ask, at = _Asker(ctx, day, log), log.asked.began
    pages = Pages(ask, settings.page_size)
    try:
        pages.read(lambda found: since is not None or found == keys)
    except (errors.RateLimited, errors.Unreachable):
        raise  # the next run goes on with the page that is missing
    except Exception:
        log.drop()
        raise
    finally:
        ctx.count(pages=ask.fetched)
    log.drop()
    problem = "" if pages.whole else (
        f"the vendor names {pages.count} brands, {pages.total} came in {pages.passes} passes over its pages; they are "
        "stored, and nothing counts as vanished"
    )  # fmt: skip
    facts = Facts(at=at, full=since is None, whole=pages.whole, keys=fingerprint(pages.brands), problem=problem)
    return Fetched([raw for raws in pages.brands.values() for raw in raws], ask.size, facts)


class Api(NamedTuple):
    """A catalogue API: its limit, whether it always gives everything, and how to fetch.

    `fetch(ctx, modified after, fingerprint of the brands of the last full one)`.
    """

    bucket: str
    whole: bool
    fetch: Callable[[Context, datetime | None, str], Fetched]


CATALOGUES = {"v1": Api(BUCKET_V1, True, _v1), "v2": Api(BUCKET_V2, False, _v2)}
"""By the setting `catalog_api`."""


def categories(ctx: Context) -> bytearray:
    """The vendor's list of categories. Raises: what `Http.get` does."""
    settings: BrandSyncSettings = ctx.settings
    url = urls.endpoint(settings.base_url_v2, "categories")
    return _get(ctx, BUCKET_CATEGORIES, url, settings.timeout, settings.max_body)


def _get(
    ctx: Context, bucket: str, url: str, timeout: float, max_bytes: int, query: dict[str, str] | None = None
) -> bytearray:
    settings: BrandSyncSettings = ctx.settings
    auth = settings.client_id, settings.client_secret
    return ctx.http(bucket, auth=auth, timeout=timeout, max_bytes=max_bytes).get(url, params=query).body


def _identity(settings: BrandSyncSettings) -> str:
    """Tells catalogues of one configuration from those of another; no secret can be read from it."""
    base = settings.base_url_v1 if settings.catalog_api == "v1" else settings.base_url_v2
    try:
        client = settings.client_id.reveal()
    except ValueError:  # `require_credentials` says so
        client = ""
    parts = [settings.catalog_api, base, client, settings.database]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def require_credentials(settings: BrandSyncSettings) -> None:
    """Prove that both secrets can be read now and are not empty.

    Raises: ConfigError naming those that cannot.
    """
    problems = []
    secrets: dict[str, Secret] = {"client_id": settings.client_id, "client_secret": settings.client_secret}
    for name, secret in secrets.items():
        try:
            if not secret.reveal():
                problems.append(f"{name}: is empty")
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise errors.ConfigError(problems)
