"""The life of a job's process as a table: (state, event) gives the next state and what to do. Pure."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """supervisord's names."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    BACKOFF = "BACKOFF"
    EXITED = "EXITED"
    FATAL = "FATAL"


class Event(StrEnum):
    """What can happen to a process."""

    START = "start"  # somebody wants it up
    STOP = "stop"  # somebody wants it down
    READY = "ready"  # the child said so
    DIED = "died"  # it ended, and should not have
    ENDED = "ended"  # it ended, and need not come back
    UNUSABLE = "unusable"  # it said that its configuration or plugin cannot work (exit 78)
    RECYCLED = "recycled"  # it ended to be replaced by a fresh one (max_rss, max_runs)
    GIVE_UP = "give up"  # it ended once more than max_restarts allows
    TIMER = "timer"  # the wait before the next try is over


class Action(StrEnum):
    """What the supervisor carries out."""

    NONE = "none"
    SPAWN = "spawn"
    TERMINATE = "terminate"
    RETRY = "retry"  # after the backoff, which may be zero


_S, _E, _A = State, Event, Action
TABLE: dict[tuple[State, Event], tuple[State, Action]] = {
    (_S.STOPPED, _E.START): (_S.STARTING, _A.SPAWN),
    (_S.EXITED, _E.START): (_S.STARTING, _A.SPAWN),
    (_S.EXITED, _E.STOP): (_S.STOPPED, _A.NONE),
    (_S.FATAL, _E.START): (_S.STARTING, _A.SPAWN),
    (_S.FATAL, _E.STOP): (_S.STOPPED, _A.NONE),
    (_S.BACKOFF, _E.START): (_S.STARTING, _A.SPAWN),
    (_S.BACKOFF, _E.TIMER): (_S.STARTING, _A.SPAWN),
    (_S.BACKOFF, _E.STOP): (_S.STOPPED, _A.NONE),
    (_S.STARTING, _E.READY): (_S.RUNNING, _A.NONE),
    (_S.STARTING, _E.STOP): (_S.STOPPING, _A.TERMINATE),
    (_S.STARTING, _E.DIED): (_S.BACKOFF, _A.RETRY),
    (_S.STARTING, _E.ENDED): (_S.EXITED, _A.NONE),
    (_S.STARTING, _E.UNUSABLE): (_S.FATAL, _A.NONE),
    (_S.STARTING, _E.GIVE_UP): (_S.FATAL, _A.NONE),
    (_S.STARTING, _E.RECYCLED): (_S.BACKOFF, _A.RETRY),  # before it was ready: as good as a crash
    (_S.RUNNING, _E.GIVE_UP): (_S.FATAL, _A.NONE),
    (_S.RUNNING, _E.RECYCLED): (_S.STARTING, _A.SPAWN),
    (_S.RUNNING, _E.STOP): (_S.STOPPING, _A.TERMINATE),
    (_S.RUNNING, _E.DIED): (_S.BACKOFF, _A.RETRY),
    (_S.RUNNING, _E.ENDED): (_S.EXITED, _A.NONE),
    (_S.RUNNING, _E.UNUSABLE): (_S.FATAL, _A.NONE),
    (_S.STOPPING, _E.DIED): (_S.STOPPED, _A.NONE),
    (_S.STOPPING, _E.ENDED): (_S.STOPPED, _A.NONE),
    (_S.STOPPING, _E.UNUSABLE): (_S.STOPPED, _A.NONE),
    (_S.STOPPING, _E.GIVE_UP): (_S.STOPPED, _A.NONE),
    (_S.STOPPING, _E.RECYCLED): (_S.STOPPED, _A.NONE),
}


def step(state: State, event: Event) -> tuple[State, Action]:
    """The next state and the action; an event that means nothing in a state changes nothing."""
    return TABLE.get((state, event), (state, Action.NONE))
