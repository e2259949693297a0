"""Base URLs in every form, and the outage that a doubled path once was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from stellerd_brand_sync.settings import BrandSyncSettings
from stellerd_brand_sync.urls import endpoint, normalised

V1 = "https://api.bamboocardportal.com/api/integration/v1.0"


@pytest.mark.parametrize(
    "text",
    [
        V1,
        V1 + "/",
        V1 + "///",
        "https://api.bamboocardportal.com",
        "https://api.bamboocardportal.com/",
        "api.bamboocardportal.com",
        "  https://API.bamboocardportal.com/api ",
        "https://api.bamboocardportal.com/api/integration/",
        "https://api.bamboocardportal.com//api//integration/v1.0",
        V1 + "/catalog",
        V1 + "/catalog/",
        V1 + "/api/integration/v1.0",
        V1 + "/api/integration/v1.0/api/integration/v1.0/",
        V1 + "/api/integration/v1.0/catalog",
    ],
)
def test_every_form_leads_to_the_same_place(text: str) -> None:
    assert endpoint(normalised(text, "v1.0"), "catalog") == V1 + "/catalog"


def test_the_outage_cannot_happen_again() -> None:
    base = normalised("https://api.bamboocardportal.com/api/integration/v1.0/", "v1.0")
    assert endpoint(base, "catalog") != V1 + "/api/integration/v1.0/catalog"
    assert endpoint(base, "catalog").count("/api/integration/") == 1


_hosts = st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{2,5}){1,2}(:[1-9][0-9]{0,3})?", fullmatch=True)
_slashes = st.text("/", max_size=3)


@given(
    host=_hosts,
    version=st.sampled_from(["v1.0", "v2.0"]),
    times=st.integers(0, 3),
    partly=st.sampled_from(["", "/api", "/api/integration"]),
    between=_slashes,
    end=_slashes,
    name=st.sampled_from(["", "/catalog", "/categories"]),
    scheme=st.sampled_from(["https://", ""]),
)
def test_any_mixture_is_the_one_canonical_form(
    host: str, version: str, times: int, partly: str, between: str, end: str, name: str, scheme: str
) -> None:
    api = f"/api/integration/{version}"
    path = "".join(between + api for _ in range(times)) + name if times else partly
    base = normalised(scheme + host + path + end, version)
    assert base == f"https://{host}{api}"
    assert normalised(base, version) == base


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:1", "[::1]:9", "127.9.8.7"])
def test_plain_http_is_for_this_machine(host: str) -> None:
    assert normalised(f"http://{host}", "v2.0") == f"http://{host}/api/integration/v2.0"


def test_a_gateway_in_front_keeps_its_path() -> None:
    assert normalised("https://gate.example/bamboo/", "v1.0") == "https://gate.example/bamboo"
    doubled = "https://gate.example/b/api/integration/v1.0/api/integration/v1.0"
    assert normalised(doubled, "v1.0") == "https://gate.example/b/api/integration/v1.0"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://api.bamboocardportal.com", "https"),
        ("http://127.0.0.1.evil.example", "https"),
        ("http://127.evil.example", "https"),
        ("ftp://localhost", "https"),
        ("", "not a URL"),
        ("https://", "not a URL"),
        ("https:///api", "not a URL"),
        ("https://ho st", "not a URL"),
        ("https://host:99999", "port"),
        ("https://host:http", "port"),
        ("https://[::1", "malformed"),
        ("https://host/?a=b", "no ?"),
        ("https://host?", "no ?"),
        ("https://host/api#top", "no #"),
        ("https://host/api/integration/v2.0", "leads to v2.0"),
        ("https://host/api/integration/v1", "leads to v1 "),
    ],
)
def test_what_cannot_be_used_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("?", r"\?")):
        normalised(text, "v1.0")


@pytest.mark.parametrize("text", ["https://me:hunter2@host/", "https://me:hunter2@host:port/", "https://hunter2@[/"])
def test_a_password_in_the_url_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        normalised(text, "v1.0")
    assert "hunter2" not in str(caught.value)


def _settings(**changes: object) -> BrandSyncSettings:
    return BrandSyncSettings.model_validate({"client_id": "a", "client_secret": "b", **changes})


def test_settings_hold_the_canonical_form() -> None:
    settings = _settings(base_url_v1="api.bamboocardportal.com/", base_url_v2="https://api.bamboocardportal.com")
    assert settings.base_url_v1 == V1
    assert settings.base_url_v2 == "https://api.bamboocardportal.com/api/integration/v2.0"


def test_a_catalogue_api_that_does_nothing_is_not_accepted() -> None:
    with pytest.raises(ValidationError, match="catalog_api"):
        _settings(catalog_api="v3")


@pytest.mark.parametrize(
    ("text", "size"), [("256MiB", 256 * 1024**2), (" 1 GiB ", 1024**3), ("512", 512), ("3KiB", 3072), (4096, 4096)]
)
def test_max_body_is_a_size(text: object, size: int) -> None:
    settings = _settings(max_body=text)
    assert settings.max_body == size
    assert _settings(max_body=settings.model_dump()["max_body"]).max_body == size


@pytest.mark.parametrize("text", ["", "many", "-1", "1MB", "0", 0])
def test_a_size_without_sense_is_refused(text: object) -> None:
    with pytest.raises(ValidationError, match="max_body"):
        _settings(max_body=text)


def test_every_setting_is_described() -> None:
    assert [name for name, field in BrandSyncSettings.model_fields.items() if not field.description] == []
