"""The vendor's base URLs, in every form that operators write them, as one canonical form."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

API_PATH = {"v1.0": "/api/integration/v1.0", "v2.0": "/api/integration/v2.0"}
_API = "/api/integration/"
_ENDPOINT = re.compile(r"/(?:catalog|categories)$")
_VERSION = re.compile(r"/api/integration/(v\d+(?:\.\d+)?)$")


def normalised(text: str, version: str) -> str:
    """scheme://host/path without a slash at the end, ready for `endpoint`.

    `text` may be only a host, end in slashes, hold the API's path once, partly, twice or not at all, or name an
    endpoint. `version` is "v1.0" or "v2.0". A path of another kind (a gateway's) is kept as it is.

    Raises: ValueError saying what cannot be used; a password in the URL is not repeated.
    """
    parts = _split(text.strip())
    path = _ENDPOINT.sub("", re.sub(r"/+", "/", parts.path).rstrip("/"))
    path = _once(path, API_PATH[version])
    found = _VERSION.search(path)
    if found and found[1] != version:
        raise ValueError(f"leads to {found[1]} of the API, but {version} is needed here: end it in {API_PATH[version]}")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def endpoint(base: str, name: str) -> str:
    """The URL of "catalog" or "categories" below a normalised base."""
    return f"{base}/{name}"


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        parts.port  # noqa: B018 - reading it is what validates it
    except ValueError as error:
        raise ValueError(f"not a URL: {_without_input(error)}") from None
    if "@" in parts.netloc:
        raise ValueError("holds a user or password: put them in client_id and client_secret")
    if not parts.hostname or re.search(r"[\s\\%]", parts.netloc + parts.path):
        raise ValueError("not a URL: write https://host or https://host/path")
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise ValueError("must end with the path: no ? and no #")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise ValueError("must begin with https:// (http:// for this machine only)")
    return parts


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine, judged by its spelling alone."""
    return host in ("localhost", "::1") or bool(re.fullmatch(r"127\.\d{1,3}\.\d{1,3}\.\d{1,3}", host))


def _once(path: str, api: str) -> str:
    """`path` with the API's own path exactly once at its end; a gateway's path in front of it is kept."""
    if api.startswith(path + "/"):  # nothing, /api or /api/integration
        return api
    if path.count(_API) > 1:  # joined twice by somebody: that was a real outage
        path = path.partition(_API)[0] + path[path.rindex(_API) :]
    return path


def _without_input(error: ValueError) -> str:
    """urllib's reasons quote the text, which may hold a password: name the kind alone."""
    return "the port is not a number from 0 to 65535" if "ort" in str(error) else "the host is malformed"
