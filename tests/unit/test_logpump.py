"""What jobs print: split into lines, tagged, kept, and never a reason to wait."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellerd.log import RECORD
from stellerd.logpump import CHUNK, MAX_LINE, TAIL_LINES, LogPump, Sink

HOSTILE = 'x\x1b[2J\x9b31m\r\x00\x07\x7f\u2028"q"'


class Lines(Sink):
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def block(self, text: bytes, lines: int, levels: bytes = b"6") -> None:
        assert len(levels) in (1, lines)
        assert text.count(b"\n") == lines - 1
        self.got += text.split(b"\n")


class Job:
    """A job's end of its log pipe."""

    def __init__(self, style: str = "text") -> None:
        read, self.write_end = os.pipe()
        self.sink = Lines()
        self.pump = LogPump("a", read, self.sink, style)

    def prints(self, data: bytes) -> None:
        os.write(self.write_end, data)

    def close(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def texts(self) -> list[str]:
        return [line.decode().removeprefix("a | ") for line in self.sink.got]


@pytest.fixture
def job() -> Iterator[Job]:
    made = Job()
    yield made
    made.close()
    made.pump.close()


def test_a_printed_line_is_tagged_with_its_job(job: Job) -> None:
    job.prints(b"hello\n")
    job.pump.pump()
    assert job.sink.got == [b"a | hello"]


def test_half_a_line_waits_for_its_other_half(job: Job) -> None:
    job.prints(b"hel")
    job.pump.pump()
    assert job.sink.got == []
    job.prints(b"lo\nnext")
    job.pump.pump()
    assert job.texts() == ["hello"]


def test_a_last_line_without_an_end_is_a_line(job: Job) -> None:
    job.prints(b"hello\nlast words")
    job.close()
    while job.pump.pump():
        pass
    assert job.texts() == ["hello", "last words"]


PRINTABLE = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=20)


@given(st.lists(PRINTABLE, min_size=1, max_size=10), st.lists(st.integers(1, 15), min_size=1))
def test_lines_may_arrive_in_any_pieces(lines: list[str], cuts: list[int]) -> None:
    job = Job()
    data = "".join(f"{line}\n" for line in lines).encode()
    at = turn = 0
    while at < len(data):
        job.prints(data[at : at + cuts[turn % len(cuts)]])
        at, turn = at + cuts[turn % len(cuts)], turn + 1
        job.pump.pump()
    job.close()
    job.pump.close()
    assert job.texts() == lines


def test_a_huge_line_is_cut_and_costs_no_more_than_its_limit(job: Job) -> None:
    for _ in range(320):
        job.prints(b"x" * 4096)  # a page: the kernel gives no more to a new pipe when its user has many
        job.pump.pump()
        assert len(job.pump._partial) <= MAX_LINE
    assert all(len(text) <= MAX_LINE for text in job.texts())


@pytest.mark.parametrize("style", ["text", "color", "json"])
def test_printed_text_cannot_drive_the_terminal_or_forge_a_line(style: str) -> None:
    job = Job(style)
    job.prints(HOSTILE.encode() + b"\n\xff\xfe not utf-8\n")
    job.pump.pump()
    job.close()
    job.pump.close()
    assert len(job.sink.got) == 2
    assert all(line.decode().isprintable() for line in job.sink.got)


def test_printed_text_becomes_a_json_line() -> None:
    job = Job("json")
    job.prints(b'{"level": "error"}\n')
    job.pump.pump()
    job.close()
    job.pump.close()
    row = json.loads(job.sink.got[0])
    assert (row["job"], row["level"], row["event"], row["printed"]) == ("a", "info", '{"level": "error"}', True)


ASCII = st.text(st.characters(max_codepoint=127, exclude_characters="\n\r\x1e"), max_size=20)


@given(st.sampled_from(["json", "text"]), st.lists(ASCII, max_size=20))
def test_plain_text_is_framed_as_any_other(style: str, lines: list[str]) -> None:
    """A block of printable ASCII takes a faster way to the same lines."""
    job = Job(style)
    try:
        text = "\n".join(lines).encode()
        at = "2026-01-01T00:00:00Z"
        expected = b"\n".join(job.pump._each(text.split(b"\n"), at))
        if text.isascii() and all(line.isprintable() for line in lines):
            assert job.pump._framed_block(text, at) == expected
        job.prints(text + b"\n")
        job.pump.pump()
        framed = b"\n".join(job.sink.got)
        assert re.sub(rb'"ts": "[^"]*"', b'"ts": "%s"' % at.encode(), framed) == expected
    finally:
        job.close()
        job.pump.close()


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_line_that_the_job_logged_passes_as_it_is(style: str) -> None:
    line = b'{"ts": "2026", "event": "x"}' if style == "json" else b"2026 [info] x"
    job = Job(style)
    job.prints(RECORD.encode() + line + b"\n")
    job.pump.pump()
    job.close()
    job.pump.close()
    assert job.sink.got == [line]


@pytest.mark.parametrize("style", ["text", "json", "color"])
def test_a_marked_line_cannot_drive_the_terminal_either(style: str) -> None:
    """A plugin may print the mark itself, or a server's text that holds it."""
    job = Job(style)
    job.prints(f"{RECORD}{HOSTILE}\n".encode())
    job.pump.pump()
    job.close()
    job.pump.close()
    assert all(line.decode().isprintable() for line in job.sink.got)


def test_colors_of_a_line_that_the_job_logged_stay() -> None:
    job = Job("color")
    line = "\x1b[2m2026\x1b[0m [\x1b[32m\x1b[1minfo     \x1b[0m] \x1b[1mready\x1b[0m"
    job.prints(f"{RECORD}{line}\n".encode())
    job.pump.pump()
    job.close()
    job.pump.close()
    assert job.sink.got == [line.encode()]


def test_the_last_lines_are_kept(job: Job) -> None:
    for number in range(TAIL_LINES + 50):
        job.prints(f"{number}\n".encode())
        job.pump.pump()
    kept = job.pump.since(0)
    assert len(kept) == TAIL_LINES
    assert kept[-1] == (TAIL_LINES + 50, f"a | {TAIL_LINES + 49}")


def test_kept_lines_are_numbered(job: Job) -> None:
    job.prints(b"one\ntwo\nthree\n")
    job.pump.pump()
    assert job.pump.since(1) == [(2, "a | two"), (3, "a | three")]
    assert job.pump.since(3) == []


def test_one_wake_moves_a_bounded_amount() -> None:
    read, write = os.pipe()
    import fcntl

    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1024 * 1024)
    os.write(write, b"x" * 1023 + b"\n" + b"y\n" * (CHUNK // 2))
    sink = Lines()
    pump = LogPump("a", read, sink, "text")
    pump.pump()
    moved = sum(len(line) - len("a | ") + 1 for line in sink.got)
    os.close(write)
    pump.close()
    assert moved <= CHUNK


def test_a_dead_process_is_drained_though_a_grandchild_holds_the_pipe(job: Job) -> None:
    job.prints(b"first\nlast words")
    job.pump.drain()
    assert job.texts() == ["first", "last words"]


def test_drain_does_not_wait(job: Job) -> None:
    began = time.monotonic()
    job.pump.drain()
    assert time.monotonic() - began < 1


# --- the daemon's own output


def test_whole_lines_go_to_a_pipe() -> None:
    read, write = os.pipe()
    Sink(write).block(b"one\ntwo", 2)
    assert os.read(read, 100) == b"one\ntwo\n"
    os.close(read)
    os.close(write)


def test_a_full_pipe_drops_and_counts_and_never_blocks() -> None:
    read, write = os.pipe()
    sink = Sink(write)
    began = time.monotonic()
    for number in range(20_000):
        sink.line(f"line {number} " + "x" * 80)
    took = time.monotonic() - began
    assert sink.dropped > 10_000
    assert took < 5
    said = b""
    while select.select([read], [], [], 0)[0]:
        said += os.read(read, 1 << 20)
    dropped = sink.dropped
    sink.line("after")
    while select.select([read], [], [], 0)[0]:
        said += os.read(read, 1 << 20)
    os.close(read)
    os.close(write)
    lines = said.decode().split("\n")
    assert all(line.endswith("x" * 80) for line in lines[:-3]), "only whole lines"
    assert lines[-3:] == [f"stellerd: {dropped} log lines dropped: the output did not take them", "after", ""]
    assert sink.dropped == 0


def test_the_flag_of_the_shared_pipe_is_left_alone() -> None:
    read, write = os.pipe()
    Sink(write).line("x")
    assert os.get_blocking(write)
    os.close(read)
    os.close(write)


def test_a_closed_pipe_fails_nobody() -> None:
    read, write = os.pipe()
    sink = Sink(write)
    os.close(read)
    sink.line("nobody reads")
    sink.line("nobody reads")
    os.close(write)
    assert sink.dropped >= 1


def test_lines_go_to_the_end_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    with path.open("a") as stream:
        Sink(stream.fileno()).line("after")
    assert path.read_text() == "before\nafter\n"


def test_a_full_disk_drops_and_counts() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        sink = Sink(full.fileno())
        sink.block(b"one\ntwo", 2)
        assert sink.dropped == 2


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_lines_go_to_a_socket_as_the_journal_gives_one(kind: socket.SocketKind) -> None:
    ours, theirs = socket.socketpair(type=kind)
    Sink(theirs.fileno()).line("hello")
    assert ours.recv(100) == b"hello\n"
    ours.close()
    theirs.close()


def test_a_full_socket_drops_and_never_blocks() -> None:
    ours, theirs = socket.socketpair()
    sink = Sink(theirs.fileno())
    for _ in range(20_000):
        sink.line("x" * 100)
    assert sink.dropped > 0
    assert theirs.getblocking()
    ours.close()
    theirs.close()


def test_lines_go_to_a_terminal() -> None:
    ours, theirs = pty.openpty()
    Sink(theirs).line("hello")
    assert os.read(ours, 100) == b"hello\r\n"
    os.close(ours)
    os.close(theirs)


def test_a_terminal_that_is_stopped_drops_and_never_blocks() -> None:
    ours, theirs = pty.openpty()
    sink = Sink(theirs)
    for _ in range(20_000):
        sink.line("x" * 100)
    assert sink.dropped > 0
    os.close(ours)
    os.close(theirs)


def test_a_log_file_that_was_moved_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "stellerd.log"
    sink = Sink(file=path)
    sink.line("old")
    path.rename(tmp_path / "stellerd.log.1")
    sink.reopen()
    sink.line("new")
    assert (path.read_text(), (tmp_path / "stellerd.log.1").read_text()) == ("new\n", "old\n")


def test_reopening_leaks_no_descriptor(tmp_path: Path) -> None:
    sink = Sink(file=tmp_path / "log")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        sink.reopen()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_an_output_of_no_kind_leaks_no_descriptor() -> None:
    fd = os.eventfd(0)
    before = len(os.listdir("/proc/self/fd"))
    Sink(fd)
    assert len(os.listdir("/proc/self/fd")) <= before
    os.close(fd)
