"""The sandbox as a process of its own and as a job."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib.metadata import entry_points

import pytest
import requests
from stellerd_bamboo_sandbox import Sandbox, SandboxSettings
from stellerd_bamboo_sandbox.service import BambooSandbox, stellerd_job

from stellerd import errors
from stellerd.testing import Harness


@contextmanager
def program(*arguments):
    command = [sys.executable, "-m", "stellerd_bamboo_sandbox", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_says_where_it_is_and_serves():
    with program("--port", "0", "--set", "products=300", "--set", "limits=false") as process:
        url = process.stdout.readline().strip()
        answer = requests.get(f"{url}/api/integration/v1.0/catalog", auth=("sandbox", "sandbox-secret"), timeout=10)
        assert sum(len(brand["products"]) for brand in answer.json()["brands"]) == 300


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_with_exit_0(number):
    with program("--port", "0") as process:
        url = process.stdout.readline().strip()
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))):  # an idle client holds nothing up
            start = time.monotonic()
            process.send_signal(number)
            assert process.wait(5) == 0
        assert time.monotonic() - start < 1
        assert process.stderr.read() == ""


def test_an_idle_sandbox_sleeps():
    with program("--port", "0", "--set", "products=20") as process:
        process.stdout.readline()

        def switches():
            total = 0
            for task in os.listdir(f"/proc/{process.pid}/task"):
                with open(f"/proc/{process.pid}/task/{task}/status") as status:
                    rows = dict(line.split(":\t", 1) for line in status)
                total += int(rows["voluntary_ctxt_switches"])
            return total

        def is_quiet():
            before = switches()
            time.sleep(1)  # the measured time itself
            return switches() == before

        # starting up wakes it too, so one of a few seconds; a tick of a second or less would be in each of them
        assert any(is_quiet() for _ in range(5))


def test_a_taken_port_is_said_in_plain_words():
    with Sandbox(products=20) as sandbox, program("--port", str(sandbox.port)) as process:
        assert process.wait(10) == 1
        reason = "is in use by another process; end that one or set another `port`"
        assert process.stderr.read() == f"bamboo_sandbox: 127.0.0.1:{sandbox.port} {reason}\n"


def test_every_wrong_setting_is_said_with_exit_78():
    with program("--set", "products=none", "--set", "colour=red") as process:
        assert process.wait(10) == 78
        text = process.stderr.read()
    assert "products: " in text
    assert "colour: " in text
    assert "Traceback" not in text


def test_a_secret_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("SANDBOX_SECRET", "hush-hush")
    with program("--port", "0", "--set", 'client_secret={env="SANDBOX_SECRET"}') as process:
        url = process.stdout.readline().strip() + "/api/integration/v2.0/categories"
        assert requests.get(url, auth=("sandbox", "hush-hush"), timeout=10).status_code == 200


def test_a_secret_that_is_missing_is_said_at_start():
    with program("--port", "0", "--set", 'client_secret={env="NO_SUCH_SECRET"}') as process:
        assert process.wait(10) == 78
        assert (
            process.stderr.read() == "bamboo_sandbox: client_secret: environment variable NO_SUCH_SECRET is not set\n"
        )


def test_faults_can_be_set_on_the_command_line():
    with program("--port", "0", "--set", 'faults=[{kind="forbidden", endpoint="categories"}]') as process:
        url = process.stdout.readline().strip()
        answer = requests.get(f"{url}/api/integration/v2.0/categories", auth=("sandbox", "sandbox-secret"), timeout=10)
        assert answer.status_code == 403


def test_a_sandbox_starts_on_the_port_of_one_that_has_just_ended():
    with Sandbox(products=20) as first:
        port = first.port
        requests.get(first.v2_url + "/categories", auth=first.auth, timeout=5)
    with Sandbox(SandboxSettings(products=20, port=port)) as second:
        assert second.port == port


def test_both_jobs_are_entry_points():
    found = {entry.name: entry.load() for entry in entry_points(group="stellerd")}
    assert found["bamboo_sandbox"].stellerd_job() is BambooSandbox is stellerd_job()
    assert found["demo_orders"].stellerd_job().__name__ == "DemoOrders"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def job(tmp_path):
    """A harness whose run ends when `stop` is set."""
    port = free_port()
    harness = Harness(BambooSandbox, settings={"port": port, "products": 30}, folder=tmp_path)
    harness.port, harness.stop = port, threading.Event()
    harness.runner.services.wait = harness.stop.wait
    return harness


def test_as_a_job_it_serves_until_it_is_asked_to_end(job):
    records = []
    thread = threading.Thread(target=lambda: records.append(job.run()))
    thread.start()
    answer = None
    deadline = time.monotonic() + 5
    while answer is None:
        assert time.monotonic() < deadline, "it never listened"
        try:
            url = f"http://127.0.0.1:{job.port}/api/integration/v1.0/catalog"
            answer = requests.get(url, auth=("sandbox", "sandbox-secret"), timeout=5)
        except requests.exceptions.ConnectionError:
            time.sleep(0.01)
    assert answer.status_code == 200
    job.stop.set()
    thread.join(5)
    [record] = records
    assert (record.state, record.counters) == ("ok", {"requests": 1})


def test_as_a_job_a_taken_port_is_a_failed_run_with_a_reason(job):
    with socket.create_server(("127.0.0.1", job.port)):
        record = job.run()
    assert record.state == "failed"
    assert f"127.0.0.1:{job.port} is in use" in record.reason
    assert "traceback" not in json.dumps(record.to_json()).lower()


def test_a_dry_run_ends_by_itself(job):
    assert job.run(dry_run=True).state == "ok"


def test_check_is_content_with_a_free_port_or_a_sandbox_there(job):
    job.check()
    with Sandbox(SandboxSettings(port=job.port, products=20)):
        job.check()


def test_check_objects_to_a_stranger_on_the_port(job):
    with socket.create_server(("127.0.0.1", job.port)) as stranger:
        threading.Thread(target=lambda: stranger.accept()[0].close()).start()
        with pytest.raises(errors.JobFailed, match="in use"):
            job.check()
