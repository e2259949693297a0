"""The answers of one paged pull on disk: one that has to stop for its limit goes on with the next page, not the first.

One file in the job's own folder: a line that says what was asked for, then each answer with its length and checksum.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from stellerd import Context, errors
from stellerd_brand_sync.settings import BrandSyncSettings

NAME = "pages.log"
_HEADER = struct.Struct("!III")  # page index, packed length, checksum
_LONGEST_LINE = 64 * 1024
_LEVEL = 1
_BROKEN = (OSError, ValueError, zlib.error, msgspec.MsgspecError)


class Asked(msgspec.Struct, frozen=True):
    """What makes answers belong together; `began`: when the first one was asked for, seconds since 1970."""

    source: str
    since: str
    page_size: int
    began: float


class PageLog:
    """The answers so far to what is asked for now; none where they are too old, of something else, or broken.

    In a dry run they are read and nothing is written.
    """

    def __init__(self, ctx: Context, source: str, since: str, most_bytes: int) -> None:
        self._ctx, self._most = ctx, most_bytes
        self._settings: BrandSyncSettings = ctx.settings
        self.asked = Asked(source, since, self._settings.page_size, ctx.now().timestamp())
        self._length = 0
        self.pages = self._load()

    def add(self, index: int, body: bytes | bytearray) -> None:
        """Keep one more answer. Where that fails, all goes on without."""
        if not self._writes:
            return
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(self._path, flags, 0o600), "r+b") as file:
                if not self._length:
                    self._length = file.write(msgspec.json.encode(self.asked) + b"\n")
                packed = zlib.compress(body, _LEVEL)
                file.seek(self._length)
                self._length += file.write(_HEADER.pack(index, len(packed), zlib.crc32(packed)) + packed)
                file.truncate()
        except (OSError, errors.Unreachable) as error:
            self._ctx.log.debug("a page is not kept", reason=str(error))
            self.drop()

    def drop(self) -> None:
        """Forget them: all came, or they are of no use."""
        self._length = 0
        if self._writes:
            with contextlib.suppress(OSError, errors.Unreachable):
                self._path.unlink(missing_ok=True)

    @property
    def _writes(self) -> bool:
        return self._settings.keep_payload and not self._ctx.dry_run

    @property
    def _path(self) -> Path:
        return self._ctx.folder / NAME

    def _load(self) -> list[tuple[int, bytes]]:
        if not self._settings.keep_payload:
            return []
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                found = os.fstat(fd)
                asked = msgspec.json.decode(file.readline(_LONGEST_LINE), type=Asked)
                if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or not self._fits(asked):
                    return []
                self.asked, self._length = asked, file.tell()
                return list(self._records(file))
        except (*_BROKEN, errors.Unreachable):
            return []

    def _fits(self, asked: Asked) -> bool:
        age = self.asked.began - asked.began
        same = asked == msgspec.structs.replace(self.asked, began=asked.began)
        return same and 0 <= age < self._settings.payload_fresh

    def _records(self, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        """As far as they are whole: the writer may have been killed in the middle."""
        room = self._most
        while len(head := file.read(_HEADER.size)) == _HEADER.size:
            index, length, checksum = _HEADER.unpack(head)
            packed = file.read(min(length, room))
            if len(packed) != length or zlib.crc32(packed) != checksum:
                return
            unpacker = zlib.decompressobj()
            body = unpacker.decompress(packed, room)
            if not unpacker.eof:
                return
            room -= len(body)
            self._length = file.tell()
            yield index, body
