"""What would leave for the vendor's real host: the one server that no test may call, so its answers are stand-ins."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import responses
from stellerd_brand_sync import BrandSync

from stellerd.testing import Harness

HOST = "https://api.bamboocardportal.com"
CATEGORIES = [{"id": 1, "name": "Entertainment", "description": ""}]
BRAND = {
    "internalId": "b-1", "name": "Brand", "countryCode": "AE", "currencyCode": "AED", "logoUrl": "",
    "modifiedDate": "2020-09-23T15:01:00.8409786", "categories": [{"id": 1, "name": "Entertainment"}],
    "products": [{
        "id": 7, "name": "Card", "minFaceValue": 100.0, "maxFaceValue": 100.0, "count": None,
        "price": {"min": 98.5, "max": 98.5, "currencyCode": "AED"}, "modifiedDate": "2020-09-23T15:01:00",
    }],
}  # fmt: skip


def harness(folder: Path, **settings: Any) -> Harness:
    """A sync with the defaults that production has, but for the database."""
    credentials = {"client_id": "an-id", "client_secret": "a-secret", "create_tables": True}
    return Harness(
        BrandSync, settings=credentials | settings, databases={"steller": f"sqlite:///{folder}/steller.db"},
        folder=folder,
    )  # fmt: skip


@pytest.mark.parametrize(
    "bases",
    [{}, {"base_url_v1": HOST, "base_url_v2": f"{HOST}/"}, {"base_url_v1": f"{HOST}/api/integration/v1.0/"}],
    ids=["defaults", "host only", "slash at the end"],
)
@responses.activate
def test_both_halves_go_to_the_documented_addresses_with_basic_auth(tmp_path: Path, bases: dict[str, str]) -> None:
    responses.get(f"{HOST}/api/integration/v2.0/categories", json=CATEGORIES)
    responses.get(f"{HOST}/api/integration/v1.0/catalog", json={"brands": [BRAND]})
    record = harness(tmp_path, **bases).run()
    assert (record.state, record.counters["products"]) == ("ok", 1)
    sent = [call.request.headers["Authorization"] for call in responses.calls]
    assert sent == ["Basic " + base64.b64encode(b"an-id:a-secret").decode()] * 2


@pytest.mark.parametrize(
    "answer",
    [
        {"body": "Too many requests. Please wait for 3406 seconds (≈57 minutes) for the next request"},
        {"json": "Please wait for 3406 seconds."},
        {"json": {"message": "Please wait for 3406 seconds."}},
        {"json": {"error": "Please wait for 3406 seconds."}},
        {"json": {"detail": "Please wait for 3406 seconds."}},
        {"body": "no", "headers": {"Retry-After": "3406"}},
    ],
    ids=["text", "string", "message", "error", "detail", "header"],
)
@responses.activate
def test_a_429_closes_the_limit_for_as_long_as_the_vendor_said(tmp_path: Path, answer: dict[str, Any]) -> None:
    responses.get(f"{HOST}/api/integration/v2.0/categories", json=CATEGORIES)
    responses.get(f"{HOST}/api/integration/v1.0/catalog", status=429, **answer)
    sync = harness(tmp_path)
    record = sync.run()
    assert record.state == "deferred"
    assert record.not_before is not None
    assert (record.not_before - sync.clock()).total_seconds() == pytest.approx(3406, abs=1)
    calls = len(responses.calls)
    sync.clock.advance(3400)
    assert sync.run().state == "deferred"
    assert len(responses.calls) == calls
