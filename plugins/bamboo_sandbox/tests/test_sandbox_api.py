"""The API over real HTTP: routes, credentials, paging, filters, errors."""

from __future__ import annotations

import json
from base64 import b64encode
from http.client import HTTPConnection

import pytest
import requests
from stellerd_bamboo_sandbox import Sandbox, SandboxSettings
from stellerd_bamboo_sandbox.words import CATEGORIES


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(products=1_200, brands=130, limits=False, drift=False) as running:
        yield running


def get(sandbox, path, auth=True, **params):
    credentials = sandbox.auth if auth is True else auth
    return requests.get(sandbox.base_url + path, auth=credentials or None, params=params, timeout=10)


def page(sandbox, **params):
    answer = get(sandbox, "/api/integration/v2.0/catalog", **params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_v1_is_the_whole_catalogue_in_one_body(sandbox):
    answer = get(sandbox, "/api/integration/v1.0/catalog")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    body = answer.json()
    assert list(body) == ["brands"]
    assert sum(len(brand["products"]) for brand in body["brands"]) == 1_200


def test_default_sandbox_serves_8026():
    with Sandbox() as sandbox:
        body = get(sandbox, "/api/integration/v1.0/catalog").json()
    assert sum(len(brand["products"]) for brand in body["brands"]) == 8_026


def test_v1_takes_no_parameters(sandbox):
    assert len(get(sandbox, "/api/integration/v1.0/catalog", PageSize=1).json()["brands"]) == 130


def test_categories_are_the_27_known(sandbox):
    answer = get(sandbox, "/api/integration/v2.0/categories")
    assert [(row["id"], row["name"]) for row in answer.json()] == list(CATEGORIES)
    assert len(CATEGORIES) == 27
    assert answer.json()[0] == {"id": 1, "name": "Entertainment", "description": ""}
    assert answer.headers["Cache-Control"] == "public"


def test_first_page_by_default(sandbox):
    body = page(sandbox)
    assert list(body) == ["pageIndex", "pageSize", "count", "items"]
    assert (body["pageIndex"], body["pageSize"], body["count"], len(body["items"])) == (0, 100, 130, 100)


def test_page_size_is_clamped_to_100_and_the_echo_says_so(sandbox):
    body = page(sandbox, PageSize=500)
    assert (body["pageSize"], len(body["items"])) == (100, 100)


def test_paging_by_the_echo_gives_every_brand_once(sandbox):
    found, index = [], 0
    while items := page(sandbox, PageIndex=index, PageSize=40)["items"]:
        found += [brand["internalId"] for brand in items]
        index += 1
    assert index == 4
    assert found == [brand["internalId"] for brand in get(sandbox, "/api/integration/v1.0/catalog").json()["brands"]]


def test_a_page_behind_the_last_is_empty(sandbox):
    body = page(sandbox, PageIndex=9)
    assert (body["items"], body["count"], body["pageIndex"]) == ([], 130, 9)


def test_parameter_names_are_read_in_any_case(sandbox):
    assert page(sandbox, pagesize=7)["pageSize"] == 7


def test_filter_by_brand(sandbox):
    wanted = sandbox.snapshot()[5]
    body = page(sandbox, BrandId=wanted["internalId"])
    assert body["count"] == 1
    assert body["items"][0]["name"] == wanted["name"]


def test_filter_by_product_shows_its_brand_with_that_product_alone(sandbox):
    wanted = next(brand for brand in sandbox.snapshot() if len(brand["products"]) > 3)
    body = page(sandbox, ProductId=wanted["products"][2]["id"])
    assert [brand["internalId"] for brand in body["items"]] == [wanted["internalId"]]
    assert [product["id"] for product in body["items"][0]["products"]] == [wanted["products"][2]["id"]]


def test_filter_by_unknown_product_is_empty(sandbox):
    assert page(sandbox, ProductId=5)["items"] == []


@pytest.mark.parametrize(("name", "field"), [("CountryCode", "countryCode"), ("CurrencyCode", "currencyCode")])
def test_filter_by_code(sandbox, name, field):
    code = sandbox.snapshot()[0][field]
    expected = [brand["internalId"] for brand in sandbox.snapshot() if brand[field] == code]
    assert [brand["internalId"] for brand in page(sandbox, **{name: code.lower()})["items"]] == expected
    assert 0 < len(expected) < 130


def test_filter_by_part_of_a_name(sandbox):
    part = sandbox.snapshot()[3]["name"][2:8].upper()
    expected = [brand["name"] for brand in sandbox.snapshot() if part.casefold() in brand["name"].casefold()]
    assert [brand["name"] for brand in page(sandbox, Name=part)["items"]] == expected


def test_filters_narrow_together(sandbox):
    first = sandbox.snapshot()[0]
    other = next(brand for brand in sandbox.snapshot() if brand["countryCode"] != first["countryCode"])
    assert page(sandbox, BrandId=first["internalId"], CountryCode=other["countryCode"])["count"] == 0


def test_filter_by_date_keeps_what_has_something_newer(sandbox):
    def newest(brand):
        return max(row["modifiedDate"] for row in [brand, *brand["products"]])

    expected = [brand["internalId"] for brand in sandbox.snapshot() if newest(brand) > "2025-03-01"]
    body = page(sandbox, ModifiedDate="2025-03-01")
    assert 0 < body["count"] < 130
    assert [brand["internalId"] for brand in body["items"]] == expected[:100]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PageSize", "0"), ("PageSize", "ten"), ("PageSize", "99999999999"), ("PageIndex", "-1"), ("PageIndex", "1.5"),
        ("ProductId", "a17"), ("CountryCode", "DEU"), ("CurrencyCode", "€"), ("ModifiedDate", "21.08.2022"),
    ],
)  # fmt: skip
def test_unreadable_parameter_is_400_with_a_message(sandbox, name, value):
    answer = get(sandbox, "/api/integration/v2.0/catalog", **{name: value})
    assert answer.status_code == 400
    assert answer.json() == {"message": f"The value '{value}' is not valid for {name}."}


def test_empty_and_unknown_parameters_are_ignored(sandbox):
    assert page(sandbox, PageSize="", Colour="red", TargetCurrency="USD")["pageSize"] == 100


@pytest.mark.parametrize(
    "path",
    [
        "/", "/catalog", "/api/integration/v1.0", "/api/integration/v1.0/categories", "/api/integration/v3.0/catalog",
        "/api/integration/v1.0/api/integration/v1.0/catalog",
    ],
)  # fmt: skip
def test_unknown_path_is_404_in_json(sandbox, path):
    answer = get(sandbox, path)
    assert answer.status_code == 404
    assert "message" in answer.json()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_other_methods_are_405(sandbox, method):
    answer = requests.request(method, sandbox.v1_url + "/catalog", auth=sandbox.auth, data=b"x" * 10, timeout=10)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Basic", "Basic !!!", "Bearer abc", "Basic " + b64encode(b"sandbox").decode(),
        "Basic " + b64encode(b"sandbox:wrong").decode(), "Basic " + b64encode(b"other:sandbox-secret").decode(),
        "Basic " + b64encode(b"sandbox:sandbox-secret ").decode(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["v1.0/catalog", "v2.0/catalog", "v2.0/categories"])
def test_without_the_right_credentials_it_is_401(sandbox, path, header):
    headers = {} if header is None else {"Authorization": header}
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(f"{sandbox.base_url}/api/integration/{path}", headers=headers, timeout=10)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert "message" in answer.json()


def test_own_credentials_with_a_colon_and_letters_beyond_ascii():
    with Sandbox(client_id="kunde", client_secret="pä:ß", limits=False, products=10) as sandbox:
        encoded = b64encode("kunde:pä:ß".encode()).decode()
        url = sandbox.v2_url + "/categories"
        assert requests.get(url, headers={"Authorization": f"basic {encoded}"}, timeout=10).status_code == 200
        assert requests.get(url, auth=("sandbox", "sandbox-secret"), timeout=10).status_code == 401


def test_a_connection_serves_several_requests(sandbox):
    header = {"Authorization": "Basic " + b64encode(":".join(sandbox.auth).encode()).decode()}
    connection = HTTPConnection("127.0.0.1", sandbox.port, timeout=10)
    connection.connect()
    first = connection.sock
    for _ in range(3):
        connection.request("GET", "/api/integration/v2.0/categories", headers=header)
        assert len(json.loads(connection.getresponse().read())) == 27
    assert connection.sock is first
    connection.close()


def test_without_drift_bodies_are_identical_bytes(sandbox):
    one, two = (get(sandbox, "/api/integration/v1.0/catalog").content for _ in range(2))
    assert one == two


def test_with_drift_every_v1_call_is_another_edition():
    with Sandbox(products=500, limits=False) as sandbox:
        one, two, three = (get(sandbox, "/api/integration/v1.0/catalog").content for _ in range(3))
        assert len({one, two, three}) == 3
        assert [call.edition for call in sandbox.calls("catalog")] == [1, 2, 3]


def test_the_pages_of_one_pull_belong_to_one_edition():
    with Sandbox(products=500, brands=30, limits=False) as sandbox:
        for index in (0, 1, 2, 0, 1, 2):
            page(sandbox, PageIndex=index, PageSize=10)
        assert [call.edition for call in sandbox.calls("catalog_v2")] == [1, 1, 1, 2, 2, 2]


def test_a_refused_call_makes_no_new_edition():
    with Sandbox(products=50) as sandbox:
        codes = [get(sandbox, "/api/integration/v1.0/catalog").status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        assert sandbox.catalog.edition == 2


def test_settings_are_checked():
    with pytest.raises(ValueError, match="host"):
        SandboxSettings(host="0.0.0.0")
    with pytest.raises(ValueError, match="products"):
        SandboxSettings(products=1_000_001)
    with pytest.raises(ValueError, match="known are"):
        SandboxSettings(faults=[{"kind": "bad_rows", "rows": ["no_such_row"]}])


def test_every_setting_says_what_it_is_for():
    assert [name for name, field in SandboxSettings.model_fields.items() if not field.description] == []
