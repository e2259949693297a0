"""`[jobs.brand_sync.settings]`: every key, typed and described."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from stellerd import Duration, Secret, Settings
from stellerd_brand_sync import urls

_SIZES = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_SIZE = re.compile(r"\s*([0-9]{1,12})\s*(B|KiB|MiB|GiB)?\s*")


def _size(raw: Any) -> Any:
    if not isinstance(raw, str):
        return raw
    match = _SIZE.fullmatch(raw)
    if not match:
        raise ValueError('write bytes with a unit, as in "256MiB"')
    return int(match[1]) * _SIZES[match[2] or ""]


def _shown(size: int) -> str:
    unit = next(unit for unit in ("GiB", "MiB", "KiB", "B") if size % _SIZES[unit] == 0)
    return f"{size // _SIZES[unit]}{unit}"


Size = Annotated[
    int,
    BeforeValidator(_size),
    PlainSerializer(_shown, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^\s*[0-9]{1,12}\s*(B|KiB|MiB|GiB)?\s*$", "examples": ["256MiB"]}),
]
"""Bytes; in TOML a text with a unit."""


class BrandSyncSettings(Settings):
    """What brand_sync fetches, from where, and into which database."""

    base_url_v1: Annotated[str, AfterValidator(lambda text: urls.normalised(text, "v1.0"))] = Field(
        "https://api.bamboocardportal.com/api/integration/v1.0",
        description="Base of API v1 (catalogue); host only, with or without the path and a slash at its end.",
    )
    base_url_v2: Annotated[str, AfterValidator(lambda text: urls.normalised(text, "v2.0"))] = Field(
        "https://api.bamboocardportal.com/api/integration/v2.0",
        description="Base of API v2 (categories, paged catalogue); the same forms.",
    )
    client_id: Secret = Field(description="User name of the API's Basic authentication.")
    client_secret: Secret = Field(description="Its password.")
    database: str = Field("steller", description="Which [databases.NAME] to write to.")
    catalog_api: Literal["v1", "v2"] = Field(
        "v1", description="Which catalogue to fetch: v1 comes in one body, v2 in pages."
    )
    page_size: int = Field(
        100, description="v2: brands asked for at once; the vendor may give fewer and says so.", ge=1, le=10_000
    )
    full_refresh_every: Duration = Field(
        86_400.0,
        description="v2: how often the whole catalogue is fetched; only then is it seen what vanished. In between only "
        "brands modified since the last fetch are asked for.",
        ge=0,
    )
    full_compare_every: Duration = Field(
        86_400.0,
        description="How often brands that look as they did are compared with the database too: rows that somebody "
        "else edited come back then. In between only brands whose JSON changed are looked at.",
        ge=0,
    )
    full_compare: bool = Field(
        False, description="true: compare everything in every run; with --set full_compare=true in one run."
    )
    on_missing: Literal["keep", "out-of-stock"] = Field(
        "keep",
        description="What becomes of products that the catalogue no longer has. keep: their rows stay as they are; "
        'out-of-stock: their "Count" becomes 0 until they come again. No row is ever deleted.',
    )
    create_tables: bool = Field(
        False,
        description="true: stellerd owns the tables; it creates what is missing, commission types 1 and 2 and system "
        "user 1. false: the platform owns them, nothing is altered.",
    )
    timeout: Duration = Field(
        600.0,
        description="Longest fetch, all pages of the catalogue together; the live one took minutes to come.",
        gt=0,
        le=86_400,
    )
    max_body: Size = Field(
        256 * 1024**2, description="Largest answer, decompressed; all pages of the catalogue together.", gt=0
    )
    keep_payload: bool = Field(
        True,
        description="A catalogue that was fetched and could not be stored is kept in the job's folder (see [state] "
        "folder), and the next run needs no call.",
    )
    payload_fresh: Duration = Field(3600.0, description="A kept catalogue older than this is not used.", ge=0)
    min_products: int = Field(1, description="A catalogue with fewer usable products is refused.", ge=0)
    max_shrink: float = Field(
        0.3,
        description="Largest share of the last stored catalogue that may be gone at once; 1 accepts any loss.",
        ge=0,
        le=1,
    )
