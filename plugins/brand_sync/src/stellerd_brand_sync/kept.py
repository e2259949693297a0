"""A fetched catalogue on disk, from the fetch until it is stored: a database that fails must not cost a second call.

One file in the job's own folder: a line of facts, then the brands in gzip, whose checksum proves them.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import BinaryIO, TypeVar

import msgspec

from stellerd import Context, errors
from stellerd_brand_sync import wire
from stellerd_brand_sync.fetched import Facts, Fetched
from stellerd_brand_sync.settings import BrandSyncSettings

NAME = "catalogue.gz"
ASIDE = "catalogue.aside.gz"
_FAILED = "failed"
_MAGIC = b"stellerd catalogue 1 "
_CHUNK = 256 * 1024
_LEVEL = 1  # a fifth of the size; more would cost more time than it saves
_GZIP = zlib.MAX_WBITS | 16  # zlib's way to say: RFC 1952
_LONGEST_LINE = 64 * 1024
_STALE_S = 3600.0
_BROKEN = (OSError, ValueError, zlib.error, msgspec.MsgspecError, errors.BadReply)
_T = TypeVar("_T")


class _Line(msgspec.Struct):
    source: str
    length: int
    facts: Facts


class Kept:
    """The kept catalogue of one source. `after`: when the newest stored one was fetched; `full`: nothing less will do.

    In a dry run it is read and nothing is changed.
    """

    def __init__(self, ctx: Context, source: str, after: float, full: bool) -> None:
        self._ctx, self._source, self._after, self._full = ctx, source, after, full
        self._settings: BrandSyncSettings = ctx.settings

    def look(self) -> Facts | None:
        """What is known of the one that can be used now, if there is one; its brands may yet prove broken."""
        return self._use(lambda file, line: line.facts)

    def load(self) -> Fetched | None:
        """The one that can be used now, if there is one."""
        return self._use(lambda file, line: Fetched(wire.decode_v1(_unpacked(file, line.length)), 0, line.facts))

    def put(self, fetched: Fetched) -> None:
        """Keep this one in place of any other. Where that fails, all goes on without."""
        if self._ctx.dry_run or not self._settings.keep_payload:
            return
        try:
            with self._folder() as folder:
                _sweep(folder)
                _write(folder, _line_of(self._source, fetched), fetched.brands)
        except (OSError, errors.Unreachable) as error:
            self._ctx.log.warning(
                "the catalogue is not kept: if it cannot be stored, it is fetched again", reason=_why(error)
            )

    def drop(self, reason: str = "") -> None:
        """Remove it: it was stored, or is of no use for `reason`."""
        if self._ctx.dry_run:
            return
        with contextlib.suppress(errors.Unreachable), self._folder() as folder:
            try:
                os.unlink(NAME, dir_fd=folder)
            except FileNotFoundError:
                return
            except OSError as error:
                reason = f"{reason}; it cannot be removed: {_why(error)}".removeprefix("; ")
        if reason:
            self._ctx.log.warning("the kept catalogue is not used", reason=reason)

    def failed(self, facts: Facts, reason: str) -> None:
        """It could not be stored for what is in it: it gets a second try, then it is set aside."""
        if self._ctx.dry_run:
            return
        if self._ctx.cursor.get(_FAILED) != facts.at:
            self._ctx.cursor.set(_FAILED, facts.at)
            return
        with contextlib.suppress(errors.Unreachable, FileNotFoundError), self._folder() as folder:
            os.replace(NAME, ASIDE, src_dir_fd=folder, dst_dir_fd=folder)
            reason = f"the kept catalogue failed twice and is set aside as {self._ctx.folder / ASIDE}: {reason}"
            self._ctx.quarantine("catalogue", f"{datetime.fromtimestamp(facts.at, UTC):%Y-%m-%d %H:%M:%S}", reason)

    def _use(self, read: Callable[[BinaryIO, _Line], _T]) -> _T | None:
        try:
            with self._folder() as folder, _open(folder) as file:
                line = _line_in(file)
                if reason := self._against(line):
                    raise ValueError(reason)
                return read(file, line)
        except (FileNotFoundError, errors.Unreachable):
            return None
        except _BROKEN as error:
            self.drop(_why(error))
            return None

    def _against(self, line: _Line) -> str:
        """Why it is not to be used, or ""."""
        age = self._ctx.now().timestamp() - line.facts.at
        if not self._settings.keep_payload:
            return "keep_payload is false"
        if line.source != self._source:
            return "it comes from another source, or is for another database"
        if not 0 <= age < self._settings.payload_fresh:
            return f"it is {age:.0f} s old, payload_fresh is {self._settings.payload_fresh:.0f} s"
        if line.facts.at <= self._after:
            return "one that was fetched later, or this one itself, is stored"
        if self._full and not line.facts.full:
            return "it is not a whole catalogue, and a whole one is due"
        if line.length > self._settings.max_body + _CHUNK:
            return "it is larger than max_body"
        return ""

    @contextlib.contextmanager
    def _folder(self) -> Iterator[int]:
        fd = os.open(self._ctx.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def there(ctx: Context) -> bool:
    """There is a file, of whatever worth: a look that costs next to nothing."""
    try:
        return os.path.lexists(ctx.folder / NAME)
    except errors.Unreachable:
        return False


def _open(folder: int) -> BinaryIO:
    """Raises: FileNotFoundError; ValueError when it is not this user's own file."""
    fd = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    file = os.fdopen(fd, "rb")
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        file.close()
        raise ValueError("it is not a file of this user's alone")
    return file


def _line_of(source: str, fetched: Fetched) -> bytes:
    length = sum(memoryview(raw).nbytes + 1 for raw in fetched.brands)
    text = msgspec.json.encode(_Line(source, length, fetched.facts))
    return _MAGIC + b"%08x " % zlib.crc32(text) + text + b"\n"


def _line_in(file: BinaryIO) -> _Line:
    """Raises: ValueError or msgspec's errors."""
    line = file.readline(_LONGEST_LINE)
    checksum, _, text = line.removeprefix(_MAGIC).partition(b" ")
    if not line.startswith(_MAGIC) or checksum != b"%08x" % zlib.crc32(text.removesuffix(b"\n")):
        raise ValueError("its first line is not what was written")
    return msgspec.json.decode(text, type=_Line)


def _write(folder: int, line: bytes, brands: Sequence[msgspec.Raw]) -> None:
    """Complete from the moment it has its name."""
    temporary = f".{NAME}.{os.getpid()}.tmp"
    with contextlib.suppress(FileNotFoundError):  # of a process that had this number before
        os.unlink(temporary, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(line)
            file.writelines(_packed(brands))
            file.flush()
            os.fsync(fd)
        os.replace(temporary, NAME, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def _packed(brands: Sequence[msgspec.Raw]) -> Iterator[bytes]:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    yield packer.compress(b'{"brands":[')
    for number, raw in enumerate(brands):
        view = memoryview(raw)
        yield packer.compress(b"," if number else b"")
        for at in range(0, view.nbytes, _CHUNK):
            yield packer.compress(view[at : at + _CHUNK])
    yield packer.compress(b"]}") + packer.flush()


def _unpacked(file: BinaryIO, length: int) -> bytearray:
    """Raises: ValueError or zlib.error when it is not `length` bytes of brands and what is around them."""
    packed, body = zlib.decompressobj(_GZIP), bytearray()
    while not packed.eof:
        data = packed.unconsumed_tail or file.read(_CHUNK)
        piece = packed.decompress(data, _CHUNK)
        body += piece
        if (not data and not piece) or len(body) > length + _CHUNK:
            raise ValueError("it is shorter or longer than it was")
    return body


def _sweep(folder: int) -> None:
    """Remove what a writer left that was killed in the middle; nobody writes one file for an hour."""
    for name in os.listdir(folder):
        if name.startswith(f".{NAME}.") and name.endswith(".tmp"):
            with contextlib.suppress(FileNotFoundError):
                if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime < time.time() - _STALE_S:
                    os.unlink(name, dir_fd=folder)


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return os.strerror(error.errno or 0)
    return str(error)
