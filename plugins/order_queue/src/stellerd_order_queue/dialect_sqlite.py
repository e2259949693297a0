"""SQLite (demo, tests): ids are whatever text the table holds, dates whatever strftime can read."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any

from stellerd_order_queue.dialects import Dialect, as_json, statements, utc_text
from stellerd_order_queue.envelope import NIL

_NO_SIGNS = str.maketrans("", "", "{}-")


def _plain(request: str) -> str:
    """SQL for a request id without what tells its ways to be written apart."""
    for sign in "{}-":
        request = f"replace({request}, '{sign}', '')"
    return f"lower({request})"


_PIECES = {
    "created": """coalesce(strftime('%Y-%m-%d %H:%M:%f', o."CreateDate"), '')""",  # unreadable: the oldest of all
    # No pending order, no closed one: what it is cannot be told
    "incomplete": """(o."OrderId" IS NULL OR (o."OrderId" = 0 AND (o."Status" IS NULL
        OR (o."CreateDate" IS NULL AND {pending}))))""",
    "lacking": """o."OrderId" IS NULL, o."Status" IS NULL, o."CreateDate" IS NULL""",
    "due": """(p.order_id IS NULL
        OR ((:forced OR p.next_due <= :now OR p.next_due > :too_late OR {renamed}) AND {free}))""",
    "renamed": _plain("p.request_id") + " <> " + _plain(f"coalesce(o.\"RequestId\", '{NIL}')"),
    "free": "(p.claim_until IS NULL OR p.claim_until <= :now OR p.claim_until > :too_long OR p.claim_owner = :owner)",
    "named": """(:order IS NULL OR lower(:order) IN (lower(o."Id"), lower(o."RequestId")))""",
    "within": """o."CreateDate" IS NOT NULL AND {created} >= :since AND {created} < :before""",
    "pending": """o."OrderId" = 0 AND lower(o."Status") NOT IN (SELECT value FROM json_each(:excluded))""",
    "ids": "(SELECT value FROM json_each(:ids))",
    "rows": "json_each(:rows)",
    "id": "json_extract(k.value, '$[0]')",
    "request": "json_extract(k.value, '$[1]')",
    "message": "json_extract(k.value, '$[2]')",
    "written": "json_extract(k.value, '$[3]')",
}
_LEDGER = "stellerd_published_orders"
_NO_LEDGER = """(SELECT NULL AS order_id, NULL AS request_id, 0 AS attempts,
    '' AS next_due, '' AS claim_until, NULL AS claim_owner, NULL AS refused WHERE false)"""

_READS = {
    "survey": """
        SELECT count(*) FILTER (WHERE recent AND due) AS recent_due,
               count(*) FILTER (WHERE NOT recent AND due) AS older_due,
               count(*) FILTER (WHERE refused IS NULL AND attempts >= :max_attempts) AS stuck,
               count(*) FILTER (WHERE refused IS NOT NULL) AS refused,
               count(*) AS pending
        FROM (SELECT {created} >= :recent AS recent, {due} AND {named} AND {within} AS due, p.refused, p.attempts
              FROM "Orders" o LEFT JOIN {ledger} p ON p.order_id = o."Id" WHERE {pending}) AS each""",
    "page": """
        SELECT o."Id", o."RequestId", {created}, p.request_id, p.attempts, p.refused IS NOT NULL
        FROM "Orders" o LEFT JOIN {ledger} p ON p.order_id = o."Id"
        WHERE {pending} AND {due} AND {named} AND {within}
          AND ({created}, o."Id") > (:at, :id)
        ORDER BY {created}, o."Id" LIMIT :size""",
    "stuck": """
        SELECT o."Id" FROM "Orders" o JOIN {ledger} p ON p.order_id = o."Id"
        WHERE {pending} AND p.refused IS NULL AND p.attempts >= :max_attempts ORDER BY {created} LIMIT :size""",
    "named": """
        SELECT o."Id", o."OrderId", o."Status", {pending}, NOT {free}, {lacking}
        FROM "Orders" o LEFT JOIN {ledger} p ON p.order_id = o."Id" WHERE {named} ORDER BY {pending} DESC LIMIT 1""",
    "incomplete": """SELECT o."Id", {lacking} FROM "Orders" o WHERE {incomplete} ORDER BY o."Id" LIMIT :size""",
    "still": """
        SELECT o."Id" FROM {rows} AS k JOIN "Orders" o ON o."Id" = {id}
        WHERE {pending} AND o."RequestId" = {request}""",
}
_WRITES = {
    "taken": """
        SELECT p.order_id FROM {ledger} p LEFT JOIN "Orders" o ON o."Id" = p.order_id
        WHERE p.order_id IN {ids} AND NOT {due}""",
    "renew": """
        UPDATE {ledger} AS p SET claim_owner = :owner, claim_until = :until
        WHERE p.order_id IN {ids} AND p.refused IS NULL
          AND EXISTS (SELECT 1 FROM "Orders" o WHERE o."Id" = p.order_id AND {pending} AND {due} AND NOT {renamed})
        RETURNING order_id""",
    "fresh": """
        INSERT INTO {ledger} (order_id, request_id, message_id, next_due, claim_owner, claim_until)
        SELECT {id}, {request}, {message}, :now, :owner, :until
        FROM {rows} AS k JOIN "Orders" o ON o."Id" = {id} WHERE {pending} AND o."RequestId" = {written}
        ORDER BY k.key ON CONFLICT DO NOTHING RETURNING order_id""",
    "fate": """
        SELECT {id}, {pending}, o."OrderId", o."Status", twin.order_id, o."RequestId" IS NOT {written}
        FROM {rows} AS k
        LEFT JOIN "Orders" o ON o."Id" = {id}
        LEFT JOIN {ledger} twin ON twin.request_id = {request} AND twin.refused IS NULL AND twin.order_id <> {id}""",
    "refuse": """
        INSERT INTO {ledger} (order_id, request_id, next_due, refused) VALUES (:id, :request, :next_due, :reason)
        ON CONFLICT (order_id) DO UPDATE SET refused = excluded.refused, request_id = excluded.request_id,
            next_due = excluded.next_due, claim_owner = NULL, claim_until = NULL""",
    "mark": """
        UPDATE {ledger} SET attempts = attempts + 1, first_published = coalesce(first_published, :now),
            last_published = :now, claim_owner = NULL, claim_until = NULL,
            next_due = strftime('%Y-%m-%d %H:%M:%f', :now,
                                min(:cap, :pause * (1 << min(attempts, 30))) || ' seconds')
        WHERE order_id IN {ids} AND last_published IS NOT :now""",
    "release": """
        UPDATE {ledger} SET claim_owner = NULL, claim_until = NULL
        WHERE order_id IN {ids} AND claim_owner = :owner""",
    "fail": """
        UPDATE {ledger} SET claim_owner = NULL, claim_until = NULL, last_failed = :now, failure = :reason
        WHERE order_id IN {ids} AND claim_owner = :owner""",
    "forget": "DELETE FROM {ledger} AS p WHERE p.order_id IN {ids} AND {free}",
    "prune": """
        DELETE FROM {ledger} AS p WHERE p.next_due < :old
           AND NOT EXISTS (SELECT 1 FROM "Orders" o WHERE o."Id" = p.order_id AND {pending})""",
}

CREATE_LEDGER = (
    """CREATE TABLE IF NOT EXISTS stellerd_published_orders (
  order_id TEXT PRIMARY KEY, request_id TEXT NOT NULL, message_id TEXT, attempts INTEGER NOT NULL DEFAULT 0,
  first_published TEXT, last_published TEXT, next_due TEXT NOT NULL,
  claim_owner TEXT, claim_until TEXT, refused TEXT, last_failed TEXT, failure TEXT)""",
    """CREATE UNIQUE INDEX IF NOT EXISTS stellerd_published_orders_request
  ON stellerd_published_orders (request_id) WHERE refused IS NULL""",
)
UPGRADE_LEDGER = (
    "ALTER TABLE stellerd_published_orders ADD COLUMN last_failed TEXT",
    "ALTER TABLE stellerd_published_orders ADD COLUMN failure TEXT",
)
CREATE_ORDERS = (
    """CREATE TABLE IF NOT EXISTS "Users" (
  "Id" INTEGER PRIMARY KEY, "Name" TEXT NOT NULL, "Email" TEXT NOT NULL UNIQUE)""",
    """CREATE TABLE IF NOT EXISTS "Orders" (
  "Id" TEXT PRIMARY KEY, "OrderNumber" INTEGER NOT NULL, "OrderId" INTEGER NOT NULL DEFAULT 0,
  "RequestId" TEXT NOT NULL, "PartnerId" INTEGER NOT NULL,
  "SaleTotal" NUMERIC NOT NULL, "Total" NUMERIC NOT NULL, "OrderStatusId" INTEGER NOT NULL,
  "Status" TEXT NOT NULL, "CreateDate" TEXT NOT NULL, "ErrorMessage" TEXT, "OrderType" TEXT NOT NULL,
  "Currency" TEXT NOT NULL, "CreatedAt" TEXT NOT NULL, "UpdatedAt" TEXT NOT NULL,
  "CreatedBy" INTEGER REFERENCES "Users", "UpdatedBy" INTEGER REFERENCES "Users")""",
    """CREATE INDEX IF NOT EXISTS "IX_Orders_stellerd_pending" ON "Orders" ("CreateDate") WHERE "OrderId" = 0""",
)


def _usable(request: str | None) -> str | None:
    """SQLite stores whatever it is given; Python would read underscores and foreign digits too."""
    signs = str(request).lower().translate(_NO_SIGNS)
    if not re.fullmatch("[0-9a-f]{32}", signs):
        return None
    parsed = uuid.UUID(signs)
    return str(parsed) if parsed != NIL else None


def _rows(rows: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    return {"rows": as_json(rows)}


DIALECT = Dialect(
    say=statements(_READS | _WRITES, _PIECES | {"ledger": _LEDGER}),
    say_without_ledger=statements(_READS, _PIECES | {"ledger": _NO_LEDGER}),
    create_ledger=CREATE_LEDGER,
    upgrade_ledger=UPGRADE_LEDGER,
    create_orders=CREATE_ORDERS,
    moment=utc_text,
    usable=_usable,
    many=as_json,
    texts=as_json,
    rows=_rows,
    pairs=_rows,
    as_id=str,
    bound=utc_text,
    first_key="",
    schema=None,
    earliest="",
    latest="~",  # after every digit
)
