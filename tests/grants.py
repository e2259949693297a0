"""A log of a bucket's grants that the limiter does not clean up, and the most of them in any window."""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime, timedelta

import sqlalchemy as sa

from stellerd.schema import hits
from stellerd.store import Store


def keep_grants(state: Store) -> None:
    """From now on every hit leaves a row in the table `grants`."""
    with state.begin() as connection:
        connection.execute(sa.text("CREATE TABLE grants AS SELECT bucket, at FROM hits"))
        if connection.dialect.name == "sqlite":
            steps = [
                "CREATE TRIGGER log AFTER INSERT ON hits BEGIN INSERT INTO grants VALUES (NEW.bucket, NEW.at); END"
            ]
        else:
            steps = [
                "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN INSERT INTO grants VALUES (NEW.bucket, NEW.at); RETURN NEW; END $$",
                "CREATE TRIGGER log AFTER INSERT ON hits FOR EACH ROW EXECUTE FUNCTION keep()",
            ]
        for step in steps:
            connection.exec_driver_sql(step)


def grants(state: Store, bucket: str | None = None) -> list[datetime]:
    """Their moments, in order; of one bucket, or of all."""
    log = sa.table("grants", sa.column("bucket", sa.Text), sa.column("at", hits.c.at.type))
    query = sa.select(log.c.at).order_by(log.c.at)
    with state.reading() as connection:
        return connection.execute(query if bucket is None else query.where(log.c.bucket == bucket)).scalars()


def in_any(window: float, moments: list[datetime]) -> int:
    """The most moments in any window of so many seconds."""
    span = timedelta(seconds=window)
    return max((bisect_left(moments, at + span) - n for n, at in enumerate(moments)), default=0)
