"""brand_sync: keeps brands, products and prices in step with the Bamboo catalogue."""

from __future__ import annotations

from stellerd import hookimpl
from stellerd_brand_sync.job import BrandSync

__all__ = ["BrandSync", "stellerd_job"]


@hookimpl
def stellerd_job() -> type[BrandSync]:
    """The job class of this plugin."""
    return BrandSync
