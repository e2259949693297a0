"""PostgreSQL: the ledger lives in a schema of ours beside the platform's tables; "Orders" is only ever read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from stellerd_order_queue.dialects import Dialect, Row, statements
from stellerd_order_queue.envelope import NIL

_PIECES = {
    # OFFSET 0: a look at the primary key for each; a scan of everything for each page or claim is what planners like
    "the_order": """(SELECT true AS found FROM "Orders" o WHERE o."Id" = k.order_id
        AND {pending} AND o."RequestId" = k.request_id OFFSET 0) AS o""",
    "pending": """o."OrderId" = 0 AND lower(o."Status") <> ALL (CAST(:excluded AS text[]))""",
    # No pending order, no closed one: what it is cannot be told
    "incomplete": """(o."OrderId" IS NULL OR (o."OrderId" = 0 AND (o."Status" IS NULL
        OR (o."CreateDate" IS NULL AND {pending}))))""",
    "lacking": """o."OrderId" IS NULL, o."Status" IS NULL, o."CreateDate" IS NULL""",
    "due": """(p.order_id IS NULL
        OR ((:forced OR p.next_due <= :now OR p.next_due > :too_late OR {renamed}) AND {free}))""",
    "renamed": f"""p.request_id <> coalesce(o."RequestId", '{NIL}')""",
    "free": "(p.claim_until IS NULL OR p.claim_until <= :now OR p.claim_until > :too_long OR p.claim_owner = :owner)",
    "named": """(CAST(:order AS uuid) IS NULL OR CAST(:order AS uuid) IN (o."Id", o."RequestId"))""",
    "within": """o."CreateDate" >= CAST(:since AS timestamptz)
          AND coalesce(o."CreateDate" < CAST(:before AS timestamptz), true)""",
    "ids": "ANY (CAST(:ids AS uuid[]))",
}
_NIL = str(NIL)
_LEDGER = "stellerd.stellerd_published_orders"
_NO_LEDGER = """(SELECT CAST(NULL AS uuid) AS order_id, CAST(NULL AS uuid) AS request_id, 0 AS attempts,
    now() AS next_due, now() AS claim_until, CAST(NULL AS uuid) AS claim_owner, '' AS refused WHERE false)"""

_READS = {
    "survey": """
        SELECT count(*) FILTER (WHERE recent AND due) AS recent_due,
               count(*) FILTER (WHERE NOT recent AND due) AS older_due,
               count(*) FILTER (WHERE refused IS NULL AND attempts >= :max_attempts) AS stuck,
               count(*) FILTER (WHERE refused IS NOT NULL) AS refused,
               count(*) AS pending
        FROM (SELECT o."CreateDate" >= CAST(:recent AS timestamptz) AS recent,
                     {due} AND {named} AND {within} AS due, p.refused, p.attempts
              FROM "Orders" o LEFT JOIN {ledger} p ON p.order_id = o."Id" WHERE {pending}) AS each""",
    "page": """
        SELECT CAST(o."Id" AS text), CAST(o."RequestId" AS text), CAST(o."CreateDate" AS text),
               CAST(p.request_id AS text), p.attempts, p.refused IS NOT NULL
        FROM "Orders" o LEFT JOIN LATERAL (SELECT * FROM {ledger} q WHERE q.order_id = o."Id" OFFSET 0) AS p ON true
        WHERE {pending} AND {due} AND {named} AND {within}
          AND (o."CreateDate", o."Id") > (CAST(:at AS timestamptz), CAST(:id AS uuid))
        ORDER BY o."CreateDate", o."Id" LIMIT :size""",
    "stuck": """
        SELECT CAST(o."Id" AS text) FROM "Orders" o JOIN {ledger} p ON p.order_id = o."Id"
        WHERE {pending} AND p.refused IS NULL AND p.attempts >= :max_attempts ORDER BY o."CreateDate" LIMIT :size""",
    "named": """
        SELECT CAST(o."Id" AS text), o."OrderId", o."Status", coalesce({pending}, false), NOT {free}, {lacking}
        FROM "Orders" o LEFT JOIN {ledger} p ON p.order_id = o."Id" WHERE {named}
        ORDER BY coalesce({pending}, false) DESC LIMIT 1""",
    "incomplete": """
        SELECT CAST(o."Id" AS text), {lacking} FROM "Orders" o WHERE {incomplete} ORDER BY o."Id" LIMIT :size""",
    "clock": "SELECT clock_timestamp()",
    "still": """
        SELECT CAST(k.order_id AS text)
        FROM unnest(CAST(:ids AS uuid[]), CAST(:requests AS uuid[])) AS k (order_id, request_id)
        CROSS JOIN LATERAL {the_order}""",
}
_WRITES = {
    "taken": """
        SELECT CAST(p.order_id AS text) FROM {ledger} p
        LEFT JOIN LATERAL (SELECT o."RequestId" FROM "Orders" o WHERE o."Id" = p.order_id OFFSET 0) AS o ON true
        WHERE p.order_id = {ids} AND NOT {due}""",
    "renew": """
        UPDATE {ledger} AS mine SET claim_owner = :owner, claim_until = :until
        FROM (SELECT p.order_id FROM {ledger} p JOIN "Orders" o ON o."Id" = p.order_id AND {pending}
              WHERE p.order_id = {ids} AND p.refused IS NULL AND {due} AND NOT {renamed}
              ORDER BY p.order_id FOR UPDATE OF p SKIP LOCKED) AS free
        WHERE mine.order_id = free.order_id RETURNING CAST(mine.order_id AS text)""",
    "fresh": """
        INSERT INTO {ledger} (order_id, request_id, message_id, next_due, claim_owner, claim_until)
        SELECT k.order_id, k.request_id, k.message_id, :now, :owner, :until
        FROM unnest(CAST(:ids AS uuid[]), CAST(:requests AS uuid[]), CAST(:messages AS uuid[]))
             WITH ORDINALITY AS k (order_id, request_id, message_id, n)
        CROSS JOIN LATERAL {the_order}
        ORDER BY k.n ON CONFLICT DO NOTHING RETURNING CAST(order_id AS text)""",
    "fate": """
        SELECT CAST(k.order_id AS text), {pending}, o."OrderId", o."Status", CAST(twin.order_id AS text),
               o."RequestId" IS DISTINCT FROM k.request_id
        FROM unnest(CAST(:ids AS uuid[]), CAST(:requests AS uuid[])) AS k (order_id, request_id)
        LEFT JOIN LATERAL (SELECT * FROM "Orders" o WHERE o."Id" = k.order_id OFFSET 0) AS o ON true
        LEFT JOIN {ledger} twin
               ON twin.request_id = k.request_id AND twin.refused IS NULL AND twin.order_id <> k.order_id""",
    "refuse": """
        INSERT INTO {ledger} AS mine (order_id, request_id, next_due, refused)
        VALUES (CAST(:id AS uuid), CAST(:request AS uuid), :next_due, :reason)
        ON CONFLICT (order_id) DO UPDATE SET refused = excluded.refused, request_id = excluded.request_id,
            next_due = excluded.next_due, claim_owner = NULL, claim_until = NULL""",
    "mark": """
        UPDATE {ledger} SET attempts = attempts + 1, first_published = coalesce(first_published, :now),
            last_published = :now, claim_owner = NULL, claim_until = NULL,
            next_due = :now + least(:cap, :pause * (CAST(1 AS bigint) << least(attempts, 30))) * interval '1 second'
        WHERE order_id = {ids} AND last_published IS DISTINCT FROM :now""",
    "release": """
        UPDATE {ledger} SET claim_owner = NULL, claim_until = NULL
        WHERE order_id = {ids} AND claim_owner = :owner""",
    "fail": """
        UPDATE {ledger} SET claim_owner = NULL, claim_until = NULL, last_failed = :now, failure = :reason
        WHERE order_id = {ids} AND claim_owner = :owner""",
    "forget": "DELETE FROM {ledger} AS p WHERE p.order_id = {ids} AND {free}",
    "prune": """
        DELETE FROM {ledger} AS p WHERE p.next_due < :old
           AND NOT EXISTS (SELECT 1 FROM "Orders" o WHERE o."Id" = p.order_id AND {pending})""",
}

CREATE_LEDGER = (
    # IF NOT EXISTS wants the right to create a schema even where it is there
    "DO $$ BEGIN IF to_regnamespace('stellerd') IS NULL THEN CREATE SCHEMA stellerd; END IF; END $$",
    # Room on each page: claims and marks touch no index, so PostgreSQL can keep them in place
    """CREATE TABLE IF NOT EXISTS stellerd.stellerd_published_orders (
  order_id uuid PRIMARY KEY, request_id uuid NOT NULL, message_id uuid, attempts integer NOT NULL DEFAULT 0,
  first_published timestamptz, last_published timestamptz, next_due timestamptz NOT NULL,
  claim_owner uuid, claim_until timestamptz, refused text, last_failed timestamptz, failure text)
  WITH (fillfactor = 60)""",
    """CREATE UNIQUE INDEX IF NOT EXISTS stellerd_published_orders_request
  ON stellerd.stellerd_published_orders (request_id) WHERE refused IS NULL""",
)
UPGRADE_LEDGER = (
    "SET LOCAL lock_timeout = '5s'",
    """ALTER TABLE stellerd.stellerd_published_orders
  ADD COLUMN IF NOT EXISTS last_failed timestamptz, ADD COLUMN IF NOT EXISTS failure text""",
)
PENDING_INDEX = (
    """CREATE INDEX IF NOT EXISTS "IX_Orders_stellerd_pending" ON "Orders" ("CreateDate") WHERE "OrderId" = 0"""
)
CREATE_ORDERS = (
    """CREATE TABLE IF NOT EXISTS "Users" (
  "Id" integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, "Name" text NOT NULL, "Email" text NOT NULL UNIQUE)""",
    """CREATE TABLE IF NOT EXISTS "Orders" (
  "Id" uuid PRIMARY KEY, "OrderNumber" integer NOT NULL, "OrderId" integer NOT NULL DEFAULT 0,
  "RequestId" uuid NOT NULL, "PartnerId" integer NOT NULL,
  "SaleTotal" numeric(18,4) NOT NULL, "Total" numeric(18,4) NOT NULL, "OrderStatusId" integer NOT NULL,
  "Status" text NOT NULL, "CreateDate" timestamptz NOT NULL, "ErrorMessage" text, "OrderType" text NOT NULL,
  "Currency" text NOT NULL, "CreatedAt" timestamptz NOT NULL, "UpdatedAt" timestamptz NOT NULL,
  "CreatedBy" integer REFERENCES "Users", "UpdatedBy" integer REFERENCES "Users")""",
    PENDING_INDEX,
)


def _moment(at: datetime) -> datetime:
    return at


def _usable(request: str | None) -> str | None:
    return request if request != _NIL else None  # the column's type keeps anything else out


def _uuids(values: Iterable[str]) -> str:
    """An array literal: psycopg's own way to write a list looks at each element twice."""
    return "{" + ",".join(values) + "}"


def _id(value: UUID) -> UUID:
    return value


def _bound(at: datetime) -> str:
    return at.isoformat()


def _rows(rows: Sequence[Row]) -> dict[str, Any]:
    ids, requests, messages, _ = (_uuids(column) for column in zip(*rows, strict=True))
    return {"ids": ids, "requests": requests, "messages": messages}


def _pairs(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    ids, requests = (_uuids(column) for column in zip(*pairs, strict=True))
    return {"ids": ids, "requests": requests}


DIALECT = Dialect(
    say=statements(_READS | _WRITES, _PIECES | {"ledger": _LEDGER}),
    say_without_ledger=statements(_READS, _PIECES | {"ledger": _NO_LEDGER}),
    create_ledger=CREATE_LEDGER,
    upgrade_ledger=UPGRADE_LEDGER,
    create_orders=CREATE_ORDERS,
    moment=_moment,
    usable=_usable,
    many=_uuids,
    texts=list,
    rows=_rows,
    pairs=_pairs,
    as_id=_id,
    bound=_bound,
    first_key=_NIL,
    schema="stellerd",
    earliest="-infinity",
    latest=None,
)
