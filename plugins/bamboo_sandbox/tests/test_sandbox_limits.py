"""Limits: the window that the first call opens, the exact waits, the forms of a 429."""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from stellerd_bamboo_sandbox import Sandbox
from stellerd_bamboo_sandbox.limits import Window, refusal


def wait_seconds(text):
    """The number of a refusal's sentence, wherever it stands; None when there is none."""
    match = re.search(r"wait for (\d+) seconds", text)
    return match and int(match[1])


FIVE_PM = 1_754_067_600.0  # 2025-08-01 17:00:00 UTC


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock(FIVE_PM + 3.9)


@pytest.fixture
def sandbox(clock):
    with Sandbox(clock=clock, products=20) as running:
        yield running


def catalog(sandbox):
    return requests.get(sandbox.v1_url + "/catalog", auth=sandbox.auth, timeout=10)


def test_the_measured_day_of_the_live_platform(sandbox, clock):
    assert catalog(sandbox).status_code == 200  # 17:00:03
    clock.now = FIVE_PM + 12.4
    assert catalog(sandbox).status_code == 200  # 17:00:12
    clock.now = FIVE_PM + 198.2  # 17:03:18
    answer = catalog(sandbox)
    assert answer.status_code == 429
    assert answer.text == "Too many requests. Please wait for 3406 seconds (≈57 minutes) for the next request"
    assert "Retry-After" not in answer.headers


def test_the_window_slides_by_its_oldest_call(sandbox, clock):
    start = clock.now
    catalog(sandbox)
    clock.now = start + 100
    catalog(sandbox)
    clock.now = start + 3599.5
    assert wait_seconds(catalog(sandbox).text) == 1
    clock.now = start + 3600
    assert catalog(sandbox).status_code == 200
    assert wait_seconds(catalog(sandbox).text) == 100  # the second call leaves 100 s later


def test_refused_calls_do_not_lengthen_the_wait(sandbox, clock):
    start = clock.now
    for _ in range(12):
        catalog(sandbox)
    clock.now = start + 3600
    assert [catalog(sandbox).status_code for _ in range(3)] == [200, 200, 429]


def test_wrong_credentials_spend_nothing(sandbox):
    for _ in range(5):
        requests.get(sandbox.v1_url + "/catalog", auth=("sandbox", "wrong"), timeout=10)
    assert [catalog(sandbox).status_code for _ in range(3)] == [200, 200, 429]


def test_a_bad_parameter_spends_a_call(sandbox):
    url = sandbox.v2_url + "/catalog?PageSize=x"
    assert [requests.get(url, auth=sandbox.auth, timeout=10).status_code for _ in range(2)] == [400, 429]


@pytest.mark.parametrize("path", ["/catalog", "/categories"])
def test_v2_allows_one_call_a_second_each(sandbox, clock, path):
    def status():
        return requests.get(sandbox.v2_url + path, auth=sandbox.auth, timeout=10).status_code

    assert [status(), status()] == [200, 429]
    clock.now += 0.99
    assert status() == 429
    clock.now += 0.01
    assert status() == 200


def test_endpoints_have_windows_of_their_own(sandbox):
    urls = (sandbox.v1_url + "/catalog", sandbox.v2_url + "/catalog", sandbox.v2_url + "/categories")
    assert [requests.get(url, auth=sandbox.auth, timeout=10).status_code for url in urls] == [200, 200, 200]


def test_advance_moves_the_sandboxes_time():
    with Sandbox(products=20) as sandbox:
        assert [catalog(sandbox).status_code for _ in range(3)] == [200, 200, 429]
        sandbox.advance(3600)
        assert catalog(sandbox).status_code == 200


def test_limits_can_be_off():
    with Sandbox(products=20, limits=False) as sandbox:
        assert {catalog(sandbox).status_code for _ in range(8)} == {200}


def test_limits_are_settings():
    with Sandbox(products=20, catalog_calls=3, catalog_window="10s", clock=Clock(1000.0)) as sandbox:
        answers = [catalog(sandbox) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert wait_seconds(answers[-1].text) == 10


LONG = "Too many requests. Please wait for 3600 seconds (≈60 minutes) for the next request"


@pytest.mark.parametrize(
    ("form", "kind", "expected"),
    [
        ("plain_long", "text/plain", LONG),
        ("plain_short", "text/plain", "Please wait for 3600 seconds."),
        ("json_string", "application/json", json.dumps(LONG, ensure_ascii=False)),
        ("message", "application/json", json.dumps({"message": LONG}, ensure_ascii=False)),
        ("error", "application/json", json.dumps({"error": LONG}, ensure_ascii=False)),
        ("detail", "application/json", json.dumps({"detail": LONG}, ensure_ascii=False)),
        ("unreadable", "text/plain", "Too many requests."),
    ],
)
def test_every_form_of_a_refusal(sandbox, form, kind, expected):
    catalog(sandbox), catalog(sandbox)
    sandbox.refuse_as(form)
    answer = catalog(sandbox)
    assert answer.status_code == 429
    assert answer.content.decode() == expected
    assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert wait_seconds(answer.content.decode()) == (None if form == "unreadable" else 3600)


def test_retry_after_in_seconds_and_as_a_date(sandbox, clock):
    catalog(sandbox), catalog(sandbox)
    sandbox.refuse_as("unreadable", "seconds")
    assert catalog(sandbox).headers["Retry-After"] == "3600"
    sandbox.refuse_as("unreadable", "date")
    header = catalog(sandbox).headers["Retry-After"]
    assert header.endswith(" GMT")
    assert parsedate_to_datetime(header).timestamp() == int(clock.now) + 3600


def test_one_minute_is_the_least_that_is_named():
    assert "(≈1 minutes)" in refusal("plain_long", 1)[1].decode()


@given(st.integers(1, 5), st.lists(st.integers(0, 4_000), min_size=1, max_size=60))
def test_no_window_ever_holds_more_than_its_calls(calls, steps):
    window, now, granted = Window(calls, 3600.0), 0, []
    for step in steps:
        now += step
        wait = window.take(float(now))
        if wait == 0:
            granted.append(now)
            continue
        recent = [at for at in granted if at > now - 3600]
        assert len(recent) == calls, "refused without need"
        assert wait == recent[0] + 3600 - now
    assert all(sum(at <= other < at + 3600 for other in granted) <= calls for at in granted)


@given(st.floats(0, 3599.999))
def test_waiting_as_told_is_always_enough(elapsed):
    window = Window(1, 3600.0)
    assert window.take(5.0) == 0
    wait = window.take(5.0 + elapsed)
    assert window.take(5.0 + elapsed + wait) == 0
