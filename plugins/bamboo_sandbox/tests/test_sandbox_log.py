"""The sandbox's own log is the judge of how many calls arrived."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import requests
from stellerd_bamboo_sandbox import Sandbox

from stellerd import errors


def get(sandbox, path="v1.0/catalog", auth=None, **options):
    url = f"{sandbox.base_url}/api/integration/{path}"
    return requests.get(url, auth=auth or sandbox.auth, timeout=10, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_arrival_is_one_line(tmp_path):
    log = tmp_path / "calls.jsonl"
    with Sandbox(products=20, call_log=str(log)) as sandbox:
        for _ in range(3):
            get(sandbox)
        get(sandbox, "v2.0/catalog?PageSize=5")
        get(sandbox, "v2.0/categories", auth=("x", "y"))
        get(sandbox, "nowhere")
    seen = [(row["endpoint"], row["number"], row["status"], row["outcome"], row["edition"]) for row in lines(log)]
    assert seen == [
        ("catalog", 1, 200, "ok", 1),
        ("catalog", 2, 200, "ok", 2),
        ("catalog", 3, 429, "limited", 0),
        ("catalog_v2", 1, 200, "ok", 3),
        ("categories", 1, 401, "unauthorized", 0),
        ("unknown", 1, 404, "unknown", 0),
    ]
    assert lines(log)[3]["query"] == "PageSize=5"
    assert lines(log)[2]["wait"] == 3600


def test_times_have_microseconds_and_are_those_of_arrival(tmp_path):
    log = tmp_path / "calls.jsonl"
    before = datetime.now(UTC)
    with Sandbox(products=20, call_log=str(log)) as sandbox:
        get(sandbox)
    [row] = lines(log)
    assert len(row["at"]) == len("2025-01-01T00:00:00.000000Z")
    assert before <= datetime.fromisoformat(row["at"]) <= datetime.now(UTC)


def test_whole_seconds_keep_their_zeros():
    with Sandbox(products=20, clock=lambda: 1_754_067_600.0) as sandbox:
        get(sandbox)
        assert '"at": "2025-08-01T17:00:00.000000Z"' in sandbox.calls()[0].line()


def test_the_line_is_there_before_the_answer_leaves(tmp_path):
    log = tmp_path / "calls.jsonl"
    with Sandbox(products=20, call_log=str(log)) as sandbox:
        sandbox.fail("silent", seconds="1m")
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.get(sandbox.v1_url + "/catalog", auth=sandbox.auth, timeout=0.3)
        assert [row["outcome"] for row in lines(log)] == ["silent"]


def test_credentials_are_in_no_log(tmp_path, capfd):
    log = tmp_path / "calls.jsonl"
    with Sandbox(products=20, call_log=str(log), client_secret="hush-hush") as sandbox:
        get(sandbox)
        get(sandbox, auth=("sandbox", "open-sesame"))
        assert "hush-hush" not in repr(sandbox.settings)
        assert "hush-hush" not in repr(sandbox.calls())
    out, err = capfd.readouterr()
    for text in (log.read_text(), out, err):
        assert "hush-hush" not in text
        assert "open-sesame" not in text


def test_a_second_sandbox_goes_on_in_the_same_file(tmp_path):
    log = tmp_path / "calls.jsonl"
    for _ in range(2):
        with Sandbox(products=20, call_log=str(log)) as sandbox:
            get(sandbox)
    assert [row["number"] for row in lines(log)] == [1, 1]


def test_a_log_that_cannot_be_written_is_said_at_start(tmp_path):
    with pytest.raises(errors.JobFailed, match=r"call_log .*No such file or directory"):
        Sandbox(call_log=str(tmp_path / "missing" / "calls.jsonl")).start()


def test_many_clients_at_once_get_what_the_limit_allows(tmp_path):
    log = tmp_path / "calls.jsonl"
    with Sandbox(products=50, call_log=str(log)) as sandbox:
        threads = [threading.Thread(target=get, args=(sandbox,)) for _ in range(20)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sandbox.requests == 20
    rows = lines(log)
    assert sorted(row["number"] for row in rows) == list(range(1, 21))
    assert sorted(row["status"] for row in rows) == [200] * 2 + [429] * 18
    assert {row["edition"] for row in rows if row["status"] == 200} == {1, 2}


def test_calls_are_kept_for_tests_by_endpoint():
    with Sandbox(products=20, limits=False) as sandbox:
        body = get(sandbox).content
        get(sandbox, "v2.0/categories")
        assert [call.endpoint for call in sandbox.calls()] == ["catalog", "categories"]
        [call] = sandbox.calls("catalog")
        deadline = time.monotonic() + 5
        while call.sent != len(body):  # the client may have it all before the sandbox has counted it
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert datetime.now(UTC) - call.at < timedelta(minutes=1)
