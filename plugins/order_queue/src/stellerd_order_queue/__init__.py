"""stellerd job `order_queue`: no accepted order is ever forgotten."""

from __future__ import annotations

from stellerd import Job, hookimpl
from stellerd_order_queue.job import OrderQueue

__all__ = ["OrderQueue", "stellerd_job"]


@hookimpl
def stellerd_job() -> type[Job]:
    """The job class."""
    return OrderQueue
