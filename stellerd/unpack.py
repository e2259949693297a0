"""What a packed HTTP body was before: in pieces of bounded size, and with an end that is known to be one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from stellerd.redaction import shortened

_GZIP = zlib.MAX_WBITS | 16  # zlib's way to say: RFC 1952
ACCEPTED = "gzip"
"""For the Accept-Encoding header (RFC 9110 section 12.5.3)."""


class NotPacked(Exception):
    """The body is not packed as it should be."""


class Unpacker:
    """Undoes a Content-Encoding.

    Raises: NotPacked for one that was not asked for.
    """

    def __init__(self, encoding: str) -> None:
        name = encoding.strip().lower()
        if name not in ("", "identity", "gzip", "x-gzip"):
            raise NotPacked(f'packed as "{shortened(encoding.strip(), 40)}", which was not asked for')
        self._packed = name.endswith("gzip")
        self._member = zlib.decompressobj(_GZIP)
        self._begun = False

    def feed(self, data: bytes, most: int) -> Iterator[bytes]:
        """What `data` becomes, in pieces of at most `most` bytes: whoever stops taking them stops the unpacking.

        Raises: NotPacked when it is not packed as it should be.
        """
        if not self._packed:
            yield data
            return
        try:
            yield from self._unpacked(data, most)
        except zlib.error as error:
            raise NotPacked(f"the body cannot be unpacked: {error}") from None

    def _unpacked(self, data: bytes, most: int) -> Iterator[bytes]:
        piece = b""
        while data or len(piece) == most:  # a full piece: there may be more without more input
            if self._member.eof:  # members may follow each other, and nothing but zeros may follow the last
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._member = zlib.decompressobj(_GZIP)
            self._begun = True
            piece = self._member.decompress(data, most)
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if piece:
                yield piece

    def finish(self) -> None:
        """The data has ended. Raises: NotPacked when that was in its middle: zlib alone would not say so."""
        if self._begun and not self._member.eof:
            raise NotPacked("the packed body ends in its middle")
