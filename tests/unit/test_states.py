"""The table of process states: complete, sane, and nothing beside it happens."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellerd.states import TABLE, Action, Event, State, step

ILLEGAL = sorted(set(itertools.product(State, Event)) - set(TABLE))
DEATHS = (Event.DIED, Event.ENDED, Event.UNUSABLE, Event.RECYCLED, Event.GIVE_UP)
events = st.lists(st.sampled_from(Event), max_size=40)


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_an_event_that_means_nothing_changes_nothing(state: State, event: Event) -> None:
    assert step(state, event) == (state, Action.NONE)


@pytest.mark.parametrize(("state", "event"), sorted(TABLE))
def test_every_pair_of_the_table_moves_somewhere(state: State, event: Event) -> None:
    assert step(state, event)[0] is not state


def _reachable() -> set[State]:
    seen, todo = {State.STOPPED}, [State.STOPPED]
    while todo:
        state = todo.pop()
        for event in Event:
            after, _ = step(state, event)
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return seen


def test_every_state_is_reachable_from_stopped() -> None:
    assert _reachable() == set(State)


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_left(state: State) -> None:
    assert any(after is not state for after, _ in (step(state, event) for event in Event))


@pytest.mark.parametrize(("state", "event"), sorted(TABLE))
def test_a_process_is_spawned_exactly_on_the_way_to_starting(state: State, event: Event) -> None:
    after, action = TABLE[state, event]
    assert (action is Action.SPAWN) == (after is State.STARTING)


@pytest.mark.parametrize("event", Event)
def test_stopping_never_spawns(event: Event) -> None:
    after, action = step(State.STOPPING, event)
    assert action is Action.NONE
    assert after in (State.STOPPING, State.STOPPED)


@pytest.mark.parametrize("event", DEATHS)
@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, State.STOPPING])
def test_a_death_leaves_a_state_without_a_process_or_makes_a_new_one(state: State, event: Event) -> None:
    after, action = step(state, event)
    assert action is Action.SPAWN or after in (State.STOPPED, State.BACKOFF, State.EXITED, State.FATAL)


@given(events)
def test_no_history_has_two_processes_or_terminates_none(history: list[Event]) -> None:
    state, alive = State.STOPPED, False
    for event in history:
        if event in (*DEATHS, Event.READY) and not alive:
            continue  # only a process can do these
        state, action = step(state, event)
        if event in DEATHS:
            alive = False
        if action is Action.SPAWN:
            assert not alive
            alive = True
        if action is Action.TERMINATE:
            assert alive
        assert alive == (state in (State.STARTING, State.RUNNING, State.STOPPING))


@given(events)
def test_a_stop_is_never_answered_by_a_restart(history: list[Event]) -> None:
    state = State.STOPPED
    for event in history:
        state, _ = step(state, event)
    state, _ = step(state, Event.STOP)
    for event in (*DEATHS, Event.TIMER, Event.READY):
        state, action = step(state, event)
        assert action not in (Action.SPAWN, Action.RETRY)
