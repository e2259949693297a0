"""The job `bamboo_sandbox`: serves the vendor's API on loopback until it is asked to end."""

from __future__ import annotations

from contextlib import closing
from http.client import HTTPConnection, HTTPException

from stellerd import Context, Done, Job, errors, hookimpl
from stellerd_bamboo_sandbox.sandbox import Sandbox
from stellerd_bamboo_sandbox.server import SERVER_NAME
from stellerd_bamboo_sandbox.settings import SandboxSettings

_LONG = 3600.0
_PROBE_S = 5.0


class BambooSandbox(Job):
    """Serve the stand-in for the Bamboo API."""

    kind = "service"
    Settings = SandboxSettings

    def check(self, ctx: Context) -> None:
        """The port is free, or a sandbox is already there.

        Raises: JobFailed when something else has the port.
        """
        settings: SandboxSettings = ctx.settings
        try:
            Sandbox(settings).start().stop()
        except errors.JobFailed:
            if not _is_sandbox(settings.host, settings.port):
                raise

    def run(self, ctx: Context) -> Done:
        """Serve until `ctx.stopping`; a dry run only listens for a moment.

        Raises: JobFailed when the port is taken or the call log cannot be written.
        """
        settings: SandboxSettings = ctx.settings
        with Sandbox(settings) as sandbox:
            ctx.log.info("sandbox serves", url=sandbox.base_url, products=settings.products, limits=settings.limits)
            while not ctx.dry_run and not ctx.wait(_LONG):
                pass
            return Done({"requests": sandbox.requests})


def _is_sandbox(host: str, port: int) -> bool:
    """Another sandbox answers there."""
    with closing(HTTPConnection(host, port, timeout=_PROBE_S)) as connection:
        try:
            connection.request("GET", "/")
            return connection.getresponse().headers.get("Server") == SERVER_NAME
        except (OSError, HTTPException):  # whatever it is, it does not speak as we do
            return False


@hookimpl
def stellerd_job() -> type[Job]:
    """The job class."""
    return BambooSandbox
