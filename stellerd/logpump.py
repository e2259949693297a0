"""What jobs print, line by line to the daemon's own output; never blocks anybody, keeps the last lines of each job."""

from __future__ import annotations

import os
import re
import socket
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from json.encoder import encode_basestring
from pathlib import Path

from stellerd import systemd
from stellerd.errors import Unreachable
from stellerd.log import RECORD
from stellerd.status import iso
from stellerd.texts import clean

CHUNK = 64 * 1024  # the size of a pipe (pipe(7)); full of empty lines it takes the loop 40 ms
MAX_LINE = 64 * 1024
TAIL_LINES = 1000
TAIL_CHARS = 1024 * 1024
_MARK = RECORD.encode()
_PLAIN = bytes(range(32, 127)) + b"\n"
_LEVEL = re.compile(rb"^<([2-7])>")
"""Of a line that the job logged itself; 0 and 1 would go to every terminal of the host."""
_COLOR = re.compile("\x1b\\[[0-9;]*m")


class Sink:
    """The daemon's standard error, or a file. What it does not take at once is dropped and counted."""

    journal = False
    """Lines of jobs need their priority in front."""

    def __init__(self, fd: int = 2, file: Path | None = None) -> None:
        self.dropped = 0
        self.file = file
        self.journal = file is None and systemd.is_journal(fd)
        self._fd = fd
        self._rest = b""
        self._torn = False
        """A line was begun and could not be finished."""
        self._write = _nonblocking_writer(fd)
        if file:
            self.reopen()

    def reopen(self) -> None:
        """Open the log file anew, after somebody moved the old one away.

        Raises: Unreachable when it cannot be opened; the old one stays in use.
        """
        if self.file is None:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            new = os.open(self.file, flags, 0o640)
        except OSError as error:
            raise Unreachable(f"log file {self.file}: {os.strerror(error.errno or 0)}") from None
        if self._fd != 2:
            os.close(self._fd)
        self._fd = new
        self._write = lambda data: os.write(new, data)

    def line(self, text: str) -> None:
        """One line of the daemon's own."""
        self._put(text.encode("utf-8", "replace"), 1)

    def block(self, text: bytes, lines: int, levels: bytes = b"6") -> None:
        """So many lines of a job, without the end of the last one; `levels`: a digit of syslog(3) each, or one for
        all."""
        self._put(systemd.journal_lines(text, levels) if self.journal else text, lines)

    def _put(self, text: bytes, lines: int) -> None:
        if (self._rest and not self._flush()) or (self.dropped and not self._own_up()):
            self.dropped += lines
            return
        self._rest = text + b"\n"
        self._flush()

    def _own_up(self) -> bool:
        """Say how many lines are missing here; the count starts anew only when that could be said."""
        missing, self.dropped = self.dropped, 0
        end = b"\n" if self._torn else b""
        said = f"stellerd: {missing} log lines dropped: the output did not take them\n".encode()
        self._rest = end + (b"<4>" if self.journal else b"") + said
        done = self._flush()
        if self.dropped:
            self.dropped, done = missing, False
        return done

    def _flush(self) -> bool:
        """Write what is left; a line that was begun is finished before another one starts."""
        try:
            sent = self._write(self._rest)
            self._torn = self._rest[:sent][-1:] not in (b"", b"\n")
            self._rest = self._rest[sent:]
        except BlockingIOError:
            return False
        except OSError:  # a full disk, a closed pipe: the jobs matter more than their lines
            self.dropped += self._rest.count(b"\n")
            self._rest = b""
        return not self._rest


def _nonblocking_writer(fd: int) -> Callable[[bytes], int]:
    """A write that never waits. The flag belongs to the open file, which others share, so it is opened anew."""
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        return lambda data: os.write(own, data)
    except OSError:
        pass  # a socket (systemd's journal) or somebody else's file: both can be written another way
    copy = os.dup(fd)
    try:
        sock = socket.socket(fileno=copy)
        return lambda data: sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        os.close(copy)
        return lambda data: os.write(fd, data)


def _level(line: bytes) -> bytes:
    """The priority of a job's line: printed text has none of its own."""
    found = _LEVEL.match(line[1:]) if line.startswith(_MARK) else None
    return found[1] if found else b"6"


class LogPump:
    """One job's pipe. Lines that the job logged itself pass as they are; printed text gets a frame of ours."""

    def __init__(self, job: str, fd: int, sink: Sink, style: str, lines_before: int = 0) -> None:
        self.job, self.fd, self.sink, self.style = job, fd, sink, style
        self.tail: deque[tuple[int, bytes]] = deque()
        """The last blocks, each with its number of lines; together few more than TAIL_LINES."""
        self.count = lines_before
        """Lines so far, those of earlier processes included; the newest has this number."""
        self.also: Callable[[bytes], None] | None = None
        """Gets each block of lines too."""
        os.set_blocking(fd, False)
        self._partial = b""
        self._tail_lines = self._tail_chars = 0

    def pump(self) -> bool:
        """Move what is there, at most CHUNK bytes; False at the end of the stream."""
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return True
        if not data:
            self._end_partial()
            return False
        end = data.rfind(b"\n")
        if end < 0:
            self._partial += data
        else:
            text, self._partial = self._partial + data[:end], data[end + 1 :]
            self._emit(text)
        if len(self._partial) > MAX_LINE:
            self._end_partial()
        return True

    def _end_partial(self) -> None:
        """A line that never ends, or whose end does not come any more, is one too."""
        text, self._partial = self._partial, b""
        if text:
            self._emit(text)

    def drain(self) -> None:
        """Take the last words of a process that is dead; a grandchild may hold the pipe open, so no waiting."""
        for _ in range(2):  # a whole pipe, and what was written into it meanwhile; somebody may never stop
            before = self.count, self._partial
            if not self.pump() or (self.count, self._partial) == before:
                break
        self._end_partial()

    def since(self, number: int) -> list[tuple[int, str]]:
        """(number, text) of the kept lines after `number`."""
        text = b"\n".join(block for _, block in self.tail)
        lines = text.decode("utf-8", "replace").split("\n")[-TAIL_LINES:] if self.tail else []
        first = self.count - len(lines) + 1
        return [(first + n, line) for n, line in enumerate(lines) if first + n > number]

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)

    def _emit(self, text: bytes) -> None:
        """Lines, without the end of the last one."""
        at = iso(datetime.now(UTC))
        short = len(text) <= MAX_LINE or text.find(b"\n", 0, MAX_LINE) >= 0  # the first line; others fit into a CHUNK
        plain = short and not text.translate(None, _PLAIN)
        each = [] if plain else text.split(b"\n")
        block = self._framed_block(text, at) if plain else b"\n".join(self._each(each, at))
        lines = text.count(b"\n") + 1  # framing adds none
        self._keep(block, lines)
        self.count += lines
        self.sink.block(block, lines, b"".join(map(_level, each)) or b"6")
        if self.also:
            self.also(block)

    def _each(self, lines: list[bytes], at: str) -> list[bytes]:
        return [
            self._logged(_LEVEL.sub(b"", line[1:], 1)) if line.startswith(_MARK) else self._framed(line, at)
            for line in lines
        ]

    def _framed_block(self, text: bytes, at: str) -> bytes:
        """As `_framed` does line by line, for text in which only quotes need care: ten times as fast."""
        if self.style != "json":
            head = f"{self.job} | ".encode()
            return head + text.replace(b"\n", b"\n" + head)
        head, _, end = self._framed(b"?", at).partition(b"?")
        return head + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", end + b"\n" + head) + end

    def _keep(self, block: bytes, lines: int) -> None:
        """For `stellerd logs`: the last lines, as many of them as have room."""
        if lines > TAIL_LINES:
            block, lines = b"\n".join(block.rsplit(b"\n", TAIL_LINES)[1:]), TAIL_LINES
        self.tail.append((lines, block))
        self._tail_lines += lines
        self._tail_chars += len(block)
        while len(self.tail) > 1 and (
            self._tail_chars > TAIL_CHARS or self._tail_lines - self.tail[0][0] >= TAIL_LINES
        ):
            gone, old = self.tail.popleft()
            self._tail_lines -= gone
            self._tail_chars -= len(old)

    def _logged(self, line: bytes) -> bytes:
        """As it is, unless it holds what our logger never writes: anybody can print the mark."""
        text = line.decode("utf-8", "replace")
        plain = _COLOR.sub("", text) if self.style == "color" else text
        return line if plain.isprintable() else str(clean(text)).encode()

    def _framed(self, line: bytes, at: str) -> bytes:
        text = clean(line[:MAX_LINE].decode("utf-8", "replace").rstrip("\r"))
        if self.style != "json":
            return f"{self.job} | {text}".encode()
        event = encode_basestring(text)  # the whole row by json.dumps takes five times as long
        return f'{{"ts": "{at}", "level": "info", "job": "{self.job}", "event": {event}, "printed": true}}'.encode()
