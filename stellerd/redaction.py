"""Known secrets are taken out of every text, in each encoding in which logs, URLs and protocols repeat them."""

from __future__ import annotations

import base64
import codecs
import contextlib
import html
import io
import json
import os
import re
import string
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

MASK = "***"
FLUSH_S = 0.25
"""The beginning of what may be a secret is held back from a stream for so long."""
_LEAST_CHARS = 4  # shorter ones would blank out innocent words
_LEAST_BASE64 = 5
_LEAST_LINE = 12
_ESCAPED_BY_DOTNET = re.compile(r"\\u[0-9a-f]{4}|[&'+<>`]|\\\"")
_SECRET_KEY = re.compile("pass|pwd|secret|token|key|auth|sig", re.IGNORECASE)  # of a URL's query
_BASE64_CHARS = frozenset(string.ascii_letters + string.digits + "+/-_=")

_forms: list[str] = []  # longest first: a secret may be the beginning of another
_in_base64: list[str] = []


def remember(value: str) -> None:
    """From now on `redact` takes this value out of texts, and of a URL its password and secret parameters."""
    plain = {form for part in _parts(value) for form in (part, part.strip(), unquote(part))}
    _add(_forms, {form for text in plain for form in _written(text) if len(form) >= _LEAST_CHARS})
    encoded = {form for text in plain if len(text) >= _LEAST_CHARS for form in _base64_of(text)}
    _add(_in_base64, {form for form in encoded if len(form) >= _LEAST_BASE64})


def _add(known: list[str], forms: Iterable[str]) -> None:
    if new := set(forms).difference(known):
        known.extend(new)
        known.sort(key=len, reverse=True)


def _parts(value: str) -> Iterator[str]:
    """The value, its lines if it has several, and of a URL what is secret in it, wherever a parser may see that end."""
    yield value
    yield from (line for line in value.split("\n")[:-1] + value.split("\n")[1:] if len(line) >= _LEAST_LINE)
    if "://" not in value:
        return
    with contextlib.suppress(ValueError):  # not a URL after all
        yield urlsplit(value).password or ""
    for pattern in (r"://[^:/@]*:([^@]*)@", r"://[^:/@]*:(.*)@"):  # SQLAlchemy's way, and the widest one
        yield from re.findall(pattern, value, re.DOTALL)
    for key, text in parse_qsl(value.partition("?")[2]):
        if _SECRET_KEY.search(key):
            yield text


def _written(text: str) -> Iterator[str]:
    """As it is, and as JSON, Python, URLs, HTML and hexadecimal dumps write it."""
    yield text
    for in_json in (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        yield from (in_json, in_json.replace("/", "\\/"))
    yield _ESCAPED_BY_DOTNET.sub(_as_dotnet, json.dumps(text)[1:-1])
    yield repr(text)[1:-1]
    yield text.replace("'", "''")  # SQL, YAML
    in_html = html.escape(text)
    yield from (in_html, in_html.replace("&#x27;", "&#39;"), in_html.replace("&#x27;", "&apos;"))
    data = text.encode("utf-8", "surrogatepass")
    strictly = "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"%{byte:02X}" for byte in data)
    for in_url in (quote(data, safe=""), quote(data, safe="/"), quote_plus(data), strictly):
        yield from (in_url, re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), in_url))
    yield from (data.hex(), data.hex().upper())


def _as_dotnet(match: re.Match[str]) -> str:
    return match[0][:2] + match[0][2:].upper() if len(match[0]) > 2 else f"\\u{ord(match[0][-1]):04X}"


def _base64_of(text: str) -> Iterator[str]:
    """The characters that any base64 text around it must have, at each of the three places a byte can have there."""
    data = text.encode("utf-8", "surrogatepass")
    for before in range(3):
        packed = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        whole = packed[(before * 8 + 5) // 6 : (before + len(data)) * 8 // 6]  # the others depend on the neighbours
        yield from (whole, whole.translate(str.maketrans("+/", "-_")))


def redact(text: str) -> str:
    """The text without any secret that this process has read."""
    for form in _forms:
        text = text.replace(form, MASK)
    for form in _in_base64:
        while (at := text.find(form)) >= 0:
            start, end = _base64_around(text, at, at + len(form))
            text = text[:start] + MASK + text[end:]
    return text


def redact_all(value: Any) -> Any:
    """A value of JSON's kinds with each of its texts redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact_all(key): redact_all(item) for key, item in value.items()}
    return [redact_all(item) for item in value] if isinstance(value, list | tuple) else value


def _base64_around(text: str, start: int, end: int) -> tuple[int, int]:
    """The whole word of base64: a part of it would still give a few characters away."""
    while start and text[start - 1] in _BASE64_CHARS:
        start -= 1
    while end < len(text) and text[end] in _BASE64_CHARS:
        end += 1
    return start, end


def shortened(text: str, chars: int) -> str:
    """The beginning of a text from outside. Its secrets go first: half of one would not be recognised."""
    return redact(text)[:chars]


def _held_back(text: str) -> int:
    """How many characters at the end of a text may be the beginning of a secret that goes on in the next."""
    known = _forms + _in_base64
    longest = max(map(len, known), default=1)
    start = len(text)
    for at in range(max(0, len(text) - longest + 1), len(text)):
        tail = text[at:]
        if any(len(form) > len(tail) and form.startswith(tail) for form in known):
            start = at
            break
    for form in known:  # one that is complete must not be cut in two
        at = text.rfind(form, max(0, start - len(form) + 1))
        if 0 <= at < start < at + len(form):
            start = at
    return len(text) - start


_streams: weakref.WeakSet[RedactingStream] = weakref.WeakSet()


def release() -> None:
    """Write all that streams hold back: the process ends."""
    for stream in list(_streams):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or the plugin closed it
            stream.release()


def _after_fork() -> None:
    for stream in list(_streams):
        stream._forget()


os.register_at_fork(after_in_child=_after_fork)


class RedactingStream(io.TextIOWrapper):
    """A text stream to a descriptor for what a plugin or a library prints, without secrets, also such as are written
    piece by piece. `buffer` takes bytes and does the same."""

    def __init__(self, fd: int) -> None:
        raw = open(fd, "wb", closefd=False)  # noqa: SIM115  for as long as the process lives
        super().__init__(raw, "utf-8", "backslashreplace", line_buffering=True)
        self._bytes = _Bytes(self)
        self._forget()
        _streams.add(self)

    def _forget(self) -> None:
        """What is held back belongs to the process that wrote it; its lock may be held by a thread of that one."""
        self._lock = threading.RLock()
        self._held = ""
        self._timer: threading.Timer | None = None

    @property
    def buffer(self) -> Any:
        """For bytes; they come out with the text, in order."""
        return self._bytes

    def write(self, text: str) -> int:
        """Write the text without secrets; its length as it was."""
        with self._lock:
            whole = self._held + text
            keep = _held_back(whole) if _forms else 0
            self._held = whole[len(whole) - keep :]
            super().write(redact(whole[: len(whole) - keep]))
            if self._held and self._timer is None:
                self._timer = threading.Timer(FLUSH_S, self.release)
                self._timer.daemon = True
                self._timer.start()
        return len(text)

    def release(self) -> None:
        """Write what is held back: nothing came that would make a secret of it."""
        with self._lock:
            held, self._held, self._timer = self._held, "", None
            super().write(redact(held))
            self.flush()


class _Bytes(io.BufferedIOBase):
    def __init__(self, text: RedactingStream) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def write(self, data: Any) -> int:
        size = len(memoryview(data).cast("B"))
        self._text.write(self._decoder.decode(bytes(data)))
        return size

    def flush(self) -> None:
        self._text.flush()

    def close(self) -> None:
        """Nothing: the text stream is closed by its owner, and this when nobody needs it any more."""
