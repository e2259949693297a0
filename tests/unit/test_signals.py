"""Signals as a descriptor, with real signals."""

from __future__ import annotations

import os
import select
import signal
import threading

from stellerd.signals import SignalPipe


def readable(pipe: SignalPipe, seconds: float = 5.0) -> bool:
    return bool(select.select([pipe.fd], [], [], seconds)[0])


def test_a_signal_makes_the_descriptor_readable() -> None:
    pipe = SignalPipe((signal.SIGUSR1,))
    try:
        assert not readable(pipe, 0)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert readable(pipe)
        assert pipe.read() == [signal.SIGUSR1]
        assert pipe.read() == []
    finally:
        pipe.close()


def test_signals_are_told_once_and_in_order() -> None:
    pipe = SignalPipe((signal.SIGUSR1, signal.SIGUSR2))
    try:
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        assert readable(pipe)
        assert pipe.read() == [signal.SIGUSR2, signal.SIGUSR1]
    finally:
        pipe.close()


def test_a_flood_of_signals_blocks_nothing() -> None:
    pipe = SignalPipe((signal.SIGUSR1,))
    try:
        for _ in range(70_000):
            signal.raise_signal(signal.SIGUSR1)
        assert pipe.read() == [signal.SIGUSR1]
    finally:
        pipe.close()


def test_another_thread_can_wake_it() -> None:
    pipe = SignalPipe((signal.SIGUSR1,))
    try:
        thread = threading.Thread(target=pipe.wake, args=(signal.SIGTERM,))
        thread.start()
        assert readable(pipe)
        thread.join()
        assert pipe.read() == [signal.SIGTERM]
    finally:
        pipe.close()


def test_closing_puts_everything_back() -> None:
    old = signal.getsignal(signal.SIGUSR1)
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    before = len(os.listdir("/proc/self/fd"))
    SignalPipe((signal.SIGUSR1,)).close()
    assert signal.getsignal(signal.SIGUSR1) is old
    assert signal.set_wakeup_fd(wakeup) == wakeup
    assert len(os.listdir("/proc/self/fd")) <= before
