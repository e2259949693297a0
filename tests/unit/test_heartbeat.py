"""Signs of life between real processes, through shared memory."""

from __future__ import annotations

import os
import time

from stellerd.heartbeat import _SLOTS, Heartbeats


def test_the_parent_sees_what_its_child_stamps() -> None:
    slot = Heartbeats().slot()
    assert slot is not None
    before = slot.last()
    pid = os.fork()
    if pid == 0:
        slot.stamp()
        os._exit(0)
    os.waitpid(pid, 0)
    assert before < slot.last() <= time.monotonic()


def test_two_processes_do_not_share_a_slot() -> None:
    beats = Heartbeats()
    one, other = beats.slot(), beats.slot()
    assert one is not None
    assert other is not None
    before = other.last()
    one.stamp()
    assert other.last() == before


def test_a_new_slot_counts_as_alive() -> None:
    began = time.monotonic()
    slot = Heartbeats().slot()
    assert slot is not None
    assert slot.last() >= began


def test_more_processes_than_slots_are_not_watched_and_no_error() -> None:
    beats = Heartbeats()
    slots = [beats.slot() for _ in range(_SLOTS)]
    assert beats.slot() is None
    assert slots[0] is not None
    slots[0].release()
    assert beats.slot() is not None
