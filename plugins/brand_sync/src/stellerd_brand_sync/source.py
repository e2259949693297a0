"""Fetching from the vendor: one function for each catalogue API, all with the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from stellerd import Context, Secret, errors
from stellerd_brand_sync import urls, wire
from stellerd_brand_sync.settings import BrandSyncSettings

BUCKET_V1, BUCKET_CATEGORIES, BUCKET_V2 = "bamboo_catalog", "bamboo_categories", "bamboo_catalog_v2"


class Fetched(NamedTuple):
    """Brands, undecoded, and how many bytes they came in."""

    brands: list[msgspec.Raw]
    size: int


def catalogue_v1(ctx: Context) -> Fetched:
    """The whole catalogue in one body.

    Raises: what `Http.get` does; BadReply for a body of another shape.
    """
    settings: BrandSyncSettings = ctx.settings
    body = _get(ctx, BUCKET_V1, urls.endpoint(settings.base_url_v1, "catalog"))
    return Fetched(wire.decode_v1(body), len(body))


class Api(NamedTuple):
    """A catalogue API: the limit that a run cannot do without, and how to fetch."""

    bucket: str
    fetch: Callable[[Context], Fetched]


CATALOGUES = {"v1": Api(BUCKET_V1, catalogue_v1)}
"""By the setting `catalog_api`; a paged v2 is one more entry."""


def categories(ctx: Context) -> bytes:
    """The vendor's list of categories. Raises: what `Http.get` does."""
    settings: BrandSyncSettings = ctx.settings
    return _get(ctx, BUCKET_CATEGORIES, urls.endpoint(settings.base_url_v2, "categories"))


def _get(ctx: Context, bucket: str, url: str) -> bytes:
    settings: BrandSyncSettings = ctx.settings
    client = ctx.http(
        bucket,
        auth=(settings.client_id, settings.client_secret),
        timeout=settings.timeout,
        max_bytes=settings.max_body,
    )
    return client.get(url).body


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
