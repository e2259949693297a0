"""`stellerd spool flush`: everything arrives once, only what is confirmed leaves the spool, no password is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from stellerd_order_queue.flush import flush
from stellerd_order_queue.settings import OrderQueueSettings

from stellerd import errors

ID = "00000000-0000-0000-0000-000000000001"


def deliver(folder: Path, url: str, **settings: Any) -> dict[str, Any]:
    chosen = OrderQueueSettings.model_validate(settings)
    return flush(folder, [url], lambda model: chosen, lambda delivered, total: None)


def cli(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stellerd.cli", *arguments]
    return subprocess.run(command, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, check=False)


@pytest.fixture
def filled(orders: Any, job: Any, spool: Path) -> set[str]:
    """A spool with 700 orders in it; their request ids."""
    requests = set(orders.add(700))
    assert job(orders.url, f"spool://{spool}").run().counters["published"] == 700
    return requests


def test_all_of_it_arrives_as_it_was_written_and_nothing_stays(filled: set[str], spool: Path, consumer: Any) -> None:
    consumer.bind()
    bodies = {file.stem: json.loads(file.read_bytes()) for file in spool.iterdir()}
    assert deliver(spool, consumer.url) == {"delivered": 700, "left": 0, "problems": []}
    arrived = consumer.take(wait_for=700)
    assert {properties.message_id: body for properties, body in arrived} == bodies
    assert Counter(properties.correlation_id for properties, _ in arrived) == Counter(filled)
    assert list(spool.iterdir()) == []


def test_what_no_queue_takes_stays(filled: set[str], spool: Path, consumer: Any) -> None:
    answer = deliver(spool, consumer.url, window=100)
    assert (answer["delivered"], answer["left"]) == (0, 700)
    assert "nothing is bound" in answer["problems"][0]
    consumer.bind()
    assert deliver(spool, consumer.url)["delivered"] == 700
    assert consumer.requests(700) == Counter(filled)


def test_what_a_full_queue_refuses_stays(filled: set[str], spool: Path, consumer: Any) -> None:
    consumer.bind(**{"x-max-length": 300, "x-overflow": "reject-publish"})
    answer = deliver(spool, consumer.url)
    arrived = consumer.requests(answer["delivered"])
    assert answer["left"] == 700 - answer["delivered"] == len(list(spool.iterdir()))
    while deliver(spool, consumer.url)["left"]:
        arrived += consumer.requests()
    arrived += consumer.requests()
    assert set(arrived) == filled


def test_a_file_that_is_no_message_stays_and_is_named(spool: Path, consumer: Any) -> None:
    spool.mkdir()
    for name, text in (("a", "{"), ("b", "[]"), ("c", json.dumps({"messageId": "x", "correlationId": "y"}))):
        (spool / f"{name}.json").write_text(text)
    consumer.bind()
    answer = deliver(spool, consumer.url)
    assert (answer["delivered"], answer["left"]) == (0, 3)
    assert [problem.partition(":")[0] for problem in answer["problems"]] == ["a.json", "b.json", "c.json"]


def test_two_at_a_time_are_one_too_many(spool: Path, consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.mkdir()
    original = OrderQueueSettings.wishes

    def meanwhile(settings: OrderQueueSettings) -> Any:
        with pytest.raises(errors.Busy, match="another flush is at it"):
            deliver(spool, consumer.url)
        return original(settings)

    monkeypatch.setattr(OrderQueueSettings, "wishes", meanwhile)
    assert deliver(spool, consumer.url)["delivered"] == 0


@pytest.mark.parametrize("way", ["url", "file", "env", "broker"])
def test_the_command(way: str, tmp_path: Path, consumer: Any) -> None:
    spool, identity = tmp_path / "spool", str(uuid.uuid4())
    spool.mkdir()
    (spool / f"{identity}.json").write_text(json.dumps({"messageId": identity, "correlationId": identity}))
    consumer.bind()
    secret = tmp_path / "url"
    secret.write_text(consumer.url + "\n")
    secret.chmod(0o600)
    target = {"url": consumer.url, "file": f"@{secret}", "env": "env:TARGET", "broker": "broker"}[way]
    config = tmp_path / "stellerd.toml"
    config.write_text('[broker]\nurl = "spool://spool"\n[jobs.order_queue]\n')
    arguments = ["--from", str(spool)]
    if way == "broker":
        config.write_text(f'[broker]\nurl = ["amqp://127.0.0.1:1/x", "{consumer.url}"]\n[jobs.order_queue]\n')
    elif way == "file":
        arguments = []  # the configured spool
    elif way == "env":
        config.unlink()
    done = cli(tmp_path, "spool", "flush", "--to", target, *arguments, TARGET=consumer.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1 delivered, 0 left in {spool}\n"
    assert ("can see the password" in done.stderr) is (way == "url")
    assert [properties.message_id for properties, _ in consumer.take(1)] == [identity]


def test_the_command_when_no_broker_answers(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    done = cli(tmp_path, "spool", "flush", "--from", "spool", "--to", "amqp://u:s3cr3t-pw@127.0.0.1:1/x")
    assert done.returncode == 69
    assert "s3cr3t-pw" not in done.stdout + done.stderr
    done = cli(tmp_path, "spool", "flush", "--from", "nowhere", "--to", "amqp://h")
    assert (done.returncode, "there is no such folder" in done.stderr) == (2, True)
    done = cli(tmp_path, "spool", "flush", "--from", "spool", "--to", "spool:///x")
    assert (done.returncode, "a spool is delivered to a broker" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "no JSON"),
        (b"\xff", "no JSON"),
        (b'{"messageId":"zz","correlationId":"zz"}', "messageId or correlationId is missing or no UUID"),
        (b"{}", "messageId or correlationId is missing or no UUID"),
        (b"[1]", "messageId or correlationId is missing or no UUID"),
        (json.dumps({"messageId": ID, "correlationId": ID, "x": "y" * 5000}).encode(), "bytes are too many"),
        (None, "Is a directory"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_told_in_plain_words(body: bytes | None, why: str, tmp_path: Path) -> None:
    folder = tmp_path / "from"
    folder.mkdir()
    if body is None:
        (folder / "a.json").mkdir()
    else:
        (folder / "a.json").write_bytes(body)
    [problem] = deliver(folder, f"spool://{tmp_path}/to")["problems"]
    assert problem.startswith("a.json: not a message of ours (")
    assert problem.endswith(f"{why})")
