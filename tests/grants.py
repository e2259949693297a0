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
        connection.execute(sa.text("CREATE TABLE grants AS SELECT at FROM hits"))
        if connection.dialect.name == "sqlite":
            steps = ["CREATE TRIGGER log AFTER INSERT ON hits BEGIN INSERT INTO grants VALUES (NEW.at); END"]
        else:
            steps = [
                "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN INSERT INTO grants VALUES (NEW.at); RETURN NEW; END $$",
                "CREATE TRIGGER log AFTER INSERT ON hits FOR EACH ROW EXECUTE FUNCTION keep()",
            ]
        for step in steps:
            connection.exec_driver_sql(step)


def grants(state: Store) -> list[datetime]:
    """Their moments, in order."""
    column = sa.table("grants", sa.column("at", hits.c.at.type)).c.at
    with state.reading() as connection:
        return connection.execute(sa.select(column).order_by(column)).scalars()


def in_any(window: float, moments: list[datetime]) -> int:
    """The most moments in any window of so many seconds."""
    span = timedelta(seconds=window)
    return max((bisect_left(moments, at + span) - n for n, at in enumerate(moments)), default=0)
