"""What the vendor answers: routes, credentials, limits, faults and the catalogue; no socket in here."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from stellerd_bamboo_sandbox.badrows import bad_rows
from stellerd_bamboo_sandbox.brands import categories_body
from stellerd_bamboo_sandbox.calllog import Call, CallLog
from stellerd_bamboo_sandbox.catalog import Body, Catalog, Extra, Query
from stellerd_bamboo_sandbox.faults import Fault, Faults
from stellerd_bamboo_sandbox.limits import Window, refusal, retry_after
from stellerd_bamboo_sandbox.query import BadQuery, read_query
from stellerd_bamboo_sandbox.settings import SandboxSettings

V1, V2 = "/api/integration/v1.0", "/api/integration/v2.0"
ROUTES = {f"{V1}/catalog": "catalog", f"{V2}/catalog": "catalog_v2", f"{V2}/categories": "categories"}
JSON = "application/json; charset=utf-8"
HTML = "text/html; charset=utf-8"
_HTML_502 = (
    b"<!DOCTYPE html>\r\n<html><head><title>502 Bad Gateway</title></head>\r\n"
    b"<body><center><h1>502 Bad Gateway</h1></center><hr><center>gateway</center></body></html>\r\n"
)
_HTML_200 = b"<!DOCTYPE html><html><body><h1>Scheduled maintenance</h1><p>We are back soon.</p></body></html>"
_NOTHING = Body(())


@dataclass(frozen=True)
class Request:
    """What arrived; `query` is the text behind the question mark, `authorization` the header's value."""

    method: str
    path: str
    query: str = ""
    authorization: str = ""


@dataclass(frozen=True)
class Answer:
    """What leaves; `fault`: how it is maltreated on its way."""

    status: int
    outcome: str
    body: Body = _NOTHING
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    fault: Fault | None = None
    wait: int = 0


def _json_answer(status: int, outcome: str, value: Any, **headers: str) -> Answer:
    return Answer(status, outcome, Body([json.dumps(value).encode()]), headers=headers)


class Vendor:
    """The API behind one set of credentials. `clock`: seconds since 1970, also what the windows are measured by."""

    def __init__(self, settings: SandboxSettings, log: CallLog, faults: Faults, clock: Callable[[], float]) -> None:
        self.settings, self.log, self.faults, self._clock = settings, log, faults, clock
        self.catalog = Catalog(settings.shape())
        self.refusal: str = settings.refusal
        self.retry_after: str = settings.retry_after
        self._served = 0
        self._lock = threading.Lock()
        self._windows = {
            "catalog": Window(settings.catalog_calls, settings.catalog_window),
            "catalog_v2": Window(settings.catalog_v2_calls, settings.catalog_v2_window),
            "categories": Window(settings.categories_calls, settings.categories_window),
        }

    def answer(self, request: Request) -> tuple[Answer, Call]:
        """Decide and log; safe for several threads."""
        endpoint = ROUTES.get(request.path, "unknown")
        with self._lock:
            now = self._clock()
            call = self.log.arrived(endpoint, now, request.method, request.path, request.query)
            answer = self._decide(request, call, now)
            call.status, call.outcome, call.wait = answer.status, answer.outcome, answer.wait
            call.edition = self.catalog.edition if answer.status == 200 and endpoint != "categories" else 0
            self.log.decided(call)
        return answer, call

    def _decide(self, request: Request, call: Call, now: float) -> Answer:
        if call.endpoint == "unknown":
            return _json_answer(404, "unknown", {"message": f"No resource at {request.path}"})
        if request.method != "GET":
            return _json_answer(405, "unknown", {"message": f"{request.method} is not allowed"}, Allow="GET")
        if not self._known(request.authorization):
            challenge = {"WWW-Authenticate": 'Basic realm="Bamboo"'}
            return _json_answer(401, "unauthorized", {"message": "Invalid credentials"}, **challenge)
        fault = self.faults.find(call.endpoint, call.number)
        if refused := self._refuse(call, fault, now):
            return refused
        if fault and (other := _OTHER_ANSWERS.get(fault.kind)):
            return replace(other(fault), outcome=fault.kind)
        try:
            answer = self._content(call.endpoint, request.query, fault)
        except BadQuery as error:
            return _json_answer(400, "invalid", {"message": str(error)})
        return replace(answer, fault=fault, outcome=fault.kind) if fault else answer

    def _known(self, authorization: str) -> bool:
        scheme, _, value = authorization.partition(" ")
        try:
            given = base64.b64decode(value.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        expected = f"{self.settings.client_id}:{self.settings.client_secret.reveal()}".encode()
        return scheme.lower() == "basic" and hmac.compare_digest(given, expected)

    def _refuse(self, call: Call, fault: Fault | None, now: float) -> Answer | None:
        outcome = "early_429"
        if fault and fault.kind == outcome:
            wait = fault.wait
        elif self.settings.limits and (wait := self._windows[call.endpoint].take(now)):
            outcome = "limited"
        else:
            return None
        content_type, body = refusal(self.refusal, wait)
        headers = retry_after(self.retry_after, wait, now)
        return Answer(429, outcome, Body([body]), content_type, headers, wait=wait)

    def _content(self, endpoint: str, query: str, fault: Fault | None) -> Answer:
        if endpoint == "categories":
            return Answer(200, "ok", Body([categories_body()]), headers={"Cache-Control": "public"})
        kind = fault.kind if fault else ""
        extra = bad_rows(fault.rows) if fault and kind == "bad_rows" else None
        if endpoint == "catalog":
            self._next_edition()
            return Answer(200, "ok", self.catalog.whole(extra))
        return Answer(200, "ok", self._page(read_query(query), extra, fault))

    def _page(self, query: Query, extra: Extra | None, fault: Fault | None) -> Body:
        if query.page_index == 0 and not query.filtered:  # a new pull begins; its pages belong together
            self._next_edition()
        kind = fault.kind if fault else ""
        shift = fault.shift if fault and kind == "page_shift" else 0
        return self.catalog.page(query, extra, shift, "pageindex" if kind == "pageindex" else "pageIndex")

    def _next_edition(self) -> None:
        if self._served and self.settings.drift:
            self.catalog.advance()
        self._served += 1


_OTHER_ANSWERS: dict[str, Callable[[Fault], Answer]] = {
    "server_error": lambda fault: _json_answer(fault.status or 500, "", {"message": "An error has occurred."}),
    "bad_gateway": lambda fault: Answer(fault.status or 502, "", Body([_HTML_502]), HTML),
    "forbidden": lambda fault: _json_answer(403, "", {"error": "Access denied for this address"}),
    "redirect": lambda fault: Answer(fault.status or 302, "", headers={"Location": fault.location}),
    "not_json": lambda fault: Answer(200, "", Body([_HTML_200]), HTML),
    "wrong_shape": lambda fault: _json_answer(200, "", {"data": {"brands": None}}),
    "wrong_types": lambda fault: _json_answer(
        200, "", {"brands": {"0": None}, "items": "none", "count": [], "pageIndex": "first", "pageSize": -1}
    ),
    "empty": lambda fault: Answer(200, ""),
}
