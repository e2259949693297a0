"""Every fault as a client sees it, over real sockets."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from base64 import b64encode
from contextlib import suppress

import pytest
import requests
from stellerd_bamboo_sandbox import Fault, Sandbox
from stellerd_bamboo_sandbox.badrows import BRANDS, FIRST_ID, KINDS, NO_OBJECTS, PRODUCTS, TWINS
from stellerd_bamboo_sandbox.faults import Faults


@pytest.fixture
def sandbox():
    with Sandbox(products=200, brands=30, limits=False, drift=False) as running:
        yield running


def get(sandbox, path="v1.0/catalog", **options):
    options = {"timeout": 10, "auth": sandbox.auth, "allow_redirects": False, **options}
    return requests.get(f"{sandbox.base_url}/api/integration/{path}", **options)


def raw(sandbox, path="v1.0/catalog", seconds=10.0):
    """A connection on which the request was sent; nothing is read yet."""
    connection = socket.create_connection(("127.0.0.1", sandbox.port), timeout=seconds)
    token = b64encode(":".join(sandbox.auth).encode()).decode()
    lines = [f"GET /api/integration/{path} HTTP/1.1", "Host: x", f"Authorization: Basic {token}", "", ""]
    connection.sendall("\r\n".join(lines).encode())
    return connection


def drain(connection, received):
    while data := connection.recv(65536):
        received += data


def whole_length(sandbox):
    return sandbox.catalog.whole().length


def test_early_429_names_its_wait(sandbox):
    sandbox.fail("early_429", wait=42)
    answer = get(sandbox)
    assert answer.status_code == 429
    assert "wait for 42 seconds" in answer.text


def test_early_429_spends_no_slot():
    with Sandbox(products=20) as sandbox:
        sandbox.fail("early_429", calls=[1])
        assert [get(sandbox).status_code for _ in range(4)] == [429, 200, 200, 429]


def test_server_error_is_json(sandbox):
    sandbox.fail("server_error")
    answer = get(sandbox)
    assert (answer.status_code, list(answer.json())) == (500, ["message"])


def test_server_error_spends_a_slot():
    with Sandbox(products=20) as sandbox:
        sandbox.fail("server_error", calls=[1])
        assert [get(sandbox).status_code for _ in range(3)] == [500, 200, 429]


def test_server_error_can_have_another_status(sandbox):
    sandbox.fail("server_error", status=503)
    assert get(sandbox).status_code == 503


def test_bad_gateway_is_html(sandbox):
    sandbox.fail("bad_gateway")
    answer = get(sandbox)
    assert answer.status_code == 502
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "<h1>502 Bad Gateway</h1>" in answer.text


def test_forbidden_has_only_error(sandbox):
    sandbox.fail("forbidden")
    answer = get(sandbox)
    assert (answer.status_code, list(answer.json())) == (403, ["error"])


def test_redirect_leads_to_another_host_that_nobody_need_call(sandbox):
    with Sandbox(products=20, host="127.0.0.2") as elsewhere:
        sandbox.fail("redirect", location=elsewhere.v1_url + "/catalog")
        answer = get(sandbox)
        assert (answer.status_code, answer.headers["Location"]) == (302, elsewhere.v1_url + "/catalog")
        assert elsewhere.calls() == []
        assert get(sandbox, allow_redirects=True).status_code == 401, "a client that follows is seen there"
        assert len(elsewhere.calls()) == 1


def test_redirect_by_default_leads_nowhere(sandbox):
    sandbox.fail("redirect", status=308)
    answer = get(sandbox)
    assert answer.status_code == 308
    assert "elsewhere.invalid" in answer.headers["Location"]


@pytest.mark.parametrize("kind", ["not_json", "wrong_shape", "empty"])
def test_a_200_that_is_no_catalogue(sandbox, kind):
    sandbox.fail(kind)
    answer = get(sandbox)
    assert answer.status_code == 200
    if kind == "wrong_shape":
        assert "brands" not in answer.json()
    else:
        with pytest.raises(ValueError):
            answer.json()


def test_wrong_types_are_json_that_no_catalogue_has(sandbox):
    sandbox.fail("wrong_types")
    answer = get(sandbox).json()
    assert not isinstance(answer["brands"], list)
    assert not isinstance(answer["items"], list)


def test_truncated_json_is_a_whole_http_answer(sandbox):
    sandbox.fail("truncated")
    answer = get(sandbox)
    assert len(answer.content) == int(answer.headers["Content-Length"]) == whole_length(sandbox) // 2
    with pytest.raises(ValueError):
        answer.json()


def test_cut_ends_before_the_announced_length(sandbox):
    sandbox.fail("cut", at=0.25)
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        get(sandbox)
    assert sandbox.calls()[0].sent == whole_length(sandbox) // 4


def test_reset_is_a_reset(sandbox):
    sandbox.fail("reset")
    with raw(sandbox) as connection, pytest.raises(ConnectionResetError):
        drain(connection, bytearray())
    assert sandbox.calls()[0].sent == whole_length(sandbox) // 2


def test_stall_sends_half_and_then_nothing(sandbox):
    sandbox.fail("stall", seconds="1m")
    with raw(sandbox, seconds=0.4) as connection:
        received = bytearray()
        with pytest.raises(TimeoutError):
            drain(connection, received)
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    assert f"Content-Length: {whole_length(sandbox)}".encode() in head
    assert len(body) == whole_length(sandbox) // 2


def test_stall_ends_the_connection_in_the_end(sandbox):
    sandbox.fail("stall", seconds="100ms")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        get(sandbox)


def test_silent_sends_not_one_byte(sandbox):
    sandbox.fail("silent", seconds="1m")
    with raw(sandbox, seconds=0.3) as connection, pytest.raises(TimeoutError):
        connection.recv(1)


def test_slow_body_is_whole_but_slow(sandbox):
    expected = get(sandbox).content
    sandbox.fail("slow_body", seconds="400ms")
    start = time.monotonic()
    answer = get(sandbox)
    assert answer.content == expected
    assert 0.4 <= time.monotonic() - start < 3


def test_drip_comes_byte_by_byte(sandbox):
    sandbox.fail("drip", at=0, pause="5ms", endpoint="categories")
    answer = get(sandbox, "v2.0/categories", stream=True)
    sizes = [len(answer.raw.read1(1000)) for _ in range(20)]
    answer.close()
    assert max(sizes) <= 3, sizes


def test_gzip_bomb_is_valid_and_grows_a_thousandfold(sandbox):
    expected = get(sandbox, "v2.0/categories").json()
    sandbox.fail("gzip_bomb", size=64 * 1024 * 1024)
    answer = get(sandbox, "v2.0/categories", stream=True)
    assert answer.headers["Content-Encoding"] == "gzip"
    packed = answer.raw.read(decode_content=False)
    unpacked = gzip.decompress(packed)
    assert 63 << 20 < len(unpacked) <= 64 << 20
    assert len(unpacked) > 500 * len(packed)
    assert json.loads(unpacked) == expected


def test_gzip_bomb_may_be_left_early(sandbox):
    sandbox.fail("gzip_bomb", endpoint="catalog", size=1 << 34)
    answer = get(sandbox, stream=True)
    assert answer.raw.read(1 << 20, decode_content=True).strip() == b""
    answer.close()
    assert get(sandbox, "v2.0/categories").status_code == 200, "the sandbox goes on"


def test_pageindex_spelled_small(sandbox):
    sandbox.fail("pageindex", endpoint="catalog_v2")
    assert "pageindex" in get(sandbox, "v2.0/catalog").json()


@pytest.mark.parametrize("shift", [-1, 1])
def test_pages_shift_while_paging(sandbox, shift):
    sandbox.fail("page_shift", shift=shift)
    ids = []
    for index in range(4):
        page = get(sandbox, f"v2.0/catalog?PageSize=10&PageIndex={index}").json()
        ids += [brand["internalId"] for brand in page["items"]]
    every = [brand["internalId"] for brand in sandbox.snapshot()]
    if shift < 0:
        assert sorted(ids) == sorted([*every, every[9]]), "the last of the first page comes again"
    else:
        assert ids == every[:10] + every[11:], "the first of the second page is missed"


def test_bad_rows_come_on_top_of_the_good_ones(sandbox):
    good = {p["id"] for brand in get(sandbox).json()["brands"] for p in brand["products"]}
    sandbox.fail("bad_rows")
    brands = get(sandbox).json()["brands"]
    known = [brand for brand in brands[:30] if isinstance(brand, dict)]
    rows = [row for brand in known for row in brand["products"]]
    assert len(known) == 30
    assert good <= {row.get("id") for row in rows if isinstance(row, dict)}
    assert len(rows) - len(good) == len(PRODUCTS) + 1
    assert len(brands) - 30 == len(BRANDS) + 2


def test_every_bad_row_is_in_a_brand_of_its_own(sandbox):
    sandbox.fail("bad_rows")
    bad = [
        [row for row in brand["products"] if not isinstance(row, dict) or row.get("id") is None or _is_bad(row)]
        for brand in get(sandbox).json()["brands"][:30]
    ]
    assert max(map(len, bad)) == 1


def _is_bad(row):
    return not isinstance(row["id"], int) or row["id"] >= FIRST_ID


@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_can_be_chosen(sandbox, kind):
    sandbox.fail("bad_rows", rows=[kind])
    before = sandbox.snapshot()
    after = get(sandbox).json()["brands"]
    extra_brands = len(after) - len(before)
    extra_products = sum(len(brand["products"]) for brand in after[:30]) - 200
    twin = 2 if kind in TWINS else 1
    of_brand = kind in BRANDS or kind == "twin_brand" or NO_OBJECTS.get(kind, ("", b""))[0] == "brand"
    assert (extra_brands, extra_products) == ((twin, 0) if of_brand else (0, twin))


def test_bad_rows_say_what_their_names_say(sandbox):
    sandbox.fail("bad_rows", rows=["internal_id_missing", "face_inverted", "name_nul", "face_negative"])
    brands = get(sandbox).json()["brands"]
    rows = [row for brand in brands[:30] for row in brand["products"] if row["id"] >= FIRST_ID]
    assert "internalId" not in brands[-1]
    assert rows[0]["minFaceValue"] > rows[0]["maxFaceValue"]
    assert "\x00" in rows[1]["name"]
    assert rows[2]["minFaceValue"] < 0


def test_bad_rows_on_pages_are_counted(sandbox):
    sandbox.fail("bad_rows", rows=["internal_id_empty", "brand_number", "face_text"])
    pages = [get(sandbox, f"v2.0/catalog?PageSize=10&PageIndex={index}").json() for index in range(5)]
    assert [len(page["items"]) for page in pages] == [10, 10, 10, 2, 0]
    assert {page["count"] for page in pages} == {32}
    rows = [row for page in pages[:3] for brand in page["items"] for row in brand["products"]]
    assert sum(row["minFaceValue"] == "ten" for row in rows) == 1


def test_a_fault_hits_its_endpoint_and_calls_alone(sandbox):
    sandbox.fail("server_error", endpoint="catalog", calls=[2])
    assert get(sandbox, "v2.0/categories").status_code == 200
    assert get(sandbox, "v2.0/categories").status_code == 200
    assert [get(sandbox).status_code for _ in range(3)] == [200, 500, 200]
    assert [call.outcome for call in sandbox.calls("catalog")] == ["ok", "server_error", "ok"]


def test_faults_are_switched_off_at_run_time(sandbox):
    sandbox.fail("bad_gateway")
    assert get(sandbox).status_code == 502
    sandbox.faults.clear()
    assert get(sandbox).status_code == 200


def test_faults_come_from_the_settings_too():
    with Sandbox(products=20, limits=False, faults=[{"kind": "forbidden", "calls": [1]}]) as sandbox:
        assert [get(sandbox).status_code for _ in range(2)] == [403, 200]


def test_the_first_of_two_faults_wins():
    faults = Faults([Fault(kind="cut", calls=[2])])
    faults.add("stall")
    assert [faults.find("catalog", number).kind for number in (1, 2)] == ["stall", "cut"]


@pytest.mark.parametrize("kind", ["stall", "silent", "slow_body", "drip", "gzip_bomb"])
def test_stopping_ends_every_hanging_answer_at_once(kind):
    before = set(threading.enumerate())
    with Sandbox(products=200, limits=False) as sandbox:
        sandbox.fail(kind, seconds="10m", pause="10s", size=1 << 40)
        connection = raw(sandbox)
        _until(lambda: sandbox.calls())
        start = time.monotonic()
    assert time.monotonic() - start < 1
    _until(lambda: set(threading.enumerate()) <= before)
    with connection:
        with suppress(ConnectionResetError):
            drain(connection, bytearray())


def test_stopping_ends_idle_connections():
    before = set(threading.enumerate())
    with Sandbox(products=20, limits=False) as sandbox, requests.Session() as session:
        session.get(sandbox.v2_url + "/categories", auth=sandbox.auth, timeout=10)
        start = time.monotonic()
        sandbox.stop()
        assert time.monotonic() - start < 1
    _until(lambda: set(threading.enumerate()) <= before)


def test_a_stopped_sandbox_answers_no_more():
    with Sandbox(products=20) as sandbox:
        url = sandbox.v2_url + "/categories"
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(url, timeout=5)


def _until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
