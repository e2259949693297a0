"""An HTTP client that cannot break a limit: each request spends its slot first, and 429 is learned by everybody."""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from stellerd import unpack
from stellerd.errors import BadReply, ConfigError, HttpStatus, RateLimited, Unreachable, certificate
from stellerd.intime import InTime, leave
from stellerd.limiter import Limiter, Slot
from stellerd.redaction import redact, shortened
from stellerd.secret import Secret
from stellerd.texts import clean

CONNECT_TIMEOUT_S = 15.0
_NOT_IN_A_URL = re.compile(r"[\s\\\x00-\x1f\x7f]")
_LONGEST_S = 86400.0
"""A socket takes no timeout above 2^31 ms."""
PATIENCE_S = 10.0
"""A slot nearer than this is waited for in place; a later one raises RateLimited."""
_CHUNK = 256 * 1024
_ERROR_BODY = 64 * 1024
_WAIT_FOR = re.compile(
    r"wait\s+for\s+([0-9][0-9,]{0,15}(?:\.[0-9]{1,15})?)\s*(min|m\b|hour|hrs?\b|h\b)?", re.IGNORECASE
)
_NUMBER = re.compile(r"\s*[0-9][0-9,]*(?:\.[0-9]+)?\s*")
_SECONDS = re.compile(r"\s*[0-9]+\s*")
_UNIT = {"second": 1, "minute": 60, "hour": 3600}
_SHORT = {"": 1, "m": 60, "h": 3600}
"""By the first letter; what is no minute and no hour is taken for seconds."""
_HEADERS = {"Accept": "application/json", "Accept-Encoding": unpack.ACCEPTED, "User-Agent": "stellerd"}


@dataclass(frozen=True)
class Reply:
    """A 200 answer; `headers` are case-insensitive. `body` is unpacked, and the receiver's to change: a copy of it as
    bytes would hold it twice."""

    status: int
    headers: Mapping[str, str]
    body: bytearray


class Http:
    """See `Context.http`."""

    def __init__(
        self,
        limiter: Limiter,
        bucket: str,
        wait: Callable[[float], bool],
        *,
        auth: tuple[str | Secret, Secret] | None,
        timeout: float,
        max_bytes: int,
        log: Any,
    ) -> None:
        if auth is not None and not (isinstance(auth, tuple) and len(auth) == 2 and isinstance(auth[1], Secret)):
            raise TypeError("auth: needs (user, password), the password being a setting of the type stellerd.Secret")
        self.limiter, self.bucket, self.wait, self.log = limiter, bucket, wait, log
        self.auth, self.timeout, self.max_bytes = auth, min(timeout, _LONGEST_S), max_bytes

    def get(
        self, url: str, *, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """GET `url` (https; http only for loopback). No redirect is followed, nothing is retried.

        Raises: RateLimited when the bucket is closed or the server says 429; HttpStatus for any other answer than
        200; Unreachable when there is none in time; BadReply for a body over the cap or cut short.
        """
        _check_url(url)
        credentials = self._credentials()
        self.limiter.await_open(self.bucket, self.wait, PATIENCE_S)
        exchange = _Exchange(self)
        try:
            reply = self._send(url, params, headers, credentials, exchange)
        except Unreachable:
            if not exchange.without_slot and not self.wait(0):  # one that was asked to end gives up by itself
                self._report(answered=False)
            raise
        except HttpStatus as error:
            self._report(answered=error.status < 500)
            raise
        except BadReply:
            self._report(answered=True)
            raise
        self._report(answered=True)
        return reply

    def _report(self, *, answered: bool) -> None:
        """For the circuit breaker; what became of the request is known, whether or not this can be recorded."""
        try:
            until = self.limiter.report(self.bucket, answered=answered)
        except Unreachable as error:
            self.log.warning("the outcome of a request is not recorded", bucket=self.bucket, reason=str(error))
            return
        if until is not None:
            self.log.error("no answers: circuit opened", bucket=self.bucket, not_before=until.isoformat())

    def _send(
        self,
        url: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        credentials: Any,
        exchange: _Exchange,
    ) -> Reply:
        name = _name(url)
        try:
            with requests.Session() as session:
                session.mount("https://", InTime(exchange.connected, exchange.sent))
                session.mount("http://", InTime(exchange.connected, exchange.sent))
                session.trust_env = False  # no ~/.netrc, no proxy that nobody configured
                response = session.get(
                    url,
                    params=params,
                    headers=_HEADERS | dict(headers or {}),
                    auth=credentials,  # bytes are fine
                    stream=True,
                    allow_redirects=False,
                    timeout=(min(CONNECT_TIMEOUT_S, self.timeout), self.timeout),  # the first byte may take minutes
                )
                with response:
                    return self._read(response, exchange.deadline, name)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            late = time.monotonic() >= exchange.deadline
            why = f"no whole answer within {self.timeout:g} s" if late else _plain(error)
            raise Unreachable(f"{name}: {why}") from None

    def _credentials(self) -> tuple[bytes, bytes] | None:
        """User and password in UTF-8 (RFC 7617)."""
        if self.auth is None:
            return None
        user, password = self.auth
        try:
            return (user.reveal() if isinstance(user, Secret) else user).encode(), password.reveal().encode()
        except ValueError as error:
            raise ConfigError(f"credentials: {error}") from None

    def _read(self, response: requests.Response, deadline: float, name: str) -> Reply:
        status = response.status_code
        if status == 200:
            body = self._body(response, deadline, self.max_bytes, name)
            return Reply(status, response.headers, body)
        text = self._error_text(response, deadline, name)
        if status == 429:
            raise self._learn(response.headers, text)
        if 300 <= status < 400:
            raise HttpStatus(status, f"{name}: answered {status}, a redirect; stellerd follows none")
        hint = {401: "; the credentials were refused", 403: "; no access (IP not allowed?)"}.get(status, "")
        said = f': "{_first_words(text)}"' if text.strip() else ""
        raise HttpStatus(status, f"{name}: answered {status}{hint}{said}")

    def _body(self, response: requests.Response, deadline: float, cap: int, name: str) -> bytearray:
        """Read and unpacked piece by piece: neither a slow nor a well packed body gets past deadline and cap."""
        parts = bytearray()
        try:
            unpacker = unpack.Unpacker(response.headers.get("Content-Encoding", ""))
            for chunk in self._chunks(response, deadline, name):
                for piece in unpacker.feed(chunk, _CHUNK):
                    parts += piece
                    if len(parts) > cap:
                        raise BadReply(f"{name}: the body is larger than {cap} bytes")
            unpacker.finish()
        except unpack.NotPacked as error:
            raise BadReply(f"{name}: {error}") from None
        return parts

    def _chunks(self, response: requests.Response, deadline: float, name: str) -> Iterator[bytes]:
        """The body as it comes.

        Raises: Unreachable after `deadline`, and when this process is asked to end.
        """
        came = 0
        while True:
            leave(response, deadline)
            # read1, not iter_content: a drip of single bytes must not hide the deadline inside one read
            chunk = response.raw.read1(_CHUNK, decode_content=False)
            came += len(chunk)
            if time.monotonic() > deadline:
                raise Unreachable(f"{name}: no whole answer within {self.timeout:g} s ({came} bytes came)")
            if not chunk:
                return
            yield chunk
            if self.wait(0):
                raise Unreachable(f"{name}: given up, this process is stopping")

    def _error_text(self, response: requests.Response, deadline: float, name: str) -> str:
        try:
            return self._body(response, deadline, _ERROR_BODY, name).decode("utf-8", "replace")
        except (BadReply, Unreachable, urllib3.exceptions.HTTPError):
            return ""  # the status alone says enough; a 429 must be learned whatever becomes of its body

    def _learn(self, headers: Mapping[str, str], text: str) -> RateLimited:
        seconds = retry_after(headers.get("Retry-After"), _date(headers.get("Date")) or datetime.now(UTC))
        if seconds is None:
            seconds = wait_seconds(text, self.limiter.patterns(self.bucket))
        believed = self.limiter.believed(self.bucket, seconds)
        try:
            until = self.limiter.learn(self.bucket, seconds)
        except Unreachable as error:  # at least this job waits for so long
            self.log.warning("a wait that others do not learn of", bucket=self.bucket, reason=str(error))
            until = datetime.now(UTC) + timedelta(seconds=believed)
        self.log.warning("server says 429", bucket=self.bucket, wait_s=believed, not_before=until.isoformat())
        return RateLimited(self.bucket, until, "the server answered 429")


class _Exchange:
    """One request on its way. Its slot is spent once the connection stands: a window may be shorter than a handshake
    whose first packet is lost takes, and the server counts from the request. Its time counts from then, too."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._slot: Slot | None = None
        self._standing = False
        self.deadline = time.monotonic() + CONNECT_TIMEOUT_S + http.timeout

    @property
    def without_slot(self) -> bool:
        """The server was reached and nothing was asked of it."""
        return self._standing and self._slot is None

    def connected(self) -> None:
        """Raises: as `Limiter.acquire`; then nothing is sent."""
        http, self._standing = self._http, True
        self._slot = http.limiter.acquire(http.bucket, http.wait, PATIENCE_S, takes_s=http.timeout)
        self.deadline = time.monotonic() + http.timeout

    def sent(self) -> None:
        """The request has left."""
        try:
            if self._slot is not None:
                self._http.limiter.sent(self._slot)
        except Unreachable as error:
            self._http.log.warning(
                "a request left late, which is not recorded", bucket=self._http.bucket, reason=str(error)
            )


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds named by a Retry-After header (RFC 9110 section 10.2.3: seconds or an HTTP date); None if unreadable.

    `now`: the server's time, by its Date header: its clock and ours may differ.
    """
    if not value:
        return None
    if _SECONDS.fullmatch(value):
        return float(value)
    at = _date(value)
    return None if at is None else max(0.0, (at - now).total_seconds())


def _date(value: str | None) -> datetime | None:
    """An HTTP date; None if there is none or it cannot be read."""
    try:
        at = email.utils.parsedate_to_datetime(value) if value else None
        return at and at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC)
    except Exception:  # noqa: BLE001  a zone of a million hours, a year 0: the library has an error for each
        return None


def wait_seconds(body: str, patterns: Iterable[str] = ()) -> float | None:
    """Seconds named by one of `patterns` (a group named seconds, minutes or hours), else by "wait for X seconds", in a
    429 body: plain text, a JSON string, or JSON with the text in `message`, `error` or `detail`; None if there is none.
    """
    text = _text_of(body)
    for pattern in patterns:
        if match := re.search(pattern, text):
            [(unit, number)] = [pair for pair in match.groupdict().items() if pair[0].removesuffix("s") in _UNIT]
            if _NUMBER.fullmatch(number or ""):  # else it took part in nothing, or took no number
                return float(number.replace(",", "")) * _UNIT[unit.removesuffix("s")]
    match = _WAIT_FOR.search(text)
    return float(match[1].replace(",", "")) * _SHORT[(match[2] or "")[:1].lower()] if match else None


def _text_of(body: str) -> str:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if isinstance(value, dict):
        value = " ".join(str(value[key]) for key in ("message", "error", "detail") if value.get(key))
    return value if value and isinstance(value, str) else body


def _check_url(url: str) -> None:
    """By the parser that requests uses: two that read a URL differently would let it through to another host."""
    if _NOT_IN_A_URL.search(url):
        raise Unreachable(f"{clean(_name(url))}: refused; a URL has no blanks, backslashes or control characters")
    try:
        parts = urllib3.util.parse_url(url)
    except urllib3.exceptions.HTTPError:
        raise Unreachable(f"{_name(url)}: refused; not a URL") from None
    host = (parts.host or "").strip("[]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: it may begin with "127." and be anybody's
        loopback = False
    if not host or (parts.scheme != "https" and not (parts.scheme == "http" and loopback)):
        raise Unreachable(f"{_name(url)}: refused; only https is used (http for loopback)")


def _name(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets around what is no address; it may be followed by a password
        return "the URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _first_words(text: str) -> str:
    """Secrets go before markup and control characters do, which would change or cut them."""
    plain = re.sub(r"<[^>]*>", " ", redact(_text_of(text)))
    return shortened(" ".join(re.sub(r"[^\x20-\x7e\xa0-\uffff]", " ", plain).split()), 200)


def _of_http(error: BaseException) -> str:
    """In our words what the library says in Python's; "" for an error that is not about HTTP."""
    if isinstance(error, http.client.RemoteDisconnected):
        return "the server closed the connection without an answer"
    if isinstance(error, http.client.IncompleteRead):
        partial: Any = error.partial  # urllib3 has a number here
        came = partial if isinstance(partial, int) else len(partial)
        return f"the answer broke off after {came} bytes" + (f", {error.expected} more expected" * bool(error.expected))
    about_http = isinstance(error, http.client.HTTPException | urllib3.exceptions.InvalidHeader)
    return "the answer is not HTTP as it should be" if about_http else ""


def _plain(error: BaseException) -> str:
    """What went wrong at the bottom of a chain of library errors, without addresses of objects."""
    root, chain = error, [error]
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__  # type: ignore[assignment]
        chain.append(root)
    if isinstance(root, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {certificate(root)}"
    if text := next(filter(None, map(_of_http, chain)), ""):
        return text if not isinstance(root, ValueError) else "the answer is not HTTP as it should be"
    text = getattr(root, "strerror", None) or str(root) or type(root).__name__
    return re.sub(r"<[^>]*object at [^>]*>[:,]?\s*", "", text)
