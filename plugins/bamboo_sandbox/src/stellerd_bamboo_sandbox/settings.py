"""Settings of the sandbox, for `[jobs.bamboo_sandbox.settings]` and for tests."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stellerd import Duration, Secret, Settings
from stellerd_bamboo_sandbox.catalog import Shape
from stellerd_bamboo_sandbox.faults import Fault

RefusalForm = Literal["plain_long", "plain_short", "json_string", "message", "error", "detail", "unreadable"]


class SandboxSettings(Settings):
    """The stand-in for the Bamboo API: where it listens, what it sells, what it allows, how it misbehaves."""

    host: str = Field("127.0.0.1", pattern=r"^(127\.\d+\.\d+\.\d+|::1|localhost)$", description="Loopback address.")
    port: int = Field(18080, ge=0, le=65535, description="TCP port; 0: any free one.")
    client_id: str = Field("sandbox", min_length=1, description="User name that the API accepts.")
    client_secret: Secret = Field(Secret("plain", "sandbox-secret"), description="Password that the API accepts.")
    call_log: str = Field(
        "", description='File that gets one JSON line for each request, from the working directory; "": none.'
    )

    seed: int = Field(1, ge=0, description="Another seed, another assortment.")
    products: int = Field(8_026, ge=1, le=1_000_000, description="Products in the catalogue.")
    brands: int = Field(0, ge=0, le=1_000_000, description="Brands; 0: one for every 16 products.")
    categories: Literal["mixed", "objects", "ids", "names", "missing"] = Field(
        "mixed", description="How brands name their categories."
    )
    odd_rows: float = Field(
        0.0, ge=0, le=1, description="Share of products in rare forms that are allowed: no price, count as text."
    )
    drift: bool = Field(True, description="Each catalogue differs a little from the one before; false: never.")
    price_drift: float = Field(0.01, ge=0, le=1, description="Share of prices that change each time.")
    product_drift: int = Field(
        4, ge=0, le=1_000_000, description="Products that vanish, and new ones that come, each time."
    )

    limits: bool = Field(True, description="false: no request is ever refused with 429.")
    catalog_calls: int = Field(2, ge=1, description="Calls of the v1 catalogue in its window.")
    catalog_window: Duration = Field(3600.0, gt=0, description="Window of the v1 catalogue.")
    catalog_v2_calls: int = Field(1, ge=1, description="Calls of the v2 catalogue in its window.")
    catalog_v2_window: Duration = Field(1.0, gt=0, description="Window of the v2 catalogue.")
    categories_calls: int = Field(1, ge=1, description="Calls of the categories in their window.")
    categories_window: Duration = Field(1.0, gt=0, description="Window of the categories.")
    refusal: RefusalForm = Field("plain_long", description="How the body of a 429 is written.")
    retry_after: Literal["none", "seconds", "date"] = Field("none", description="Retry-After header of a 429.")
    faults: list[Fault] = Field(default_factory=list, description="Misbehaviour, by endpoint and call number.")

    def shape(self) -> Shape:
        """The catalogue that these settings describe."""
        return Shape(
            products=self.products,
            brands=self.brands,
            seed=self.seed,
            price_drift=self.price_drift,
            product_drift=self.product_drift,
            odd_rows=self.odd_rows,
            categories=self.categories,
        )
