"""A psycopg connection on which no statement waits for ever, whatever became of the server or the network."""

from __future__ import annotations

import select
import time
from typing import Any

import psycopg

_READS, _WRITES = 1, 2  # psycopg's Wait and Ready have these values


class PatientConnection(psycopg.Connection[Any]):
    """tcp_user_timeout does not help when somebody on the way takes the bytes and says nothing; this does."""

    patience_s = 10.0

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Run a driver's generator to its end.

        Raises: psycopg.OperationalError when the server says nothing for `patience_s`.
        """
        deadline = time.monotonic() + self.patience_s
        try:
            wanted = next(gen)
            while True:
                ready = self._ready(wanted, deadline)
                if not ready:
                    raise psycopg.OperationalError(f"no answer within {self.patience_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value

    def _ready(self, wanted: int, deadline: float) -> int:
        poll = select.poll()
        events = (select.POLLIN if wanted & _READS else 0) | (select.POLLOUT if wanted & _WRITES else 0)
        poll.register(self.pgconn.socket, events)
        happened = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not happened:
            return 0
        seen = happened[0][1]
        if seen & ~(select.POLLIN | select.POLLOUT):  # hung up or broken: the driver finds out how
            return wanted & (_READS | _WRITES)
        return (_READS if seen & select.POLLIN else 0) | (_WRITES if seen & select.POLLOUT else 0)
