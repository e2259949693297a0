"""Every error stellerd raises on purpose; the class says who is meant and which exit code it becomes.

StellerdError                1   something failed; the message is for people
├── UsageError               2   the command line asks for something that is not there
├── Unreachable             69   a database, broker, HTTP server or the daemon does not answer
├── PluginCrashed           70   a plugin ended its own process or could not go on
├── Busy                    75   somebody else holds the job, or a limit is used up; `until` says when
│   └── RateLimited         75   the bucket is closed until `until`
├── LeaseLost               75   the run's lease is gone, so it must not go on
├── ConfigError             78   the configuration is wrong; `problems` has a line for each mistake
└── JobFailed                1   a plugin says why its run failed
    ├── HttpStatus           1   the server answered with an error status
    └── BadReply             1   the server's answer cannot be used
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

_STRICT = range(80, 95)
"""OpenSSL's codes for what only X509_V_FLAG_X509_STRICT refuses; Python sets it by default from 3.13 on."""
_RENEW = (
    "Python 3.13 and newer hold certificates to RFC 5280: renew the CA's certificate (with its key; what it signed "
    "stays valid) with basicConstraints=critical,CA:TRUE keyUsage=critical,keyCertSign,cRLSign "
    "subjectKeyIdentifier=hash, the server's with authorityKeyIdentifier=keyid"
)


class StellerdError(Exception):
    """Something failed."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class UsageError(StellerdError):
    """The command asks for something that does not exist."""

    exit_code = 2


class Unreachable(StellerdError):
    """A server does not answer."""

    exit_code = 69


class PluginCrashed(StellerdError):
    """The plugin ended its process."""

    exit_code = 70


class Busy(StellerdError):
    """Somebody else is at it; try again after `until` (aware UTC) where it is known."""

    exit_code = 75

    def __init__(self, message: str = "", until: datetime | None = None) -> None:
        super().__init__(message)
        self.until = until


class RateLimited(Busy):
    """The bucket `bucket` grants nothing before `until` (aware UTC)."""

    def __init__(self, bucket: str, until: datetime, reason: str = "limit used up") -> None:
        at = until.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        super().__init__(f"{bucket}: {reason}, next slot at {at}", until)
        self.bucket, self.reason = bucket, reason


class ConfigError(StellerdError):
    """The configuration is wrong: `problems` holds one "file:line:column: key: what" line for each mistake."""

    exit_code = 78

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class LeaseLost(StellerdError):
    """This run's lease is gone: another process may have the job by now, so nothing more is written."""

    exit_code = 75


class JobFailed(StellerdError):
    """The run failed; the message says why and what to do, no traceback is shown."""


class HttpStatus(JobFailed):
    """The server answered `status` (int) instead of 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class BadReply(JobFailed):
    """The server's answer cannot be used: too large, cut short, or not what its contract says."""


def certificate(error: ssl.SSLCertVerificationError) -> str:
    """Why a certificate was refused, and for what an older Python let pass, how to mend it."""
    if error.verify_code not in _STRICT:
        return error.verify_message
    return f"{error.verify_message}; {_RENEW}"
